import json
from dataclasses import asdict, replace

import datasets
import numpy as np
import pytest
import torch
from helpers import CLASSES, make_benchmark, make_clip, make_dataset
from torch import nn
from torch.utils.data import TensorDataset

from hpt import PGD, InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.attacks import NamedAttack
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.evaluation.report import format_samples
from hpt.evaluation.rows import LARGE_EPS, WORST_CASE
from hpt.evaluation.subject import Subject
from hpt.evaluation.work import Work
from hpt.json_files import digest
from hpt.models.weights import hash_weights


EPS = [2 / 255, 16 / 255]
ATTACKS = ["pgd:steps=2", "cw:steps=2", "apgd-ce:steps=3", "adaptive:steps=2", "transfer:steps=2", "transfer-to-proxy"]


@pytest.fixture(scope="module")
def model_and_processor():
    model, processor = make_clip(0)
    return model.eval(), processor


@pytest.fixture
def proxy():
    return ZeroShotClassifier(*make_clip(1, patch_size=4))


@pytest.fixture
def benchmark():
    return make_benchmark(25)


def make_evaluator(proxy=None, **settings):
    settings = {"attacks": ["pgd:steps=2", "cw:steps=2"], "eps": EPS, "batch_size": 4} | settings
    return RobustnessEvaluator(proxy=proxy, proxy_name=proxy and "proxy", **settings)


def comparable(rows):
    return [{name: value for name, value in asdict(row).items() if name != "seconds"} for row in rows]


def test_rows_are_what_they_say(model_and_processor, proxy, benchmark):
    model, processor = model_and_processor
    rows = make_evaluator(proxy, attacks=ATTACKS)(model, processor, benchmark, name="mine")
    kinds = [(row.model, row.attacked, row.attack, row.eps) for row in rows]
    attacked = {text: ("mine", "proxy" if text.startswith("transfer:") else "mine", text) for text in ATTACKS}
    attacked["transfer-to-proxy"] = ("proxy", "mine", "transfer-to-proxy")
    expected = [("mine", None, "clean", None), ("mine", "mine", LARGE_EPS, 0.5), ("proxy", None, "clean", None)]
    expected += [(*attacked[text], eps) for eps in EPS for text in ATTACKS]
    assert kinds == expected + [("mine", "mine", WORST_CASE, eps) for eps in EPS]
    for row in rows:
        assert (row.benchmark, row.split, row.attack_space, row.templates) == ("random", "test", "native", ["{}"])
        assert (row.n, row.seed, row.dtype, row.batch_size, row.hpt_version) == (25, 0, "float32", 4, "0.1.0")
        assert row.low <= row.accuracy <= row.high and row.seconds > 0
    pgd = rows[3]
    assert (pgd.steps, pgd.restarts, pgd.norm, pgd.step_size) == (2, 1, "linf", EPS[0] / 4)
    assert pgd.weights == hash_weights(model.state_dict()) and pgd.parameters["random_start"] is True
    assert rows[6].parameters["proxy_weights"] == hash_weights(proxy.model.state_dict())


def test_accuracies_equal_an_independent_computation(model_and_processor, benchmark):
    model, processor = model_and_processor
    classifier = ZeroShotClassifier(model, processor, CLASSES, "{}")
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(25)]) / 255
    labels, ids = torch.tensor(benchmark.dataset["label"]), torch.arange(25)
    right = {"clean": classifier(images).argmax(-1) == labels}
    for eps in EPS:
        adversarial = PGD(eps=eps, steps=2)(classifier, images, labels, ids)
        right["pgd:steps=2", eps] = (classifier(adversarial).argmax(-1) == labels) & right["clean"]
    rows = make_evaluator()(model, processor, benchmark)
    measured = {row.attack if row.attack == "clean" else (row.attack, row.eps): row for row in rows}
    for key, verdicts in right.items():
        assert measured[key].accuracy == pytest.approx(verdicts.float().mean().item()), key


@pytest.mark.parametrize("mean_per_class", [False, True])
def test_rows_follow_from_the_predictions(model_and_processor, benchmark, monkeypatch, mean_per_class):
    """With what each attack breaks given: every third sample, every fifth, and at the larger eps more."""
    broken_by = {("pgd:steps=2", EPS[0]): 3, ("cw:steps=2", EPS[0]): 5, ("pgd:steps=2", EPS[1]): 2}
    labels = np.array(benchmark.dataset["label"])

    def predict(task, inputs):
        every = broken_by.get((task.settings["attack"], task.settings["eps"]), 7 if task.attack else 24)
        wrong = inputs["sample_ids"] % every == 0
        predictions = torch.where(wrong, (inputs["labels"] + 1) % 3, inputs["labels"])
        return {"predictions": predictions.tolist(), "zero_gradient": 1, "broken_by": {"a": 2}, "stochastic": False}

    monkeypatch.setattr(Work, "_classify", lambda self, task, batch, inputs: [predict(task, inputs)])
    monkeypatch.setattr(Work, "_attack", lambda self, task, pool, inputs: [predict(task, batch) for batch in inputs])
    rows = make_evaluator()(*model_and_processor, replace(benchmark, mean_per_class=mean_per_class))
    measured = {(row.attack, row.eps): row for row in rows}
    expected = {("clean", None): (24,), ("pgd:steps=2", EPS[0]): (24, 3), ("cw:steps=2", EPS[0]): (24, 5)}
    expected |= {(WORST_CASE, EPS[0]): (24, 3, 5), (WORST_CASE, EPS[1]): (24, 2, 7)}
    for key, divisors in expected.items():
        right = np.array([all(sample % divisor for divisor in divisors) for sample in range(25)])
        assert measured[key].accuracy == pytest.approx(right.mean())
        per_class = np.mean([right[labels == label].mean() for label in range(3)]) if mean_per_class else None
        assert measured[key].mean_per_class_accuracy == pytest.approx(per_class)
    assert (measured["pgd:steps=2", EPS[0]].zero_gradient, measured["pgd:steps=2", EPS[0]].broken_by) == (7, {"a": 14})


def test_an_attack_that_leaves_its_ball_is_not_scored(model_and_processor, benchmark, monkeypatch):
    perturb = PGD.perturb
    for change in (0.3, torch.nan):
        monkeypatch.setattr(
            PGD, "perturb", lambda *args, by=change: (result := perturb(*args))._replace(images=result.images + by)
        )
        with pytest.raises(RuntimeError, match="pgd:steps=2 at 2/255: the attack left its eps-ball"):
            make_evaluator()(*model_and_processor, benchmark)


def test_two_models_and_a_reverse_transfer_are_continued(benchmark, proxy, tmp_path):
    def run(**settings):
        evaluator = make_evaluator(proxy, attacks=["pgd:steps=1", "transfer-to-proxy:steps=1"], **settings)
        models = {seed: make_clip(seed) for seed in (0, 2)}
        return [row for seed, pair in models.items() for row in evaluator(*pair, benchmark, name=f"model {seed}")]

    rows = run(output_dir=tmp_path)
    assert comparable(run(output_dir=tmp_path)) == comparable(rows) == comparable(run())


def test_the_worst_case_is_taken_per_sample(model_and_processor, benchmark):
    evaluator = make_evaluator(eps=16 / 255, attacks=["pgd:steps=2", "cw:steps=5", "apgd-ce:steps=2"])
    rows = evaluator(*model_and_processor, benchmark)
    labels = np.array(benchmark.dataset["label"])
    verdicts = []
    for row in rows:
        if row.attack not in (LARGE_EPS, WORST_CASE):
            batches = evaluator.results.predictions[digest(row.settings())]
            verdicts.append(np.concatenate([batches[batch]["predictions"] for batch in range(7)]) == labels)
    assert rows[-1].accuracy == pytest.approx(np.all(verdicts, axis=0).mean())
    assert rows[-1].accuracy <= min(row.accuracy for row in rows[:-1] if row.attack != LARGE_EPS)


@pytest.mark.parametrize("batch_size", [1, 7, 25])
def test_batching_changes_no_verdict(model_and_processor, benchmark, batch_size):
    rows, others = (make_evaluator(batch_size=size)(*model_and_processor, benchmark) for size in (4, batch_size))
    accuracies = [[row.accuracy for row in evaluation if row.attack != LARGE_EPS] for evaluation in (rows, others)]
    assert accuracies[0] == accuracies[1]


def test_wrong_samples_are_not_attacked_and_prompts_are_encoded_once(model_and_processor, benchmark, monkeypatch):
    model, processor = model_and_processor
    seen, encoded = set(), []
    perturb, encode = PGD.perturb, type(model).get_text_features
    monkeypatch.setattr(PGD, "perturb", lambda self, *args: seen.update(args[3].tolist()) or perturb(self, *args))
    monkeypatch.setattr(type(model), "get_text_features", lambda *args, **k: encoded.append(1) or encode(*args, **k))
    evaluator = make_evaluator(attacks=["pgd:steps=1", "cw:steps=1"])
    rows = evaluator(model, processor, benchmark)
    predictions = np.concatenate(
        [batch["predictions"] for batch in evaluator.results.predictions[digest(rows[0].settings())].values()]
    )
    assert seen == set(np.flatnonzero(predictions == benchmark.dataset["label"]).tolist())
    assert len(encoded) == 1


@pytest.mark.parametrize("killed_after", [0, 1, 8, 15, 30, 35])
def test_a_killed_evaluation_goes_on_where_it_stopped(
    model_and_processor, benchmark, tmp_path, monkeypatch, killed_after
):
    monkeypatch.setattr("hpt.evaluation.plan.LARGE_SAMPLES", 8)
    expected = make_evaluator()(*model_and_processor, benchmark)
    work_off = Work._work_off
    done = []

    def killed(self, *args):
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append(args)
        return work_off(self, *args)

    monkeypatch.setattr(Work, "_work_off", killed)
    with pytest.raises(KeyboardInterrupt):
        make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark)
    for file in tmp_path.glob("*.jsonl"):  # a kill may cut a line off
        file.write_bytes(file.read_bytes() + b'{"row": "cut')
    killed_after = -1
    rows = make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark)
    assert comparable(rows) == comparable(expected)
    assert len(done) == 5 * 7 + 1  # clean and 2 eps x 2 attacks, and the check on 8 samples: every batch once
    assert comparable(make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark)) == comparable(expected)
    assert len(done) == 5 * 7 + 1
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["attack"] for line in lines] == [row.attack for row in rows]


def test_more_attacks_and_radii_are_added_to_what_is_there(model_and_processor, benchmark, tmp_path):
    make_evaluator(eps=EPS[0], attacks=["pgd:steps=2"], output_dir=tmp_path)(*model_and_processor, benchmark)
    rows = make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark)
    expected = make_evaluator()(*model_and_processor, benchmark)
    assert comparable(rows) == comparable(expected)


@pytest.mark.parametrize(
    ("attacks", "line"),
    [
        (["pgd:steps=1"], "for model mine .hpt_version '0.1.0' there, '0.3.0' here"),
        (["transfer:steps=1"], "for attack transfer:steps=1 .parameters .*'proxy_hpt_version': '0.3.0'"),
    ],
    ids=["model", "proxy"],
)
def test_rows_that_were_measured_with_capitals_are_told_apart(
    model_and_processor, proxy, benchmark, tmp_path, monkeypatch, attacks, line
):
    """Of a model whose prompts are put into lower case since then; beside it, others may be gone on with."""
    evaluator = make_evaluator(proxy, attacks=attacks, eps=EPS[0], output_dir=tmp_path)
    evaluator(*model_and_processor, benchmark, name="mine")
    changed = proxy.model if "transfer" in attacks[0] else model_and_processor[0]
    monkeypatch.setattr(ZeroShotClassifier, "changes_case", property(lambda classifier: classifier.model is changed))
    again = make_evaluator(proxy, attacks=attacks, eps=EPS[0], output_dir=tmp_path)
    with pytest.raises(InputError, match=line):
        again(*model_and_processor, benchmark, name="mine")
    another, processor = make_clip(2)
    rows = make_evaluator(attacks=["pgd:steps=1"], eps=EPS[0], output_dir=tmp_path)(another, processor, benchmark, "x")
    assert {row.hpt_version for row in rows} == {"0.1.0"}


OWN = Benchmark("mine", "test", make_dataset(12, size=20), CLASSES, "{}")  # of no geometry of its own


def make_pair():
    """Models of different input size, in eval mode, with their processors."""
    pairs = make_clip(0), make_clip(1, image_size=24, patch_size=4)
    return [(model.eval(), processor) for model, processor in pairs]


def test_each_model_is_attacked_where_its_own_processor_brings_the_images(tmp_path):
    evaluator = make_evaluator(attacks="pgd:steps=2", output_dir=tmp_path)
    for name, (model, processor) in zip("ab", make_pair(), strict=True):
        side = processor.image_processor.crop_size["height"]
        clean, *attacked = evaluator(model, processor, OWN, name=name)
        assert {row.attack_space for row in (clean, *attacked)} == {f"{side}-{side}"}
        (task, *_) = evaluator.plan(Subject(ZeroShotClassifier(model, processor), name), OWN)
        as_they_are = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        expected = processor.image_processor(OWN.dataset["image"][:], **as_they_are).pixel_values
        assert torch.equal(torch.stack([row["pixel_values"] for row in task.benchmark]), expected)
    assert format_samples(list(evaluator.results.rows.values())).splitlines() == [
        "- mine: test, n = 12, attacked at 16 pixels, by the model's own processor (16-16): a",
        "- mine: test, n = 12, attacked at 24 pixels, by the model's own processor (24-24): b",
    ]
    assert make_evaluator(attacks="pgd:steps=2", output_dir=tmp_path)(model, processor, OWN, name=name)[0] == clean


def test_rows_of_another_geometry_are_never_taken_for_a_models_own(tmp_path):
    (model, processor), another = make_pair()
    papers = replace(OWN, transform=ImageTransform(18, 16))
    evaluate = make_evaluator(attacks=[], output_dir=tmp_path)
    evaluate(model, processor, papers, name="mine")
    for pair in ((model, processor), another):
        with pytest.raises(
            InputError, match=r"other settings for benchmark mine \(attack_space '16' there, '\d+-\d+' here"
        ):
            evaluate(*pair, OWN, name=str(pair[0].config.vision_config.image_size))
    assert len(evaluate.results.rows) == 1


def test_transfer_attacks_are_scored_where_the_target_sees_the_images():
    (model, processor), (other, other_processor) = make_pair()
    proxy = ZeroShotClassifier(other, other_processor)
    rows = make_evaluator(proxy, attacks=["transfer-to-proxy:steps=2"])(model, processor, OWN, name="mine")
    assert {(row.model, row.attack_space) for row in rows} == {("mine", "16-16"), ("proxy", "16-16")}


def test_without_a_folder_a_model_may_change_between_calls(benchmark):
    model, processor = make_clip(0)
    evaluator = make_evaluator()
    before = evaluator(model, processor, benchmark, name="mine")
    model.visual_projection.weight.data.mul_(-1)
    after = evaluator(model, processor, benchmark, name="mine")
    assert comparable(after) == comparable(make_evaluator()(model, processor, benchmark, name="mine"))
    assert comparable(evaluator(model, processor, benchmark, name="mine")) == comparable(after) != comparable(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"batch_size": 5}, "batch_size 4 there, 5 here"),
        ({"max_samples": 9}, "max_samples None there, 9 here"),
        ({"weights": 0.1}, "other settings for model mine .weights"),
        ({"template": "a {}"}, "for benchmark random .templates"),
        ({"transform": ImageTransform(16, 8)}, "attack_space 'native' there, '8' here"),
        ({"names": ["a", "b", "c"]}, "for benchmark random .samples"),
        ({"dataset": make_dataset(25, seed=1)}, "for benchmark random .samples"),
        (
            {"dataset": make_dataset(25).map(lambda row: {"label": (row["label"] + 1) % 3})},
            "benchmark random .samples",
        ),
        ({"attacks": ["adaptive:steps=1"], "proxy": 2}, "for attack adaptive:steps=1 .parameters"),
    ],
    ids=["seed", "batch size", "samples", "weights", "template", "transform", "names", "images", "labels", "proxy"],
)
def test_results_from_other_settings_are_refused(benchmark, proxy, tmp_path, settings, message):
    model, processor = make_clip(0)
    first = {"attacks": ["pgd:steps=1", "adaptive:steps=1"], "eps": EPS[0], "output_dir": tmp_path}
    make_evaluator(proxy, **first)(model, processor, benchmark, name="mine")
    before = (tmp_path / "results.jsonl").read_text()
    settings = dict(settings)
    model.logit_scale.data += settings.pop("weights", 0)
    benchmark = replace(
        benchmark,
        template=settings.pop("template", "{}"),
        transform=settings.pop("transform", benchmark.transform),
        class_names=settings.pop("names", CLASSES),
        dataset=settings.pop("dataset", benchmark.dataset),
    )
    proxy = ZeroShotClassifier(*make_clip(settings.pop("proxy", 1), patch_size=4))
    with pytest.raises(InputError, match=f"results.jsonl has .*{message}.*give another output_dir"):
        make_evaluator(proxy, **(first | settings))(model, processor, benchmark, name="mine")
    assert (tmp_path / "results.jsonl").read_text() == before


def test_what_others_wrote_since_it_was_made_is_taken_up(model_and_processor, benchmark, tmp_path):
    first, second, other = (make_evaluator(output_dir=tmp_path, seed=seed) for seed in (0, 0, 1))
    rows = first(*model_and_processor, benchmark)
    before = (tmp_path / "results.jsonl").read_text()
    assert second(*model_and_processor, benchmark) == rows
    with pytest.raises(InputError, match=r"results from other settings \(seed 0 there, 1 here\)"):
        other(*model_and_processor, benchmark)
    assert (tmp_path / "results.jsonl").read_text() == before


def test_a_plan_made_before_others_wrote_is_checked_again(subject, benchmark, tmp_path):
    first, second = (make_evaluator(output_dir=tmp_path, seed=seed) for seed in (0, 1))
    planned = [second.plan(subject, benchmark)]
    first.run_all([first.plan(subject, benchmark)])
    with pytest.raises(InputError, match=r"results from other settings \(seed 0 there, 1 here\)"):
        second.run_all(planned)


def test_lines_of_other_versions_are_refused(model_and_processor, benchmark, tmp_path):
    make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark)
    results, predictions = tmp_path / "results.jsonl", tmp_path / "predictions-0.jsonl"
    content = results.read_text()
    results.write_text('{"model": "x"}\n' + content)
    with pytest.raises(InputError, match="Line 1 of .*results.jsonl isn't a row of hpt .*, but of another version"):
        make_evaluator(output_dir=tmp_path)
    results.write_text(content)
    predictions.write_text('{"row": "x"}\n' + predictions.read_text())
    with pytest.raises(InputError, match="Line 1 of .*predictions-0.jsonl isn't one of predictions"):
        make_evaluator(output_dir=tmp_path)


def test_rows_without_their_predictions_are_measured_again(model_and_processor, benchmark, tmp_path, caplog):
    rows = make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark, name="mine")
    predictions = tmp_path / "predictions-0.jsonl"
    kept = {line["batch"]: line for line in map(json.loads, predictions.read_text().splitlines())}
    predictions.unlink()
    again = make_evaluator(output_dir=tmp_path)(*model_and_processor, benchmark, name="mine")
    assert again == rows
    assert caplog.messages == [
        f"{tmp_path} has rows without their predictions, 6 of 6, the first of mine, random, clean: they are measured "
        "again, unless predictions-*.jsonl are brought back."
    ]
    assert {
        line["batch"]: line for line in map(json.loads, predictions.read_text().splitlines())
    }.keys() == kept.keys()


def test_subsets_are_stratified_seeded_and_saved(model_and_processor, tmp_path):
    benchmark = make_benchmark(60)
    rows = make_evaluator(max_samples=30, attacks=[], output_dir=tmp_path)(*model_and_processor, benchmark)
    saved = json.loads((tmp_path / "samples_random.json").read_text())
    assert saved["ids"] == benchmark.subset(30).ids().tolist() != list(range(30))
    assert [saved["ids"][row] for row in range(30)] == [benchmark.subset(30)[row]["sample_ids"] for row in range(30)]
    assert np.bincount(np.array(benchmark.dataset["label"])[saved["ids"]]).tolist() == [10, 10, 10]
    assert [(row.attack, row.n) for row in rows] == [("clean", 30)]


def test_two_classes_work_with_every_suite(model_and_processor):
    dataset = make_dataset(12).filter(lambda row: row["label"] < 2)
    benchmark = Benchmark("pair", "test", dataset, CLASSES[:2], "{}", ImageTransform())
    evaluator = make_evaluator(attacks=["apgd", "apgd-dlr", "apgd-t"], eps=EPS[0])
    rows = evaluator(*model_and_processor, benchmark)
    assert [(row.attack, row.left_out) for row in rows[2:]] == [("apgd", ["apgd-dlr"]), (WORST_CASE, [])]


def test_mean_per_class_accuracy_where_it_is_customary(model_and_processor):
    dataset = make_dataset(30).select([*range(0, 30, 3), 1, 2])  # ten of the first class, one of each other
    benchmark = Benchmark("unequal", "test", dataset, CLASSES, "{}", ImageTransform(), mean_per_class=True)
    evaluator = make_evaluator()
    labels = np.array(dataset["label"])
    for row in evaluator(*model_and_processor, benchmark):
        if row.attack in ("clean", "pgd:steps=2"):
            batches = evaluator.results.predictions[digest(row.settings())]
            right = np.concatenate([batches[batch]["predictions"] for batch in range(3)]) == labels
            expected = np.mean([right[labels == label].mean() for label in range(3)])
            assert row.mean_per_class_accuracy == pytest.approx(expected)


class Broken(nn.Module):
    """An image projection whose output isn't a number."""

    def forward(self, features):
        return features[..., :8] * torch.nan


def test_logits_that_are_not_finite_are_refused(benchmark):
    model, processor = make_clip(0)
    model.visual_projection = Broken()
    with pytest.raises(InputError, match="mine, random, clean: the logits of the model.* aren't finite"):
        make_evaluator()(model, processor, benchmark, name="mine")


def test_what_fails_is_named_and_the_others_still_run(model_and_processor, benchmark, proxy):
    proxy.model.visual_projection = Broken()
    evaluator = make_evaluator(proxy, eps=EPS[0], attacks=["pgd:steps=1", "adaptive", "cw:steps=1"])
    failures = []
    tasks = evaluator.plan(Subject(ZeroShotClassifier(*model_and_processor), "mine"), benchmark)
    rows = evaluator.run(tasks, failures)
    assert [row.attack for row in rows] == ["clean", LARGE_EPS, "pgd:steps=1", "cw:steps=1", WORST_CASE]
    assert rows[-1].parameters == {"attacks": ["cw:steps=1", "pgd:steps=1"]}
    (failure,) = failures
    assert failure.startswith("mine, random, adaptive at 2/255: the logits of the model, or of its proxy, aren't")
    with pytest.raises(InputError, match="adaptive at 2/255"):
        evaluator.run(tasks)


def test_what_a_trainer_takes_is_evaluated_at_the_size_of_the_model(model_and_processor):
    dataset = make_dataset(25, size=20)
    pairs = TensorDataset(
        torch.stack([torch.from_numpy(np.array(image)) for image in dataset["image"]]), torch.zeros(25)
    )
    benchmark = Benchmark("mine", "given", dataset, CLASSES, None)
    rows, others = (make_evaluator()(*model_and_processor, given) for given in (benchmark, {"mine": dataset}))
    assert comparable(rows) == comparable(others) and rows[0].attack_space == "16-16"
    assert [row.benchmark for row in make_evaluator(attacks=[], max_samples=9)(*model_and_processor, "digits")] == [
        "digits"
    ]
    for nothing, reason in (([], "There is nothing to evaluate on"), (pairs, "dataset has no class names")):
        with pytest.raises(InputError, match=reason):
            make_evaluator()(*model_and_processor, nothing)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_set_with_a_cut_off_image_is_named_by_its_row_and_the_others_still_run(
    model_and_processor, benchmark, num_workers
):
    files = list(benchmark.dataset.cast_column("image", datasets.Image(decode=False))["image"])
    files[21] = {"bytes": files[21]["bytes"][:-40], "path": None}  # its header is whole
    dataset = datasets.Dataset.from_dict(
        {"image": files, "label": benchmark.dataset["label"][:]}, features=benchmark.dataset.features
    )
    evaluator = make_evaluator(eps=EPS[0], attacks=["pgd:steps=1"], num_workers=num_workers)
    subject, failures = Subject(ZeroShotClassifier(*model_and_processor), "mine"), []
    planned = [evaluator.plan(subject, part) for part in (replace(benchmark, name="cut", dataset=dataset), benchmark)]
    rows = [row for tasks in planned for row in evaluator.run(tasks, failures)]
    assert [row.attack for row in rows if row.benchmark == "random"] == ["clean", LARGE_EPS, "pgd:steps=1", WORST_CASE]
    assert [row for row in rows if row.benchmark == "cut"] == []
    (failure,) = failures
    assert failure.startswith(r"mine, cut, clean: The image in row 21 of cut (test) can't be used: ")


def test_the_same_benchmark_twice_is_refused(model_and_processor, benchmark):
    with pytest.raises(InputError, match="'random' is given twice"):
        make_evaluator()(*model_and_processor, [benchmark, benchmark])


def test_attacks_left_out_for_too_few_classes_are_told(model_and_processor):
    dataset = make_dataset(12).filter(lambda row: row["label"] < 2)
    benchmark = Benchmark("pair", "test", dataset, CLASSES[:2], "{}", ImageTransform())
    evaluator = make_evaluator(attacks="apgd-t")
    evaluator(*model_and_processor, benchmark)
    assert evaluator.left_out == ["apgd-t isn't defined for the 2 classes of pair."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg", "Unknown attack 'pdg'; known: fgsm, pgd, cw"),
        ("pgd:step=5", "pgd has no setting 'step'; known: steps, step_size, random_start, restarts"),
        ("cw:step=5", "cw has no setting 'step'; known: steps, step_size, random_start, restarts"),
        ("pgd:steps=many", "sets steps to 'many', which isn't a number"),
        ("pgd:eps=1", "pgd has no setting 'eps'"),
        ("pgd:steps=2.7", "sets steps to 2.7, but it must be a whole number"),
        ("pgd:steps=inf", "sets steps to inf, but it must be a whole number"),
        ("pgd:steps=1/0", "sets steps to '1/0', which isn't a number"),
        ("pgd:steps=0", "0 steps, but needs at least 1"),
        ("square:queries=0", "0 queries, but needs at least 1"),
        ("autoattack:steps=5", "autoattack has no setting 'steps'; known: none"),
        ("adaptive", "The attack 'adaptive' needs a proxy"),
        ("transfer-to-proxy", "The attack 'transfer-to-proxy' needs a proxy"),
    ],
)
def test_attacks_that_cannot_be_meant_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        make_evaluator(attacks=[text])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 4}, "did you mean 4/255"),
        ({"eps": float("inf"), "norm": "l2"}, "above 0 and finite"),
        ({"eps": ["4/255", "some"]}, "eps is 'some', but must be a number or a fraction"),
        ({"num_workers": -1}, "num_workers is -1, but must be a whole number of at least 0"),
        ({"output_dir": __file__}, "can't be written to .*test_evaluator.py isn't a folder"),
        ({"eps": []}, "There is no eps"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number of at least 1"),
        ({"max_samples": 0}, "max_samples is 0, but must be a whole number of at least 1"),
        ({"max_samples": "10"}, "max_samples is '10', but must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"attacks": [PGD(eps=0.1)]}, "An attack is given as a PGD, but is named by a text, such as 'pgd:steps=50'"),
        ({"attacks": PGD}, "An attack is given as a ABCMeta, but is named by a text"),
        ({"attacks": None}, "An attack is given as a NoneType, but is named by a text"),
        ({"proxy": make_clip(1)[0]}, r"The proxy is a CLIPModel, but must be a classifier: give load_proxy\(name\)"),
        ({"proxy": "proxy"}, r"The proxy is a str, but must be a classifier"),
        ({"norm": "l7"}, "Unknown norm 'l7'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make_evaluator(**settings)


def test_what_is_no_model_is_refused_and_one_without_a_name_is_called_the_model(model_and_processor, benchmark):
    with pytest.raises(InputError, match="str isn't a dual encoder"):
        make_evaluator()("a path", model_and_processor[1], benchmark)
    encoded = benchmark.dataset.cast_column("image", datasets.Image(decode=False))
    cut_off = encoded.map(lambda row: {"image": {"bytes": row["image"]["bytes"][:60], "path": None}})
    with pytest.raises(InputError, match="^the model, random, clean: The image in row 0 of random .* truncated"):
        make_evaluator()(*model_and_processor, replace(benchmark, dataset=cut_off.cast(benchmark.dataset.features)))


@pytest.mark.parametrize(
    ("eps", "radii"),
    [("8/255", [8 / 255]), (["8/255", 0.01], [0.01, 8 / 255]), ((0.1, "0.1"), [0.1]), (np.float64(0.1), [0.1])],
)
def test_eps_may_be_a_number_or_a_text_or_several(eps, radii):
    assert make_evaluator(eps=eps).radii == radii


def test_attack_texts_are_read():
    attack = NamedAttack.parse("pgd:steps=50,restarts=5,step_size=1/255")
    assert attack.numbers() == {"steps": 50, "restarts": 5, "step_size": 1 / 255}
    assert NamedAttack.parse("square:queries=100").numbers() == {"queries": 100}


def test_l2(model_and_processor, benchmark):
    rows = make_evaluator(norm="l2", eps=3.0, attacks=["pgd:steps=5", "apgd"])(*model_and_processor, benchmark)
    assert [(row.norm, row.eps) for row in rows[2:]] == [("l2", 3.0)] * 3
    assert rows[-1].accuracy <= rows[0].accuracy


@pytest.mark.parametrize(
    "around",
    [lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode],
    ids=["autocast", "inference"],
)
def test_modes_around_it_change_nothing(model_and_processor, benchmark, around):
    expected = make_evaluator()(*model_and_processor, benchmark)
    with around():
        rows = make_evaluator()(*model_and_processor, benchmark)
    assert comparable(rows) == comparable(expected)


def test_examples_are_right_before(model_and_processor, benchmark):
    evaluator = make_evaluator()
    tasks = evaluator.plan(Subject(ZeroShotClassifier(*model_and_processor)), benchmark)
    evaluator.run(tasks)
    examples = evaluator.examples(tasks, 3)
    assert len(examples) == 3
    for example in examples:
        assert example["before"] == example["label"] and example["attack"] == "pgd:steps=2 at 16/255"
        assert 0 < (example["adversarial"] - example["clean"]).abs().max() <= 16 / 255 + 1e-6


def test_rows_that_have_lost_their_predictions_have_no_examples(model_and_processor, benchmark):
    evaluator = make_evaluator()
    tasks = evaluator.plan(Subject(ZeroShotClassifier(*model_and_processor)), benchmark)
    evaluator.run(tasks)
    evaluator.results.predictions.clear()
    assert evaluator.examples(tasks) == []
