"""What attacks maximise, per sample: float32 logits `(batch, classes)` and labels `(batch,)` to losses `(batch,)`."""

import torch
import torch.nn.functional as F

from hpt.errors import InputError


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`CE(z, y) = -log softmax(z)_y`."""
    _check_classes(logits, 1, "Cross-entropy")
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`max_{i != y} z_i - z_y`, above 0 where misclassified (Carlini & Wagner, 2017, arXiv 1608.04644, f_6)."""
    _check_classes(logits, 2, "The margin")
    return _best_other(logits, labels) - _at(logits, labels)


def difference_of_logits_ratio(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`DLR(z, y) = -(z_y - max_{i != y} z_i) / (z_p1 - z_p3)`, `p` sorting z downwards (arXiv 2003.01690, Eq. 6).

    Raises:
        InputError: with fewer than 3 classes, where z_p3 doesn't exist.
    """
    _check_classes(logits, 3, "The DLR loss")
    first, _, third = logits.topk(3).values.T
    return margin(logits, labels) / (first - third + 1e-12)


def targeted_difference_of_logits_ratio(logits, labels, targets) -> torch.Tensor:
    """`-(z_y - z_t) / (z_p1 - (z_p3 + z_p4) / 2)`, for a target class t (arXiv 2003.01690, Eq. 7).

    Raises:
        InputError: with fewer than 4 classes, where z_p4 doesn't exist.
    """
    _check_classes(logits, 4, "The targeted DLR loss")
    first, _, third, fourth = logits.topk(4).values.T
    return (_at(logits, targets) - _at(logits, labels)) / (first - (third + fourth) / 2 + 1e-12)


def likeliest_targets(logits: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
    """The classes with the largest logits apart from the label, `(batch, min(number, classes - 1))`."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(number, logits.shape[1] - 1)).indices


def _at(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _best_other(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def _check_classes(logits: torch.Tensor, least: int, what: str) -> None:
    if logits.dim() != 2:
        raise InputError(f"The logits have shape {tuple(logits.shape)}, but must be (batch, classes).")
    if logits.shape[1] < least:
        raise InputError(f"{what} needs at least {least} classes, and there are {logits.shape[1]}.")
