"""A checkpoint as a model of transformers with its processor, which gives the same logits."""

from dataclasses import dataclass

from transformers import CLIPModel, CLIPProcessor

from hpt.models.conversion.facts import Base, Fact, Stated
from hpt.models.conversion.parity import Parity
from hpt.models.conversion.sources import Checkpoint


@dataclass(frozen=True)
class Converted:
    """A checkpoint as a model of transformers.

    Args:
        model ([`~transformers.CLIPModel`]): In float32 and eval mode.
        processor ([`~transformers.CLIPProcessor`]): Its processor.
        facts (`list[Fact]`): All that it computes with beside its weights, each with where it comes from.
        parity (`list[Parity]`): Comparisons with the source: by its own arithmetic, and by open_clip if that is
            installed.
    """

    model: CLIPModel
    processor: CLIPProcessor
    facts: list[Fact]
    parity: list[Parity]


def convert(checkpoint: Checkpoint, base: Base | None = None, stated: Stated = Stated()) -> Converted:
    """Make a model of transformers of a checkpoint, and compare both; nothing is written.

    Args:
        checkpoint ([`Checkpoint`]): From [`read_checkpoint`].
        base ([`Base`], *optional*): What the checkpoint doesn't say is taken from it, and the text tower if there is
            none. It must have the same shapes.
        stated ([`Stated`], *optional*): What goes before all else.

    Raises:
        InputError: if something isn't said anywhere (with the option that says it), if the base is of another
            architecture, if weights aren't finite, or if a cosine differs by more than 1e-5.
    """
    raise NotImplementedError
