"""What attacks ask of a classifier: its logits, who is right, and means over the draws of a randomised one.

A deterministic classifier is asked once. Of a randomised one `f_t`, a step makes `eot` draws of `t` and climbs the
mean of their losses, which estimates `E_t L(f_t(x), y)`: expectation over transformation (Athalye et al., 2018, arXiv
1707.07397; arXiv 1802.00420, section 4.2). None of its images ever counts as broken, for its next draw may be right:
each is attacked to the end, and the point or attempt with the largest mean is kept.

An attack may be given more samples than go through a model at once: it is asked about at most `batch_size` of them, so
that those which are left share full batches, from whichever batches they come.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import starmap

import torch

from hpt.attacks.batch import Batch
from hpt.attacks.losses import margin
from hpt.attacks.passes import note_passes
from hpt.classifiers import Classifier, RandomisedClassifier, check_logits, is_randomised
from hpt.errors import InputError


Seeds = Sequence[torch.Tensor | None]  # of each draw, `(batch,)`; a single `None` where nothing is drawn


def float_logits(classifier: Classifier | RandomisedClassifier, highest_label: int = 0, batch_size: int | None = None):
    """The classifier with logits in float32 or wider; [`InputError`] if it gives what can't be logits of the images.

    Args:
        classifier: From images to logits, or, for an attack with a loss of its own, to anything with a row for each.
        highest_label (`int`, *optional*, defaults to 0): Of the images' labels, a class that it must have.
        batch_size (`int`, *optional*): Most images that it is shown at once. By default all that there are.

    Returns:
        A function of images and, *optional*, `seeds`, which a randomised classifier is given and another isn't.
    """
    randomised = is_randomised(classifier)

    def show(images: torch.Tensor, seeds: torch.Tensor | None) -> torch.Tensor:
        shown = images.clone()  # which the classifier may change in place
        output = classifier(shown, seeds=seeds) if randomised else classifier(shown)
        _check_logits(output, images, highest_label)
        note_passes(images)
        return output.to(images.device, torch.promote_types(output.dtype, torch.float32))

    def logits(images: torch.Tensor, seeds: torch.Tensor | None = None) -> torch.Tensor:
        if batch_size is None or len(images) <= batch_size:
            return show(images, seeds)
        return torch.cat(list(starmap(show, _parts(batch_size, images, seeds))))

    logits.randomised, logits.batch_size = randomised, batch_size
    return logits


def _parts(size: int, images: torch.Tensor, *others) -> Iterable[tuple]:
    """Images in parts of at most so many, each with its rows of the others, where these aren't `None`."""
    parts = images.split(size)
    others = [[None] * len(parts) if each is None else each.split(size) for each in others]
    return zip(parts, *others, strict=True)


def gradients(
    classifier, losses: Callable[..., Sequence[torch.Tensor]], point: torch.Tensor, batch: Batch, seeds: Seeds
) -> list[torch.Tensor]:
    """The gradient of each sample's loss at a point, over draws its mean; at most `batch_size` of them at once.

    Args:
        classifier: From [`float_logits`].
        losses (`Callable`): From points that want a gradient, their [`Batch`] and their seeds in a draw to the losses
            `(n,)`, and whatever else is wanted, with a row for each.
        point (`torch.Tensor` of shape `(batch, 3, height, width)`): Where.
        batch ([`Batch`]): The samples.
        seeds: [`Attack.seeds`] of the step.

    Returns:
        `list[torch.Tensor]`: gradients in the shape of the point, then what `losses` gives, detached.
    """

    def ask(shown: torch.Tensor, samples: Batch, drawn: torch.Tensor | None) -> list[torch.Tensor]:
        shown = shown.detach().requires_grad_()
        found = losses(shown, samples, drawn)
        # Summed, not averaged: the batch size must not push small gradients into underflow.
        (gradient,) = torch.autograd.grad(found[0].sum(), shown)  # of the image alone, none for the weights
        return [gradient, *(values.detach() for values in found)]

    def draw(drawn: torch.Tensor | None) -> list[torch.Tensor]:
        size = classifier.batch_size
        if size is None or len(point) <= size:
            return ask(point, batch, drawn)
        parts = list(starmap(ask, _parts(size, point, batch, drawn)))
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    return mean_over(map(draw, seeds))


def _check_logits(output: torch.Tensor, images: torch.Tensor, highest_label: int) -> None:
    check_logits(output, images)
    if output.dim() == 2 and output.shape[1] <= highest_label:
        raise InputError(f"A label is {highest_label}, but the classifier's classes go to {output.shape[1] - 1}.")
    if images.requires_grad and not output.requires_grad:
        raise InputError("The classifier's logits have no gradient: it mustn't detach them or run under no_grad.")


def judge(classifier, images: torch.Tensor, labels: torch.Tensor, seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor]:
    """The margin of each image, over draws the mean, and whether it is [`unbroken`]; without gradients."""

    def draw(drawn: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        logits = classifier(images, drawn)
        return margin(logits, labels), unbroken(classifier, logits, labels).float()

    with torch.no_grad():
        margins, right = mean_over(map(draw, seeds))
    return margins, right > 0


def unbroken(classifier, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of which images, `(batch,)`, the attack goes on: those classified right, and of a randomised classifier all."""
    return (logits.argmax(-1) == labels) | is_randomised(classifier)


def mean_logits(classifier, images: torch.Tensor, seeds: Seeds) -> torch.Tensor:
    """Logits of images, over draws their mean; without gradients."""
    with torch.no_grad():
        (logits,) = mean_over((classifier(images, drawn),) for drawn in seeds)
    return logits


def mean_over(draws: Iterable[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """The means of what each draw gives, of which one after the other is in memory; of a single draw, exactly that."""
    draws = iter(draws)
    totals, number = list(next(draws)), 1
    for values in draws:
        totals = [total + value for total, value in zip(totals, values, strict=True)]
        number += 1
    return [total / number for total in totals]
