"""A dual encoder at another input size: its position embeddings are resized once, after which it is an ordinary one.

    model, processor = with_image_size(model, processor, 336)
    model.save_pretrained("vit_b32_336")  # CLIPModel.from_pretrained("vit_b32_336") takes images of 336 pixels

The resized embeddings are those that transformers makes anew in each forward by `interpolate_pos_encoding=True`.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from hpt.errors import InputError
from hpt.models.families import POSITIONS, has_positions
from hpt.models.processors import LARGEST_SIDE, input_size


def with_image_size(model: nn.Module, processor, image_size: int) -> tuple[nn.Module, object]:
    """A plain dual encoder and its processor for square images of another size; themselves if it is theirs.

    A model without position embeddings, such as one with a ResNet, only says the size in its configuration.

    Args:
        model (`PreTrainedModel`): Any dual encoder of transformers.
        processor (`ProcessorMixin`): Its processor. What it resizes images to before it crops them changes in
            proportion.
        image_size (`int`): Side of the images in pixels; with position embeddings, a multiple of the patch size.

    Returns:
        `tuple`: Another model with the same weights but for the resized ones, in eval mode, and another processor.

    Raises:
        InputError: for a size that can't be, with the nearest that can, or weights that can't be resized.
    """
    check_image_size(image_size)
    if hasattr(model, "peft_config"):
        raise InputError("The model has adapters: set its image_size before they are added, or merge them first.")
    vision, side = model.config.vision_config, input_size(processor.image_processor)
    if image_size == side == getattr(vision, "image_size", side):
        return model, processor
    if has_positions(model):
        _check_patches(vision.patch_size, image_size)
        model = _rebuilt(model, image_size)
    model.config.vision_config.image_size = image_size
    processor = copy.copy(processor)
    processor.image_processor = _resized_processor(processor.image_processor, image_size / side)
    return model, processor


def check_image_size(image_size: int) -> None:
    """Refuse a number of pixels that no image has."""
    if not 1 <= image_size <= LARGEST_SIDE:
        raise InputError(f"image_size is {image_size}, but must be 1 to {LARGEST_SIDE} pixels.")


def _check_patches(patch_size: int, image_size: int) -> None:
    """Refuse a size that patches don't divide."""
    if image_size % patch_size:
        below = image_size // patch_size * patch_size
        nearest = " or ".join(str(size) for size in (below, below + patch_size) if size)
        raise InputError(f"image_size is {image_size}, but patches have {patch_size} pixels: give {nearest}.")


def _rebuilt(model: nn.Module, image_size: int) -> nn.Module:
    """A model of the same configuration but for its input size, with the same weights but for its positions."""
    config = copy.deepcopy(model.config)
    config.vision_config.image_size = image_size
    with torch.random.fork_rng():  # which the weights that are replaced are drawn from
        rebuilt = type(model)(config).to(model.device, model.dtype).eval()
    grid, shapes = image_size // config.vision_config.patch_size, rebuilt.state_dict()
    weights = model.state_dict()
    for name in weights:
        if weights[name].shape != shapes[name].shape:
            weights[name] = _resized(name, weights[name], grid, shapes[name].shape)
    rebuilt.load_state_dict(weights)
    rebuilt.name_or_path = model.name_or_path
    return rebuilt


def _resized(name: str, weight: torch.Tensor, grid: int, shape: torch.Size) -> torch.Tensor:
    special = shape[-2] - grid**2
    if (
        POSITIONS not in name
        or special < 0
        or math.isqrt(weight.shape[-2] - special) ** 2 != weight.shape[-2] - special
    ):
        raise InputError(
            f"The model can't take images of another size: {name} depends on that, and isn't a table with a row for "
            "each patch of a square."
        )
    return resize_positions(weight, grid, special)


def resize_positions(table: torch.Tensor, grid: int, special: int = 0) -> torch.Tensor:
    """Position embeddings of a square of patches for a square of others, bicubic, as transformers interpolates them.

    Args:
        table (`torch.Tensor` of shape `(..., special + side ** 2, dim)`): Embeddings, row by row.
        grid (`int`): Patches along a side of the new square.
        special (`int`, *optional*, defaults to 0): Tokens before the patches, such as the class token, which are kept.

    Returns:
        `torch.Tensor` of shape `(..., special + grid ** 2, dim)`: embeddings in the same dtype.
    """
    kept, patches = table[..., :special, :], table[..., special:, :]
    side = math.isqrt(patches.shape[-2])
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = square.to(torch.promote_types(table.dtype, torch.float32))
    square = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
    patches = square.permute(0, 2, 3, 1).reshape(*table.shape[:-2], grid**2, -1)
    return torch.cat([kept, patches.to(table.dtype)], dim=-2)


def _resized_processor(image_processor, factor: float):
    """A copy of an image processor that makes images larger by a factor."""
    resized = copy.deepcopy(image_processor)
    for name in ("size", "crop_size"):
        if size := getattr(resized, name, None):
            sides = {key: round(side * factor) for key, side in dict(size).items() if side is not None}
            setattr(resized, name, type(size)(**sides))
    return resized
