"""What users give as a set of images with labels, in the form that everything else takes.

as_dataset(torchvision.datasets.CIFAR10("data"), "the training set", class_names)  # columns `image` and `label`
as_benchmarks(["cifar10", load_benchmark("digits")])
as_benchmarks({"mine": load_dataset("imagefolder", data_dir="mine", split="test")})
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable
from uuid import uuid4

import datasets
import numpy as np
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset, IterableDataset, LargeList, List, Value
from PIL import Image

from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import readable_names
from hpt.data.images import check_columns, check_header, check_labels, unusable_named
from hpt.data.loading import load_benchmark
from hpt.data.sources import number_labels, select_images
from hpt.errors import InputError


TEXT = ("string", "large_string")
READ_TWICE = 8  # rows of a set of pairs, whose transforms might be random


@runtime_checkable
class Pairs(Protocol):
    """A set of pairs (image, label) by their numbers, such as torch's and torchvision's, or a list of tuples."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int): ...


SPLITS = (datasets.DatasetDict, datasets.IterableDatasetDict)
KINDS = (Benchmark, StreamingBenchmark, Dataset, IterableDataset, Pairs)


def as_benchmarks(given, name: str | None = None) -> list[Benchmark]:
    """What an evaluator is given, each set over its own classes.

    Args:
        given: A [`Benchmark`], or what [`load_benchmark`] calls one; another dataset, as of [`as_dataset`], with class
            names; or a list of these, or a dict, whose keys name them.
        name (`str`, *optional*): What they are called; else as they call themselves, or "dataset".

    Raises:
        InputError: for what can't be meant, streams, and sets without class names.
    """
    if isinstance(given, str):
        given = load_benchmark(given)
    if isinstance(given, Mapping) and not isinstance(given, SPLITS):
        return [benchmark for key, part in given.items() for benchmark in as_benchmarks(part, key)]
    if isinstance(given, list | tuple) and not (given and isinstance(given[0], tuple)):
        return [benchmark for part in given for benchmark in as_benchmarks(part, name)]
    given = _unwrap(given)
    if isinstance(given, Benchmark):
        refuse_unlabelled(given, name or given.name)
        return [given if name is None else replace(given, name=name)]
    name = name or "dataset"
    refuse_unlabelled(given, name)
    refuse_stream(given, name)
    class_names = own_class_names(given, name)
    if class_names is None:
        raise InputError(f"{name} has no class names: give a dataset whose labels are a ClassLabel, or a Benchmark.")
    dataset = as_dataset(given, name, class_names)
    check_labels(dataset, class_names, name)
    class_names = readable_names(class_names, name)
    return [Benchmark(name, "given", dataset, class_names, None)]


def refuse_stream(given, name: str) -> None:
    """Refuse a stream where all images must be at hand."""
    if isinstance(given, IterableDataset | StreamingBenchmark):
        raise InputError(f"{name} is a stream: give a part of it, load_benchmark(..., streaming=True).take(rows).")


def lacks_labels(given) -> bool:
    """Whether what a user gives is a set of images that is known to have no labels."""
    given = _unwrap(given)
    if isinstance(given, Benchmark | StreamingBenchmark):
        return not given.has_labels
    is_known = isinstance(given, Dataset | IterableDataset) and given.features is not None
    return is_known and "label" not in given.features


def say_unlabelled(given, name: str) -> str:
    """What a set lacks to have labels, as of [`lacks_labels`]."""
    given = _unwrap(given)
    if isinstance(given, Benchmark | StreamingBenchmark):
        return f"{name} has no labels."
    return f"{name} has columns {list(given.features)}, but needs ['label']: rename them."


def as_images(given, name: str, class_names: list[str] | None) -> Benchmark | StreamingBenchmark:
    """A set without labels, as of [`lacks_labels`], in the form that a trainer takes.

    Args:
        given ([`Benchmark`], [`StreamingBenchmark`], `Dataset` or `IterableDataset`): With a column `image`, as of
            [`as_dataset`]; other columns, such as captions, don't count.
        name (`str`): What messages call it.
        class_names (`list[str]`, *optional*): What the images are compared with in training, if anything.

    Raises:
        InputError: for a set without rows, or a column that doesn't hold images.
    """
    given, names = _unwrap(given), class_names or []
    if isinstance(given, Benchmark | StreamingBenchmark):
        return replace(given, class_names=names)
    if "image" not in given.features:
        raise InputError(f"{name} has columns {list(given.features)}, but needs ['image']: rename them.")
    if isinstance(given, IterableDataset):
        return StreamingBenchmark(name, "given", select_images(given, "image", name), names, None)
    if len(given) == 0:
        raise InputError(f"{name} has no rows.")
    return Benchmark(name, "given", read_images(given, name), names, None)


def refuse_unlabelled(given, name: str) -> None:
    """Refuse images without labels where accuracy is to be measured."""
    if lacks_labels(given):
        raise InputError(f"{name} has no labels, which accuracy is measured by: give a set with labels.")


def own_class_names(given, name: str) -> list[str] | None:
    """The names of a set's classes in the order of its labels, as far as it knows them.

    Labels that are text are names, in alphabetical order.

    Raises:
        InputError: for what is no set of images with labels.
    """
    _check_kind(given, name)
    if isinstance(given, Benchmark | StreamingBenchmark):
        return given.class_names
    if isinstance(given, torch.utils.data.Subset):
        return own_class_names(given.dataset, name)
    if isinstance(given, torch.utils.data.ConcatDataset):
        known = [names for part in given.datasets if (names := own_class_names(part, name)) is not None]
        if any(names != known[0] for names in known):
            raise InputError(f"The parts of {name} have different classes, or another order of them: join equal ones.")
        return known[0] if known else None
    if not isinstance(given, Dataset | IterableDataset):
        classes = getattr(given, "classes", None)  # torchvision's; ImageNet's are tuples of synonyms
        return classes and [kind if isinstance(kind, str) else kind[0] for kind in classes]
    label = (given.features or {}).get("label")
    if isinstance(label, ClassLabel):
        return label.names
    if isinstance(given, Dataset) and isinstance(label, Value) and label.dtype in TEXT:
        return sorted(set(given.with_format(None)["label"][:]) - {None})
    return None


def as_dataset(given, name: str, class_names: list[str]):
    """A set of images with labels as a dataset with the columns `image`, of files or PNGs, and `label`, of integers.

    They number the set's own classes, which a `ClassLabel` names as far as they are known: see [`own_class_names`].

    Benchmarks and streams stay as they are. Pairs are read once, into memory as PNGs: their images as PIL images,
    arrays `(height, width, 3)` or tensors `(3, height, width)`, uint8, or floats in [0, 1] that are rounded to 8 bits.
    Of more than fit there, give the folder. Of a `datasets.Dataset`, images may also be paths or encoded, and the
    format doesn't matter.

    Args:
        given: What the user gives.
        name (`str`): What messages call it.
        class_names (`list[str]`): What the classes are called elsewhere; labels that are booleans need two of them.

    Raises:
        InputError: for what is no such set, and for a row that can't be used, which is named.
    """
    _check_kind(given, name)
    given = _unwrap(given)
    if isinstance(given, Benchmark | StreamingBenchmark | IterableDataset):
        return given
    if isinstance(given, Dataset):
        return _read_table(given, name, class_names)
    return _read_pairs(given, name)


def _check_kind(given, name: str) -> None:
    if isinstance(given, SPLITS):
        raise InputError(f"{name} is a {type(given).__name__}: give one of its splits, {', '.join(given)}.")
    if not isinstance(given, KINDS) or isinstance(given, str | Mapping):
        raise InputError(
            f"{name} is of type {type(given).__name__}, but must be a benchmark from load_benchmark, a "
            "datasets.Dataset, or a set of pairs (image, label)."
        )


def _unwrap(given):
    """The rows that a `Subset` takes of a benchmark or a table, as `random_split` makes them; all else as it is."""
    if isinstance(given, torch.utils.data.Subset) and isinstance(given.dataset, Benchmark):
        return given.dataset.rows(np.asarray(given.indices))
    if isinstance(given, torch.utils.data.Subset) and isinstance(given.dataset, Dataset):
        return given.dataset.select(given.indices)
    return given


# Tables


def _read_table(dataset: Dataset, name: str, class_names: list[str]) -> Dataset:
    check_columns(dataset, name)
    dataset = read_images(dataset, name, ["image", "label"])
    label = dataset.features["label"]
    if isinstance(label, Value) and label.dtype == "bool":
        dataset, _ = number_labels(dataset, class_names, name, whole=True)
    if isinstance(label, Value) and label.dtype in TEXT:
        dataset, own = number_labels(dataset, None, name, whole=True)
        labels = dataset["label"][:]
        dataset = dataset.remove_columns("label").add_column("label", labels, feature=ClassLabel(names=own))
    return dataset


def read_images(dataset: Dataset, name: str, columns: Iterable[str] = ("image",)) -> Dataset:
    """The columns of a table of images that count, `image` as images of `datasets`; errors as of [`as_dataset`]."""
    if dataset.format["type"] == "custom":
        raise InputError(f"{name} has a transform, which isn't applied here: give it without, by with_format(None).")
    dataset = dataset.with_format(None).select_columns(list(columns))
    kind = dataset.features["image"]
    if isinstance(kind, Array2D | Array3D | List | LargeList):
        return _encode_arrays(dataset, name)
    if isinstance(kind, datasets.Image):
        return dataset.cast_column("image", datasets.Image(mode=kind.mode))
    return _open_files(dataset, name)


def _open_files(dataset: Dataset, name: str) -> Dataset:
    """A dataset whose images are paths or encoded with images instead."""
    kind = dataset.features["image"]
    is_file = isinstance(kind, Value) and kind.dtype in (*TEXT, "binary", "large_binary")
    if not is_file and not (isinstance(kind, dict) and set(kind) == {"bytes", "path"}):
        raise InputError(f"The column 'image' of {name} holds {kind}, but must hold images.")
    return dataset.cast_column("image", datasets.Image())


def _encode_arrays(dataset: Dataset, name: str) -> Dataset:
    """A dataset whose images are arrays with PNGs instead."""
    leaf = dataset.features["image"]
    while isinstance(leaf, List | LargeList):
        leaf = leaf.feature

    def encode(image, row: int) -> dict:
        with unusable_named(f"row {row} of {name}"):
            return {"image": _encode(np.asarray(image).astype(leaf.dtype))}  # which a format doesn't keep

    features = datasets.Features(dataset.features | {"image": datasets.Image()})
    arrays = dataset.with_format("numpy", columns=["image"], output_all_columns=True)
    return arrays.map(encode, with_indices=True, input_columns="image", features=features).with_format(None)


# Pairs


def _read_pairs(given: Pairs, name: str) -> Dataset:
    if len(given) == 0:
        raise InputError(f"{name} has no rows.")
    class_names = own_class_names(given, name)

    def read(row: int) -> dict:
        read = _read_pair(given, row, name, class_names)
        if row < READ_TWICE and read != _read_pair(given, row, name, class_names):
            raise InputError(f"Row {row} of {name} is another each time: leave random transforms out of it.")
        return read

    named = class_names is not None and len(set(class_names)) == len(class_names)  # ImageNet has two cranes
    label = ClassLabel(names=class_names) if named else Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = Dataset.from_dict({"row": list(range(len(given)))})
    unique = uuid4().hex  # or the user's set would be hashed
    return rows.map(
        read,
        input_columns="row",
        remove_columns="row",
        features=features,
        new_fingerprint=unique,
        desc=f"Reading {name}",
    )


def _read_pair(given: Pairs, row: int, name: str, class_names: list[str] | None) -> dict:
    with unusable_named(f"row {row} of {name}"):
        pair = given[row]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise OSError(f"the row is of type {type(pair).__name__}, but must be a pair (image, label)")
        image, label = _encode(pair[0]), pair[1]
    if isinstance(label, np.generic | np.ndarray | torch.Tensor) and label.ndim == 0:
        label = label.item()
    if not isinstance(label, int):
        kind = type(label).__name__
        raise InputError(f"Row {row} of {name} has a label of type {kind}, but must have an integer from 0.")
    if class_names is not None and not 0 <= label < len(class_names):
        raise InputError(f"Row {row} of {name} has label {label}, but labels go from 0 to {len(class_names) - 1}.")
    return {"image": image, "label": int(label)}


# Pixels


def _encode(image) -> dict:
    """An image of pixels as a PNG, which keeps them; `OSError` for one that isn't or wouldn't be read as such."""
    image, file = _as_rgb(image), io.BytesIO()
    check_header(image)
    image.save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}


def _as_rgb(image) -> Image.Image:
    if isinstance(image, Image.Image):
        check_header(image)
        return Image.fromarray(np.asarray(image.convert("RGB")))  # without EXIF data, by which it would be turned
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise OSError(f"it is of type {type(image).__name__}, but must be a PIL image, an array or a tensor")
    pixels = np.asarray(image)
    if isinstance(image, torch.Tensor) and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and pixels.shape[2:] != (3,):
        layout = "(3, height, width)" if isinstance(image, torch.Tensor) else "(height, width, 3)"
        raise OSError(f"its shape is {tuple(image.shape)}, but must be {layout}")
    return Image.fromarray(_as_uint8(pixels)).convert("RGB")


def _as_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise OSError(f"its pixels are {pixels.dtype}, but must be uint8, or floats in [0, 1]")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # and so not NaN
        raise OSError(
            f"its pixels go from {low:g} to {high:g}, but must be uint8, or floats in [0, 1], not normalised"
        )
    return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
