"""What all attacks share: the contract, its checks, reproducible noise, and leaving the model as it was."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hpt.errors import InputError


Classifier = Callable[[torch.Tensor], torch.Tensor]


class AttackResult(NamedTuple):
    """What an attack found.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`):
            Adversarial images in [0, 1], within eps of the originals.
        zero_gradient (`torch.Tensor` of shape `(batch,)`, bool):
            Whether the gradient of an image was exactly zero at some step, a sign of gradient masking.
    """

    images: torch.Tensor
    zero_gradient: torch.Tensor


def check_eps(eps: float, norm: str = "linf") -> None:
    """Refuse a radius that can't be meant: eps is in [0, 1] pixels, such as 8/255."""
    if norm != "linf":
        raise InputError(f"Unknown norm {norm!r}; known: linf.")
    if not eps > 0:
        raise InputError(f"eps is {eps:g}, but must be above 0, such as 1/255.")
    if eps >= 1:
        raise InputError(f"eps is {eps:g}, but pixels are in [0, 1] and l_inf eps below 1: did you mean {eps:g}/255?")


def check_step_size(step_size: float, eps: float) -> None:
    """Refuse a step that isn't positive or leaves the eps-ball from any point in it."""
    if not 0 < step_size <= 2 * eps:
        raise InputError(
            f"The attack's step size is {step_size:g}, but must be above 0 and at most 2 * eps = {2 * eps:g}, the "
            "diameter of the eps-ball."
        )


class Attack(ABC):
    """Base of all attacks. They change nothing but the image: no `.grad`, no mode, no BatchNorm statistics.

    Args:
        eps (`float`): Radius of the ball around each image, in [0, 1] pixels, such as `8/255`.
        norm (`str`, *optional*, defaults to `"linf"`): Norm of the ball.
        seed (`int`, *optional*, defaults to `0`): With a sample's id, fixes that sample's noise.

    Raises:
        InputError: if eps isn't above 0 or, in l_inf, not below 1; if the norm is unknown.
    """

    def __init__(self, *, eps: float, norm: str = "linf", seed: int = 0):
        check_eps(eps, norm)
        self.eps, self.norm, self.seed = eps, norm, seed

    def __call__(self, classifier: Classifier, images, labels, sample_ids=None) -> torch.Tensor:
        """Adversarial images; see [`perturb`](Attack.perturb)."""
        return self.perturb(classifier, images, labels, sample_ids).images

    def perturb(self, classifier: Classifier, images, labels, sample_ids=None) -> AttackResult:
        """Attack each image within its eps-ball.

        Args:
            classifier: Any callable from images `(batch, 3, height, width)` in [0, 1] to logits `(batch, classes)`.
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): Clean images in [0, 1].
            labels (`torch.Tensor` of shape `(batch,)`): True classes.
            sample_ids (`torch.Tensor` of shape `(batch,)`, *optional*): Integer ids of the samples. With them, noise
                depends on (seed, id) alone, so that no batching or process count changes it; without, it comes
                from torch's global generator.
        """
        with torch.enable_grad(), batch_norm_untouched(classifier):
            return self._run(classifier, images.detach(), labels, sample_ids)

    @abstractmethod
    def _run(self, classifier: Classifier, images, labels, sample_ids) -> AttackResult:
        """The attack itself, with gradients enabled; returns detached images."""


def uniform_noise(images: torch.Tensor, seed: int, sample_ids: torch.Tensor | None) -> torch.Tensor:
    """Noise from U[-1, 1) in the shape of `images`; the same for the same (seed, id), whatever the batch."""
    noise = torch.empty_like(images)
    if sample_ids is None:
        return noise.uniform_(-1, 1)
    generator = torch.Generator(images.device)
    for row, sample_id in zip(noise, sample_ids.tolist(), strict=True):
        # Torch's CPU generator keeps the low 32 bits of a seed: a prime stride separates neighbouring seeds there.
        row.uniform_(-1, 1, generator=generator.manual_seed(seed * 1_000_003 + sample_id))
    return noise


@contextmanager
def batch_norm_untouched(classifier: Classifier):
    """Keep normalisation layers in training mode from updating their running statistics, without changing mode."""
    modules = classifier.modules() if isinstance(classifier, nn.Module) else ()
    tracking = [m for m in modules if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
