"""What the shapes of a CLIP's weights say, and which weights, of which shapes, such a CLIP has."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn

from hpt.errors import InputError
from hpt.models.weights import describe_names


Layout = dict[str, tuple[int, ...]]  # by OpenAI's names


@dataclass(frozen=True)
class Tower:
    """The transformer of a tower.

    Args:
        width (`int`): Numbers in a token.
        layers (`int`): Residual blocks.
        mlp_width (`int`): Hidden units of a block's MLP.
        embed_dim (`int`): Numbers in an embedding, which both towers share.
    """

    width: int
    layers: int
    mlp_width: int
    embed_dim: int

    def blocks(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the weights of its blocks."""
        square, hidden = (self.width, self.width), (self.mlp_width,)
        for layer in range(self.layers):
            block = f"{prefix}transformer.resblocks.{layer}."
            yield from norm(f"{block}ln_1", self.width)
            yield f"{block}attn.in_proj_weight", (3 * self.width, self.width)
            yield f"{block}attn.in_proj_bias", (3 * self.width,)
            yield from ((f"{block}attn.out_proj.weight", square), (f"{block}attn.out_proj.bias", (self.width,)))
            yield from norm(f"{block}ln_2", self.width)
            yield from ((f"{block}mlp.c_fc.weight", (*hidden, self.width)), (f"{block}mlp.c_fc.bias", hidden))
            yield from (
                (f"{block}mlp.c_proj.weight", (self.width, *hidden)),
                (f"{block}mlp.c_proj.bias", (self.width,)),
            )


def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int]]]:
    """A layer norm's weights."""
    yield from ((f"{name}.weight", (width,)), (f"{name}.bias", (width,)))


@dataclass(frozen=True)
class VisionShape(Tower):
    """The vision tower: `grid` patches of `patch_size` pixels along each side, and a class token."""

    patch_size: int
    grid: int

    @classmethod
    def of_weights(cls, weights: dict[str, torch.Tensor]) -> "VisionShape":
        """From weights that [`check_weights`] lets through."""
        width, patch_size = weights["visual.conv1.weight"].shape[0], weights["visual.conv1.weight"].shape[-1]
        positions, embed_dim = len(weights["visual.positional_embedding"]), weights["visual.proj"].shape[-1]
        grid = math.isqrt(max(positions - 1, 0))
        return cls(width, *_depth_and_hidden(weights, "visual."), embed_dim, patch_size, grid)

    @classmethod
    def of_config(cls, config) -> "VisionShape":
        """From a [`~transformers.CLIPConfig`]."""
        vision = config.vision_config
        grid = vision.image_size // vision.patch_size
        shape = vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size, config.projection_dim
        return cls(*shape, vision.patch_size, grid)

    def layout(self) -> Layout:
        """All its weights."""
        return {
            "visual.conv1.weight": (self.width, 3, self.patch_size, self.patch_size),
            "visual.class_embedding": (self.width,),
            "visual.positional_embedding": (self.grid**2 + 1, self.width),
            **dict(norm("visual.ln_pre", self.width)),
            **dict(self.blocks("visual.")),
            **dict(norm("visual.ln_post", self.width)),
            "visual.proj": (self.width, self.embed_dim),
        }


@dataclass(frozen=True)
class TextShape(Tower):
    """The text tower: its vocabulary, and how many tokens a prompt can have."""

    vocab_size: int
    context_length: int

    @classmethod
    def of_weights(cls, weights: dict[str, torch.Tensor]) -> "TextShape":
        """From weights that [`check_weights`] lets through."""
        (vocab_size, width), embed_dim = weights["token_embedding.weight"].shape, weights["text_projection"].shape[-1]
        context_length = len(weights["positional_embedding"])
        return cls(width, *_depth_and_hidden(weights, ""), embed_dim, vocab_size, context_length)

    @classmethod
    def of_config(cls, config) -> "TextShape":
        """From a [`~transformers.CLIPConfig`]."""
        text = config.text_config
        shape = text.hidden_size, text.num_hidden_layers, text.intermediate_size, config.projection_dim
        return cls(*shape, text.vocab_size, text.max_position_embeddings)

    def layout(self) -> Layout:
        """All its weights, but for the `logit_scale`."""
        return {
            "token_embedding.weight": (self.vocab_size, self.width),
            "positional_embedding": (self.context_length, self.width),
            **dict(self.blocks("")),
            **dict(norm("ln_final", self.width)),
            "text_projection": (self.width, self.embed_dim),
        }


# The weights that shapes are read from, with their numbers of dimensions
VISION_SAYS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
}
TEXT_SAYS = {
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "text_projection": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}


def is_vision_only(weights: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are the vision tower's."""
    return all(name.startswith("visual.") for name in weights)


def check_weights(source: str, weights: dict[str, torch.Tensor]) -> None:
    """Refuse weights that aren't all those of a CLIP with a ViT, or of its vision tower, and no others.

    Args:
        source (`str`): What messages call the checkpoint.
        weights (`dict[str, torch.Tensor]`): By OpenAI's names.

    Raises:
        InputError: naming what is missing, further, or of another shape than the others' shapes say.
    """
    says = VISION_SAYS if is_vision_only(weights) else VISION_SAYS | TEXT_SAYS
    if missing := says.keys() - weights.keys():
        raise InputError(f"Can't convert {source!r}: it lacks {describe_names(missing)}, which every CLIP has.")
    odd = {f"{name} {tuple(weights[name].shape)}" for name, dims in says.items() if weights[name].dim() != dims}
    if odd:
        raise InputError(f"Can't convert {source!r}: no CLIP has weights of these shapes: {describe_names(odd)}.")
    layout = VisionShape.of_weights(weights).layout()
    if not is_vision_only(weights):
        layout |= TextShape.of_weights(weights).layout() | {"logit_scale": ()}
    _check_layout(source, weights, layout)
    for name in layout:
        _check_numbers(source, name, weights[name])


def _check_numbers(source: str, name: str, weight: torch.Tensor) -> None:
    """Refuse what is no table of floating-point numbers that the file holds: a pickle can claim to have far more."""
    is_table = weight.layout == torch.strided and weight.is_floating_point() and not weight.is_meta
    if not is_table or weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
        raise InputError(
            f"Can't convert {source!r}: {name} is kept as {weight.dtype} of {weight.layout}, or not in full, but "
            "weights must be floating-point numbers, each of them in the file."
        )


def _check_layout(source: str, weights: dict[str, torch.Tensor], layout: Layout) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if shapes.get("logit_scale") == (1,):  # open_clip's nonscalar_logit_scale
        shapes["logit_scale"] = ()
    both = shapes.keys() & layout.keys()
    other = {f"{name} {shapes[name]}, not {layout[name]}" for name in both if shapes[name] != layout[name]}
    faults = {"missing": layout.keys() - both, "too many": shapes.keys() - both, "of another shape": other}
    listed = [f"{len(names)} {fault} ({describe_names(names)})" for fault, names in faults.items() if names]
    if listed:
        raise InputError(
            f"Can't convert {source!r}: of the {len(layout)} weights that such a CLIP has, {'; '.join(listed)}."
        )


def check_clip(what: str, model: nn.Module) -> None:
    """Refuse anything but a plain CLIP of transformers in float32, in which logits are compared."""
    from transformers import CLIPModel

    if not isinstance(model, CLIPModel):
        hint = ", with its adapters merged" * hasattr(model, "peft_config")
        raise InputError(f"{what} is a {type(model).__name__}, but must be a CLIPModel{hint}.")
    if model.dtype != torch.float32:
        raise InputError(f"{what} is in {model.dtype}, but must be in float32, in which logits are compared.")


def differences(one: Tower, other: Tower) -> str:
    """What differs between two shapes of one kind: `width 768, not 1024; layers 12, not 24`, or nothing."""
    pairs = zip(asdict(one).items(), asdict(other).values(), strict=True)
    return "; ".join(f"{name} {value}, not {right}" for (name, value), right in pairs if value != right)


def _depth_and_hidden(weights: dict[str, torch.Tensor], prefix: str) -> tuple[int, int]:
    block = re.compile(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")
    layers = {match[1] for name in weights if (match := block.match(name))}
    return len(layers), len(weights[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"])
