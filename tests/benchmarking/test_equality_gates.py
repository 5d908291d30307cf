"""What doesn't compute the same as the published order of work is named, and isn't timed."""

import json
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from helpers import Reads

from hpt.attacks import PGD
from hpt.benchmarking import steps
from hpt.benchmarking.gates import LIMITS, check_equal, faults_of
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import draw_samples, make_pair
from hpt.benchmarking.ours import OurStep, evaluation_attack, our_evaluation, training_attack
from hpt.benchmarking.published import Published
from hpt.benchmarking.run import run_benchmark
from hpt.benchmarking.settings import Settings
from hpt.errors import TrainingStopped
from hpt.training.sums import make_objective


TINY = Settings(models="quickstart", images=4, classes=3, rounds=2, use_cpu=True)


@pytest.fixture
def published() -> Published:
    return Published(make_pair(TINY), draw_samples(TINY), training_attack(2))


def run_step(**changes):
    """Our step with something changed, as the gate runs it."""
    pair = make_pair(TINY)
    step = replace(steps.make_our_step(pair, 2), **changes)
    return partial(steps.with_gradient, partial(step, draw_samples(TINY)), pair.target.model)


def test_ours_comes_to_what_the_published_order_of_work_comes_to(published):
    exact = partial(steps.with_gradient, published.step, published.pair.target.model)
    gate = check_equal({"published": exact, "ours": run_step()}, "published")
    assert gate.equal == ["published", "ours"] and gate.faults == []
    assert set(gate.further) == {f"ours: difference in {what}" for what in LIMITS if what != "verdicts"}


class TooSteep(OurStep):
    """A step with the right loss and a gradient that is a thousandth too large."""

    def __call__(self, samples):
        outcome = super().__call__(samples)
        for weight in self.target.model.parameters():
            if weight.grad is not None:
                weight.grad *= 1.001
        return outcome


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"attack": training_attack(2, seed=1)}, {"adversarial entries"}),
        ({"attack": training_attack(3)}, {"adversarial entries"}),
        ({"attack": PGD(eps="2/255", step_size="1/255", steps=2)}, {"adversarial entries"}),
        ({"objective": make_objective("hpt", settings="temperature=2")}, {"loss", "gradient"}),
        ({"objective": make_objective("tecoa")}, {"loss", "gradient"}),
        ({"dtype": torch.bfloat16}, {"gradient"}),
    ],
    ids=["another start", "another step", "another eps", "another loss", "another objective", "another precision"],
)
def test_a_variant_that_computes_something_else_is_caught(published, changes, faults):
    exact = partial(steps.with_gradient, published.step, published.pair.target.model)
    if isinstance(attack := changes.get("attack"), PGD):
        attack.loss = training_attack(2).loss
    gate = check_equal({"published": exact, "wrong": run_step(**changes)}, "published")
    assert gate.equal == ["published"]
    for fault in faults:
        assert any(
            line.startswith(f"wrong isn't timed: it differs from the reference in {fault} by ") for line in gate.faults
        )


def test_a_gradient_that_is_slightly_wrong_is_caught(published):
    pair = make_pair(TINY)
    wrong = TooSteep(*pair, make_objective("hpt"), training_attack(2))
    variants = {
        "published": partial(steps.with_gradient, published.step, published.pair.target.model),
        "wrong": partial(steps.with_gradient, partial(wrong, draw_samples(TINY)), pair.target.model),
    }
    (fault,) = check_equal(variants, "published").faults
    assert fault == "wrong isn't timed: it differs from the reference in gradient by 0.001, where 0.0001 is allowed."


@pytest.mark.parametrize("what", LIMITS)
def test_what_is_no_number_is_beyond_every_limit(what):
    assert faults_of("x", {what: LIMITS[what]}) == []
    assert len(faults_of("x", {what: float("nan")})) == 1


def test_verdicts_must_be_the_same():
    samples, pair = draw_samples(TINY), make_pair(TINY)
    attack = evaluation_attack(2)

    def wrong():
        outcome = our_evaluation(pair.target, attack, samples)
        return outcome._replace(right=~outcome.right)

    published = Published(make_pair(TINY), samples, attack).evaluation
    gate = check_equal(
        {"published": published, "ours": partial(our_evaluation, pair.target, attack, samples)}, "published"
    )
    assert gate.equal == ["published", "ours"]
    (fault,) = check_equal({"published": published, "wrong": wrong}, "published").faults
    assert "in verdicts by 1, where 0 is allowed" in fault


@pytest.mark.parametrize("measure", ["step", "evaluation"])
def test_nothing_is_timed_where_ours_fails_its_gate_and_the_run_says_so(measure, tmp_path, monkeypatch, capsys):
    make = steps.make_our_step
    monkeypatch.setattr(
        steps, "make_our_step", lambda *given: replace(make(*given), attack=training_attack(2, seed=1))
    )
    monkeypatch.setattr(
        steps, "our_evaluation", lambda *given: our_evaluation(*given)._replace(right=torch.ones(4) > 2)
    )
    with pytest.raises(
        TrainingStopped, match=r"^(step|evaluation): ours isn't timed: it differs from the reference in "
    ):
        run_benchmark(replace(TINY, measure=[measure], output_dir=str(tmp_path)))
    (described,) = json.loads((tmp_path / "benchmark.json").read_text())["measurements"]
    assert described["values"] == {} and described["faults"]
    assert "NOT EQUAL: ours isn't timed" in capsys.readouterr().out


IN_BOTH = ["published", "ours", "ours, whole towers", "published, bf16", "ours, bf16"]  # precisions


def test_lower_precision_stands_beside_float32_with_a_rate_of_its_own():
    (measurement,) = steps.measure_step(replace(TINY, precision="bf16"))
    assert list(measurement.values) == [*IN_BOTH, "ours, proxy in float32, bf16"]
    assert not measurement.faults
    rates = [f"GFLOP/s of matrix products in {name}" for name in ("float32", "bf16")]
    assert all(len(measurement.further[name]) == TINY.rounds for name in rates)
    shares = {name: values for name, values in measurement.further.items() if name.startswith("ours, bf16: share of")}
    assert len(shares) == 3
    for name, values in shares.items():
        gflop = float(name.partition("(")[2].split()[0]) * TINY.images
        rounds = zip(measurement.further[rates[1]], measurement.values["ours, bf16"], strict=True)
        assert values == pytest.approx([gflop / rate / seconds for rate, seconds in rounds], rel=0.01)


def test_an_evaluation_in_lower_precision_stands_beside_float32(monkeypatch):
    seen = []
    evaluate = steps.our_evaluation
    monkeypatch.setattr(steps, "our_evaluation", lambda *given: seen.append(given[-1]) or evaluate(*given))
    (measurement,) = steps.measure_evaluation(replace(TINY, precision="bf16"))
    assert list(measurement.values) == IN_BOTH
    assert seen.count(torch.bfloat16) == 1 + TINY.rounds  # the first untimed


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_step_that_computes_something_else_is_caught(precision, monkeypatch):
    """In float32, where that can be told from rounding."""
    monkeypatch.setattr(
        steps, "compile_towers", lambda target, *others: target.model.visual_projection.weight.data.add_(0.1)
    )
    (measurement,) = steps.measure_compiled(replace(TINY, precision=precision, compile_modes=["default"]))
    timed, faults = ["published", "ours"], measurement.faults
    if precision == "bf16":
        timed.append("ours, compiled")
        assert faults == []
    else:
        assert faults and all(fault.startswith("ours, compiled isn't timed: it differs") for fault in faults)
    assert list(measurement.values) == timed
    assert measurement.further["ours, compiled: difference in gradient"][0] > LIMITS["gradient"]
    assert measurement.further["ours, compiled: seconds of the first step"][0] > 0


def test_of_compiled_towers_gate_and_timing_compile_nothing_that_the_first_step_has_not(monkeypatch):
    """A minute of a GPU's time for each mode is all that compiling takes: the gate runs the step that is timed."""
    graphs = []

    def compile_towers(target, frozen, plugin):
        for classifier in (target, *frozen):
            tower = classifier.family.towers(classifier.model)[0]
            tower.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)

    def check_gate(variants, reference):
        before = len(graphs)
        gate = check_equal(variants, reference)
        assert before == len(graphs) > 0
        return gate

    torch.compiler.reset()
    monkeypatch.setattr(steps, "Matmul", lambda dtype, device: Mock(flops=1))  # which takes seconds
    monkeypatch.setattr(steps, "compile_towers", compile_towers)
    monkeypatch.setattr(steps, "check_equal", check_gate)
    (measurement,) = steps.measure_compiled(replace(TINY, precision="bf16", compile_modes=["default"]))
    assert "ours, compiled" in measurement.values
    assert len(graphs) == 3  # the target under attack and in training, and the proxy


def test_a_modes_result_is_printed_before_the_next_is_compiled(monkeypatch, capsys):
    printed = []

    def compare_compiled(mode, settings):
        printed.append(capsys.readouterr().out)
        return Measurement(mode, "a step", "s", {}, "published")

    monkeypatch.setattr(steps, "compare_compiled", compare_compiled)
    run_benchmark(replace(TINY, measure=["compiled"], compile_modes=["default", "reduce-overhead"]))
    assert printed == ["", "default: a step\n\n"]


@pytest.mark.parametrize("too_large", ["published", "ours, whole towers"])
def test_what_a_gpu_has_no_memory_for_is_left_out_and_named(too_large, monkeypatch):
    make, sizes = steps.make_steps, []

    def make_steps(settings, *given):
        variants = make(settings, *given)
        sizes.append(settings.images)
        if settings.images == TINY.images:  # those that are timed
            variants[too_large] = run_out_of_memory
        return variants

    monkeypatch.setattr(steps, "make_steps", make_steps)
    monkeypatch.setattr(steps, "is_cold", lambda settings: True)
    monkeypatch.setattr(steps, "GATED_IMAGES", 2)
    (measurement,) = steps.measure_step(TINY)
    assert sizes == [2, TINY.images]
    kept = [name for name in ("published", "ours", "ours, whole towers") if name != too_large]
    assert list(measurement.values) == kept and measurement.reference == kept[0] and not measurement.faults
    assert measurement.title.endswith(f"; the GPU's memory doesn't hold {too_large}")
    assert f"times as fast as {kept[0]}" in str(measurement)


def run_out_of_memory():
    raise torch.OutOfMemoryError


def test_a_timed_step_waits_for_nothing():
    samples, pair = draw_samples(TINY), make_pair(TINY)
    step = steps.make_our_step(pair, 2)
    step(samples)  # which encodes the prompts
    with Reads(on_host=[samples.ids]) as reads:
        step(samples)
    assert not reads.seen
