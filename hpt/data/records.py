"""What is known of each benchmark before it is loaded: one record each.

The Hub ids, splits and columns were gathered from public pages; what a dataset's own features say is trusted over a
record, and a loaded set that doesn't fit its record is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from hpt.data.classes import WORDNET_ID, wordnet_names
from hpt.data.geometry import GEOMETRIES, ImageTransform
from hpt.data.images import stratified_split
from hpt.errors import InputError
from hpt.prompts import DEFAULT_TEMPLATE


EVERY_SPLIT = ("train", "validation", "test")
AT_224 = {"hpt": (), "pmg": ()}  # no split is attacked at native resolution

# Classes of TinyImageNet that its Hub copy labels with another synset's id: theirs -> the original list's.
TINY_IMAGENET_WNIDS = {
    "n02666347": "n02666196",
    "n03373237": "n02190166",
    "n04465666": "n04465501",
    "n04598010": "n04597913",
    "n07056680": "n04067472",
    "n07646821": "n01855672",
    "n07647870": "n03250847",
    "n07657664": "n07579787",
    "n07975909": "n02206856",
    "n08496334": "n02730930",
    "n08620881": "n03976657",
    "n08742578": "n02085620",
    "n12520864": "n02906734",
    "n13001041": "n07734744",
    "n13652335": "n03804744",
    "n13652994": "n02999410",
    "n13719102": "n01945685",
    "n14991210": "n07747607",
}


def _spaces(name: str) -> str:
    return name.replace("_", " ")


def _cifar100_name(name: str) -> str:
    return "crab" if name == "cra" else _spaces(name)  # the Hub's copy misspells it


def _tiny_imagenet_name(name: str) -> str:
    wnid, names = TINY_IMAGENET_WNIDS.get(name, name), wordnet_names("tiny_imagenet")
    if WORDNET_ID.fullmatch(wnid) and wnid not in names:
        raise InputError(f"{wnid} is none of TinyImageNet's 200 classes: call the dataset by another name.")
    return names.get(wnid, _spaces(wnid))  # a copy may have readable names


@cache
def _all_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 enlarged to 32x32, encoded once for all splits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = [Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)) for image in digits.images]
    images = [image.resize((32, 32), Image.BICUBIC) for image in small]  # 64 pixels leave an attack too few to change
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)


def _load_digits(split: str):
    """The digits, split 60/20/20 by class with a fixed seed."""
    test, rest = stratified_split(_all_digits(), 360)
    validation, train = stratified_split(rest, 360)
    return {"train": train, "validation": validation, "test": test}[split]


def _imagenet_name(name: str) -> str:
    return "crane" if name == "crane2" else name.split(",")[0]  # a machine like the bird; "tench, Tinca tinca"


def _caltech256_name(name: str) -> str:
    return re.sub(r"^\d+\.|-101$", "", name).replace("-", " ")  # "253.faces-easy-101"


def _sun397_name(name: str) -> str:
    return re.sub(r"^/\w/", "", name).replace("/", " ").replace("_", " ")  # "/c/church/outdoor"


def _aircraft_name(name: str) -> str:
    return f"Boeing {name}" if name.startswith("7") else name  # the others name their maker or are known without


def _without_year(name: str) -> str:
    return re.sub(r" \d{4}$", "", name)  # "AM General Hummer SUV 2000"


def _camel_case_name(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()  # "AnnualCrop"


@dataclass(frozen=True)
class BenchmarkRecord:
    """What is known of a benchmark before it is loaded.

    Args:
        hub_id (`str`, *optional*): Dataset on the Hub; `None` for one that is embedded.
        config (`str`, *optional*): Its configuration.
        splits (`dict`): Our split names to the Hub's; `"test"` is the one that the protocol evaluates.
        image_column, label_column (`str`): Columns, renamed to `image` and `label`.
        num_classes (`int`): Classes expected; a loaded set with another number is refused.
        native_splits (`dict`): Per protocol, the splits whose images are attacked at their own size and upsampled in
            the model.
        geometry (`str`, *optional*, defaults to `"256-224"`): Of the other splits, whose images are resized to 256,
            centre-cropped to 224 and attacked there; `None` for what each model's own processor does.
        clean_name (`Callable`): From a class name in the dataset's features to one for a prompt.
        template (`str` or `list[str]`): Prompt template, or several.
        mean_per_class (`bool`): Whether its accuracy is customarily the mean over classes.
        class_names (`tuple[str]` or `dict[str, str]`, *optional*): Names of the classes, for a dataset that has none;
            as of [`load_benchmark`].
        num_rows (`int`, *optional*): Rows of the split that the protocol evaluates.
        gated (`bool`): Whether its terms have to be accepted on the Hub.
        licence (`str`): What is known of its licence.
        deviation (`str`): Where the published protocols can't be followed exactly.
        load (`Callable`, *optional*): Loads a split of an embedded set.
    """

    splits: dict[str, str]
    native_splits: dict[str, tuple[str, ...]]
    geometry: str | None = "256-224"
    num_classes: int | None = None
    hub_id: str | None = None
    config: str | None = None
    image_column: str | None = "image"
    label_column: str | None = "label"
    clean_name: Callable[[str], str] = _spaces
    template: str | list[str] = DEFAULT_TEMPLATE
    mean_per_class: bool = False
    class_names: tuple[str, ...] | dict[str, str] | None = None
    num_rows: int | None = None
    gated: bool = False
    licence: str = "unknown"
    deviation: str = ""
    load: Callable | None = None

    def transform(self, split: str, protocol: str) -> ImageTransform | None:
        """How images of a split come to a model; `None` for what its own processor does."""
        geometry = "native" if split in self.native_splits[protocol] else self.geometry
        return None if geometry is None else GEOMETRIES[geometry]


BENCHMARKS = {
    "digits": BenchmarkRecord(
        num_classes=10,
        splits={"train": "train", "validation": "validation", "test": "test"},
        native_splits={"hpt": EVERY_SPLIT, "pmg": EVERY_SPLIT},
        load=_load_digits,
    ),
    "tiny_imagenet": BenchmarkRecord(
        hub_id="zh-plus/tiny-imagenet",
        num_rows=10000,
        num_classes=200,
        splits={"train": "train", "test": "valid"},
        native_splits={"hpt": ("test",), "pmg": ()},
        clean_name=_tiny_imagenet_name,
        licence="ImageNet's terms of access",
        deviation="Class names come from the original ids: 18 of the Hub copy's stand for another synset.",
    ),
    "cifar10": BenchmarkRecord(
        hub_id="uoft-cs/cifar10",
        config="plain_text",
        image_column="img",
        num_rows=10000,
        num_classes=10,
        splits={"train": "train", "test": "test"},
        native_splits={"hpt": EVERY_SPLIT, "pmg": EVERY_SPLIT},
    ),
    "cifar100": BenchmarkRecord(
        hub_id="uoft-cs/cifar100",
        config="cifar100",
        image_column="img",
        label_column="fine_label",
        clean_name=_cifar100_name,
        num_rows=10000,
        num_classes=100,
        splits={"train": "train", "test": "test"},
        native_splits={"hpt": EVERY_SPLIT, "pmg": EVERY_SPLIT},
        deviation="The Hub copy's name cra is read as crab.",
    ),
    "stl10": BenchmarkRecord(
        hub_id="tanganke/stl10",
        num_classes=10,
        num_rows=8000,
        splits={"train": "train", "test": "test"},
        native_splits={"hpt": EVERY_SPLIT, "pmg": EVERY_SPLIT},
    ),
    "imagenet": BenchmarkRecord(
        hub_id="ILSVRC/imagenet-1k",
        num_classes=1000,
        num_rows=50000,
        splits={"train": "train", "test": "validation"},
        native_splits=AT_224,
        clean_name=_imagenet_name,
        gated=True,
        licence="ImageNet's terms of access",
        deviation="Class names are the synsets' first synonyms, two of them crane, not the list of CLIP's authors.",
    ),
    "caltech101": BenchmarkRecord(
        hub_id="flwrlabs/caltech101",
        num_classes=101,
        num_rows=8677,
        splits={"test": "train"},
        native_splits=AT_224,
        mean_per_class=True,
        licence="CC BY 4.0 by its authors' page",
        deviation="Class names are lower-cased, and their order is the dataset's own.",
    ),
    "caltech256": BenchmarkRecord(
        hub_id="ilee0022/Caltech-256",
        num_classes=257,
        num_rows=30607,
        splits={"test": "train+validation+test"},
        native_splits=AT_224,
        clean_name=_caltech256_name,
        deviation="With the clutter class, as TeCoA and PMG-AFT have it.",
    ),
    "sun397": BenchmarkRecord(
        hub_id="dpdl-benchmark/sun397",
        num_classes=397,
        num_rows=108753,
        splits={"test": "train+validation+test"},
        native_splits=AT_224,
        clean_name=_sun397_name,
        deviation="One image fewer than the 108,754 of TeCoA and PMG-AFT.",
    ),
    "oxford_pets": BenchmarkRecord(
        hub_id="timm/oxford-iiit-pet",
        num_classes=37,
        num_rows=3669,
        splits={"train": "train", "test": "test"},
        native_splits=AT_224,
        mean_per_class=True,
        licence="CC BY-SA 4.0",
    ),
    "flowers102": BenchmarkRecord(
        hub_id="dpdl-benchmark/oxford_flowers102",
        num_classes=102,
        num_rows=6149,
        splits={"train": "train", "validation": "validation", "test": "test"},
        native_splits=AT_224,
        mean_per_class=True,
    ),
    "fgvc_aircraft": BenchmarkRecord(
        hub_id="mteb/FGVCAircraftZeroShot",
        label_column="variant",
        num_classes=100,
        num_rows=3333,
        splits={"test": "test"},
        native_splits=AT_224,
        clean_name=_aircraft_name,
        mean_per_class=True,
    ),
    "stanford_cars": BenchmarkRecord(
        hub_id="tanganke/stanford_cars",
        num_classes=196,
        num_rows=8041,
        splits={"train": "train", "test": "test"},
        native_splits=AT_224,
        clean_name=_without_year,
        deviation="Without the year, as PMG-AFT has it, two names may be the same.",
    ),
    "food101": BenchmarkRecord(
        hub_id="ethz/food101",
        num_classes=101,
        num_rows=25250,
        splits={"train": "train", "test": "validation"},
        native_splits=AT_224,
    ),
    "eurosat": BenchmarkRecord(
        hub_id="timm/eurosat-rgb",
        num_classes=10,
        num_rows=27000,
        splits={"test": "train+validation+test"},
        native_splits=AT_224,
        clean_name=_camel_case_name,
        licence="MIT",
        deviation="PMG-AFT's prompts write the names in one word, as in annualcrop.",
    ),
    "dtd": BenchmarkRecord(
        hub_id="tanganke/dtd",
        num_classes=47,
        num_rows=1880,
        splits={"train": "train", "test": "test"},
        native_splits=AT_224,
    ),
    "pcam": BenchmarkRecord(
        hub_id="1aurent/PatchCamelyon",
        num_classes=2,
        num_rows=32768,
        splits={"train": "train", "validation": "valid", "test": "test"},
        native_splits=AT_224,
        class_names=("lymph node", "lymph node containing metastatic tumor tissue"),
        licence="CC0 1.0",
        deviation="TeCoA's prompts are fixed sentences; these are the names of CLIP's list.",
    ),
}

# TinyImageNet and the 15 zero-shot sets of the papers: what `all` stands for
SIXTEEN = (
    "tiny_imagenet cifar10 cifar100 stl10 imagenet caltech101 caltech256 sun397 oxford_pets flowers102 fgvc_aircraft "
    "stanford_cars food101 eurosat dtd pcam"
).split()
