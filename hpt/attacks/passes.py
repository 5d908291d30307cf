"""How much attacks compute: passes of an image through a model, forward or backward, at most and as they happen."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from contextvars import ContextVar

import torch


_NOTE: ContextVar[Callable[[int], None] | None] = ContextVar("note", default=None)


@contextmanager
def watch_passes(note: Callable[[int], None]):
    """Within, every call of a classifier by an attack, or to score it, gives `note` the passes of its images."""
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)


def note_passes(images: torch.Tensor) -> None:
    """A classifier was called on images: forward, and if they want a gradient, a backward pass follows."""
    note = _NOTE.get()
    if note is not None:
        note(len(images) * (2 if images.requires_grad else 1))


def passes_until_broken(attempts: Iterable[int], draws: int = 1) -> int:
    """Most passes of [`~hpt.attacks.base.attack_until_broken`]: those of its attempts, each judged, and the first.

    Args:
        attempts: Most passes of each.
        draws (`int`, *optional*, defaults to 1): Of a randomised classifier, in a judgement.
    """
    return draws + sum(passes + draws for passes in attempts)
