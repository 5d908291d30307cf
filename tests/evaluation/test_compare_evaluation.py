"""How much sooner attacks end in pools: what is counted, and that nothing is timed whose verdicts differ."""

import pytest
import torch
from helpers import make_benchmark, make_clip

from hpt import PGD, InputError, ZeroShotClassifier
from hpt.attacks import APGDCE, Square
from hpt.evaluation.speed import Comparison, compare_evaluation


@pytest.fixture
def classifier():
    return ZeroShotClassifier(*make_clip(0)).eval()


def test_both_ways_give_the_same_verdicts_and_pools_take_fewer_calls(classifier):
    attacks = [APGDCE(eps=12 / 255, steps=10), Square(eps=4 / 255, queries=30)]
    compared = compare_evaluation(classifier, make_benchmark(40), attacks, batch_size=4, rounds=2)
    assert [each.attack for each in compared] == ["apgd-ce-10", "square"]
    for each in compared:
        (alone, pooled), passes = each.calls, each.passes
        assert pooled < alone and passes[0] == passes[1]
        assert len(each.ratios) == 2 and min(each.ratios) > 0
        assert 0 <= each.robust <= each.samples < 40
    images = make_benchmark(40)
    labels = torch.tensor(images.dataset["label"][:])
    over_classes = classifier.with_classes(images.class_names, "{}")
    pixels = torch.stack([images[row]["pixel_values"] for row in range(40)]) / 255
    right = over_classes(pixels).argmax(1) == labels
    found = attacks[0](over_classes, pixels[right], labels[right], torch.arange(40)[right])
    left = int((over_classes(found).argmax(1) == labels[right]).sum())
    assert (compared[0].samples, compared[0].robust) == (int(right.sum()), left)


def test_verdicts_that_differ_are_not_timed(classifier):
    class Forgetful(PGD):
        """Leaves images as they are when it is given pools."""

        def perturb(self, classifier, images, labels, sample_ids=None, eps=None, batch_size=None):
            found = super().perturb(classifier, images, labels, sample_ids, eps, batch_size)
            return found if batch_size is None else found._replace(images=images)

    with pytest.raises(RuntimeError, match=r"PGD-10: \d+ of \d+ verdicts differ, so nothing is timed"):
        compare_evaluation(classifier, make_benchmark(30), [Forgetful(eps=0.4)], batch_size=4)


def test_a_comparison_says_medians_and_how_far_ratios_go():
    seconds = [(4.0, 2.0), (9.0, 3.0), (5.0, 2.0)]
    text = str(Comparison("apgd", 354, 1, (1234, 56), (40000, 40000), seconds))
    assert text == (
        "apgd: 1 of 354 samples stay right, both ways the same; 5.00 s batch by batch, 2.00 s in pools, ratio 2.50 "
        "[2.00, 3.00]; calls 1,234 and 56, passes 40,000 and 40,000."
    )


def test_there_has_to_be_something_to_attack(classifier):
    benchmark = make_benchmark(6)
    pixels = torch.stack([benchmark[row]["pixel_values"] for row in range(6)]) / 255
    predicted = classifier.with_classes(benchmark.class_names, "{}")(pixels).argmax(1)
    wrong = [row for row in range(6) if predicted[row] != benchmark.dataset["label"][row]]
    with pytest.raises(InputError, match="right on no image of random"):
        compare_evaluation(classifier, benchmark.rows(wrong), [PGD(eps=0.1)])
    with pytest.raises(InputError, match="rounds is 0"):
        compare_evaluation(classifier, benchmark, [PGD(eps=0.1)], rounds=0)
