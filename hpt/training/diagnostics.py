"""What the log says of the images of a logged step, beside the loss."""

import torch
from accelerate import Accelerator
from torch import nn

from hpt.models.weights import in_eval_mode
from hpt.training.step import TrainingStep


IMAGES = "images"  # how many there were, beside the sums over them


class Diagnostics:
    """Accuracies of target and proxy over the micro-batches of a logged step, with what the objective has computed.

    What it hasn't costs a further forward pass, and is therefore computed for logged steps only, in eval mode: what is
    logged draws no random numbers, and so changes nothing of the run. Without labels there are no accuracies, and
    without an attack none on adversarial images.

    Args:
        accelerator (`Accelerator`): For its autocast, and the mean over processes.
        target (`nn.Module`): Whose mode that is.
        has_proxy (`bool`): Whether a proxy is scored too, on the images that attack the target.
    """

    def __init__(self, accelerator: Accelerator, target: nn.Module, has_proxy: bool):
        self.accelerator, self.target, self.has_proxy = accelerator, target, has_proxy
        self._noted: list[dict[str, torch.Tensor]] = []  # of each micro-batch, sums over its images, and their number

    def clear(self) -> None:
        """Forget what was noted, such as of a step that was cut off."""
        self._noted = []

    @torch.no_grad()
    def note(self, step: TrainingStep) -> None:
        """Note how target and proxy do on the images of a micro-batch, and what its objective noted."""
        values = {} if step.labels is None else self._accuracies(step)
        if step.attacked is not None:
            values["zero_gradient_share"] = step.attacked.zero_gradient
        values |= {name: torch.stack(noted).mean(0) for name, noted in step.notes.items()}
        values[IMAGES] = torch.ones(len(step.images), device=step.images.device)
        self._noted.append({name: value.float().sum() for name, value in values.items()})

    def _accuracies(self, step: TrainingStep) -> dict[str, torch.Tensor]:
        """Whether each image is classified right: clean by the target, and adversarial by both."""
        with in_eval_mode(list(self.target.modules())), self.accelerator.autocast():
            logits = {"train_clean_accuracy": step.target(step.images).logits}
            if step.attacked is not None:
                logits["train_robust_accuracy"] = step.target(step.adversarial).logits
        if self.has_proxy and step.attacked is not None:
            logits["proxy_robust_accuracy"] = step.proxy(step.adversarial).logits
        return {name: scores.argmax(-1) == step.labels for name, scores in logits.items()}

    def take(self) -> dict[str, float]:
        """Means over the images noted in all processes, shares in [0, 1]; nothing if none were. They are forgotten."""
        if not self._noted:
            return {}
        names = list(self._noted[0])
        sums = torch.stack([torch.stack([noted[name] for name in names]) for noted in self._noted]).sum(0)
        totals = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
        self.clear()
        images = totals.pop(IMAGES)
        return {name: total / images for name, total in totals.items()}
