"""Sign-gradient attacks in l_inf: FGSM and PGD."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hpt.attacks.base import Attack, AttackResult, check_step_size, uniform_noise
from hpt.errors import InputError


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per sample, `(batch, classes)`, `(batch,)` -> `(batch,)`."""
    return F.cross_entropy(logits, labels, reduction="none")


class PGD(Attack):
    """Projected gradient descent in l_inf (Madry et al., 2018, arXiv 1706.06083, section 2.1).

    `x_0 = clip(x + U[-eps, eps])` and `x_{k+1} = clip(x_k + step_size * sign(grad L(x_k, y)))`, where clip projects
    onto the eps-ball around `x` and onto [0, 1].

    Args:
        eps (`float`): Radius in [0, 1] pixels.
        steps (`int`, *optional*, defaults to `10`): Gradient steps, at least 1.
        step_size (`float`, *optional*, defaults to `eps / 4`): Step in [0, 1] pixels, at most `2 * eps`.
        random_start (`bool`, *optional*, defaults to `True`): Start at a uniform point of the ball.
        loss (`Callable`, *optional*, defaults to cross-entropy): What is maximised: logits `(batch, classes)` in
            float32 and labels `(batch,)` to losses `(batch,)`.
        norm, seed: see [`Attack`].

    Raises:
        InputError: for an eps, step size or number of steps out of range.
    """

    def __init__(
        self,
        *,
        eps: float,
        steps: int = 10,
        step_size: float | None = None,
        random_start: bool = True,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy,
        norm: str = "linf",
        seed: int = 0,
    ):
        super().__init__(eps=eps, norm=norm, seed=seed)
        if steps < 1:
            raise InputError(f"The attack has {steps} steps, but needs at least 1.")
        self.steps, self.random_start, self.loss = steps, random_start, loss
        self.step_size = eps / 4 if step_size is None else step_size
        check_step_size(self.step_size, eps)

    def _run(self, classifier, images, labels, sample_ids) -> AttackResult:
        lower, upper = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        adversarial = images
        if self.random_start:
            adversarial = images + self.eps * uniform_noise(images, self.seed, sample_ids)
            adversarial = adversarial.clamp(lower, upper)
        zero_gradient = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for _ in range(self.steps):
            adversarial.requires_grad_()
            logits = classifier(adversarial)
            # Summed, not averaged: the batch size must not push small gradients into underflow.
            loss = self.loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)  # of the image alone, none for the weights
            zero_gradient |= (gradient == 0).flatten(1).all(1)
            adversarial = (adversarial.detach() + self.step_size * gradient.sign()).clamp(lower, upper)
        return AttackResult(adversarial, zero_gradient)


class FGSM(PGD):
    """Fast gradient sign method, `x + eps * sign(grad L(x, y))` (Goodfellow et al., 2015, arXiv 1412.6572).

    Args:
        eps, loss, norm, seed: see [`PGD`].
    """

    def __init__(self, *, eps: float, loss=cross_entropy, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, steps=1, step_size=eps, random_start=False, loss=loss, norm=norm, seed=seed)
