"""Benchmarks: one record each, loaded through `datasets` from the Hub or from a local copy in the Hub's layout.

benchmark = load_benchmark("cifar10")                         # test split, from the Hub
benchmark = load_benchmark("cifar10", path="data/cifar10")    # the same from a local copy
benchmark.dataset, benchmark.class_names, benchmark.template
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from PIL import Image

from hpt.data import ImageTransform, check_labels, stratified_rows
from hpt.errors import InputError, explain_hub_error
from hpt.records import BENCHMARKS, BenchmarkRecord


PROTOCOLS = ("hpt", "pmg")


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
    """

    name: str
    split: str
    dataset: Dataset = field(repr=False)
    class_names: list[str] = field(repr=False)
    template: str
    transform: ImageTransform
    mean_per_class: bool = False
    sample_ids: np.ndarray | None = field(default=None, repr=False)

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
        try:
            example = self.dataset[row]
            pixel_values = self.transform(example["image"])
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL's errors for broken files
            raise InputError(
                f"The image in row {row} of {self.name} ({self.split}) can't be used: {error}."
            ) from error
        return {"pixel_values": pixel_values, "labels": example["label"], "sample_ids": int(self.ids()[row])}

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


def load_benchmark(name: str, split: str = "test", path: str | None = None, protocol: str = "hpt") -> Benchmark:
    """Load a benchmark's split by its record.

    Args:
        name (`str`): Key in [`BENCHMARKS`], or `"name=path"`, which is the same as giving `path`.
        split (`str`, *optional*, defaults to `"test"`): `"train"`, `"test"` (what the protocol evaluates, whatever
            the Hub calls it) or, where there is one, `"validation"`.
        path (`str`, *optional*): A local copy in the Hub's layout, instead of the Hub.
        protocol (`str`, *optional*, defaults to `"hpt"`): `"hpt"` attacks CIFAR, STL-10 and TinyImageNet at native
            resolution, and trains on TinyImageNet at 224; `"pmg"` follows TeCoA and PMG-AFT.

    Returns:
        [`Benchmark`]

    Raises:
        InputError: for an unknown name, split or protocol; a dataset that can't be had; columns, classes or labels
            that don't fit the record.
    """
    name, _, given = name.partition("=")
    path = given or path
    record = get_record(name)
    if split not in record.splits:
        raise InputError(f"{name} has no split {split!r}; known: {', '.join(record.splits)}.")
    if protocol not in PROTOCOLS:
        raise InputError(f"Unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}.")
    if record.load is None:
        dataset = _load_by_record(record, split, path)
    elif path is None:
        dataset = record.load(split)
    else:
        raise InputError(f"{name} is embedded in its library: give no path.")
    names = dataset.features["label"].names
    if len(names) != record.num_classes:
        raise InputError(f"{path or record.hub_id} has {len(names)} classes, but {name} has {record.num_classes}.")
    transform = ImageTransform() if split in record.native_splits[protocol] else ImageTransform(resize=256, crop=224)
    class_names = [record.clean_name(one) for one in names]
    check_labels(dataset, class_names, f"{name} ({split})")
    return Benchmark(name, split, dataset, class_names, record.template, transform, record.mean_per_class)


def get_record(name: str) -> BenchmarkRecord:
    """The record of that name; [`InputError`] listing the known names otherwise."""
    if name not in BENCHMARKS:
        raise InputError(f"Unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]


def _load_by_record(record: BenchmarkRecord, split: str, path: str | None) -> Dataset:
    """The split with columns `image` and `label`, the latter a ClassLabel."""
    source, config = path or record.hub_id, record.config
    if path is not None and not Path(path).is_dir():
        raise InputError(f"There is no folder {path!r} to read {record.hub_id} from.")
    try:
        if path is not None and config not in datasets.get_dataset_config_names(path):
            config = None  # a bare copy of the data files has no named configuration
        dataset = datasets.load_dataset(source, config, split=record.splits[split])
    except (OSError, ValueError) as error:  # what datasets raises for missing, gated and unreadable sets
        raise explain_hub_error("dataset", source, error) from error
    columns = {record.image_column: "image", record.label_column: "label"}
    missing = sorted(set(columns) - set(dataset.column_names))
    if missing:
        raise InputError(f"{source} has columns {dataset.column_names}, but its record expects {missing}.")
    dataset = dataset.select_columns(list(columns))
    dataset = dataset.rename_columns({old: new for old, new in columns.items() if old != new})
    if record.class_names is not None and dataset.features["label"].dtype in ("bool", "int64"):
        label = ClassLabel(names=list(record.class_names))
        dataset = dataset.cast_column("label", Value("int64")).cast_column("label", label)
    if not isinstance(dataset.features["label"], ClassLabel):
        raise InputError(f"{source}'s column {record.label_column!r} isn't a ClassLabel, so it names no classes.")
    return dataset
