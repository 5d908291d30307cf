"""Models on each other's adversarial images, and the ranking that follows."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CLASSES, make_clip, make_family, refusal_of, run_recipe_apart

from hpt import PGD, InputError, ZeroShotClassifier
from hpt.data.geometry import ImageTransform
from hpt.evaluation.figures import draw_transfer_matrix
from hpt.evaluation.ranking import TransferMatrix, format_ranking, paired_difference, rank_proxies, recommend, share
from hpt.models.loading import save_finished


EPS = [2 / 255, 16 / 255]


@pytest.fixture
def models():
    pairs = {"target": make_clip(0), "again": make_clip(1), "other": make_clip(2, patch_size=4)}
    return {name: ZeroShotClassifier(model.eval(), processor) for name, (model, processor) in pairs.items()}


def test_every_model_is_scored_on_images_made_against_every_model(models, benchmark):
    matrix = TransferMatrix(models, benchmark, EPS, steps=2, seed=3)
    matrix.measure(batch_size=4)
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(10)]) / 255
    labels = torch.tensor(benchmark.dataset["label"])
    classifiers = {name: model.with_classes(CLASSES, "{}") for name, model in models.items()}
    assert list(matrix.correct) == [(None, None), *((name, eps) for eps in EPS for name in models)]
    for (attacked, eps), column in matrix.correct.items():
        seen = images
        if attacked:
            seen = PGD(eps=eps, steps=2, seed=3)(classifiers[attacked], images, labels, torch.arange(10))
        for name, correct in column.items():
            assert correct.tolist() == (classifiers[name](seen).argmax(-1) == labels).tolist()
    rows = matrix.rows()
    assert len(rows) == 3 * 7
    last = rows[-1]
    assert (last.model, last.attacked, last.eps, last.steps, last.seed, last.n) == (
        "other",
        "other",
        16 / 255,
        2,
        3,
        10,
    )
    assert (
        last.accuracy == matrix.correct["other", 16 / 255]["other"].mean() and last.low <= last.accuracy <= last.high
    )


def test_proxies_of_other_families_keep_their_own_size_and_statistics(benchmark):
    """ALIGN at 64 pixels with 1 / temperature, SigLIP with its bias, CLIP: each scored as it is by itself."""
    models = {name: ZeroShotClassifier(*make_family(name)) for name in ("CLIP", "Siglip", "Align", "AltCLIP")}
    models["Align"].processor.image_processor.image_mean = [0.3, 0.5, 0.7]
    models["Align"] = ZeroShotClassifier(models["Align"].model, models["Align"].processor)
    matrix = TransferMatrix(models, benchmark, [8 / 255], steps=1)
    matrix.measure()
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(10)]) / 255
    labels = torch.tensor(benchmark.dataset["label"])
    align = models["Align"].with_classes(CLASSES, "{}")
    adversarial = PGD(eps=8 / 255, steps=1)(align, images, labels, torch.arange(10))
    assert {model.image_size for model in models.values()} == {16, 64}
    for name, model in models.items():
        expected = model.with_classes(CLASSES, "{}")(adversarial).argmax(-1) == labels
        assert matrix.correct["Align", 8 / 255][name].tolist() == expected.tolist()
    same = {candidate.name: candidate.same_architecture for candidate in rank_proxies(matrix, "CLIP")}
    assert same == {"Siglip": False, "Align": False, "AltCLIP": True}  # whose vision tower here is CLIP's


@pytest.fixture
def attacked(monkeypatch):
    """The models that are attacked, in order, by their identity."""
    calls, perturb = [], PGD.perturb
    monkeypatch.setattr(
        PGD,
        "perturb",
        lambda self, classifier, *rest: (calls.append(id(classifier.model)), perturb(self, classifier, *rest))[1],
    )
    return calls


def test_a_killed_run_goes_on_and_a_further_model_is_taken_in(models, benchmark, attacked, tmp_path, caplog):
    whole = TransferMatrix(models, benchmark, EPS, steps=1)
    whole.measure(batch_size=10)
    assert len(attacked) == 6

    pair = {name: models[name] for name in ("target", "again")}
    TransferMatrix(pair, benchmark, EPS, steps=1, folder=tmp_path).measure(batch_size=10)
    attacked.clear()
    file = tmp_path / "verdicts-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote the fourth of five
    TransferMatrix(pair, benchmark, EPS, steps=1, folder=tmp_path).measure(batch_size=10)
    assert attacked == [id(models[name].model) for name in ("target", "again")]
    assert caplog.messages == [f"The ranking in {tmp_path} goes on: 3 of 5 columns are there."]
    attacked.clear()
    again = TransferMatrix(models, benchmark, EPS, steps=1, folder=tmp_path)
    again.measure(batch_size=3)
    assert again.rows() == whole.rows()
    attacked.clear()
    caplog.clear()
    TransferMatrix(pair, benchmark, EPS[:1], steps=1, folder=tmp_path).measure()
    assert not attacked  # nothing was missing
    assert caplog.messages == [f"The ranking in {tmp_path} is finished: 3 of 3 columns are there."]
    TransferMatrix(pair, benchmark, EPS[:1], steps=2, folder=tmp_path).measure(batch_size=10)
    assert len(attacked) == 2  # another attack is another number


@pytest.mark.parametrize(
    "change", ["seed", "steps", "template", "class names", "ids", "attack space", "statistics", "weights"]
)
def test_what_a_verdict_depends_on_is_not_taken_from_the_folder(models, benchmark, attacked, tmp_path, change):
    TransferMatrix(models, benchmark, EPS[:1], steps=1, folder=tmp_path).measure()
    attacked.clear()
    settings = {"steps": 2 if change == "steps" else 1, "seed": 1 if change == "seed" else 0}
    if change in ("template", "class names", "attack space"):
        other = {"template": "a {}", "class names": CLASSES[::-1], "attack space": ImageTransform(resize=16, crop=16)}
        field = {"class names": "class_names", "attack space": "transform"}.get(change, change)
        benchmark = replace(benchmark, **{field: other[change]})
    if change == "ids":
        benchmark = replace(benchmark, sample_ids=np.arange(10) + 1)
    if change == "statistics":
        models["other"].image_mean.add_(0.1)
    if change == "weights":
        models["other"].model.visual_projection.weight.data.mul_(2)
    TransferMatrix(models, benchmark, EPS[:1], folder=tmp_path, **settings).measure()
    assert len(attacked) == 3


def test_images_come_as_the_first_model_sees_them(models, benchmark):
    matrix = TransferMatrix(models, replace(benchmark, transform=None), EPS[:1], steps=1)
    assert matrix.benchmark.attack_space == "16-16"
    matrix.measure()
    assert {row.attack_space for row in matrix.rows()} == {"16-16"}


def test_a_damaged_line_is_named(models, benchmark, tmp_path):
    (tmp_path / "verdicts-0.jsonl").write_text('{"column": 1}\n{"column": 2}\n')
    with pytest.raises(InputError, match="Line 1 of .*verdicts-0.jsonl isn't one of verdicts"):
        TransferMatrix(models, benchmark, EPS, folder=tmp_path).measure()


def test_twins_are_refused(models, benchmark):
    with pytest.raises(InputError, match="'copy' and 'target' are the same weights"):
        TransferMatrix(models | {"copy": models["target"]}, benchmark, EPS)


def made_up(clean, robust, n=400):
    """A matrix of verdicts in which so many of n images are right: of each candidate, clean and against the target."""
    shapes = {"target": make_clip(0), "twin": make_clip(1), "good": make_clip(2, patch_size=4)}
    shapes["close"] = make_clip(3, patch_size=16)
    models = {name: SimpleNamespace(model=model) for name, (model, _) in shapes.items()}

    def verdicts(right, seed):
        return np.random.default_rng(seed).permutation(np.arange(n) < right)

    correct = {(None, None): {name: verdicts(right, 0) for name, right in clean.items()}}
    for place, eps in enumerate(EPS):  # the largest radius leaves what is said, the smaller one the same of all
        correct["target", eps] = {name: verdicts(right if place else 320, 0) for name, right in robust.items()}
    return SimpleNamespace(models=models, correct=correct, eps=EPS)


def test_ranks_by_accuracy_on_the_targets_images():
    clean = {"target": 300, "twin": 380, "good": 360, "close": 340}
    ranked = rank_proxies(made_up(clean, {"target": 4, "twin": 100, "good": 320, "close": 318}), "target")
    assert [candidate.name for candidate in ranked] == ["good", "close", "twin"]
    assert [candidate.rank_by_clean for candidate in ranked] == [2, 3, 1]
    assert [candidate.same_architecture for candidate in ranked] == [False, False, True]
    good, close, twin = ranked
    assert good.robust == [0.8, 0.8] and good.mean[0] == 0.8 and good.clean == 0.9
    assert good.kept[0][0] == pytest.approx(320 / 360)
    assert good.behind == (0, 0, 0) and twin.behind[0] == pytest.approx(0.275) and close.behind[0] > 0
    said = recommend(ranked)
    assert said.startswith("Recommended proxy: good, 80.0 [")
    assert "can't be told from close." in said and "twin" not in said.partition("takes")[0]
    assert "clean accuracy, takes twin, which is 27.5 [" in said and "over 3 candidates: -0.50." in said


def test_a_best_candidate_built_like_the_target_is_marked():
    clean = {"target": 300, "twin": 380, "good": 360, "close": 340}
    ranked = rank_proxies(made_up(clean, {"target": 4, "twin": 350, "good": 340, "close": 100}), "target")
    said = recommend(ranked)
    assert "can't be told" not in said  # 10 of 400 images at one of two radii, and never the other way
    assert "takes the same." in said and "Mind that twin is built like the target" in said


def test_equal_accuracies_share_a_rank():
    clean = {"target": 300, "twin": 360, "good": 360, "close": 340}
    ranked = rank_proxies(made_up(clean, {"target": 4, "twin": 300, "good": 320, "close": 320}), "target")
    assert [candidate.rank for candidate in ranked] == [1, 1, 3]
    assert {candidate.name: candidate.rank_by_clean for candidate in ranked} == {"twin": 1, "good": 1, "close": 3}
    assert "takes the same." in recommend(ranked)


def test_intervals_are_those_of_paired_samples():
    """The bootstrap's agree with the normal approximation, of differences and (delta method) of ratios."""
    random = np.random.default_rng(0)
    clean = random.random(2000) < 0.8
    robust = clean & (random.random(2000) < 0.7)
    middle, low, high = share(robust, clean)
    ratio = robust.sum() / clean.sum()
    deviation = (robust - ratio * clean).std() / clean.mean() / np.sqrt(2000)
    assert middle == pytest.approx(ratio)
    assert (low, high) == pytest.approx((ratio - 1.96 * deviation, ratio + 1.96 * deviation), abs=0.003)
    other = random.random(2000)
    middle, low, high = paired_difference(robust.astype(float), other)
    deviation = (robust - other).std() / np.sqrt(2000)
    assert middle == pytest.approx((robust - other).mean())
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.1)
    assert share(np.zeros(5, bool), np.zeros(5, bool))[0] == 0  # a candidate that is never right


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, patch_size) in enumerate((("target", 8), ("again", 8), ("other", 4))):
        save_finished(*make_clip(seed, patch_size=patch_size), folder / name)
    return folder


def ranking_arguments(saved, output):
    return [
        *(
            "--target",
            f"target={saved / 'target'}",
            "--proxies",
            f"again={saved / 'again'}",
            f"other={saved / 'other'}",
        ),
        *("--dataset", "digits", "--max_samples", 30, "--steps", 1, "--output_dir", output, "--use_cpu"),
    ]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="two processes on CPU need gloo")
def test_the_recipe_ranks_and_two_processes_do_as_one(saved, tmp_path):
    alone, shared = (
        run_recipe_apart("rank_proxies.py", *ranking_arguments(saved, tmp_path / str(n)), processes=n, cwd=tmp_path)
        for n in (1, 2)
    )
    assert alone.returncode == shared.returncode == 0, alone.stderr + shared.stderr
    assert "30 images of digits (validation), attacked at native resolution" in alone.stdout
    assert "| rank | proxy " in alone.stdout and "again (as the target)" in alone.stdout
    assert "Recommended proxy: " in alone.stdout and (tmp_path / "1" / "ranking.md").read_text() in alone.stdout
    assert len(list((tmp_path / "2").glob("verdicts-*.jsonl"))) == 2
    rows = [list(csv.DictReader((tmp_path / n / "matrix.csv").open())) for n in ("1", "2")]
    assert rows[0] == rows[1] and len(rows[0]) == 3 * (1 + 3 * 3)
    rankings = [json.loads((tmp_path / n / "ranking.json").read_text()) for n in ("1", "2")]
    assert rankings[0] == rankings[1]
    assert {candidate["name"] for candidate in rankings[0]["candidates"]} == {"again", "other"}
    assert (rankings[0]["target"], rankings[0]["split"], rankings[0]["n"]) == ("target", "validation", 30)
    assert (tmp_path / "1" / "matrix.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--eps", "4"], "did you mean 4/255?"),
        (["--steps", "0"], "steps is 0, but must be a whole number of at least 1"),
        (["--max_samples", "0"], "max_samples is 0, but must be a whole number of at least 1"),
        (["--dataset", "mnist"], "Unknown benchmark 'mnist'; known: digits"),
        (["--proxies", "target=somewhere"], "'target' is given twice"),
        (["--proxies", "no/model"], "Can't load the model 'no/model'"),
        (
            ["--dataset", "cifar10=o/nowhere", "--proxies", "a/b/model"],
            "the model 'a/b/model': there is no such folder",
        ),
        (["--dataset", "all"], "all is sixteen benchmarks, where one is needed"),
    ],
    ids=["eps", "steps", "samples", "dataset", "names", "model", "model before data", "all"],
)
def test_the_recipe_refuses_what_cannot_be_meant(saved, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert line in refusal_of("rank_proxies.py", *ranking_arguments(saved, tmp_path / "out"), *arguments)
    assert not list(tmp_path.iterdir())


def test_the_heat_map_shows_who_is_scored_on_whose_images(models, benchmark, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr("hpt.evaluation.figures.save_figure", lambda figure, path: drawn.append(figure))
    matrix = TransferMatrix(models, benchmark, EPS, steps=1)
    matrix.measure()
    draw_transfer_matrix(matrix.rows(), "title", tmp_path / "matrix.png")
    for axes, eps in zip(drawn[0].axes, EPS, strict=True):
        across, down = (
            [label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels())
        )
        assert across == list(models) and down == ["clean", *models]
        for y, attacked in enumerate([None, *models]):
            column = matrix.correct[attacked, eps if attacked else None]
            assert axes.images[0].get_array()[y].tolist() == pytest.approx(
                [100 * column[name].mean() for name in across]
            )
            shown = [text.get_text() for text in axes.texts if text.get_position()[1] == y]
            assert shown == [f"{100 * column[name].mean():.0f}" for name in across]


def test_the_table_has_intervals_and_shares(models, benchmark):
    matrix = TransferMatrix(models, benchmark, EPS, steps=1)
    matrix.measure()
    page = format_ranking(rank_proxies(matrix, "target"), matrix, "target")
    headers = [line for line in page.splitlines() if line.startswith("| rank ")]
    columns = [[cell.strip() for cell in header.split("|")[1:-1]] for header in headers]
    assert columns[0][:4] == ["rank", "proxy", "rank by clean", "clean"] and columns[-1][-1] == "behind the best"
    assert [name for table in columns for name in table[2:]][2:-1] == ["2/255", "16/255", "mean"]
    assert all(len(line) <= 100 for line in page.splitlines() if line.startswith("|"))
    other = " ".join(line for line in page.splitlines() if "| other" in line)
    row = next(row for row in matrix.rows() if (row.model, row.attacked, row.eps) == ("other", "target", EPS[0]))
    clean = matrix.correct[None, None]["other"].mean()
    cell = f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}] ({100 * row.accuracy / clean:.0f})"
    assert cell in other and "target itself: " in page
