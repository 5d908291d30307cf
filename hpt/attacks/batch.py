"""What an attack is given: images, labels, ids and radii, taken where they can be meant and refused otherwise."""

import math
from typing import NamedTuple

import torch

from hpt.errors import InputError
from hpt.radius import Radius


ROUNDING = 1e-5  # how far outside [0, 1] a pixel may be, such as after normalisation was undone
DTYPES = (torch.float32, torch.float64)  # whose steps are far finer than an eps of 1/255


class Batch(NamedTuple):
    """The samples under attack; every field has them along its first axis.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): Clean images in [0, 1].
        labels (`torch.Tensor` of shape `(batch,)`): True classes.
        sample_ids (`torch.Tensor` of shape `(batch,)`, *optional*): What fixes their noise.
        eps (`torch.Tensor` of shape `(batch, 1, 1, 1)`): Radii.
        targets (`torch.Tensor` of shape `(batch,)`, *optional*): Classes that a targeted attack moves towards.
        draw_ids (`torch.Tensor` of shape `(batch,)`, *optional*): What fixes the draws of a randomised classifier,
            if one is attacked.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor | None
    eps: torch.Tensor
    targets: torch.Tensor | None = None
    draw_ids: torch.Tensor | None = None

    def take(self, index: torch.Tensor) -> "Batch":
        """The samples at `index`, integers or a bool mask."""
        return Batch(*(None if field is None else field[index.to(field.device)] for field in self))

    def split(self, size: int) -> list["Batch"]:
        """The samples in order, in batches of at most so many; views."""
        starts = range(0, len(self.images), size)
        return [Batch(*(None if field is None else field[at : at + size] for field in self)) for at in starts]

    def with_draws(self) -> "Batch":
        """For a randomised classifier: its draws follow from the ids; without, from torch's global generator."""
        ids = torch.randint(2**62, (len(self.images),)) if self.sample_ids is None else self.sample_ids.cpu()
        return self._replace(draw_ids=ids)


def make_batch(images, labels, sample_ids, eps, radius: Radius) -> Batch:
    """The batch that an attack of a radius was given; labels may be integers of any type, and any sequence of them.

    Pixels and labels aren't looked at, which would wait for their device: see [`check_values`].

    Raises:
        InputError: for images that aren't `(batch, 3, height, width)` in float32 or float64, labels or ids that aren't
            an integer for each, or radii that aren't one for each.
    """
    _check_images(images)
    labels = _integers(labels, "labels", len(images)).to(images.device, torch.long)
    if sample_ids is not None:
        sample_ids = _integers(sample_ids, "sample_ids", len(images))
    if eps is None:
        eps = images.new_full((len(images),), radius)
    else:
        _check_radii(eps, len(images), radius.norm)
    eps = eps.to(images).view(-1, 1, 1, 1)
    return Batch(_outside_inference(images), _outside_inference(labels), sample_ids, _outside_inference(eps))


def check_values(batch: Batch) -> int:
    """The highest label of at least one image; [`InputError`] for pixels outside [0, 1] and labels below 0."""
    least, most = torch.stack(batch.images.aminmax()).tolist()
    if math.isnan(least):
        raise InputError("The images have pixels that are NaN.")
    if least < -ROUNDING or most > 1 + ROUNDING:
        raise InputError(
            f"The images' pixels go from {least:.4g} to {most:.4g}, but an attack needs them in [0, 1]: give images "
            "before normalisation, which belongs inside the classifier, and divide 0..255 by 255."
        )
    lowest, highest = torch.stack(batch.labels.aminmax()).tolist()
    if lowest < 0:
        raise InputError(f"A label is {lowest}, but classes are numbered from 0: leave unlabelled images out.")
    return highest


def _check_images(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor):
        raise InputError(f"The images are a {type(images).__name__}, but must be a tensor of pixels in [0, 1].")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise InputError(f"The images have shape {tuple(images.shape)}, but must be (batch, 3, height, width).")
    if images.dtype not in DTYPES:
        what = "images.float()" if images.is_floating_point() else "images / 255"
        raise InputError(
            f"The images are {_name(images.dtype)}, but must be float32 or float64, whose steps are far finer than an "
            f"eps of 1/255: give {what}; the classifier may compute in any dtype."
        )


def _integers(values, what: str, number: int) -> torch.Tensor:
    """One integer for each of so many images."""
    values = torch.as_tensor(values)
    if values.shape != (number,):
        hint = ": give each image's class by its number, as labels.argmax(1) does" if values.dim() == 2 else ""
        raise InputError(f"The {what} have shape {tuple(values.shape)}, but there are {number} images{hint}.")
    if values.is_floating_point():
        raise InputError(f"The {what} are {_name(values.dtype)}, but must be integers.")
    return values


def _check_radii(eps: torch.Tensor, number: int, norm: str) -> None:
    """Radii of images' own, each as [`Radius`] has them."""
    if not isinstance(eps, torch.Tensor) or eps.shape != (number,):
        raise InputError(f"eps of a call is a tensor with a radius for each image, of shape ({number},).")
    for value in eps.unique().tolist():
        Radius(value, norm)


def _outside_inference(values: torch.Tensor) -> torch.Tensor:
    """Values that autograd may keep, as it may not those made under `torch.inference_mode`."""
    return values.clone() if values.is_inference() else values.detach()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
