"""Any function of images to logits evaluated as a model is: the same rows, resume, flags and tables."""

import json
from dataclasses import asdict

import datasets
import numpy as np
import pytest
import torch
from helpers import CLASSES, make_benchmark, make_clip, make_dataset
from torch import nn

from hpt import PGD, InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.attacks.base import Attack
from hpt.classifiers import VERDICTS, draw_seeds, draw_uniform
from hpt.data.benchmark import Benchmark
from hpt.evaluation.flags import find_flags
from hpt.evaluation.functions import FunctionSubject
from hpt.evaluation.report import format_accuracies
from hpt.evaluation.results import read_result_rows
from hpt.evaluation.row_check import check_row
from hpt.evaluation.rows import LARGE_EPS, WORST_CASE
from hpt.evaluation.summary import weakest
from hpt.hub.rows import publish_rows
from hpt.json_files import digest


EPS = 16 / 255
SETTINGS = {"attacks": ["pgd:steps=2", "cw:steps=2"], "eps": EPS, "batch_size": 8}


@pytest.fixture(scope="module")
def clip():
    model, processor = make_clip(0)
    return model.eval(), processor


@pytest.fixture
def benchmark():
    return make_benchmark(25)


class Plain:
    """A dual encoder behind a function that says nothing of it."""

    def __init__(self, clip):
        self.network = ZeroShotClassifier(*clip, CLASSES, "{}")

    def __call__(self, images):
        return self.network(images)


class Linear(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3 * 16 * 16, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return 20 * self.head(self.dropout(images.flatten(1)))


class Noisy:
    """Its images are shifted by noise from the seeds."""

    randomised = True

    def __init__(self, strength=0.8):
        self.network, self.strength = Linear().eval(), strength

    def __call__(self, images, seeds):
        return self.network((images + self.strength * (draw_uniform(seeds, *images.shape[1:]) - 0.5)).clamp(0, 1))


class Blurred(Noisy):
    """The same weights and settings, in another class."""


class OverClasses:
    """A model with a text side of its own, which has seen which names."""

    def __init__(self):
        self._asked = []

    def with_classes(self, class_names, template=None):
        self._asked.append((class_names, template))
        weights = torch.randn(3 * 16 * 16, len(class_names), generator=torch.Generator().manual_seed(1))
        return lambda images: (images.flatten(1) - 0.5) @ weights


def evaluate(classifier, benchmark, name="mine", attacked=None, attacked_name=None, **settings):
    evaluator = RobustnessEvaluator(**SETTINGS | settings)
    given = {"attacked": attacked, "attacked_name": attacked_name}
    return evaluator(classifier=classifier, benchmarks=benchmark, name=name, **given)


def measured(rows):
    names = ("attacked", "attack", "eps", "accuracy", "low", "high", "n", "zero_gradient", "most_predicted", "samples")
    return [tuple(getattr(row, name) for name in names) for row in rows]


def in_place(images):
    """The classic `sub_` and `div_` of a normalisation."""
    return WEIGHTS(images.sub_(0.5).div_(0.25))


def apart(images):
    return WEIGHTS((images - 0.5) / 0.25)


WEIGHTS = Linear().eval()


# Rows


@pytest.mark.parametrize("attack", ["pgd:steps=2", "square:queries=5", "apgd", "fab-t"])
def test_what_changes_its_images_in_place_is_measured_as_what_does_not(benchmark, attack):
    given = {"attacks": attack, "max_samples": 12}
    assert measured(evaluate(in_place, benchmark, **given)) == measured(evaluate(apart, benchmark, **given))
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    before = images.clone()
    PGD(eps=EPS)(in_place, images, labels)
    assert torch.equal(images, before)


@pytest.mark.parametrize("hold", [lambda net: lambda images: net(images), lambda net: lambda images: [net][0](images)])
def test_modules_inside_a_function_are_in_eval_mode(benchmark, hold):
    network = nn.Sequential(nn.BatchNorm2d(3), Linear()).train()
    before = network[0].running_mean.clone()
    rows = evaluate(hold(network), benchmark, attacks="pgd:steps=1")
    assert not network.training and torch.equal(network[0].running_mean, before)
    assert not rows[0].stochastic


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_any_precision_are_taken_to_float32_or_wider(benchmark, dtype):
    rows = evaluate(lambda images: apart(images).to(dtype), benchmark, attacks="pgd:steps=1")
    clean, *_, attacked, _ = rows
    assert clean.accuracy == evaluate(apart, benchmark, attacks=[])[0].accuracy > attacked.accuracy


def test_probabilities_are_refused_and_decisions_are_not(benchmark):
    with pytest.raises(InputError, match="^mine gives probabilities, .* or the logarithm of the probabilities.$"):
        evaluate(lambda images: apart(images).softmax(1), benchmark)
    evaluate(lambda images: apart(images).log_softmax(1), benchmark, attacks=[])
    evaluate(lambda images: nn.functional.one_hot(apart(images).argmax(1), 3).float(), benchmark, attacks=[])


def test_a_function_has_the_rows_of_the_model_that_it_calls(clip, benchmark):
    rows = evaluate(Plain(clip), benchmark)
    expected = RobustnessEvaluator(**SETTINGS)(*clip, benchmark, name="mine")
    assert measured(rows) == measured(expected) and len(rows) == 5
    for row in rows:
        check_row(row)
        assert (row.model, row.identified_by, row.dtype) == ("mine", "weights", "float32")
        assert (row.templates, row.image_mean, row.evaluations, row.accuracies) == ([], [], None, [])
    assert format_accuracies(rows) == format_accuracies(expected)
    assert {row.identified_by for row in expected} == {None}


def test_what_has_a_text_side_is_given_the_classes_of_each_benchmark(benchmark):
    classifier, other = OverClasses(), make_benchmark(6, template="a {}")
    rows = evaluate(classifier, {"a": benchmark, "b": other}, attacks="pgd:steps=1")
    assert classifier._asked == [(CLASSES, "{}"), (CLASSES, "a {}")]
    assert [(row.benchmark, row.templates) for row in rows if row.attack == "clean"] == [
        ("a", ["{}"]),
        ("b", ["a {}"]),
    ]


def test_a_dual_encoder_as_a_classifier_is_itself(clip, benchmark):
    rows = evaluate(ZeroShotClassifier(*clip), benchmark, attacks=[])
    (expected,) = RobustnessEvaluator(**SETTINGS | {"attacks": []})(*clip, benchmark, name="mine")
    assert rows[0].settings() == expected.settings()


def test_a_subclass_of_a_dual_encoder_is_a_function_and_no_row_of_the_models_card(clip, benchmark):
    class Defended(ZeroShotClassifier):
        def forward(self, images, text_embeds=None):
            return -super().forward(images, text_embeds)

    rows = evaluate(Defended(*clip), benchmark, attacks=[])
    assert rows[0].identified_by == "weights" and rows[0].templates == ["{}"]
    assert publish_rows(rows, rows[0].weights, None) == []


def test_modules_are_evaluated_without_dropout(benchmark):
    module = Linear().train()
    rows = evaluate(module, benchmark)
    assert not module.training and rows[0].stochastic is False
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(25)]) / 255
    right = module(images).argmax(-1) == torch.tensor(benchmark.dataset["label"][:])
    assert rows[0].accuracy == pytest.approx(right.float().mean().item())


def test_images_come_at_their_own_size_or_as_the_benchmark_says():
    seen = []

    def classifier(images):
        seen.append(tuple(images.shape[-2:]))
        return images.flatten(1)[:, :3]

    own = Benchmark("mine", "test", make_dataset(6, size=20), CLASSES, None)
    assert FunctionSubject(classifier, "mine").on(own) is classifier
    (row,) = evaluate(classifier, own, attacks=[])
    assert row.attack_space == "native" and set(seen) == {(20, 20)}


def test_sizes_that_differ_are_refused_before_anything_runs():
    images = [np.zeros((side, 16, 3), np.uint8) for side in (16, 24)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    dataset = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    with pytest.raises(InputError, match="of mine have different sizes.*give geometry=256-224"):
        evaluate(lambda images: 1 / 0, Benchmark("mine", "test", dataset, CLASSES, None))


# What identifies it


def test_it_goes_on_where_it_stopped_and_keeps_its_rows(clip, benchmark, tmp_path, monkeypatch):
    rows = evaluate(Plain(clip), benchmark, output_dir=tmp_path)
    assert read_result_rows(tmp_path) == rows
    monkeypatch.setattr(Attack, "perturb", lambda *args: pytest.fail("measured again"))
    assert evaluate(Plain(clip), benchmark, output_dir=tmp_path) == rows


def test_rows_stand_beside_those_of_models_with_prompts(clip, benchmark, tmp_path):
    evaluate(Plain(clip), benchmark, output_dir=tmp_path)
    evaluator = RobustnessEvaluator(**SETTINGS, output_dir=tmp_path)
    evaluator(*clip, benchmark, name="model")
    evaluate(Plain(clip), benchmark, name="again", output_dir=tmp_path)
    assert {row.model for row in evaluator.results.rows.values()} == {"mine", "model"}


class Scaled:
    def __init__(self, seed=0, scale=1.0):
        self.head, self.scale = Linear(seed), scale

    def __call__(self, images):
        return self.scale * self.head(images)


HEAD = Linear(0)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (lambda: Linear(0), lambda: Linear(1), "weights"),
        (lambda: Scaled(0), lambda: Scaled(1), "weights"),
        (lambda: Scaled(0, 1.0), lambda: Scaled(0, 2.0), "configuration"),
        (lambda: Linear(0), lambda: lambda images: images.flatten(1)[:, :3], "weights '[0-9a-f]+' there, None here"),
        (Noisy, Blurred, "configuration"),
        (Noisy, lambda: Noisy(0.7), "configuration"),
    ],
    ids=["weights", "weights of an attribute", "a number", "a function", "class", "strength"],
)
def test_another_function_of_the_same_name_is_refused(benchmark, tmp_path, first, second, message):
    evaluate(first(), benchmark, attacks=[], output_dir=tmp_path)
    before = (tmp_path / "results.jsonl").read_text()
    with pytest.raises(InputError, match=f"other settings for model mine .*{message}.*give another output_dir"):
        evaluate(second(), benchmark, attacks=[], output_dir=tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == before


def test_what_cannot_be_told_from_another_is_said_once(benchmark, tmp_path, caplog):
    def classifier(images):
        return images.flatten(1)[:, :3]

    rows = evaluate(classifier, {"a": benchmark, "b": make_benchmark(6)}, attacks=[], output_dir=tmp_path)
    assert {(row.identified_by, row.weights, row.dtype) for row in rows} == {("name", None, "unknown")}
    (message,) = caplog.messages
    assert message.startswith("mine has no weights that were found: whether results in")
    caplog.clear()
    evaluate(classifier, benchmark, attacks=[])
    assert caplog.messages == []


# What can't be evaluated


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        ("a path", "The classifier is a str, but must be a function of images in .0, 1. to logits, or have with_cl"),
        (lambda images: images.missing, r"mine can't take an image of shape \(3, 16, 16\) in .0, 1.: AttributeError"),
        (lambda images: images.flatten(1)[:, :4], r"gives logits of shape \(4,\) in torch.float32 .* random has 3 cl"),
        (lambda images: images.flatten(1)[0, :3], "mine gives logits of shape .3,. for 1 images"),
        (lambda images: images.flatten(1)[:, :3].long(), "mine gives logits of shape .3,. in torch.int64"),
        (lambda images: (images.flatten(1)[:, :3],), "mine gives a tuple, but must give logits as a tensor"),
        (lambda images: images.flatten(1)[:, :3] * torch.nan, "mine gives NaN or infinite logits"),
        (make_clip(0)[0], r"mine can't take an image of shape \(3, 16, 16\)"),
        (lambda images: images.detach().flatten(1)[:, :3], "without a gradient for the image .they are detached from"),
        (
            lambda images: HEAD(images.detach()),
            "without a gradient for the image .they are detached from it., which pgd",
        ),
        (lambda images: torch.from_numpy(images.numpy()).flatten(1)[:, :3], "for the image .RuntimeError: Can't call"),
    ],
)
def test_what_cannot_be_evaluated_is_a_line_before_anything_runs(benchmark, tmp_path, classifier, message):
    with pytest.raises(InputError, match=message):
        evaluate(classifier, benchmark, output_dir=tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


def test_without_gradients_attacks_that_need_none_still_run(benchmark):
    rows = evaluate(lambda images: images.detach().flatten(1)[:, :3], benchmark, attacks="square:queries=5")
    assert [row.attack for row in rows] == ["clean", "square:queries=5", WORST_CASE]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Give a model with its processor, or classifier=..."),
        ({"model": 1, "classifier": len}, "Give a model with its processor, or classifier=..."),
        ({"classifier": lambda images: images}, "The classifier has no name that rows could call it"),
        ({"classifier": len, "name": "a\nb"}, "The name 'a.nb' is blank"),
        ({"classifier": len, "name": "m", "attacked": len}, "The attacked has no name"),
        ({"classifier": len, "name": "m", "attacked": len, "attacked_name": "m"}, "are both called 'm'"),
    ],
)
def test_what_is_not_said_is_asked_for(benchmark, given, message):
    with pytest.raises(InputError, match=message):
        RobustnessEvaluator(**SETTINGS)(benchmarks=benchmark, **given)


# Attacks that see another function


def test_an_attack_on_another_function_is_scored_on_this_one_and_flagged(clip, benchmark):
    """A defence that inverts its images, and the model without it: what was made on the latter."""
    bare = Plain(clip)

    def defended(images):
        return bare(1 - images)

    rows = evaluate(defended, benchmark, name="defended", attacked=bare, attacked_name="bare")
    kinds = [(row.model, row.attacked, row.attack) for row in rows]
    attacked = [("defended", "bare", text) for text in (*SETTINGS["attacks"], WORST_CASE)]
    assert kinds == [("defended", None, "clean"), *attacked]
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(25)]) / 255
    labels = torch.tensor(benchmark.dataset["label"][:])
    right = defended(images).argmax(-1) == labels
    adversarial = images.clone()
    adversarial[right] = PGD(eps=EPS, steps=2)(bare, images[right], labels[right], torch.arange(25)[right])
    assert rows[1].accuracy == pytest.approx((right & (defended(adversarial).argmax(-1) == labels)).float().mean())
    assert rows[1].parameters["attacked_weights"] == FunctionSubject(bare, "bare").weights
    (flag,) = [flag for flag in find_flags(rows) if flag.name == "attack-did-not-see-defence"]
    assert flag.message == (
        "PGD-2 made on bare at 16/255, CW-2 made on bare at 16/255: the attack has seen another function than the one "
        "scored, so this doesn't say what defended withstands of an attacker who knows it."
    )
    assert "| defended | PGD-2 made on bare " in format_accuracies(rows)


def test_both_kinds_of_rows_stand_in_one_folder_and_table(clip, benchmark, tmp_path):
    bare, settings = Plain(clip), {"name": "defended", "output_dir": tmp_path}
    defended = Linear()
    own = evaluate(defended, benchmark, **settings)
    naive = evaluate(defended, benchmark, attacked=bare, attacked_name="bare", **settings)
    assert naive[0] == own[0] and evaluate(defended, benchmark, **settings) == own
    assert [row.parameters for row in (own[-1], naive[-1])] == [{"attacks": sorted(SETTINGS["attacks"])}] * 2
    assert (own[-1].attacked, naive[-1].attacked) == ("defended", "bare")
    table = format_accuracies(read_result_rows(tmp_path))
    assert table.count("| PGD-2 ") == 2 and table.count("| worst case ") == 2
    with pytest.raises(InputError, match="for attack pgd:steps=2 .parameters"):
        evaluate(defended, benchmark, attacked=Linear(3), attacked_name="bare", **settings)


def test_attacks_with_a_proxy_see_more_than_what_is_attacked(clip, benchmark):
    evaluator = RobustnessEvaluator(**SETTINGS | {"attacks": "adaptive"}, proxy=ZeroShotClassifier(*clip))
    with pytest.raises(InputError, match="adaptive is made with the proxy, and not on bare alone"):
        evaluator(classifier=Linear(), benchmarks=benchmark, name="m", attacked=Plain(clip), attacked_name="bare")


def test_a_function_is_attacked_from_a_proxy_and_the_reverse(clip, benchmark):
    proxy = ZeroShotClassifier(*clip)
    attacks = ["transfer:steps=1", "adaptive:steps=1", "transfer-to-proxy:steps=1"]
    evaluator = RobustnessEvaluator(**SETTINGS | {"attacks": attacks}, proxy=proxy, proxy_name="proxy")
    rows = evaluator(classifier=Linear(), benchmarks=benchmark, name="mine")
    kinds = [(row.model, row.attacked, row.attack) for row in rows[3:]]
    assert kinds == [
        ("mine", "proxy", attacks[0]),
        ("mine", "mine", attacks[1]),
        ("proxy", "mine", attacks[2]),
        ("mine", "mine", WORST_CASE),
    ]
    flags = {flag.model: flag.message for flag in find_flags(rows) if flag.name == "attack-did-not-see-defence"}
    assert flags.keys() == {"mine", "proxy"} and flags["mine"].startswith("transfer from proxy at 16/255: the attack")


# Randomised classifiers


def test_verdicts_of_randomised_classifiers_are_means_over_draws_of_their_own(benchmark):
    evaluator = RobustnessEvaluator(**SETTINGS | {"attacks": "pgd:steps=2"}, evaluations=5, seed=3)
    classifier = Noisy()
    rows = evaluator(classifier=classifier, benchmarks=benchmark, name="noisy")
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(25)]) / 255
    labels, ids = torch.tensor(benchmark.dataset["label"][:]), torch.arange(25)

    def right(images):
        draws = [draw_seeds(3, ids, VERDICTS, number) for number in range(5)]
        return np.array([(classifier(images, seeds=seeds).argmax(-1) == labels).numpy() for seeds in draws])

    clean = right(images)
    some = torch.tensor(clean.any(0))
    assert 0 < clean.all(0).sum() < some.sum() < 25  # draws decide about some of the images
    adversarial = images.clone()
    adversarial[some] = PGD(eps=EPS, steps=2, seed=3)(classifier, images[some], labels[some], ids[some])
    attacked = right(adversarial)
    weakest = np.where(attacked.sum(0) < clean.sum(0), attacked, clean)
    assert weakest.mean() < clean.mean()
    for row, verdicts in ((rows[0], clean), (rows[2], weakest), (rows[3], weakest)):
        check_row(row)
        assert row.evaluations == 5 and row.accuracies == pytest.approx(verdicts.mean(1))
        assert row.accuracy == pytest.approx(verdicts.mean()) and row.n == 25
        assert row.always_right == pytest.approx(verdicts.all(0).mean())
        assert row.low <= row.accuracy <= row.high and row.stochastic in (False, None)
    assert len(set(rows[0].accuracies)) > 1 and rows[0].always_right < min(rows[0].accuracies)
    cell = f"{100 * min(rows[0].accuracies):.1f} to {100 * max(rows[0].accuracies):.1f} in 5 evaluations, "
    table = format_accuracies(rows)
    assert cell in table and table.endswith("and the share of images that are right in all.")


def test_chance_never_makes_the_worst_case_of_equal_attacks_too_high():
    random = np.random.default_rng(0)
    share = random.random(5000)

    def worst(evaluations):
        return weakest(random.random((4, evaluations, 5000)) < share).mean()

    assert worst(5) < worst(20) < worst(80) < share.mean() < worst(80) + 0.06
    alone = random.random((1, 20, 5000)) < share
    assert (weakest(alone) == alone[0]).all()
    once = random.random((4, 1, 5000)) < share
    assert (weakest(once) == once.all(0)).all()


@pytest.mark.parametrize("batch_size", [1, 25])
def test_neither_batches_nor_kills_change_a_randomised_verdict(benchmark, tmp_path, batch_size):
    settings = {"attacks": "pgd:steps=1", "evaluations": 3}
    rows = evaluate(Noisy(), benchmark, **settings)
    others = evaluate(Noisy(), benchmark, **settings, batch_size=batch_size)
    kept = lambda rows: [row.accuracies for row in rows if row.attack != LARGE_EPS]  # noqa: E731
    assert kept(rows) == kept(others)
    evaluate(Noisy(), benchmark, **settings, output_dir=tmp_path)
    lines = (tmp_path / "predictions-0.jsonl").read_text().splitlines()
    (tmp_path / "predictions-0.jsonl").write_text("".join(f"{line}\n" for line in lines[:-3]))
    again = evaluate(Noisy(), benchmark, **settings, output_dir=tmp_path)
    assert [asdict(row) | {"seconds": 0} for row in again] == [asdict(row) | {"seconds": 0} for row in rows]
    assert len(json.loads(lines[0])["again"]) == 2 and "again" in lines[-1]
    with pytest.raises(InputError, match="for model mine .evaluations 3 there, 4 here"):
        evaluate(Noisy(), benchmark, **settings | {"evaluations": 4}, output_dir=tmp_path)


def test_attacks_that_do_not_average_over_draws_are_flagged(benchmark):
    flags = {
        attack: {flag.name: flag for flag in find_flags(evaluate(Noisy(), benchmark, attacks=attack, evaluations=2))}
        for attack in ("pgd:steps=1", "pgd:steps=1,eot=2", "square:queries=2")
    }
    flag = flags["pgd:steps=1"]["stochastic-model"]
    assert flag.masking and "no attack averages its gradient over draws" in flag.message and flag.radius is None
    assert not any("stochastic-model" in flags[attack] for attack in ("pgd:steps=1,eot=2", "square:queries=2"))


def test_draws_of_what_draws_nothing_are_refused(benchmark, tmp_path):
    with pytest.raises(InputError, match="averages gradients over 3 draws of a randomised classifier"):
        evaluate(Linear(), benchmark, attacks="pgd:steps=1,eot=3", output_dir=tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


def test_draws_are_left_out_where_there_are_none_unless_that_is_everywhere(benchmark):
    subjects = [FunctionSubject(classifier, name) for classifier, name in ((Linear(), "plain"), (Noisy(), "noisy"))]
    evaluator = RobustnessEvaluator(**SETTINGS | {"attacks": ["pgd:steps=1", "pgd:steps=1,eot=2"]})
    plain, noisy = evaluator.plan_all(subjects, [benchmark], failures := [])
    attacks = ["clean", LARGE_EPS, "pgd:steps=1"]
    assert [task.settings["attack"] for task in plain] == attacks and failures == []
    assert [task.settings["attack"] for task in noisy] == [*attacks, "pgd:steps=1,eot=2"]
    line = "pgd:steps=1,eot=2 is left out of plain: what it attacks there isn't randomised."
    assert evaluator.left_out == [line]
    two = [FunctionSubject(Linear(), name) for name in ("plain", "plain too")]
    with pytest.raises(InputError, match=r"^Of pgd:steps=1,eot=2, gradients are averaged over draws, but nothing"):
        evaluator.plan_all(two, [benchmark], [])
    with pytest.raises(InputError, match="averages gradients over 2 draws of a randomised classifier"):
        evaluator.plan(two[0], benchmark)


def test_no_attack_on_a_randomised_classifier_takes_more_passes_than_planned(benchmark):
    evaluator = RobustnessEvaluator(**SETTINGS | {"attacks": "pgd:steps=1"})
    tasks = evaluator.plan(FunctionSubject(Noisy(), "noisy"), benchmark)
    evaluator.run(tasks)
    for task in tasks[1:]:
        passes = sum(record["passes"] for record in evaluator.results.predictions[task.key].values())
        assert passes <= evaluator.progress([tasks]).most_passes(task)


def test_a_randomised_classifier_that_hears_no_seeds_is_a_line(benchmark):
    def deaf(images):
        return images.flatten(1)[:, :3]

    deaf.randomised = True
    with pytest.raises(InputError, match="mine can't take an image .*TypeError"):
        evaluate(deaf, benchmark)


def test_one_that_draws_beside_its_seeds_is_flagged(benchmark):
    class Unsteady(Noisy):
        def __call__(self, images, seeds):
            return super().__call__(images, seeds) + torch.randn(len(images), 3)

    rows = evaluate(Unsteady(), benchmark, attacks="pgd:steps=1", evaluations=2)
    assert "stochastic-model" in {flag.name for flag in find_flags(rows)}


def test_one_evaluation_is_a_verdict_like_any_other(benchmark):
    rows = evaluate(Noisy(), benchmark, attacks="pgd:steps=1", evaluations=1)
    for row in rows:
        assert row.accuracies == [row.accuracy] and row.always_right == row.accuracy and row.evaluations == 1


def test_a_subject_is_made_once_and_tried_on_the_device_of_its_weights(benchmark):
    module = Linear()
    subject = FunctionSubject(module, "mine")
    seen = subject.see(benchmark)
    assert subject.on(seen) is module and subject.device(seen) == torch.device("cpu")
    assert subject.why_no_gradient(seen) is None
    assert digest(subject.settings(seen)) == digest(FunctionSubject(Linear(), "mine").settings(seen))
