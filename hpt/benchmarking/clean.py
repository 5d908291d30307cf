"""A step of the anchor stage with what the proxy makes of clean images kept, beside one that asks the proxy."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from hpt.benchmarking.gates import check_equal
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import draw_samples, make_pair
from hpt.benchmarking.ours import OurStep, training_attack
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.steps import is_cold, with_gradient
from hpt.benchmarking.timing import interleave
from hpt.training.sums import make_objective


ANEW, KEPT = "proxy asked", "features kept"


def measure_clean(settings: Settings) -> Iterator[Measurement]:
    """The anchor stage's step with what the proxy makes of clean images kept, times the step that asks it."""
    samples, pair = draw_samples(settings), make_pair(settings)
    asked = OurStep(*pair, make_objective("anchor"), training_attack(settings.attack_steps))
    with torch.no_grad():
        kept = replace(asked, features={pair.proxy: pair.proxy.image_features(samples.images)})
    steps = {ANEW: asked, KEPT: kept}
    model = pair.target.model
    gate = check_equal(
        {name: partial(with_gradient, partial(step, samples), model) for name, step in steps.items()}, ANEW
    )
    title = f"a step of the anchor stage, {settings.size}, {settings.precision}"
    measurement = Measurement("clean", title, "s", {}, ANEW, True, gate.further, faults=gate.faults)
    if not gate.faults:
        dtype = PRECISIONS[settings.precision]
        variants = {name: partial(replace(step, dtype=dtype), samples) for name, step in steps.items()}
        measurement.values = interleave(variants, settings.rounds, settings.device, "clean", warm_up=is_cold(settings))
    yield measurement
