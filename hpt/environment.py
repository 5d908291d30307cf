"""What a program runs on: versions, devices, threads; no path, token, host or user."""

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

import hpt


RUN_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")  # those that a run's numbers depend on
PACKAGES = (*RUN_PACKAGES, "evaluate", "huggingface_hub", "safetensors")


def describe_environment() -> dict[str, str]:
    """What a bug report needs, each thing in a few words."""
    versions = describe_versions(PACKAGES)
    commit = versions.pop("commit")
    versions["hpt"] += f" ({commit})" if commit else ""
    return versions | {
        "platform": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "CPU": f"{cpu_name()}, {available_cores()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()}, OMP_NUM_THREADS is {os.environ.get('OMP_NUM_THREADS', 'not set')}",
        "GPUs": ", ".join(map(describe_gpu, range(torch.cuda.device_count()))) or "none",
        "CUDA": describe_cuda(),
        "mixed precision": "--bf16, --fp16" if can_use_bf16() else "--fp16",
        "between processes": ", ".join(describe_backends()) or "nothing",
    }


def describe_versions(packages: tuple[str, ...] = RUN_PACKAGES) -> dict:
    """Versions of Python and of packages, and the commit of hpt where it is a checkout."""
    versions = {"hpt": hpt.__version__, "python": platform.python_version()}
    return versions | {name: importlib.metadata.version(name) for name in packages} | {"commit": _commit()}


@lru_cache
def _commit() -> str | None:
    """The commit of the checkout that hpt runs from, with `+changes` if files differ from it."""
    root = Path(hpt.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed.stdout else "")


@lru_cache
def cpu_name() -> str:
    """`Intel(R) Xeon(R) Processor`, or what the platform calls it."""
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    return name[1].strip() if name else platform.processor() or platform.machine()


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if platform.system() == "Linux" else os.cpu_count()


def describe_gpu(index: int) -> str:
    """`NVIDIA H100 80GB HBM3 (79.1 GiB)`."""
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} ({properties.total_memory / 2**30:.1f} GiB)"


def describe_cuda() -> str:
    """What torch was built with."""
    if torch.version.hip:
        return f"none, but ROCm {torch.version.hip}"
    return torch.version.cuda or "none: torch is built for the CPU"


def can_use_bf16() -> bool:
    """Every CPU can, some slowly; of GPUs, those since Ampere."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def describe_backends() -> list[str]:
    """How processes can talk to each other."""
    available = {"nccl": torch.distributed.is_nccl_available(), "gloo": torch.distributed.is_gloo_available()}
    return [name for name, can in available.items() if can]
