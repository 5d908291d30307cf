"""What a class must offer to be attacked, scored or learned from: said here, for all of hpt.

class Resized:  # any callable will do, a function or a module too
    def __init__(self, network):
        self.network = network

    def __call__(self, images):  # (batch, 3, height, width) in [0, 1] -> (batch, classes)
        return self.network(F.interpolate(images, (32, 32)) * 2 - 1)

PGD(eps="8/255")(Resized(network), images, labels)
HPTTrainer(..., proxy=Resized(network))
"""

from typing import Protocol, runtime_checkable

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
