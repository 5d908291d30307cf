"""Memory that this process takes, now and at its peak."""

import gc
import re
import resource
from pathlib import Path

import psutil
import torch


STATUS = Path("/proc/self/status")  # of Linux; what `resource` says there includes the process that started this one


def memory_in_use(device: torch.device | str) -> float:
    """GiB of GPU memory that tensors take, or, on a CPU, of the process's memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def forget_peak(device: torch.device | str) -> None:
    """Begin anew with [`peak_memory`] of a GPU, whose unused memory is given back; a CPU's peak never goes back."""
    if torch.device(device).type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device | str) -> float:
    """The most GiB that were taken at once, of the GPU or, on a CPU, of the process's memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if STATUS.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def whole_memory(device: torch.device | str) -> float:
    """GiB that the GPU has, or, on a CPU, the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return psutil.virtual_memory().total / 2**30
