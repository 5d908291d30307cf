"""Targeted attacks: each sample's likeliest other classes in turn, side by side where few resist the first."""

from collections.abc import Callable

import torch

from hpt.attacks.base import AttackResult
from hpt.attacks.batch import Batch
from hpt.attacks.losses import likeliest_targets
from hpt.attacks.queries import Seeds, judge, mean_logits


def attack_each_target(
    classifier,
    batch: Batch,
    num_targets: int,
    search: Callable[..., AttackResult],
    seeds: Callable[[Batch, int], Seeds],
) -> AttackResult:
    """Search towards one class after the other, each on the samples that are still classified right.

    The first is tried alone, since it breaks most of what breaks at all. Where the samples that it leaves fit into a
    batch several times, so many of their other targets are tried side by side. A sample's image is the one that it
    would have in turn: that of the first target which breaks it, or else of the largest margin.

    Args:
        classifier: From [`float_logits`]; a randomised one is attacked towards one class at a time.
        batch ([`Batch`]): All samples; those misclassified from the start stay as they are.
        num_targets (`int`): Classes for each, the likeliest apart from its label, at most all the others.
        search: From the classifier and samples with `targets` to an [`AttackResult`].
        seeds: [`Attack.seeds`] of the attack; its judgements are steps from -1 downwards.
    """
    logits = mean_logits(classifier, batch.images, seeds(batch, -1))
    targets = likeliest_targets(logits, batch.labels, num_targets)
    images, zero_gradient = batch.images.clone(), torch.zeros_like(batch.labels, dtype=torch.bool)
    worst, right = judge(classifier, batch.images, batch.labels, seeds(batch, -1))
    left, tried = right.nonzero().squeeze(1), 0
    while len(left) > 0 and tried < targets.shape[1]:
        most = _side_by_side(classifier, len(left)) if tried else 1
        towards = targets[left, tried : tried + most]
        number = towards.shape[1]
        copies = batch.take(left.repeat_interleave(number))._replace(targets=towards.flatten())
        result = search(classifier, copies)
        margins, right = judge(classifier, result.images, copies.labels, seeds(copies, -2 - tried))
        margins, wrong = margins.view(-1, number), ~right.view(-1, number)
        broken = wrong.any(1)
        chosen = torch.where(broken, wrong.int().argmax(1), margins.argmax(1))  # the first of equal ones
        reached = margins.gather(1, chosen[:, None]).squeeze(1)
        in_turn = torch.arange(number, device=left.device) <= torch.where(broken, chosen, number - 1)[:, None]
        zero_gradient[left] |= (result.zero_gradient.view(-1, number) & in_turn).any(1)
        worse = (reached > worst[left]) | broken
        rows = torch.arange(len(left), device=left.device) * number + chosen
        images[left[worse]], worst[left[worse]] = result.images[rows[worse]], reached[worse]
        left, tried = left[~broken], tried + number
    return AttackResult(images, zero_gradient)


def _side_by_side(classifier, samples: int) -> int:
    """How many targets of so many samples fill a batch."""
    if classifier.batch_size is None or classifier.randomised:
        return 1
    return max(1, classifier.batch_size // samples)
