import pytest
import torch
from helpers import CLASSES, make_clip, make_dataset
from scipy.stats import binomtest

from hpt import PGD, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.evaluation.comparison import compare_models, measure
from hpt.evaluation.figures import draw_accuracy_bars, draw_accuracy_over_eps, draw_training_curves
from hpt.evaluation.report import format_table
from hpt.evaluation.rows import Row, wilson_interval
from hpt.evaluation.subject import Subject


@pytest.mark.parametrize(("correct", "total"), [(0, 360), (1, 7), (180, 360), (359, 360), (360, 360)])
def test_wilson_interval_equals_scipys(correct, total):
    low, high = wilson_interval(correct, total)
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= correct / total <= high <= 1


@pytest.fixture
def subjects():
    pair = {"first": make_clip(0), "second": make_clip(1, patch_size=4)}
    return [Subject(ZeroShotClassifier(model.eval(), processor), name) for name, (model, processor) in pair.items()]


def test_measures_what_is_attacked_and_what_is_scored(subjects, benchmark):
    attack = PGD(eps=8 / 255, steps=3, seed=5)
    images = torch.stack([benchmark[row]["pixel_values"] for row in range(10)]) / 255
    labels = torch.tensor(benchmark.dataset["label"])
    by_name = {subject.name: subject.classifier.with_classes(CLASSES, "{}") for subject in subjects}
    first = by_name["first"]
    adversarial = attack(first, images, labels, torch.arange(10))
    rows = measure(subjects, benchmark, attack, "first", batch_size=3)
    for row in rows:
        classifier = by_name[row.model]
        assert row.accuracy == pytest.approx((classifier(adversarial).argmax(-1) == labels).float().mean().item())
        assert (row.attacked, row.n, row.eps, row.steps, row.seed) == ("first", 10, 8 / 255, 3, 5)
        assert (row.benchmark, row.split, row.attack_space, row.norm) == ("random", "test", "native", "linf")
    assert rows == measure(subjects, benchmark, attack, "first", batch_size=10)  # no batching changes a verdict


def test_all_see_the_images_as_the_first_does(subjects):
    """The target's own processor brings them, where the benchmark doesn't say how; also when another is attacked."""
    larger = Subject(ZeroShotClassifier(*make_clip(2, image_size=24)), "larger")
    benchmark = Benchmark("own", "test", make_dataset(10, size=20), CLASSES, "{}")
    attack = PGD(eps=8 / 255, steps=2)
    rows = compare_models([subjects[0], larger], benchmark, attack)
    assert {row.attack_space for row in rows} == {"16-16"}
    assert rows == compare_models([subjects[0], larger], subjects[0].see(benchmark), attack)
    assert {row.attack_space for row in measure([larger, subjects[0]], benchmark)} == {"24-24"}


def test_table_has_a_line_per_model(subjects, benchmark):
    rows = compare_models(subjects, benchmark, PGD(eps=8 / 255, steps=2), batch_size=5, num_workers=0)
    assert [(row.model, row.attacked) for row in rows] == [
        ("first", None),
        ("second", None),
        ("first", "first"),
        ("second", "first"),
        ("second", "second"),
    ]
    lines = format_table(rows).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ["clean", "PGD-2 on itself", "PGD-2 on the first"]
    assert lines[3].split("|")[1].strip() == "second"
    assert f"{100 * rows[4].accuracy:.1f} [" in lines[3].split("|")[3]


def test_pictures_take_accuracies_of_0_and_1(tmp_path):
    def row(model, attacked, correct, eps=None):
        low, high = wilson_interval(correct, 360)
        return Row(model, attacked, correct / 360, low, high, 360, "x", "test", "native", eps=eps)

    rows = [row("a", None, 360), row("a", "a", 0, 0.1), row("b", None, 350), row("b", "b", 3, 0.1)]
    draw_accuracy_bars(rows, "title", tmp_path / "bars.png")
    draw_accuracy_over_eps([row("a", None, 360), row("a", "a", 0, 0.1)], "title", tmp_path / "curve.png")
    history = [
        {"step": step, "loss": 1.0, "learning_rate": 0.1, "train_clean_accuracy": 1.0, "train_robust_accuracy": 0.0}
        | {"proxy_robust_accuracy": 0.5}
        for step in (1, 2, 3)
    ]
    draw_training_curves([*history, {"step": 3, "eval_clean_accuracy": 0.5}], 2, tmp_path / "curves.png")
    for picture in ("bars.png", "curve.png", "curves.png"):
        assert (tmp_path / picture).stat().st_size > 5000
