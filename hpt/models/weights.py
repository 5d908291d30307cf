"""The weights of a target: which of them train, what stands for them, and where their forward goes."""

import hashlib
from contextlib import contextmanager

import torch
from torch import nn

from hpt.errors import InputError
from hpt.models.families import family_of, plain_model


def plain_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers by name; of a PEFT model, those that its adapters leave alone."""
    state = plain_model(model).state_dict()
    return {name.replace(".base_layer", ""): value for name, value in state.items() if "lora_" not in name}


def hash_weights(weights: dict[str, torch.Tensor]) -> str:
    """16 hexadecimal digits that stand for a model's `state_dict()`."""
    state = hashlib.sha256()
    for name, value in sorted(weights.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()[:16]


def freeze_untrained(model, trainable: str) -> list[str]:
    """Leave gradients to the vision tower and its projection, or to everything; a PEFT model is left as it is.

    Returns:
        `list[str]`: Names of the parameters that train; [`InputError`] if none does.
    """
    if not hasattr(model, "peft_config"):
        model.requires_grad_(trainable == "all")
        for part in family_of(model).vision_modules(model):
            part.requires_grad_(True)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if not trained:
        raise InputError("Nothing in the target trains: load adapters with is_trainable=True.")
    return trained


@contextmanager
def forward_redirected(model: nn.Module, function):
    """Within, calling `model`, or a wrapper around it such as DDP, calls `function` in place of `model.forward`.

    So a computation over the model's parts still passes through the wrapper, whose hooks average the gradients.
    """
    instance_forward = model.__dict__.get("forward")  # accelerate may have put its autocast there
    model.forward = function
    try:
        yield
    finally:
        del model.forward
        if instance_forward is not None:
            model.forward = instance_forward


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
