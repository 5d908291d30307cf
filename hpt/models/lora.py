"""LoRA adapters on a target: few weights to train, save and share, which can be merged into plain ones.

model = add_lora(CLIPModel.from_pretrained(name), rank=8)
HPTTrainer(model=model, ...).train()
model.save_pretrained("adapter")  # PeftModel.from_pretrained(CLIPModel.from_pretrained(name), "adapter")
merged(model).save_pretrained("robust")  # CLIPModel.from_pretrained("robust")
"""

import copy
import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from hpt.errors import InputError, check_known
from hpt.models.families import check_dual_encoder, family_of


TRAINABLE = ("vision", "all")


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
