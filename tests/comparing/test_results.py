"""What is read from records: pairs on the same images alone, and how many of them there are."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t

from hpt.comparing import results
from hpt.comparing.choices import Choice
from hpt.comparing.figures import VANILLA_STYLE, _styles
from hpt.comparing.grid import Method, Run
from hpt.comparing.report import _notes_of, format_pairs
from hpt.comparing.results import CHOSEN, TRAINED, describe_results, pairs
from hpt.evaluation.dial import DialPoint
from hpt.radius import Radius


def runs_of(method, accuracy, where=CHOSEN, test="digits", seeds=2, images=1000, eps="1/255"):
    """A method whose runs are right on the first images alone."""
    right = np.tile(np.arange(images) < accuracy * images, (seeds, 1))
    return results.Tested(method, where, test, Radius(eps), {"clean": right, "worst case": right}, [[]] * seeds)


def test_pairs_are_of_chosen_points_on_one_test():
    shown = [runs_of("vanilla", 0.5, "", seeds=1), runs_of("a", 0.5), runs_of("a", 0.6, TRAINED), runs_of("b", 0.4)]
    shown += [runs_of("a", 0.5, test="cifar10"), runs_of("b", 0.5, test="cifar10")]
    found = [(first.method, second.method, first.test) for first, second, attack, _ in pairs(shown)[::2]]
    digits = [("vanilla", "a"), ("vanilla", "b"), ("a", "b")]
    assert found == [(*pair, "digits") for pair in digits] + [("a", "b", "cifar10")]


def test_pairs_are_of_one_radius_and_clean_accuracy_is_compared_once():
    shown = [runs_of(method, 0.5, eps=eps) for method in "ab" for eps in ("1/255", "4/255")]
    shown += [runs_of("c", 0.5, eps="4/255")]  # at the other radius it isn't tested yet
    found = [(first.method, second.method, attack, str(first.eps)) for first, second, attack, _ in pairs(shown)]
    assert all(first.eps == second.eps for first, second, _, _ in pairs(shown))
    assert sorted(found) == [
        ("a", "b", "clean", "1/255"),
        ("a", "b", "worst case", "1/255"),
        ("a", "b", "worst case", "4/255"),
        *(("a", "c", attack, "4/255") for attack in ("clean", "worst case")),
        *(("b", "c", attack, "4/255") for attack in ("clean", "worst case")),
    ]


def test_what_is_said_of_pairs_follows_from_verdicts_on_the_same_images_at_each_radius():
    """Worked out again image by image, by the formula that `compare_verdicts` gives."""
    random, shown = np.random.default_rng(0), []
    for method, seeds, chance in (("vanilla", 1, 0.2), ("a", 3, 0.6), ("b", 2, 0.5)):
        clean = random.random((seeds, 200)) < chance
        for eps in ("1/255", "4/255"):
            right = {"clean": clean, "worst case": clean & (random.random(clean.shape) < 0.8)}
            shown.append(results.Tested(method, CHOSEN, "digits", Radius(eps), right, [[]] * seeds))
    lines = [line for line in describe_results(results.Results({}, {}, {}, {}, shown, None)) if line["kind"] == "pair"]
    assert len(lines) == 3 * (1 + 2)  # clean once, the worst case at each radius
    for line in lines:
        first, second = (
            next(one for one in shown if (one.method, one.eps) == (line[which], line["test_eps"])).right[
                line["attack"]
            ]
            for which in ("first", "second")
        )
        by_image = [np.mean(first[:, image]) - np.mean(second[:, image]) for image in range(200)]
        of_seeds = [
            (np.var(runs.mean(1), ddof=1) / len(runs), len(runs) - 1) for runs in (first, second) if len(runs) > 1
        ]
        parts = [(np.var([*by_image, 1, -1], ddof=1) / 202, 201), *of_seeds]
        variance = sum(part for part, _ in parts)
        freedom = variance**2 / sum(part**2 / free for part, free in parts)
        reach, of_all = (t.ppf(1 - 0.025 / number, freedom) * variance**0.5 for number in (1, len(lines)))
        mean = np.mean(by_image)
        assert (line["mean"], line["low"], line["high"]) == pytest.approx((mean, mean - reach, mean + reach))
        assert line["told_among_all"] == (abs(mean) > of_all)
    assert 0 < sum(line["told_among_all"] for line in lines) < len(lines)


def test_sentences_tell_radii_apart_and_claim_no_more_of_one_than_its_images_say():
    shown = [runs_of("a", 0.5), runs_of("b", 0.4), runs_of("a", 0.3, eps="4/255"), runs_of("b", 0.3, eps="4/255")]
    head, _, line = format_pairs(shown).splitlines()
    assert line.startswith("- digits: a against b: clean +10.0 (+8.1 to +11.9); worst case at 1/255 +10.0 (")
    assert line.endswith("; worst case at 4/255 +0.0 (-0.3 to +0.3), which can't be told from none.")
    assert "Of 3 such intervals" in head


def test_sentences_say_neither_too_much_nor_too_little():
    shown = [runs_of("a", 0.5), runs_of("b", 0.4), runs_of("c", 0.494, seeds=1), runs_of("d", 0.5)]
    lines = format_pairs(shown).splitlines()
    said = {line.partition(": ")[2].partition(":")[0]: line.partition("; worst")[0] for line in lines[2:]}
    assert said["a against b"].endswith("clean +10.0 (+8.1 to +11.9)")
    assert said["a against c"].endswith("(+0.0 to +1.2), told by itself alone")
    assert said["a against d"].endswith("clean +0.0 (-0.3 to +0.3), which can't be told from none")
    assert "Of 12 such intervals, about 1 miss" in lines[0] and lines[0].endswith(
        "Of c there is one run: nothing is known of others."
    )


@pytest.mark.parametrize(
    ("rates", "dial", "notes"),
    [
        ([0.1], [0.7], []),
        ([0.1], [0.7, 1.0], ["a: 1 of 1 runs have the least t of the dial; less may be better."]),
        ([0.1, 0.3], [0.7], ["a: its rate is the smallest that was tried; a smaller one may be better."]),
        ([0.03, 0.1, 0.3], [0.3, 0.7, 1.0], []),
    ],
)
def test_an_end_of_what_was_tried_is_named_where_something_could_be_chosen(rates, dial, notes):
    choice = Choice(Run("a", 0.1, 0), DialPoint(0.7, 0.0, 0.5, 0.4, 100, "00"), keeps_rule=True)
    comparison = SimpleNamespace(dial=dial)
    grid = SimpleNamespace(methods={"a": Method("a", {}, rates)}, comparison=comparison, runs_of=lambda method: [])
    chosen = SimpleNamespace(rates={"a": choice}, points={"a": [choice]})
    assert _notes_of(grid, None, chosen, "a") == notes


def test_methods_look_different_and_the_same_in_all_pictures():
    styles = _styles([f"method {number}" for number in range(50)])
    assert len({*styles.values(), VANILLA_STYLE}) == 51
