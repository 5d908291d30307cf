"""Tiny CLIPs as others share them: of OpenAI's code and of open_clip, whole and vision towers alone, to be converted.

[`OpenAIClip`] is written from the description of the architecture with torch's own layers, so that it shares no code
with what it is compared with.
"""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from hpt.training.pretraining import byte_tokenizer


WIDTH, TEXT_WIDTH, HEADS, TEXT_HEADS, DIM = 24, 16, 3, 2, 8
PATCH, SIDE, LENGTH, VOCABULARY = 4, 16, 77, 514
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]  # nobody's default
# What options must say of a lone state dict
SAID = {
    "activation": "quick_gelu",
    "heads": HEADS,
    "text_heads": TEXT_HEADS,
    "image_mean": (*MEAN,),
    "image_std": (*STD,),
}


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class Block(nn.Module):
    def __init__(self, width, heads, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = ("c_fc", nn.Linear(width, 3 * width)), ("gelu", activation()), ("c_proj", nn.Linear(3 * width, width))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads, activation):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTower(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(WIDTH, 2, HEADS, activation)
        self.proj = nn.Parameter(torch.empty(WIDTH, DIM))

    def forward(self, pixel_values):
        x = self.conv1(pixel_values).flatten(2).mT
        x = torch.cat([self.class_embedding.repeat(len(x), 1, 1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))[:, 0] @ self.proj


class OpenAIClip(nn.Module):
    """A CLIP with random weights, none of them small, whose `state_dict` has OpenAI's names.

    Args:
        activation (`str`): `"gelu"` or `"quick_gelu"`.
        seed (`int`): Of the weights.
    """

    def __init__(self, activation: str = "quick_gelu", seed: int = 0):
        super().__init__()
        self.visual = VisionTower(ACTIVATIONS[activation])
        self.transformer = Transformer(TEXT_WIDTH, 2, TEXT_HEADS, ACTIVATIONS[activation])
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(LENGTH, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.empty(TEXT_WIDTH, DIM))
        self.logit_scale = nn.Parameter(torch.empty(()))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(0, 0.4, generator=generator)
        self.eval().requires_grad_(False)

    def encode_text(self, input_ids):
        mask = torch.full((input_ids.shape[1],) * 2, -torch.inf).triu(1)
        x = self.token_embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), input_ids.argmax(-1)] @ self.text_projection

    def vision_weights(self) -> dict[str, torch.Tensor]:
        """Those of the vision tower alone, as FARE's files have them."""
        return self.visual.state_dict()


def config_of(activation: str = "quick_gelu", **model_cfg) -> dict:
    """`open_clip_config.json` of an [`OpenAIClip`]; the further settings are `model_cfg`'s."""
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": TEXT_WIDTH, "heads": TEXT_HEADS, "layers": 2}
    text |= {"hf_tokenizer_name": "me/clip"}  # OpenAI's, unless it is named
    towers = {"vision_cfg": vision | {"mlp_ratio": 3.0}, "text_cfg": text | {"mlp_ratio": 3.0}}
    model = {"embed_dim": DIM, "quick_gelu": activation == "quick_gelu"} | towers | model_cfg
    return {"model_cfg": model, "preprocess_cfg": {"mean": MEAN, "std": STD, "resize_mode": "shortest"}}


def below_text(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that open_clip gives with `custom_text`."""
    own = ("visual.", "logit_scale")
    return {name if name.startswith(own) else f"text.{name}": weight for name, weight in weights.items()}


def save_open_clip(folder: Path, weights: dict[str, torch.Tensor], config: dict) -> Path:
    """A folder of open_clip, with its tokenizer's files."""
    folder.mkdir()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return folder
