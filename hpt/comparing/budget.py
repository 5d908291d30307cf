"""What a run costs, counted on a step of each of its stages: images, attack steps, and passes through each model.

budget = measure_budget(trainer)
budget.images, budget.attack_steps, budget.passes["target"]
"""

from collections import Counter
from dataclasses import dataclass

import torch

from hpt.errors import InputError
from hpt.models.proxies import zero_shot_parts
from hpt.training.identity import images_per_epoch
from hpt.training.trainer import HPTTrainer


ROLES = ("target", "proxy", "original")


@dataclass(frozen=True)
class Budget:
    """What a run costs.

    Args:
        images (`int`): Images seen, over all epochs.
        attack_steps (`int`): Backward passes of an image by which an attack follows a gradient.
        forward, backward (`dict[str, int]`): Passes of an image through the image towers of `"target"`, `"proxy"` and
            `"original"`, those of attacks among them, as if no features of clean images were kept.
    """

    images: int
    attack_steps: int
    forward: dict[str, int]
    backward: dict[str, int]

    @classmethod
    def of(cls, record: dict) -> "Budget":
        """What the record of a task says."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})


def measure_budget(trainer: HPTTrainer) -> Budget:
    """The cost of a trainer's run, counted on its first batch in each stage; the weights stay, gradients come."""
    schedule, per_epoch = trainer.schedule, images_per_epoch(trainer.args, len(trainer.train_dataset))
    batch = next(iter(trainer.get_train_dataloader()))
    number = len(batch["pixel_values"])
    totals, images = Counter(), 0
    for first_step, epochs in ((0, schedule.anchor_epochs), (schedule.boundary, schedule.transfer_epochs)):
        if epochs == 0:
            continue
        trainer.state.global_step = first_step  # by which the trainer knows the stage
        images += epochs * per_epoch
        for kind, passes in count_passes(trainer, batch).items():
            totals[kind] += epochs * per_epoch * passes // number
    trainer.state.global_step = 0
    forward, backward = (
        {role: sum(totals[role, way, attacks] for attacks in (True, False)) for role in ROLES}
        for way in ("forward", "backward")
    )
    return Budget(images, totals["target", "backward", True], forward, backward)


def count_passes(trainer: HPTTrainer, batch: dict) -> Counter:
    """Passes of images in a step: by model, `"forward"` or `"backward"`, and whether an attack wants a gradient.

    Of proxies that are functions, only the dual encoders that they are made of are counted.
    """
    counts, handles = Counter(), []
    towers = {}  # a vanilla copy that is a proxy too is counted as the original
    for role, model in zip(ROLES, (trainer.classifier, trainer.proxy, trainer.original), strict=True):
        towers |= {part.family.towers(part.model)[0]: role for part in zero_shot_parts(model)}
    for tower, role in towers.items():
        handles.append(tower.register_forward_hook(_noting(role, counts), with_kwargs=True))
    try:
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).backward()
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _noting(role: str, counts: Counter):
    """A hook of an image tower that notes its passes."""

    def note(tower, arguments, named, output) -> None:
        images = named["pixel_values"] if "pixel_values" in named else arguments[0]
        attacks = images.requires_grad
        counts[role, "forward", attacks] += len(images)
        hidden: torch.Tensor = output[0]
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: counts.update({(role, "backward", attacks): len(gradient)}))

    return note


def refuse_unequal(budgets: dict[str, Budget]) -> None:
    """Refuse methods whose runs see other numbers of images, or are attacked by other numbers of steps.

    Raises:
        InputError: naming two that differ.
    """
    for what, counted in differing(budgets).items():
        few, many = min(counted, key=counted.get), max(counted, key=counted.get)
        raise InputError(
            f"Budgets differ: {few!r} has {counted[few]:,} {what}, {many!r} {counted[many]:,}. Give all methods the "
            "same epochs and attack, or set allow_unequal_budget, and the table says so."
        )


def differing(budgets: dict[str, Budget]) -> dict[str, dict[str, int]]:
    """Of images and attack steps what differs between methods, with the number of each."""
    counts = {
        "images": {method: budget.images for method, budget in budgets.items()},
        "attack steps": {method: budget.attack_steps for method, budget in budgets.items()},
    }
    return {what: counted for what, counted in counts.items() if len(set(counted.values())) > 1}
