"""How images come to a model's size: in open_clip's words for it, and by settings of CLIP's image processor."""

from typing import Any

from PIL.Image import Resampling

from hpt.errors import InputError
from hpt.models.processors import input_size


RESAMPLING = {"bicubic": int(Resampling.BICUBIC), "bilinear": int(Resampling.BILINEAR)}
SHORTEST, SQUASH = "shortest", "squash"  # the shorter side to the size, then cropped; or both sides, without a crop
NAMES = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


def resizing(side: int, mode: str = SHORTEST, interpolation: str = "bicubic") -> dict[str, Any]:
    """Settings of [`~transformers.CLIPImageProcessor`], [`NAMES`], for square images of `side` pixels."""
    square, crops = {"height": side, "width": side}, mode == SHORTEST
    size = {"shortest_edge": side} if crops else square
    return dict(zip(NAMES, (True, size, RESAMPLING[interpolation], crops, square), strict=True))


def resizing_settings(image_processor) -> dict[str, Any]:
    """The same settings of an image processor; a size that it makes no use of is that of its square images."""
    used = {"size": bool(image_processor.do_resize), "crop_size": bool(image_processor.do_center_crop)}
    square = dict.fromkeys(("height", "width"), input_size(image_processor))
    sizes = {name: dict(getattr(image_processor, name)) if used[name] else square for name in used}
    plain = {name: {key: side for key, side in size.items() if side is not None} for name, size in sizes.items()}
    crops, resample = used["crop_size"], int(image_processor.resample)
    return dict(zip(NAMES, (used["size"], plain["size"], resample, crops, plain["crop_size"]), strict=True))


def resizing_of(name: str, image_processor, side: int) -> tuple[str, str]:
    """Mode and interpolation that say the same as an image processor's settings.

    Raises:
        InputError: if none do.
    """
    settings = resizing_settings(image_processor)
    for mode in (SHORTEST, SQUASH):
        for interpolation in RESAMPLING:
            if settings == resizing(side, mode, interpolation):
                return mode, interpolation
    raise InputError(
        f"open_clip prepares images otherwise than {name!r}: it resizes the shorter side to {side} pixels and crops, "
        f"or both sides, bicubic or bilinear; the image processor has {settings}."
    )
