"""Variants take turns, and what their times come to."""

import time
from functools import partial

import pytest
import torch

from hpt.benchmarking.measurement import Measurement, spread
from hpt.benchmarking.timing import Stopwatch, interleave


CPU = torch.device("cpu")


@pytest.mark.parametrize(("warm_up", "order"), [(True, "cba" + "abc" + "cba"), (False, "abc" + "cba")])
def test_variants_take_turns_and_every_other_round_goes_back(warm_up, order):
    ran = []
    variants = {name: partial(ran.append, name) for name in "abc"}
    seconds = interleave(variants, 2, CPU, "variants", warm_up=warm_up)
    assert "".join(ran) == order
    assert {name: len(own) for name, own in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_each_variant_is_given_its_own_time():
    variants = {"work": lambda: work(0.1), "nothing": lambda: None}
    seconds = interleave(variants, 2, CPU, "variants")
    assert min(seconds["work"]) >= 0.1 > 0.05 > max(seconds["nothing"])


def work(seconds: float) -> None:
    """Take that much process time, and so at least as much by the clock."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


@pytest.mark.parametrize(("threads", "counts"), [(1, False), (2, True)])
def test_time_that_the_process_waits_counts_by_the_clock_alone(threads, counts, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    watch = Stopwatch(CPU)
    time.sleep(0.2)
    assert (watch.lap() > 0.15) == counts


SECONDS = {"published": [8.0, 9.0, 10.0], "ours": [2.0, 3.0, 2.0]}


@pytest.mark.parametrize(
    ("speeds", "ratios", "text"), [(True, [4.0, 3.0, 5.0], "4 [3-5]"), (False, [0.25, 1 / 3, 0.2], "0.25 [0.2-0.333]")]
)
def test_ratios_are_of_values_from_the_same_round(speeds, ratios, text):
    measurement = Measurement("step", "a step", "s", SECONDS, "published", speeds)
    assert measurement.ratios("ours") == ratios
    assert spread(ratios) == text and text in str(measurement)
    described = measurement.as_json()
    assert described["ratios"] == {"published": [1.0, 1.0, 1.0], "ours": ratios}
    assert described["ratios_summary"]["ours"] == {"median": sorted(ratios)[1], "min": min(ratios), "max": max(ratios)}
    assert described["values"] == SECONDS


@pytest.mark.parametrize(
    ("values", "text"), [([1.0], "1"), ([0.01234, 0.01234], "0.0123"), ([16_312.4, 9.876], "8161 [9.88-16312]")]
)
def test_numbers_have_three_digits_or_all_before_the_point(values, text):
    assert spread(values) == text
