"""Peaks are of a process of their own, whatever this one has taken."""

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
    before, peak = memory.peak_apart("ours", TINY)
    assert 0.1 < before <= peak < 0.95 < held.nbytes / 2**30


def test_a_process_that_is_killed_is_named(monkeypatch):
    monkeypatch.setattr(memory, "peak_of_step", exec)
    with pytest.raises(TrainingStopped, match="^The process that took the step of .* was ended, perhaps since memory"):
        memory.peak_apart("import os; os._exit(9)", {})
