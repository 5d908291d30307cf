"""Splits of an image-classification dataset, read through `datasets` from the Hub, a local copy of it, or other files.

Only the files of the splits that are asked for are downloaded and prepared. They are cached apart from what
`datasets.load_dataset` caches, which takes whatever is prepared for the whole dataset.
"""

from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, DatasetBuilder, IterableDataset, Value
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from pyarrow.dataset import ParquetFragmentScanOptions

from hpt.data.archives import find_shards, has_shards, unpack
from hpt.data.classes import match_classes, rename_classes, renumber
from hpt.data.folders import check_classes, read_image_folder, role_of
from hpt.data.tables import read_table
from hpt.errors import InputError, MissingLabels, MissingSplit, did_you_mean_path, explain_hub_error
from hpt.references import Reference


TABLES = (".csv", ".tsv")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
FILE_ENDINGS = (".parquet", *TABLES, *ARCHIVES)
SHARES = 256  # of a folder of images that is streamed, among which workers divide it


def read_splits(
    reference: Reference,
    config: str | None,
    splits: list[str],
    streaming: bool = False,
    only_split: bool = False,
    labelled: bool = True,
) -> tuple[Dataset | IterableDataset, list[str], list[str], str | None]:
    """Read splits of a dataset, joined in order.

    Args:
        reference ([`Reference`]): Its source is a Hub id, or a folder or file as of [`load_benchmark`].
        config (`str`, *optional*): Its configuration; ignored for a local copy that has no such one.
        splits (`list[str]`): The splits, as the source calls them, or by their roles.
        streaming (`bool`, *optional*, defaults to `False`): Read rows as they are asked for, without downloading.
        only_split (`bool`, *optional*, defaults to `False`): Where the source has one split alone, take that, whatever
            it is called.
        labelled (`bool`, *optional*, defaults to `True`): Whether folders of images have a folder for each class.

    Returns:
        `tuple`: the dataset, the splits that it consists of, those that the source has, and its commit if it came from
        the Hub.

    Raises:
        InputError: for a source that can't be had or read, or that lacks a split.
    """
    place = reference.place
    try:
        source = _open(reference, config, splits, labelled)
        available = _splits_of(source)
        if only_split and len(available) == 1:
            splits = available
        splits = [_find_split(split, available, place) for split in splits]
        if isinstance(source, dict):
            parts = [_as_stream(source[split]) if streaming else source[split] for split in splits]
        else:
            parts = _read_by_builder(source, splits, streaming, place)
        dataset = datasets.concatenate_datasets(parts)
    except InputError:
        raise
    except Exception as error:  # sets that are missing, gated, scripts, or whatever datasets runs into in damaged ones
        explained = str(explain_hub_error("dataset", place, error)).removesuffix(".")
        raise InputError(f"{explained}{'.' if Path(place).exists() else did_you_mean_path(place)}") from error
    return dataset, splits, available, None if Path(place).exists() else source.hash


def _open(
    reference: Reference, config: str | None, splits: list[str], labelled: bool
) -> DatasetBuilder | dict[str, Dataset]:
    """The builder of a dataset, which has downloaded no more than its description; or its splits, of local images."""
    cache = f"{datasets.config.HF_DATASETS_CACHE}/hpt/{'+'.join(splits)}"
    source, revision, place = reference.source, reference.revision, reference.place
    if Path(place).is_file():
        return _open_file(Path(place), cache, labelled)
    if Path(place).is_dir():
        return _open_folder(Path(place), place, config, cache, labelled)
    if revision:  # offline, the newest in the cache is taken
        cache += f"@{revision.replace('/', '-')}"
    return datasets.load_dataset_builder(source, config, revision=revision, cache_dir=cache)


def _open_file(file: Path, cache: str, labelled: bool) -> DatasetBuilder | dict[str, Dataset]:
    if file.suffix == ".parquet":
        return datasets.load_dataset_builder("parquet", data_files=str(file), cache_dir=cache)
    if file.suffix in TABLES:
        return {"train": read_table(file)}
    if file.suffix == ".tar" and has_shards([file]):
        return datasets.load_dataset_builder("webdataset", data_files=str(file), cache_dir=cache)
    if file.name.endswith(ARCHIVES):
        return _open_folder(unpack(file), str(file), None, cache, labelled)
    known = ", ".join(FILE_ENDINGS)
    raise InputError(f"{file} can't be read as a dataset: give a file that ends in {known}, or a folder.")


def _open_folder(
    folder: Path, place: str, config: str | None, cache: str, labelled: bool
) -> DatasetBuilder | dict[str, Dataset]:
    if (images := read_image_folder(folder, place, labelled)) is not None:
        return images
    if (shards := find_shards(folder)) and has_shards(next(iter(shards.values()))):
        return datasets.load_dataset_builder("webdataset", data_files=shards, cache_dir=cache)
    named = config in datasets.get_dataset_config_names(str(folder))  # a bare copy of the data files names none
    return datasets.load_dataset_builder(str(folder), config if named else None, cache_dir=cache)


def _splits_of(source: DatasetBuilder | dict[str, Dataset]) -> list[str]:
    if isinstance(source, dict):
        return list(source)
    files = source.config.data_files  # by split; None for what is in the cache while the Hub can't be reached
    return [str(split) for split in (source.info.splits if files is None else files)]


def _find_split(split: str, available: list[str], place: str) -> str:
    """What the source calls a split: so, or by its role, as a folder `val` is read as `validation`."""
    found = split if split in available else role_of(split)
    if found not in available:
        raise MissingSplit(f"{place} has no split {split!r}; it has: {', '.join(available)}.")
    return found


def _as_stream(dataset: Dataset) -> IterableDataset:
    return dataset.to_iterable_dataset(num_shards=min(len(dataset), SHARES))


def _read_by_builder(builder: DatasetBuilder, splits: list[str], streaming: bool, place: str) -> list:
    """The splits of a builder, which gets no other files than theirs."""
    if not isinstance(builder, FolderBasedBuilder):  # which finds its class names in the folders of all splits
        _keep_only(builder, splits)
    if isinstance(builder.config, ParquetConfig):  # else Arrow keeps all that it has read of a file until its end
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
    if streaming:
        parts = [builder.as_streaming_dataset(split=split).decode(False) for split in splits]  # else done in threads
    else:
        builder.download_and_prepare()
        if empty := [split for split in splits if builder.info.splits[split].num_examples == 0]:
            raise InputError(f"The split {empty[0]!r} of {place} has no rows.")
        parts = [builder.as_dataset(split=split) for split in splits]
    labels = parts[0].features.get("label")
    if isinstance(builder, FolderBasedBuilder) and isinstance(labels, ClassLabel):
        check_classes(labels.names, place)
    return parts


def _keep_only(builder: DatasetBuilder, splits: list[str]) -> None:
    """Make a builder forget the other splits, so that it neither downloads nor expects them."""
    for holder, name in ((builder.config, "data_files"), (builder.info, "splits")):
        if all_splits := getattr(holder, name):
            setattr(holder, name, type(all_splits)({split: all_splits[split] for split in splits}))


def select_columns(dataset, image_column: str | None, label_column: str | None, source: str):
    """The dataset with nothing but the columns `image` and `label`.

    Args:
        dataset (`Dataset` or `IterableDataset`): Any columns.
        image_column, label_column (`str`, *optional*): Which they are; without, the only one of images, and the only
            one with class names, or else the one called `label`, or as WebDataset does `cls`.
        source (`str`): What messages call the dataset.

    Raises:
        InputError: with the columns that are there.
    """
    features = dataset.features
    images = _image_columns(dataset)
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    image = image_column or (images[0] if len(images) == 1 else "image")
    label = label_column or (labels[0] if len(labels) == 1 else "cls" if "cls" in features else "label")
    missing = [name for name in (image, label) if name not in features]
    if missing:
        raise (MissingLabels if missing == [label] and label_column is None else InputError)(
            f"{source} has columns {list(features)}, {images or 'none'} of them with images and {labels or 'none'} "
            f"with class names, but is expected to have {missing}: say which by image_column and label_column."
        )
    _check_images(dataset, image, source)
    return _take_columns(dataset, image, label)


def select_images(dataset, image_column: str | None, source: str):
    """The dataset with nothing but the column `image`; arguments and errors as of [`select_columns`]."""
    images = _image_columns(dataset)
    image = image_column or (images[0] if len(images) == 1 else "image")
    if image not in dataset.features:
        raise InputError(
            f"{source} has columns {list(dataset.features)}, {images or 'none'} of them with images, but is expected "
            f"to have {image!r}: say which by image_column."
        )
    _check_images(dataset, image, source)
    return _take_columns(dataset, image)


def _check_images(dataset, image: str, source: str) -> None:
    if not _holds_images(dataset.features[image]):
        raise InputError(f"{source}'s column {image!r} holds {dataset.features[image]}, but must hold images.")


def _take_columns(dataset, image: str, label: str | None = None):
    """These columns alone, called `image` and `label`."""
    names = {image: "image"} | ({label: "label"} if label else {})
    dataset = dataset.select_columns(list(names))
    dataset = dataset.cast_column(
        image, datasets.Image(decode=False)
    )  # or a stream would decode images to rename them
    if others := {old: new for old, new in names.items() if old != new}:
        dataset = dataset.rename_columns(others)
    return dataset.cast_column("image", datasets.Image())


def _image_columns(dataset) -> list[str]:
    return [name for name, kind in dataset.features.items() if _holds_images(kind)]


def _holds_images(kind) -> bool:
    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


def number_labels(dataset, class_names: list[str] | dict[str, str] | None, source: str, whole: bool):
    """The dataset with integer labels, and the class names in their order.

    Args:
        dataset (`Dataset` or `IterableDataset`): With a column `label` of integers, booleans or names.
        class_names (`list[str]` or `dict[str, str]`, *optional*): In the order that labels are to have, among which
            [`match_classes`] looks up the dataset's own names, if it has some; or readable names by its own. Needed
            where the labels are numbers without names.
        source (`str`): What messages call the dataset.
        whole (`bool`): Whether these are all of its splits, which have all of its names.

    Raises:
        InputError: when there are no names, names that don't fit, or labels of another type.
    """
    kind, streaming = dataset.features["label"], isinstance(dataset, IterableDataset)
    if isinstance(kind, ClassLabel):
        if odd := [name for name in kind.names if not isinstance(name, str)]:
            raise InputError(f"{source} has the class name {odd[0]!r}, but names must be text.")
        return _lay_over(dataset, kind.names, class_names, source)
    dtype = kind.dtype if isinstance(kind, Value) else type(kind).__name__
    if dtype in ("string", "large_string") and streaming:
        if class_names is None or isinstance(class_names, dict):
            raise MissingLabels(
                f"The labels of {source} are text, which a stream doesn't gather: give class_names, a file with one a "
                "line."
            )
        return dataset.cast_column("label", ClassLabel(names=list(class_names))), list(class_names)
    if dtype in ("string", "large_string"):
        if not whole and (class_names is None or isinstance(class_names, dict)):
            raise MissingLabels(
                f"The labels of {source} are text, and its other splits may have more of them: give class_names, a "
                "file with one a line."
            )
        labels = dataset["label"][:]
        own = sorted(set(labels) - {None})
        numbers = {name: number for number, name in enumerate(own)}
        return _lay_over(
            _with_labels(dataset, [numbers.get(label) for label in labels], source), own, class_names, source
        )
    if dtype != "bool" and not dtype.startswith(("int", "uint")):
        raise InputError(f"The labels of {source} are {dtype}, but must be integers or text.")
    if class_names is None:
        raise MissingLabels(
            f"The labels of {source} are {dtype} and name no classes: give class_names, a file with one a line."
        )
    if isinstance(class_names, dict):
        class_names = rename_classes([str(number) for number in range(len(class_names))], class_names, source)
    if dtype == "bool" and len(class_names) != 2:
        raise InputError(f"The labels of {source} are true or false, but there are {len(class_names)} class names.")
    if dtype == "bool":
        as_numbers = Value("int64")
        dataset = (
            dataset.cast_column("label", as_numbers)
            if streaming
            else _with_labels(dataset, dataset["label"][:], source)
        )
    return dataset, class_names


def _lay_over(dataset, own: list[str], class_names: list[str] | dict[str, str] | None, source: str):
    """As of [`number_labels`], where labels number names of the dataset's own."""
    if class_names is None:
        return dataset, own
    if isinstance(class_names, dict):
        return dataset, rename_classes(own, class_names, source)
    hint = "To rename classes, give a dict, or lines of two columns: its own name, a tab and the readable name."
    numbers = match_classes(own, class_names, source, hint)
    same = numbers == list(range(len(class_names)))
    return dataset if same else renumber(dataset, numbers), class_names


def _with_labels(dataset: Dataset, labels: list, source: str) -> Dataset:
    """Other labels beside the same images; casting the column would write all images anew."""
    if None in labels:
        raise InputError(f"Row {labels.index(None)} of {source} has no label.")
    return dataset.remove_columns("label").add_column("label", [int(label) for label in labels])
