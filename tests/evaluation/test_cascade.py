"""The worst case alone: attacks in order of cost, each on the samples that those before left."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_benchmark, make_clip, make_row, refusal_of, with_accuracy
from torch import nn

from hpt import InputError, RobustnessEvaluator
from hpt.attacks import Cascade
from hpt.classifiers import draw_uniform
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.evaluation.dial import measure_dial
from hpt.evaluation.figures import draw_clean_against_robust, draw_robustness_curves
from hpt.evaluation.flags import find_flags
from hpt.evaluation.functions import as_subject
from hpt.evaluation.report import attack_with_step, describe_row, format_accuracies, worst_cases
from hpt.evaluation.results import read_result_rows
from hpt.evaluation.row_check import check_row
from hpt.evaluation.rows import CASCADE, LARGE_EPS, WORST_CASE
from hpt.hub.index import as_eval_result, as_row
from hpt.hub.leaderboard import column_of
from hpt.hub.measurements import _untried
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.interpolation import Endpoints
from hpt.radius import Radius


ATTACKS = ["square:queries=40", "pgd:steps=5", "apgd-dlr:steps=8", "fgsm", "cw:steps=5"]
IN_ORDER = ["fgsm", "pgd:steps=5", "cw:steps=5", "apgd-dlr:steps=8", "square:queries=40"]
EPS = [2 / 255, 12 / 255]


class Linear(nn.Module):
    """Classes by a direction each, in float64; with a margin that a weak one hasn't."""

    def __init__(self, margin: float):
        super().__init__()
        weight = torch.randn(3, 768, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.weight, self.margin = nn.Parameter(weight / margin, requires_grad=False), margin

    def forward(self, images):
        hidden = images.double().flatten(1) @ self.weight.T
        return 5 * torch.tanh(hidden) + hidden**2 / 9


def labelled(model, rows=30) -> Benchmark:
    """Random images with what the model says of them as labels, but for every seventh."""
    benchmark = make_benchmark(rows)
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(rows)]) / 255
    labels = model(images).argmax(1).tolist()
    labels = [(label + (row % 7 == 0)) % 3 for row, label in enumerate(labels)]
    features = benchmark.dataset.features
    dataset = benchmark.dataset.remove_columns("label").add_column("label", labels).cast(features)
    return replace(benchmark, dataset=dataset)


def make_evaluator(folder=None, **settings):
    settings = {"attacks": ATTACKS, "eps": EPS, "batch_size": 4} | settings
    return RobustnessEvaluator(output_dir=folder, **settings)


def verdicts(evaluator, tasks):
    """By eps, which samples are right under all of the attacks."""
    labels = np.asarray(tasks[0].benchmark.dataset["label"][:])
    right: dict[float, np.ndarray] = {}
    for task in tasks:
        if task.attack is not None and task.settings["attack"] != LARGE_EPS:
            own = evaluator.results.predicted(task.key)[0] == labels
            right[task.attack.eps] = right.get(task.attack.eps, True) & own
    return right


def clip_and_benchmark():
    classifier = ZeroShotClassifier(*make_clip(0)).eval()
    benchmark = make_benchmark(30)
    return classifier.with_classes(benchmark.class_names, "{}"), benchmark


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_the_worst_case_is_the_same_for_every_sample(strength):
    model = Linear(margin=3 if strength == "weak" else 12)
    subject, benchmark = as_subject(model, strength, torch.device("cpu")), labelled(model)
    whole, cascade = make_evaluator(), make_evaluator(cascade=True)
    planned, fewer = (evaluator.plan(subject, benchmark) for evaluator in (whole, cascade))
    rows, cascade_rows = whole.run(planned), cascade.run(fewer)
    expected, found = verdicts(whole, planned), verdicts(cascade, fewer)
    for eps in EPS:
        assert expected[eps].tolist() == found[eps].tolist()
    assert len({tuple(right) for right in found.values()}) == 2  # the radii differ
    assert [row.accuracy for row in rows if row.attack == WORST_CASE] == [row.accuracy for row in cascade_rows[2:]]

    def passes(evaluator, tasks):
        return sum(batch["passes"] for task in tasks[2:] for batch in evaluator.results.predictions[task.key].values())

    assert passes(cascade, fewer) < passes(whole, planned)


def test_rows_say_what_they_are(subject, benchmark, tmp_path):
    rows = make_evaluator(tmp_path, cascade=True)(
        subject.classifier.model, subject.classifier.processor, make_benchmark(30), name="mine"
    )
    assert [(row.attack, row.eps) for row in rows[2:]] == [(CASCADE, eps) for eps in EPS]
    for row in rows[2:]:
        assert row.parameters["attacks"] == IN_ORDER == list(row.broken_by)
        assert row.parameters["settings"]["pgd:steps=5"]["step_size"] == row.eps / 4
        assert (row.attacked, row.against, row.steps, row.restarts) == ("mine", "mine", None, None)
        lost = round((rows[0].accuracy - row.accuracy) * row.n)
        assert sum(row.broken_by.values()) == lost
        assert row.label == attack_with_step(row).removeprefix("the ") == "worst case (cascade)"
        assert describe_row(row).startswith("Robust accuracy, worst case (cascade) over fgsm, pgd:steps=5, cw:steps=5")
        assert column_of(row).attack == f"the worst case (cascade) over {', '.join(IN_ORDER)}"
        assert as_row(as_eval_result(row), "mine").parameters == row.parameters
    assert read_result_rows(tmp_path) == rows
    table = format_accuracies(rows)
    assert "| mine  | worst case (cascade) |" in table and "over fgsm" not in table
    assert (
        "Worst case (cascade): fgsm, then pgd:steps=5, then cw:steps=5, then apgd-dlr:steps=8, then "
        "square:queries=40, each on the samples that those before left."
    ) in table.replace("\\", "")
    again = make_evaluator(tmp_path, cascade=True)(
        subject.classifier.model, subject.classifier.processor, make_benchmark(30), name="mine"
    )
    assert again == rows


def test_another_cascade_in_the_same_folder_is_refused_and_single_attacks_are_not(tmp_path):
    classifier, benchmark = clip_and_benchmark()
    pair = classifier.model, classifier.processor
    make_evaluator(tmp_path, cascade=True, attacks=["fgsm", "pgd:steps=2"])(*pair, benchmark, name="mine")
    with pytest.raises(InputError, match=r"other settings for attack worst case \(cascade\) \(parameters"):
        make_evaluator(tmp_path, cascade=True, attacks=["pgd:steps=2"])(*pair, benchmark, name="mine")
    rows = make_evaluator(tmp_path, attacks=["fgsm", "pgd:steps=2"])(*pair, benchmark, name="mine")
    worst = [row for row in rows if row.attack == WORST_CASE]
    assert [row.parameters["attacks"] for row in worst] == [
        ["fgsm", "pgd:steps=2"]
    ] * 2  # the cascade isn't among them
    assert {row.attack for row in worst_cases(read_result_rows(tmp_path))} == {WORST_CASE}


def test_attacks_with_a_proxy_are_in_it_with_the_proxys_weights():
    classifier, benchmark = clip_and_benchmark()
    proxy = ZeroShotClassifier(*make_clip(1, patch_size=4)).eval()
    settings = {"proxy": proxy, "proxy_name": "proxy", "attacks": ["adaptive:steps=3", "transfer:steps=3"]}
    whole, cascade = make_evaluator(**settings), make_evaluator(cascade=True, **settings)
    rows = [evaluator(classifier.model, classifier.processor, benchmark) for evaluator in (whole, cascade)]
    worst = [row for row in rows[0] if row.attack == WORST_CASE]
    assert [row.accuracy for row in worst] == [row.accuracy for row in rows[1][2:]]
    single = next(row for row in rows[0] if row.attack == "adaptive:steps=3")
    for row in rows[1][2:]:
        assert row.parameters["proxy_weights"] == single.parameters["proxy_weights"]
        assert row.other_model == single.other_model
    proxy.model.visual_projection.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match=r"worst case \(cascade\) at 2/255: the logits of the model, or of its proxy"):
        make_evaluator(cascade=True, **settings)(classifier.model, classifier.processor, benchmark)


def test_what_a_cascade_cannot_have_is_refused():
    classifier, benchmark = clip_and_benchmark()
    with pytest.raises(InputError, match="^transfer-to-proxy is scored on the proxy, .*: leave transfer-to-proxy out"):
        make_evaluator(cascade=True, attacks=["pgd", "transfer-to-proxy"], proxy=classifier)

    class Noisy:
        randomised = True

        def __call__(self, images, seeds):
            return classifier(images + draw_uniform(seeds, *images.shape[1:]) / 10)

    evaluator = make_evaluator(cascade=True, attacks=["pgd:steps=1"])
    with pytest.raises(InputError, match="noisy is randomised, and may be right the next time: evaluate without"):
        evaluator(classifier=Noisy(), benchmarks=benchmark, name="noisy")
    other = {"attacked": lambda images: classifier(images), "attacked_name": "undefended"}
    with pytest.raises(InputError, match="its attacks see undefended and not mine, which is scored"):
        evaluator(classifier=lambda images: classifier(images), benchmarks=benchmark, name="mine", **other)


def test_the_recipe_refuses_before_anything_is_loaded(tmp_path):
    arguments = ("--models", "nowhere", "--benchmarks", "digits", "--output_dir", tmp_path / "out", "--cascade")
    line = refusal_of(
        "evaluate.py", *arguments, "--attacks", "transfer-to-proxy", "--proxy", "nowhere", "--eps", "4/255"
    )
    assert "transfer-to-proxy is scored on the proxy" in line and not (tmp_path / "out").exists()


def test_attacks_that_so_few_classes_cannot_have_are_left_out():
    classifier, _ = clip_and_benchmark()
    dataset = make_benchmark(30).dataset.filter(lambda row: row["label"] < 2)
    pair = Benchmark("pair", "test", dataset, ["cat", "dog"], "{}", ImageTransform())
    evaluator = make_evaluator(cascade=True, attacks=["apgd-t", "apgd"], eps=EPS[0])
    *_, row = evaluator(classifier.model, classifier.processor, pair)
    assert (row.parameters["attacks"], row.left_out) == (["apgd"], ["apgd-dlr"])
    assert evaluator.left_out == ["apgd-t isn't defined for the 2 classes of pair."]
    rows = make_evaluator(cascade=True, attacks=["apgd-t"])(classifier.model, classifier.processor, pair)
    assert [row.attack for row in rows] == ["clean", LARGE_EPS]


def test_a_dial_takes_a_cascade_for_the_worst_case(subject):
    classifier, benchmark = subject.classifier, replace(make_benchmark(12), split="validation")
    start, end = (make_clip(seed)[0].state_dict() for seed in (0, 4))
    settings = {"attacks": ["fgsm", "pgd:steps=2"], "eps": EPS[1]}
    measured = [
        measure_dial(classifier, Endpoints(start, end), benchmark, make_evaluator(**settings, **more), [(0.5, 0)])
        for more in ({}, {"cascade": True})
    ]
    assert measured[0] == measured[1]


def test_pictures_show_a_cascade_where_there_is_no_other_worst_case(tmp_path):
    over = {"attacks": ["fgsm", "pgd"], "settings": {}}
    rows = [
        make_row("clean", 0.9),
        *(make_row(CASCADE, 0.9 - eps, eps=eps, steps=None, parameters=over) for eps in (0.1, 0.3)),
    ]
    assert [row.eps for row in worst_cases(rows)] == [0.1, 0.3]
    both = [*rows, make_row(WORST_CASE, 0.8, eps=0.1, parameters={"attacks": ["fgsm", "pgd"]})]
    assert [row.attack for row in worst_cases(both)] == [WORST_CASE, CASCADE]
    for each in (rows, both):
        draw_robustness_curves(each, "b", "linf", tmp_path / "curves.png")
        draw_clean_against_robust(each, Radius(0.1), tmp_path / "points.png")
    assert {file.name for file in tmp_path.iterdir()} == {"curves.png", "points.png"}


def test_flags_and_limits_know_a_cascade():
    more = {"steps": None, "parameters": {"attacks": ["square", "pgd"]}, "broken_by": {"square": 300, "pgd": 20}}
    row = replace(make_row(CASCADE, 0.5), zero_gradient=0, **more)
    pgd = make_row("pgd", 0.6)
    assert [flag.name for flag in find_flags([make_row("clean", 0.9), row])] == []  # Square had everything to break
    assert [flag.name for flag in find_flags([make_row("clean", 0.9), pgd, row])] == ["pgd-too-weak"]
    assert not any("no worst case over several attacks" in line for line in _untried([row], "me/mine", False))
    (line,) = _untried([row], "me/mine", False)
    assert "not attacked by cw, apgd" in line and " pgd," not in line and "square" not in line


@pytest.mark.parametrize("attacks", [[], None, "pgd"])
def test_a_cascade_over_nothing_cannot_have_been_measured(attacks):
    row = with_accuracy(make_row(CASCADE, 0.5), 0.5, steps=None, parameters={"attacks": attacks})
    with pytest.raises(ValueError, match="attacks|over no attack"):
        check_row(row)
    check_row(replace(row, parameters={"attacks": ["pgd"]}))


def test_a_picture_of_examples_takes_the_cheapest_attack(subject):
    evaluator = make_evaluator(cascade=True, attacks=["cw:steps=2", "fgsm"], eps=EPS[1])
    evaluator.run(tasks := evaluator.plan(subject, make_benchmark(12)))
    assert isinstance(tasks[-1].attack, Cascade)
    assert {example["attack"] for example in evaluator.examples(tasks)} == {"fgsm at 12/255"}
