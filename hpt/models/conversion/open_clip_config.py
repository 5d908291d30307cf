"""What `open_clip_config.json` says of a model, and such a file for a model of transformers.

Its settings, and what is meant where one isn't there, are those of open_clip's `CLIP`, `CLIPVisionCfg`, `CLIPTextCfg`
(github.com/mlfoundations/open_clip, `model.py`) and `PreprocessCfg` (`transform.py`). One within another is called
`vision_cfg.width` here.
"""

import math
from typing import Any, NamedTuple

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hpt.errors import InputError
from hpt.json_files import check_kinds
from hpt.models.conversion.facts import Fact, Said
from hpt.models.conversion.images import RESAMPLING, resizing, resizing_of
from hpt.models.conversion.parity import LEGACY_END, Arithmetic, highest_token
from hpt.models.conversion.shapes import TextShape, VisionShape, differences
from hpt.models.processors import input_size, pixel_statistics
from hpt.models.sources import OPEN_CLIP_CONFIG as CONFIG


MODEL, PREPROCESSING = "model_cfg", "preprocess_cfg"
# What OpenAI's tokenizer makes of a text, which it lower-cases; open_clip has it built in, and takes it unless told
TEXT, TOKENS = "A  photo of a Cat", [49406, 320, 1125, 539, 320, 2368, 49407]


class Setting(NamedTuple):
    """A setting that is read: what it can be, and what is meant where it isn't there."""

    kind: Any
    default: Any


SETTINGS = {
    "embed_dim": Setting(int, 0),
    "quick_gelu": Setting(bool, False),
    "vision_cfg.layers": Setting(int, 12),
    "vision_cfg.width": Setting(int, 768),
    "vision_cfg.head_width": Setting(int, 64),
    "vision_cfg.mlp_ratio": Setting(float, 4.0),
    "vision_cfg.patch_size": Setting(int, 16),
    "vision_cfg.image_size": Setting(int, 224),
    "vision_cfg.norm_kwargs.eps": Setting(float, 1e-5),
    "text_cfg.context_length": Setting(int, 77),
    "text_cfg.vocab_size": Setting(int, 49408),
    "text_cfg.width": Setting(int, 512),
    "text_cfg.heads": Setting(int, 8),
    "text_cfg.layers": Setting(int, 12),
    "text_cfg.mlp_ratio": Setting(float, 4.0),
    "text_cfg.norm_kwargs.eps": Setting(float, 1e-5),
    "text_cfg.pool_type": Setting(str, "argmax"),
    "text_cfg.eos_id": Setting(int, 2),
    "preprocess_cfg.mean": Setting(list[float], OPENAI_CLIP_MEAN),
    "preprocess_cfg.std": Setting(list[float], OPENAI_CLIP_STD),
    "preprocess_cfg.interpolation": Setting(str, "bicubic"),
    "preprocess_cfg.resize_mode": Setting(str, "shortest"),
}
# What can't be otherwise in transformers' CLIP
OF_A_BLOCK = {name: False for name in ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner")}
OF_A_BLOCK |= {"scale_attn": False, "scale_fc": False, "ls_init_value": None, "act_kwargs": None, "norm_kwargs": None}
OF_VISION = {"timm_model_name": None, "attentional_pool": False, "no_ln_pre": False, "pool_type": "tok"}
OF_TEXT = {
    "hf_model_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "proj_bias": False,
    "proj_type": "linear",
}
FIXED = {"init_logit_bias": None}
FIXED |= {f"vision_cfg.{name}": value for name, value in (OF_A_BLOCK | OF_VISION).items()}
FIXED |= {f"text_cfg.{name}": value for name, value in (OF_A_BLOCK | OF_TEXT).items()}
# What changes nothing that is computed with a trained CLIP, by what its name begins with. The last norm can stand
# before or after the choice of a token, and position embeddings are weights, however they were made
IGNORED = ("custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "preprocess_cfg.")
IGNORED += tuple(
    f"{tower}.{name}"
    for tower in ("vision_cfg", "text_cfg")
    for name in ("output_tokens", "final_ln_after_pool", "block_type")
)
IGNORED += ("vision_cfg.patch_dropout", "vision_cfg.pos_embed_type", "vision_cfg.attn_pooler_", "vision_cfg.timm_")
IGNORED += ("text_cfg.hf_", "text_cfg.pad_id")


class OpenClipConfig:
    """A configuration of a CLIP that transformers has a class for.

    Args:
        content (`dict`): What the file holds.
        source (`str`): The checkpoint's, for messages.

    Raises:
        InputError: for one that lacks or misstates something, or asks for what transformers' CLIP doesn't compute.
    """

    def __init__(self, content: dict[str, Any], source: str):
        sections = content.get(MODEL), content.get(PREPROCESSING) or {}
        if not all(isinstance(section, dict) for section in sections):
            raise InputError(
                f"Can't convert {source!r}: its {CONFIG} must hold {MODEL}, and {PREPROCESSING} if it has any."
            )
        self.source, self.model_cfg = source, sections[0]
        self._given = _flat(sections[0]) | _flat({PREPROCESSING: sections[1]})
        self._given = {name: value for name, value in self._given.items() if value is not None or name in FIXED}
        self._check()

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name, SETTINGS[name].default)

    def _check(self) -> None:
        own = {name: value for name, value in self._given.items() if name in SETTINGS}
        try:
            check_kinds(own, {name: SETTINGS[name].kind for name in own})
        except ValueError as error:
            raise self._refused(str(error)) from error
        for name, value in self._given.items():
            if name in FIXED and value != FIXED[name]:
                raise self._refused(f"{name} is {value!r:.100}, but transformers' CLIP computes with {FIXED[name]!r}")
            if name not in {*SETTINGS, *FIXED} and not name.startswith(IGNORED):
                raise self._refused(f"{name} isn't known here, and may change what is computed")
        if low := [name for name in own if SETTINGS[name].kind in (int, float) and own[name] <= 0]:
            raise self._refused(f"{low[0]} is {own[low[0]]}, but must be above 0")
        if "embed_dim" not in self._given:
            raise self._refused("embed_dim is missing")
        self._check_choices()

    def _check_choices(self) -> None:
        choices = {"text_cfg.pool_type": {"argmax", "eos"}, "preprocess_cfg.resize_mode": {"shortest", "squash"}}
        for name, known in (choices | {"preprocess_cfg.interpolation": RESAMPLING}).items():
            if self[name] not in known:
                raise self._refused(f"{name} is {self[name]!r:.100}, but can be {' or '.join(sorted(known))} here")
        if self["text_cfg.pool_type"] == "eos" and self["text_cfg.eos_id"] == LEGACY_END:
            raise self._refused("text_cfg.eos_id is 2, by which transformers' CLIP means a prompt's highest token")

    def _refused(self, reason: str) -> InputError:
        return InputError(f"Can't convert {self.source!r}: in its {CONFIG}, {reason}.")

    def vision_shape(self) -> VisionShape:
        """As of the weights that it describes."""
        grid = self["vision_cfg.image_size"] // self["vision_cfg.patch_size"]
        return VisionShape(*self._tower("vision_cfg"), self["vision_cfg.patch_size"], grid)

    def text_shape(self) -> TextShape:
        """As of the weights that it describes."""
        return TextShape(*self._tower("text_cfg"), self["text_cfg.vocab_size"], self["text_cfg.context_length"])

    def _tower(self, tower: str) -> tuple[int, int, int, int]:
        width = self[f"{tower}.width"]
        return width, self[f"{tower}.layers"], int(width * self[f"{tower}.mlp_ratio"]), self["embed_dim"]

    def check_weights(self, weights: dict) -> None:
        """Refuse weights of another architecture than it says; of a vision tower alone, only that is compared."""
        pairs = {"vision": (VisionShape.of_weights(weights), self.vision_shape())}
        if "token_embedding.weight" in weights:
            pairs["text"] = TextShape.of_weights(weights), self.text_shape()
        for tower, (found, said) in pairs.items():
            if difference := differences(found, said):
                raise InputError(
                    f"Can't convert {self.source!r}: its weights are of another architecture than its {CONFIG} says. "
                    f"The {tower} tower has {difference}."
                )

    def check_tokenizer(self, tokenizer) -> None:
        """Refuse one from the files beside it that open_clip wouldn't take."""
        if not (self._given.get("text_cfg.hf_tokenizer_name") or is_openais(tokenizer)):
            raise self._refused(
                "text_cfg.hf_tokenizer_name is missing, for which open_clip takes OpenAI's tokenizer, but the files "
                "beside it are of another. Give the model's own (of hpt convert, --tokenizer ID)"
            )

    def said(self) -> Said:
        """What it says beside shapes; a fact's source tells where a setting is left to open_clip's default."""
        activation = "quick_gelu" if self["quick_gelu"] else "gelu"
        width, head_width = self["vision_cfg.width"], self["vision_cfg.head_width"]
        modes = self["preprocess_cfg.resize_mode"], self["preprocess_cfg.interpolation"]
        facts = [
            self._fact("activation", activation, "quick_gelu"),
            self._fact("text_activation", activation, "quick_gelu"),
            self._fact("heads", width // head_width, "vision_cfg.head_width"),
            self._fact("text_heads", self["text_cfg.heads"], "text_cfg.heads"),
            self._fact("layer_norm_eps", self["vision_cfg.norm_kwargs.eps"], "vision_cfg.norm_kwargs.eps"),
            self._fact("text_layer_norm_eps", self["text_cfg.norm_kwargs.eps"], "text_cfg.norm_kwargs.eps"),
            self._fact("image_size", self["vision_cfg.image_size"], "vision_cfg.image_size"),
            self._fact("image_mean", self["preprocess_cfg.mean"], "preprocess_cfg.mean"),
            self._fact("image_std", self["preprocess_cfg.std"], "preprocess_cfg.std"),
            self._fact("resizing", resizing(self["vision_cfg.image_size"], *modes), "preprocess_cfg.resize_mode"),
        ]
        if self["text_cfg.pool_type"] == "eos":
            facts.append(self._fact("end_token", self["text_cfg.eos_id"], "text_cfg.eos_id"))
        return {fact.name: fact for fact in facts}

    def _fact(self, name: str, value: Any, setting: str) -> Fact:
        source = CONFIG if setting in self._given else f"open_clip's default, as {CONFIG} has no {setting}"
        return Fact(name, value, source)


def is_openais(tokenizer) -> bool:
    """Whether a tokenizer reads prompts as OpenAI's does, which open_clip has built in."""
    return tokenizer(TEXT)["input_ids"] == TOKENS


def _flat(section: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"vision_cfg": {"width": 768}}` as `{"vision_cfg.width": 768}`."""
    flat = {}
    for name, value in section.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat


def model_config(
    name: str, vision: VisionShape, image_size: int, text: TextShape, how: Arithmetic, tokenizer
) -> dict[str, Any]:
    """`model_cfg` of a CLIP, whose tokenizer tells whether the end at which it pools is a prompt's highest token.

    Raises:
        InputError: for one that open_clip can't compute.
    """
    if how.activation != how.text_activation or how.activation not in ("gelu", "quick_gelu"):
        raise InputError(
            f"open_clip has no architecture for {name!r}: both towers must have the activation gelu, or both "
            f"quick_gelu, but it has {how.activation} for images and {how.text_activation} for texts."
        )
    at_highest = how.end_token in (None, highest_token(tokenizer))
    pooling = {} if at_highest else {"pool_type": "eos", "eos_id": how.end_token}
    return {
        "embed_dim": vision.embed_dim,
        "quick_gelu": how.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // how.heads,
            "mlp_ratio": _mlp_ratio(vision),
            "patch_size": vision.patch_size,
            **_norm_kwargs(how.layer_norm_eps),
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": how.text_heads,
            "layers": text.layers,
            "mlp_ratio": _mlp_ratio(text),
            **_norm_kwargs(how.text_layer_norm_eps),
            **pooling,
        },
    }


def _mlp_ratio(tower) -> float:
    """The ratio of which open_clip makes the hidden units of an MLP again, `int(width * ratio)`."""
    ratio = tower.mlp_width / tower.width
    return ratio if int(tower.width * ratio) == tower.mlp_width else math.nextafter(ratio, math.inf)


def _norm_kwargs(eps: float) -> dict[str, dict]:
    return {} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}


def preprocessing_config(name: str, image_processor) -> dict[str, Any]:
    """`preprocess_cfg` of a processor.

    Raises:
        InputError: for one that prepares images in a way that open_clip doesn't.
    """
    mode, interpolation = resizing_of(name, image_processor, input_size(image_processor))
    mean, std = pixel_statistics(image_processor)
    return {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": mode}
