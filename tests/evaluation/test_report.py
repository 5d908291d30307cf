import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import SOUND, make_row, of_model
from matplotlib.text import Text

from hpt.evaluation.figures import draw_adversarial_images, draw_clean_against_robust, draw_robustness_curves
from hpt.evaluation.report import fitting_tables, format_accuracies, markdown_table, write_csv
from hpt.evaluation.rows import WORST_CASE
from hpt.radius import Radius


def cells(table):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {tuple(line[:2]): line[2:] for line in lines}


def test_table_has_models_down_benchmarks_across_and_the_mean_last():
    second = [replace(row, benchmark="c", accuracy=row.accuracy / 2) for row in SOUND]
    other = [of_model(row, "other") for row in SOUND]
    table = cells(format_accuracies(SOUND + second + other, ["b", "c"]))
    assert table["model", "attack"] == ["b", "c", "mean"]
    assert table["m", "clean"] == ["90.0 [87.0, 93.0]", "45.0 [87.0, 93.0]", "67.5"]
    assert table["m", "PGD-10"][2] == "39.0" and table["m", "worst case"][0] == "50.0 [47.0, 53.0]"
    assert table["other", "clean"] == ["90.0 [87.0, 93.0]", "-", "-"]  # no mean over some of the benchmarks
    assert list(table)[-1] == ("other", "worst case")


def test_one_table_for_each_radius_and_the_latest_worst_case():
    more = [replace(row, eps=0.2) for row in SOUND if row.eps == 0.1]
    table = format_accuracies(
        SOUND + more + [make_row(WORST_CASE, 0.4, parameters={"attacks": ["pgd", "cw", "fab-t"]})]
    )
    first, second = table.split("l_inf eps = ")[1:]
    assert first.startswith("25.5/255\n") and second.startswith("51/255\n")
    assert "40.0 [" in first and "40.0 [" not in second
    assert "Worst case over cw, fab-t, pgd." in first and "Worst case over apgd, pgd." in second


def test_models_with_worst_cases_over_other_attacks_are_named():
    drawn = of_model(make_row(WORST_CASE, 0.4, parameters={"attacks": ["pgd:eot=2", "pgd"]}), "noisy")
    naive = replace(drawn, attacked="plain", parameters={"attacks": ["pgd"]})
    table = format_accuracies([*SOUND, of_model(SOUND[-1], "other"), drawn, naive])
    lines = [line for line in table.splitlines() if line.startswith("Worst case")]
    assert lines == [
        "Worst case of m, other over apgd, pgd.",
        "Worst case of noisy over pgd, pgd:eot=2.",
        "Worst case of noisy made on plain over pgd.",
    ]


def test_what_a_suite_left_out_stands_beside_its_number():
    pair = make_row("autoattack", 0.4, steps=None, left_out=["apgd-t"], benchmark="pair")
    whole = make_row("autoattack", 0.6, steps=None)
    worst = [make_row(WORST_CASE, 0.4, parameters={"attacks": ["autoattack"]})]
    table = cells(format_accuracies([whole, pair, *worst], ["b", "pair"]))
    assert table["m", "autoattack"] == ["60.0 [57.0, 63.0]", "40.0 [37.0, 43.0], without apgd-t", "50.0"]


def test_a_mean_over_classes_stands_beside_the_accuracy_and_its_interval():
    table = cells(format_accuracies([make_row("clean", 0.9, mean_per_class_accuracy=0.8)]))
    assert table["m", "clean"] == ["80.0 per class; 90.0 [87.0, 93.0]", "80.0"]


@pytest.mark.parametrize(
    ("row", "label"),
    [
        (make_row("pgd", 0.5), "PGD-10"),
        (make_row("pgd:steps=50,restarts=5", 0.5, steps=50, restarts=5), "PGD-50 x 5"),
        (make_row("pgd:step_size=1/255", 0.5), "PGD-10 (step_size=1/255)"),
        (make_row("square:queries=9", 0.5, steps=None), "square (queries=9)"),
        (make_row("transfer", 0.5), "transfer from m"),
        (make_row("transfer-to-proxy", 0.5), "made on m"),
    ],
)
def test_labels_say_what_ran(row, label):
    assert row.label == label


def test_csv_has_every_field_of_every_row(tmp_path):
    write_csv(SOUND, tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == [row.accuracy for row in SOUND]
    assert rows[4]["broken_by"] == '{"apgd-ce": 380, "apgd-dlr": 5}'


def test_pictures_are_drawn(tmp_path):
    other = [of_model(row, "other", accuracy=0, low=0) for row in SOUND]
    draw_robustness_curves(SOUND + other, "b", "linf", tmp_path / "curves.png")
    draw_clean_against_robust(SOUND + other, Radius(0.1), tmp_path / "scatter.png")
    image = torch.full((3, 8, 8), 0.5)
    names = {"label": "cat", "before": "cat", "after": "dog"}
    draw_adversarial_images([{"clean": image, "adversarial": image} | names] * 2, "title", tmp_path / "images.png")
    for picture in ("curves.png", "scatter.png", "images.png"):
        assert (tmp_path / picture).stat().st_size > 5000


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which aren't written."""
    figures = []
    monkeypatch.setattr("hpt.evaluation.figures.save_figure", lambda figure, *_, **__: figures.append(figure))
    return figures


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3], ids=["all in one place", "close", "apart"])
def test_names_of_points_cover_neither_each_other_nor_the_points(drawn, spread):
    generator, rows = np.random.default_rng(0), []
    for model in ("vanilla", "robust"):
        for benchmark in (
            "digits",
            "tiny_imagenet",
            "oxford_pets",
            "fgvc_aircraft",
            "cifar10",
            "stl10",
            "dtd",
            "pcam",
        ):
            clean, worst = 0.95 - spread * generator.random(), 0.05 + spread * generator.random()
            worst = make_row(WORST_CASE, worst, benchmark=benchmark, parameters={"attacks": ["pgd"]})
            rows += [of_model(row, model) for row in (make_row("clean", clean, benchmark=benchmark), worst)]
    draw_clean_against_robust(rows, Radius(0.1), "unused")
    (figure,) = drawn
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines
    points = [axes.transData.transform(text.xy) for text in axes.texts]
    assert len(boxes) == 16
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0 and not any(box.contains(*point) for point in points)


@pytest.mark.parametrize("eps", [16 / 255, 1 / 255, 0])
def test_a_magnified_perturbation_lies_around_grey(drawn, eps):
    clean, change = torch.full((3, 8, 8), 0.5), torch.ones(3, 8, 8)
    change[:, ::2] = -1
    names = {"label": "cat", "before": "cat", "after": "dog"}
    draw_adversarial_images([{"clean": clean, "adversarial": clean + eps * change} | names], "title", "unused")
    panel = drawn[0].axes[1]
    assert sorted({*panel.images[0].get_array().flatten().tolist()}) == pytest.approx([0.25, 0.75] if eps else [0.5])
    assert panel.get_title() == {16 / 255: "perturbation x 4", 1 / 255: "perturbation x 64", 0: "no perturbation"}[eps]


def test_a_table_that_is_too_wide_is_divided():
    lines = [["model", "attack", *"abcd"], ["m", "pgd", *(letter * 30 for letter in "abcd")]]
    tables = fitting_tables(lines, keys=2, width=100).split("\n\n")
    assert [table.splitlines()[0].split() for table in tables] == [
        ["|", "model", "|", "attack", "|", *pair, "|"] for pair in (["a", "|", "b"], ["c", "|", "d"])
    ]
    assert all(len(line) <= 100 for table in tables for line in table.splitlines())
    assert fitting_tables(lines, keys=2, width=200) == markdown_table(lines)
    assert len(fitting_tables(lines, keys=2, width=10).split("\n\n")) == 4  # one column each, however wide
