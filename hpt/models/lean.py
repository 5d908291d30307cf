"""Models that compute what is read of them alone, and by faster kernels: views, which share all weights.

    changes = find_changes(model)
    view_with(model, changes.pooled).get_image_features(pixel_values=pixels).pooler_output  # but rounding, the model's

A view is made anew for each forward pass, of copies of the few modules on the way to what changes. So it has the
weights, adapters, modes and hooks that the model has at that moment, and the model stays as it is. A tower that is
compiled runs as it was compiled, without the changes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import QuickGELUActivation

from hpt.models.families import family_of, plain_model


SLOPE = 1.702  # of QuickGELU's sigmoid

# What takes the place of modules, by their names, nested as they are
Changes = dict[str, "Changes | Callable[[nn.Module], nn.Module]"]


class VisionChanges(NamedTuple):
    """What may change in how a model embeds images.

    Args:
        pooled (`Changes`): Where its embedding is read alone.
        patches (`Changes`): Where its patch tokens are read too.
    """

    pooled: Changes
    patches: Changes


NO_CHANGES = VisionChanges({}, {})


def find_changes(model: nn.Module) -> VisionChanges:
    """What may change in a plain or PEFT model of a family that `has_clip_layers`; nothing in others.

    Patches don't overlap. So their embedding is a product of matrices, whose gradients a CPU computes many times as
    fast as those of a convolution.

    The embedding of such a model is read off the class token. In the last block, other tokens count as keys and
    values, but nothing reads what becomes of them: the output projection and the MLP compute the class token alone.
    Their sum with the residual spreads it over all tokens, which leaves the class token right.
    """
    family, model = family_of(model), plain_model(model)
    if not family.has_clip_layers:
        return NO_CHANGES
    tower, modules = family.tower_names[0], dict(model.named_modules())
    everywhere = {
        name: fused
        for name, module in modules.items()
        if isinstance(module, QuickGELUActivation) and name.startswith(f"{tower}.")
    }
    patches = f"{tower}.embeddings.patch_embedding"
    everywhere |= {patches: as_product} if patches in modules else {}  # embeddings of a user's own may have none
    last = f"{tower}.encoder.layers.{len(model.get_submodule(tower).encoder.layers) - 1}"
    before = {name: change for name, change in everywhere.items() if not name.startswith(f"{last}.")}
    pooled = before | {f"{last}.self_attn.out_proj": OfClassToken, f"{last}.mlp": OfClassToken}
    return VisionChanges(_nested(pooled), _nested(everywhere))


def view_with(model: nn.Module, changes: Changes) -> nn.Module:
    """A view of a plain or PEFT model in which other modules take the place of some; all else is shared."""
    return _view(plain_model(model), changes) if changes else model


class OfClassToken(nn.Module):
    """A module that is shown the first alone of tokens `(batch, tokens, dim)`, and so gives `(batch, 1, dim)`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.module(tokens[:, :1].contiguous())  # of which torch computes a linear layer in one way alone


class PatchProduct(nn.Conv2d):
    """A convolution over patches that don't overlap: its stride is its kernel's size, and nothing is padded."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(batch, 3, height, width)` to `(batch, dim, rows, columns)`."""
        side = self.stride[0]
        rows, columns = (length // side for length in pixel_values.shape[-2:])
        whole = pixel_values[..., : rows * side, : columns * side]  # a convolution leaves the rest out, too
        patches = whole.unflatten(-2, (rows, side)).unflatten(-1, (columns, side))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (batch, rows, columns, 3 * side * side)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def as_product(module: nn.Module) -> nn.Module:
    """A convolution over patches as a product of matrices; as it is, what PEFT or others have made something else."""
    is_plain = type(module) is nn.Conv2d and len({*module.kernel_size, *module.stride}) == 1
    return _view(module, {}, PatchProduct) if is_plain and module.padding == (0, 0) else module


class FusedQuickGELU(nn.Module):
    """QuickGELU, `x sigmoid(1.702 x) = silu(1.702 x) / 1.702`, which keeps `x` alone for the backward pass.

    As transformers writes it, autograd keeps `x` and the sigmoid, and goes over memory five times on the way back.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return _QuickGELU.apply(values)


FUSED = FusedQuickGELU()  # which has no weights, and so is one for all


def fused(activation: nn.Module) -> FusedQuickGELU:
    """What takes the place of a QuickGELU; a function by its name, so that what keeps it can be pickled."""
    return FUSED


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values)
        return F.silu(values * SLOPE, inplace=True).div_(SLOPE)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (values,) = ctx.saved_tensors
        scaled = values * SLOPE
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(gradient, scaled)  # d/dx silu(a x) / a = silu'(a x)
        sigmoid = scaled.sigmoid()  # a gradient of this gradient is wanted, which torch's kernel doesn't have
        return gradient * sigmoid * (1 + scaled * (1 - sigmoid))


def _nested(changes: dict[str, Callable[[nn.Module], nn.Module]]) -> Changes:
    """Changes by dotted names as nested ones."""
    nested: Changes = {}
    for name, change in changes.items():
        *parents, last = name.split(".")
        below = nested
        for parent in parents:
            below = below.setdefault(parent, {})
        below[last] = change
    return nested


def _view(module: nn.Module, changes: Changes, kind: type[nn.Module] | None = None) -> nn.Module:
    view = object.__new__(kind or type(module))
    vars(view).update(vars(module))
    replaced = {
        name: _view(module._modules[name], change) if isinstance(change, dict) else change(module._modules[name])
        for name, change in changes.items()
        if name in module._modules  # unless PEFT has wrapped the module, to train all of it
    }
    vars(view)["_modules"] = module._modules | replaced
    return view
