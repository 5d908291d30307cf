"""Attacks of a fixed number of gradient steps: FGSM, PGD, and PGD on the margin, called CW."""

from collections.abc import Callable, Sequence

import torch

from hpt.attacks.base import (
    Attack,
    AttackResult,
    attack_until_broken,
    check_count,
    is_zero,
    projection,
    random_start,
    steepest,
)
from hpt.attacks.batch import Batch
from hpt.attacks.losses import cross_entropy, margin
from hpt.attacks.passes import passes_until_broken
from hpt.attacks.queries import float_logits, gradients
from hpt.classifiers import Classifier, RandomisedClassifier
from hpt.errors import InputError
from hpt.radius import check_step_size, read_number


class PGD(Attack):
    """Projected gradient descent (Madry et al., 2018, arXiv 1706.06083, section 2.1).

    `x_{k+1} = project(x_k + step_size * direction(grad L(x_k, y)))` from a random point of the eps-ball, where
    direction is the gradient's sign in l_inf, the gradient at unit length in l_2.

    Args:
        eps (`float` or `str`): Radius in [0, 1] pixels, such as `8/255` or `"8/255"`.
        steps (`int`, *optional*, defaults to `10`): Gradient steps, at least 1.
        step_size (`float` or `str`, *optional*, defaults to `eps / 4`): Step in [0, 1] pixels, at most `2 * eps`.
        random_start (`bool`, *optional*, defaults to `True`): Start at a uniform point of the ball.
        restarts (`int`, *optional*, defaults to `1`): Runs from other random points, each on the samples that are
            still classified right.
        eot (`int`, *optional*, defaults to `1`): Draws of a randomised classifier at each step, over which the
            gradient is averaged, each as expensive as a step; see `hpt.attacks.queries`.
        loss (`Callable`, *optional*, defaults to cross-entropy): What is maximised: logits `(batch, classes)` in
            float32 and labels `(batch,)` to losses `(batch,)`.
        norm, seed: see [`Attack`].

    Raises:
        InputError: for an eps, step size or number out of range, or restarts without a random start.
    """

    name = "pgd"
    norms = ("linf", "l2")
    num_models = 1  # whose gradients a step takes
    reported = ("steps", "step_size", "random_start", "restarts")

    def __init__(
        self,
        *,
        eps: float,
        steps: int = 10,
        step_size: float | None = None,
        random_start: bool = True,
        restarts: int = 1,
        eot: int = 1,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy,
        norm: str = "linf",
        seed: int = 0,
    ):
        super().__init__(eps=eps, norm=norm, seed=seed)
        check_count(steps, "steps")
        check_count(restarts, "restarts")
        check_count(eot, "draws at each step (eot)")
        if restarts > 1 and not random_start:
            raise InputError(f"The attack has {restarts} restarts without a random start, which are all the same run.")
        self.steps, self.random_start, self.restarts, self.eot, self.loss = steps, random_start, restarts, eot, loss
        step = self.eps / 4 if step_size is None else step_size
        self.step_size = read_number(step, "The attack's step size is set", whole=False)
        check_step_size(self.step_size, self.eps)

    @property
    def leaves_early(self) -> bool:
        """Between restarts: a run is scored at its last step."""
        return self.restarts > 1

    def most_passes(self, num_classes: int) -> int:
        run = 2 * self.steps * self.num_models * self.eot
        return run if self.restarts == 1 else passes_until_broken([run] * self.restarts, self.eot)

    def _run(self, classifier, batch: Batch) -> AttackResult:
        if self.restarts == 1:
            return self._descend(classifier, batch, 0)
        attempts = [
            lambda samples, _, restart=restart: self._descend(classifier, samples, restart)
            for restart in range(self.restarts)
        ]
        return attack_until_broken(classifier, batch, attempts, self.seeds)

    def _descend(self, classifier, batch: Batch, restart: int) -> AttackResult:
        step, into_ball = self.step_size / self.eps * batch.eps, projection(batch, self.norm)
        adversarial = random_start(batch, self.norm, self.seed, restart) if self.random_start else batch.images
        zero_gradient = torch.zeros(len(adversarial), dtype=torch.bool, device=adversarial.device)
        for number in range(restart * self.steps, (restart + 1) * self.steps):
            gradient = self._gradient(classifier, batch, adversarial, number)
            zero_gradient |= is_zero(gradient)
            adversarial = into_ball(adversarial + step * steepest(gradient, self.norm))
        return AttackResult(adversarial, zero_gradient)

    def _gradient(self, classifier, batch: Batch, point: torch.Tensor, step: int) -> torch.Tensor:
        """The gradient of each sample's loss at a point, over the draws of a step its mean."""

        def losses(shown: torch.Tensor, samples: Batch, drawn: torch.Tensor | None) -> Sequence[torch.Tensor]:
            return [self._losses(classifier, shown, samples.labels, drawn) * _loss_scale(shown.device.type)]

        return gradients(classifier, losses, point, batch, self.seeds(batch, step))[0]

    def _losses(self, classifier, point: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor | None):
        """What is maximised in a draw, per sample."""
        return self.loss(classifier(point, seeds), labels)


class FGSM(PGD):
    """Fast gradient sign method, `x + eps * direction(grad L(x, y))` (Goodfellow et al., 2015, arXiv 1412.6572).

    Args:
        eps, loss, norm, seed: see [`PGD`].
    """

    name = "fgsm"
    reported = ()

    def __init__(self, *, eps: float, loss=cross_entropy, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, steps=1, step_size=eps, random_start=False, loss=loss, norm=norm, seed=seed)


class CW(PGD):
    """PGD on the margin `max_{i != y} z_i - z_y`, as the literature's "CW" in l_inf is (arXiv 1706.06083, section 5).

    The margin doesn't saturate where the softmax does, so it finds what cross-entropy may not.

    Args:
        steps (`int`, *optional*, defaults to `50`): Gradient steps.
        eps, step_size, random_start, restarts, eot, norm, seed: see [`PGD`].
    """

    name = "cw"

    def __init__(self, *, eps: float, steps: int = 50, **settings):
        super().__init__(eps=eps, steps=steps, loss=margin, **settings)


class Transfer(PGD):
    """PGD on the proxy alone, `CE(P(x), y)`, scored on the target: an attacker who has only the proxy.

    Args:
        proxy (`Callable`): The proxy `P`, from images to logits over the same classes, such as a
            [`ZeroShotClassifier`].
        eps, steps, step_size, random_start, restarts, eot, norm, seed: see [`PGD`].
    """

    name = "transfer"
    uses_gradients = False  # of the model scored
    needs_proxy = True

    def __init__(self, *, eps: float, proxy: Classifier | RandomisedClassifier, **settings):
        super().__init__(eps=eps, **settings)
        self.proxy = float_logits(proxy)

    def followed(self, classifier) -> list[Classifier | RandomisedClassifier]:
        return [self.proxy]

    def _losses(self, classifier, point: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor | None):
        return self.loss(self.proxy(point, seeds), labels)  # CE(P)


class ReverseTransfer(Transfer):
    """PGD on the model under evaluation alone, scored on its proxy: [`Transfer`] with the two exchanged.

    Args:
        proxy (`Callable`): The model that the images are made on: here, the one under evaluation.
        eps, steps, step_size, random_start, restarts, eot, norm, seed: see [`Transfer`].
    """

    name = "transfer-to-proxy"
    scored_on_proxy = True


class Adaptive(Transfer):
    """PGD on `CE(T(x), y) + CE(P(x), y)`: through the target and the proxy that taught it, scored on the target alone.

    What an attacker does who knows the proxy; arXiv 2601.12865 reports it.

    Args:
        proxy, eps, steps, step_size, random_start, restarts, eot, norm, seed: see [`Transfer`].
    """

    name = "adaptive"
    num_models = 2
    uses_gradients = True

    def followed(self, classifier) -> list[Classifier | RandomisedClassifier]:
        return [classifier, self.proxy]

    def _losses(self, classifier, point: torch.Tensor, labels: torch.Tensor, seeds: torch.Tensor | None):
        own = self.loss(classifier(point, seeds), labels)  # CE(T)
        return own + super()._losses(classifier, point, labels, seeds)  # + CE(P)


def _loss_scale(device_type: str) -> float:
    """What keeps small gradients from underflow in float16, and doesn't change their direction; 1 in other dtypes."""
    in_float16 = torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16
    return 2.0**10 if in_float16 else 1.0
