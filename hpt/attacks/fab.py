"""FAB-T: the nearest decision boundary to each of the likeliest other classes, in l_inf (arXiv 1907.02044)."""

from collections.abc import Sequence

import torch

from hpt.attacks.base import Attack, AttackResult, check_count, is_zero
from hpt.attacks.batch import Batch
from hpt.attacks.passes import passes_until_broken
from hpt.attacks.queries import Seeds, gradients, mean_logits, unbroken
from hpt.attacks.targets import attack_each_target


MAX_BIAS = 0.1  # alpha_max: how far a step leans towards the clean image
OVERSHOOT = 1.05  # eta: how far a step goes beyond the linearised boundary
BACKWARD = 0.9  # beta: how much of its way a misclassified point keeps before it searches on
NEWTON_STEPS = 100  # at most, in a projection; a handful is usual


class FABT(Attack):
    """Targeted fast adaptive boundary attack (Croce & Hein, 2020, arXiv 1907.02044, Algorithm 1), in l_inf.

    For each of the likeliest other classes, the boundary to it is linearised again and again, and approached from the
    current and from the clean point, to find a misclassified point as near to the clean image as possible. It needs
    no eps; a sample counts as broken when the point found is within eps, and then its search ends.

    Args:
        eps (`float`): Radius in [0, 1] pixels.
        steps (`int`, *optional*, defaults to `100`): Linearisations for each target class.
        num_targets (`int`, *optional*, defaults to `9`): Target classes, at most all the others.
        norm, seed: see [`Attack`]; there is no noise in it.
    """

    name = "fab-t"
    leaves_early = True
    reported = ("steps", "num_targets")

    def __init__(self, *, eps: float, steps: int = 100, num_targets: int = 9, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, norm=norm, seed=seed)
        check_count(steps, "steps")
        check_count(num_targets, "target classes")
        self.steps, self.num_targets = steps, num_targets

    def most_passes(self, num_classes: int) -> int:
        targets = min(self.num_targets, num_classes - 1)
        return 1 + passes_until_broken(
            [3 * self.steps] * targets
        )  # to the boundary and back, and to see whether it is

    def _run(self, classifier, batch: Batch) -> AttackResult:
        return attack_each_target(classifier, batch, self.num_targets, self._search, self.seeds)

    def _search(self, classifier, batch: Batch) -> AttackResult:
        """Approach one class's boundary; where no point within eps is adversarial, the image stays clean."""
        adversarial = batch.images.clone()
        zero_gradient = torch.zeros(len(adversarial), dtype=torch.bool, device=adversarial.device)
        place, point = torch.arange(len(adversarial), device=adversarial.device), batch.images
        for step in range(self.steps):
            gap, gradient = _gap_to_target(classifier, batch, point, self.seeds(batch, step))
            zero_gradient[place] |= is_zero(gradient)
            point = _approach(batch.images, point, gap, gradient)
            logits = mean_logits(classifier, point, self.seeds(batch, -1 - step))
            wrong = logits.argmax(-1) != batch.labels
            distance = _linf(point - batch.images)
            broken = wrong & (distance <= batch.eps).flatten()
            adversarial[place[broken]] = point[broken]
            kept = ~broken | unbroken(classifier, logits, batch.labels)
            if not kept.any():
                break
            # Back towards the clean image, to reach the boundary again nearer to it.
            nearer = batch.images + BACKWARD * (point - batch.images)
            point = torch.where(wrong.view(-1, *[1] * (point.dim() - 1)), nearer, point)
            if not kept.all():
                point, place, batch = point[kept], place[kept], batch.take(kept)
        return AttackResult(adversarial, zero_gradient)


def _gap_to_target(classifier, batch: Batch, point: torch.Tensor, seeds: Seeds) -> tuple[torch.Tensor, torch.Tensor]:
    """`f = z_t - z_y`, negative on the label's side of the boundary, and its gradient."""

    def gaps(shown: torch.Tensor, samples: Batch, drawn: torch.Tensor | None) -> Sequence[torch.Tensor]:
        logits = classifier(shown, drawn)
        return [(logits.gather(1, samples.targets[:, None]) - logits.gather(1, samples.labels[:, None])).squeeze(1)]

    gradient, gap = gradients(classifier, gaps, point, batch, seeds)
    return gap, gradient


def _approach(clean: torch.Tensor, point: torch.Tensor, gap: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """One step of Algorithm 1 from `x_k = point` with `x = clean`, towards `f(x_k) + <grad f(x_k), . - x_k> = 0`."""
    from_point = project_onto_hyperplane(point, gradient, gap)  # d of proj(x_k)
    gap_at_clean = gap + (gradient * (clean - point)).flatten(1).sum(1)
    from_clean = project_onto_hyperplane(clean, gradient, gap_at_clean)  # d of proj(x)
    near, far = _linf(from_point).clamp(min=1e-8), _linf(from_clean).clamp(min=1e-8)
    bias = (near / (near + far)).clamp(max=MAX_BIAS)  # alpha
    # x_{k+1} = proj_C((1 - alpha) (x_k + eta d_k) + alpha (x + eta d))
    stepped = (1 - bias) * (point + OVERSHOOT * from_point) + bias * (clean + OVERSHOOT * from_clean)
    return stepped.clamp(0, 1)


def project_onto_hyperplane(points: torch.Tensor, gradient: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """The least change in l_inf that takes points in [0, 1] onto `gap + <gradient, change> = 0` within [0, 1].

    Every pixel moves by the same length, as far as [0, 1] lets it, in the direction that closes the gap. Where the
    hyperplane can't be reached, all move as far as they can. The length solves
    `sum_i |g_i| min(length, room_i) = |gap|`, which is concave and piecewise linear in it, so that Newton's method
    from 0 never goes too far and ends within rounding.

    Args:
        points (`torch.Tensor` of shape `(batch, ...)`): In [0, 1].
        gradient (`torch.Tensor` of the same shape): The hyperplane's normal `g`.
        gap (`torch.Tensor` of shape `(batch,)`): Its value at the points.

    Returns:
        `torch.Tensor` of shape `(batch, ...)`: the change.
    """
    flat, weight = points.flatten(1), gradient.flatten(1).abs()
    direction = -gradient.flatten(1).sign() * gap.sign()[:, None]
    room = torch.where(direction > 0, 1 - flat, flat)
    wanted = gap.abs()[:, None]
    length = torch.zeros_like(wanted)
    for _ in range(NEWTON_STEPS):
        missing = wanted - (weight * torch.minimum(room, length)).sum(1, keepdim=True)
        slope = (weight * (room > length)).sum(1, keepdim=True)
        open_ = (missing > 1e-6 * wanted) & (slope > 0)
        if not open_.any():
            break
        length = torch.where(open_, length + missing / slope.clamp(min=1e-30), length)
    return (direction * torch.minimum(length, room)).view_as(points)


def _linf(values: torch.Tensor) -> torch.Tensor:
    return values.abs().flatten(1).amax(1).view(-1, *[1] * (values.dim() - 1))
