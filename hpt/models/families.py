"""Families of dual encoders: what hpt knows of each beside what its model shows. A new one is one record here.

A dual encoder embeds images and texts, and scores a pair by `scale * cos + bias`. Whatever does so can be a proxy. A
family that names its parts otherwise than CLIP, or prepares prompts in its own way, has a record in [`FAMILIES`].
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from hpt.errors import InputError


@dataclass(frozen=True)
class Family:
    """A family of transformers' dual encoders. The defaults are what a family without a record is taken for.

    Args:
        model_type (`str`): `config.model_type` of its models.
        architecture (`str`): Class of its models, which a card loads them by.
        vision_parts (`tuple[str, ...]`): Modules that embed images, the tower first; what `trainable="vision"` trains.
        text_parts (`tuple[str, ...]`): Modules that embed texts, the tower first. A model may lack all but the towers.
        final_norm (`str`, *optional*): Where the vision tower has its last norm, if an image's embedding is its class
            token, the first, after that norm and the projection: patch tokens are then projected likewise.
        has_clip_layers (`bool`): Whether its vision tower is CLIP's in all but names of classes: what
            `encoder.layers[-1]` makes of other tokens than the class token isn't read; see `hpt.models.lean`.
        linear_layers (`str`): Regular expression of the linear layers within a tower that LoRA adapts.
        has_temperature (`bool`): Whether logits are divided by `temperature`, not multiplied by `exp(logit_scale)`.
        has_bias (`bool`): Whether `logit_bias` is added to the logits.
        has_any_tower (`bool`): Whether its vision tower can be of any kind, also of [`POOLS_TO_MAPS`].
        pads_to_full_length (`bool`): Whether prompts are padded to the longest possible one, as in its pretraining:
            a model that pools the last position counts padding too.
        pools_at_end (`bool`): Whether the text tower pools a prompt at its `eos_token_id`, wherever that is.
        lower_case (`bool`): Whether prompts are put into lower case, as in its pretraining, whatever its
            tokenizer does.
        legacy_end (`int`, *optional*): An `eos_token_id` for which the highest token of a prompt counts as its end, as
            that of OpenAI's CLIPs, whose configurations say 2 and whose prompts end in 49407.
        processor (`str`): Class of its processor on cards.
        tags (`tuple[str, ...]`): Tags of its own on cards.
    """

    model_type: str
    architecture: str
    vision_parts: tuple[str, ...] = ("vision_model", "visual_projection")
    text_parts: tuple[str, ...] = ("text_model", "text_projection")
    final_norm: str | None = "vision_model.post_layernorm"
    has_clip_layers: bool = False
    linear_layers: str = r"encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"
    has_temperature: bool = False
    has_bias: bool = False
    has_any_tower: bool = False
    pads_to_full_length: bool = False
    pools_at_end: bool = False
    lower_case: bool = False
    legacy_end: int | None = None
    processor: str = "AutoProcessor"
    tags: tuple[str, ...] = ()

    @property
    def clamps_logit_scale(self) -> bool:
        """Whether `logit_scale` stays at most ln 100 in training: CLIP's does, SigLIP's begins above it."""
        return not (self.has_bias or self.has_temperature)

    @property
    def tower_names(self) -> tuple[str, str]:
        """Where the vision and the text tower are."""
        return self.vision_parts[0], self.text_parts[0]

    def towers(self, model: nn.Module) -> list[nn.Module]:
        """The vision and the text tower of a plain or PEFT model, as far as they are where the family has them."""
        return _modules(model, self.tower_names)

    def vision_modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules of a plain or PEFT model that embed images, the tower first."""
        return _modules(model, self.vision_parts)

    def text_modules(self, model: nn.Module) -> list[nn.Module]:
        """The modules of a plain or PEFT model that embed texts, the tower first."""
        return _modules(model, self.text_parts)

    def patch_modules(self, model: nn.Module) -> list[nn.Module]:
        """The final norm and the projection, which take patch tokens to where texts are; fewer where they can't."""
        return _modules(model, tuple(filter(None, (self.final_norm, self.vision_parts[-1]))))

    def image_features(self, model: nn.Module, pixel_values: torch.Tensor) -> ModelOutput:
        """What the model's `get_image_features` gives, whose `pooler_output` is embeddings of shape `(batch, dim)`."""
        if self.has_clip_layers:  # whatever else its configuration asks for, which hooks on a view would gather
            return model.get_image_features(
                pixel_values=pixel_values, output_hidden_states=False, output_attentions=False
            )
        if not self.has_any_tower:
            return model.get_image_features(pixel_values=pixel_values)
        tower, projection = self.vision_modules(model)
        features = tower(pixel_values=pixel_values)
        features.pooler_output = projection(features.pooler_output.flatten(1))
        return features

    def logit_scale(self, model: nn.Module) -> torch.Tensor:
        """What the cosine is multiplied by, a scalar."""
        return 1 / model.temperature if self.has_temperature else model.logit_scale.exp()

    def logit_bias(self, model: nn.Module) -> torch.Tensor | float:
        """What is added to every logit."""
        return model.logit_bias if self.has_bias else 0.0


# Of towers whose layers aren't called as CLIP's are: BERT's, DINOv2's, ConvNeXt's, BLIP's and AIMv2's, among others
OTHER_LAYERS = (
    r"(.+\.)?layers?\.\d+\.(.+\.)?(q_proj|k_proj|v_proj|o_proj|out_proj|query|key|value|qkv|projection|dense|fc1|fc2"
    r"|gate_proj|up_proj|down_proj|pwconv1|pwconv2)"
)
_RECORDS = (
    Family(
        "clip",
        "CLIPModel",
        has_clip_layers=True,
        pools_at_end=True,
        legacy_end=2,
        processor="CLIPProcessor",
        tags=("clip",),
    ),
    Family("clipseg", "CLIPSegModel", has_clip_layers=True, pools_at_end=True, legacy_end=2),
    Family("groupvit", "GroupViTModel", linear_layers=OTHER_LAYERS, pools_at_end=True, legacy_end=2),
    Family("metaclip_2", "MetaClip2Model", has_clip_layers=True, pools_at_end=True),
    Family("aimv2", "Aimv2Model", linear_layers=OTHER_LAYERS, pools_at_end=True),
    Family("altclip", "AltCLIPModel", has_clip_layers=True, linear_layers=OTHER_LAYERS),
    Family("chinese_clip", "ChineseCLIPModel", has_clip_layers=True, linear_layers=OTHER_LAYERS),
    Family("blip", "BlipModel", linear_layers=OTHER_LAYERS),
    # SigLIP 2 of fixed size is of this type too. It was trained on text in lower case (arXiv 2502.14786), which its
    # tokenizer, Gemma's, leaves as it is, while SigLIP's changes the case itself
    Family("siglip", "SiglipModel", has_bias=True, pads_to_full_length=True, lower_case=True, final_norm=None),
    # Its vision tower is an EfficientNet, which has no linear layers
    Family("align", "AlignModel", has_temperature=True),
    # Any two towers, such as a ViT or a ResNet and a BERT
    Family(
        "vision-text-dual-encoder",
        "VisionTextDualEncoderModel",
        final_norm=None,
        has_any_tower=True,
        linear_layers=OTHER_LAYERS,
    ),
)
FAMILIES = {family.model_type: family for family in _RECORDS}
# Vision towers that pool to maps of shape `(batch, dim, 1, 1)`, which transformers' own class can't project
POOLS_TO_MAPS = ("bit", "regnet", "resnet")
POSITIONS = "position_embedding"  # stands in the name of every such table
# By `config.model_type`, what passes for a dual encoder and isn't supported
REFUSED = {
    "flava": "FlavaModel embeds each patch and each token, not an image and a text: use another family, such as CLIP.",
    "siglip2": "Siglip2Model takes images cut into patches of varying number (NaFlex): use a SigLIP 2 of fixed size, "
    "such as google/siglip2-base-patch16-224.",
}


def family_of(model: nn.Module) -> Family:
    """The family of a plain or PEFT model. Without a record it has CLIP's names, and the scale and bias it shows."""
    model_type = model.config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    shown = {"has_temperature": hasattr(model, "temperature"), "has_bias": hasattr(model, "logit_bias")}
    return Family(model_type, type(plain_model(model)).__name__, **shown)


def family_by_architecture(architecture: str) -> Family:
    """The family of a model that isn't loaded, by the name of its class."""
    records = (family for family in FAMILIES.values() if family.architecture == architecture)
    return next(records, Family("unknown", architecture))


def plain_model(model: nn.Module) -> nn.Module:
    """The model below a PEFT model's adapters; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT marks the one below as well


def has_positions(model: nn.Module) -> bool:
    """Whether what embeds images has position embeddings, and so takes images of one size."""
    names = (name for part in family_of(model).vision_modules(model) for name, _ in part.named_parameters())
    return any(POSITIONS in name for name in names)


def check_dual_encoder(model: nn.Module) -> None:
    """Raise [`InputError`] unless `model` embeds images and texts and has a logit scale or a temperature."""
    embeds_both = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
    if not embeds_both or not (hasattr(model, "logit_scale") or hasattr(model, "temperature")):
        raise InputError(
            f"{type(model).__name__} isn't a dual encoder: it needs get_image_features, get_text_features and a "
            "logit_scale or temperature, as CLIPModel, SiglipModel or AlignModel have."
        )
    if model.config.model_type in REFUSED:
        raise InputError(REFUSED[model.config.model_type])


def check_towers(model: nn.Module) -> None:
    """Raise [`InputError`] unless the towers of a target, one of which trains, are where its family has them."""
    family = family_of(model)
    if len(family.towers(model)) < 2:
        names = " and ".join(family.tower_names)
        raise InputError(
            f"hpt can't tell what to train of {type(plain_model(model)).__name__}: it has no {names}, as families "
            f"without a record in hpt.models.families have. Records: {', '.join(sorted(FAMILIES))}."
        )


def check_patches(model: nn.Module) -> None:
    """Raise [`InputError`] unless the patch tokens of a target can be projected to where its texts are."""
    family = family_of(model)
    if len(family.patch_modules(model)) < 2:
        raise InputError(
            f"An objective of this run needs patch tokens, which {type(plain_model(model)).__name__} doesn't project "
            "to where its texts are, as CLIP does its class token: give a CLIP with a ViT, or another objective."
        )


def _modules(model: nn.Module, names: tuple[str, ...]) -> list[nn.Module]:
    modules = dict(plain_model(model).named_modules())
    return [modules[name] for name in names if name in modules]
