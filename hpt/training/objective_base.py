"""What every objective is: `Objective`, the base of those in `objectives.py` and of your own."""

import inspect
from abc import ABC, abstractmethod

import torch

from hpt.attacks.losses import cross_entropy
from hpt.errors import InputError
from hpt.training.step import TrainingStep


OF_PROXY, OF_ORIGINAL = "proxy", "original"  # whom an objective may ask about clean images


class Objective(ABC):
    """What a training step minimises, and what its attack maximises.

    Its settings are keyword arguments of its constructor, numbers, booleans or texts, and attributes of the same
    names. They can be given in text as `objective_args`.

    Attributes:
        needs_proxy (`bool`): Whether it asks the step for `step.proxy(images)`.
        needs_original (`bool`): Whether it asks for `step.original(images)`, the target's frozen vanilla copy.
        needs_labels (`bool`): Whether it, or its attack, asks for `step.labels`.
        needs_classes (`bool`): Whether it asks for anything of the class prompts, such as logits.
        needs_patches (`bool`): Whether it asks for `patch_embeds` of target or original.
        needs_attack (`bool`): Whether it asks for `step.adversarial`; without, no attack is run.
        asks_about_clean (`tuple[str]`): Which frozen models it asks about clean images in each step, `"proxy"` for
            `step.proxy(step.images)` and `"original"` for `step.original(step.images)`. What they say may be kept from
            epoch to epoch then; it is the same if this doesn't say so, but computed each time.
        needs_random_start (`bool`): Whether its attack has no gradient on clean images while the target is as it was
            given, so that it, and with it the training, would never leave where they begin.
        is_idle_with_original (`bool`): Whether it has no loss, and so no gradient, while the target is as it was given
            and the proxy is its vanilla copy.
        arxiv (`str`, *optional*): Number of its paper on arXiv, for cards. Like the attribute above and the words of
            `describe`, it is of one class alone, and not inherited: a subclass computes something else.
        fields (`tuple[str]`): Settings that stand in fields of [`HPTConfig`] of the same name too.
    """

    needs_proxy = needs_original = needs_labels = needs_patches = needs_random_start = False
    is_idle_with_original = False
    needs_classes = needs_attack = True
    asks_about_clean: tuple[str, ...] = ()
    arxiv: str | None = None
    fields: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.arxiv = vars(cls).get("arxiv")
        cls.is_idle_with_original = vars(cls).get("is_idle_with_original", False)
        cls.describe = vars(cls).get("describe", Objective.describe)

    def attack_loss(self, step: TrainingStep, images: torch.Tensor) -> torch.Tensor:
        """What the attack maximises over images `(batch, 3, height, width)`: `(batch,)`; by default, cross-entropy."""
        return cross_entropy(step.target(images).logits, step.labels)  # CE(T(x), y)

    @abstractmethod
    def __call__(self, step: TrainingStep) -> torch.Tensor:
        """The loss of each image, `(batch,)`: the trainer averages, so that micro-batches weigh right."""

    def losses(self, step: TrainingStep) -> torch.Tensor:
        """What calling it gives; [`InputError`] if that isn't a loss for each image, with a gradient."""
        return _checked(self(step), step, type(self).__name__)

    def attack_losses(self, step: TrainingStep, images: torch.Tensor) -> torch.Tensor:
        """What [`attack_loss`] gives, checked likewise."""
        return _checked(self.attack_loss(step, images), step, f"{type(self).__name__}.attack_loss")

    @property
    def papers(self) -> list[str]:
        """Numbers on arXiv of what it comes from."""
        return [self.arxiv] if self.arxiv else []

    def describe(self, reduction: str) -> str:
        """Its settings in words, with how the trainer takes it over the batch, for records and cards."""
        settings = [f"{name} {getattr(self, name)}" for name in inspect.signature(type(self)).parameters]
        return ", ".join([f"{reduction} over the batch", *settings])


def _checked(losses: torch.Tensor, step: TrainingStep, name: str) -> torch.Tensor:
    """Losses of a step's images, if they are; `name` is what gave them."""
    if not isinstance(losses, torch.Tensor):
        raise InputError(f"{name} gives a {type(losses).__name__}, but must give a tensor of a loss for each image.")
    if losses.shape != step.images.shape[:1]:
        raise InputError(
            f"{name} gives losses of shape {tuple(losses.shape)} for {len(step.images)} images: it must give one for "
            "each."
        )
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise InputError(f"{name} gives losses without a gradient: it mustn't detach the target's outputs.")
    return losses
