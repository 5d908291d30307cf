"""How images come to a model's size: in open_clip's words for it, and by settings of CLIP's image processor."""

from typing import Any

from PIL.Image import Resampling

from hpt.errors import InputError


RESAMPLING = {"bicubic": int(Resampling.BICUBIC), "bilinear": int(Resampling.BILINEAR)}
SHORTEST, SQUASH = "shortest", "squash"  # the shorter side to the size, then cropped; or both sides, without a crop
NAMES = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


def resizing(side: int, mode: str = SHORTEST, interpolation: str = "bicubic") -> dict[str, Any]:
    """Settings of [`~transformers.CLIPImageProcessor`], [`NAMES`], for square images of `side` pixels."""
    square, crops = {"height": side, "width": side}, mode == SHORTEST
    size = {"shortest_edge": side} if crops else square
    return dict(zip(NAMES, (True, size, RESAMPLING[interpolation], crops, square), strict=True))


def resizing_settings(image_processor) -> dict[str, Any]:
    """The same settings of an image processor."""
    settings = {name: getattr(image_processor, name) for name in NAMES}
    sizes = {name: settings[name] or {} for name in ("size", "crop_size")}
    plain = {name: {key: side for key, side in dict(size).items() if side is not None} for name, size in sizes.items()}
    return settings | plain | {"resample": int(settings["resample"])}


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
