"""What a training step minimises, and what its attack maximises: a class for each objective, by name in `OBJECTIVES`.

`T` is the target, `P` the proxy, `x` a clean image with label `y`, and `x_a` its adversarial version made against `T`.
To add an objective, write a class like those below, with its equation and its source, and its line in `OBJECTIVES`.
"""

import inspect
from abc import ABC, abstractmethod
from typing import get_args, get_type_hints

import torch
import torch.nn.functional as F

from hpt.attacks.losses import cross_entropy
from hpt.errors import InputError, check_known
from hpt.radius import read_number
from hpt.training.gpd import GPD_PAPER
from hpt.training.step import TrainingStep


KL_DIRECTIONS = ("proxy_to_target", "target_to_proxy")


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
        arxiv (`str`, *optional*): Number of its paper on arXiv, for cards. Like the words of `describe`, it is of one
            class alone, and not inherited: a subclass computes something else.
        fields (`tuple[str]`): Settings that stand in fields of [`HPTConfig`] of the same name too.
    """

    needs_proxy = needs_original = needs_labels = needs_patches = False
    needs_classes = needs_attack = True
    arxiv: str | None = None
    fields: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.arxiv = vars(cls).get("arxiv")
        cls.describe = vars(cls).get("describe", Objective.describe)

    def attack_loss(self, step: TrainingStep, images: torch.Tensor) -> torch.Tensor:
        """What the attack maximises over images `(batch, 3, height, width)`: `(batch,)`; by default, cross-entropy."""
        return cross_entropy(step.target(images).logits, step.labels)  # CE(T(x), y)

    @abstractmethod
    def __call__(self, step: TrainingStep) -> torch.Tensor:
        """The loss of each image, `(batch,)`: the trainer averages, so that micro-batches weigh right."""

    def describe(self, reduction: str) -> str:
        """Its settings in words, with how the trainer takes it over the batch, for records and cards."""
        settings = [f"{name} {getattr(self, name)}" for name in inspect.signature(type(self)).parameters]
        return ", ".join([f"{reduction} over the batch", *settings])


def kl_divergence(target_logits, proxy_logits, direction="proxy_to_target", temperature=1.0) -> torch.Tensor:
    """KL divergence between the softmax of target and proxy, for each image.

    The paper writes `KL(T || P)`; its code computes `KL(P || T)`, standard distillation, which is the default here.

    Args:
        target_logits, proxy_logits (`torch.Tensor` of shape `(batch, classes)`): `T`'s and `P`'s logits.
        direction (`str`): `"proxy_to_target"` is `KL(P || T)`, `"target_to_proxy"` is `KL(T || P)`.
        temperature (`float`): Divides both logits; the loss is multiplied by its square, which keeps the gradient's
            size (Hinton et al., 2015, arXiv 1503.02531).

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    target = F.log_softmax(target_logits / temperature, dim=-1)
    proxy = F.log_softmax(proxy_logits / temperature, dim=-1)
    if direction == "proxy_to_target":  # KL(P || T) = sum_c P_c (log P_c - log T_c)
        loss = F.kl_div(target, proxy, reduction="none", log_target=True)
    else:  # KL(T || P) = sum_c T_c (log T_c - log P_c)
        loss = F.kl_div(proxy, target, reduction="none", log_target=True)
    return loss.sum(-1) * temperature**2


class RobustTransfer(Objective):
    """HPT's robust transfer (arXiv 2601.12865, Eq. 5): `L_RT = mean_i KL(softmax T(x_a) || softmax P(x_a))`.

    Args:
        kl_direction, temperature: see [`kl_divergence`].

    Raises:
        InputError: for an unknown direction, or a temperature that isn't above 0.
    """

    needs_proxy = needs_labels = True
    arxiv = GPD_PAPER
    fields = ("kl_direction", "temperature")

    def __init__(self, *, kl_direction: str = "proxy_to_target", temperature: float = 1.0):
        check_known("kl_direction", kl_direction, KL_DIRECTIONS)
        if not temperature > 0:
            raise InputError(f"temperature is {temperature:g}, but must be above 0.")
        self.kl_direction, self.temperature = kl_direction, temperature

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self._divergence(step, step.adversarial, step.adversarial)  # KL(T(x_a) || P(x_a))

    def _divergence(self, step: TrainingStep, target_sees: torch.Tensor, proxy_sees: torch.Tensor) -> torch.Tensor:
        target_logits, proxy_logits = step.target(target_sees).logits, step.proxy(proxy_sees).logits
        return kl_divergence(target_logits, proxy_logits, self.kl_direction, self.temperature)

    def describe(self, reduction: str) -> str:
        return f"KL, {self.kl_direction}, {reduction}, temperature {self.temperature:g}"


class GeneralizationAnchor(RobustTransfer):
    """The generalization anchor (arXiv 2601.12865, Eq. 8): `L_GA = mean_i KL(softmax T(x_a) || softmax P(x))`."""

    arxiv = GPD_PAPER
    describe = RobustTransfer.describe

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return self._divergence(step, step.adversarial, step.images)  # KL(T(x_a) || P(x))


class TeCoA(Objective):
    """Text-guided contrastive adversarial training (Mao et al., 2023, arXiv 2212.07016): `mean_i CE(T(x_a), y)`."""

    needs_labels = True
    arxiv = "2212.07016"

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        return cross_entropy(step.target(step.adversarial).logits, step.labels)  # CE(T(x_a), y)


OBJECTIVES = {"hpt": RobustTransfer, "anchor": GeneralizationAnchor, "tecoa": TeCoA}
OF_HPT = dict(OBJECTIVES)  # without what users add to them, or put in their place


def name_objective(objective: Objective) -> str:
    """Its key in [`OBJECTIVES`], or its class's name where it has none, or has taken the place of one of hpt's."""
    names = {kind: name for name, kind in (OBJECTIVES | OF_HPT).items()}
    return names.get(type(objective), type(objective).__name__)


def make_objective(name: str, defaults: dict, field: str = "objective", settings: str | None = None) -> Objective:
    """The objective of that name, with the settings that a text gives it.

    Args:
        name (`str`): Key in [`OBJECTIVES`].
        defaults (`dict`): Settings that stand in fields of their own.
        field (`str`, *optional*): What messages call it; its settings stand in `{field}_args`.
        settings (`str`, *optional*): `"temperature=2,kl_direction=target_to_proxy"`; they win over the defaults.

    Raises:
        InputError: for an unknown setting, with the known ones; a value that can't be meant; or two values for a
            setting, in its own field and in `settings`.
    """
    known, kinds = inspect.signature(OBJECTIVES[name]).parameters, get_type_hints(OBJECTIVES[name].__init__)
    values = dict(defaults)
    for item in filter(None, (settings or "").split(",")):
        key, text = (part.strip() for part in item.partition("=")[::2])
        if key not in known:
            raise InputError(f"{field}_args sets {key!r}; known of {name}: {', '.join(known) or 'no settings'}.")
        value = _parse_setting(f"{field}_args", key, text, kinds.get(key, type(known[key].default)))
        if values.get(key, value) not in (value, known[key].default):
            raise InputError(f"{key} is {values[key]!r}, but {field}_args sets it to {value!r}: give it once.")
        values[key] = value
    return OBJECTIVES[name](**values)


def _parse_setting(field: str, key: str, text: str, kind):
    """A setting's value as its constructor wants it: a number, which may be a fraction, `true` or `false`, or text."""
    kind = next((part for part in get_args(kind) if part is not type(None)), kind)  # of `float | None`, float
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{field} sets {key} to {text!r}, which must be true or false.")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    return read_number(text, f"{field} sets {key}", whole=kind is int)
