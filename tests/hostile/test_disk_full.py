"""Disks that are full: every file is whole or as it was, one line names the file, and what was begun goes on later.

Files can't grow beyond a size here, which fails as a full disk does: in the middle of a file, by the system's error.
"""

import contextlib
import errno
import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import PartialState
from helpers import ONE_THREAD, make_clip, make_row, make_trainer, with_accuracy
from PIL import Image

from hpt import RobustnessEvaluator, ZeroShotClassifier, cli
from hpt.errors import InputError, WriteFailed
from hpt.evaluation.outputs import report_evaluation, report_ranking
from hpt.evaluation.ranking import TransferMatrix
from hpt.evaluation.subject import Subject
from hpt.files import write_file
from hpt.hub.evaluations import add_evaluation
from hpt.hub.folder import ModelFolder
from hpt.hub.push import publish
from hpt.json_files import append_line, read_lines, unsealed
from hpt.locks import hold_folder
from hpt.models.loading import load_dual_encoder, save_finished


@contextlib.contextmanager
def no_file_above(size: int):
    """Within, writing a file beyond so many bytes fails; gives what is printed, which pytest keeps in a file."""
    before, printed = resource.getrlimit(resource.RLIMIT_FSIZE), io.StringIO()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check_whole(folder: Path) -> None:
    """No file is empty, half-written or left over."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        assert file.stat().st_size, file
        assert not file.name.endswith(".incomplete"), file
        if file.suffix == ".png":
            Image.open(file).load()
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".jsonl":
            assert len(file.read_bytes().splitlines()) == len(read_lines(file, unsealed))


# One file


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "new"])
def test_a_folder_without_room_for_its_lock_is_as_it_was(tmp_path, is_there):
    folder = tmp_path / "run"
    if is_there:
        folder.mkdir()
    with no_file_above(0), pytest.raises(InputError, match=r"Can't work in .*: \.hpt\.lock: File too large"):
        with hold_folder(folder):
            pass
    assert folder.exists() == is_there and not list(tmp_path.rglob(".hpt.lock"))


@pytest.mark.parametrize("before", [None, b"old"], ids=["new", "there"])
@pytest.mark.parametrize("content", ["é" * 60, b"\x00" * 4096], ids=["text", "bytes"])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, before, content, size):
    file = tmp_path / "run" / "table.md"
    if before is not None:
        write_file(file, before)
    with no_file_above(size), pytest.raises(WriteFailed, match=f"^{file} can't be written: File too large.$"):
        write_file(file, content)
    assert contents(tmp_path) == ({} if before is None else {"run/table.md": before})
    write_file(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x" * 300 + ".md", "File name too long"),
        ("file/table.md", "(Not a directory|File exists)"),
        ("folder", "Is a directory"),
        ("full.md", "No space left on device"),
    ],
    ids=["name too long", "below a file", "a folder", "full device"],
)
@pytest.mark.parametrize("write", [write_file, append_line], ids=["whole", "appended"])
def test_whatever_keeps_a_file_from_being_written_is_said_with_its_name(tmp_path, monkeypatch, name, line, write):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    if name == "full.md" and write is append_line:
        (tmp_path / name).symlink_to("/dev/full")
    elif name == "full.md":
        monkeypatch.setattr(os, "replace", fail_by(errno.ENOSPC))
    before = contents(tmp_path)
    with pytest.raises(WriteFailed, match=f"^{re.escape(str(tmp_path))}/{name} can't be written: {line}.$"):
        write(tmp_path / name, {"some": "text"} if write is append_line else "text")
    assert contents(tmp_path) == before


def fail_by(number: int):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_the_cause_is_said(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "replace", fail_by(number))
    with pytest.raises(WriteFailed, match=f"a.md can't be written: {os.strerror(number)}.$"):
        write_file(tmp_path / "a.md", "text")
    assert contents(tmp_path) == {}


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    for name in ("table.md", "table.md.incomplete"):
        (tmp_path / name).symlink_to("theirs")
    write_file(tmp_path / "table.md", "ours")
    assert contents(tmp_path) == {"table.md": b"ours", "theirs": b"theirs"}


@pytest.mark.parametrize("room", [0, 1, 7, 17])
def test_a_line_is_added_whole_or_not_at_all(tmp_path, room):
    file = tmp_path / "results.jsonl"
    append_line(file, {"row": 1})
    before = file.read_bytes()
    with no_file_above(len(before) + room), pytest.raises(WriteFailed, match="results.jsonl can't be written"):
        append_line(file, {"row": 2, "more": 7})
    assert file.read_bytes() == before
    append_line(file, {"row": 3})
    assert read_lines(file, unsealed) == [{"row": 1}, {"row": 3}]


# Evaluations


def evaluate(classifier, benchmark, folder: Path) -> None:
    evaluator = RobustnessEvaluator(attacks=["pgd:steps=1"], eps=["1/255"], batch_size=4, output_dir=str(folder))
    planned = [evaluator.plan(Subject(classifier, "mine"), benchmark)]
    evaluator.run_all(planned)
    report_evaluation(evaluator, planned, [], [])


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (250, "predictions-0.jsonl"),
        (3000, "results.jsonl"),
        (20000, "robustness_random_linf.png"),
        (40000, "images_random_mine.png"),
    ],
)
def test_an_evaluation_on_a_full_disk_goes_on_later(classifier, benchmark, tmp_path, size, name):
    folder = tmp_path / "evaluation"
    with no_file_above(size), pytest.raises(WriteFailed, match=f"^{folder}/{name} can't be written: File too large.$"):
        evaluate(classifier, benchmark, folder)
    check_whole(tmp_path)
    evaluate(classifier, benchmark, folder)
    check_whole(tmp_path)
    assert {name, "table.md", "flags.json", "results.csv", "results.jsonl"} <= set(contents(folder))


@pytest.mark.parametrize(("size", "name"), [(100, "verdicts-0.jsonl"), (600, "ranking.md"), (5000, "matrix.png")])
def test_a_ranking_on_a_full_disk_goes_on_later(classifier, benchmark, tmp_path, size, name):
    models = {"target": classifier, "proxy": ZeroShotClassifier(*make_clip(1), classifier.class_names)}

    def rank():
        matrix = TransferMatrix(models, benchmark, ["1/255"], 1, 0, str(tmp_path))
        matrix.measure(4, 0, PartialState())
        report_ranking(matrix, "target")

    with (
        no_file_above(size),
        pytest.raises(WriteFailed, match=f"^{tmp_path}/{name} can't be written: File too large.$"),
    ):
        rank()
    check_whole(tmp_path)
    rank()
    check_whole(tmp_path)
    assert {name, "ranking.md", "ranking.json", "matrix.csv", "matrix.png"} <= set(contents(tmp_path))


# Models and cards


@pytest.mark.parametrize("size", [0, 300, 3000, 30000])
def test_a_model_is_saved_whole_or_is_not_there(tmp_path, size):
    model, processor = make_clip(0)
    with no_file_above(size), pytest.raises(WriteFailed, match=f"^{tmp_path} can't be written: .*(File|too) large"):
        save_finished(model, processor, tmp_path)
    assert contents(tmp_path) == {}
    save_finished(model, processor, tmp_path)
    load_dual_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("size", "radii", "name"),
    [
        (0, [0.1], "evaluation.jsonl"),
        (3000, [0.1], "README.md"),
        (15000, [0.1, 0.2], "figures/robustness_digits_linf.png"),
    ],
)
def test_what_an_evaluation_adds_to_a_model_is_whole_or_as_it_was(folder, size, radii, name):
    rows = [with_accuracy(make_row("clean", 0.9, benchmark="digits", weights="w"), 0.9)]
    rows += [with_accuracy(make_row("pgd", 0.5, eps=eps, benchmark="digits", weights="w"), 0.5) for eps in radii]
    before = contents(folder)
    with no_file_above(size), pytest.raises(WriteFailed, match=f"^{folder}/{name} can't be written: File too large.$"):
        add_evaluation(ModelFolder(folder), rows, "w")
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    check_whole(folder / "figures")
    add_evaluation(ModelFolder(folder), rows, "w")


def test_a_push_whose_card_cannot_be_written_names_it(hub, folder):
    with (
        no_file_above(100),
        pytest.raises(WriteFailed, match=f"^{folder}/README.md can't be written: File too large.$"),
    ):
        publish(ModelFolder(folder), "me/robust")
    publish(ModelFolder(folder), "me/robust")


def test_a_save_that_cannot_be_copied_is_not_pushed_and_leaves_nothing(hub, tmp_path, caplog):
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_model_id="me/robust", max_steps=1)
    trainer.train()
    trainer.save_model(_internal_call=True)
    with no_file_above(100):
        trainer.publisher.push_save(ModelFolder(tmp_path), 1)
    assert (
        "Step 1 isn't pushed: " in caplog.text
        and "/.push/1/README.md can't be written: File too large." in caplog.text
    )
    assert not (tmp_path / ".push").exists()


# What recipes say


def test_a_recipe_ends_with_one_line_that_names_the_file(tmp_path):
    with no_file_above(10) as printed, pytest.raises(SystemExit) as stop:
        cli.run_recipe(lambda: write_file(tmp_path / "leaderboard.md", 20 * "x"))
    assert stop.value.code == 1
    assert printed.getvalue() == f"error: {tmp_path}/leaderboard.md can't be written: File too large.\n"


@pytest.mark.parametrize(
    ("number", "line"),
    [
        *((number, "can't be written") for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)),
        *((number, "can't be read or written") for number in (errno.EACCES, errno.EPERM)),
    ],
)
def test_files_of_other_libraries_end_with_a_line_too(capsys, number, line):
    def main():
        raise OSError(number, os.strerror(number), "a.txt")

    with pytest.raises(SystemExit) as stop:
        cli.run_recipe(main)
    assert stop.value.code == 1 and capsys.readouterr().err == f"error: a.txt {line}: {os.strerror(number)}.\n"


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_a_full_log_ends_a_command_with_a_line(unbuffered):
    with open("/dev/full", "w") as log:
        command = [sys.executable, "-m", "hpt", "env"]
        run = subprocess.run(
            command, stdout=log, stderr=subprocess.PIPE, env=ONE_THREAD | {"PYTHONUNBUFFERED": unbuffered}
        )
    assert run.returncode == 1
    assert run.stderr.decode().endswith("error: The output can't be written: No space left on device.\n")


def test_errors_of_several_processes_are_said_where_none_can_be_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(cli.ERRORS, str(tmp_path / "gone"))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        cli.run_recipe(lambda: append_line(tmp_path, {}))
    assert capsys.readouterr().err == f"error: {tmp_path} can't be written: Is a directory.\n"
