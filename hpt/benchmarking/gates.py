"""Whether variants compute the same thing, looked at in float32 before any of them is timed."""

from collections.abc import Callable
from typing import NamedTuple

import torch


# How far a variant may be from the reference
LIMITS = {"loss": 1e-5, "adversarial entries": 1e-4, "gradient": 1e-4, "verdicts": 0.0}
ROUNDING = 1e-6  # of pixels in [0, 1], after a few steps of at least eps / 4


class Outcome(NamedTuple):
    """What a step or an evaluation comes to.

    Args:
        adversarial (`torch.Tensor` of shape `(batch, 3, height, width)`, *optional*): The attacked images.
        loss (`torch.Tensor`, *optional*): A scalar, of a step.
        right (`torch.Tensor` of shape `(batch,)`, bool, *optional*): Verdicts, of an evaluation.
        gradient (`dict[str, torch.Tensor]`, *optional*): Of the trained weights, by name, of a step.
    """

    adversarial: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    right: torch.Tensor | None = None
    gradient: dict[str, torch.Tensor] | None = None


def gradient_of(model) -> dict[str, torch.Tensor]:
    """What a backward pass has left in the weights."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def differences(own: Outcome, reference: Outcome) -> dict[str, float]:
    """How far two outcomes are apart, by the names in [`LIMITS`].

    The loss in absolute terms; of the adversarial entries the share that differ by more than rounding; the gradient
    by the norm of the difference over the norm, of the weights that train in `own`; of the verdicts the share.
    """
    apart = {}
    if own.adversarial is not None:
        apart["adversarial entries"] = _share((own.adversarial - reference.adversarial).abs() > ROUNDING)
    if own.loss is not None:
        apart["loss"] = (own.loss - reference.loss).abs().item()
    if own.gradient is not None:
        exact = [reference.gradient[name] for name in own.gradient]
        apart["gradient"] = relative_distance(list(own.gradient.values()), exact)
    if own.right is not None:
        apart["verdicts"] = _share(own.right != reference.right)
    return apart


def relative_distance(own: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Norm of the difference of two vectors, given in parts, over the norm of the second."""
    squares = [((a - b).square().sum(), b.square().sum()) for a, b in zip(own, exact, strict=True)]
    difference, norm = (sum(column).sqrt() for column in zip(*squares, strict=True))
    return (difference / norm).item()


def _share(differ: torch.Tensor) -> float:
    return differ.float().mean().item()


def faults_of(name: str, apart: dict[str, float]) -> list[str]:
    """A line for each limit that a variant is beyond, NaN among them."""
    return [
        f"{name} isn't timed: it differs from the reference in {what} by {difference:.2g}, where {LIMITS[what]:g} is "
        "allowed."
        for what, difference in apart.items()
        if not difference <= LIMITS[what]
    ]


class Gate(NamedTuple):
    """What looking at variants has come to.

    Args:
        equal (`list[str]`): The variants that may be timed, the reference among them.
        further (`dict[str, list[float]]`): How far each of the others was from the reference.
        faults (`list[str]`): A line for each limit that one is beyond.
    """

    equal: list[str]
    further: dict[str, list[float]]
    faults: list[str]


def check_equal(variants: dict[str, Callable[[], Outcome]], reference: str) -> Gate:
    """Run each variant once, and compare what it comes to with the reference."""
    exact = variants[reference]()
    gate = Gate([reference], {}, [])
    for name, run in variants.items():
        if name != reference:
            apart = differences(run(), exact)
            faults = faults_of(name, apart)
            gate.further.update({f"{name}: difference in {what}": [value] for what, value in apart.items()})
            gate.faults.extend(faults)
            gate.equal.extend([] if faults else [name])
    return gate
