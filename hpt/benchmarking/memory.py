"""Peak memory of a training step, of each order of work in a process of its own, since a peak never goes back."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

import torch

from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import draw_samples, make_pair
from hpt.benchmarking.ours import training_attack
from hpt.benchmarking.published import Published
from hpt.benchmarking.settings import Settings
from hpt.benchmarking.steps import OURS, PUBLISHED, make_our_step
from hpt.benchmarking.usage import memory_in_use, peak_memory
from hpt.errors import TrainingStopped


def measure_memory(settings: Settings) -> Iterator[Measurement]:
    """Peak memory at half the images and prompts, since the published order of work takes much."""
    half = replace(settings, images=max(1, settings.images // 2), classes=max(2, settings.classes // 2))
    peaks, further = {}, {}
    for name in (PUBLISHED, OURS):
        before, peak = peak_apart(name, half)
        peaks[name], further[f"{name}: GiB before the step, with both models"] = [peak], [before]
    yield Measurement("memory", f"peak of a training step, {half.size}", "GiB", peaks, PUBLISHED, further=further)


def peak_apart(name: str, settings: Settings) -> tuple[float, float]:
    """[`peak_of_step`] in a process of its own; [`TrainingStopped`] if that is killed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(peak_of_step, name, settings).result()
        except BrokenProcessPool as error:
            raise TrainingStopped(
                f"The process that took the step of {name} was ended, perhaps since memory doesn't suffice: give "
                "fewer images or classes."
            ) from error


def peak_of_step(name: str, settings: Settings) -> tuple[float, float]:
    """GiB in use before a step, and at its peak, in this process."""
    torch.set_num_threads(settings.threads)
    samples, pair = draw_samples(settings), make_pair(settings)
    attack = training_attack(settings.attack_steps)
    before = memory_in_use(settings.device)
    if name == PUBLISHED:
        Published(pair, samples, attack).step()
    else:
        make_our_step(pair, settings.attack_steps)(samples)
    return before, peak_memory(settings.device)
