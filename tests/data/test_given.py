from collections import namedtuple
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, Value
from helpers import CLASSES, make_benchmark, make_dataset
from PIL import ExifTags, Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from hpt import InputError
from hpt.data.geometry import ImageTransform
from hpt.data.given import as_benchmarks, as_dataset, own_class_names


PLAIN = make_dataset(12)
PIXELS = [np.array(image) for image in PLAIN["image"]]
LABELS = PLAIN["label"][:]
ENCODED = PLAIN.cast_column("image", datasets.Image(decode=False))


class Pairs:
    """As torchvision's sets are, which aren't all torch's: images that a function makes of pixels, and class names."""

    def __init__(self, make=lambda pixels: pixels, labels=LABELS, classes=CLASSES):
        self.make, self.labels, self.classes = make, labels, classes

    def __len__(self):
        return len(self.labels)

    def __reduce__(self):
        raise NotImplementedError("a set of any size isn't pickled, which `datasets` would do to hash it")

    def __getitem__(self, row):
        return self.make(PIXELS[row]), self.labels[row]


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


def table(images, feature=None):
    dataset = Dataset.from_dict({"image": images}, features=feature and Features({"image": feature}))
    return dataset.add_column("label", LABELS, feature=PLAIN.features["label"])


def labelled(labels, dtype):
    return PLAIN.remove_columns("label").add_column("label", labels, feature=Value(dtype))


def save(folder):
    for row, image in enumerate(PLAIN["image"]):
        image.save(folder / f"{row}.png")
    return [str(folder / f"{row}.png") for row in range(12)]


TAKEN = {
    "torch format": lambda folder: PLAIN.with_format("torch"),
    "numpy format": lambda folder: PLAIN.with_format("numpy", columns=["image"]),
    "arrow format": lambda folder: PLAIN.with_format("arrow"),
    "other columns": lambda folder: PLAIN.add_column("id", list(range(12))),
    "not decoded": lambda folder: ENCODED,
    "paths": lambda folder: table(save(folder)),
    "bytes": lambda folder: table([image["bytes"] for image in ENCODED["image"]]),
    "files": lambda folder: table(ENCODED["image"][:], {"bytes": Value("binary"), "path": Value("string")}),
    "lists of arrays": lambda folder: table(PIXELS),
    "arrays": lambda folder: table(PIXELS, Array3D((16, 16, 3), "uint8")),
    "arrays in torch format": lambda folder: table(PIXELS, Array3D((16, 16, 3), "uint8")).with_format("torch"),
    "text labels": lambda folder: labelled([CLASSES[label] for label in LABELS], "string"),
    "int32 labels": lambda folder: labelled(LABELS, "int32"),
    "uint8 labels": lambda folder: labelled(LABELS, "uint8"),
    "PIL pairs": lambda folder: Pairs(Image.fromarray),
    "array pairs": lambda folder: Pairs(),
    "tensor pairs": lambda folder: Pairs(tensor),
    "float tensor pairs": lambda folder: Pairs(lambda pixels: tensor(pixels) / 255),
    "half tensor pairs": lambda folder: Pairs(lambda pixels: tensor(pixels).half() / 255),
    "numpy labels": lambda folder: Pairs(labels=np.array(LABELS, np.int32)),
    "tensor labels": lambda folder: Pairs(labels=torch.tensor(LABELS)),
    "classes with synonyms": lambda folder: Pairs(classes=[(name, "synonym") for name in CLASSES]),
    "list": lambda folder: list(zip(PLAIN["image"], LABELS, strict=True)),
    "named tuples": lambda folder: list(map(namedtuple("Row", "image label"), PIXELS, LABELS)),
    "TensorDataset": lambda folder: TensorDataset(torch.stack(list(map(tensor, PIXELS))), torch.tensor(LABELS)),
    "Subset of pairs": lambda folder: Subset(Pairs(), range(12)),
    "Subset of a table": lambda folder: Subset(PLAIN, range(12)),
    "joined pairs": lambda folder: ConcatDataset([Subset(Pairs(), range(5)), Subset(Pairs(), range(5, 12))]),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_means_the_same_images_is_taken(kind, tmp_path):
    given = TAKEN[kind](tmp_path)
    dataset = as_dataset(given, "the set", CLASSES)
    assert dataset.column_names == ["image", "label"] and dataset["label"][:] == LABELS
    assert [np.array(image).tobytes() for image in dataset["image"]] == [pixels.tobytes() for pixels in PIXELS]
    names = own_class_names(given, "the set")
    assert names == (
        None if kind in ("int32 labels", "uint8 labels", "list", "named tuples", "TensorDataset") else CLASSES
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (datasets.DatasetDict(train=PLAIN, test=PLAIN), "is a DatasetDict: give one of its splits, train, test"),
        (
            ConcatDataset([Pairs(), Pairs(classes=CLASSES[::-1])]),
            "The parts of the set have different classes, or another order of them",
        ),
        (PLAIN.with_transform(lambda rows: rows), r"has a transform, .* give it without, by with_format\(None\)"),
        (
            "digits",
            "is of type str, but must be a benchmark from load_benchmark, a datasets.Dataset, or a set of pairs",
        ),
        ({"image": PIXELS, "label": LABELS}, "is of type dict, but must be"),
        (None, "is of type NoneType, but must be"),
        (torch.utils.data.DataLoader(Pairs()), "is of type DataLoader, but must be"),
        ([], "has no rows"),
        (table(list(range(12))), r"The column 'image' of the set holds Value\('int64'\), but must hold images"),
        (
            table([[[[0.5] * 3]]] * 11 + [[[[1.5] * 3]]]),
            "row 11 of the set .* pixels go from 1.5 to 1.5, but must be uint8",
        ),
        (table([[[[1] * 3]]] * 12), "row 0 of the set .* pixels are int64, but must be uint8, or floats in"),
        (
            labelled([label == 1 for label in LABELS], "bool"),
            "labels of the set are true or false, but there are 3 class",
        ),
        (labelled(["cat"] * 11 + [None], "string"), "Row 11 of the set has no label"),
        (
            Pairs(lambda pixels: tensor(pixels) / 127.5 - 1),
            r"row 0 of the set .* pixels go from -1 to 1, but .* normalised",
        ),
        (
            Pairs(lambda pixels: tensor(pixels).float()),
            r"pixels go from 0 to 255, but must be uint8, or floats in \[0, 1\]",
        ),
        (Pairs(lambda pixels: tensor(pixels) * np.nan), "pixels go from nan to nan"),
        (Pairs(lambda pixels: tensor(pixels).int()), "pixels are int32, but must be uint8"),
        (Pairs(torch.from_numpy), r"its shape is \(16, 16, 3\), but must be \(3, height, width\)"),
        (
            Pairs(lambda pixels: pixels.transpose(2, 0, 1)),
            r"its shape is \(3, 16, 16\), but must be \(height, width, 3\)",
        ),
        (Pairs(lambda pixels: pixels.tolist()), "it is of type list, but must be a PIL image, an array or a tensor"),
        (Pairs(lambda pixels: Image.new("I;16", (8, 8))), "its mode 'I;16' has more than 8 bits a channel"),
        (Pairs(lambda pixels: np.random.default_rng().permutation(pixels)), "Row 0 of the set is another each time"),
        (PIXELS, "the row is of type ndarray, but must be a pair"),
        (
            Pairs(labels=np.eye(3, dtype=int)[LABELS]),
            "Row 0 of the set has a label of type ndarray, but must have an integer",
        ),
        (Pairs(labels=[*LABELS[:-1], None]), "Row 11 of the set has a label of type NoneType"),
        (Pairs(labels=[0.5] * 12), "Row 0 of the set has a label of type float"),
        (Pairs(labels=[*LABELS[:-1], 3]), "Row 11 of the set has label 3, but labels go from 0 to 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(given, reason):
    with pytest.raises(InputError, match=reason) as refused:
        as_dataset(given, "the set", CLASSES)
    assert "the set" in str(refused.value) and "\n" not in str(refused.value)


def test_booleans_number_two_classes():
    labels = [label == 1 for label in LABELS]
    assert as_dataset(labelled(labels, "bool"), "the set", ["other", "dog"])["label"][:] == [
        int(label) for label in labels
    ]


def test_two_classes_may_have_one_name_as_two_of_imagenet_have():
    cranes = Pairs(classes=[("crane", "bird"), ("crane", "machine"), ("heron",)])
    assert own_class_names(cranes, "the set") == ["crane", "crane", "heron"]
    assert as_dataset(cranes, "the set", CLASSES)["label"][:] == LABELS


def test_images_of_pairs_are_taken_as_they_are_and_those_of_files_upright():
    wide = Image.new("RGB", (24, 16))
    wide.getexif()[ExifTags.Base.Orientation] = 6
    assert as_dataset([(wide, 0)], "the set", CLASSES)[0]["image"].size == (24, 16)


def test_the_mode_that_a_table_asks_for_is_kept():
    grey = ENCODED.cast_column("image", datasets.Image(mode="L", decode=False))
    assert as_dataset(grey, "the set", CLASSES)[0]["image"].mode == "L"
    (benchmark,) = as_benchmarks(grey)
    red, green, blue = replace(benchmark, transform=ImageTransform())[0]["pixel_values"]
    assert torch.equal(red, green) and torch.equal(green, blue)


def test_an_evaluator_takes_names_benchmarks_and_datasets_alone_in_lists_and_dicts():
    benchmark = make_benchmark()

    def taken(given):
        return [(each.name, each.split, len(each), each.class_names[0]) for each in as_benchmarks(given)]

    digits, random, dataset = (
        ("digits", "test", 360, "zero"),
        ("random", "test", 10, "cat"),
        ("dataset", "given", 12, "cat"),
    )
    assert taken("digits") == [digits]
    assert taken(["digits", benchmark, PLAIN]) == [digits, random, dataset]
    assert taken({"mine": PLAIN, "a": benchmark, "b": "digits"}) == [
        ("mine", *dataset[1:]),
        ("a", *random[1:]),
        ("b", *digits[1:]),
    ]
    assert taken(Subset(benchmark, [7, 3])) == [("random", "test", 2, "cat")]
    (part,) = as_benchmarks(Subset(benchmark, [7, 3]))
    assert part.ids().tolist() == [7, 3] and as_benchmarks(benchmark) == [benchmark]
    (plain,) = as_benchmarks(Pairs())
    assert plain.transform is None and replace(plain, transform=ImageTransform())[0]["pixel_values"].shape == (
        3,
        16,
        16,
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (datasets.DatasetDict(train=PLAIN, test=PLAIN), "is a DatasetDict: give one of its splits, train, test"),
        ({"mine": PLAIN.to_iterable_dataset()}, "mine is a stream: give a part of it"),
        ({"mine": list(zip(PIXELS, LABELS, strict=True))}, "mine has no class names: give a dataset whose labels are"),
        (
            {"mine": PLAIN.cast_column("label", ClassLabel(names=CLASSES)).rename_column("image", "img")},
            "mine has columns",
        ),
        ([3], "dataset is of type int, but must be a benchmark"),
        ("digit", "Unknown benchmark 'digit'"),
    ],
)
def test_an_evaluator_refuses_what_it_cannot_take(given, reason):
    with pytest.raises(InputError, match=reason):
        as_benchmarks(given)
