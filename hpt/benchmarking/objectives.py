"""What the objectives cost beside each other: a step of each, its attack, its forward and its backward pass."""

from collections.abc import Iterator
from functools import partial

from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import draw_samples, make_pair
from hpt.benchmarking.ours import OurStep, training_attack
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.timing import interleave
from hpt.models.classifier import frozen_copy
from hpt.training.sums import make_objective


def measure_objectives(settings: Settings) -> Iterator[Measurement]:
    """Steps of the settings' objectives, in turn; ratios are to the first."""
    dtype = PRECISIONS[settings.precision]
    samples, (target, proxy) = draw_samples(settings), make_pair(settings, dtype)
    original, attack = frozen_copy(target), training_attack(settings.attack_steps)
    steps = {
        text: partial(OurStep(target, proxy, make_objective(text), attack, original, dtype), samples)
        for text in settings.objectives
    }
    seconds = interleave(steps, settings.rounds, settings.device, "objectives")
    title = f"a training step of each objective, {settings.size}, {settings.precision}"
    measurement = Measurement("objectives", title, "s", seconds, settings.objectives[0], True)
    measurement.add_speeds(settings.images)
    yield measurement
