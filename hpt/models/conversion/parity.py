"""Whether two models give the same logits; a CLIP's own arithmetic in plain torch, from its architecture alone.

The architecture is that of Radford et al., 2021 (arXiv 2103.00020, section 2.4), a ViT with a layer norm before its
first block and a transformer over prompts with causal attention, as in OpenAI's code, which open_clip continues.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hpt.errors import InputError
from hpt.models.processors import input_size, pixel_statistics
from hpt.models.weights import in_eval_mode


TOLERANCE = 1e-5  # between cosines, in float32
PROMPTS = ("a photo of a cat", "An aerial photograph of a river, in autumn.", "7", "the quick brown fox " * 40)
IMAGES = 4
LEGACY_END = 2  # the eos_token_id at which transformers takes a prompt's highest token for its end
ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}
OWN_ARITHMETIC = "the source's own arithmetic"


@dataclass(frozen=True)
class Arithmetic:
    """What a CLIP computes with that the shapes of its weights don't say.

    Args:
        heads, text_heads (`int`): Attention heads of each block of the vision and the text tower.
        activation, text_activation (`str`): Of [`ACTIVATIONS`].
        layer_norm_eps, text_layer_norm_eps (`float`): What layer norms add to the variance.
        end_token (`int`, *optional*): The token at which a prompt is pooled; `None` for its highest token.
    """

    heads: int
    text_heads: int
    activation: str
    text_activation: str
    layer_norm_eps: float
    text_layer_norm_eps: float
    end_token: int | None

    @classmethod
    def of_config(cls, config) -> "Arithmetic":
        """From a [`~transformers.CLIPConfig`]."""
        vision, text = config.vision_config, config.text_config
        heads, activations = (
            (vision.num_attention_heads, text.num_attention_heads),
            (vision.hidden_act, text.hidden_act),
        )
        end = None if text.eos_token_id == LEGACY_END else text.eos_token_id
        return cls(*heads, *activations, vision.layer_norm_eps, text.layer_norm_eps, end)


def highest_token(tokenizer) -> int:
    """The highest token that a tokenizer gives, at which OpenAI's code pools a prompt: its end, of CLIP's own."""
    return max(tokenizer.get_vocab().values())


@dataclass(frozen=True)
class Parity:
    """How far the logits of the same images and prompts are apart, from the source and from what it was made into.

    Args:
        against (`str`): What computed the source's, such as `"the source's own arithmetic"` or `"open_clip 3.3.0"`.
        images, prompts (`int`): So many were compared, each with each.
        cosine (`float`): Largest difference between cosines, the logits before scale and bias.
        logit (`float`): Largest difference between logits.
    """

    against: str
    images: int
    prompts: int
    cosine: float
    logit: float


@dataclass(frozen=True)
class Examples:
    """What both sides are given.

    Args:
        pixel_values (`torch.Tensor` of shape `(images, 3, side, side)`): Normalised: noise, and smooth.
        input_ids (`torch.Tensor` of shape `(prompts, context_length)`): Prompts, and rows of random tokens.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor

    @classmethod
    def of(cls, model: nn.Module, processor) -> "Examples":
        """The same ones each time, for a CLIP of transformers."""
        generator, side = torch.Generator().manual_seed(0), input_size(processor.image_processor)
        noise = torch.rand(IMAGES // 2, 3, side, side, generator=generator)
        smooth = F.interpolate(torch.rand(IMAGES // 2, 3, 4, 4, generator=generator), (side, side), mode="bilinear")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in pixel_statistics(processor.image_processor))
        text = model.config.text_config
        options = {"padding": "max_length", "truncation": True, "max_length": text.max_position_embeddings}
        prompts = processor.tokenizer([*PROMPTS], **options, return_tensors="pt")["input_ids"]
        end = text.eos_token_id
        below = text.vocab_size if end in (0, LEGACY_END) else end  # that the end is the highest, as in OpenAI's code
        random = torch.randint(below, prompts.shape, generator=generator)
        random[:, -1] = end
        pixel_values = (torch.cat([noise, smooth]) - mean) / std
        return cls(pixel_values.to(model.device), torch.cat([prompts, random]).to(model.device))


@dataclass(frozen=True)
class Embeddings:
    """What one side makes of the examples.

    Args:
        images (`torch.Tensor` of shape `(images, dim)`), texts (`torch.Tensor` of shape `(prompts, dim)`): Before they
            are normalised.
        scale (`torch.Tensor`): What cosines are multiplied by.
    """

    images: torch.Tensor
    texts: torch.Tensor
    scale: torch.Tensor

    def cosines(self) -> torch.Tensor:
        """`(images, prompts)`"""
        return F.normalize(self.images, dim=-1) @ F.normalize(self.texts, dim=-1).T


@torch.no_grad()
def embed_by_transformers(model: nn.Module, examples: Examples) -> Embeddings:
    """Embeddings by a CLIP of transformers."""
    with in_eval_mode([*model.modules()]):
        images = model.get_image_features(pixel_values=examples.pixel_values).pooler_output
        texts = model.get_text_features(input_ids=examples.input_ids).pooler_output
    return Embeddings(images, texts, model.logit_scale.exp())


@torch.no_grad()
def embed_by_own_arithmetic(weights: dict[str, torch.Tensor], how: Arithmetic, examples: Examples) -> Embeddings:
    """Embeddings from weights by OpenAI's names, in float32."""
    images = embed_images(weights, how, examples.pixel_values)
    texts = embed_texts(weights, how, examples.input_ids)
    return Embeddings(images, texts, weights["logit_scale"].float().reshape(()).exp())


def embed_images(weights: dict[str, torch.Tensor], how: Arithmetic, pixel_values: torch.Tensor) -> torch.Tensor:
    """Embeddings `(batch, dim)` of normalised images `(batch, 3, side, side)`: the class token's, projected."""
    patches = weights["visual.conv1.weight"].float()
    x = F.conv2d(pixel_values, patches, stride=patches.shape[-1]).flatten(2).transpose(1, 2)
    class_token = weights["visual.class_embedding"].float().expand(len(x), 1, -1)
    x = torch.cat([class_token, x], dim=1) + weights["visual.positional_embedding"].float()
    x = _norm(weights, "visual.ln_pre", how.layer_norm_eps, x)
    x = _transform(weights, "visual.", how.heads, how.activation, how.layer_norm_eps, x, causal=False)
    return _norm(weights, "visual.ln_post", how.layer_norm_eps, x[:, 0]) @ weights["visual.proj"].float()


def embed_texts(weights: dict[str, torch.Tensor], how: Arithmetic, input_ids: torch.Tensor) -> torch.Tensor:
    """Embeddings `(batch, dim)` of tokens `(batch, length)`: that of the prompt's end, projected."""
    positions = weights["positional_embedding"].float()[: input_ids.shape[-1]]
    x = F.embedding(input_ids, weights["token_embedding.weight"].float()) + positions
    x = _transform(weights, "", how.text_heads, how.text_activation, how.text_layer_norm_eps, x, causal=True)
    x = _norm(weights, "ln_final", how.text_layer_norm_eps, x)
    end = (input_ids if how.end_token is None else (input_ids == how.end_token).int()).argmax(
        dim=-1
    )  # the first, where several
    return x[torch.arange(len(x)), end] @ weights["text_projection"].float()


def _norm(weights: dict[str, torch.Tensor], name: str, eps: float, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float(), eps)


def _transform(weights, prefix: str, heads: int, activation: str, eps: float, x: torch.Tensor, causal: bool):
    """`x += attention(ln_1(x)); x += mlp(ln_2(x))`, block by block, for tokens `(batch, length, width)`."""

    def linear(name: str, x: torch.Tensor, between: str = ".") -> torch.Tensor:
        return F.linear(x, *(weights[f"{name}{between}{kind}"].float() for kind in ("weight", "bias")))

    layer = 0
    while (block := f"{prefix}transformer.resblocks.{layer}.") + "ln_1.weight" in weights:
        projected = linear(f"{block}attn.in_proj", _norm(weights, f"{block}ln_1", eps, x), between="_")
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        x = x + linear(f"{block}attn.out_proj", attended.transpose(1, 2).flatten(2))
        hidden = ACTIVATIONS[activation](linear(f"{block}mlp.c_fc", _norm(weights, f"{block}ln_2", eps, x)))
        x = x + linear(f"{block}mlp.c_proj", hidden)
        layer += 1
    return x


def compare(name: str, against: str, source: Embeddings, made: Embeddings) -> Parity:
    """How far two sides are apart.

    Raises:
        InputError: if a cosine differs by more than 1e-5, or isn't a number.
    """
    cosines, others = source.cosines(), made.cosines()
    cosine = (cosines - others).abs().max().item()
    logit = (source.scale * cosines - made.scale * others).abs().max().item()
    if not cosine <= TOLERANCE:
        raise InputError(
            f"Can't convert {name!r}: cosines of the same images and prompts differ by {cosine:.2g} from {against}, "
            f"but may by {TOLERANCE:g} at most. Nothing is written."
        )
    return Parity(against, *cosines.shape, cosine, logit)
