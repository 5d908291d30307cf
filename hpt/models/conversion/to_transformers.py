"""A checkpoint as a model of transformers with its processor, which gives the same logits."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from hpt.models.conversion.comparison import compare_all
from hpt.models.conversion.facts import Base, Fact, Said, Stated
from hpt.models.conversion.knowledge import check_values, gather
from hpt.models.conversion.names import to_openai, to_transformers
from hpt.models.conversion.open_clip_config import model_config
from hpt.models.conversion.parity import LEGACY_END, Arithmetic, Parity
from hpt.models.conversion.shapes import TextShape, Tower, VisionShape
from hpt.models.conversion.sources import Checkpoint
from hpt.models.tokens import check_tokenizer
from hpt.models.weights import check_finite


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

    model: nn.Module
    processor: Any
    facts: list[Fact]
    parity: list[Parity]


def convert(checkpoint: Checkpoint, base: Base | None = None, stated: Stated | None = None) -> Converted:
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
    facts = gather(checkpoint, base, stated or Stated())
    check_finite(checkpoint.source, checkpoint.weights)
    weights = _with_text(checkpoint, base)
    vision, text = VisionShape.of_weights(weights), TextShape.of_weights(weights)
    check_values(facts, vision, text)
    how = Arithmetic(**{part.name: facts[part.name].value for part in fields(Arithmetic)})
    model = _build(checkpoint.source, _configuration(facts, how, vision, text), weights)
    processor = _processor(facts)
    check_tokenizer(checkpoint.source, model, processor.tokenizer)
    model_cfg = _open_clip_config(checkpoint, facts, vision, text, how)
    parity = compare_all(checkpoint.source, weights, how, model_cfg, model, processor)
    return Converted(model, processor, [*(facts | {"tokenizer": _described(facts["tokenizer"])}).values()], parity)


def _with_text(checkpoint: Checkpoint, base: Base | None) -> dict[str, torch.Tensor]:
    """All weights by OpenAI's names; of a vision tower alone, with the base's for texts."""
    if not checkpoint.is_vision_only:
        return checkpoint.weights
    of_texts = {name: weight for name, weight in base.model.state_dict().items() if not name.startswith("vis")}
    return checkpoint.weights | to_openai(of_texts)


def _configuration(facts: Said, how: Arithmetic, vision: VisionShape, text: TextShape):
    from transformers import CLIPConfig

    tokenizer = facts["tokenizer"].value
    of_vision = _tower(vision, how.heads, how.activation, how.layer_norm_eps)
    of_vision |= {"image_size": facts["image_size"].value, "patch_size": vision.patch_size}
    of_text = _tower(text, how.text_heads, how.text_activation, how.text_layer_norm_eps)
    of_text |= {"vocab_size": text.vocab_size, "max_position_embeddings": text.context_length}
    of_text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    of_text["eos_token_id"] = LEGACY_END if how.end_token is None else how.end_token
    return CLIPConfig(vision_config=of_vision, text_config=of_text, projection_dim=vision.embed_dim)


def _tower(shape: Tower, heads: int, activation: str, eps: float) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layers,
        "projection_dim": shape.embed_dim,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": eps,
    }


def _build(name: str, config, weights: dict[str, torch.Tensor]) -> nn.Module:
    from transformers import CLIPModel

    state = to_transformers(weights)
    model = CLIPModel.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32).eval()
    model.name_or_path = name
    return model


def _processor(facts: Said):
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    statistics = {name: facts[name].value for name in ("image_mean", "image_std")}
    return CLIPProcessor(CLIPImageProcessorPil(**statistics, **facts["resizing"].value), facts["tokenizer"].value)


def _open_clip_config(
    checkpoint: Checkpoint, facts: Said, vision: VisionShape, text: TextShape, how: Arithmetic
) -> dict[str, Any] | None:
    """The checkpoint's own where nothing went before it, else one made of the facts; `None` if there can be none."""
    said = checkpoint.config.said() if checkpoint.config and not checkpoint.is_vision_only else {}
    if said and all(facts[name].value == fact.value for name, fact in said.items()):
        return checkpoint.config.model_cfg
    if how.activation != how.text_activation:
        return None
    return model_config(checkpoint.source, vision, facts["image_size"].value, text, how, facts["tokenizer"].value)


def _described(tokenizer: Fact) -> Fact:
    return Fact(tokenizer.name, f"{type(tokenizer.value).__name__}, {len(tokenizer.value)} tokens", tokenizer.source)
