"""The sixteen benchmarks as tiny copies in the Hub's layout: configurations, splits, columns, types, card, files.

The layouts are what public pages show, as is that of a set in WebDataset's shards. Class names are the first few as
the Hub spells them, filled up to the number of classes.
"""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Value
from datasets.info import DatasetInfosDict
from datasets.splits import SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData
from PIL import Image

import hpt
from hpt import BENCHMARKS
from hpt.data.records import TINY_IMAGENET_WNIDS


WNIDS = json.loads(
    (Path(hpt.__file__).parent / "data" / "class_names" / "tiny_imagenet.json").read_text(encoding="utf-8")
)
RIGHT_WNIDS = [wnid for wnid in WNIDS if wnid not in TINY_IMAGENET_WNIDS.values()]
TRAIN_VALIDATION_TEST = ("train", "validation", "test")
CORRUPTIONS = ("contrast", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate", "spatter")

# Name -> (splits of the repository, first class names, further columns)
LAYOUTS = {
    "tiny_imagenet": (("train", "valid"), [*RIGHT_WNIDS, *TINY_IMAGENET_WNIDS], {}),
    "cifar10": (("train", "test"), ["airplane", "automobile", "bird"], {}),
    "cifar100": (("train", "test"), ["apple", "aquarium_fish", "baby"], {"coarse_label": Value("int64")}),
    "stl10": (("train", "test"), ["airplane", "bird", "car"], {}),
    "imagenet": (
        TRAIN_VALIDATION_TEST,
        ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark, white shark", "crane", "crane2"],
        {},
    ),
    "caltech101": (("train",), ["accordion", "airplanes", "anchor"], {"filename": Value("string")}),
    "caltech256": (
        TRAIN_VALIDATION_TEST,
        ["001.ak47", "002.american-flag", "003.backpack"],
        {"text": Value("string")},
    ),
    "sun397": (TRAIN_VALIDATION_TEST, ["/a/abbey", "/a/airplane_cabin", "/a/airport_terminal"], {}),
    "oxford_pets": (
        ("train", "test"),
        ["abyssinian", "american_bulldog", "american_pit_bull_terrier"],
        {"image_id": Value("string"), "label_cat_dog": ClassLabel(names=["cat", "dog"])},
    ),
    "flowers102": (
        TRAIN_VALIDATION_TEST,
        ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
        {},
    ),
    "fgvc_aircraft": (
        ("test",),
        ["707-320", "727-200", "A300B4"],
        {"family": ClassLabel(names=["A300", "Boeing 707"]), "manufacturer": ClassLabel(names=["Airbus", "Boeing"])},
    ),
    "stanford_cars": (
        ("train", "test", *CORRUPTIONS),
        ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"],
        {},
    ),
    "food101": (("train", "validation"), ["apple_pie", "baby_back_ribs", "baklava"], {}),
    "eurosat": (
        TRAIN_VALIDATION_TEST,
        ["AnnualCrop", "Forest", "HerbaceousVegetation"],
        {"image_id": Value("string")},
    ),
    "dtd": (("train", "test"), ["banded", "blotchy", "braided"], {}),
    "pcam": (("train", "valid", "test"), None, {}),
}


def raw_names(name: str) -> list[str] | None:
    """Class names as the Hub spells them, as many as the record expects; `None` for boolean labels."""
    first = LAYOUTS[name][1]
    if first is None:
        return None
    return [*first, *(f"class_{number}" for number in range(len(first), BENCHMARKS[name].num_classes))]


def make_split(name: str, seed: int = 0, rows: int = 3, size: int = 16, class_names=None) -> Dataset:
    """Random images with labels 0, 1, 2, 0, ... in the columns of a benchmark's repository."""
    record, names = BENCHMARKS[name], class_names or raw_names(name)
    label = Value("bool") if names is None else ClassLabel(names=names)
    features = {record.image_column: datasets.Image(), record.label_column: label} | LAYOUTS[name][2]
    labels = [row % (2 if names is None else min(3, len(names))) for row in range(rows)]
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    columns = {record.image_column: list(pixels), record.label_column: labels}
    further = {key: ["x" if kind == Value("string") else 0] * rows for key, kind in LAYOUTS[name][2].items()}
    return Dataset.from_dict(columns | further, features=Features(features))


def write_repository(
    folder: Path, name: str, splits: tuple[str, ...] | None = None, card: bool = True, **of_split
) -> str:
    """A benchmark's repository with tiny splits; returns its folder."""
    config = BENCHMARKS[name].config or "default"
    data = folder / (BENCHMARKS[name].config or "data")
    data.mkdir(parents=True, exist_ok=True)
    info = DatasetInfo(splits={})
    for seed, split in enumerate(splits or LAYOUTS[name][0]):
        dataset = make_split(name, seed, **of_split)
        dataset.to_parquet(data / f"{split}-00000-of-00001.parquet")
        info.features = dataset.features
        info.splits[split] = SplitInfo(split, num_bytes=1, num_examples=len(dataset))
    if card:
        description = DatasetCardData()
        DatasetInfosDict({config: info}).to_dataset_card_data(description)
        files = [{"split": split, "path": f"{data.name}/{split}-*"} for split in splits or LAYOUTS[name][0]]
        MetadataConfigs({config: {"data_files": files}}).to_dataset_card_data(description)
        (folder / "README.md").write_text(f"---\n{description}\n---\n", encoding="utf-8")
    return str(folder)


def write_shard(file: Path, first: int, ending: str = "webp") -> Path:
    """Three red images, each darker than the next, with labels 0, 1, 2, as WebDataset packs them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for label in range(3):
            image = io.BytesIO()
            Image.new("RGB", (8, 8), (first + label, 0, 0)).save(image, ending, lossless=True)
            for name, content in ((ending, image.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"s{first + label:05}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


def write_shards(folder: Path, class_names: list[str]) -> Path:
    """A set of three classes as CLIP_benchmark publishes its sets: shards of each split, and names in a file."""
    for split, shards in (("train", 3), ("test", 2)):
        for number in range(shards):
            write_shard(folder / split / f"{number}.tar", 3 * number)
        (folder / split / "nshards.txt").write_text(str(shards))
    (folder / "classnames.txt").write_text("\n".join(class_names))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return folder
