"""Peak memory of a training step in each order of work, what an image takes of it, and the largest batch that follows.

On a CPU, where a peak never goes back, each order of work has a process of its own.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context

import torch

from hpt.benchmarking.measurement import Measurement, without
from hpt.benchmarking.models import draw_samples, make_pair
from hpt.benchmarking.ours import training_attack
from hpt.benchmarking.published import Published
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.steps import OURS, PUBLISHED, make_our_step
from hpt.benchmarking.usage import forget_peak, memory_in_use, peak_memory, whole_memory
from hpt.errors import TrainingStopped


FEWER = 4  # a smaller batch has so many times fewer images


def measure_memory(settings: Settings) -> Iterator[Measurement]:
    """Peak memory at half the images and prompts, since the published order of work takes much; a smaller one before.

    What an image takes follows from the two, and from that how many fit into all of the memory: an estimate, since
    other programs, what a GPU's driver takes and gaps between tensors aren't counted.
    """
    half = replace(settings, images=max(1, settings.images // 2), classes=max(2, settings.classes // 2))
    sizes = sorted({max(1, half.images // FEWER), half.images})
    whole, peaks, further, too_large = whole_memory(settings.device), {}, {}, []
    for name in (PUBLISHED, OURS):
        measure = peaks_of_steps if settings.device.type == "cuda" else peaks_apart
        before, *own = measure(name, half, sizes)
        if len(own) < len(sizes):
            too_large.append(name)
            continue
        peaks[name], further[f"{name}: GiB before the step, with both models"] = [own[-1]], [before]
        if (grown := own[-1] - own[0]) > 0:
            per_image = grown / (sizes[-1] - sizes[0])
            further[f"{name}: MiB an image, from {sizes[0]} to {sizes[-1]} images"] = [per_image * 2**10]
            largest = sizes[-1] + (whole - own[-1]) / per_image
            further[f"{name}: images that {whole:.1f} GiB would hold, extrapolated"] = [max(0, int(largest))]
    title = without(f"peak of a training step, {half.size}, {settings.precision}", too_large)
    yield Measurement("memory", title, "GiB", peaks, next(iter(peaks), PUBLISHED), further=further)


def peaks_apart(name: str, settings: Settings, sizes: list[int]) -> list[float]:
    """[`peaks_of_steps`] in a process of its own; [`TrainingStopped`] if that is killed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(peaks_of_steps, name, settings, sizes).result()
        except BrokenProcessPool as error:
            raise TrainingStopped(
                f"The process that took the step of {name} was ended, perhaps since memory doesn't suffice: give "
                "fewer images or classes."
            ) from error


def peaks_of_steps(name: str, settings: Settings, sizes: list[int]) -> list[float]:
    """GiB in use before a step, and at the peaks of steps of so many images as far as a GPU holds them."""
    torch.set_num_threads(settings.threads)
    dtype, attack = PRECISIONS[settings.precision], training_attack(settings.attack_steps)
    pair = make_pair(settings, dtype if name == OURS else None)
    forget_peak(settings.device)
    found = [memory_in_use(settings.device)]
    for images in sizes:
        samples = draw_samples(replace(settings, images=images))
        forget_peak(settings.device)
        try:
            if name == PUBLISHED:
                Published(pair, samples, attack, dtype).step()
            else:
                make_our_step(pair, settings.attack_steps, dtype)(samples)
        except torch.OutOfMemoryError:
            break
        found.append(peak_memory(settings.device))
    return found
