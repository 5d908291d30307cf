"""How much sooner attacks end in pools: what is counted, and that nothing is timed whose verdicts differ."""

import pytest
import torch
from helpers import make_benchmark, make_clip

from hpt import PGD, InputError, ZeroShotClassifier
from hpt.attacks import APGDCE, Square
from hpt.benchmarking.attacks import cut_samples, measure_attack
from hpt.benchmarking.settings import Settings


TINY = Settings(rounds=2, batch_size=4, use_cpu=True)


@pytest.fixture
def classifier() -> ZeroShotClassifier:
    benchmark = make_benchmark(40)
    return ZeroShotClassifier(*make_clip(0)).eval().with_classes(benchmark.class_names, benchmark.template)


def measure(classifier, attack, number: int = 40):
    return measure_attack("attacks", classifier, attack, cut_samples(classifier, make_benchmark(number), 4), TINY)


def test_the_samples_that_are_right_are_the_same_in_batches_and_in_pools(classifier):
    benchmark = make_benchmark(40)
    pixels = torch.stack([benchmark[row]["pixel_values"] for row in range(40)]) / 255
    right = classifier(pixels).argmax(1) == torch.tensor(benchmark.dataset["label"][:])
    parts = cut_samples(classifier, benchmark, 4)
    assert len(parts["in pools"]) < len(parts["batch by batch"])
    for own in parts.values():
        images, _, ids = (torch.cat(column) for column in zip(*own, strict=True))
        assert torch.equal(images, pixels[right]) and torch.equal(ids, torch.arange(40)[right])


@pytest.mark.parametrize(
    "attack", [APGDCE(eps=12 / 255, steps=10), Square(eps=4 / 255, queries=30)], ids=["apgd-ce", "square"]
)
def test_both_ways_give_the_same_verdicts_and_pools_take_fewer_calls(classifier, attack):
    measurement = measure(classifier, attack)
    further = measurement.further
    assert measurement.faults == [] and further["in pools: difference in verdicts"] == [0.0]
    assert further["in pools: calls"] < further["batch by batch: calls"]
    assert further["in pools: passes"] == further["batch by batch: passes"]
    assert {way: len(seconds) for way, seconds in measurement.values.items()} == {"batch by batch": 2, "in pools": 2}


def test_verdicts_that_differ_are_not_timed(classifier):
    class Forgetful(PGD):
        """Leaves images as they are when it is given pools."""

        def perturb(self, classifier, images, labels, sample_ids=None, eps=None, batch_size=None):
            found = super().perturb(classifier, images, labels, sample_ids, eps, batch_size)
            return found if batch_size is None else found._replace(images=images)

    measurement = measure(classifier, Forgetful(eps=0.4), 30)
    assert measurement.values == {}
    (fault,) = measurement.faults
    assert fault.startswith("in pools isn't timed: it differs from the reference in verdicts by ")


def test_there_has_to_be_something_to_attack(classifier):
    benchmark = make_benchmark(6)
    pixels = torch.stack([benchmark[row]["pixel_values"] for row in range(6)]) / 255
    predicted = classifier(pixels).argmax(1)
    wrong = [row for row in range(6) if predicted[row] != benchmark.dataset["label"][row]]
    with pytest.raises(InputError, match="right on no image of random"):
        cut_samples(classifier, benchmark.rows(wrong), 4)
