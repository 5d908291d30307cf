import io

import datasets
import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Value
from helpers import CLASSES, make_benchmark, make_dataset
from PIL import ExifTags, Image, ImageFile
from torch.utils.data import DataLoader

from hpt import InputError, load_benchmark
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform, geometry_of
from hpt.data.images import (
    check_images,
    check_labels,
    collate,
    decode_image,
    read_size,
    stratified_rows,
    stratified_split,
    to_unit_range,
)


def encoded(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned(image, orientation, kind="JPEG", damaged=False):
    """An encoded image that is shown turned; with damage, the maker's name stands in a field for a number."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = orientation, "maker"
    content = exif.tobytes()
    return encoded(image, kind, exif=content.replace(b"\x01\x0f\x00\x02", b"\x01\x42\x00\x02") if damaged else content)


def test_digits_are_split_by_class_without_overlap():
    splits = {name: load_benchmark("digits", name) for name in ("train", "validation", "test")}
    assert [len(split) for split in splits.values()] == [1077, 360, 360]
    assert sum(len(split) for split in splits.values()) == 1797
    for split in splits.values():
        counts = np.bincount(split.dataset["label"])
        assert counts.max() - counts.min() <= 0.1 * len(split) / 10 + 2
    images = [image.tobytes() for split in splits.values() for image in split.dataset["image"]]
    assert len(set(images)) >= 1790  # a few digits are identical
    assert splits["test"].dataset["label"][:] == load_benchmark("digits").dataset["label"][:]
    assert splits["test"].class_names[7] == "seven"


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
    with pytest.raises(InputError, match="Can't take 2000 of 1077 rows: give a number from 1 to 1076"):
        stratified_split(train.dataset, 2000)


def make_labelled(labels):
    features = Features({"image": datasets.Image(), "label": Value("int64")})
    return Dataset.from_dict({"image": [None] * len(labels), "label": labels}, features=features)


@pytest.mark.parametrize(
    ("labels", "rows", "taken", "said"),
    [
        (
            [0] * 8 + [1] * 8 + [2],
            4,
            [2, 2, 0],
            "4 of 17 rows .* 3 classes; classes without an image among them: 1, among the rest: 0",
        ),
        ([0] * 8 + [1] * 8 + [2], 13, [6, 6, 1], "13 of 17 rows .* 3 classes; .* among them: 0, among the rest: 1"),
        (
            [0] * 40 + [1] * 20 + [2] * 3 + [3],
            32,
            [20, 10, 2, 0],
            "the set: 32 of 64 rows .* 4 classes; .* among them: 1",
        ),
        (list(range(100)) * 5, 30, [1] * 30, "30 of 500 rows .* 100 classes; .* among them: 70"),
    ],
)
def test_choices_are_stratified_as_far_as_it_goes_and_say_so(labels, rows, taken, said):
    table = make_labelled(labels)
    with pytest.warns(UserWarning, match=said):
        chosen, rest = stratified_rows(table, rows, seed=3, name="the set")
    assert sorted([*chosen, *rest]) == list(range(len(labels))) and len(chosen) == rows
    counts = np.bincount(np.array(labels)[chosen], minlength=len(taken))
    assert (counts[counts > 0] if len(taken) == rows else counts).tolist() == taken
    with pytest.warns(UserWarning):
        again, other = (stratified_rows(table, rows, seed)[0].tolist() for seed in (3, 4))
    assert chosen.tolist() == again != other


def test_fewer_samples_than_classes_are_of_different_classes():
    benchmark = make_benchmark(60)
    with pytest.warns(UserWarning, match="random: 2 of 60 rows can't have their share of each of 3 classes"):
        few = benchmark.subset(2)
    with pytest.warns(UserWarning, match="an image among them: 0, among the rest: 1"):
        rest, held_out = benchmark.hold_out(58)
    assert len(set(few.dataset["label"])) == 2 == len(rest) and held_out.split == "validation"


def test_choices_that_were_always_stratified_stay_the_same():
    """Rows of digits that results were measured on."""
    digits = load_benchmark("digits")
    assert digits.subset(12).ids().tolist() == [12, 34, 54, 67, 74, 75, 123, 135, 146, 237, 310, 336]
    assert digits.hold_out(10)[1].ids().tolist() == [12, 34, 67, 74, 75, 123, 146, 237, 310, 336]


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


def square(side):
    return {"height": side, "width": side}


# Processor, its settings, and the geometry as text
PROCESSORS = {
    "CLIP": ("CLIP", {"size": {"shortest_edge": 24}, "crop_size": square(24)}, "24-24"),
    "CLIP, larger before its crop": ("CLIP", {"size": {"shortest_edge": 30}, "crop_size": square(25)}, "30-25"),
    "CLIP, which only crops": ("CLIP", {"do_resize": False, "crop_size": square(24)}, "native-24"),
    "SigLIP": ("Siglip", {"size": square(24)}, "24x24"),
    "BLIP": ("Blip", {"size": square(24)}, "24x24"),
    "ConvNeXt": ("ConvNext", {"size": {"shortest_edge": 24}}, "27-24"),
    "ConvNeXt, of 95 %": ("ConvNext", {"size": {"shortest_edge": 24}, "crop_pct": 0.95}, "25-24"),
    "ConvNeXt, of 384 pixels": ("ConvNext", {"size": {"shortest_edge": 384}}, "384x384"),
    "ALIGN": ("EfficientNet", {"size": square(29), "do_center_crop": True, "crop_size": square(24)}, "29x29-24"),
}


@pytest.mark.parametrize("size", [(24, 24), (40, 31), (31, 40), (25, 23), (7, 97), (24, 61)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_the_models_own_processor(name, size):
    kind, settings, text = PROCESSORS[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings, do_rescale=False, do_normalize=False)
    processor.resample = Image.BICUBIC
    if kind == "EfficientNet":
        processor.include_top = False
    transform = geometry_of(processor)
    assert str(transform) == transform.attack_space == text
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    pixels = transform(image)
    assert (
        torch.equal(pixels, expected.to(torch.uint8)) and pixels.shape[1:] == transform.output_size(*image.size)[::-1]
    )
    if size == (24, 24) and text in ("24-24", "24x24", "native-24"):
        assert torch.equal(pixels, ImageTransform()(image))


def test_the_papers_geometry_keeps_its_pixels_and_its_text():
    """Rows and checkpoints of earlier versions have these texts."""
    assert [str(ImageTransform()), str(ImageTransform(256, 224))] == ["native", "256-224"]
    assert [ImageTransform().attack_space, ImageTransform(256, 224).attack_space] == ["native", "224"]
    assert repr(ImageTransform(256, 224)) == "ImageTransform(resize=256, crop=224)"
    assert ImageTransform(10, 8).resized_size(31, 20) == (16, 10)  # 15.5 rounds to an even number
    assert ImageTransform(10, 8).output_size(31, 20) == (8, 8)


def make_table(files):
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=CLASSES)})
    images = [{"bytes": file, "path": None} for file in files]
    return Dataset.from_dict({"image": images, "label": range(len(files))}, features=features)


def broken_benchmark(content):
    table = make_table([encoded(Image.new("RGB", (8, 8))), content])
    return Benchmark("odd", "test", table, CLASSES, None, ImageTransform())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an image", r"cannot identify image file\.$"),
        (encoded(Image.new("I;16", (8, 8))), "its mode 'I;16' has more than 8 bits"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "its mode 'F' has more than 8 bits"),
        (b"P6\n8 x\n255\n" + bytes(192), "ValueError: invalid literal"),
        (turned(Image.new("RGB", (8, 8)), 6, damaged=True), "error: required argument is not an integer"),
    ],
)
def test_unusable_image_is_named_by_dataset_and_row(content, reason):
    benchmark = broken_benchmark(content)
    with pytest.raises(InputError, match=rf"The image in row 1 of odd \(test\) can't be used: {reason}"):
        benchmark[1]
    with pytest.raises(InputError, match=f"The image in row 1 of the set can't be used: {reason}"):
        check_images(benchmark.dataset, "the set")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_of_the_upright_image_and_read_from_the_header(kind, orientation, monkeypatch):
    wide = Image.new("RGB", (24, 16))
    file = {"bytes": turned(wide, orientation, kind), "path": None}
    expected = (24, 16) if orientation < 5 else (16, 24)
    assert decode_image(file, "a row").size == expected
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("the image is decoded"))
    assert read_size(file, "a row") == expected


def test_rotated_photos_are_found_before_a_batch_at_native_resolution():
    wide, tall = Image.new("RGB", (24, 16)), Image.new("RGB", (16, 24))
    check_images(make_table([encoded(wide), turned(tall, 6)]), "photos", same_size=True)
    with pytest.raises(InputError, match=r"photos have different sizes, such as \[\(16, 24\), \(24, 16\)\]"):
        check_images(make_table([encoded(wide), turned(wide, 6)]), "photos", same_size=True)


def test_truncated_image_is_named_when_it_is_decoded():
    whole = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    benchmark = broken_benchmark(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"The image in row 1 of odd \(test\) can't be used: image file is truncated"):
        benchmark.rows(np.array([1]))[0]  # by its number in the whole split


def test_batches_travel_as_uint8_from_workers():
    benchmark = make_benchmark(6, template=None)
    (batch,) = DataLoader(benchmark, 6, collate_fn=collate, num_workers=2)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["sample_ids"].tolist() == list(range(6)) and batch["labels"].tolist() == [0, 1, 2] * 2
    images = to_unit_range(batch["pixel_values"])
    assert images.dtype == torch.float32 and 0 <= images.min() and images.max() <= 1
    assert torch.equal((images * 255).round().byte(), batch["pixel_values"])


def test_missing_image_and_odd_labels_are_named():
    features = Features({"image": datasets.Image(), "label": Value("string")})
    table = Dataset.from_dict({"image": [None], "label": ["cat"]}, features=features)
    with pytest.raises(InputError, match="The image in row 0 of set can't be used: it is missing"):
        check_images(table, "set")
    with pytest.raises(InputError, match=r"The image in row 0 of odd \(test\) can't be used: it is missing"):
        Benchmark("odd", "test", table, CLASSES, None, ImageTransform())[0]
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
        (("digits", "dev"), "digits has no split 'dev'; known: train, validation, test"),
        (("digits", "test", None, "mine"), "Unknown protocol 'mine'; known: hpt, pmg"),
    ],
)
def test_unknown_names_list_the_known(arguments, message):
    with pytest.raises(InputError, match=message):
        load_benchmark(*arguments)
