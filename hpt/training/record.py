"""What a run was, as far as others may know it: models, data, settings, hardware, time and versions; no local path.

training.json  all of it, from which the model card is written
run.yaml       fields of the recipe and settings that differ from the defaults, for `recipes/hpt_gpd.py --config`
"""

import importlib.metadata
import platform
import re
import subprocess
from dataclasses import MISSING, asdict, fields
from functools import lru_cache
from pathlib import Path

import torch

import hpt
from hpt.data.benchmark import Benchmark
from hpt.data.records import BENCHMARKS
from hpt.data.streams import EpochStream
from hpt.hub.folder import MAY_BE_LOCAL, MODELS
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import plain_model
from hpt.radius import Fraction, Radius, describe_length
from hpt.references import without_local_folder
from hpt.training.config import HPTConfig
from hpt.training.gpd import GPDSchedule


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft")
IN_PIXELS = ("attack_eps", "attack_step_size", "proxy_eps")
# Fields of HPTConfig that say where a run lies and how it is watched, but nothing of what it computes
NOT_OF_THE_RUN = (
    "output_dir run_name report_to do_eval project resume_from_checkpoint num_train_epochs disable_tqdm debug "
    "dataloader_pin_memory accelerator_config"
).split()
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OPTIONS = re.compile(r"(.*?)(?::(\w+=.*))?")  # behind a benchmark, as `hpt.data.names.parse_benchmark` reads them


def describe_run(
    args: HPTConfig,
    recipe: dict,
    classifier: ZeroShotClassifier,
    proxy: ZeroShotClassifier,
    train: Benchmark | EpochStream,
    schedule: GPDSchedule,
    vanilla_weights: str,
) -> dict:
    """All that stays the same over a run; see [`HPTTrainer`] for the arguments.

    `recipe` has the recipe's fields, and `vanilla_weights` is the hash of what training began with.
    """
    adapter = getattr(classifier.model, "peft_config", {}).get("default")
    start = " from a random start" if args.attack_random_start else ""
    optimizer = " ".join(str(getattr(one, "value", one)) for one in (args.optim, args.optim_args) if one)
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "target": describe_model(classifier),
        "proxy": describe_model(proxy),
        "vanilla_weights": vanilla_weights,
        "data": describe_data(train),
        "prompt_template": args.prompt_template,
        "trainable": args.trainable,
        "adapter": adapter and f"LoRA adapters of rank {adapter.r}, alpha {adapter.lora_alpha:g}",
        "schedule": asdict(schedule) | {"ema_decay": args.ema_decay, "pull_ratio": args.pull_ratio},
        "attack": f"PGD-{args.attack_steps} at {Radius(args.attack_eps).title} in steps of "
        f"{describe_length(args.attack_step_size)}{start}",
        "objective": args.objective,
        "divergence": f"KL, {args.kl_direction}, {args.kl_reduction}, temperature {args.temperature:g}",
        "batch_size": batch_size,
        "processes": args.world_size,
        "optimizer": f"{optimizer}, weight decay {args.weight_decay:g}",
        "precision": {"no": "float32"}.get(args.mixed_precision, f"{args.mixed_precision} mixed"),
        "hardware": describe_hardware(args),
        "seed": args.seed,
        "license": recipe.get("license"),
        "settings": describe_settings(args, recipe),
        "pretrained_by": {name: Path(file).name for name in MODELS if (file := recipe.get(f"pretrain_{name}"))},
        "versions": describe_versions(),
    }


def describe_model(classifier: ZeroShotClassifier) -> dict:
    """Where a target or proxy came from, and its shape; `hub_id` is `None` for a local one, which has only a name."""
    model = plain_model(classifier.model)
    name, vision = str(model.name_or_path), model.config.vision_config
    on_hub = _is_hub_id(name)
    return {
        "name": name if on_hub else Path(name).name,
        "hub_id": name if on_hub else None,
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "image_size": classifier.image_size,
        "patch_size": getattr(vision, "patch_size", None),
        "parameters": sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name),
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_mean": classifier.image_mean.flatten().tolist(),
        "image_std": classifier.image_std.flatten().tolist(),
    }


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def describe_data(train: Benchmark | EpochStream) -> dict:
    """What was trained on; `source` is `ID@COMMIT` for what was read from the Hub."""
    streamed = isinstance(train, EpochStream)
    return {
        "name": train.name,
        "split": train.split,
        "source": train.stream.source if streamed else train.source,
        "images_per_epoch": len(train),
        "streamed": streamed,
        "class_names": list(train.class_names),
    }


def describe_settings(args: HPTConfig, recipe: dict) -> dict:
    """Fields of a recipe, and settings that differ from the defaults, as YAML has them."""
    known = [one for one in fields(HPTConfig) if one.init and one.name not in NOT_OF_THE_RUN and "hub" not in one.name]
    values = {one.name: (getattr(args, one.name), one.default) for one in known}
    changed = {name: value for name, (value, default) in values.items() if _changed(value, default)}
    changed |= {"seed": args.seed, "anchor_epochs": args.anchor_epochs, "transfer_epochs": args.transfer_epochs}
    given = {name: value for name, value in recipe.items() if value not in (None, []) and "pretrain_" not in name}
    return {name: _as_yaml(name, value) for name, value in (given | changed).items()}


def _changed(value, default) -> bool:
    """Whether a setting differs from its default, which `TrainingArguments` may have put into another type."""
    if default is None or default is MISSING:
        return bool(value) and value != ["labels"]
    return getattr(value, "value", value) != getattr(default, "value", default)


def _as_yaml(name: str, value):
    """A setting as it would be written by hand: radii as fractions, no local path, nothing but plain types."""
    if isinstance(value, list | tuple):
        return [_as_yaml(name, one) for one in value]
    if isinstance(value, dict | bool | int):
        return value
    if isinstance(value, float):
        text = describe_length(value)
        return text if name in IN_PIXELS and Fraction(text) == value else float(value)
    text = str(getattr(value, "value", value))
    return _without_local_path(text) if name in MAY_BE_LOCAL else text


def _without_local_path(text: str) -> str:
    """A model or benchmark as recipes name it, with local paths given by their last part alone: `PATH/cifar10`."""
    if text in BENCHMARKS:  # whatever folders there are
        return text
    source, listed = (text, None) if Path(text).exists() else OPTIONS.fullmatch(text).groups()
    parts = [source, *re.split(r",(?=\w+=)", listed)] if listed else [source]
    source, *options = (without_local_folder(part) for part in parts)
    return f"{source}:{','.join(options)}" if options else source


def describe_versions() -> dict:
    """Versions of Python and the packages that a run depends on, and the commit of hpt where it is a checkout."""
    versions = {"hpt": hpt.__version__, "python": platform.python_version()}
    return versions | {name: importlib.metadata.version(name) for name in PACKAGES} | {"commit": _commit()}


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


def describe_hardware(args: HPTConfig) -> str:
    """`2 x NVIDIA H200`, or the CPU and its threads."""
    if args.device.type == "cpu":
        threads = args.world_size * torch.get_num_threads()
        return f"{threads} CPU thread{'s' * (threads > 1)} ({_cpu_name()})"
    name = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type
    return f"{args.world_size} x {name}"


@lru_cache
def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1].strip() if found else platform.processor() or platform.machine()
