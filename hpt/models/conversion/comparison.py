"""A model of transformers against what it was made from: by the source's own arithmetic, and by open_clip if it can.

open_clip is optional (`pip install open_clip_torch`), and imported late: it needs torchvision.
"""

import logging
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hpt.models.conversion.layouts import TEXT, VISUAL
from hpt.models.conversion.parity import (
    OWN_ARITHMETIC,
    Arithmetic,
    Embeddings,
    Examples,
    Parity,
    compare,
    embed_by_own_arithmetic,
    embed_by_transformers,
)


logger = logging.getLogger(__name__)


def compare_all(
    name: str,
    weights: dict[str, torch.Tensor],
    how: Arithmetic,
    model_cfg: dict[str, Any] | None,
    model: nn.Module,
    processor,
) -> list[Parity]:
    """How far the logits of the same images and prompts are apart, in float32.

    Args:
        name (`str`): What messages call what is converted.
        weights (`dict[str, torch.Tensor]`): By OpenAI's names.
        how ([`Arithmetic`]): What is computed with them.
        model_cfg (`dict`, *optional*): The same as open_clip says it, if it can.
        model ([`~transformers.CLIPModel`]), processor ([`~transformers.CLIPProcessor`]): The other side.

    Raises:
        InputError: if a cosine differs by more than 1e-5.
    """
    examples = Examples.of(model, processor)
    made = embed_by_transformers(model, examples)
    parity = [compare(name, OWN_ARITHMETIC, embed_by_own_arithmetic(weights, how, examples), made)]
    if model_cfg is not None and (open_clip := find_open_clip()):
        source = embed_by_open_clip(open_clip, model_cfg, weights, examples)
        parity.append(compare(name, f"open_clip {open_clip.__version__}", source, made))
    return parity


def find_open_clip() -> ModuleType | None:
    """The library, or `None` if it isn't there; a warning tells why one that is can't be imported."""
    if find_spec("open_clip") is None:
        return None
    try:
        import open_clip
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        logger.warning(f"Not compared with open_clip, which can't be imported: {type(error).__name__}: {error}")
        return None
    return open_clip


@torch.no_grad()
def embed_by_open_clip(
    open_clip: ModuleType, model_cfg: dict[str, Any], weights: dict[str, torch.Tensor], examples: Examples
) -> Embeddings:
    """Embeddings by open_clip's model of a configuration, in float32.

    Args:
        open_clip (`ModuleType`): From [`find_open_clip`].
        model_cfg (`dict`): As in `open_clip_config.json`.
        weights (`dict[str, torch.Tensor]`): By OpenAI's names.
        examples ([`Examples`]): What is embedded.
    """
    settings = {name: value for name, value in model_cfg.items() if name != "custom_text"}
    below_text = bool(model_cfg.get("custom_text"))
    weights = {name: weight.float() for name, weight in weights.items()}
    with torch.random.fork_rng():  # which the weights that are replaced are drawn from
        model = (open_clip.CustomTextCLIP if below_text else open_clip.CLIP)(**settings).eval()
    model = model.to(examples.pixel_values.device)
    weights["logit_scale"] = weights["logit_scale"].reshape(model.logit_scale.shape)
    model.load_state_dict({_name(name, below_text): weight for name, weight in weights.items()})
    images, texts = model.encode_image(examples.pixel_values), model.encode_text(examples.input_ids)
    return Embeddings(images, texts, model.logit_scale.exp().reshape(()))


def _name(name: str, below_text: bool) -> str:
    is_text = not name.startswith(VISUAL) and name != "logit_scale"
    return TEXT + name if below_text and is_text else name
