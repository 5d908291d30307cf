"""Why what frozen models make of clean images can't be kept, and where it would lie: the rule of `cache_clean: true`.

[`HPTConfig`] asks before anything is loaded, [`check_sets`] once it is known whether a run mixes sets, and
`hpt.training.clean_features` with the models at hand.
"""

from pathlib import Path

from huggingface_hub import constants
from transformers import TrainingArguments

from hpt.data.augmentation import AUGMENTATIONS
from hpt.errors import InputError
from hpt.files import check_folder
from hpt.training.objective_base import OF_ORIGINAL, Objective


NOBODY_ASKS = (
    "no objective of this run asks a frozen dual encoder of transformers for their logits or embeddings: leave it out"
)


def refuse_keeping(problem: str | None) -> None:
    """Raise [`InputError`] with why features can't be kept although they are asked for; `None` is no problem."""
    if problem is not None:
        raise InputError(f"cache_clean is true, which keeps what models make of clean images, but {problem}.")


def why_not_kept(args: TrainingArguments, is_mixture: bool = False) -> str | None:
    """Why features can't be kept, whichever models a run has; `None` where it depends on these.

    Args:
        args ([`HPTConfig`]): Settings.
        is_mixture (`bool`, *optional*, defaults to `False`): Whether several sets are trained on.
    """
    if args.steps_per_epoch is not None:  # which streams have, and nothing else
        return "a stream is never read in the same order twice: leave it out"
    if AUGMENTATIONS[args.augmentation] is not None:
        return f"augmentation is {args.augmentation!r}, which changes them in each epoch: give one of the two"
    if is_mixture:
        return "that isn't done for the images of a mixture: leave it out"
    return None if any(map(asked_for_features, args.make_objectives().values())) else NOBODY_ASKS


def asked_for_features(objective: Objective) -> tuple[str, ...]:
    """Which frozen models an objective asks about clean images: not the original where it is asked for patches."""
    return tuple(asked for asked in objective.asks_about_clean if asked != OF_ORIGINAL or not objective.needs_patches)


def cache_folder(fingerprint: str | None = None) -> Path:
    """Where all features are kept, or those with a fingerprint."""
    return Path(constants.HF_HOME, "hpt", "clean_features", fingerprint or "")


def check_cache() -> None:
    """Refuse a home of the Hub that takes no files; [`InputError`]."""
    try:
        check_folder(cache_folder())
    except InputError as error:
        raise InputError(f"Features of clean images must be kept. {error} Set HF_HOME to one that can.") from error
