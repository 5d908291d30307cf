"""What is known of a checkpoint beside its weights, and from where: an option, its configuration, or a named base."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Fact:
    """Something that a model computes with, and where it was taken from.

    Args:
        name (`str`): Such as `"activation"` or `"vision heads"`.
        value: A text, a number, or a list of numbers.
        source (`str`): As a card says it, such as `"shapes of the weights"`, `"open_clip_config.json"`, `"--heads"`.
    """

    name: str
    value: Any
    source: str


@dataclass(frozen=True)
class Base:
    """A model that says what a checkpoint doesn't, and whose text tower joins one that has only a vision tower.

    Args:
        name (`str`): Hub id or path, as the card names it.
        model ([`~transformers.CLIPModel`]): Of the same shapes as the checkpoint.
        processor ([`~transformers.CLIPProcessor`]): The model's.
    """

    name: str
    model: nn.Module
    processor: Any


@dataclass(frozen=True)
class Stated:
    """What whoever converts says of a checkpoint; it goes before what its configuration or a base says.

    Args:
        activation (`str`, *optional*): `"gelu"` or `"quick_gelu"`, of both towers.
        heads, text_heads (`int`, *optional*): Attention heads in each layer of the vision and the text tower.
        image_mean, image_std (`tuple[float, float, float]`, *optional*): Normalisation of [0, 1] pixels per channel.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): That of the text tower.
    """

    activation: str | None = None
    heads: int | None = None
    text_heads: int | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    tokenizer: Any = None
