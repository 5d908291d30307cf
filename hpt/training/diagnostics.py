"""What the log says of the images of a logged step, beside the loss."""

import torch
from accelerate import Accelerator
from torch import nn

from hpt.attacks.base import batch_norm_untouched
from hpt.training.step import TrainingStep


DIAGNOSTICS = ("train_clean_accuracy", "train_robust_accuracy", "proxy_robust_accuracy", "zero_gradient_share")


class Diagnostics:
    """Accuracies of target and proxy over the micro-batches of a logged step, with what the objective has computed.

    What it hasn't costs a further forward pass, and is therefore computed for logged steps only.

    Args:
        accelerator (`Accelerator`): For its autocast, and the mean over processes.
        target (`nn.Module`): What must stay as it is when it sees images again.
        has_proxy (`bool`): Whether a proxy is scored too, on the images that attack the target.
    """

    def __init__(self, accelerator: Accelerator, target: nn.Module, has_proxy: bool):
        self.accelerator, self.target, self.has_proxy = accelerator, target, has_proxy
        self._noted: list[torch.Tensor] = []  # of each micro-batch, its numbers of images and, last, its size

    def clear(self) -> None:
        """Forget what was noted, such as of a step that was cut off."""
        self._noted = []

    @torch.no_grad()
    def note(self, step: TrainingStep) -> None:
        """Note how target and proxy do on the images of a micro-batch."""
        with batch_norm_untouched(self.target), self.accelerator.autocast():
            logits = [step.target(images).logits for images in (step.images, step.adversarial)]
        if self.has_proxy:
            logits.append(step.proxy(step.adversarial).logits)
        verdicts = [*(scores.argmax(-1) == step.labels for scores in logits), step.attacked.zero_gradient]
        verdicts.append(torch.ones_like(step.labels, dtype=torch.bool))
        self._noted.append(torch.stack(verdicts).sum(1))

    def take(self) -> dict[str, float]:
        """Shares of the images noted in all processes, in [0, 1]; nothing if none were. They are forgotten then."""
        if not self._noted:
            return {}
        *counts, images = self.accelerator.reduce(torch.stack(self._noted).sum(0), "sum").tolist()
        self.clear()
        names = [name for name in DIAGNOSTICS if self.has_proxy or name != "proxy_robust_accuracy"]
        return {name: count / images for name, count in zip(names, counts, strict=True)}
