"""How the time of a training step grows with classes, images, PGD steps and the size of the images."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import Pair, draw_samples, make_pair
from hpt.benchmarking.settings import GROWTH, PRECISIONS, Settings
from hpt.benchmarking.steps import make_our_step
from hpt.benchmarking.timing import interleave


def measure_growth(settings: Settings) -> Iterator[Measurement]:
    """Our step along each axis, the others as the settings say, in turn; the prompts are encoded before."""
    pair = make_pair(settings, PRECISIONS[settings.precision])
    for axis, name in GROWTH.items():
        steps = {str(value): make_step(settings, axis, value, pair) for value in getattr(settings, name)}
        seconds = interleave(steps, settings.rounds, settings.device, f"growth: {axis}")
        title = (
            f"HPT's training step over {axis}; otherwise {settings.size}, {settings.side} pixels, {settings.precision}"
        )
        yield Measurement(f"growth: {axis}", title, "s", seconds, next(iter(seconds)), axis=axis)


def make_step(settings: Settings, axis: str, value: int, pair: Pair) -> Callable[[], object]:
    """A step where one of the settings has another value."""
    changed = replace(settings, **{axis: value})
    dtype = PRECISIONS[settings.precision]
    pair = make_pair(changed, dtype) if axis == "image_size" else pair.with_classes(changed.classes)
    return partial(make_our_step(pair, changed.attack_steps, dtype), draw_samples(changed))
