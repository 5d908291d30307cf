"""A training step and PGD in evaluation, ours beside the published order of work, and how near the floor they are.

Ours is also measured on the towers as transformers has them, without what `hpt.models.lean` changes in them.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from accelerate.utils import TorchDynamoPlugin

from hpt.benchmarking.arithmetic import Matmul, count_flops, fewest_flops
from hpt.benchmarking.gates import Outcome, check_equal, gradient_of
from hpt.benchmarking.measurement import Measurement, without
from hpt.benchmarking.models import Pair, draw_samples, make_pair
from hpt.benchmarking.ours import OurStep, evaluation_attack, our_evaluation, training_attack
from hpt.benchmarking.published import Published
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.benchmarking.timing import Stopwatch, interleave
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.lean import NO_CHANGES
from hpt.training.run_models import compile_towers
from hpt.training.sums import make_objective


PUBLISHED, OURS, COMPILED = "published", "ours", "compiled"
WHOLE = "ours, whole towers"
OF_FLOAT32 = "ours, proxy in float32"  # beside one whose proxy has weights in the precision of the step
COMPUTED = "what it computes"
GATED_IMAGES = 64  # at most, of a step in float32: the published order of work keeps 0.2 GiB an image
GATED_STEPS = 2  # of PGD in evaluation: beyond, a pixel that rounding moves the other way moves further ones


def make_our_step(pair: Pair, attack_steps: int, dtype: torch.dtype | None = None) -> OurStep:
    """HPT's step of the transfer stage."""
    return OurStep(*pair, make_objective("hpt"), training_attack(attack_steps), dtype=dtype)


def is_cold(settings: Settings) -> bool:
    """Whether gates leave variants to be warmed up: a GPU's kernels are chosen, and its memory taken, size by size."""
    return settings.device.type == "cuda"


def measure_step(settings: Settings) -> Iterator[Measurement]:
    """HPT's training step, in images a second, times the published order of work, and as a share of the floor."""
    theirs, pair = make_pair(settings), make_pair(settings)
    few = replace(settings, images=min(settings.images, GATED_IMAGES))
    gated = _with_gradients(make_steps(few, theirs, pair), theirs, pair)
    gate = check_equal(gated, PUBLISHED)
    measurement = Measurement("step", f"HPT's training step, {settings.size}", "s", {}, PUBLISHED, True, gate.further)
    measurement.faults = gate.faults
    if OURS in gate.equal:
        variants = {name: run for name, run in make_steps(settings, theirs, pair).items() if name in gate.equal}
        if settings.precision != "float32":
            dtype = PRECISIONS[settings.precision]
            lower = make_steps(settings, theirs, Pair(pair.target, make_pair(settings, dtype).proxy), dtype)
            lower.pop(WHOLE)
            lower[OF_FLOAT32] = make_steps(settings, theirs, pair, dtype)[OURS]
            variants |= {_in_precision(name, settings): run for name, run in lower.items()}
        _time_with_matmul(measurement, variants, settings, gate.equal)
        _add_shares(measurement, pair, settings)
    yield measurement


def make_steps(
    settings: Settings, theirs: Pair, pair: Pair, dtype: torch.dtype | None = None
) -> dict[str, Callable[[], Outcome]]:
    """A step in the published order of work, ours, and ours on whole towers.

    Args:
        settings ([`Settings`]): Its sizes.
        theirs, pair ([`Pair`]): The models of the published order of work, of which all weights have gradients from
            here on, and ours.
        dtype (`torch.dtype`, *optional*): Of autocast around its forward passes, if it is to be on; our proxy has a
            dtype of its own.
    """
    samples, steps = draw_samples(settings), settings.attack_steps
    whole = Pair(*map(with_whole_tower, pair))
    return {
        PUBLISHED: Published(theirs, samples, training_attack(steps), dtype).step,
        OURS: partial(make_our_step(pair, steps, dtype), samples),
        WHOLE: partial(make_our_step(whole, steps, dtype), samples),
    }


def measure_compiled(settings: Settings) -> Iterator[Measurement]:
    """HPT's step on compiled towers, as `--torch_compile` trains, beside the same that aren't, in one precision.

    A compiled step in float32 has to come to what the published order of work comes to, as any other. In 16 bits,
    where steps differ by rounding anyhow, it is said how far each is from it. Seconds of the first step, in which
    torch compiles, are a further number.
    """
    for mode in dict.fromkeys(settings.compile_modes):
        yield compare_compiled(mode, settings)


def compare_compiled(mode: str, settings: Settings) -> Measurement:
    """The step on towers that are compiled in a mode of `torch.compile`."""
    dtype = PRECISIONS[settings.precision]
    theirs, pair, compiled = make_pair(settings), make_pair(settings, dtype), make_pair(settings, dtype)
    variants = make_steps(settings, theirs, pair, dtype)
    variants.pop(WHOLE)
    compile_towers(compiled.target, [compiled.proxy], TorchDynamoPlugin(backend="INDUCTOR", mode=mode))
    step = make_our_step(compiled, settings.attack_steps, dtype)
    variants[f"{OURS}, {COMPILED}"] = run = partial(replace(step, compiled=True), draw_samples(settings))
    watch = Stopwatch(settings.device)
    run()
    further = {f"{OURS}, {COMPILED}: seconds of the first step": [watch.lap()]}
    gate = check_equal(_with_gradients(variants, theirs, pair, compiled), PUBLISHED)
    title = f"HPT's training step on compiled towers, {settings.size}, {settings.precision}"
    measurement = Measurement(f"{COMPILED}: {mode}", title, "s", {}, PUBLISHED, True, further | gate.further)
    if settings.precision == "float32":
        measurement.faults = gate.faults
        variants = {name: run for name, run in variants.items() if name in gate.equal}
    _time_with_matmul(measurement, variants, settings, list(variants))
    _add_shares(measurement, pair, settings)
    return measurement


def measure_evaluation(settings: Settings) -> Iterator[Measurement]:
    """PGD-10 in evaluation, times the published order of work."""
    samples, pair, whole = draw_samples(settings), make_pair(settings), make_pair(settings)

    def make_variants(attack, dtype=None) -> dict[str, Callable[[], Outcome]]:
        return {
            PUBLISHED: Published(whole, samples, attack, dtype).evaluation,
            OURS: partial(our_evaluation, pair.target, attack, samples, dtype),
            WHOLE: partial(our_evaluation, with_whole_tower(pair.target), attack, samples, dtype),
        }

    gate = check_equal(make_variants(evaluation_attack(GATED_STEPS)), PUBLISHED)
    attack = evaluation_attack()
    title = f"{attack.label} in evaluation, {settings.images} images, {settings.classes} prompts"
    measurement = Measurement("evaluation", title, "s", {}, PUBLISHED, True, gate.further)
    measurement.faults = gate.faults
    if OURS in gate.equal:
        variants = {name: run for name, run in make_variants(attack).items() if name in gate.equal}
        if settings.precision != "float32":
            lower = make_variants(attack, PRECISIONS[settings.precision])
            lower.pop(WHOLE)
            variants |= {_in_precision(name, settings): run for name, run in lower.items()}
        _time(measurement, variants, settings, gate.equal)
        measurement.add_speeds(settings.images)
    yield measurement


def _in_precision(name: str, settings: Settings) -> str:
    return f"{name}, {settings.precision}"


def _with_gradients(
    variants: dict[str, Callable[[], Outcome]], theirs: Pair, pair: Pair, compiled: Pair | None = None
) -> dict[str, Callable[[], Outcome]]:
    """Steps that also give the gradient that they leave, each in its own target."""
    pairs = {PUBLISHED: theirs, f"{OURS}, {COMPILED}": compiled}
    return {name: partial(with_gradient, run, pairs.get(name, pair).target.model) for name, run in variants.items()}


def with_gradient(run: Callable[[], Outcome], model) -> Outcome:
    """What a step comes to, with the gradient that it leaves in a model."""
    return run()._replace(gradient=gradient_of(model))


def with_whole_tower(classifier: ZeroShotClassifier) -> ZeroShotClassifier:
    """The same over the model as transformers has it."""
    whole = copy.copy(classifier)
    whole.changes = NO_CHANGES
    return whole


def _time_with_matmul(measurement: Measurement, variants: dict, settings: Settings, warm: list[str]) -> None:
    """Time variants, with products of matrices between them, whose rate in each round becomes a further number."""
    dtypes = {name: PRECISIONS[name] or torch.float32 for name in ("float32", settings.precision)}
    matmuls = {_rate(name): Matmul(dtype, settings.device) for name, dtype in dtypes.items()}
    _time(measurement, variants | matmuls, settings, [*warm, *matmuls])
    for name, matmul in matmuls.items():
        measurement.further[name] = [matmul.flops / took / 1e9 for took in measurement.values.pop(name)]


def _time(measurement: Measurement, variants: dict[str, Callable], settings: Settings, warm: list[str]) -> None:
    """Time variants, once they are warm, as those that a gate has run are on a CPU, but for what doesn't fit a GPU.

    Ratios are to the first that fits, if the one that they are to doesn't.
    """
    too_large = []
    for name in [name for name in variants if is_cold(settings) or name not in warm]:
        try:
            variants[name]()
        except torch.OutOfMemoryError:
            too_large.append(name)
            del variants[name]
    if measurement.reference in too_large:
        measurement.reference = next(iter(variants))
    measurement.title = without(measurement.title, too_large)
    measurement.values = interleave(variants, settings.rounds, settings.device, measurement.name, warm_up=False)


def _rate(precision: str) -> str:
    return f"GFLOP/s of matrix products in {precision}"


def _add_shares(measurement: Measurement, pair: Pair, settings: Settings) -> None:
    """The time that a machine at its matmul rate takes for a step, as a share of what ours took, in each round."""
    measurement.add_speeds(settings.images)
    step, one = make_our_step(pair, settings.attack_steps), draw_samples(replace(settings, images=1))
    flops = {COMPUTED: count_flops(partial(step, one))} | fewest_flops(pair, settings.attack_steps)
    in_one_precision = measurement.name.startswith(COMPILED)
    for what, per_image in flops.items():
        gflops = per_image * settings.images / 1e9
        for name, seconds in measurement.values.items():
            is_known = what != COMPUTED or COMPILED not in name  # compiled towers compute the whole last block
            if name.startswith(OURS) and name != WHOLE and OF_FLOAT32 not in name and is_known:
                lower = in_one_precision or name == _in_precision(OURS, settings)
                rates = measurement.further[_rate(settings.precision if lower else "float32")]
                shares = [gflops / rate / took for rate, took in zip(rates, seconds, strict=True)]
                title = f"{name}: share of the matmul rate, counting {what} ({per_image / 1e9:.3g} GFLOP an image)"
                measurement.further[title] = shares
