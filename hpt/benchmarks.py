"""Benchmarks: image-classification sets with class names, prompts and preprocessing, loaded through `datasets`.

benchmark = load_benchmark("cifar10")                                # test split, from the Hub, by its record
benchmark = load_benchmark("cifar10", path="data/cifar10")           # the same from a local copy
benchmark = load_benchmark("owner/birds:label_column=species")       # any other: Hub id, image folder, parquet file
benchmarks = load_benchmark("all")                                   # a dict of the sixteen
benchmark.dataset, benchmark.class_names, benchmark.template
"""

import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset, IterableDataset
from PIL import Image

from hpt.data import ImageTransform, check_labels, stratified_rows
from hpt.errors import InputError, MissingSplit
from hpt.prompts import check_class_names
from hpt.records import BENCHMARKS, SIXTEEN, BenchmarkRecord, parse_benchmark
from hpt.sources import number_labels, read_splits, select_columns


PROTOCOLS = ("hpt", "pmg")
UNUSABLE_IMAGE = (OSError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for broken files


@dataclass(frozen=True, eq=False)
class Benchmark(torch.utils.data.Dataset):
    """A loaded split: what to attack, and the prompts to classify with; itself a torch dataset of uint8 tensors.

    Args:
        name (`str`): Key in [`BENCHMARKS`], or what messages call the dataset.
        split (`str`): Our split name.
        dataset (`datasets.Dataset`): Columns `image` and `label` (integers from 0).
        class_names (`list[str]`): One readable name per label, in label order.
        template (`str`): Prompt template.
        transform ([`ImageTransform`]): The protocol's preprocessing.
        mean_per_class (`bool`): Whether its accuracy is customarily the mean over classes.
        sample_ids (`np.ndarray`, *optional*): Of each row, its number in the whole split; `None` for a whole split.
        source (`str`, *optional*): `ID@COMMIT` of a dataset from the Hub.
    """

    name: str
    split: str
    dataset: Dataset = field(repr=False)
    class_names: list[str] = field(repr=False)
    template: str
    transform: ImageTransform
    mean_per_class: bool = False
    sample_ids: np.ndarray | None = field(default=None, repr=False)
    source: str | None = None

    @property
    def attack_space(self) -> str:
        """Resolution at which images are attacked: `"native"` or the crop's side in pixels."""
        return "native" if self.transform.crop is None else str(self.transform.crop)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        """`pixel_values` (uint8, `(3, height, width)`), `labels`, and as `sample_ids` the number in the whole split.

        Raises:
            InputError: for an image that can't be read or converted to RGB, naming dataset and row.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict]:
        """Several rows at once, as `DataLoader` asks for them: the table is read once for all of them."""
        try:
            examples = self.dataset[rows]
            pixel_values = [self.transform(image) for image in examples["image"]]
        except UNUSABLE_IMAGE as error:
            if len(rows) > 1:
                return [self[row] for row in rows]  # which of them it is
            raise InputError(
                f"The image in row {rows[0]} of {self.name} ({self.split}) can't be used: {error}."
            ) from error
        ids = rows if self.sample_ids is None else self.sample_ids[rows].tolist()
        return [
            {"pixel_values": pixels, "labels": label, "sample_ids": number}
            for pixels, label, number in zip(pixel_values, examples["label"], ids, strict=True)
        ]

    def ids(self) -> np.ndarray:
        """Of each row, its number in the whole split, which fixes its noise."""
        return np.arange(len(self)) if self.sample_ids is None else self.sample_ids

    def rows(self, rows: np.ndarray) -> "Benchmark":
        """The rows with these numbers here, which keep their ids."""
        return replace(self, dataset=self.dataset.select(rows), sample_ids=self.ids()[rows])

    def subset(self, rows: int | None, seed: int = 0) -> "Benchmark":
        """At most `rows` rows, the same for the same seed; all of them for `None`.

        They are stratified by class, unless so few are left out that these can't have every class.
        """
        if rows is None or rows >= len(self):
            return self
        if rows > len(self) - len(self.class_names):
            return self.rows(np.sort(np.random.default_rng(seed).permutation(len(self))[:rows]))
        return self.rows(stratified_rows(self.dataset, rows, seed)[0])

    def hold_out(self, rows: int, seed: int = 0) -> tuple["Benchmark", "Benchmark"]:
        """Split into (the rest, `rows` rows named "validation" for choosing checkpoints and rates), stratified."""
        held_out, rest = stratified_rows(self.dataset, rows, seed)
        return self.rows(rest), replace(self.rows(held_out), split="validation")


@dataclass(frozen=True, eq=False)
class StreamingBenchmark(torch.utils.data.IterableDataset):
    """A split read row by row without downloading it; fields as in [`Benchmark`], `dataset` an `IterableDataset`.

    Iterating gives the same items, but for `sample_ids`: the CRC-32 of the encoded image, the same in every order
    and for any number of workers, among which `datasets` divides the files.
    """

    name: str
    split: str
    dataset: IterableDataset = field(repr=False)
    class_names: list[str] = field(repr=False)
    template: str
    transform: ImageTransform
    mean_per_class: bool = False
    source: str | None = None

    def __iter__(self) -> Iterator[dict]:
        """Items as of [`Benchmark`]; [`InputError`] for an image or a label that can't be used, naming the row."""
        for row, example in enumerate(self.encoded_rows()):
            yield self.decode(example, f"row {row}")

    def encoded_rows(self) -> Iterator[dict]:
        """Rows whose images aren't decoded yet, which costs little."""
        return iter(self.dataset.cast_column("image", datasets.Image(decode=False)))

    def decode(self, example: dict, row: str | None = None) -> dict:
        """A row of [`encoded_rows`] as an item; messages call it `row`, or else by its file or checksum."""
        image, label = example["image"], example["label"]
        if row is None:
            named = isinstance(image, dict) and image["path"]
            row = f"the row named {named!r}" if named else f"the row with CRC-32 {_stream_id(image):08x}"
        if not isinstance(label, int) or not 0 <= label < len(self.class_names):
            raise InputError(
                f"{row[0].upper()}{row[1:]} of {self.name} ({self.split}) has label {label!r}, but labels go from 0 "
                f"to {len(self.class_names) - 1}."
            )
        try:
            if image is None:
                raise OSError("it is missing")
            decoded = datasets.Image().decode_example(image) if isinstance(image, dict) else image
            pixel_values = self.transform(decoded)
        except UNUSABLE_IMAGE as error:
            raise InputError(f"The image in {row} of {self.name} ({self.split}) can't be used: {error}.") from error
        return {"pixel_values": pixel_values, "labels": label, "sample_ids": _stream_id(image)}

    def take(self, rows: int) -> Benchmark:
        """The first rows, in memory; mind that many splits are sorted by class."""
        if rows < 1:
            raise InputError(f"Can't take {rows} rows of {self.name} ({self.split}): give at least 1.")
        encoded = self.dataset.cast_column("image", datasets.Image(decode=False)).take(rows)
        taken = list(encoded)
        dataset = Dataset.from_list(taken, encoded.features).cast_column("image", datasets.Image())
        check_labels(dataset, self.class_names, f"{self.name} ({self.split})")
        ids = np.array([_stream_id(one["image"]) for one in taken])
        return Benchmark(dataset=dataset, sample_ids=ids, **{k: v for k, v in vars(self).items() if k != "dataset"})


def _stream_id(image: dict | Image.Image | None) -> int:
    """CRC-32 of an encoded image, or of its pixels where a filter or map of the stream has decoded it."""
    if isinstance(image, dict):
        return zlib.crc32(image["bytes"] or image["path"].encode())
    return 0 if image is None else zlib.crc32(image.tobytes())


def load_benchmark(
    name: str,
    split: str = "test",
    path: str | None = None,
    protocol: str = "hpt",
    streaming: bool = False,
    *,
    class_names: list[str] | str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    template: str | None = None,
    native_resolution: bool = False,
) -> Benchmark | StreamingBenchmark | dict[str, Benchmark | StreamingBenchmark]:
    """Load a benchmark's split by its record, or a split of any other image-classification set.

    Args:
        name (`str`): Key in [`BENCHMARKS`]; `"all"` for the sixteen; or, of any other dataset, its Hub id, a folder
            that `datasets` can load (of images, a subfolder per class, or of parquet files) or a `.parquet` file.
            `"NAME=PATH"` gives `path` too, and `"birds=PATH:split=val,class_names=birds.txt"` the arguments below.
        split (`str`, *optional*, defaults to `"test"`): `"train"`, `"test"` (what the protocol evaluates, whatever
            the Hub calls it) or, where there is one, `"validation"`. Of other datasets, what they call it; for
            `"test"`, one that has a single split gives that.
        path (`str`, *optional*): Where to read it from instead of the record's Hub id: a local copy in the Hub's
            layout, or another Hub id, both also as `ID@REVISION`. Of `"all"`, a folder with a copy under each name.
        protocol (`str`, *optional*, defaults to `"hpt"`): `"hpt"` attacks CIFAR, STL-10 and TinyImageNet at native
            resolution, and trains on TinyImageNet at 224; `"pmg"` follows TeCoA and PMG-AFT.
        streaming (`bool`, *optional*, defaults to `False`): Download rows as they are iterated over.
        class_names (`list[str]` or `str`, *optional*): For datasets without a record: names in label order, or a file
            with one a line, instead of those of the dataset's features.
        image_column, label_column, config (`str`, *optional*): For datasets without a record, where they aren't plain.
        template (`str`, *optional*): Prompt template, instead of the record's.
        native_resolution (`bool`, *optional*, defaults to `False`): For datasets without a record: attack images at
            their own size, all the same, instead of at 224 pixels.

    Returns:
        [`Benchmark`], or [`StreamingBenchmark`]; for `"all"` a dict of them, without those that can't be had, which a
        warning names.

    Raises:
        InputError: for an unknown name, split or protocol; a dataset that can't be had; columns, classes or labels
            that don't fit the record.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}.")
    settings = {"class_names": class_names, "image_column": image_column, "label_column": label_column}
    settings |= {"config": config, "template": template, "native_resolution": native_resolution}
    if name == "all" or name.startswith("all="):
        if given := [key for key, value in settings.items() if value]:
            raise InputError(
                f"all takes its records as they are, but {given[0]} is given: load one benchmark by itself."
            )
        return _load_all(split, name[4:] or path, protocol, streaming)
    name, given, in_text = parse_benchmark(name)
    settings |= in_text
    path, split = given or path, settings.pop("split", split)
    record = _find_record(name, path, split, **settings)
    return _load(name, record, split, path or record.hub_id, protocol, streaming)


def load_training_data(
    text: str, validation_size: int = 0, protocol: str = "hpt", streaming: bool = False
) -> tuple[Benchmark | StreamingBenchmark, Benchmark | None]:
    """A training set, and a validation set that is never tested on, for choosing checkpoints, rates and proxies.

    Args:
        text (`str`): A benchmark as recipes name it.
        validation_size (`int`, *optional*, defaults to 0): Training images to hold out, the same in every recipe; at
            0, the dataset's own validation split is taken, if it has one.
        protocol (`str`, *optional*, defaults to `"hpt"`): As of [`load_benchmark`].
        streaming (`bool`, *optional*, defaults to `False`): As of [`load_benchmark`]; then there is no validation set.

    Raises:
        InputError: as [`load_benchmark`], and for images to be held out of a stream.
    """
    settings = parse_benchmark(text)[2]
    if streaming and validation_size:
        raise InputError("No images can be held out of a stream: leave validation_size out, or don't stream.")
    train = load_benchmark(text, "train", protocol=protocol, streaming=streaming)
    if streaming:
        return train, None
    if validation_size:
        return train.hold_out(validation_size)
    if "split" in settings:
        return train, None
    try:
        return train, load_benchmark(text, "validation", protocol=protocol)
    except MissingSplit:
        return train, None


def _load_all(split: str, path: str | None, protocol: str, streaming: bool) -> dict:
    if path is not None and not Path(path).is_dir():
        raise InputError(f"There is no folder {path!r} with copies of the benchmarks.")
    found, missing = {}, []
    for name in SIXTEEN:
        try:
            found[name] = load_benchmark(name, split, path and f"{path}/{name}", protocol, streaming)
        except InputError as error:
            missing.append(f"{name}: {error}")
    if not found:
        raise InputError(f"None of the sixteen benchmarks can be had, the first because: {missing[0]}")
    if missing:
        warnings.warn("Left out: " + " ".join(missing), stacklevel=3)
    return found


def _find_record(name: str, source: str | None, split: str, *, template: str | None, **settings) -> BenchmarkRecord:
    """The record of that name, or one for a dataset that has none."""
    if name in BENCHMARKS:
        if changed := [key for key, value in settings.items() if value]:
            raise InputError(f"{name} has a record, which says its {changed[0]}: call the dataset by another name.")
        record = BENCHMARKS[name]
    else:
        record = _make_record(split, source, **settings)
    if split not in record.splits:
        raise MissingSplit(f"{name} has no split {split!r}; known: {', '.join(record.splits)}.")
    if template is not None and "{}" not in template:
        raise InputError(f"The prompt template {template!r} has no {{}} where the class name goes.")
    return record if template is None else replace(record, template=template)


def _make_record(split: str, source: str | None, *, class_names, native_resolution: bool, **fields) -> BenchmarkRecord:
    """A record for a dataset that has none."""
    if isinstance(class_names, str):
        if not Path(class_names).is_file():
            raise InputError(f"There is no file {class_names!r} with class names.")
        try:
            class_names = Path(class_names).read_text(encoding="utf-8-sig").strip().splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"The class names in {class_names} aren't UTF-8: {error}.") from error
    return BenchmarkRecord(
        hub_id=source,
        splits={split: split},
        native_splits=dict.fromkeys(PROTOCOLS, (split,) if native_resolution else ()),
        class_names=None if class_names is None else tuple(class_names),
        **fields,
    )


def _load(name: str, record: BenchmarkRecord, split: str, source: str | None, protocol: str, streaming: bool):
    native = split in record.native_splits[protocol]
    if record.load is None:
        dataset, class_names, split, commit = _read(record, split, source, streaming)
    elif source is None:
        dataset, commit = record.load(split), None
        class_names = dataset.features["label"].names
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    else:
        raise InputError(f"{name} is embedded in its library: give no path.")
    class_names = [record.clean_name(one) for one in class_names]
    if record.num_classes not in (None, len(class_names)):
        raise InputError(f"{source} has {len(class_names)} classes, but {name} has {record.num_classes}.")
    check_class_names(class_names)
    if not streaming:
        check_labels(dataset, class_names, f"{name} ({split})")
        if split == "test" and record.num_rows not in (None, len(dataset)):
            warnings.warn(
                f"{name} has {len(dataset)} rows in {source} instead of {record.num_rows}: results on it aren't "
                "comparable with published ones.",
                stacklevel=3,
            )
        smallest = min(dataset[0]["image"].size) if record.num_classes is None and not native else 224
        if smallest < 224:
            warnings.warn(
                f"{name} ({split}) has images of {smallest} pixels, which are enlarged to 256, cropped to 224 and "
                "attacked there: with native_resolution they are attacked as they are.",
                stacklevel=3,
            )
    return (StreamingBenchmark if streaming else Benchmark)(
        name,
        split,
        dataset,
        class_names,
        record.template,
        ImageTransform() if native else ImageTransform(resize=256, crop=224),
        record.mean_per_class,
        source=commit and f"{source.partition('@')[0]}@{commit}",
    )


def _read(record: BenchmarkRecord, split: str, source: str, streaming: bool):
    """Dataset with columns `image` and `label`, its class names, the split that it is, and its commit on the Hub."""
    wanted = record.splits[split].split("+")
    any_split = record.num_classes is None and split == "test"
    dataset, splits, known, commit = read_splits(source, record.config, wanted, streaming, any_split)
    dataset = select_columns(dataset, record.image_column, record.label_column, source)
    given = record.class_names and [one.strip() for one in record.class_names]
    dataset, class_names = number_labels(dataset, given, source, whole=set(known) == set(splits))
    return dataset, class_names, split if splits == wanted else splits[0], commit
