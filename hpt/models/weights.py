"""The weights of a model: whether all are there, what stands for them, which train, and where their forward goes."""

import hashlib
import re
import warnings
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hpt.errors import InputError
from hpt.escaping import one_line
from hpt.models.families import family_of, plain_model


TRAINABLE = ("vision", "all")  # towers that train
# Where PEFT keeps the layer or module that an adapter changes or stands in for
BELOW_ADAPTER = re.compile(r"\.(?:base_layer|original_module)(?=\.)")


def check_complete(
    name: str,
    expected: dict[str, torch.Tensor],
    missing: set[str],
    unexpected: set[str],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Refuse a checkpoint that doesn't hold a model's weights; a warning names those of a further head, which may go.

    Args:
        name (`str`): Hub id or path of the checkpoint.
        expected (`dict[str, torch.Tensor]`): The model's weights.
        missing (`set[str]`): Names of those that the checkpoint lacks.
        unexpected (`set[str]`): Names of weights in the checkpoint that the model doesn't have.
        shapes (`dict[str, tuple[int, ...]]`): Those of weights in the checkpoint that are of another shape.

    Raises:
        InputError: with the number of weights at fault, and the first names.
    """
    parts = {key.partition(".")[0] for key in expected}
    further = set() if missing else {key for key in unexpected if key.partition(".")[0] not in parts}
    other_shapes = {f"{key} {tuple(shape)}, not {tuple(expected[key].shape)}" for key, shape in shapes.items()}
    faults = {"missing": missing, "unexpected": unexpected - further, "of another shape": other_shapes}
    listed = [f"{len(keys)} {fault} ({describe_names(keys)})" for fault, keys in faults.items() if keys]
    if listed:
        raise InputError(
            f"Can't load {name!r}: of {len(expected)} weights, {'; '.join(listed)}. Save it again, or take a complete "
            "copy."
        )
    if further:
        also = f"{name} also holds weights of parts that the model lacks, left out: {describe_names(further)}."
        warnings.warn(one_line(also), stacklevel=4)


def check_finite(name: str, weights: dict[str, torch.Tensor]) -> None:
    """Refuse weights that have NaN or infinity, as those of a training that diverged, or of a damaged file."""
    if broken := find_non_finite(weights):
        raise InputError(f"Can't load {name!r}: weights are NaN or infinite, {broken}. Take a sound copy.")


def describe_names(names: set[str]) -> str:
    """The first names of weights, on one line: `a, b, c, ...`"""
    return one_line(", ".join(f"{name:.200}" for name in sorted(names)[:3]) + ", ..." * (len(names) > 3))


def find_non_finite(tensors: dict[str, torch.Tensor]) -> str:
    """`3 of 398 (a, b, c)`: which tensors hold a NaN or an infinity, or an empty text if none does.

    Each is read once, and the device is waited for once over all of them.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    # Of a NaN, `aminmax` makes two, and an infinity is one of them: exact, where a sum or a norm would overflow
    finite = [torch.stack(torch.aminmax(tensor.detach())).isfinite().all() for tensor in floats.values()]
    if not finite:
        return ""
    verdicts = torch.stack([verdict.to(finite[0].device) for verdict in finite]).tolist()
    broken = {name for name, verdict in zip(floats, verdicts, strict=True) if not verdict}
    return f"{len(broken)} of {len(tensors)} ({describe_names(broken)})" if broken else ""


def plain_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers by name; of a PEFT model, those that its adapters leave alone."""
    return without_adapters(plain_model(model).state_dict())


def without_adapters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of tensors by name, those of the model below PEFT's adapters, with the names that they have without them."""
    adapted = tuple({f"{BELOW_ADAPTER.split(name)[0]}." for name in tensors if BELOW_ADAPTER.search(name)})
    return {
        BELOW_ADAPTER.sub("", name): tensor
        for name, tensor in tensors.items()
        if BELOW_ADAPTER.search(name) or not name.startswith(adapted)
    }


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
def weights_frozen(model: nn.Module):
    """Within, no weight of a model requires a gradient."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


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


def normalizers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that normalise by running statistics: BatchNorm, as ResNet and ALIGN's tower have it."""
    return [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]


@contextmanager
def in_eval_mode(modules: list[nn.Module]):
    """Within, modules drop nothing out and use no batch statistics, as the texts of a BERT in training would."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


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
