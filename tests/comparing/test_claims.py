"""One process works on a task at a time, and what a process leaves that has ended is taken over."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from hpt.comparing import claims
from hpt.comparing.claims import claim, holder, last_claim


def change(folder, **changes):
    """Change what the newest claim on a task says."""
    number, _ = last_claim(folder, "a")
    file = folder / f"a.{number}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


def ended_process() -> dict:
    """What a claim says of a process of this machine that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = psutil.Process(process.pid).create_time()
    process.communicate()
    return {"pid": process.pid, "process_started": started}


def test_a_task_has_one_holder(tmp_path):
    with claim(tmp_path, "a") as first:
        assert first.pid == os.getpid() and holder(tmp_path, "a") == first
        with claim(tmp_path, "a") as second, claim(tmp_path, "b") as other:
            assert second is None and other is not None
    assert holder(tmp_path, "a") is None
    with claim(tmp_path, "a") as again:
        assert again is not None and last_claim(tmp_path, "a")[0] == 1


def test_of_many_that_claim_at_once_one_has_the_task(tmp_path):
    """Also when all take over from a process that has ended."""
    with claim(tmp_path, "a"):
        pass

    def try_it(_):
        with claim(tmp_path, "a") as own:
            time.sleep(0.2)
            return own is not None

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(try_it, range(16))) == 1


def test_an_error_ends_a_claim(tmp_path):
    with pytest.raises(KeyboardInterrupt), claim(tmp_path, "a"):
        raise KeyboardInterrupt
    assert holder(tmp_path, "a") is None


def test_what_a_dead_process_of_this_machine_had_is_taken_over_with_its_cost(tmp_path):
    with claim(tmp_path, "a"):
        change(tmp_path, **ended_process(), cpu_seconds=7.0)
        with claim(tmp_path, "a") as own:
            assert own.cpu_seconds == 7.0 and own.pid == os.getpid()


def test_a_process_that_has_the_number_of_another_is_not_taken_for_it(tmp_path):
    with claim(tmp_path, "a") as own:
        change(tmp_path, process_started=own.process_started - 100)
        assert holder(tmp_path, "a") is None


@pytest.mark.parametrize("ago, held", [(0, True), (claims.TIMEOUT - 60, True), (claims.TIMEOUT + 1, False)])
def test_another_machine_holds_a_task_as_long_as_it_gives_signs_of_life(tmp_path, ago, held):
    with claim(tmp_path, "a"):
        file = change(tmp_path, host="elsewhere", pid=1)
        os.utime(file, (time.time() - ago,) * 2)
        with claim(tmp_path, "a") as own:
            assert (own is None) == held


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    with claim(tmp_path, "a"):
        os.utime(tmp_path / "a.0.json", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "a.0.json").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.time() - (tmp_path / "a.0.json").stat().st_mtime < 60


@pytest.mark.parametrize("content", ["", "{", "[]", '{"task": "a"}'])
def test_a_claim_that_is_being_written_counts_until_it_is_old(tmp_path, content):
    (tmp_path / "a.0.json").write_text(content)
    with claim(tmp_path, "a") as own:
        assert own is None
    os.utime(tmp_path / "a.0.json", (0, 0))
    with claim(tmp_path, "a") as own:
        assert own is not None


def test_a_clock_that_is_set_ends_no_claim_of_a_process_that_works(tmp_path, monkeypatch):
    """By when it was set, processes began at other times, until the next sign of life."""
    monkeypatch.setattr(claims, "BEAT", 0.05)
    began = claims._began
    with claim(tmp_path, "a"):
        monkeypatch.setattr(claims, "_began", lambda pid: began(pid) + 3600)
        deadline = time.monotonic() + 10
        while holder(tmp_path, "a") is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert holder(tmp_path, "a") is not None


def test_signs_of_life_are_dated_by_the_clock_of_the_folder(tmp_path, monkeypatch):
    with claim(tmp_path, "a"):
        change(tmp_path, host="elsewhere", pid=1)
        monkeypatch.setattr(claims.time, "time", lambda: 9e9)
        assert holder(tmp_path, "a") is not None
