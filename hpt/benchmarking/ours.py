"""HPT's step and PGD in evaluation as hpt computes them, without what `Trainer` and the evaluator add around them."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from hpt.attacks import PGD
from hpt.benchmarking.gates import Outcome
from hpt.benchmarking.models import Samples
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import weights_frozen
from hpt.training.config import HPTConfig
from hpt.training.objective_base import Objective
from hpt.training.step import TrainingStep


def training_attack(steps: int, seed: int = 0) -> PGD:
    """PGD as [`HPTTrainer`] makes it by default: on the losses that the objective gives, at eps 1/255."""
    eps, step_size = HPTConfig.attack_eps, HPTConfig.attack_step_size
    return PGD(eps=eps, step_size=step_size, steps=steps, seed=seed, loss=lambda losses, labels: losses)


def evaluation_attack(steps: int = 10) -> PGD:
    """PGD as it evaluates: on cross-entropy, at the eps of the training."""
    return PGD(eps=HPTConfig.attack_eps, steps=steps)


@dataclass
class OurStep:
    """Attack, loss and backward pass, as in [`HPTTrainer.compute_loss`].

    Args:
        target ([`ZeroShotClassifier`]): `T`, whose trained weights have gradients.
        proxy ([`ZeroShotClassifier`]): `P`, frozen.
        objective ([`Objective`]): What is minimised.
        attack ([`PGD`]): From [`training_attack`].
        original ([`ZeroShotClassifier`], *optional*): `O`, where the objective needs it.
        dtype (`torch.dtype`, *optional*): Of autocast, if it is to be on.
        features (`dict[nn.Module, torch.Tensor]`, *optional*): What frozen models make of the samples' clean images,
            as a run keeps it; see [`~hpt.training.clean_features.CleanFeatures`].
        compiled (`bool`, *optional*, defaults to `False`): Whether the towers are compiled: then the attack needs the
            weights frozen, as [`~hpt.training.run_models.RunModels.under_attack`] says.
    """

    target: ZeroShotClassifier
    proxy: ZeroShotClassifier
    objective: Objective
    attack: PGD
    original: ZeroShotClassifier | None = None
    dtype: torch.dtype | None = None
    features: dict[nn.Module, torch.Tensor] | None = None
    compiled: bool = False

    def __call__(self, samples: Samples) -> Outcome:
        """The step on samples, whose gradient stays in the target's weights."""
        self.target.model.zero_grad()
        needs_attack = self.objective.needs_attack
        with torch.autocast(samples.images.device.type, self.dtype, enabled=self.dtype is not None):
            step = TrainingStep(
                samples.images,
                samples.labels,
                target=self.target,
                proxy=self.proxy,
                original=self.original,
                patches=self.objective.needs_patches,
                attack=needs_attack,
                features=self.features,
            )
            if needs_attack:
                with weights_frozen(self.target.model) if self.compiled else nullcontext():
                    attack_losses = partial(self.objective.attack_losses, step)
                    step.attacked = self.attack.perturb(attack_losses, *samples, checked=True)
            loss = self.objective.losses(step).mean()
        loss.backward()
        return Outcome(step.adversarial if needs_attack else step.images, loss=loss.detach())


def our_evaluation(
    classifier: ZeroShotClassifier, attack: PGD, samples: Samples, dtype: torch.dtype | None = None
) -> Outcome:
    """Who is right under an attack, as the evaluator attacks and scores, or, with a dtype, under its autocast."""
    with torch.autocast(samples.images.device.type, dtype, enabled=dtype is not None):
        adversarial = attack(classifier, *samples)
        with torch.no_grad():
            right = classifier(adversarial).argmax(-1) == samples.labels
    return Outcome(adversarial, right=right)
