"""A training step and PGD in evaluation, ours beside the published order of work, and how near the floor they are.

Ours is also measured on the towers as transformers has them, without what `hpt.models.lean` changes in them.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch

from hpt.benchmarking.arithmetic import Matmul, count_flops, fewest_flops
from hpt.benchmarking.gates import Outcome, check_equal, gradient_of
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import Pair, Samples, draw_samples, make_pair
from hpt.benchmarking.ours import OurStep, evaluation_attack, our_evaluation, training_attack
from hpt.benchmarking.published import Published
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.timing import interleave
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.lean import NO_CHANGES
from hpt.training.sums import make_objective


PUBLISHED, OURS = "published", "ours"
WHOLE = "ours, whole towers"
GATED_STEPS = 2  # of PGD in evaluation: beyond, a pixel that rounding moves the other way moves further ones


def make_our_step(pair: Pair, attack_steps: int, dtype: torch.dtype | None = None) -> OurStep:
    """HPT's step of the transfer stage."""
    return OurStep(*pair, make_objective("hpt"), training_attack(attack_steps), dtype=dtype)


def measure_step(settings: Settings) -> Iterator[Measurement]:
    """HPT's training step, in images a second, times the published order of work, and as a share of the floor."""
    samples, pair = draw_samples(settings), make_pair(settings)
    published = Published(make_pair(settings), samples, training_attack(settings.attack_steps))
    step = make_our_step(pair, settings.attack_steps)
    whole = make_our_step(Pair(*map(with_whole_tower, pair)), settings.attack_steps)
    variants = {PUBLISHED: published.step, OURS: partial(step, samples), WHOLE: partial(whole, samples)}
    models = {name: (published.pair if name == PUBLISHED else pair).target.model for name in variants}
    gate = check_equal({name: partial(with_gradient, run, models[name]) for name, run in variants.items()}, PUBLISHED)
    measurement = Measurement("step", f"HPT's training step, {settings.size}", "s", {}, PUBLISHED, True, gate.further)
    measurement.faults = gate.faults
    if OURS in gate.equal:
        variants = {name: variants[name] for name in gate.equal}
        if settings.precision != "float32":
            lower = make_our_step(pair, settings.attack_steps, PRECISIONS[settings.precision])
            variants[f"{OURS}, {settings.precision}"] = partial(lower, samples)
        _time_with_matmul(measurement, variants, settings)
        _add_shares(measurement, step, samples, settings)
    yield measurement


def measure_evaluation(settings: Settings) -> Iterator[Measurement]:
    """PGD-10 in evaluation, times the published order of work."""
    samples, pair, whole = draw_samples(settings), make_pair(settings), make_pair(settings)

    def make_variants(attack) -> dict[str, Callable[[], Outcome]]:
        return {
            PUBLISHED: Published(whole, samples, attack).evaluation,
            OURS: partial(our_evaluation, pair.target, attack, samples),
            WHOLE: partial(our_evaluation, with_whole_tower(pair.target), attack, samples),
        }

    gate = check_equal(make_variants(evaluation_attack(GATED_STEPS)), PUBLISHED)
    attack = evaluation_attack()
    title = f"{attack.label} in evaluation, {settings.images} images, {settings.classes} prompts"
    measurement = Measurement("evaluation", title, "s", {}, PUBLISHED, True, gate.further)
    measurement.faults = gate.faults
    if OURS in gate.equal:
        variants = {name: run for name, run in make_variants(attack).items() if name in gate.equal}
        measurement.values = interleave(variants, settings.rounds, settings.device, "evaluation", warm_up=False)
        _add_speeds(measurement, settings)
    yield measurement


def with_gradient(run: Callable[[], Outcome], model) -> Outcome:
    """What a step comes to, with the gradient that it leaves in a model."""
    return run()._replace(gradient=gradient_of(model))


def with_whole_tower(classifier: ZeroShotClassifier) -> ZeroShotClassifier:
    """The same over the model as transformers has it."""
    whole = copy.copy(classifier)
    whole.changes = NO_CHANGES
    return whole


def _time_with_matmul(measurement: Measurement, variants: dict, settings: Settings) -> None:
    """Time variants, with products of matrices between them, whose rate in each round becomes a further number."""
    dtypes = {name: PRECISIONS[name] or torch.float32 for name in ("float32", settings.precision)}
    matmuls = {_rate(name): Matmul(dtype, settings.device) for name, dtype in dtypes.items()}
    seconds = interleave(variants | matmuls, settings.rounds, settings.device, "step", warm_up=False)
    for name, matmul in matmuls.items():
        measurement.further[name] = [matmul.flops / took / 1e9 for took in seconds.pop(name)]
    measurement.values = seconds


def _rate(precision: str) -> str:
    return f"GFLOP/s of matrix products in {precision}"


def _add_speeds(measurement: Measurement, settings: Settings) -> None:
    """Images a second of each variant."""
    for name, seconds in measurement.values.items():
        measurement.further[f"{name}: images/s"] = [settings.images / took for took in seconds]


def _add_shares(measurement: Measurement, step: OurStep, samples: Samples, settings: Settings) -> None:
    """The time that a machine at its matmul rate takes for a step, as a share of what ours took, in each round."""
    _add_speeds(measurement, settings)
    one = Samples(*(values[:1] for values in samples))
    flops = {"what it computes": count_flops(partial(step, one))}
    flops |= fewest_flops(Pair(step.target, step.proxy), settings.attack_steps)
    for what, per_image in flops.items():
        gflops = per_image * settings.images / 1e9
        for name, seconds in measurement.values.items():
            if name not in (PUBLISHED, WHOLE):
                rates = measurement.further[_rate(settings.precision if settings.precision in name else "float32")]
                shares = [gflops / rate / took for rate, took in zip(rates, seconds, strict=True)]
                title = f"{name}: share of the matmul rate, counting {what} ({per_image / 1e9:.3g} GFLOP an image)"
                measurement.further[title] = shares
