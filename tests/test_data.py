import io

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES, make_dataset
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from torch.utils.data import DataLoader

from hpt import BENCHMARKS, InputError, load_benchmark
from hpt.benchmarks import Benchmark
from hpt.data import ImageTransform, check_images, check_labels, collate, stratified_split, to_unit_range
from hpt.records import TINY_IMAGENET_WNIDS


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def hub_layout(folder, name, labels, class_names, splits, size=16):
    """A local copy in the Hub's layout: parquet shards named by split, with the record's columns."""
    record = BENCHMARKS[name]
    features = Features(
        {
            record.image_column: datasets.Image(),
            record.label_column: ClassLabel(names=class_names),
            "extra": Value("string"),
        }
    )
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    columns = {record.image_column: list(pixels), record.label_column: labels, "extra": ["x"] * len(labels)}
    for split in splits:
        (folder / "data").mkdir(exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def cache_in_tmp(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_digits_are_split_by_class_without_overlap():
    splits = {name: load_benchmark("digits", name) for name in ("train", "validation", "test")}
    assert [len(one) for one in splits.values()] == [1077, 360, 360]
    assert sum(len(one) for one in splits.values()) == 1797
    for one in splits.values():
        counts = np.bincount(one.dataset["label"])
        assert counts.max() - counts.min() <= 0.1 * len(one) / 10 + 2
    images = [image.tobytes() for one in splits.values() for image in one.dataset["image"]]
    assert len(set(images)) >= 1790  # a few digits are identical
    assert splits["test"].dataset["label"][:] == load_benchmark("digits").dataset["label"][:]
    assert splits["test"].class_names[7] == "seven"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_reads_a_local_copy_in_the_hubs_layout(tmp_path, name):
    record = BENCHMARKS[name]
    if name == "tiny_imagenet":
        names = [*TINY_IMAGENET_WNIDS, *_right_wnids()][: record.num_classes]
    else:
        names = ["airplane", "cra", "maple_tree", *(f"class_{i}" for i in range(record.num_classes - 3))]
    folder = hub_layout(tmp_path, name, [0, 1, 2, 2], names, record.splits.values())
    for split in ("train", "test"):
        benchmark = load_benchmark(name, split, path=folder)
        assert benchmark.dataset.column_names == ["image", "label"]
        assert len(benchmark.class_names) == record.num_classes
        example = benchmark[3]
        assert (example["labels"], example["sample_ids"]) == (2, 3)
        assert example["pixel_values"].dtype == torch.uint8
    if name == "cifar100":
        assert benchmark.class_names[1:3] == ["crab", "maple tree"]
    assert load_benchmark(f"{name}={folder}").class_names == benchmark.class_names
    pmg = load_benchmark(name, path=folder, protocol="pmg")
    train_size = load_benchmark(name, "train", path=folder)[0]["pixel_values"].shape
    expected = (3, 224, 224) if name == "tiny_imagenet" else (3, 16, 16)
    assert train_size == expected and benchmark[0]["pixel_values"].shape == (3, 16, 16)
    assert pmg[0]["pixel_values"].shape == expected
    assert pmg.attack_space == ("224" if name == "tiny_imagenet" else "native")


SIXTEEN = "tiny_imagenet cifar10 cifar100 stl10 imagenet caltech101 caltech256 sun397 oxford_pets flowers102 "
SIXTEEN += "fgvc_aircraft stanford_cars food101 eurosat dtd pcam"


def test_there_are_the_sixteen_benchmarks_and_the_embedded_one():
    assert set(BENCHMARKS) == {"digits", *SIXTEEN.split()}
    for record in BENCHMARKS.values():
        assert "test" in record.splits and set(record.native_splits) == {"hpt", "pmg"}


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name not in ("digits", "tiny_imagenet")])
def test_every_record_reads_its_layout(tmp_path, name):
    """Tiny parquet in the Hub's layout; a protocol that takes several splits gets all of their rows."""
    record = BENCHMARKS[name]
    names = [f"class {i}" for i in range(record.num_classes)]
    hub_splits = sorted({one for joined in record.splits.values() for one in joined.split("+")})
    folder = hub_layout(tmp_path, name, [0, 1, 1], names, hub_splits)
    benchmark = load_benchmark(name, path=folder)
    assert len(benchmark) == 3 * len(record.splits["test"].split("+"))
    assert benchmark.dataset["label"][:3] == [0, 1, 1] and len(benchmark.class_names) == record.num_classes
    native = name in ("cifar10", "cifar100", "stl10")
    assert benchmark.attack_space == ("native" if native else "224")
    assert load_benchmark(name, path=folder, protocol="pmg").attack_space == benchmark.attack_space
    assert benchmark.mean_per_class == (name in ("caltech101", "oxford_pets", "flowers102", "fgvc_aircraft"))


def test_pcam_has_bool_labels_and_takes_its_names_from_the_record(tmp_path):
    (tmp_path / "data").mkdir()
    features = Features({"image": datasets.Image(), "label": Value("bool")})
    pixels = list(np.zeros((2, 16, 16, 3), dtype=np.uint8))
    dataset = Dataset.from_dict({"image": pixels, "label": [True, False]}, features=features)
    dataset.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    benchmark = load_benchmark(f"pcam={tmp_path}")
    assert benchmark.dataset["label"][:] == [1, 0]
    assert benchmark.class_names == ["lymph node", "lymph node containing metastatic tumor tissue"]


@pytest.mark.parametrize(
    ("name", "given", "cleaned"),
    [
        ("cifar100", "cra", "crab"),
        ("cifar100", "maple_tree", "maple tree"),
        ("imagenet", "tench, Tinca tinca", "tench"),
        ("caltech256", "001.ak47", "ak47"),
        ("caltech256", "253.faces-easy-101", "faces easy"),
        ("sun397", "/b/boat_deck", "boat deck"),
        ("sun397", "/c/church/outdoor", "church outdoor"),
        ("oxford_pets", "american_bulldog", "american bulldog"),
        ("fgvc_aircraft", "707-320", "Boeing 707-320"),
        ("fgvc_aircraft", "A300B4", "A300B4"),
        ("stanford_cars", "AM General Hummer SUV 2000", "AM General Hummer SUV"),
        ("food101", "apple_pie", "apple pie"),
        ("eurosat", "AnnualCrop", "annual crop"),
        ("eurosat", "SeaLake", "sea lake"),
        ("dtd", "polka-dotted", "polka-dotted"),
    ],
)
def test_names_are_cleaned_by_rule(name, given, cleaned):
    assert BENCHMARKS[name].clean_name(given) == cleaned


def _right_wnids():
    import json
    from pathlib import Path

    import hpt

    names = json.loads((Path(hpt.__file__).parent / "class_names" / "tiny_imagenet.json").read_text())
    return [wnid for wnid in names if wnid not in TINY_IMAGENET_WNIDS.values()]


def test_tiny_imagenet_wnids_are_mended(tmp_path):
    """The Hub's 18 wrong ids stand for known classes: its n13001041 (a mushroom's synset) is the mushroom food."""
    names = [*TINY_IMAGENET_WNIDS, *_right_wnids()]
    assert len(names) == len(set(names)) == 200
    folder = hub_layout(tmp_path, "tiny_imagenet", [0], names, ["valid"])
    class_names = load_benchmark("tiny_imagenet", path=folder).class_names
    assert len(set(class_names)) == 200
    assert class_names[names.index("n13001041")] == "mushroom"
    assert class_names[names.index("n08742578")] == "Chihuahua"


def test_splits_and_subsets_are_stratified_and_reproducible():
    train = load_benchmark("digits", "train")
    rest, held_out = train.hold_out(200)
    assert (len(rest), len(held_out), held_out.split) == (877, 200, "validation")
    assert np.ptp(np.bincount(held_out.dataset["label"])) <= 2
    assert held_out.dataset["label"][:] == train.hold_out(200)[1].dataset["label"][:]
    assert len(train.subset(50)) == 50 and train.subset(None) is train and train.subset(5000) is train
    first, second = (train.subset(50, seed).dataset["image"][0].tobytes() for seed in (0, 1))
    assert first != second
    nearly_all = train.subset(1075)  # what is left can't have every class
    assert (
        len(set(nearly_all.ids().tolist())) == 1075 and nearly_all.ids().tolist() == train.subset(1075).ids().tolist()
    )
    row = 3  # of a subset of a subset, ids are still numbers in the whole split
    twice = nearly_all.subset(50)
    assert twice.dataset[row]["image"].tobytes() == train.dataset[int(twice.ids()[row])]["image"].tobytes()
    with pytest.raises(InputError, match="Can't take 2000 of 1077 rows"):
        stratified_split(train.dataset, 2000)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
def test_converts_what_can_be_converted(mode):
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
    pixels = ImageTransform()(image)
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.uint8
    assert torch.equal(pixels, ImageTransform()(image.convert("RGB")))


def test_resizes_the_shorter_side_and_crops_the_centre():
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (15, 0, 25, 20))  # a white stripe in the middle
    pixels = ImageTransform(resize=10, crop=6)(image)
    assert pixels.shape == (3, 6, 6)
    assert pixels[:, :, 1:5].float().mean() > 200
    assert ImageTransform(resize=10)(image).shape == (3, 10, 20)
    assert ImageTransform(resize=7)(Image.new("RGB", (9, 8))).shape == (3, 7, 8)


def broken_benchmark(content):
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=CLASSES)})
    rows = {"image": [encoded(Image.new("RGB", (8, 8))), content], "label": [0, 1]}
    table = Dataset.from_dict(
        {"image": [{"bytes": one, "path": None} for one in rows["image"]], "label": rows["label"]}, features=features
    )
    return Benchmark("odd", "test", table, CLASSES, None, ImageTransform())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an image", "cannot identify image file"),
        (encoded(Image.new("I;16", (8, 8))), "its mode 'I;16' has more than 8 bits"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "its mode 'F' has more than 8 bits"),
    ],
)
def test_unusable_image_is_named_by_dataset_and_row(content, reason):
    benchmark = broken_benchmark(content)
    with pytest.raises(InputError, match=rf"The image in row 1 of odd \(test\) can't be used: {reason}"):
        benchmark[1]
    with pytest.raises(InputError, match=f"The image in row 1 of the set can't be used: {reason}"):
        check_images(benchmark.dataset, "the set")


def test_truncated_image_is_named_when_it_is_decoded():
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    benchmark = broken_benchmark(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"The image in row 1 of odd \(test\) can't be used: image file is truncated"):
        benchmark[1]


def test_batches_travel_as_uint8_from_workers():
    benchmark = Benchmark("random", "test", make_dataset(6), CLASSES, None, ImageTransform())
    (batch,) = DataLoader(benchmark, 6, collate_fn=collate, num_workers=2)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["sample_ids"].tolist() == list(range(6)) and batch["labels"].tolist() == [0, 1, 2] * 2
    images = to_unit_range(batch["pixel_values"])
    assert images.dtype == torch.float32 and 0 <= images.min() and images.max() <= 1
    assert torch.equal((images * 255).round().byte(), batch["pixel_values"])


def test_missing_image_and_odd_labels_are_named():
    features = Features({"image": datasets.Image(), "label": Value("string")})
    table = Dataset.from_dict({"image": [None], "label": ["cat"]}, features=features)
    with pytest.raises(InputError, match="Row 0 of set has no image"):
        check_images(table, "set")
    with pytest.raises(InputError, match="labels of set are .*, but must be integers"):
        check_labels(table, CLASSES, "set")


def test_images_of_different_sizes_cannot_share_a_batch():
    rows = [{"pixel_values": torch.zeros(3, side, 8), "labels": 0, "sample_ids": 0} for side in (8, 9)]
    with pytest.raises(InputError, match=r"different sizes \[\(8, 8\), \(9, 8\)\]"):
        collate(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.rename_column("image", "img"), r"set has columns \['img', 'label'\], but needs \['image'\]"),
        (lambda d: d.select([]), "set has no rows"),
        (
            lambda d: d.cast_column("label", Value("int64")).map(lambda row: {"label": row["label"] - 1}),
            r"Row 0 of set has label -1.*unlabelled",
        ),
        (
            lambda d: d.cast_column("label", ClassLabel(names=[*CLASSES, "x"])),
            "set has 4 classes, but there are 3 class names",
        ),
    ],
)
def test_odd_datasets_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        check_labels(change(make_dataset(6)), CLASSES, "set")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imagenet-v9",), "Unknown benchmark 'imagenet-v9'; known: digits, tiny_imagenet, cifar10, cifar100"),
        (("digits", "dev"), "digits has no split 'dev'; known: train, validation, test"),
        (("digits", "test", None, "mine"), "Unknown protocol 'mine'; known: hpt, pmg"),
        (("digits=somewhere",), "digits is embedded in its library"),
        (("cifar10=no/such/folder",), "no folder 'no/such/folder' to read uoft-cs/cifar10 from"),
    ],
)
def test_unknown_names_list_the_known(arguments, message):
    with pytest.raises(InputError, match=message):
        load_benchmark(*arguments)


def test_upstream_changes_are_refused(tmp_path):
    names = [f"class_{i}" for i in range(11)]
    folder = hub_layout(tmp_path, "cifar10", [0], names, ["test"])
    with pytest.raises(InputError, match="has 11 classes, but cifar10 has 10"):
        load_benchmark("cifar10", path=folder)
    with pytest.raises(
        InputError, match=r"has columns \['img', 'label', 'extra'\], but its record expects \['fine_label'\]"
    ):
        load_benchmark("cifar100", path=folder)
    with pytest.raises(InputError, match="Can't load the dataset"):
        load_benchmark("cifar10", "train", path=folder)
