"""Who works on what: processes and machines share tasks in a folder, each claimed in a file of its own.

with claim(folder, "train--tecoa-0.05-0") as claimed:
    if claimed is not None:  # else another process has it
        ...

`TASK.0.json` is a task's first claim. Who takes over from a process that has ended makes `TASK.1.json`, and so on: a
file that must not be there yet is made by one process alone, on any file system. A claim is as good as its process:
one on this machine must be alive, one on another must have given a sign of life within the last [`TIMEOUT`] seconds.
That needs no locks, which file systems that clusters share may lack. Where there are some, `hpt.locks` keeps two
processes out of one run's folder all the same, if a claim is ever wrong, as after the clock was set.
"""

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from hpt.files import named_if_it_fails, write_file


BEAT, TIMEOUT = 20, 600  # seconds between signs of life, and without one until others take over


@dataclass
class Claim:
    """Who works on a task.

    Args:
        task (`str`): Its id.
        host (`str`), pid (`int`), process_started (`float`): The process.
        started (`float`): When it claimed the task, in seconds since 1970.
        cpu_seconds (`float`): What it has computed so far, with what those before it have.
        ended (`bool`): Whether it has let go of the task.
    """

    task: str
    host: str
    pid: int
    process_started: float
    started: float
    cpu_seconds: float = 0.0
    ended: bool = False

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host} since {since}"


@contextmanager
def claim(folder: Path, task: str) -> Iterator[Claim | None]:
    """Within, no other process has a task; `None` if another has it."""
    number, last = last_claim(folder, task)
    if last is not None and is_held(_file(folder, task, number), last):
        yield None
        return
    before = 0.0 if last is None else last.cpu_seconds
    own = Claim(task, socket.gethostname(), os.getpid(), _began(os.getpid()), time.time(), before)
    file = _file(folder, task, number + 1)
    if not _make(file, own):
        yield None
        return
    stop, spent_before = threading.Event(), cpu_seconds()
    beat = threading.Thread(target=_beat, args=(file, own, spent_before, stop), daemon=True)
    beat.start()
    try:
        yield own
    finally:
        stop.set()
        beat.join()
        _write(file, replace(own, cpu_seconds=before + cpu_seconds() - spent_before, ended=True))


def last_claim(folder: Path, task: str) -> tuple[int, Claim | None]:
    """The newest claim on a task and its number; -1 and `None` if there is none."""
    number = -1
    while _file(folder, task, number + 1).exists():
        number += 1
    if number < 0:
        return -1, None
    try:
        return number, Claim(**json.loads(_file(folder, task, number).read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # it is being written, or its process was killed right then
        return number, Claim(task, "", 0, 0.0, 0.0)


def is_held(file: Path, last: Claim) -> bool:
    """Whether the process of a task's newest claim still works on it."""
    if last.ended:
        return False
    if last.host == socket.gethostname():
        with suppress(psutil.NoSuchProcess):
            is_that = abs(_began(last.pid) - last.process_started) < 1
            return is_that and psutil.Process(last.pid).status() != psutil.STATUS_ZOMBIE
        return False
    return _now(file.parent) - file.stat().st_mtime < TIMEOUT


def _began(pid: int) -> float:
    """When a process began, by the clock as it goes now: the same process began at another time once that is set."""
    return psutil.Process(pid).create_time()


def _now(folder: Path) -> float:
    """The time by the clock that a folder's files are dated by, which for a shared one is its server's."""
    with named_if_it_fails(folder), tempfile.NamedTemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def holder(folder: Path, task: str) -> Claim | None:
    """The claim of the process that works on a task, if one does."""
    number, last = last_claim(folder, task)
    return last if last is not None and is_held(_file(folder, task, number), last) else None


def cpu_seconds() -> float:
    """What this process and those that it has started, and that have ended, have computed."""
    return sum(os.times()[:4])


def _file(folder: Path, task: str, number: int) -> Path:
    return folder / f"{task}.{number}.json"


def _make(file: Path, own: Claim) -> bool:
    """Make a claim's file; not if it is there."""
    with named_if_it_fails(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(json.dumps(asdict(own)))
        except FileExistsError:
            return False
    return True


def _write(file: Path, own: Claim) -> None:
    write_file(file, json.dumps(asdict(own)))


def _beat(file: Path, own: Claim, spent_before: float, stop: threading.Event) -> None:
    """Give signs of life until `stop` is set."""
    while not stop.wait(BEAT):
        with suppress(Exception):  # of a disk that is full or away for a while, which the work itself will say
            spent = own.cpu_seconds + cpu_seconds() - spent_before
            _write(file, replace(own, cpu_seconds=spent, process_started=_began(own.pid)))
