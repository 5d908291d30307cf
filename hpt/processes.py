"""The processes of a launch."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState

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
