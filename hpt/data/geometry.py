"""How an image comes to the pixels that are attacked: native, `256-224`, or as a model's processor does it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from hpt.data.images import MAX_PIXELS, check_header


@dataclass(frozen=True)
class ImageTransform:
    """PIL image to uint8 RGB tensor: resize the shorter side, crop the centre; or neither, at native resolution.

    As text it is `native`, or `256-224` for 256 pixels of the shorter side and a crop of 224.

    Args:
        resize (`int`, *optional*): Pixels of the shorter side, bicubic; `None` keeps the native resolution.
        crop (`int`, *optional*): Side of the square cut from the centre; `None` doesn't crop.
    """

    resize: int | None = None
    crop: int | None = None

    def __call__(self, image: Image.Image, augment: Callable | None = None) -> torch.Tensor:
        """`PIL.Image` to uint8 `(3, height, width)`; `OSError` for one that [`check_header`] refuses,
        or that has too many pixels once it is resized.

        `augment(image, (width, height))` gives the RGB image of that size to take instead.
        """
        check_header(image)
        image = image.convert("RGB")
        image = self._resize_and_crop(image) if augment is None else augment(image, self.output_size(*image.size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        if self.resize is not None:
            width, height = self.resized_size(*image.size)
            if width * height > MAX_PIXELS:
                raise OSError(f"resized it has {width} x {height} pixels, but may have {MAX_PIXELS // 10**6} million")
            image = image.resize((width, height), Image.BICUBIC)
        if self.crop is not None:
            left, top = ((side - self.crop) // 2 for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image of this width and height is resized to."""
        scale = self.resize / min(width, height)
        return tuple(max(self.resize, round(side * scale)) for side in (width, height))

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what an image of this width and height becomes."""
        if self.crop is not None:
            return self.crop, self.crop
        return (width, height) if self.resize is None else self.resized_size(width, height)

    @property
    def attack_space(self) -> str:
        """Resolution at which images are attacked, as rows have it: `"native"` or the crop's side in pixels."""
        return "native" if self.crop is None else str(self.crop)

    def __str__(self) -> str:
        resized = "x".join(map(str, self.resize)) if isinstance(self.resize, tuple) else str(self.resize or "native")
        return resized if self.crop is None else f"{resized}-{self.crop}"


@dataclass(frozen=True)
class ProcessorTransform(ImageTransform):
    """What a processor of transformers does to an image before it rescales and normalises; from [`geometry_of`].

    Pixels equal those of a processor that resizes bicubically. As text it is `224-224`, `224x224` for images that are
    squashed to a square, or `346x346-289` for both.

    Args:
        resize (`int` or `tuple[int, int]`, *optional*): Pixels of the shorter side; or height and width, whatever
            shape the image has.
        crop (`int`, *optional*): As of [`ImageTransform`].
    """

    resize: int | tuple[int, int] | None = None

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """See [`ImageTransform`]; the longer side is rounded down, as transformers does."""
        if isinstance(self.resize, tuple):
            return self.resize[::-1]
        longer = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longer) if width <= height else (longer, self.resize)

    @property
    def attack_space(self) -> str:
        """The geometry, as rows have it: `"224-224"`, where [`ImageTransform`]s that crop to 224 have `"224"`."""
        return str(self)


# What datasets without a record can have instead of the geometry of a model's own processor
GEOMETRIES = {str(transform): transform for transform in (ImageTransform(), ImageTransform(resize=256, crop=224))}


def geometry_of(image_processor) -> ProcessorTransform:
    """How a processor of transformers brings images to its model's input size; the filter is bicubic here."""
    resize = crop = None
    if image_processor.do_resize:
        size = dict(image_processor.size)
        resize = size.get("shortest_edge") or (size["height"], size["width"])
        if hasattr(image_processor, "crop_pct"):  # ConvNeXt's, which ResNets have too
            return _geometry_of_convnext(resize, image_processor.crop_pct)
    if getattr(image_processor, "do_center_crop", False):  # SigLIP's, among others, have no such setting
        crop = dict(image_processor.crop_size)["height"]
    elif isinstance(resize, int):
        crop = resize  # towers take squares
    return ProcessorTransform(resize, crop)


def _geometry_of_convnext(side: int, crop_pct: float) -> ProcessorTransform:
    """The centre of an image that is larger by `1 / crop_pct`; from 384 pixels on, all of it, squashed."""
    return ProcessorTransform((side, side)) if side >= 384 else ProcessorTransform(int(side / crop_pct), side)


def resize_as_trained(image_processor) -> None:
    """Let a processor resize bicubically, as [`ImageTransform`] and `ZeroShotClassifier` do, with a warning."""
    if image_processor.do_resize and image_processor.resample != Image.BICUBIC:
        resample = image_processor.resample
        filter_name = "an unknown filter" if resample is None else Image.Resampling(resample).name.lower()
        warnings.warn(
            f"The target's processor resizes by {filter_name}, but images are resized bicubically here: so does the "
            "processor that is saved.",
            stacklevel=4,
        )
        image_processor.resample = Image.BICUBIC
