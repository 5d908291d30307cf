"""One run at a time in a folder: who is refused, what a killed run leaves behind, and file systems without locks."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

import pytest
from helpers import (
    ONE_THREAD,
    held_by_another,
    make_benchmark,
    make_clip,
    make_dataset,
    make_trainer,
    refusal_of,
)

from hpt import InputError, RobustnessEvaluator, ZeroShotClassifier
from hpt.evaluation.ranking import TransferMatrix
from hpt.evaluation.results import read_result_rows
from hpt.hub.contents import published_files
from hpt.hub.folder import ModelFolder
from hpt.hub.push import publish
from hpt.locks import LOCK_FILE, hold_folder
from hpt.training.pretraining import PretrainingConfig, pretrain


HOLD = """
import os, subprocess, sys, time
from hpt.locks import hold_folder

with hold_folder(sys.argv[1]):
    {child}
    print(os.getpid(), flush=True)
    time.sleep(60)
"""
CHILDREN = {
    "none": "",
    # Which says when it has begun: until then it has its parent's lock
    "forked": "ready, begun = os.pipe(); os.fork() or (os.write(begun, b'.'), time.sleep(60)); os.read(ready, 1)",
    "started": "subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL)",
}


@contextmanager
def holder(folder, child="none"):
    """Another process that holds a folder, beside a child of its own that outlives it; both are killed at the end."""
    command = [sys.executable, "-c", HOLD.format(child=CHILDREN[child]), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD, start_new_session=True)
    try:
        assert int(process.stdout.readline()) == process.pid
        yield process
    finally:
        with suppress(ProcessLookupError):  # all have been killed before
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_refusal_names_the_process_its_machine_since_when_and_what_to_do(tmp_path):
    with holder(tmp_path) as other:
        name = rf"process {other.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{{4}}"
        line = (
            rf"^{tmp_path} is in use by {name}: wait until that ends, or give another output_dir\. .*delete .*lock\.$"
        )
        with pytest.raises(InputError, match=line), hold_folder(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).exists()


def test_who_waits_for_a_folder_has_it_once_the_other_ends(tmp_path):
    with holder(tmp_path / "cache") as other, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(hold_and_list, tmp_path / "cache")
        assert not wait([waiting], timeout=0.5).done
        other.kill()
        assert waiting.result(timeout=30) == [LOCK_FILE]
    assert not (tmp_path / "cache" / LOCK_FILE).exists()


def hold_and_list(folder) -> list[str]:
    with hold_folder(folder, wait=True):
        return os.listdir(folder)


@pytest.mark.parametrize("child", CHILDREN)
def test_a_killed_run_keeps_nobody_out_whatever_child_outlives_it(tmp_path, child, caplog):
    with holder(tmp_path, child) as other:
        other.kill()
        other.wait()
        with hold_folder(tmp_path) as held:
            assert held and f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
        assert child == "none" or os.killpg(other.pid, 0) is None  # the child is still there
    assert os.listdir(tmp_path) == [] and caplog.text == ""


def test_a_forked_process_neither_has_nor_ends_the_lock_of_its_parent(tmp_path):
    with hold_folder(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            try:
                with hold_folder(tmp_path / "run"):
                    os._exit(1)
            except InputError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if child == 0:
            with hold_folder(tmp_path / "another"):
                pass
            os._exit(0)
        os.waitpid(child, 0)
        assert os.listdir(tmp_path / "run") == [LOCK_FILE]


def test_the_thread_that_holds_a_folder_may_hold_it_again_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hold_folder("run") as first, hold_folder(tmp_path / "run" / ".." / "run") as second:
        assert first and not second
    with held_by_another("run"), pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
        with hold_folder("run"):
            pass
    with hold_folder("run") as again:
        assert again


@pytest.mark.parametrize("error", [None, InputError("wrong"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [True, False])
def test_what_ends_leaves_nothing_behind_but_what_it_wrote(tmp_path, there, error):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    for name in (None, "results.jsonl"):
        with suppress(InputError, KeyboardInterrupt), hold_folder(folder):
            if name:
                (folder / name).touch()
            if error:
                raise error
        assert folder.exists() == (there or name is not None)
    assert os.listdir(folder) == ["results.jsonl"]


def test_of_many_that_come_and_go_one_works_at_a_time(tmp_path):
    """A lock file that is deleted while another process has just opened it is no lock."""
    code = """
import os, sys, time
from hpt.errors import InputError
from hpt.locks import hold_folder

end, held = time.monotonic() + 1.5, 0
while time.monotonic() < end:
    try:
        with hold_folder(sys.argv[1]):
            os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
            os.unlink(sys.argv[2])
            held += 1
    except InputError as error:
        assert "is in use by" in str(error), error
print(held)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "inside")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ONE_THREAD) for _ in range(3)]
    held = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0] and sum(map(int, held)) > 30


# File systems


def test_where_there_are_no_locks_at_all_a_folder_is_worked_in_without(tmp_path, monkeypatch):
    monkeypatch.setattr("hpt.locks.fcntl", None)  # as on Windows
    with hold_folder(tmp_path / "new") as held:
        assert not held and not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_in_a_line(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(fcntl, "flock", fails_with(number))
    with hold_folder(tmp_path):
        assert caplog.messages == [f"Nothing keeps a second run out of {tmp_path}: its file system has no locks."]
        with held_by_another(tmp_path):
            assert f"{tmp_path} was in use by process {os.getpid()} on" in caplog.messages[-1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_else_fails_is_a_line(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", fails_with(number))
    with pytest.raises(InputError, match=f"^Can't work in {tmp_path}: {LOCK_FILE}: {os.strerror(number)}.$"):
        with hold_folder(tmp_path):
            pass


def fails_with(number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    return flock


def test_a_lock_that_another_machine_may_still_have_is_said_in_a_line(tmp_path, caplog):
    """A mount without shared locks, such as `nolock` of NFS, gives each machine its own."""
    (tmp_path / LOCK_FILE).write_text("process 7 on node9 since 2026-01-01 00:00:00 +0000")
    with hold_folder(tmp_path):
        assert f"{tmp_path} was in use by process 7 on node9 since" in caplog.text
        assert "make sure that it has ended" in caplog.text


def test_a_link_or_a_folder_in_place_of_the_lock_is_refused(tmp_path):
    (tmp_path / "secret").write_text("keep me")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=f"Can't work in .*{LOCK_FILE}: Too many levels of symbolic links"):
        with hold_folder(tmp_path / "run"):
            pass
    (tmp_path / "run" / LOCK_FILE).unlink()
    (tmp_path / "run" / LOCK_FILE).mkdir()
    with pytest.raises(InputError, match=f"Can't work in .*{LOCK_FILE}: Is a directory"):
        with hold_folder(tmp_path / "run"):
            pass
    with pytest.raises(InputError, match="Can't work in .*secret: (File exists|Not a directory)"):
        with hold_folder(tmp_path / "secret"):
            pass
    assert (tmp_path / "secret").read_text() == "keep me"


@pytest.mark.parametrize("content", [b"", b"\xff" * 10_000, b"a\nb\n" * 1000], ids=["empty", "binary", "lines"])
def test_a_refusal_is_a_short_line_whatever_the_lock_file_holds(tmp_path, content):
    with held_by_another(tmp_path):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with (
            pytest.raises(InputError, match="is in use by [^\n]{1,200}: wait until") as refused,
            hold_folder(tmp_path),
        ):
            pass
    assert "\n" not in str(refused.value)


# Who holds a folder


def trains(folder):
    make_trainer(folder).train()


def pretrains(folder):
    pretrain(PretrainingConfig(output_dir=str(folder), train_dataset="digits", use_cpu=True))


def makes_an_evaluator(folder):
    RobustnessEvaluator(attacks="pgd", output_dir=folder)


def ranks_proxies(folder):
    models = {str(seed): ZeroShotClassifier(*make_clip(seed)) for seed in (0, 1)}
    TransferMatrix(models, make_benchmark(), [0.1], folder=folder).measure()


@pytest.mark.parametrize("work", [trains, pretrains, makes_an_evaluator, ranks_proxies])
def test_work_in_a_folder_that_is_in_use_is_refused_and_writes_nothing(tmp_path, work):
    with held_by_another(tmp_path):
        with pytest.raises(InputError, match="is in use by"):
            work(tmp_path)
        assert os.listdir(tmp_path) == [LOCK_FILE]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("hpt_gpd.py", []),
        ("pretrain_clip.py", ["--config", "digits_target"]),
        ("evaluate.py", ["--models", "a=openai/clip", "--benchmarks", "digits"]),
        ("rank_proxies.py", ["--target", "openai/clip", "--proxies", "b=openai/clip", "--dataset", "digits"]),
    ],
)
def test_commands_are_refused_before_they_load_anything(tmp_path, script, arguments):
    """The models of two of them can't be loaded at all."""
    with held_by_another(tmp_path):
        assert "is in use by" in refusal_of(script, *arguments, "--output_dir", tmp_path, "--use_cpu")


def test_a_push_of_a_folder_that_is_in_use_is_refused_and_none_has_its_lock(hub, folder):
    with held_by_another(folder):
        with pytest.raises(InputError, match="is in use by"):
            publish(ModelFolder(folder), "me/robust")
        assert "is in use by" in refusal_of("publish.py", "--run", folder, "--hub_model_id", "me/robust")
        assert LOCK_FILE in ModelFolder(folder).names() and LOCK_FILE not in published_files(ModelFolder(folder))
    assert not hub.requests


def test_a_trainer_deletes_no_copies_that_another_run_is_pushing(hub, tmp_path):
    (tmp_path / "run" / ".push" / "100").mkdir(parents=True)
    with held_by_another(tmp_path / "run"), pytest.raises(InputError, match="is in use by"):
        make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/robust")
    assert (tmp_path / "run" / ".push" / "100").is_dir()


def test_what_runs_one_after_the_other_in_a_process_shares_a_folder(tmp_path):
    first, second = (make_trainer(tmp_path, eval_dataset=make_dataset(6), eval_strategy="epoch") for _ in range(2))
    evaluator = RobustnessEvaluator(attacks="pgd:steps=1", batch_size=4, output_dir=tmp_path)
    first.train()
    first.evaluate()
    second.train()
    rows = evaluator(first.model, first.processing_class, make_benchmark(4))
    assert LOCK_FILE not in os.listdir(tmp_path)
    with held_by_another(tmp_path):
        assert list(read_result_rows(tmp_path)) == list(rows)  # reading takes no lock
        with pytest.raises(InputError, match="is in use by"):
            evaluator(first.model, first.processing_class, make_benchmark(4))
