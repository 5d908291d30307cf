"""In which order a process takes tasks."""

from types import SimpleNamespace

from hpt.comparing.claims import claim
from hpt.comparing.tasks import Task
from hpt.comparing.worker import TRIES, _tired_last


def test_what_process_after_process_ended_within_comes_last(tmp_path):
    """Such as a run that takes more memory than there is, which else would keep all others from being done."""
    tasks = [Task(name, "train", dict) for name in "abc"]
    for name, times in {"a": TRIES, "b": TRIES - 1}.items():
        for _ in range(times):
            with claim(tmp_path / "claims", name):
                pass
    assert [task.id for task in _tired_last(SimpleNamespace(folder=tmp_path), tasks)] == ["b", "c", "a"]
