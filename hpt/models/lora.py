"""Adapters on a target: few weights to train, save and share, which can be merged into plain ones.

Those of LoRA are made here; any others of PEFT are trained and loaded too, if they can be merged.

model = add_lora(CLIPModel.from_pretrained(name), rank=8)
HPTTrainer(model=model, ...).train()
model.save_pretrained("adapter")  # PeftModel.from_pretrained(CLIPModel.from_pretrained(name), "adapter")
merged(model).save_pretrained("robust")  # CLIPModel.from_pretrained("robust")
"""

import copy
import math
import re
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import CONFIG_NAME
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file

from hpt.errors import InputError, check_known
from hpt.models.families import check_dual_encoder, family_of
from hpt.models.files import read_json
from hpt.models.sources import BASE_FILE
from hpt.models.weights import TRAINABLE, check_complete, check_finite


FITTING = "Give the adapter_config.json that belongs to them."


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float | None = None, trainable: str = "vision", seed: int = 0
) -> PeftModel:
    """A target with low-rank adapters, `W + alpha / rank * B A`, in its transformer layers (arXiv 2106.09685).

    Only the adapters train, and all of GPD acts on them: the restart takes them back to where they began, `B = 0`,
    which is the vanilla model; average and pull are those of `A` and of `B`, not of their product.

    Args:
        model (`PreTrainedModel`): A CLIP, or a dual encoder with layers of the same names, such as SigLIP, or whose
            family has a record of its own.
        rank (`int`, *optional*, defaults to 8): Rows of `A` and columns of `B`.
        alpha (`float`, *optional*, defaults to `rank`): Scale of the adapters.
        trainable (`str`, *optional*, defaults to `"vision"`): `"vision"` for that tower, `"all"` for both.
        seed (`int`, *optional*, defaults to 0): What `A` is drawn from.

    Raises:
        InputError: for a rank or scale out of range, a model that is no dual encoder or has adapters, or a tower
            without such layers.
    """
    check_lora(rank, alpha)
    check_known("trainable", trainable, TRAINABLE)
    if isinstance(model, PeftModel):
        raise InputError("The model has adapters already: merge them first, or train them as they are.")
    check_dual_encoder(model)
    family = family_of(model)
    towers = family.tower_names[: 1 if trainable == "vision" else 2]
    for tower in towers:
        if not any(re.fullmatch(rf"{tower}\.{family.linear_layers}", name) for name, _ in model.named_modules()):
            raise InputError(
                f"The {tower} of {type(model).__name__} has no layers named as CLIP's are, to adapt by LoRA: give a "
                "PeftModel with target_modules of your own."
            )
    tower = towers[0] if len(towers) == 1 else f"({'|'.join(towers)})"
    layers = rf"{tower}\.{family.linear_layers}"
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def check_lora(rank: int, alpha: float | None) -> None:
    """Refuse a rank below 1, and a scale that leaves the adapters without effect."""
    if rank < 1:
        raise InputError(f"The rank of the LoRA adapters is {rank}, but must be at least 1.")
    if alpha is not None and alpha <= 0:
        raise InputError(f"The alpha of the LoRA adapters is {alpha:g}, but must be above 0.")


def merged(model: PeftModel) -> nn.Module:
    """A copy of the plain model with the adapters added into its weights."""
    return copy.deepcopy(model).merge_and_unload()


def check_adapter(config: PeftConfig) -> None:
    """Refuse adapters outside a model's layers, such as learned prompts: images and class names pass them by."""
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise InputError(
            f"{config.peft_type.value} adapters learn prompts for a language model, which a dual encoder doesn't "
            "take, and can't be merged: use adapters of its layers, such as LORA, IA3 or LOHA."
        )
    if config.peft_type == PeftType.LORA and config.megatron_config is not None:
        raise InputError(
            f"The adapters ask for the Python module {config.megatron_core!r:.100} (megatron_config), which hpt never "
            "imports: take adapters without."
        )


def describe_adapter(config: PeftConfig) -> str:
    """What a card calls adapters: `LoRA adapters of rank 8, alpha 8`, `IA3 adapters`."""
    if config.peft_type != PeftType.LORA:
        return f"{config.peft_type.value} adapters"
    return f"{'DoRA' if config.use_dora else 'LoRA'} adapters of rank {config.r}, alpha {config.lora_alpha:g}"


def read_adapter(name: str, revision: str | None) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of a saved adapter, from a folder or the Hub; the base is where it lies here.

    Raises:
        InputError: if it can't be merged, doesn't say its base, or is damaged.
        Exception: of any kind, if it isn't there, or is damaged.
    """
    read_json(Path(cached_file(name, CONFIG_NAME, revision=revision)))
    config = PeftConfig.from_pretrained(name, revision=revision)
    check_adapter(config)
    base = config.base_model_name_or_path
    if not isinstance(base, str) or not base:
        raise InputError(f"{name} is an adapter whose adapter_config.json doesn't say its base_model_name_or_path.")
    weights = load_file(cached_file(name, "adapter_model.safetensors", revision=revision))
    check_finite(name, weights)
    if config.peft_type == PeftType.LORA:
        _check_saved_lora(name, config, weights)
    noted, places = Path(name, BASE_FILE), [Path(name).parent / base]
    if noted.is_file() and not Path(base).is_absolute():  # such a path was written later, by somebody who knows
        places.insert(0, noted.read_text(encoding="utf-8"))
    here = (str(place) for place in places if Path(place).is_dir())
    config.base_model_name_or_path = next(here, base)
    return config, weights


def _check_saved_lora(name: str, config: LoraConfig, weights: dict[str, torch.Tensor]) -> None:
    """Refuse ranks and scales that can't be, and ranks of which the file has no matrix, before PEFT makes them."""
    largest = max((max(weight.shape, default=0) for weight in weights.values()), default=0)
    for rank in (config.r, *config.rank_pattern.values()):
        if type(rank) is not int or not 1 <= rank <= largest:
            raise InputError(f"{name} has adapters of rank {rank!r:.100}, but its weights are of another. {FITTING}")
    for alpha in (config.lora_alpha, *config.alpha_pattern.values()):
        if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
            raise InputError(f"{name} has the lora_alpha {alpha!r:.100}, but must have a number above 0. {FITTING}")


def merge_saved(name: str, base: nn.Module, config: PeftConfig, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A base with an adapter from [`read_adapter`] added into its weights.

    Raises:
        InputError: if the adapter isn't one of this base, or lacks weights.
    """
    try:
        with torch.random.fork_rng():
            model = get_peft_model(base, config)
    except ValueError as error:
        raise InputError(f"The adapter {name!r} doesn't fit its base {base.name_or_path!r}: {error}") from error
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    common = expected.keys() & weights.keys()
    shapes = {key: weights[key].shape for key in common if weights[key].shape != expected[key].shape}
    check_complete(name, expected, expected.keys() - common, weights.keys() - common, shapes)
    set_peft_model_state_dict(model, weights)
    return model.eval().merge_and_unload()
