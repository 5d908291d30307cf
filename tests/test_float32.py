"""What is called float32 is float32 on a GPU too: convolutions are as exact as products of matrices."""

import pytest
import torch

from hpt.attacks import PGD
from hpt.benchmarking import run
from hpt.benchmarking.settings import Settings
from hpt.evaluation.scoring import score_batch
from hpt.precision import exact_convolutions


CONVOLUTIONS, PRODUCTS = torch.backends.cudnn.conv, torch.backends.cuda.matmul


@pytest.fixture
def precision_of_all():
    """Sets how exactly torch computes in float32, as `--tf32` does, until the test ends."""
    before = torch.backends.fp32_precision

    def set_precision(precision: str) -> None:
        torch.backends.fp32_precision = precision

    yield set_precision
    torch.backends.fp32_precision = before


@pytest.mark.parametrize(("asked", "is_tf32"), [("none", False), ("ieee", False), ("tf32", True)])
def test_convolutions_are_as_exact_as_products_until_the_end(asked, is_tf32, precision_of_all):
    precision_of_all(asked)
    assert CONVOLUTIONS.fp32_precision == "tf32"  # torch's default
    with pytest.raises(KeyboardInterrupt), exact_convolutions():
        assert CONVOLUTIONS.fp32_precision == PRODUCTS.fp32_precision
        assert (CONVOLUTIONS.fp32_precision == "tf32") == is_tf32
        raise KeyboardInterrupt
    assert CONVOLUTIONS.fp32_precision == "tf32"


def test_images_are_attacked_and_scored_so():
    seen = []

    def classifier(images):
        seen.append(CONVOLUTIONS.fp32_precision)
        return images.flatten(1)[:, :3]

    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    batch = {"pixel_values": pixels, "labels": torch.tensor([0, 1]), "sample_ids": torch.arange(2)}
    score_batch(classifier, PGD(eps=0.1, steps=2), batch)
    assert len(seen) == 3 and set(seen) == {PRODUCTS.fp32_precision}


def test_everything_is_measured_so(monkeypatch):
    seen = []

    def measure(settings):
        seen.append(CONVOLUTIONS.fp32_precision)
        yield from ()

    monkeypatch.setitem(run.MEASUREMENTS, "growth", measure)
    run.run_benchmark(Settings(measure=["growth"], use_cpu=True))
    assert seen == [PRODUCTS.fp32_precision]
