"""The processes of a launch."""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hpt.errors import InputError


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
