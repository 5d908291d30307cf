"""A loaded split: what to attack, and the prompts to classify with."""

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, IterableDataset
from PIL import Image

from hpt.data.augmentation import CropFlip
from hpt.data.geometry import ImageTransform, geometry_of
from hpt.data.images import (
    check_images,
    check_labels,
    decode_image,
    encoded_images,
    read_bytes,
    read_size,
    stratified_rows,
    unusable_named,
)
from hpt.errors import InputError


LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # of PIL, whose pixels change when they are encoded again


class SeenByModels:
    """How a split's images come to a model, whether they are downloaded or streamed: by its `transform`."""

    def for_model(self, image_processor):
        """It as a model sees it: without augmentation and, if it has no transform, with that of the model's processor.

        Args:
            image_processor (`BaseImageProcessor`, *optional*): The model's, `processor.image_processor`; what has
                none sees images at their own size.
        """
        if self.transform is not None and self.augmentation is None:
            return self
        own = ImageTransform() if image_processor is None else geometry_of(image_processor)
        return replace(self, transform=self.transform or own, augmentation=None)

    @cached_property  # a dataset copies its features, with the names of all classes, whenever it is asked for them
    def has_labels(self) -> bool:
        """Whether its images have labels; without, it can be trained on alone, and items have no `labels`."""
        return "label" in self.dataset.features

    @property
    def is_native(self) -> bool:
        """Whether images keep their own size, which then must be one."""
        return str(self.transform) == "native"

    @property
    def attack_space(self) -> str:
        """Resolution at which images are attacked: see [`ImageTransform.attack_space`]."""
        return self._known_transform().attack_space

    def _known_transform(self) -> ImageTransform:
        if self.transform is None:
            raise InputError(
                f"{self.name} ({self.split}) has no geometry of its own, but that of the model which sees it: call "
                "for_model(processor.image_processor), or load it with geometry='256-224' or geometry='native'."
            )
        return self.transform

    @property
    def mode(self) -> str | None:
        """Pillow's name for the colours that the dataset asks images to be decoded to, if it asks."""
        kind = self.dataset.features["image"]
        return kind.mode if isinstance(kind, datasets.Image) else None

    @cached_property
    def _feature(self) -> datasets.Image:
        return datasets.Image(mode=self.mode)

    def _to_pixels(self, encoded: dict | Image.Image | None, sample_id: int, where: str) -> torch.Tensor:
        """What a model gets of a sample's image; [`InputError`] naming where it is for one that can't be used."""
        transform, image = self._known_transform(), decode_image(encoded, where, self._feature)
        augment = None if self.augmentation is None else partial(self.augmentation, sample_id)
        with unusable_named(where):
            return transform(image, augment)


@dataclass(frozen=True, eq=False)
class Benchmark(SeenByModels, torch.utils.data.Dataset):
    """A loaded split: what to attack, and the prompts to classify with; itself a torch dataset of uint8 tensors.

    Args:
        name (`str`): Key in [`BENCHMARKS`], or what messages call the dataset.
        split (`str`): Our split name.
        dataset (`datasets.Dataset`): Columns `image` and `label` (integers from 0); or images without labels.
        class_names (`list[str]`): One readable name per label, in label order; without labels, what images are
            compared with in training, if anything.
        template (`str` or `list[str]`): Prompt template, or several to average.
        transform ([`ImageTransform`], *optional*): The protocol's preprocessing; `None` for what the processor of
            a model does, which [`for_model`] puts in its place.
        mean_per_class (`bool`): Whether its accuracy is customarily the mean over classes.
        sample_ids (`np.ndarray`, *optional*): Of each row, its number in the whole split; `None` for a whole split.
        source (`str`, *optional*): `ID@COMMIT` of a dataset from the Hub.
        augmentation ([`CropFlip`], *optional*): What a trainer does to its training images.
        part_of (`str`, *optional*): Name of the benchmark of whose classes it has a part alone: see [`take_classes`].
    """

    name: str
    split: str
    dataset: Dataset = field(repr=False)
    class_names: list[str] = field(repr=False)
    template: str | list[str]
    transform: ImageTransform | None = None
    mean_per_class: bool = False
    sample_ids: np.ndarray | None = field(default=None, repr=False)
    source: str | None = None
    augmentation: CropFlip | None = field(default=None, repr=False)
    part_of: str | None = field(default=None, repr=False)

    def for_model(self, image_processor) -> "Benchmark":
        """See [`SeenByModels`]; a warning says that small images are enlarged.

        Raises:
            InputError: where images keep their own size for want of a processor, if that isn't the same for all.
        """
        seen = super().for_model(image_processor)
        if self.transform is None and image_processor is None:
            check_images(self.dataset, self.name, same_size=True)
        if self.transform is None and not seen.is_native:
            seen._warn_if_enlarged()
        return seen

    def _warn_if_enlarged(self) -> None:
        size = read_size(encoded_images(self.dataset)[0]["image"], self._where(int(self.ids()[0])))
        smallest, enlarged = min(size), min(self.transform.output_size(*size))
        if smallest < enlarged:
            warnings.warn(
                f"{self.name} ({self.split}) has images of {smallest} pixels, which are enlarged to the model's "
                f"{enlarged} and attacked there: with geometry=native they are attacked as they are.",
                stacklevel=4,
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        """`pixel_values` (uint8, `(3, height, width)`), `labels`, and as `sample_ids` the number in the whole split.

        Raises:
            InputError: for an image that can't be read or converted to RGB, naming dataset and row of the whole split.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict]:
        """Several rows at once, as `DataLoader` asks for them: the table is read once for all of them."""
        ids = rows if self.sample_ids is None else self.sample_ids[rows].tolist()
        examples = self._encoded[rows]
        labels = [{"labels": label} for label in examples["label"]] if self.has_labels else [{}] * len(ids)
        return [
            {
                "pixel_values": self._to_pixels(image, sample_id, self._where(sample_id)),
                **label,
                "sample_ids": sample_id,
            }
            for image, label, sample_id in zip(examples["image"], labels, ids, strict=True)
        ]

    def _where(self, sample_id: int) -> str:
        """What messages call a sample."""
        return f"row {sample_id} of {self.name} ({self.split})"

    @cached_property
    def _encoded(self) -> Dataset:
        """The rows with undecoded images, so that each is decoded, and named if it can't be, by itself."""
        return self.dataset.with_format(None).cast_column("image", datasets.Image(decode=False))

    def ids(self) -> np.ndarray:
        """Of each row, its number in the whole split, which fixes its noise."""
        return np.arange(len(self)) if self.sample_ids is None else self.sample_ids

    def rows(self, rows: np.ndarray) -> "Benchmark":
        """The rows with these numbers here, which keep their ids."""
        return replace(self, dataset=self.dataset.select(rows), sample_ids=self.ids()[rows])

    def subset(self, rows: int | None, seed: int = 0) -> "Benchmark":
        """At most `rows` rows, the same for the same seed; all of them for `None`.

        They are stratified by class, as far as it goes; at random if so few are left out that these can't have every
        class.
        """
        if rows is None or rows >= len(self):
            return self
        if rows > len(self) - len(self.class_names):
            return self.rows(np.sort(np.random.default_rng(seed).permutation(len(self))[:rows]))
        return self.rows(stratified_rows(self.dataset, rows, seed, self.name)[0])

    def hold_out(self, rows: int, seed: int = 0) -> tuple["Benchmark", "Benchmark"]:
        """Split into (the rest, `rows` rows named "validation" for choosing checkpoints and rates), stratified."""
        held_out, rest = stratified_rows(self.dataset, rows, seed, self.name)
        return self.rows(rest), replace(self.rows(held_out), split="validation")


@dataclass(frozen=True, eq=False)
class StreamingBenchmark(SeenByModels, torch.utils.data.IterableDataset):
    """A split read row by row without downloading it; fields as in [`Benchmark`], `dataset` an `IterableDataset`.

    Iterating gives the same items, but for `sample_ids`: the CRC-32 of the image's file, the same in every order and
    for any number of workers, among which `datasets` divides the files. Images that a map made have the CRC-32 of
    their pixels.
    """

    name: str
    split: str
    dataset: IterableDataset = field(repr=False)
    class_names: list[str] = field(repr=False)
    template: str | list[str]
    transform: ImageTransform | None = None
    mean_per_class: bool = False
    source: str | None = None
    augmentation: CropFlip | None = field(default=None, repr=False)
    part_of: str | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[dict]:
        """Items as of [`Benchmark`]; [`InputError`] for an image or a label that can't be used, naming the row."""
        for row, example in enumerate(self.encoded_rows()):
            yield self.decode(example, f"row {row}")

    def encoded_rows(self) -> IterableDataset:
        """Rows as they are stored, whose images aren't decoded yet, which costs little."""
        as_stored = self.dataset.with_format(None).decode(False)  # which also undoes the decoding in threads
        return as_stored.cast(None)  # features would encode anew, a JPEG as a JPEG, what a map has decoded

    def decode(self, example: dict, row: str | None = None) -> dict:
        """A row of [`encoded_rows`] as an item; messages call it `row`, or else by its file or checksum."""
        row = row or _name_row(example["image"])
        label = {"labels": self._read_label(example["label"], row)} if self.has_labels else {}
        image = self._read_file(example["image"], row)
        checksum = _checksum(image)
        pixel_values = self._to_pixels(image, checksum, f"{row} of {self.name} ({self.split})")
        return {"pixel_values": pixel_values, **label, "sample_ids": checksum}

    def take(self, rows: int) -> Benchmark:
        """The first rows, in memory; mind that many splits are sorted by class."""
        if rows < 1:
            raise InputError(f"Can't take {rows} rows of {self.name} ({self.split}): give at least 1.")
        examples = list(self.encoded_rows().take(rows))
        for row, example in enumerate(examples):
            if self.has_labels:
                example["label"] = self._read_label(example["label"], f"row {row}")
            example["image"] = self._read_file(example["image"], f"row {row}")
        features = datasets.Features(self.dataset.features | {"image": self._feature})
        dataset = Dataset.from_list(examples, features)
        if self.has_labels:
            check_labels(dataset, self.class_names, f"{self.name} ({self.split})")
        ids = np.array([_checksum(example["image"]) for example in examples])
        same = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "dataset"}
        return Benchmark(dataset=dataset, sample_ids=ids, **same)

    def _read_label(self, label, row: str) -> int:
        """A label as a number, which may be stored as its name."""
        kind = self.dataset.features["label"]
        if isinstance(label, str) and isinstance(kind, ClassLabel) and label in kind.names:
            return kind.str2int(label)
        if not isinstance(label, int) or not 0 <= label < len(self.class_names):
            raise InputError(
                f"{row[0].upper()}{row[1:]} of {self.name} ({self.split}) has label {label!r}, but labels go from 0 "
                f"to {len(self.class_names) - 1}."
            )
        return int(label)

    def _read_file(self, image, row: str) -> dict | Image.Image:
        """An image with the bytes of its file, or as a map made it; [`InputError`] where these can't be had."""
        if isinstance(image, Image.Image):
            if image.format in LOSSY_FORMATS:
                raise InputError(
                    f"The images of {self.name} ({self.split}) were decoded by a map or filter, and may have been "
                    "encoded anew with losses: call .decode(False) on the stream before it."
                )
            return image
        try:
            if image is None:
                raise OSError("it is missing")
            encoded = image if isinstance(image, dict) else datasets.Image().encode_example(image)
            return {"path": encoded["path"], "bytes": read_bytes(encoded)}
        except OSError as error:
            raise self._unusable(row, error) from error

    def _unusable(self, row: str, error: Exception) -> InputError:
        return InputError(f"The image in {row} of {self.name} ({self.split}) can't be used: {error}.")


def _name_row(image) -> str:
    """What messages call the row of a shuffled stream."""
    if not isinstance(image, dict):
        return "a row"
    return f"the row named {image['path']!r}" if image["path"] else f"the row with CRC-32 {_checksum(image):08x}"


def _checksum(image: dict | Image.Image) -> int:
    """CRC-32 of an image's file, or of the pixels of one that has none."""
    return zlib.crc32(image["bytes"] if isinstance(image, dict) else image.tobytes())
