"""Auto-PGD: PGD that chooses its own step sizes, on cross-entropy, DLR and targeted DLR (arXiv 2003.01690)."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from hpt.attacks.base import (
    Attack,
    AttackResult,
    check_count,
    is_zero,
    project,
    random_start,
    steepest,
)
from hpt.attacks.batch import Batch
from hpt.attacks.losses import cross_entropy, difference_of_logits_ratio, targeted_difference_of_logits_ratio
from hpt.attacks.passes import passes_until_broken
from hpt.attacks.queries import gradients, unbroken
from hpt.attacks.targets import attack_each_target


MOMENTUM = 0.75  # alpha of Algorithm 1
LEAST_INCREASES = 0.75  # rho of condition 1


def checkpoint_steps(steps: int) -> list[int]:
    """Steps `w_j = ceil(p_j * steps)` after which the step size may be halved (section 3.2).

    `p_0 = 0`, `p_1 = 0.22`, `p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)`.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * steps - 1e-9) for share in shares[1:]]


@dataclass
class _Search:
    """Where the search of each sample that isn't broken yet stands; every tensor has these samples first."""

    batch: Batch
    place: torch.Tensor  # in the batch that was given
    point: torch.Tensor  # x_k
    previous: torch.Tensor  # x_{k-1}
    loss: torch.Tensor  # f(x_k)
    gradient: torch.Tensor
    best: torch.Tensor  # x_max
    best_loss: torch.Tensor  # f_max
    best_gradient: torch.Tensor
    step: torch.Tensor  # eta, (batch, 1, 1, 1)
    increases: torch.Tensor  # steps since the last checkpoint that raised the loss
    best_loss_then: torch.Tensor  # f_max at the last checkpoint
    halved_then: torch.Tensor  # whether eta was halved there

    def take(self, kept: torch.Tensor) -> "_Search":
        values = (getattr(self, field.name) for field in fields(self))
        return _Search(*(value.take(kept) if isinstance(value, Batch) else value[kept] for value in values))


class AutoPGD(Attack):
    """Auto-PGD, Algorithm 1 of Croce & Hein, 2020 (arXiv 2003.01690), in l_inf and l_2; samples leave when broken.

    Over several draws, the rule for the step size goes by the mean loss, as does the choice of the point: no sample of
    a randomised classifier leaves. AutoAttack's "rand" version averages the gradient alone, goes by the last draw's
    loss, and takes a point that one draw gets wrong.

    Args:
        eps (`float`): Radius in [0, 1] pixels.
        steps (`int`, *optional*, defaults to `100`): Gradient steps, at least 1.
        eot (`int`, *optional*, defaults to `1`): Draws of a randomised classifier at each step, over which loss and
            gradient are averaged; see `hpt.attacks.queries`.
        norm, seed: see [`Attack`].
    """

    norms = ("linf", "l2")
    leaves_early = True
    reported = ("steps",)

    def __init__(self, *, eps: float, steps: int = 100, eot: int = 1, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, norm=norm, seed=seed)
        check_count(steps, "steps")
        check_count(eot, "draws at each step (eot)")
        self.steps, self.eot = steps, eot

    def most_passes(self, num_classes: int) -> int:
        return 2 * (1 + self.steps) * self.eot

    @abstractmethod
    def _losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What is maximised, per sample, `(batch,)`."""

    def _run(self, classifier, batch: Batch) -> AttackResult:
        images = batch.images.clone()
        zero_gradient = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        search, right = self._start(classifier, batch)
        checkpoints, last = checkpoint_steps(self.steps), 0
        for step in range(self.steps + 1):
            if step > 0:
                right = self._advance(classifier, search, step)
            if step < self.steps:  # the last gradient isn't followed
                zero_gradient[search.place] |= is_zero(search.gradient)
            if not right.all():  # these leave as they are, before any goes back to an earlier point
                images[search.place[~right]] = search.point[~right]
                search = search.take(right)
            if len(search.place) == 0:
                break
            if step in checkpoints:
                self._adjust_steps(search, step - last)
                last = step
        images[search.place] = search.best
        return AttackResult(images, zero_gradient)

    def _start(self, classifier, batch: Batch) -> tuple[_Search, torch.Tensor]:
        start = random_start(batch, self.norm, self.seed)
        loss, gradient, right = self._evaluate(classifier, batch, start, 0)
        none = torch.zeros(len(start), dtype=torch.long, device=start.device)
        place, eta = torch.arange(len(start), device=start.device), 2 * batch.eps
        state = (start, start, loss, gradient, start, loss, gradient, eta, none, loss, none.bool())
        return _Search(batch, place, *state), right

    def _evaluate(self, classifier, batch: Batch, point: torch.Tensor, step: int):
        """Loss and its gradient, over the draws of a step their means, and whether it is unbroken, of each sample."""

        def losses(shown: torch.Tensor, samples: Batch, drawn: torch.Tensor | None) -> Sequence[torch.Tensor]:
            logits = classifier(shown, drawn)
            return self._losses(logits, samples), unbroken(classifier, logits.detach(), samples.labels).float()

        gradient, loss, right = gradients(classifier, losses, point, batch, self.seeds(batch, step))
        return loss, gradient, right > 0

    def _advance(self, classifier, search: _Search, step: int) -> torch.Tensor:
        """One step of each sample, in place; returns which are still right."""
        s, momentum = search, MOMENTUM if step > 1 else 1.0
        # z = P(x_k + eta * direction(grad f(x_k)))
        z = project(s.point + s.step * steepest(s.gradient, self.norm), s.batch, self.norm)
        # x_{k+1} = P(x_k + alpha (z - x_k) + (1 - alpha) (x_k - x_{k-1}))
        moved = s.point + momentum * (z - s.point) + (1 - momentum) * (s.point - s.previous)
        s.previous, s.point = s.point, project(moved, s.batch, self.norm)
        loss, s.gradient, right = self._evaluate(classifier, s.batch, s.point, step)
        s.increases = s.increases + (loss > s.loss)
        s.loss, better = loss, loss > s.best_loss
        s.best_loss = torch.where(better, loss, s.best_loss)
        s.best = torch.where(_per_sample(better, s.point), s.point, s.best)
        s.best_gradient = torch.where(_per_sample(better, s.point), s.gradient, s.best_gradient)
        return right

    def _adjust_steps(self, search: _Search, period: int) -> None:
        """Halve eta and go back to x_max where the loss rose too seldom (1) or x_max and eta are as before (2)."""
        s = search
        halve = s.increases < LEAST_INCREASES * period  # condition 1
        halve = halve | (~s.halved_then & (s.best_loss_then == s.best_loss))  # condition 2
        back = _per_sample(halve, s.point)
        s.step = torch.where(back, s.step / 2, s.step)
        s.point = torch.where(back, s.best, s.point)
        s.gradient = torch.where(back, s.best_gradient, s.gradient)
        s.loss = torch.where(halve, s.best_loss, s.loss)
        s.increases, s.best_loss_then, s.halved_then = torch.zeros_like(s.increases), s.best_loss, halve


def _per_sample(flags: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return flags.view(-1, *[1] * (images.dim() - 1))


class APGDCE(AutoPGD):
    """Auto-PGD on cross-entropy; see [`AutoPGD`]."""

    name = "apgd-ce"

    def _losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return cross_entropy(logits, batch.labels)


class APGDDLR(AutoPGD):
    """Auto-PGD on the difference of logits ratio, which no rescaling of the logits changes; see [`AutoPGD`]."""

    name = "apgd-dlr"
    min_classes = 3

    def _losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return difference_of_logits_ratio(logits, batch.labels)


class APGDT(AutoPGD):
    """Auto-PGD on the targeted DLR, once for each of the likeliest other classes; see [`AutoPGD`].

    Args:
        num_targets (`int`, *optional*, defaults to `9`): Target classes, at most all the others.
        eps, steps, eot, norm, seed: see [`AutoPGD`].
    """

    name = "apgd-t"
    min_classes = 4
    reported = ("steps", "num_targets")

    def __init__(
        self, *, eps: float, steps: int = 100, num_targets: int = 9, eot: int = 1, norm: str = "linf", seed: int = 0
    ):
        super().__init__(eps=eps, steps=steps, eot=eot, norm=norm, seed=seed)
        check_count(num_targets, "target classes")
        self.num_targets = num_targets

    def most_passes(self, num_classes: int) -> int:
        targets = min(self.num_targets, num_classes - 1)
        return self.eot + passes_until_broken([super().most_passes(num_classes)] * targets, self.eot)

    def _losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return targeted_difference_of_logits_ratio(logits, batch.labels, batch.targets)

    def _run(self, classifier, batch: Batch) -> AttackResult:
        return attack_each_target(classifier, batch, self.num_targets, super()._run, self.seeds)
