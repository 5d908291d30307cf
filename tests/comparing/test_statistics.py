"""Paired differences over images and seeds: the interval's formula, and that it holds what it promises."""

import math

import numpy as np
import pytest
from scipy.stats import t

from hpt.comparing.statistics import compare_verdicts, mean_and_spread


def draw(random, mean, image, seed, seeds, images, shared):
    """Verdicts of a method's runs: images of different difficulty, runs of different quality."""
    chance = mean + image * shared + seed * random.standard_normal((seeds, 1))
    return random.random((seeds, images)) < chance.clip(0, 1)


def test_the_interval_is_of_its_formula():
    random = np.random.default_rng(0)
    first, second = random.random((3, 50)) < 0.6, random.random((2, 50)) < 0.5
    difference = compare_verdicts(first, second)
    by_image = [*(first.mean(0) - second.mean(0)), 1, -1]
    image = sum((value - sum(by_image) / 52) ** 2 for value in by_image) / 51 / 52
    seeds = [np.var([run.mean() for run in runs], ddof=1) / len(runs) for runs in (first, second)]
    variance = image + sum(seeds)
    freedom = variance**2 / (image**2 / 51 + seeds[0] ** 2 / 2 + seeds[1] ** 2 / 1)
    reach = t.ppf(0.975, freedom) * math.sqrt(variance)
    mean = first.mean() - second.mean()
    assert (difference.mean, difference.low, difference.high) == pytest.approx((mean, mean - reach, mean + reach))


@pytest.mark.parametrize("seed", [0.0, 0.02, 0.05])
def test_intervals_cover_the_truth_as_often_as_they_say(seed):
    """Over other images and other runs; a little more often, as is said there."""
    random, covered, truth = np.random.default_rng(1), 0, 0.05
    for _ in range(400):
        shared = random.uniform(-1, 1, 300)
        first = draw(random, 0.55, 0.4, seed, 3, 300, shared)
        second = draw(random, 0.50, 0.4, seed, 3, 300, shared)
        difference = compare_verdicts(first, second)
        covered += difference.low <= truth <= difference.high
    assert 0.93 * 400 <= covered <= 400


def test_pairing_tells_apart_what_is_close():
    """Two methods that differ on few images alone, by intervals that would overlap without pairing."""
    right = np.random.default_rng(0).random((1, 1000)) < 0.5
    better = right.copy()
    better[0, np.flatnonzero(~right[0])[:25]] = True
    difference = compare_verdicts(better, right)
    assert difference.is_told and 0.01 < difference.low < difference.mean == 0.025
    assert compare_verdicts(right, better).high == -difference.low


def test_of_many_intervals_each_has_to_reach_further_for_all_to_hold():
    right = np.random.default_rng(0).random((1, 1000)) < 0.5
    better = right.copy()
    better[0, np.flatnonzero(~right[0])[:10]] = True
    told = [compare_verdicts(better, right, number) for number in (1, 5, 500)]
    assert [difference.told_among_all for difference in told] == [True, True, False]
    assert all(difference.is_told and difference.low == told[0].low for difference in told)


def test_the_same_verdicts_are_not_told_apart():
    right = np.ones((3, 40), bool)
    difference = compare_verdicts(right, right)
    assert difference.mean == 0 and not difference.is_told and 0 < difference.high < 0.2


def test_an_interval_stays_within_what_can_be():
    difference = compare_verdicts(np.array([[True, True], [False, False]]), np.array([[False, False], [True, True]]))
    assert (difference.low, difference.high) == (-1, 1)


def test_the_spread_is_between_runs():
    assert mean_and_spread([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.1))
    assert mean_and_spread([0.5]) == (0.5, None)
