"""Augmentation of training images, by name: `HPTConfig(augmentation="crop_flip")`.

What is drawn comes from the seed, the epoch and the sample, so that no worker, process or batch changes it, and a
resumed run sees the images that an uninterrupted one sees.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageOps


AREA = (0.08, 1.0)  # of the part that is cut out, as a share of the image's
ASPECT_RATIO = (3 / 4, 4 / 3)  # its width over its height
TRIES = 10  # to draw a part that fits into the image


class CropFlip:
    """Random resized crop and horizontal flip, with which CoOp fine-tunes CLIP (Zhou et al., 2022, arXiv 2109.01134).

    A part of 8 to 100 % of the image's area, of aspect ratio 3:4 to 4:3 (Szegedy et al., 2015, arXiv 1409.4842), is
    resized bicubically to the size that the image would have without augmentation. Half of the images are mirrored.

    Args:
        seed (`int`): With the epoch and the sample's id, what a crop and a flip come from.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it change

    def set_epoch(self, epoch: int) -> None:
        """Which epoch images are drawn for from here on, counted from 0."""
        self._epoch.fill_(epoch)

    def __call__(self, sample_id: int, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """What a sample's image is in this epoch, of width and height `size`."""
        draws = np.random.default_rng([self.seed, self._epoch.item(), sample_id])
        image = image.resize(size, Image.BICUBIC, box=draw_box(*image.size, draws))
        return ImageOps.mirror(image) if draws.random() < 0.5 else image


def draw_box(width: int, height: int, draws: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image; of the largest in its middle, if none drawn fits."""
    for _ in range(TRIES):
        area = width * height * _between(*AREA, draws)
        ratio = math.exp(_between(*map(math.log, ASPECT_RATIO), draws))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(draws.random() * (width - wide + 1)), int(draws.random() * (height - high + 1))
            return left, top, left + wide, top + high
    narrowest, widest = ASPECT_RATIO
    wide, high = min(width, max(1, round(height * widest))), min(height, max(1, round(width / narrowest)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _between(low: float, high: float, draws: np.random.Generator) -> float:
    return low + (high - low) * draws.random()


AUGMENTATIONS = {"none": None, "crop_flip": CropFlip}
