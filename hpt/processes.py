"""The processes of a launch: how they find each other and start, and what is said when a data loader's dies."""

import logging
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hpt.cli import ERRORS
from hpt.environment import available_cores
from hpt.errors import InputError, WorkerDied, causes, check_at_least
from hpt.locks import hold_folder


STOPPING = (signal.SIGTERM, signal.SIGINT)  # what a run is stopped by: SIGTERM and Ctrl-C


def join_processes(use_cpu: bool = False) -> PartialState:
    """The processes that were launched together, which wait up to a day for each other.

    Raises:
        InputError: when several were launched but each would work alone.
    """
    state = PartialState(cpu=use_cpu or not torch.accelerator.is_available(), timeout=timedelta(days=1))
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != launched:
        raise InputError(
            f"{launched} processes were launched, but each sees {state.num_processes}: make the evaluator before any "
            "other use of accelerate, or launch on CPU by `torchrun --nproc_per_node N`."
        )
    return state


def check_trains_together(world_size: int) -> None:
    """Refuse a training of processes that were launched together, but don't see each other.

    Raises:
        InputError: saying what makes them see each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if world_size != launched:
        raise InputError(
            f"{launched} processes were launched, but each would train alone: without GPUs, launch them by "
            "`hpt train --num_processes N`, or give --use_cpu True."
        )


def set_cpu_threads(number: int | None) -> None:
    """Compute with so many threads on the CPU; for `None` with torch's own number, and say if some stay idle.

    `accelerate launch` and torchrun begin a process with one thread, `python` with all.

    Raises:
        InputError: for fewer than one.
    """
    if number is not None:
        check_at_least(1, cpu_threads=number)
        torch.set_num_threads(number)
    elif not torch.accelerator.is_available() and os.environ.get("RANK", "0") == "0":
        threads, cores = torch.get_num_threads(), available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if threads < cores:
            print(f"Each process computes with {threads} of {cores} CPU threads: --cpu_threads {cores} takes all.")


def on_main_process(work: Callable):
    """What the main process gets from `work`, which it does alone, on all processes.

    Raises:
        InputError: on all of them, if the main process does.
    """
    value, problem = None, None
    if PartialState().is_main_process:
        try:
            value = work()
        except InputError as error:
            problem = str(error)
    value, problem = broadcast_object_list([value, problem])
    if problem is not None:
        raise InputError(problem)
    return value


@contextmanager
def hold_together(folder: str | Path | None) -> Iterator[bool]:
    """[`hold_folder`] by the main process, for all that were launched together; they are all refused, or none.

    It gives them the same value, and for no folder `False`.
    """
    with ExitStack() as held:
        yield folder is not None and on_main_process(lambda: held.enter_context(hold_folder(folder)))


@contextmanager
def signals_held() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait for the end, where the first that has come does what it does without this.

    In another thread than the main one, where no handlers can be set, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextmanager
def dead_workers_explained() -> Iterator[None]:
    """Within, a data loader whose worker has died says what to do: torch raises that wherever the program just is.

    Raises:
        WorkerDied: with what torch knows of the worker.
    """
    try:
        yield
    except WorkerDied:  # an evaluation within a training says it once
        raise
    except Exception as error:
        death = next((cause for cause in causes(error) if str(cause).startswith("DataLoader worker (pid")), None)
        if death is None:
            raise
        raise WorkerDied(
            f"{' '.join(str(death).split()).rstrip('.')}. If memory ran out, `dmesg` says so: take fewer workers or "
            "smaller batches. What was saved is intact, and the same command goes on from it."
        ) from error


def launch(command: list[str], num_processes: str) -> int:
    """Run `python -m COMMAND` in several processes of this machine, on its GPUs or on the CPU, through accelerate.

    The cores are divided among them unless `OMP_NUM_THREADS` is set. SIGTERM and Ctrl-C are passed on to them.

    Returns:
        `int`: 0, or the exit code of the first process that failed.

    Raises:
        InputError: for a number of processes that can't be meant.
    """
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not num_processes.isdecimal() or int(num_processes) < 2:
        raise InputError(f"num_processes is {num_processes!r}, but must be a whole number of at least 1.")
    arguments = _launcher_arguments(command, int(num_processes))
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without which each process would train alone
    for number in STOPPING:
        signal.signal(number, _pass_on)
    logging.disable(logging.ERROR)  # of torchrun, which repeats what the processes have said themselves
    with TemporaryDirectory() as folder:
        os.environ[ERRORS] = folder
        try:
            launch_command(arguments)
        except ChildFailedError as error:
            _print_errors(Path(folder))
            rank, failure = error.get_first_failure()
            return _exit_code(rank, failure.exitcode)
        except SignalException as error:
            return 128 + error.sigval
        finally:
            del os.environ[ERRORS]
    return 0


def _launcher_arguments(command: list[str], num_processes: int) -> Namespace:
    """What accelerate's launcher is told: all that it would otherwise warn of."""
    from accelerate.commands.launch import launch_command_parser

    threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    settings = {
        "num_processes": num_processes,
        "num_machines": 1,
        "num_cpu_threads_per_process": threads,
        "mixed_precision": "no",  # the recipe's own setting says it
        "dynamo_backend": "no",
        "gpu_ids": "all",
        "main_process_port": 0,  # any that is free
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    # accelerate's name for several processes of one machine, with or without GPUs: its --cpu would start only one
    arguments = launch_command_parser().parse_args(["--multi_gpu", *options, "--module", *command])
    arguments.signals_to_handle = "SIGHUP,SIGQUIT"  # torchrun's, which would hide the exit code after the others
    return arguments


def _pass_on(number: int, frame) -> None:
    """Send a signal that this process was sent to those that it has launched."""
    for child in psutil.Process().children():
        child.send_signal(number)


def _print_errors(folder: Path) -> None:
    """Print each error once, as [`hpt.cli.run_recipe`] left them."""
    for text in sorted({file.read_text(encoding="utf-8") for file in folder.iterdir()}):
        print(f"error: {text}", file=sys.stderr)


def _exit_code(rank: int, code: int) -> int:
    """A process's exit code, as a shell has it; one that was killed couldn't say so itself."""
    if code >= 0:
        return code
    print(f"\nerror: Process {rank} was ended by {signal.Signals(-code).name}.", file=sys.stderr)
    return 128 - code
