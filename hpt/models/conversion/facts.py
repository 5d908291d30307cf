"""What is known of a checkpoint beside its weights, and from where: an option, its configuration, or a named base."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hpt.errors import InputError


GIVEN = "given"  # the source of what whoever converts says
# Facts that the option of another says
OPTIONS = {"text_activation": "activation"}


@dataclass(frozen=True)
class Fact:
    """Something that a model computes with, and where it was taken from.

    Args:
        name (`str`): Such as `"activation"` or `"text_heads"`.
        value: A text, a number, a list of numbers, or settings by name.
        source (`str`): As a card says it, such as `"shapes of the weights"`, `"open_clip_config.json"`, `"given"`, or
            the name of a base.
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
        activation (`str`, *optional*): `"gelu"` or `"quick_gelu"`, of all towers that the checkpoint has.
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


Said = dict[str, Fact]  # what one source says, by the fact's name


def say(source: str, **values) -> Said:
    """Facts from one source; what it says nothing of is `None`."""
    return {name: Fact(name, value, source) for name, value in values.items() if value is not None}


def choose(name: str, names: Iterable[str], said: list[Said]) -> Said:
    """Of each fact the first that is said; its source tells whether a later one says something else.

    Args:
        name (`str`): The checkpoint's, for messages.
        names (`Iterable[str]`): Those of the facts that are needed.
        said (`list[Said]`): What each source says, the one that goes before the others first.

    Raises:
        InputError: for what no source says.
    """
    by_name = {fact: [facts[fact] for facts in said if fact in facts] for fact in names}
    if unsaid := [OPTIONS.get(fact, fact) for fact, facts in by_name.items() if not facts]:
        names = list(dict.fromkeys(unsaid))
        raise InputError(
            f"{name!r} doesn't say its {', '.join(names)}, nor do the shapes of its weights: give the model that it "
            f"was made from, base=ID, or each by its name, {names[0]}=... (of hpt convert, --base ID, or "
            f"--{names[0]} ...)."
        )
    return {fact: _first(facts) for fact, facts in by_name.items()}


def _first(facts: list[Fact]) -> Fact:
    first = facts[0]
    others = [f"; {fact.source} says {fact.value}" for fact in facts[1:] if fact.value != first.value]
    return Fact(first.name, first.value, first.source + "".join(others))
