"""What is saved by what is known already: kept features of clean images, and samples that leave an attack."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from hpt.attacks.registry import parse_attacks_without_proxy
from hpt.benchmarking.gates import check_equal
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import draw_samples, make_pair
from hpt.benchmarking.ours import OurStep, training_attack
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.steps import with_gradient
from hpt.benchmarking.timing import interleave
from hpt.data.loading import load_benchmark
from hpt.errors import InputError
from hpt.evaluation.speed import compare_evaluation
from hpt.models.loading import load_named
from hpt.radius import Radius
from hpt.references import Reference, parse_model
from hpt.training.sums import make_objective


ANEW, KEPT = "proxy asked", "features kept"
ALONE, POOLED = "batch by batch", "in pools"


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
        measurement.values = interleave(variants, settings.rounds, settings.device, "clean", warm_up=False)
    yield measurement


def parse_attacked(settings: Settings) -> tuple[list[Reference], Radius]:
    """The models that are attacked, and how far; [`InputError`] for what can't be meant of them or of the attacks."""
    if not settings.attacked:
        raise InputError("attacks are timed on trained models: give attacked, such as outputs/quickstart/robust.")
    radius = Radius(settings.attacked_eps)
    parse_attacks_without_proxy(settings.attacks, [radius])
    return [parse_model(text, loaded=True) for text in settings.attacked], radius


def measure_attacks(settings: Settings) -> Iterator[Measurement]:
    """Attacks on trained models in pools of batches, times batch by batch; the verdicts have to be the same."""
    models, radius = parse_attacked(settings)
    benchmark = load_benchmark(settings.attacked_dataset)
    attacks = [attack.make(radius) for attack in parse_attacks_without_proxy(settings.attacks, [radius])]
    for reference in models:
        name, classifier = load_named(reference, settings.device)
        rounds = {"rounds": settings.rounds, "batch_size": settings.batch_size}
        for compared in compare_evaluation(classifier, benchmark, attacks, **rounds):
            title = f"under {compared.attack} at {radius}, {compared.robust} of {compared.samples} images stay right"
            values = dict(zip((ALONE, POOLED), map(list, zip(*compared.seconds, strict=True)), strict=True))
            counted = {"calls": compared.calls, "passes": compared.passes}
            further = {
                f"{way}: {what}": [float(number)]
                for what, numbers in counted.items()
                for way, number in zip(values, numbers, strict=True)
            }
            yield Measurement(f"attacks: {compared.attack}, {name}", title, "s", values, ALONE, True, further)
