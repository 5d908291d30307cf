from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import make_benchmark, make_dataset
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from hpt.data.augmentation import AREA, ASPECT_RATIO, CropFlip, draw_box
from hpt.data.geometry import ImageTransform, geometry_of
from hpt.data.images import collate


def augmented(benchmark, seed=0, **changes):
    return replace(benchmark, augmentation=CropFlip(seed), **changes)


def pixels_of(benchmark, rows=None, **settings):
    loader = DataLoader(benchmark, sampler=rows, collate_fn=collate, **{"batch_size": len(benchmark)} | settings)
    batches = list(loader)
    return torch.cat([batch["pixel_values"] for batch in batches])[
        torch.cat([batch["sample_ids"] for batch in batches]).argsort()
    ]


def test_the_same_for_any_workers_batches_and_order():
    benchmark = augmented(make_benchmark(9))
    expected = pixels_of(benchmark)
    assert torch.equal(pixels_of(benchmark, [3, 0, 8, 2, 7, 1, 4, 6, 5], batch_size=2), expected)
    assert torch.equal(pixels_of(benchmark, batch_size=4, num_workers=2), expected)
    few = benchmark.rows(np.array([2, 5]))  # which keep their ids
    assert torch.equal(few[1]["pixel_values"], expected[5])
    assert not torch.equal(expected, pixels_of(make_benchmark(9)))


def test_each_epoch_and_seed_has_its_own_also_in_workers_that_persist():
    benchmark = augmented(make_benchmark(9))
    loader = DataLoader(benchmark, 9, collate_fn=collate, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        benchmark.augmentation.set_epoch(epoch)
        epochs.append(next(iter(loader))["pixel_values"])
    assert torch.equal(epochs[0], epochs[2])
    assert all(not torch.equal(first, second) for first, second in zip(epochs[0], epochs[1], strict=True))
    assert not torch.equal(pixels_of(augmented(make_benchmark(9), seed=1)), epochs[0])


@pytest.mark.parametrize("size", [(40, 31), (16, 16), (1, 3), (300, 20)])
def test_boxes_lie_in_the_image_and_have_the_area_and_shape_that_are_asked_for(size):
    width, height = size
    boxes = [draw_box(width, height, np.random.default_rng(seed)) for seed in range(500)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if min(size) > 15:
        wide, high = (np.array([box[end] - box[end - 2] for box in boxes]) for end in (2, 3))
        area = wide * high / (width * height)
        assert AREA[0] - 0.05 < area.min() and area.max() <= 1
        narrowest, widest = ASPECT_RATIO
        rounding = 1 / high.min()
        assert narrowest - rounding < (wide / high).min() and (wide / high).max() < widest + rounding
    if size == (300, 20):  # of which no drawn part can have much: the middle one is among them
        assert (136, 0, 163, 20) in boxes
    if size == (40, 31):  # drawn evenly, but for large ones that don't fit
        assert area.mean() == pytest.approx(0.5, abs=0.03) and area.min() < 0.12 and area.max() > 0.95
        assert {box[0] for box in boxes} >= set(range(15)) and len({box[1] for box in boxes}) > 12


def test_models_that_are_evaluated_see_no_augmentation():
    benchmark, processor = augmented(make_benchmark(3)), CLIPImageProcessorPil()
    assert torch.equal(pixels_of(benchmark.for_model(processor)), pixels_of(make_benchmark(3)))
    own = augmented(make_benchmark(3), transform=None)
    assert own.for_model(processor).attack_space == "224-224" and own.for_model(processor).augmentation is None


def test_half_of_the_images_are_mirrored():
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (32, 0, 64, 64))  # so bright to the right, whatever part is taken
    augment, mirrored, seen = CropFlip(0), 0, 0
    for sample_id in range(400):
        pixels = np.array(augment(sample_id, image, (16, 16))).mean((0, 2))
        seen += pixels[0] != pixels[-1]
        mirrored += pixels[0] > pixels[-1]
    assert seen > 300 and mirrored / seen == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (ImageTransform(), (30, 40)),
        (ImageTransform(20, 12), (12, 12)),
        (geometry_of(CLIPImageProcessorPil(size={"shortest_edge": 9}, crop_size={"height": 9, "width": 9})), (9, 9)),
    ],
    ids=["native", "paper's", "own"],
)
def test_images_have_the_size_that_they_have_without_augmentation(transform, shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    dataset = Dataset.from_dict({"image": [image], "label": [0]}, make_dataset(1).features)
    benchmark = augmented(make_benchmark(1), dataset=dataset, transform=transform)
    pixels = benchmark[0]["pixel_values"]
    assert pixels.shape == (3, *shape) == transform(image).shape and pixels.dtype == torch.uint8
