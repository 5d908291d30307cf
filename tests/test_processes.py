import pytest
import torch

from hpt import InputError, processes


@pytest.fixture
def four_cores(monkeypatch):
    """A machine with four cores and no GPU, whose processes begin with one thread."""
    monkeypatch.setattr(processes, "available_cores", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield monkeypatch
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "Each process computes with 1 of 4 CPU threads: --cpu_threads 4 takes all.\n"),
        (
            {"LOCAL_WORLD_SIZE": "2", "RANK": "0"},
            "Each process computes with 1 of 2 CPU threads: --cpu_threads 2 takes all.\n",
        ),
        ({"LOCAL_WORLD_SIZE": "2", "RANK": "1"}, ""),
        ({"LOCAL_WORLD_SIZE": "4", "RANK": "0"}, ""),
    ],
)
def test_cores_that_are_left_idle_are_said_once(four_cores, capsys, environment, said):
    for name in ("LOCAL_WORLD_SIZE", "RANK"):
        four_cores.delenv(name, raising=False)
    for name, value in environment.items():
        four_cores.setenv(name, value)
    processes.set_cpu_threads(None)
    assert capsys.readouterr().out == said


def test_threads_are_set_as_asked(four_cores, capsys):
    processes.set_cpu_threads(2)
    assert torch.get_num_threads() == 2 and capsys.readouterr().out == ""
    with pytest.raises(InputError, match="cpu_threads is 0, but must be a whole number of at least 1"):
        processes.set_cpu_threads(0)
