"""What a row says of itself, whichever version wrote it."""

import json
from dataclasses import asdict, fields, replace

import pytest
from helpers import SOUND, make_benchmark, make_row

from hpt import PGD, InputError, RobustnessEvaluator
from hpt.evaluation.comparison import measure
from hpt.evaluation.flags import find_flags
from hpt.evaluation.plan import plan_attack, plan_clean
from hpt.evaluation.report import describe_row, format_accuracies
from hpt.evaluation.results import parse_predictions, predictions_of
from hpt.evaluation.row_check import check_row
from hpt.evaluation.row_settings import hash_benchmark
from hpt.evaluation.rows import (
    ADDED,
    ALL_IMAGES,
    MEASURED,
    MEASURED_SINCE,
    OF_FUNCTIONS,
    WORST_CASE,
    Row,
    Rows,
    measured_accuracy,
)
from hpt.json_files import digest
from hpt.models.weights import hash_weights
from hpt.radius import Radius


@pytest.fixture
def benchmark():
    return make_benchmark(template="a {}")


def test_a_row_knows_its_radius_and_attack():
    pgd = make_row("pgd:steps=50", 0.5, eps=4 / 255, steps=50)
    assert pgd.radius == Radius("4/255") and pgd.named_attack.name == "pgd" and pgd.label == "PGD-50"
    clean = make_row("clean", 0.9)
    assert clean.radius is None and clean.label == "clean"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (make_row("clean", 0.9), "Row(m on b test, clean: 90.0 % [87.0, 93.0], n = 1000)"),
        (make_row("pgd", 0.5), "Row(m on b test, PGD-10 at l_inf eps 25.5/255: 50.0 % [47.0, 53.0], n = 1000)"),
        (make_row("fgsm", 0.5, eps=3, norm="l2", steps=None), "Row(m on b test, fgsm at l_2 eps 3: 50.0 % [47.0, "),
        (replace(make_row("pgd", 0.5), attacked="p"), "Row(m on b test, PGD-10 at l_inf eps 25.5/255 made on p: 50"),
        (replace(make_row("transfer", 0.5), attacked="p"), "Row(m on b test, transfer from p at l_inf eps 25.5/255: "),
        (make_row(WORST_CASE, 0.5), "Row(m on b test, worst case at l_inf eps 25.5/255: 50.0 % [47.0, 53.0], n = 1"),
    ],
    ids=["clean", "pgd", "l2", "made on another", "transfer", "worst case"],
)
def test_a_row_is_a_line(row, text):
    assert repr(row).startswith(text) and "\n" not in repr(row)


def test_rows_are_a_list_that_becomes_a_table(subject, benchmark):
    evaluator = RobustnessEvaluator(attacks=[], eps=0.1)
    rows = evaluator(subject.classifier.model, subject.classifier.processor, benchmark, name="mine")
    assert repr(rows) == f"Rows:\n{rows[0]!r}" and rows + [] == list(rows)
    table = Rows([*rows, *SOUND]).to_pandas()
    assert list(table) == [field.name for field in fields(Row)] and len(table) == 1 + len(SOUND)
    assert table.accuracy.tolist() == [rows[0].accuracy, *(row.accuracy for row in SOUND)]
    assert table.groupby("model").n.sum().to_dict() == {"mine": 10, "m": 9000}
    assert list(Rows().to_pandas()) == list(table)


def test_the_number_of_steps_is_the_rows_own():
    """A comparison's attack has no settings in its text, and defaults may change."""
    assert make_row("pgd", 0.5, steps=2).label == "PGD-2"


RANDOMISED = replace(
    make_row("clean", 0.5, n=10), **measured_accuracy(5, 10), evaluations=2, accuracies=[0.4, 0.6], always_right=0.3
)


def test_evaluations_of_a_randomised_classifier_are_said_and_checked():
    check_row(RANDOMISED)
    check_row(replace(RANDOMISED, **measured_accuracy(4.5, 10), accuracies=[0.3, 0.6]))
    assert "| 50.0 [23.7, 76.3], 40.0 to 60.0 in 2 evaluations, 30.0 in all |" in format_accuracies([RANDOMISED])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"accuracies": [0.5, 0.6]}, "but the evaluations have a mean of 0.55"),
        ({"accuracies": [0.5]}, "it has 2 evaluations, but accuracies in 1 of them"),
        ({"accuracies": [0.45, 0.55]}, "aren't shares of 10 samples"),
        ({"always_right": 0.5}, "and at least 0.4"),
        ({"always_right": None}, "it has 2 evaluations"),
        ({"evaluations": None}, "it has None evaluations, but accuracies in 2 of them"),
        ({"evaluations": 0}, "evaluations is 0, but must be at least 1"),
        ({"evaluations": None, "accuracies": []}, "it has None evaluations"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        check_row(replace(RANDOMISED, **changes))


def test_predictions_of_evaluations_have_the_same_samples():
    line = {"row": "x", "batch": 0, "predictions": [0, 1], "again": [[1, 1]], "seconds": 1.0}
    assert predictions_of(parse_predictions(line)).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="its evaluations are of different numbers of samples"):
        parse_predictions(line | {"again": [[1]]})
    with pytest.raises(ValueError, match="a number below zero"):
        parse_predictions(line | {"again": [[1, -1]]})


def test_attacks_of_other_versions_stand_in_tables():
    later = make_row("later:momentum=1", 0.2, steps=3)
    assert "| later-3 (momentum=1) |" in format_accuracies([*SOUND, later])
    assert find_flags([*SOUND, later]) == []
    assert describe_row(later) == "Robust accuracy under later-3 (momentum=1) at l_inf eps 25.5/255"


def test_a_task_has_every_setting_of_its_row(subject, benchmark):
    clean = plan_clean(subject, benchmark, 0, 64, None)
    attacked = plan_attack(clean, "pgd", PGD(eps=4 / 255), "mine")
    every = {field.name for field in fields(Row)} - MEASURED
    assert set(clean.settings) == set(attacked.settings) == every - OF_FUNCTIONS


def test_results_folders_of_the_first_version_are_gone_on_with():
    assert MEASURED_SINCE == "0.1.0"  # raised only when the same settings would give another number


def test_rows_of_a_comparison_are_complete(subject, benchmark):
    clean, attacked = measure([subject], benchmark), measure([subject], benchmark, PGD(eps=4 / 255, steps=1), "mine")
    for measured in (*clean, *attacked):
        assert measured.weights == hash_weights(subject.classifier.model.state_dict())
        assert measured.samples == hash_benchmark(benchmark)
        assert (measured.templates, measured.dtype, len(measured.image_mean)) == (["a {}"], "float32", 3)
        assert (measured.batch_size, measured.hpt_version) == (None, None)  # of an evaluation alone


def test_rows_say_whether_all_images_are_attacked(subject, benchmark):
    (clean,), (compared,) = measure([subject], benchmark), measure([subject], benchmark, PGD(eps=0.1, steps=1), "mine")
    evaluated = RobustnessEvaluator(attacks="pgd:steps=1", eps=0.1)(
        subject.classifier.model, subject.classifier.processor, benchmark
    )
    assert compared.parameters[ALL_IMAGES] and compared.attacks_all_images
    assert replace(compared, batch_size=64).attacks_all_images
    assert not any(measured.attacks_all_images for measured in (clean, *evaluated))


def test_rows_without_the_fields_that_were_added_since_are_read_and_gone_on_with(subject, benchmark, tmp_path, caplog):
    def evaluate():
        evaluator = RobustnessEvaluator(attacks="pgd:steps=1", eps=0.1, output_dir=str(tmp_path))
        return evaluator(subject.classifier.model, subject.classifier.processor, benchmark)

    now = evaluate()
    assert now[0].most_predicted is not None and now[0].chance == 0.4 and now[1].chance is None
    lines = [{name: value for name, value in asdict(row).items() if name not in ADDED} for row in now]
    (tmp_path / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    before = [Row(**line) for line in lines]
    predictions = (tmp_path / "predictions-0.jsonl").read_text()
    for row, earlier in zip(now, before, strict=True):  # whose digest is that of fewer settings
        predictions = predictions.replace(digest(row.settings()), digest(earlier.settings()))
    (tmp_path / "predictions-0.jsonl").write_text(predictions)
    assert evaluate() == before
    assert "rows of the model from hpt 0.3.0 or before, which don't say with which" in caplog.text
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(now)
    (tmp_path / "results.jsonl").write_text(json.dumps(lines[0] | {"later": 1}) + "\n")
    with pytest.raises(InputError, match="Line 1 of .* isn't a row of hpt .*it has later"):
        evaluate()


def test_comparisons_measure_what_the_predictions_share(subject, benchmark):
    (clean,) = measure([subject], benchmark)
    (evaluated,) = RobustnessEvaluator(attacks=[])(subject.classifier.model, subject.classifier.processor, benchmark)
    assert (clean.most_predicted, clean.chance) == (evaluated.most_predicted, evaluated.chance) != (None, None)


def test_rows_of_the_first_version_which_do_not_say_it_are_the_same_rows(subject, benchmark):
    (now,) = measure([subject], benchmark, PGD(eps=0.1, steps=1), "mine")
    before = replace(now, parameters=now.strength)
    assert ALL_IMAGES not in before.parameters and before.attacks_all_images
    before = replace(before, templates=[], image_mean=[], image_std=[])
    assert before.identity == now.identity
    assert replace(before, batch_size=64).identity != replace(now, batch_size=64).identity  # of an evaluation
