"""Memory that this process takes, now and at its peak."""

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


def peak_memory(device: torch.device | str) -> float:
    """The most GiB that were taken at once, of the GPU or, on a CPU, of the process's memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if STATUS.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
