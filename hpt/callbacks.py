"""The weight operations of Generalization-Pivot Decoupling, as callbacks; HPTTrainer saves and restores them."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from hpt.errors import InputError
from hpt.schedulers import GPDSchedule


class GPDCallback(TrainerCallback):
    """EMA, restart and pull of Generalization-Pivot Decoupling (arXiv 2601.12865).

    With `theta_k` the trained weights after epoch `k` of the anchor stage, from the vanilla weights `theta_0` on:

    - after each anchor epoch, Eq. 9: `ema_k = g * ema_{k-1} + (1 - g) * theta_k`, with `ema_0 = theta_0`;
    - at the stage boundary the weights go back to `theta_0` and the optimizer forgets its momentum;
    - before each transfer epoch after the first, Eq. 10: `theta = b * theta + (1 - b) * ema`.

    All of it acts on the parameters that require gradients, and happens before the first step of an epoch: Trainer
    writes an epoch's last checkpoint before the epoch's end, so whatever happened there would be lost on resuming.
    `boundary`, the last epoch boundary passed, is saved with the weights and keeps each from being passed twice.

    Args:
        schedule ([`GPDSchedule`]): Where the stages and epochs lie.
        ema_decay (`float`, *optional*, defaults to 0.9): `g` of Eq. 9, in [0, 1].
        pull_ratio (`float`, *optional*, defaults to 0.5): `b` of Eq. 10, the share the current weights keep.
    """

    FILE = "gpd_state.safetensors"

    def __init__(self, schedule: GPDSchedule, ema_decay: float = 0.9, pull_ratio: float = 0.5):
        self.schedule, self.ema_decay, self.pull_ratio = schedule, ema_decay, pull_ratio
        self.boundary, self.vanilla, self.ema = 0, {}, {}

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs):
        if state.global_step == 0 and self.schedule.anchor_epochs > 0:
            self.boundary = 0
            self.vanilla = {name: weight.detach().clone() for name, weight in trained_weights(model).items()}
            self.ema = {name: weight.clone() for name, weight in self.vanilla.items()}  # ema_0 = theta_0

    def on_step_begin(self, args, state, control, model: nn.Module, optimizer, **kwargs):
        epoch, step_in_epoch = divmod(state.global_step, self.schedule.steps_per_epoch)
        if step_in_epoch == 0 and epoch > self.boundary and self.schedule.anchor_epochs > 0:
            self.pass_boundary(epoch, trained_weights(model), optimizer)
            self.boundary = epoch

    @torch.no_grad()
    def pass_boundary(self, epoch: int, weights: dict[str, torch.Tensor], optimizer) -> None:
        """What happens to the weights between epoch `epoch` and the next; epochs are counted from 1."""
        if epoch <= self.schedule.anchor_epochs:
            for name, weight in weights.items():  # Eq. 9: ema_k = g * ema_{k-1} + (1 - g) * theta_k
                self.ema[name].mul_(self.ema_decay).add_(weight, alpha=1 - self.ema_decay)
        if epoch == self.schedule.anchor_epochs:
            for name, weight in weights.items():  # restart: theta = theta_0
                weight.copy_(self.vanilla[name])
            optimizer.state.clear()
            self.vanilla = {}  # not needed any more
        elif epoch > self.schedule.anchor_epochs:
            for name, weight in weights.items():  # Eq. 10: theta = b * theta + (1 - b) * ema
                weight.mul_(self.pull_ratio).add_(self.ema[name], alpha=1 - self.pull_ratio)

    def save(self, folder: str) -> None:
        """Write EMA, vanilla weights and boundary into a checkpoint folder, as safetensors."""
        tensors = {f"ema.{name}": weight for name, weight in self.ema.items()}
        tensors |= {f"vanilla.{name}": weight for name, weight in self.vanilla.items()}
        save_file(tensors, Path(folder) / self.FILE, metadata={"boundary": str(self.boundary)})

    def load(self, folder: str, device: torch.device) -> None:
        """Read what [`save`] wrote; [`InputError`] if it isn't there."""
        path = Path(folder) / self.FILE
        if not path.is_file():
            raise InputError(
                f"{folder} has no {self.FILE}, so GPD can't resume from it: give a checkpoint that HPTTrainer wrote "
                "without save_only_model."
            )
        self.vanilla, self.ema = {}, {}
        with safe_open(path, framework="pt") as file:
            self.boundary = int(file.metadata()["boundary"])
            for key in file.keys():
                part, name = key.split(".", 1)
                (self.ema if part == "ema" else self.vanilla)[name] = file.get_tensor(key).to(device)


class LogitScaleCallback(TrainerCallback):
    """Keep `logit_scale` at most ln 100 while it trains, as CLIP does (Radford et al., 2021, section 2.5)."""

    MAXIMUM = math.log(100)

    def on_optimizer_step(self, args, state, control, model: nn.Module, **kwargs):
        with torch.no_grad():
            model.logit_scale.clamp_(max=self.MAXIMUM)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
