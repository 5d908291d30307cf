"""Variants timed in turn within one process, so that their ratios hold on a noisy machine."""

import time
from collections.abc import Callable

import torch
from tqdm.auto import tqdm


class Stopwatch:
    """Seconds from lap to lap.

    On a CPU with one thread it is process time, which other programs don't lengthen; with several, wall-clock time,
    since process time would count each thread's. On a GPU it is the time between two events, at which the device is
    waited for; that part is untried.
    """

    def __init__(self, device: torch.device):
        if device.type == "cuda":
            self._now, self._between = _recorded_event, lambda first, last: first.elapsed_time(last) / 1000
        else:
            self._now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
            self._between = lambda first, last: last - first
        self._mark = self._now()

    def lap(self) -> float:
        """Seconds since the last lap, or since it was made."""
        before, self._mark = self._mark, self._now()
        return self._between(before, self._mark)


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    return event


def interleave(
    variants: dict[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    title: str,
    *,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round.

    A round runs every variant once, every other round in reverse, so that none always follows the same one.

    Args:
        variants (`dict[str, Callable]`): What is timed, by name.
        rounds (`int`): How often.
        device (`torch.device`): On which they compute.
        title (`str`): What stands beside the progress bar.
        warm_up (`bool`, *optional*, defaults to `True`): Run each once before, untimed.
    """
    order, seconds, watch = list(variants), {name: [] for name in variants}, Stopwatch(device)
    with tqdm(total=(rounds + warm_up) * len(order), desc=title, leave=False, disable=None) as progress:
        for number in range(-warm_up, rounds):
            for name in order if number % 2 == 0 else reversed(order):
                watch.lap()
                variants[name]()
                took = watch.lap()
                if number >= 0:
                    seconds[name].append(took)
                progress.update()
    return seconds
