"""What a class must offer to be attacked, scored or learned from: said here, for all of hpt.

class Resized:  # any callable will do, a function or a module too
    def __init__(self, network):
        self.network = network

    def __call__(self, images):  # (batch, 3, height, width) in [0, 1] -> (batch, classes)
        return self.network(F.interpolate(images, (32, 32)) * 2 - 1)

PGD(eps="8/255")(Resized(network), images, labels)
HPTTrainer(..., proxy=Resized(network))

A classifier that draws random numbers says so, and takes them from seeds:

class Noisy:
    randomised = True

    def __init__(self, network):
        self.network = network

    def __call__(self, images, seeds):  # (batch, 3, height, width), (batch,) -> (batch, classes)
        noise = draw_uniform(seeds, *images.shape[1:]).to(images) - 0.5
        return self.network(images + 0.1 * noise)

PGD(eps="8/255", eot=20)(Noisy(network), images, labels)  # the gradient averaged over 20 draws
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch

from hpt.errors import InputError


@runtime_checkable
class Classifier(Protocol):
    """A function of images to logits: a `torch.nn.Module`, a [`ZeroShotClassifier`], or any other callable.

    Images are `(batch, 3, height, width)` with pixels in [0, 1]; whatever the model wants of resizing and normalising
    happens inside. Logits are `(batch, classes)`, one row per image whatever is in the batch beside it, and one column
    per class, in the order of the labels. What is attacked lets gradients through to the images. What teaches, as a
    proxy, is called without gradients, outside autocast, in eval mode if it is a module.
    """

    def __call__(self, images: torch.Tensor) -> torch.Tensor: ...


class RandomisedClassifier(Protocol):
    """A [`Classifier`] whose logits depend on chance: it has `randomised = True`, and is called with seeds.

    `seeds` is an int64 tensor `(batch,)`, an integer from 0 for each image, from which alone that image's randomness
    follows, as [`draw_uniform`] takes it: the same image with the same seed has the same logits in any batch. Seeds
    come from [`draw_seeds`], so that attacks and verdicts can be repeated, and no attack knows what a verdict draws.
    """

    randomised: bool

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class OpenClassifier(Protocol):
    """A model with a text side of its own, from which comes a classifier over any class names."""

    def with_classes(self, class_names: list[str], template: str | list[str] | None = None) -> Classifier:
        """The model as a classifier over classes, put into one prompt template or several; `None` for its own."""


def check_logits(output: torch.Tensor, images: torch.Tensor, classifier: str = "The classifier") -> None:
    """Raise [`InputError`], which begins with `classifier`, for what can't be logits of images."""
    if not isinstance(output, torch.Tensor):
        raise InputError(
            f"{classifier} gives a {type(output).__name__}, but must give logits as a tensor: give a function of "
            "images in [0, 1] that normalises them and takes the logits out of the model's output."
        )
    if output.dim() == 0 or len(output) != len(images):
        raise InputError(f"{classifier} gives logits of shape {tuple(output.shape)} for {len(images)} images.")


# Classifiers that draw random numbers

VERDICTS = 2**62  # the step whose draws decide what a classifier says of an image: no attack takes so many


def is_randomised(classifier: Classifier | RandomisedClassifier) -> bool:
    """Whether a classifier says that it draws random numbers, and so is called with seeds."""
    return bool(getattr(classifier, "randomised", False))


def draw_seeds(seed: int, sample_ids: torch.Tensor, step: int, draw: int) -> torch.Tensor:
    """A seed for each image in one draw of a randomised classifier, set by (seed, id, step, draw) alone.

    The four numbers go one after the other into SplitMix64 (Steele, Lea & Flood, 2014, doi 10.1145/2660193.2660195),
    which is a bijection of 64 bits: of the images of one draw, no two have the same 64 bits, whose upper 63 are
    returned. Neighbouring numbers give unrelated seeds.

    Args:
        seed (`int`): Of the attack, or of the evaluation.
        sample_ids (`torch.Tensor` of shape `(batch,)`): Integer ids of the samples.
        step (`int`): Of the attack, from 0, its judgements in between counting from -1 downwards; [`VERDICTS`] for
            what an evaluation scores.
        draw (`int`): Which of the step's draws, from 0.

    Returns:
        `torch.Tensor` of shape `(batch,)`: int64 on the CPU, in [0, 2**63), as generators take them.
    """
    mixed = np.zeros(len(sample_ids), np.uint64)
    for number in (seed, sample_ids.numpy(force=True), step, draw):
        mixed = _mix(mixed + np.asarray(number, np.int64).astype(np.uint64))  # modulo 2**64
    return torch.from_numpy((mixed >> 1).astype(np.int64))


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's step and its output, of unsigned 64-bit integers."""
    values = values + 0x9E3779B97F4A7C15
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)


def draw_uniform(seeds: torch.Tensor, *shape: int) -> torch.Tensor:
    """Numbers from U[0, 1) for each image from its seed alone: float32 `(batch, *shape)` on the CPU."""
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(s)) for s in seeds.tolist()])
