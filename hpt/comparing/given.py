"""What runs are given: models and images, by their hashes, which stay the same over all calls of a comparison.

A record of `budget--METHOD` has them; what lies at the same paths later is held against it.
"""

from hpt.comparing.grid import Grid
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.evaluation.row_settings import hash_benchmark
from hpt.training.trainer import HPTTrainer


WEIGHTS, HELD_OUT = "target_weights", "held_out_samples"
GIVEN = (WEIGHTS, "target_configuration", "proxy_models", "samples")  # of what [`HPTTrainer.mathematics`] says
NAMED = {  # what a recipe calls what is hashed
    WEIGHTS: ("target", "target_revision", "image_size"),
    HELD_OUT: ("train_dataset", "validation_size", "protocol"),
}
REMEDY = "bring back what was there, or give another output_dir"


def describe_given(trainer: HPTTrainer, held_out: Benchmark) -> dict[str, str]:
    """Hashes of a run's models, of what it trains on, and of the images that choices are made on."""
    described = trainer.mathematics()
    found = {name: described[name] for name in GIVEN if name in described}
    return found | {HELD_OUT: hash_benchmark(held_out)}


def refuse_changed(kept: dict[str, str], here: dict[str, str], method: str) -> None:
    """Refuse models or images that aren't those that a method began with.

    Args:
        kept, here (`dict[str, str]`): From [`describe_given`], or a part of it.
        method (`str`): Its name.

    Raises:
        InputError: naming what has changed.
    """
    changed = [name for name in kept.keys() & here.keys() if kept[name] != here[name]]
    if changed:
        raise InputError(
            f"Method {method!r} is given something else than when its comparison began: "
            f"{', '.join(sorted(changed))} differ. {REMEDY.capitalize()}."
        )


def refuse_mixed(grid: Grid, given: dict[str, dict[str, str]]) -> None:
    """Refuse methods that name the same target, or the same training set, but weren't given the same.

    Args:
        grid ([`Grid`]): The comparison.
        given (`dict`): By method, from [`describe_given`].

    Raises:
        InputError: naming two that differ.
    """
    for hashed, names in NAMED.items():
        seen: dict[tuple, str] = {}
        for method, found in given.items():
            recipe, _ = grid.settings(grid.first_run(method))
            first = seen.setdefault(tuple(getattr(recipe, name) for name in names), method)
            if given[first].get(hashed) != found.get(hashed):
                raise InputError(
                    f"Methods {first!r} and {method!r} have the same {names[0]}, but it has changed since the former "
                    f"was begun ({hashed} differ): {REMEDY}."
                )
