"""Generalization-Pivot Decoupling: two stages with rates of their own, and what acts on the weights between epochs.

optimizer = torch.optim.SGD(model.parameters(), lr=5e-2, momentum=0.9)  # the transfer stage's peak rate
scheduler = get_gpd_schedule(optimizer, steps_per_epoch=1563, anchor_learning_rate=5e-5)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from hpt.errors import InputError


ANCHOR, TRANSFER = "anchor", "transfer"
GPD_PAPER = "2601.12865"  # on arXiv


@dataclass(frozen=True)
class GPDSchedule:
    """Stage and learning rate at every optimizer step (arXiv 2601.12865, section on GPD).

    Called with a step, it gives the factor on `learning_rate`, as `LambdaLR` wants it. The rate of each stage follows
    `transformers.get_cosine_schedule_with_warmup` over that stage's own steps.

    Args:
        steps_per_epoch (`int`): Optimizer steps in an epoch.
        anchor_epochs (`int`, *optional*, defaults to 5): Epochs of stage 1, the generalization-anchored warm-up.
        transfer_epochs (`int`, *optional*, defaults to 5): Epochs of stage 2, the generalization-pulled HPT.
        anchor_learning_rate (`float`, *optional*, defaults to 5e-5): Peak rate of stage 1.
        learning_rate (`float`, *optional*, defaults to 5e-2): Peak rate of stage 2.
        warmup_steps (`float`, *optional*, defaults to 0.1): Linear warm-up in each stage; below 1, a share of it.

    Raises:
        InputError: if a stage's warm-up isn't shorter than the stage, or a number is out of range.
    """

    steps_per_epoch: int
    anchor_epochs: int = 5
    transfer_epochs: int = 5
    anchor_learning_rate: float = 5e-5
    learning_rate: float = 5e-2
    warmup_steps: float = 0.1

    def __post_init__(self):
        check_epochs(self.anchor_epochs, self.transfer_epochs)
        for name in ("anchor_learning_rate", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name):g}, but must be above 0 and finite.")
        for stage in (ANCHOR, TRANSFER):
            warmup, steps = self.warmup(stage), self.stage_steps(stage)
            if steps and not 0 <= warmup < steps:
                raise InputError(
                    f"warmup_steps is {warmup}, but the {stage} stage has only {steps} steps: give fewer, or a share "
                    "of each stage, such as 0.1."
                )

    @property
    def num_epochs(self) -> int:
        """Epochs of both stages."""
        return self.anchor_epochs + self.transfer_epochs

    @property
    def boundary(self) -> int:
        """First step of the transfer stage."""
        return self.anchor_epochs * self.steps_per_epoch

    def stage(self, step: int) -> str:
        """`"anchor"` or `"transfer"`, the stage that optimizer step `step` (counted from 0) belongs to."""
        return ANCHOR if step < self.boundary else TRANSFER

    def stage_steps(self, stage: str) -> int:
        """Optimizer steps of a stage."""
        return self.steps_per_epoch * (self.anchor_epochs if stage == ANCHOR else self.transfer_epochs)

    def warmup(self, stage: str) -> int:
        """Warm-up steps of a stage; a share is rounded up, as transformers does, but leaves one step at the peak."""
        if 0 < self.warmup_steps < 1:
            steps = self.stage_steps(stage)
            return min(math.ceil(self.warmup_steps * steps), max(0, steps - 1))
        return int(self.warmup_steps)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0; 0 after the last."""
        stage = self.stage(step)
        peak = self.anchor_learning_rate if stage == ANCHOR else self.learning_rate
        step_in_stage = step if stage == ANCHOR else step - self.boundary
        warmup, steps = self.warmup(stage), self.stage_steps(stage)
        if step_in_stage < warmup:
            return peak * step_in_stage / warmup
        progress = min(1.0, (step_in_stage - warmup) / (steps - warmup))
        return peak * 0.5 * (1 + math.cos(math.pi * progress))

    def __call__(self, step: int) -> float:
        return self.learning_rate_at(step) / self.learning_rate


def check_epochs(anchor_epochs: int, transfer_epochs: int) -> None:
    """Refuse epochs that aren't whole, a negative anchor stage, or no transfer stage."""
    for name, epochs, least in (("anchor_epochs", anchor_epochs, 0), ("transfer_epochs", transfer_epochs, 1)):
        if epochs != int(epochs) or epochs < least:
            raise InputError(f"{name} is {epochs}, but must be a whole number of at least {least}.")


def get_gpd_schedule(
    optimizer: Optimizer,
    steps_per_epoch: int,
    anchor_epochs: int = 5,
    transfer_epochs: int = 5,
    anchor_learning_rate: float = 5e-5,
    warmup_steps: float = 0.1,
    last_epoch: int = -1,
) -> LambdaLR:
    """A learning-rate scheduler for GPD, stepped once per optimizer step, for any optimizer.

    The `lr` of the optimizer's first parameter group is the peak rate of the transfer stage; groups with another `lr`
    keep their ratio to it. Other arguments as in [`GPDSchedule`]; `last_epoch` as in `LambdaLR`.
    """
    first = optimizer.param_groups[0]
    schedule = GPDSchedule(
        steps_per_epoch=steps_per_epoch,
        anchor_epochs=anchor_epochs,
        transfer_epochs=transfer_epochs,
        anchor_learning_rate=anchor_learning_rate,
        learning_rate=first.get("initial_lr", first["lr"]),
        warmup_steps=warmup_steps,
    )
    return LambdaLR(optimizer, schedule, last_epoch)


class GPDCallback(TrainerCallback):
    """EMA, restart and pull of Generalization-Pivot Decoupling (arXiv 2601.12865).

    With `theta_k` the trained weights after epoch `k` of the anchor stage, from the vanilla weights `theta_0` on:

    - after each anchor epoch, Eq. 9: `ema_k = g * ema_{k-1} + (1 - g) * theta_k`, with `ema_0 = theta_0`;
    - at the stage boundary the weights go back to `theta_0` and the optimizer forgets its momentum; without `restart`
      the weights go on from where they are, and the optimizer forgets all the same: the two stages are two trainings,
      whose rates differ by orders, and nothing but where the second one begins is to change;
    - before each transfer epoch after the first, Eq. 10: `theta = b * theta + (1 - b) * ema`.

    All of it acts on the parameters that require gradients, and happens before the first step of an epoch: Trainer
    writes an epoch's last checkpoint before the epoch's end, so whatever happened there would be lost on resuming.
    `boundary`, the last epoch boundary passed, is saved with the weights and keeps each from being passed twice.

    Args:
        schedule ([`GPDSchedule`]): Where the stages and epochs lie.
        ema_decay (`float`, *optional*, defaults to 0.9): `g` of Eq. 9, in [0, 1].
        pull_ratio (`float`, *optional*, defaults to 0.5): `b` of Eq. 10, the share the current weights keep.
        restart (`bool`, *optional*, defaults to `True`): Whether the transfer stage begins at the vanilla weights.
        at_anchor_end (`Callable`, *optional*): Called as the anchor stage ends, with its last weights in the model
            and its average in `ema`.
    """

    FILE = "gpd_state.safetensors"

    def __init__(
        self,
        schedule: GPDSchedule,
        ema_decay: float = 0.9,
        pull_ratio: float = 0.5,
        restart: bool = True,
        at_anchor_end: Callable[[], None] | None = None,
    ):
        self.schedule, self.ema_decay, self.pull_ratio, self.restart = schedule, ema_decay, pull_ratio, restart
        self.at_anchor_end = at_anchor_end
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
        if epoch == self.schedule.anchor_epochs and self.at_anchor_end is not None:
            self.at_anchor_end()
        if epoch == self.schedule.anchor_epochs:
            for name, weight in weights.items() if self.restart else ():  # restart: theta = theta_0
                weight.copy_(self.vanilla[name])
            optimizer.state.clear()
            self.vanilla = {}  # not needed any more
        elif epoch > self.schedule.anchor_epochs:
            for name, weight in weights.items():  # Eq. 10: theta = b * theta + (1 - b) * ema
                weight.mul_(self.pull_ratio).add_(self.ema[name], alpha=1 - self.pull_ratio)

    def save(self, folder: str) -> None:
        """Write EMA, vanilla weights and boundary into a checkpoint folder, as safetensors."""
        save_file(self.tensors(), Path(folder) / self.FILE, metadata={"boundary": str(self.boundary)})

    def tensors(self) -> dict[str, torch.Tensor]:
        """EMA and vanilla weights by name."""
        ema = {f"ema.{name}": weight for name, weight in self.ema.items()}
        return ema | {f"vanilla.{name}": weight for name, weight in self.vanilla.items()}

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


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
