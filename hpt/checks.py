"""Checks of a target, its proxy and the launch, made before any long work."""

import warnings

import torch
from transformers import TrainingArguments

from hpt.config import HPTConfig
from hpt.errors import InputError
from hpt.modeling import ZeroShotClassifier, check_dual_encoder, plain_weights
from hpt.schedulers import GPDSchedule


def check_launch(args: TrainingArguments) -> None:
    """Raise [`InputError`] for several GPUs in one process, which Trainer would use through DataParallel."""
    if args.n_gpu > 1:
        raise InputError(
            f"One process sees {args.n_gpu} GPUs: start with `accelerate launch --num_processes {args.n_gpu} SCRIPT`, "
            "or set CUDA_VISIBLE_DEVICES=0."
        )


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
    adapters = list(getattr(target, "peft_config", ["default"]))
    if adapters != ["default"]:
        raise InputError(
            f"The target has adapters named {', '.join(adapters)}, but only one named default is trained and saved: "
            "make it without an adapter_name."
        )
    if target is proxy.model or _same_weights(target, proxy.model):
        raise InputError("Target and proxy are the same weights: HPT needs a proxy of another architecture.")
    if architecture(target) == architecture(proxy.model):
        warnings.warn(
            "Target and proxy have the same architecture: adversarial images carry over between them, while HPT "
            "relies on a heterogeneous proxy, such as ViT-B/16 for ViT-B/32.",
            stacklevel=3,
        )


def check_steps(schedule: GPDSchedule, max_steps: int) -> None:
    """Refuse to train beyond the stages, where the learning rate is 0 and only the pull acts."""
    steps = schedule.num_epochs * schedule.steps_per_epoch
    if max_steps > steps:
        raise InputError(
            f"max_steps is {max_steps}, but the stages have {steps} steps: raise transfer_epochs instead."
        )


def check_best_metric(args: HPTConfig, eval_dataset) -> None:
    """Refuse a metric for the best model that no evaluation set will report."""
    prefixes = [f"eval_{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else ["eval_"]
    known = [f"{prefix}{kind}_accuracy" for prefix in prefixes for kind in ("clean", "robust")]
    metric = args.metric_for_best_model
    if metric is not None and f"eval_{metric.removeprefix('eval_')}" not in known:
        raise InputError(f"metric_for_best_model is {metric!r}; known: {', '.join(known)}.")


def architecture(model) -> dict:
    """What a vision tower's configuration says of its shape, without names, dtypes and initialisation."""
    ignored = (
        "dtype",
        "_name_or_path",
        "model_type",
        "projection_dim",
        "transformers_version",
        "architectures",
        "initializer",
        "dropout",
    )
    config = model.config.vision_config.to_dict()
    return {key: value for key, value in config.items() if not any(word in key for word in ignored)}


def _same_weights(one, other) -> bool:
    first, second = plain_weights(one), plain_weights(other)
    return first.keys() == second.keys() and all(
        weight.shape == second[name].shape and torch.equal(weight.to(second[name]), second[name])
        for name, weight in first.items()
    )
