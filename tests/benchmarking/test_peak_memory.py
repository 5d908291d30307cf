"""Peaks are of a process of their own, whatever this one has taken."""

import os
from dataclasses import replace

import pytest
import torch

from hpt.benchmarking import memory
from hpt.benchmarking.settings import Settings
from hpt.benchmarking.usage import memory_in_use, peak_memory
from hpt.errors import TrainingStopped


TINY = Settings(models="quickstart", images=2, classes=3, use_cpu=True)


def test_a_peak_stays_when_memory_is_given_back():
    before = memory_in_use("cpu")
    values = torch.ones(2**26)  # a quarter of a GiB
    assert memory_in_use("cpu") > before + 0.2
    del values
    assert peak_memory("cpu") > before + 0.2 and memory_in_use("cpu") < before + 0.1


def test_what_this_process_takes_is_not_in_the_peak_of_another():
    held = torch.ones(2**28)  # 1 GiB, more than a process with a tiny step takes
    before, first, peak = memory.peaks_apart("ours", TINY, [1, 2])
    assert 0.1 < before <= first <= peak < 0.95 < held.nbytes / 2**30


def end_process(name, settings, sizes):
    os._exit(9)


def test_a_process_that_is_killed_is_named(monkeypatch):
    monkeypatch.setattr(memory, "peaks_of_steps", end_process)
    with pytest.raises(TrainingStopped, match="^The process that took the step of .* was ended, perhaps since memory"):
        memory.peaks_apart("published", TINY, [1])


def test_what_an_image_takes_and_how_many_fit_follow_from_two_batches(monkeypatch):
    """Images of 128 MiB each; the published order of work is too large for the second batch."""
    peaks = {"published": [2.0, 40.0], "ours": [2.0, 10.0, 34.0]}
    asked = []

    def peaks_apart(name, settings, sizes):
        asked.append((name, settings.classes, sizes))
        return peaks[name]

    monkeypatch.setattr(memory, "peaks_apart", peaks_apart)
    monkeypatch.setattr(memory, "whole_memory", lambda device: 80.0)
    (measurement,) = memory.measure_memory(replace(TINY, images=512, classes=100))
    assert asked == [(name, 50, [64, 256]) for name in peaks]
    assert measurement.values == {"ours": [34.0]} and measurement.reference == "ours"
    assert measurement.title.endswith("float32; the GPU's memory doesn't hold published")
    assert measurement.further["ours: MiB an image, from 64 to 256 images"] == [128.0]
    assert measurement.further["ours: images that 80.0 GiB would hold, extrapolated"] == [624]


@pytest.mark.parametrize(("precision", "is_lower"), [("float32", False), ("bf16", True)])
def test_steps_compute_in_the_precision_that_is_asked_for(precision, is_lower, monkeypatch):
    dtypes = []
    for name in ("Published", "make_our_step"):
        make = getattr(memory, name)

        def note(*given, make=make):
            dtypes.append(given[-1])
            return make(*given)

        monkeypatch.setattr(memory, name, note)
    for name in ("published", "ours"):
        memory.peaks_of_steps(name, replace(TINY, precision=precision), [1, 2])
    assert dtypes == [torch.bfloat16 if is_lower else None] * 4
