"""What the objectives of a run need beside images: a proxy, labels, class names. Messages name the one that does."""

from collections.abc import Callable

from hpt.data.given import say_unlabelled
from hpt.errors import InputError
from hpt.training.config import HPTConfig
from hpt.training.gpd import ANCHOR
from hpt.training.objectives import Objective
from hpt.training.sums import WeightedSum


def who_needs_proxy(args: HPTConfig) -> str | None:
    """Which objective of a run learns from a proxy, as messages call it; `None` if none does."""
    return _first(args, lambda objective: objective.needs_proxy)


def who_needs_labels(args: HPTConfig) -> str | None:
    """Likewise, which needs labels, for itself or its attack."""
    return _first(args, lambda objective: objective.needs_labels or _attacks_by_label(objective))


def check_unlabelled(args: HPTConfig, train_dataset, class_names: list[str] | None) -> None:
    """Refuse to train on images without labels, or without class names too, where an objective needs them.

    Raises:
        InputError: naming the objective and what is missing.
    """
    if needed_by := who_needs_labels(args):
        lack = say_unlabelled(train_dataset, "The training set")
        raise InputError(f"{lack} Labels are needed by {needed_by}.")
    needed_by = _first(args, lambda objective: objective.needs_classes)
    if class_names is None and needed_by:
        raise InputError(
            f"The training set has neither labels nor class names, but prompts are needed by {needed_by}: give "
            "class_names."
        )


def _first(args: HPTConfig, needs: Callable[[Objective], bool]) -> str | None:
    for stage, objective in args.make_objectives().items():
        if needs(objective):
            if stage == ANCHOR:
                return f"the anchor stage's objective, {args.anchor_objective} (anchor_epochs=0 leaves that stage out)"
            return f"the objective {args.objective}"
    return None


def _attacks_by_label(objective: Objective) -> bool:
    """Whether its attack maximises cross-entropy with the label, as it does unless the objective says otherwise."""
    if isinstance(objective, WeightedSum):
        return any(_attacks_by_label(objective.terms[name]) for name in objective.attacks)
    return objective.needs_attack and type(objective).attack_loss is Objective.attack_loss
