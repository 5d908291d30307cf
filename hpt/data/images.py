"""Images on their way to the model: decoded and cropped in workers, uint8 until they reach the device.

dataset row -> `ImageTransform`: uint8 (3, height, width) -> `collate` -> on the device, `to_unit_range`
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from hpt.errors import InputError


# Modes whose conversion to 8-bit RGB would clip or rescale the values rather than keep them.
UNCONVERTIBLE_MODES = ("I", "F")
UNUSABLE_IMAGE = (OSError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for broken files


@dataclass(frozen=True)
class ImageTransform:
    """PIL image to uint8 RGB tensor: resize the shorter side, crop the centre; or neither, at native resolution.

    Args:
        resize (`int`, *optional*): Pixels of the shorter side, bicubic; `None` keeps the native resolution.
        crop (`int`, *optional*): Side of the square cut from the centre; `None` doesn't crop.
    """

    resize: int | None = None
    crop: int | None = None

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """`PIL.Image` of any mode that fits 8 bits to uint8 `(3, height, width)`; `OSError` for other modes."""
        check_mode(image)
        image = image.convert("RGB")
        if self.resize is not None:
            scale = self.resize / min(image.size)
            image = image.resize([max(self.resize, round(side * scale)) for side in image.size], Image.BICUBIC)
        if self.crop is not None:
            left, top = ((side - self.crop) // 2 for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_as_trained(image_processor) -> None:
    """Let a processor resize bicubically, as [`ImageTransform`] and `ZeroShotClassifier` do, with a warning."""
    if image_processor.do_resize and image_processor.resample != Image.BICUBIC:
        resample = image_processor.resample
        filter_name = "an unknown filter" if resample is None else Image.Resampling(resample).name.lower()
        warnings.warn(
            f"The target's processor resizes by {filter_name}, but images are resized bicubically here: so does the "
            "processor that is saved.",
            stacklevel=4,
        )
        image_processor.resample = Image.BICUBIC


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Rows to `pixel_values` (uint8, `(batch, 3, height, width)`), `labels` and `sample_ids` (int64, `(batch,)`)."""
    sizes = {tuple(row["pixel_values"].shape[-2:]) for row in rows}
    if len(sizes) > 1:
        raise InputError(
            f"Images of different sizes {sorted(sizes)[:3]} can't share a batch at native resolution: use a transform "
            "that resizes and crops."
        )
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
        "sample_ids": torch.tensor([row["sample_ids"] for row in rows]),
    }


def to_unit_range(pixel_values: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 pixels to floating point in [0, 1]."""
    return pixel_values.to(dtype) / 255


def check_labels(dataset: datasets.Dataset, class_names: list[str], name: str) -> None:
    """Refuse a dataset without images or labels, with as many classes as there are no names for, or odd labels.

    Raises:
        InputError: naming the dataset and, for a label out of range, its row.
    """
    missing = [column for column in ("image", "label") if column not in dataset.column_names]
    if missing:
        raise InputError(f"{name} has columns {dataset.column_names}, but needs {missing}: rename them.")
    if len(dataset) == 0:
        raise InputError(f"{name} has no rows.")
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel) and feature.num_classes != len(class_names):
        raise InputError(f"{name} has {feature.num_classes} classes, but there are {len(class_names)} class names.")
    labels = read_labels(dataset)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"The labels of {name} are {labels.dtype}, but must be integers from 0, none missing.")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        raise InputError(
            f"Row {wrong[0]} of {name} has label {labels[wrong[0]]}, but labels go from 0 to {len(class_names) - 1}"
            + (" (-1 marks an unlabelled split)." if labels[wrong[0]] == -1 else ".")
        )


def read_labels(dataset: datasets.Dataset) -> np.ndarray:
    """The column `label` of a dataset, `(len(dataset),)`, without reading images."""
    return np.asarray(dataset.with_format("numpy", columns=["label"])[:]["label"])


def hash_samples(dataset: datasets.Dataset) -> str:
    """64 hexadecimal digits that stand for the encoded images and labels of a dataset, in order."""
    state = hashlib.sha256(read_labels(dataset).astype(np.int64).tobytes())
    for example in dataset.select_columns("image").cast_column("image", datasets.Image(decode=False)):
        image = example["image"]
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        state.update(len(content).to_bytes(8, "little") + content)
    return state.hexdigest()


def check_images(dataset: datasets.Dataset, name: str, same_size: bool = False) -> None:
    """Refuse images whose header can't be read or whose mode doesn't fit 8-bit RGB, without decoding them.

    An image that is cut off behind its header is found when it is decoded. With `same_size`, which attacks at native
    resolution need, images of different sizes are refused.

    Raises:
        InputError: naming the dataset and the row.
    """
    encoded = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    sizes = set()
    for row, example in enumerate(tqdm(encoded, desc=f"Checking the images of {name}", leave=False, disable=None)):
        source = example["image"]
        if source is None:
            raise InputError(f"Row {row} of {name} has no image.")
        try:
            image = Image.open(io.BytesIO(source["bytes"]) if source["bytes"] is not None else source["path"])
            check_mode(image)
        except UNUSABLE_IMAGE as error:
            raise InputError(f"The image in row {row} of {name} can't be used: {error}.") from error
        sizes.add(image.size)
        if same_size and len(sizes) > 1:
            raise InputError(
                f"The images of {name} have different sizes, such as {sorted(sizes)}, and can't be attacked at native "
                "resolution: leave that out."
            )


def check_mode(image: Image.Image) -> None:
    """`OSError` for an image with more than 8 bits a channel, which no conversion to RGB keeps."""
    if image.mode.split(";")[0] in UNCONVERTIBLE_MODES:
        raise OSError(f"its mode {image.mode!r} has more than 8 bits a channel")


def stratified_rows(dataset: datasets.Dataset, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of `rows` rows with each class in proportion, and of the rest; the same for the same seed."""
    from sklearn.model_selection import train_test_split  # slow to import, and seldom needed

    labels = read_labels(dataset)
    classes = len(np.unique(labels))
    if not classes <= rows <= len(dataset) - classes:
        raise InputError(
            f"Can't take {rows} of {len(dataset)} rows with every class in both parts: give a number from {classes} "
            f"to {len(dataset) - classes}."
        )
    taken, rest = train_test_split(np.arange(len(labels)), train_size=rows, stratify=labels, random_state=seed)
    return np.sort(taken), np.sort(rest)


def stratified_split(dataset: datasets.Dataset, rows: int, seed: int = 0) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off `rows` rows with each class in proportion: (those rows, the rest), the same for the same seed."""
    taken, rest = stratified_rows(dataset, rows, seed)
    return dataset.select(taken), dataset.select(rest)
