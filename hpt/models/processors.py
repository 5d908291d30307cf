"""What a model's processor makes of images, and whether it can be the model's own.

What its files say is looked at before anything is calculated with it: transformers takes any value.
"""

import math
from numbers import Real

import torch
import torch.nn.functional as F

from hpt.errors import InputError
from hpt.models.families import family_of, has_positions
from hpt.models.weights import in_eval_mode


LARGEST_SIDE = 4096  # pixels: a single image takes 200 MB in float32


def input_size(image_processor) -> int:
    """Side length in pixels of the square images that a processor hands to its model.

    Raises:
        InputError: if the processor says none, or that of images that aren't square.
    """
    crops = getattr(image_processor, "do_center_crop", False)  # SigLIP's, among others, have no such setting
    if image_processor.do_resize:
        _sides(image_processor, "size")
    name = "crop_size" if crops else "size"
    sides = _sides(image_processor, name)
    if len(set(sides)) > 1:
        raise InputError(f"{_setting(image_processor, name)}, but models take square images.")
    return sides[0]


def pixel_statistics(image_processor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel with which [0, 1] pixels become what a processor hands to its model.

    For 8-bit values `v = 255 x`, rescale factor `f`, offset `o` (1 in ALIGN's, 0 in the others), mean `m` and
    deviation `s`, processors give `((f v - o) - m) / s`, which is `(x - (o + m) / 255 f) / (s / 255 f)`.

    Raises:
        InputError: for a factor, a mean or a deviation that can't be one.
    """
    mean, std, again = [0.0] * 3, [1.0] * 3, [1.0] * 3
    if _switch(image_processor, "do_normalize"):
        mean, std = _per_channel(image_processor, "image_mean"), _per_channel(image_processor, "image_std", above=0)
    # Only EfficientNet's processors, ALIGN's among them, have an offset and may divide once more
    if getattr(image_processor, "include_top", False):
        again = _per_channel(image_processor, "image_std", above=0)
    offset = 1.0 if getattr(image_processor, "rescale_offset", False) else 0.0
    scale = 255 * _rescale_factor(image_processor) if _switch(image_processor, "do_rescale") else 255.0
    return [(offset + m) / scale for m in mean], [s * a / scale for s, a in zip(std, again, strict=True)]


def to_pixel_values(images: torch.Tensor, side: int, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """What a model takes, of images in [0, 1]: resized and normalised as its processor does it, but differentiably.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): Pixels in [0, 1], any size.
        side (`int`): Side of the model's input, from [`input_size`].
        mean, std (`torch.Tensor` of shape `(3, 1, 1)`): Normalisation, from [`pixel_statistics`].
    """
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
    return (images - mean) / std


def check_processor(model, processor) -> None:
    """Raise [`InputError`] unless a processor has both its parts, and makes images of the model's size.

    What a model does with images of another size is tried on one: some interpolate their position embeddings.
    """
    if missing := [part for part in ("image_processor", "tokenizer") if not hasattr(processor, part)]:
        raise InputError(
            f"The processor is a {type(processor).__name__}, which has no {' and no '.join(missing)}: give all of the "
            "model's, AutoProcessor.from_pretrained(name)."
        )
    side, own = input_size(processor.image_processor), getattr(model.config.vision_config, "image_size", None)
    if side == own or not has_positions(model):
        return
    image = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
    try:
        with torch.no_grad(), in_eval_mode(list(model.modules())):
            family_of(model).image_features(model, image)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"The processor makes images of {side} x {side} pixels, but {type(model).__name__} takes {own} x {own}: "
            "give the model's own, AutoProcessor.from_pretrained(name), or say by image_size which size it is: the "
            "model's position embeddings are resized to that."
        ) from error


def _sides(image_processor, name: str) -> list[int]:
    """The lengths in pixels that a size names: height and width, or the shorter side."""
    size = dict(getattr(image_processor, name) or {})
    sides = [size[key] for key in ("height", "width", "shortest_edge") if size.get(key) is not None]
    if not sides or any(type(side) is not int or not 1 <= side <= LARGEST_SIDE for side in sides):
        raise InputError(f"{_setting(image_processor, name)}, but must name sides of 1 to {LARGEST_SIDE} pixels.")
    return sides


def _switch(image_processor, name: str) -> bool:
    if not isinstance(getattr(image_processor, name), bool):
        raise InputError(f"{_setting(image_processor, name)}, but must be true or false.")
    return getattr(image_processor, name)


def _rescale_factor(image_processor) -> float:
    factor = image_processor.rescale_factor
    if not _is_number(factor) or factor <= 0:
        raise InputError(f"{_setting(image_processor, 'rescale_factor')}, but must be a number above 0, mostly 1/255.")
    return factor


def _per_channel(image_processor, name: str, above: float = -math.inf) -> list[float]:
    values = getattr(image_processor, name)
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise InputError(f"{_setting(image_processor, name)}, but must have a number for each of three channels.")
    if not all(_is_number(value) and value > above for value in values):
        raise InputError(f"{_setting(image_processor, name)}, but must have numbers{' above 0' * (above == 0)}.")
    return list(values)


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _setting(image_processor, name: str) -> str:
    value = getattr(image_processor, name)
    return f"The image processor's {name} is {value!r:.100}"
