"""Benchmarks: image-classification sets with class names, prompts and preprocessing, loaded through `datasets`.

benchmark = load_benchmark("cifar10")                                # test split, from the Hub, by its record
benchmark = load_benchmark("cifar10", path="data/cifar10")           # the same from a local copy
benchmark = load_benchmark("owner/birds:label_column=species")       # any other: Hub id, image folder, .parquet, .csv
benchmarks = load_benchmark("all")                                   # a dict of the sixteen
benchmark.dataset, benchmark.class_names, benchmark.template
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path

from accelerate.utils import gather_object
from datasets import ClassLabel

from hpt.data.archives import find_class_names
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.class_subsets import CLASS_SETTINGS, Classes, refuse_classes, take_classes
from hpt.data.classes import read_names, readable_names
from hpt.data.geometry import GEOMETRIES
from hpt.data.images import check_images, check_labels
from hpt.data.names import call_before_loading, loading_arguments, name_benchmark, stands_for_all, the_sixteen
from hpt.data.records import BENCHMARKS, BenchmarkRecord
from hpt.data.sample_subsets import SAMPLE_SETTINGS, Samples, of_all_samples, take_samples
from hpt.data.sources import number_labels, read_splits, select_columns
from hpt.data.unlabelled import load_images
from hpt.errors import InputError, MissingLabels, MissingSplit, check_known
from hpt.prompts import check_class_names, check_templates
from hpt.references import Reference, check_names


PROTOCOLS = ("hpt", "pmg")


def load_benchmark(
    name: str | Reference,
    split: str = "test",
    path: str | None = None,
    protocol: str = "hpt",
    streaming: bool = False,
    *,
    class_names: list[str] | dict[str, str] | str | None = None,
    classes: Classes | None = None,
    without_classes: Classes | None = None,
    samples: Samples | None = None,
    without_samples: Samples | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    template: str | list[str] | None = None,
    geometry: str | None = None,
    native_resolution: bool = False,
    labelled: bool = True,
) -> Benchmark | StreamingBenchmark | dict[str, Benchmark | StreamingBenchmark]:
    """Load a benchmark's split by its record, or a split of any other image-classification set.

    Args:
        name (`str` or [`Reference`]): Key in [`BENCHMARKS`]; `"all"` for the sixteen; or, of any other dataset, its
            Hub id, a folder that `datasets` can load (of images, a subfolder per class, of parquet files, or of
            WebDataset's shards), a `.zip` or `.tar` of one, a `.parquet` file, or a `.csv` of paths and labels.
            `"NAME=PATH"` gives `path` too, and `"birds=PATH:split=val,class_names=birds.txt"` the arguments below.
        split (`str`, *optional*, defaults to `"test"`): `"train"`, `"test"` (what the protocol evaluates, whatever
            the Hub calls it) or, where there is one, `"validation"`; or what the Hub calls one of these. Of other
            datasets, what they call it; for `"test"`, one that has a single split gives that.
        path (`str`, *optional*): Where to read it from instead of the record's Hub id: a local copy in the Hub's
            layout, or another Hub id, both also as `ID@REVISION`. Of `"all"`, a folder with a copy under each name.
        protocol (`str`, *optional*, defaults to `"hpt"`): `"hpt"` attacks CIFAR, STL-10 and TinyImageNet at native
            resolution, and trains on TinyImageNet at 224; `"pmg"` follows TeCoA and PMG-AFT.
        streaming (`bool`, *optional*, defaults to `False`): Download rows as they are iterated over.
        class_names (`list[str]`, `dict[str, str]` or `str`, *optional*): For datasets without a record. A list has
            names in label order, among which the dataset's own names, if it has some, are looked up; a dict has
            readable names by the dataset's own. A file has a name a line, or the dataset's, a tab and the readable
            one. Without, the dataset's own names are taken, and refused where no text tower knows them: numbers, and
            WordNet ids other than ImageNet's, whose names are known.
        classes, without_classes (`list` or `str`, *optional*): The classes to keep alone, or to leave out, by name or
            number: see [`take_classes`].
        samples, without_samples (`list` or `str`, *optional*): The samples to keep alone, or to leave out, by their
            numbers in the whole split, counted from 0, in a list or in a file: see [`take_samples`].
        image_column, label_column, config (`str`, *optional*): For datasets without a record, where they aren't plain.
        template (`str` or `list[str]`, *optional*): Prompt template, or several to average, instead of the record's;
            in text with a `|` between them.
        geometry (`str`, *optional*): For datasets without a record, how images come to a model, instead of as its own
            processor does it: `"256-224"`, resized to 256 pixels, cropped to 224 and attacked there, as the papers
            do; or `"native"`, attacked at their own size, which must be one.
        native_resolution (`bool`, *optional*, defaults to `False`): The same as `geometry="native"`.
        labelled (`bool`, *optional*, defaults to `True`): Whether it is a set of images with labels. Otherwise the
            images alone are read, whatever else there is, such as captions, for objectives that need no labels; in a
            folder they may lie as they like, but for splits. Classes are then what `class_names` says, or none.

    Returns:
        [`Benchmark`], or [`StreamingBenchmark`]; for `"all"` a dict of them, without those that can't be had, which a
        warning names.

    Raises:
        InputError: for an unknown name, split or protocol; a dataset that can't be had; columns, classes or labels
            that don't fit the record.
    """
    check_known("protocol", protocol, PROTOCOLS)
    settings = {"class_names": class_names, "image_column": image_column, "label_column": label_column}
    settings |= {"config": config, "template": template, "geometry": geometry}
    settings |= {"native_resolution": native_resolution, "classes": classes, "without_classes": without_classes}
    settings |= {"samples": samples, "without_samples": without_samples}
    reference = name if isinstance(name, Reference) else Reference.parse(name)
    if stands_for_all(reference):
        if given := [key for key, value in settings.items() if value is not None and value is not False]:
            raise InputError(
                f"all takes its records as they are, but {given[0]} is given: load one benchmark by itself."
            )
        folder = reference.place if reference.named else None
        return _load_all(split, folder or path, protocol, streaming)
    if path is not None:
        reference = replace(reference, named=True).at(path)
    reference = name_benchmark(reference)
    settings |= loading_arguments(reference)
    split = settings.pop("split", split)
    classes = {setting: settings.pop(setting) for setting in CLASS_SETTINGS}
    samples = {setting: settings.pop(setting) for setting in SAMPLE_SETTINGS}
    record = _find_record(reference.name, split, **settings)
    split = _find_role(reference.name, record, split)
    if reference.source is None and record.hub_id is not None:
        reference = reference.at(record.hub_id)
    if not labelled:
        refuse_classes(classes, reference.name)
        images = load_images(reference, record, split, record.transform(split, protocol), streaming)
        return take_samples(images, **samples)
    whole = _load(reference, record, split, protocol, streaming)
    return take_samples(take_classes(whole, **classes), **samples, split=whole)


def load_training_data(
    name: str | Reference,
    validation_size: int = 0,
    protocol: str = "hpt",
    streaming: bool = False,
    labels_for: str | None = "a classifier",
) -> tuple[Benchmark | StreamingBenchmark, Benchmark | None]:
    """A training set, and a validation set that is never tested on, for choosing checkpoints, rates and proxies.

    Args:
        name (`str` or [`Reference`]): A benchmark, as of [`load_benchmark`], but not `"all"`.
        validation_size (`int`, *optional*, defaults to 0): Training images to hold out, the same in every recipe; at
            0, the dataset's own validation split is taken, if it has one.
        protocol (`str`, *optional*, defaults to `"hpt"`): As of [`load_benchmark`].
        streaming (`bool`, *optional*, defaults to `False`): As of [`load_benchmark`]; then there is no validation set.
        labels_for (`str`, *optional*): What needs labels, as messages call it; with `None`, a dataset without labels
            that can be used is read without, with a warning.

    Raises:
        InputError: as [`load_benchmark`], and for images to be held out of a stream.
    """
    benchmark = name_benchmark(name if isinstance(name, Reference) else Reference.parse(name))
    if streaming and validation_size:
        raise InputError("No images can be held out of a stream: leave validation_size out, or don't stream.")
    benchmark = _name_only_split(benchmark)
    train = _load_train(benchmark, protocol, streaming, labels_for)
    if streaming:
        return train, None
    if validation_size:
        return train.hold_out(validation_size)
    if "split" in benchmark.settings:
        return train, None
    try:
        return train, _load_role(of_all_samples(benchmark), "validation", protocol, labelled=train.has_labels)
    except MissingSplit:
        return train, None


def _name_only_split(reference: Reference) -> Reference:
    """A record's only split, of which a choice of samples says what is trained on, though its role is to be tested."""
    splits = BENCHMARKS[reference.name].splits if reference.name in BENCHMARKS else {}
    if len(splits) != 1 or not {*SAMPLE_SETTINGS} & reference.settings.keys():
        return reference
    return replace(reference, settings={"split": next(iter(splits))} | reference.settings)


def _load_train(reference: Reference, protocol: str, streaming: bool, labels_for: str | None):
    """The training split, without labels if it has none and nothing needs them."""
    try:
        return _load_role(reference, "train", protocol, streaming)
    except MissingLabels as error:
        if labels_for is not None:
            raise InputError(f"{error} Labels are needed by {labels_for}.") from error
        if "label_column" in reference.settings:  # which are meant to be used
            raise
        loaded = _load_role(reference, "train", protocol, streaming, labelled=False)
        warnings.warn(f"Images without labels are trained on, since {error}", stacklevel=3)
        return loaded


def _load_role(reference: Reference, role: str, protocol: str, streaming: bool = False, labelled: bool = True):
    """A split by what it is for: the Hub may call the split `train` or `validation` that a record tests on."""
    if reference.name in BENCHMARKS and "split" not in reference.settings:
        _find_role(reference.name, BENCHMARKS[reference.name], role, own_names=False)
    return load_benchmark(reference, role, protocol=protocol, streaming=streaming, labelled=labelled)


def load_available(references: list[Reference], protocol: str = "hpt") -> tuple[list[Benchmark], dict[str, str]]:
    """Test splits whose images can be used, and by name why others can't be had; the same in all processes."""
    loaded, missing = {}, {}
    for reference in references:
        try:
            benchmark = load_benchmark(reference, protocol=protocol)
            check_images(benchmark.dataset, benchmark.name, same_size=benchmark.is_native)
            loaded[call_before_loading(reference)] = benchmark
        except InputError as error:
            missing[call_before_loading(reference)] = str(error)
    for of_another in gather_object([missing]):
        missing |= of_another
    check_names(benchmark.name for benchmark in loaded.values())
    return [benchmark for name, benchmark in loaded.items() if name not in missing], missing


def load_validation(reference: Reference, validation_size: int = 0, protocol: str = "hpt") -> Benchmark:
    """Images to choose by: a validation split, images held out of the training split, or a split that is named.

    Args:
        reference ([`Reference`]): The benchmark.
        validation_size, protocol: As of [`load_training_data`].

    Raises:
        InputError: as [`load_benchmark`], and if there are no such images.
    """
    if "split" in reference.settings:
        benchmark = load_benchmark(reference, protocol=protocol)
    else:
        _, benchmark = load_training_data(reference, validation_size, protocol)
    if benchmark is None:
        raise InputError(
            f"{reference} has no validation split to choose on: give --validation_size N, training images that "
            "no candidate was trained on."
        )
    check_images(benchmark.dataset, benchmark.name, same_size=benchmark.is_native)
    return benchmark


def _load_all(split: str, path: str | None, protocol: str, streaming: bool) -> dict:
    if path is not None and not Path(path).is_dir():
        raise InputError(f"There is no folder {path!r} with copies of the benchmarks.")
    loaded, missing = {}, []
    for benchmark in the_sixteen(path):
        try:
            loaded[benchmark.name] = load_benchmark(benchmark, split, protocol=protocol, streaming=streaming)
        except InputError as error:
            missing.append(f"{benchmark.name}: {error}")
    if not loaded:
        raise InputError(f"None of the sixteen benchmarks can be had, the first because: {missing[0]}")
    if missing:
        warnings.warn("Left out: " + " ".join(missing), stacklevel=3)
    return loaded


def _find_record(name: str, split: str, *, template: str | list[str] | None, **settings) -> BenchmarkRecord:
    """The record of that name, or one for a dataset that has none."""
    if name in BENCHMARKS:
        if changed := [key for key, value in settings.items() if value]:
            raise InputError(f"{name} has a record, which says its {changed[0]}: call the dataset by another name.")
        record = BENCHMARKS[name]
    else:
        record = _make_record(split, **settings)
    if template is not None:
        check_templates(template)
    return record if template is None else replace(record, template=template)


def _find_role(name: str, record: BenchmarkRecord, split: str, own_names: bool = True) -> str:
    """What a record calls a split: as it is, or with `own_names` what the Hub calls so."""
    roles = [role for role, own_name in record.splits.items() if own_names and own_name == split]
    if split not in record.splits and not roles:
        known = [role if role == own else f"{role} (on the Hub {own})" for role, own in record.splits.items()]
        raise MissingSplit(f"{name} has no split {split!r}; known: {', '.join(known)}.")
    return split if split in record.splits else roles[0]


def _make_record(
    split: str, *, class_names, geometry: str | None, native_resolution: bool, **fields
) -> BenchmarkRecord:
    """A record for a dataset that has none."""
    if geometry is not None:
        check_known("geometry", geometry, GEOMETRIES)
    if native_resolution and geometry not in (None, "native"):
        raise InputError(f"geometry is {geometry!r}, but native_resolution is set: give one of them.")
    if isinstance(class_names, str):
        class_names = read_names(os.path.expanduser(class_names))
    if isinstance(class_names, dict):
        check_class_names(list(dict.fromkeys(class_names.values())))  # several may have one name, as words lists do
        class_names = {str(own): name for own, name in class_names.items()}
    elif class_names is not None:
        class_names = tuple(name.strip() for name in check_class_names(class_names))
    return BenchmarkRecord(
        splits={split: split},
        native_splits=dict.fromkeys(PROTOCOLS, ()),
        geometry="native" if native_resolution else geometry,
        class_names=class_names,
        **fields,
    )


def _load(reference: Reference, record: BenchmarkRecord, split: str, protocol: str, streaming: bool):
    """The split, from where the reference says."""
    name, place = reference.name, reference.place
    transform = record.transform(split, protocol)
    if record.load is None:
        dataset, class_names, split, commit = _read_split(reference, record, split, streaming)
    elif place is None:
        dataset, commit = record.load(split), None
        class_names = dataset.features["label"].names
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    else:
        raise InputError(f"{name} is embedded in its library: give no path.")
    class_names = [record.clean_name(class_name) for class_name in class_names]
    if record.class_names is None:
        class_names = readable_names(class_names, name if place is None else place)
    if record.num_classes not in (None, len(class_names)):
        raise InputError(f"{place} has {len(class_names)} classes, but {name} has {record.num_classes}.")
    check_class_names(class_names)
    if not streaming:
        check_labels(dataset, class_names, f"{name} ({split})")
    benchmark = (StreamingBenchmark if streaming else Benchmark)(
        name,
        split,
        dataset,
        class_names,
        record.template,
        transform,
        record.mean_per_class,
        source=commit and f"{reference.source}@{commit}",
    )
    if not streaming:
        _warn_of_rows(benchmark, record, place)
    return benchmark


def _warn_of_rows(benchmark: Benchmark, record: BenchmarkRecord, place: str | None) -> None:
    """Say where results can't be compared with published ones."""
    name, rows = benchmark.name, len(benchmark)
    if benchmark.split == "test" and record.num_rows not in (None, rows):
        warnings.warn(
            f"{name} has {rows} rows in {place} instead of {record.num_rows}: results on it aren't comparable with "
            "published ones.",
            stacklevel=4,
        )


def _read_split(reference: Reference, record: BenchmarkRecord, split: str, streaming: bool):
    """Dataset with columns `image` and `label`, its class names, the split that it is, and its commit on the Hub."""
    wanted, place = record.splits[split].split("+"), reference.place
    has_record = record.num_classes is not None
    any_split = not has_record and split == "test"
    dataset, splits, available, commit = read_splits(reference, record.config, wanted, streaming, any_split)
    dataset = select_columns(dataset, record.image_column, record.label_column, place)
    class_names = record.class_names
    if class_names is None and not isinstance(dataset.features["label"], ClassLabel):
        file = find_class_names(reference)
        class_names = None if file is None else read_names(file)
    dataset, class_names = number_labels(dataset, class_names, place, whole=set(available) == set(splits))
    return dataset, class_names, split if has_record or splits == wanted else splits[0], commit
