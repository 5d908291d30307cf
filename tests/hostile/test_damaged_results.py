"""Damaged results, predictions, verdicts and records: a right number or one line, and never a traceback."""

import json
import random
import shutil
from dataclasses import asdict, replace

import pytest
from helpers import make_benchmark, make_clip, with_accuracy

from hpt import InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.evaluation.flags import find_flags
from hpt.evaluation.processor_check import DIFFERENCES, SHARES, parse_agreement
from hpt.evaluation.ranking import TransferMatrix
from hpt.evaluation.report import format_accuracies, format_flags
from hpt.evaluation.results import parse_predictions, parse_row, read_result_rows
from hpt.evaluation.rows import CLEAN, LARGE_EPS, WORST_CASE, Row
from hpt.hub.evaluations import add_saved_evaluations
from hpt.hub.folder import ModelFolder
from hpt.hub.index import as_eval_result, as_row
from hpt.json_files import DIGEST, read_lines, sealed, unsealed


ATTACKS = ["fgsm", "pgd:steps=2"]
ODD = [None, True, -1, 0.5, 1e308, 10**400, "", "x", "\n", [], ["x"], [None], {}, {"x": 1}, [[[1]]], 2**70]


@pytest.fixture(scope="module")
def model():
    clip, processor = make_clip(11)
    return clip.eval(), processor


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """The folder of an evaluation, and its page."""
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate(model, folder)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "evaluation")


def evaluate(model, folder) -> str:
    """What is printed of all rows in a folder after an evaluation has gone on there, line by line in any order."""
    evaluator = RobustnessEvaluator(attacks=ATTACKS, eps=4 / 255, batch_size=8, output_dir=str(folder))
    evaluator(*model, make_benchmark(20), name="mine")
    rows = list(evaluator.results.rows.values())
    return sorted(f"{format_accuracies(rows)}\n{format_flags(find_flags(rows))}".splitlines())


def without_digests(folder) -> None:
    """As earlier versions wrote it."""
    for file in folder.glob("*.jsonl"):
        lines = read_lines(file, unsealed)
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def change_line(file, number: int, change) -> None:
    """Change what a line says, and leave its digest as it is."""
    lines = file.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | change)
    file.write_text("".join(f"{line}\n" for line in lines))


# Bits


@pytest.mark.parametrize("digests", [True, False], ids=["with digests", "of an earlier version"])
@pytest.mark.parametrize("name", ["results.jsonl", "predictions-0.jsonl"])
def test_a_flipped_bit_is_a_line_or_changes_nothing(model, finished, tmp_path, caplog, name, digests):
    draw = random.Random(0)
    for number in range(20):
        folder = shutil.copytree(finished[0], tmp_path / str(number))
        if not digests:
            without_digests(folder)
        content = bytearray((folder / name).read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(content)
        try:
            assert evaluate(model, folder) == finished[1]
        except InputError as error:
            assert name.partition("-")[0] in str(error) and "\n" not in str(error)
    assert all("\n" not in message for message in caplog.messages)


def test_an_altered_accuracy_is_measured_again(model, finished, folder, caplog):
    results = folder / "results.jsonl"
    change_line(results, 3, {"accuracy": 0.9})
    damaged = results.read_text().splitlines()[2]
    with pytest.raises(InputError, match="Line 3 of .*results.jsonl is damaged .*was altered.*: remove it"):
        read_result_rows(folder)
    assert evaluate(model, folder) == finished[1]
    assert caplog.messages == [
        f"Line 3 of {results} can't be used (it isn't what its digest is of: it was altered): what was there is "
        "measured again, and results.jsonl.damaged keeps it."
    ]
    assert (folder / "results.jsonl.damaged").read_text() == f"{damaged}\n"
    assert len(read_result_rows(folder)) == len(read_result_rows(finished[0]))
    caplog.clear()
    assert evaluate(model, folder) == finished[1] and not caplog.messages


def test_rows_of_earlier_versions_are_held_against_their_intervals(folder):
    without_digests(folder)
    change_line(folder / "results.jsonl", 1, {"accuracy": 0.55})
    with pytest.raises(InputError, match="Line 1 .*low and high are .*, but of 11 right samples of 20 they are"):
        read_result_rows(folder)


def test_rows_of_earlier_versions_are_held_against_their_predictions(model, folder):
    without_digests(folder)
    row = asdict(with_accuracy(read_result_rows(folder)[0], 0.55))
    change_line(folder / "results.jsonl", 1, {name: row[name] for name in ("accuracy", "low", "high")})
    with pytest.raises(InputError, match="has .* of clean on random, but its predictions give .*: one of them was"):
        evaluate(model, folder)


def test_rows_of_earlier_versions_whose_settings_were_altered_are_set_aside(model, finished, folder, caplog):
    without_digests(folder)
    change_line(folder / "results.jsonl", 4, {"model": "another"})
    assert evaluate(model, folder) == finished[1]
    (line,) = caplog.messages
    assert "results.jsonl can't be used (nothing in the folder was predicted with its settings)" in line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"predictions": [0]}, "isn't of 8 samples"),
        ({"predictions": [3] * 8}, "predicts class 3 of 3"),
        ({"batch": 3}, "isn't of 0 samples"),
    ],
    ids=["short", "unknown class", "beyond the last"],
)
def test_odd_predictions_of_earlier_versions_are_named(model, folder, change, problem):
    without_digests(folder)
    change_line(folder / "predictions-0.jsonl", 1, change)
    with pytest.raises(InputError, match=rf'predictions-\*.jsonl with "row": "\w+" and "batch": \d {problem}'):
        evaluate(model, folder)


# Lines


LINES = {
    "not UTF-8": (b'{"row": "\xff"}', "it isn't UTF-8: invalid start byte, at byte 10"),
    "not a number": (b'{"row": NaN}', "it has NaN, which is no number"),
    "infinite": (b'{"row": -Infinity}', "it has -Infinity, which is no number"),
    "said twice": (b'{"row": 1, "row": 2}', "it says something twice"),
    "deep": (b"[" * 10**5 + b"]" * 10**5, "it is nested too deeply"),
    "deep, as Python can read it": (b"[" * 60 + b"]" * 60, "it is nested too deeply"),
    "empty bytes": (bytes(100), "it isn't JSON"),
    "a list": (b"[1]", "it isn't a dictionary"),
    "a number of many digits": (b'{"row": ' + b"1" * 5000 + b"}", "it isn't JSON|Exceeds the limit"),
    "other text": (b"<html>", "it isn't JSON: Expecting value, at character 1"),
    "long": (b'{"row": "' + b"x" * 10**7 + b'"}', "isn't one of predictions"),
}


@pytest.mark.parametrize(("line", "problem"), LINES.values(), ids=LINES)
def test_odd_lines_are_named(finished, folder, caplog, line, problem):
    predictions = folder / "predictions-0.jsonl"
    content = predictions.read_bytes()
    predictions.write_bytes(line + b"\n" + content)
    with pytest.raises(InputError, match=f"Line 1 of .*predictions-0.jsonl .*({problem})") as error:
        read_lines(predictions, parse_predictions)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["results.jsonl", "predictions-0.jsonl"])
def test_line_ends_and_marks_of_editors_change_nothing(model, finished, folder, caplog, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n"))
    assert evaluate(model, folder) == finished[1] and not caplog.messages


# Rows


PGD = Row("m", "m", 0, 0, 0, 40, "b", "test", "native", "pgd", 4 / 255, 10, 1 / 255, 1, "linf", {"steps": 10})
ROWS = [
    with_accuracy(
        replace(PGD, attack=CLEAN, attacked=None, eps=None, norm=None, most_predicted=0.5, chance=0.25), 0.9
    ),
    with_accuracy(replace(PGD, seed=0, batch_size=8, zero_gradient=2, broken_by={"square": 1}), 0.5),
    with_accuracy(replace(PGD, attack=WORST_CASE, parameters={"attacks": ["pgd"]}, seconds=1.5), 0.4),
    with_accuracy(replace(PGD, attack=LARGE_EPS, eps=0.5), 0.0),
]


def test_rows_are_read_as_they_were_written():
    for row in ROWS:
        assert parse_row(sealed(asdict(row))) == parse_row(asdict(row)) == row
        in_card = replace(row, most_predicted=None, chance=None, seconds=None)
        assert as_row(as_eval_result(row), "m") == in_card


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", asdict(PGD))
def test_odd_values_of_a_row_are_named_or_shown(name, value):
    """Also with a digest of their own; and what is taken can be shown."""
    for row in ROWS:
        line = asdict(row) | {name: value}
        for written in (line, sealed(line)):
            try:
                taken = parse_row(written)
            except ValueError as error:
                assert "\n" not in str(error).replace("\n'", "") and len(str(error)) < 300
            else:
                assert format_accuracies([taken]) and repr(taken) and as_eval_result(taken)
                assert format_flags(find_flags([*ROWS, taken]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"accuracy": 0.51}, "accuracy is 0.51, which isn't a share of 40 samples"),
        ({"accuracy": "0.5"}, "accuracy is '0.5', but must be a number"),
        ({"low": 0.2}, "low and high are 0.2 and 0.648, but of 20 right samples of 40 they are 0.352 and 0.648"),
        ({"n": 0}, "n is 0, but must be at least 1"),
        ({"n": True}, "n is True, but must be a whole number"),
        ({"zero_gradient": 41}, r"zero_gradient is 41, but must be in \[0, 40\]"),
        ({"broken_by": {"square": "1"}}, "broken_by is .*, but must be a dictionary, each part a whole number"),
        ({"eps": 2.0}, "its radius can't be: eps is 2"),
        ({"norm": "l7"}, "its radius can't be: Unknown norm 'l7'"),
        ({"attacked": None}, "attack is 'pgd', but attacked is None"),
        ({"attack": WORST_CASE}, "attacks is None, but must be a list, each part a text"),
        ({"chance": 1.5}, r"chance is 1.5, but must be in \[0, 1\]"),
    ],
    ids=str,
)
def test_what_cannot_be_in_a_row_is_said(change, problem):
    with pytest.raises(ValueError, match=problem):
        parse_row(asdict(ROWS[1]) | change)


def test_other_fields_are_of_another_version():
    with pytest.raises(InputError, match=r"isn't a row of hpt .*\(it lacks n and has N\)"):
        parse_row({{"n": "N"}.get(name, name): value for name, value in asdict(PGD).items()})


# Predictions, verdicts, agreement


RECORD = {"row": "0", "batch": 0, "predictions": [0, 1], "seconds": 0.5, "passes": 3, "most_passes": 4}
RECORD |= {"stochastic": False, "zero_gradient": 0, "broken_by": {"square": 1}}


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("name", RECORD)
def test_odd_values_of_predictions_are_refused(name, value):
    assert parse_predictions(sealed(RECORD)) == RECORD
    allowed = {"row": str, "seconds": float, "broken_by": dict, "predictions": list, "stochastic": bool}
    if value in ([], {"x": 1}, {}) or type(value) is allowed.get(name) or (name, value) == ("seconds", 2**70):
        return
    with pytest.raises(ValueError):  # noqa: PT011 - of each name another
        parse_predictions(RECORD | {name: value})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"correct": {"x": [2] * 10}}, "it isn't of right and wrong"),
        ({"correct": {"x": ["1"]}}, "correct is .*, but must be a dictionary"),
        ({"correct": [1]}, "correct is .*, but must be a dictionary"),
        ({"column": 3}, "column is 3, but must be a text"),
    ],
)
def test_damaged_verdicts_are_measured_again(model, tmp_path, caplog, change, problem):
    models = {"target": ZeroShotClassifier(*model), "other": ZeroShotClassifier(*make_clip(2))}

    def measure():
        matrix = TransferMatrix(models, make_benchmark(10), [8 / 255], steps=1, folder=tmp_path)
        matrix.measure()
        return matrix.rows()

    rows, file = measure(), tmp_path / "verdicts-0.jsonl"
    change_line(file, 2, {"correct": {}})
    assert measure() == rows and "was altered" in caplog.messages[0]
    lines = file.read_text().splitlines()
    lines[1] = json.dumps(sealed(unsealed(json.loads(lines[1])) | change))
    file.write_text("".join(f"{line}\n" for line in lines))
    caplog.clear()
    assert measure() == rows
    assert caplog.messages[0].startswith(f"Line 2 of {file} can't be used")


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
def test_odd_agreements_are_refused(value):
    agreement = {"benchmark": "b", "split": "test", "n": 9} | dict.fromkeys(SHARES + DIFFERENCES, 0.5)
    assert parse_agreement(sealed(agreement)) == agreement
    for name in agreement:
        if type(value) not in (int, float, type(agreement[name])):
            with pytest.raises(ValueError, match=f"{name} is .*, but must be"):
                parse_agreement(agreement | {name: value})


# What is published


def test_altered_records_are_refused_before_a_card_is_written(tmp_path):
    folder, row = ModelFolder(tmp_path), replace(ROWS[0], weights="w")
    folder.add_rows([row], {"w"})
    assert ModelFolder(tmp_path).rows == [row]
    text = (tmp_path / "evaluation.jsonl").read_text()
    (tmp_path / "evaluation.jsonl").write_text(text.replace('"accuracy": 0.9', '"accuracy": 0.8'))
    with pytest.raises(InputError, match="Line 1 of .*evaluation.jsonl is damaged .*was altered"):
        ModelFolder(tmp_path).rows  # noqa: B018
    (tmp_path / "evaluation.jsonl").write_text(text[:100])  # which no kill cuts off: it is written in one step
    with pytest.raises(InputError, match="Line 1 of .*evaluation.jsonl is damaged"):
        ModelFolder(tmp_path).rows  # noqa: B018


def test_altered_evaluations_are_not_published(folder, tmp_path):
    change_line(folder / "results.jsonl", 2, {"n": 21})
    with pytest.raises(InputError, match="Line 2 of .*results.jsonl is damaged"):
        add_saved_evaluations(ModelFolder(tmp_path), tmp_path, [str(folder)])


@pytest.mark.parametrize(
    "change", [{"low": 0.1}, {"weights": "others"}, {"seed": 1}, {"n": 41}, {DIGEST: "0"}, {DIGEST: None}], ids=str
)
def test_altered_entries_of_cards_are_not_compared(change):
    result = as_eval_result(ROWS[1])
    with pytest.raises(ValueError, match="it was altered"):
        as_row(replace(result, metric_args=result.metric_args | change), "m")
    with pytest.raises(ValueError, match="it was altered"):
        as_row(replace(result, metric_value=0.6), "m")
