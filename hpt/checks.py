"""Checks of a target, its proxy and the launch, made before any long work."""

import json
import warnings
from pathlib import Path

import torch
from transformers import TrainingArguments

from hpt.config import MATHEMATICS, HPTConfig
from hpt.errors import InputError
from hpt.modeling import ZeroShotClassifier, check_dual_encoder


SETTINGS_FILE = "training_args.json"


def check_launch(args: TrainingArguments) -> None:
    """Refuse launches that would compute something else than they seem to.

    Raises:
        InputError: for several GPUs in one process (DataParallel), FSDP and DeepSpeed.
    """
    if args.n_gpu > 1:
        raise InputError(
            f"One process sees {args.n_gpu} GPUs: start with `accelerate launch --num_processes {args.n_gpu} SCRIPT`, "
            "or set CUDA_VISIBLE_DEVICES=0."
        )
    if args.fsdp or args.deepspeed:
        raise InputError("FSDP and DeepSpeed aren't supported: dual encoders fit one GPU, so use plain DDP.")


def check_pair(target, proxy: ZeroShotClassifier) -> None:
    """Refuse a target that isn't a float32 dual encoder or that is its own proxy; warn of the same architecture.

    Raises:
        InputError: naming what is wrong with the pair.
    """
    check_dual_encoder(target)
    if not isinstance(proxy, ZeroShotClassifier):
        raise InputError(f"The proxy is a {type(proxy).__name__}: load it with load_proxy(name).")
    if target.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"The target's weights are {target.dtype}: load it with dtype=torch.float32 and train with bf16=True."
        )
    if target is proxy.model or _same_weights(target, proxy.model):
        raise InputError("Target and proxy are the same weights: HPT needs a proxy of another architecture.")
    if _architecture(target) == _architecture(proxy.model):
        warnings.warn(
            "Target and proxy have the same architecture: adversarial images carry over between them, while HPT "
            "relies on a heterogeneous proxy, such as ViT-B/16 for ViT-B/32.",
            stacklevel=3,
        )


def check_same_settings(checkpoint: str, args: HPTConfig) -> None:
    """Refuse to resume with settings that would change the mathematics of the run halfway.

    Raises:
        InputError: listing each difference.
    """
    saved = json.loads((Path(checkpoint) / SETTINGS_FILE).read_text(encoding="utf-8"))
    now = json.loads(args.to_json_string())
    differences = [f"{name} {saved[name]} there, {now[name]} here" for name in MATHEMATICS if saved[name] != now[name]]
    if differences:
        raise InputError(
            f"{checkpoint} was trained with other settings ({'; '.join(differences)}): use the same, or give another "
            "output_dir."
        )


def _architecture(model) -> dict:
    """What a vision tower's configuration says of its shape, without names, dtypes and initialisation."""
    ignored = ("dtype", "_name_or_path", "transformers_version", "architectures", "initializer", "dropout")
    config = model.config.vision_config.to_dict()
    return {key: value for key, value in config.items() if not any(word in key for word in ignored)}


def _same_weights(one, other) -> bool:
    first, second = dict(one.named_parameters()), dict(other.named_parameters())
    return first.keys() == second.keys() and all(
        weight.shape == second[name].shape and torch.equal(weight.cpu(), second[name].to(weight.dtype).cpu())
        for name, weight in first.items()
    )
