"""Images on their way to the model: decoded and cropped in workers, uint8 until they reach the device.

dataset row -> `decode_image` -> `ImageTransform`: uint8 (3, height, width) -> `collate` -> on the device,
`to_unit_range`
"""

import io
import os
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import torch
from PIL import ExifTags, Image, ImageOps
from tqdm.auto import tqdm

from hpt.errors import InputError, MissingLabels


# Modes whose conversion to 8-bit RGB would clip or rescale the values rather than keep them.
UNCONVERTIBLE_MODES = ("I", "F")
DRAWN_BY_OTHERS = ("EPS", "WMF")  # formats that Pillow hands to another program, as PostScript to Ghostscript
# What an image may need at most, whoever made it: a few bytes can stand for gigabytes of pixels or minutes of decoding
MAX_PIXELS = 2 * 89_478_485  # above which Pillow itself refuses
MAX_BYTES = 4 * MAX_PIXELS  # of its file, as many as its pixels have
MAX_ASPECT_RATIO = 100  # the shorter side is resized to the model's input, and memory grows with the longer one
MAX_SCANS = 100  # of a JPEG, each of which passes over all of its pixels; libtiff has the same bound
START_OF_SCAN, END_OF_IMAGE = b"\xda", b"\xd9"
MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")  # of a JPEG, but for those without a length within scans
SAID_BY_PILLOW = (OSError, SyntaxError, Image.DecompressionBombError)  # errors whose text says what is wrong
AS_STORED = datasets.Image()
TURNED = range(2, 9)  # EXIF orientations but for 1, upright


def collate(rows: list[dict]) -> dict[str, torch.Tensor | int]:
    """Rows to `pixel_values` (uint8, `(batch, 3, height, width)`), `labels` and `sample_ids` (int64, `(batch,)`).

    Rows without labels make a batch without them. `set`, where rows have it, is the same of all, and stays an integer,
    which can be read without waiting for a device. Further tensors that rows have are stacked likewise.
    """
    sizes = {tuple(row["pixel_values"].shape[-2:]) for row in rows}
    if len(sizes) > 1:
        raise InputError(
            f"Images of different sizes {sorted(sizes)[:3]} can't share a batch at native resolution: use a transform "
            "that resizes and crops."
        )
    numbers = [name for name in ("labels", "sample_ids") if name in rows[0]]
    tensors = [name for name, value in rows[0].items() if torch.is_tensor(value)]
    return {
        **{name: torch.stack([row[name] for row in rows]) for name in tensors},
        **{name: torch.tensor([row[name] for row in rows]) for name in numbers},
        **{name: rows[0][name] for name in ("set",) if name in rows[0]},
    }


def to_unit_range(pixel_values: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 pixels to floating point in [0, 1]."""
    return pixel_values.to(dtype) / 255


def check_labels(dataset: datasets.Dataset, class_names: list[str], name: str) -> None:
    """Refuse a dataset without images or labels, with as many classes as there are no names for, or odd labels.

    Raises:
        InputError: naming the dataset and, for a label that is missing or out of range, its row.
    """
    check_columns(dataset, name)
    if len(dataset) == 0:
        raise InputError(f"{name} has no rows.")
    feature = dataset.features["label"]
    if isinstance(feature, datasets.ClassLabel) and feature.num_classes != len(class_names):
        raise InputError(f"{name} has {feature.num_classes} classes, but there are {len(class_names)} class names.")
    labels = _label_column(dataset)
    if labels.null_count:
        raise InputError(f"Row {labels.is_null().index(True)} of {name} has no label.")
    if not pa.types.is_integer(labels.type):
        raise InputError(f"The labels of {name} are {labels.type}, but must be integers from 0, one for each image.")
    labels = np.asarray(labels)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(wrong):
        unlabelled = labels[wrong[0]] == -1
        raise (MissingLabels if unlabelled else InputError)(
            f"Row {wrong[0]} of {name} has label {labels[wrong[0]]}, but labels go from 0 to {len(class_names) - 1}"
            + (" (-1 marks an unlabelled split)." if unlabelled else ".")
        )


def check_columns(dataset: datasets.Dataset, name: str) -> None:
    """Refuse a dataset without the columns `image` and `label`."""
    missing = [column for column in ("image", "label") if column not in dataset.column_names]
    if missing:
        raise InputError(f"{name} has columns {dataset.column_names}, but needs {missing}: rename them.")


def read_labels(dataset: datasets.Dataset) -> np.ndarray:
    """The column `label` of a dataset, `(len(dataset),)`, without reading images."""
    return np.asarray(_label_column(dataset))


def _label_column(dataset: datasets.Dataset) -> pa.ChunkedArray:
    return dataset.with_format("arrow", columns=["label"])[:]["label"]


def check_images(dataset: datasets.Dataset, name: str, same_size: bool = False) -> None:
    """Refuse images whose header can't be read or that [`check_header`] refuses, without decoding them.

    With `same_size`, which attacks at native resolution need, images of different sizes are refused.

    Raises:
        InputError: naming the dataset and the row.
    """
    sizes = set()
    progress = tqdm(encoded_images(dataset), desc=f"Checking the images of {name}", leave=False, disable=None)
    for row, example in enumerate(progress):
        sizes.add(read_size(example["image"], f"row {row} of {name}"))
        if same_size and len(sizes) > 1:
            raise InputError(
                f"The images of {name} have different sizes, such as {sorted(sizes)}, and can't be attacked at native "
                "resolution: give geometry=256-224, or leave geometry=native out."
            )


def check_header(image: Image.Image) -> None:
    """Refuse an opened image that isn't worth decoding, by its format, mode and size.

    Raises:
        OSError: for a format that another program would draw, more than 8 bits a channel, which no conversion to RGB
            keeps, no or too many pixels, and too long a strip.
    """
    (width, height), mode = image.size, image.mode
    if image.format in DRAWN_BY_OTHERS:
        raise OSError(f"its format {image.format} would be drawn by another program")
    if mode.split(";")[0] in UNCONVERTIBLE_MODES:
        raise OSError(f"its mode {mode!r} has more than 8 bits a channel")
    if width == 0 or height == 0:
        raise OSError("it has no pixels")
    if width * height > MAX_PIXELS:
        raise OSError(f"it has {width} x {height} pixels, but may have {MAX_PIXELS // 10**6} million at most")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise OSError(
            f"it has {width} x {height} pixels, but may be {MAX_ASPECT_RATIO} times as long as it is wide at most"
        )


def encoded_images(dataset: datasets.Dataset, column: str = "image") -> datasets.Dataset:
    """The column of images alone, undecoded: each a dict of `bytes` and `path`, whatever the dataset's format."""
    return dataset.with_format(None).select_columns(column).cast_column(column, datasets.Image(decode=False))


def read_bytes(encoded: dict) -> bytes:
    """The content of an image's file, which may lie on the Hub or in an archive; `OSError` if it is too large."""
    content, path = encoded["bytes"], encoded["path"]
    if content is None:
        with open(path, "rb") if os.path.isfile(path) else fsspec.open(path) as file:  # which is slow for small files
            content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"its file has more than {MAX_BYTES // 2**20} MB")
    return content


def decode_image(encoded: dict | Image.Image | None, where: str, feature: datasets.Image = AS_STORED) -> Image.Image:
    """An image as `datasets` decodes it, turned upright as its EXIF data say.

    Args:
        encoded (`dict` or `PIL.Image`): Of [`encoded_images`]; one that is decoded already stays as it is.
        where (`str`): What the error calls it, such as `"row 3 of birds (test)"`.
        feature (`datasets.Image`, *optional*): Of its dataset, which may ask for a mode.

    Raises:
        InputError: for an image that is missing, damaged, or that [`check_header`] refuses.
    """
    with unusable_named(where):
        if encoded is None:
            raise OSError("it is missing")
        if not isinstance(encoded, dict):
            check_header(encoded)
            return encoded
        content = read_bytes(encoded)
        image = Image.open(io.BytesIO(content))
        check_header(image)
        _check_scans(image, content)
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)
        return image if feature.mode in (None, image.mode) else image.convert(feature.mode)


def _check_scans(image: Image.Image, content: bytes) -> None:
    """`OSError` for a JPEG of too many scans; what only looks like them is looked at no further than it must be."""
    if image.format in ("JPEG", "MPO") and content.count(b"\xff" + START_OF_SCAN) > MAX_SCANS:
        if (scans := _count_scans(content)) > MAX_SCANS:
            raise OSError(f"it has {scans} scans, but a JPEG may have {MAX_SCANS} at most")


def _count_scans(content: bytes) -> int:
    """The scans of a JPEG itself, and not of thumbnails in it or of what follows it, as a phone's film does."""
    scans, place = 0, 0
    while (marker := MARKER.search(content, place)) and marker[1] != END_OF_IMAGE:
        scans += marker[1] == START_OF_SCAN
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans


def read_size(encoded: dict | None, where: str) -> tuple[int, int]:
    """Width and height of the image that [`decode_image`] would give, from its header alone; raises the same errors.

    An image that is cut off behind its header is found when it is decoded.
    """
    with unusable_named(where):
        if encoded is None:
            raise OSError("it is missing")
        content = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with Image.open(content) as image:
            check_header(image)
            return upright_size(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is turned as its EXIF data say, without decoding it."""
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)  # a PNG's own getexif would decode it
    if orientation not in TURNED:
        return image.size
    stand_in = Image.new("1", (1, 2))
    stand_in.info = image.info  # without what a TIFF has, whose size is upright already
    return image.size if ImageOps.exif_transpose(stand_in).size == (1, 2) else image.size[::-1]


@contextmanager
def unusable_named(where: str) -> Iterator[None]:
    """Say in one line which image can't be used: Pillow raises whatever its parsers run into in a damaged file.

    Raises:
        InputError: with the image's place and the reason.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, SAID_BY_PILLOW) else f"{type(error).__name__}: {error}"
        reason = reason.partition(" <_io.BytesIO")[0]  # Pillow's word for a file in memory
        reason = textwrap.shorten(reason, 300, placeholder=" ...")
        raise InputError(f"The image in {where} can't be used: {reason}.") from error


def stratified_rows(
    dataset: datasets.Dataset, rows: int, seed: int = 0, name: str = "The dataset"
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of `rows` rows with each class in proportion, and of the rest; the same for the same seed.

    Of images without labels they are random ones.

    Where some classes have too few images for both parts, each still has its share as far as that goes, and a warning
    says how many classes a part lacks.
    """
    from sklearn.model_selection import train_test_split  # slow to import, and seldom needed

    if not 1 <= rows < len(dataset):
        raise InputError(f"Can't take {rows} of {len(dataset)} rows: give a number from 1 to {len(dataset) - 1}.")
    if "label" not in dataset.column_names:
        order = np.random.default_rng(seed).permutation(len(dataset))
        return np.sort(order[:rows]), np.sort(order[rows:])
    labels = read_labels(dataset)
    _, counts = np.unique(labels, return_counts=True)
    if counts.min() > 1 and len(counts) <= rows <= len(labels) - len(counts):
        parts = train_test_split(np.arange(len(labels)), train_size=rows, stratify=labels, random_state=seed)
    else:
        parts = _proportional_rows(labels, rows, seed)
        lacking = [len(counts) - len(np.unique(labels[part])) for part in parts]
        warnings.warn(
            f"{name}: {rows} of {len(labels)} rows can't have their share of each of {len(counts)} classes; classes "
            f"without an image among them: {lacking[0]}, among the rest: {lacking[1]}.",
            stacklevel=3,
        )
    return np.sort(parts[0]), np.sort(parts[1])


def _proportional_rows(labels: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` rows, and the rest, that share out each class by Sainte-Lague's method; at random where it leaves a tie.

    The k-th of a class's n images in random order, from 0, has its turn at (k + 1/2) / n of the way.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    _, classes, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    place = np.empty(len(labels), int)  # of each image within its class
    place[np.argsort(classes, kind="stable")] = np.concatenate([np.arange(count) for count in counts])
    order = order[np.argsort((place + 0.5) / counts[classes], kind="stable")]
    return order[:rows], order[rows:]


def stratified_split(dataset: datasets.Dataset, rows: int, seed: int = 0) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off `rows` rows with each class in proportion: (those rows, the rest), the same for the same seed."""
    taken, rest = stratified_rows(dataset, rows, seed)
    return dataset.select(taken), dataset.select(rest)
