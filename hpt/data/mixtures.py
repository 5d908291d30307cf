"""Training on several sets at once, each with a share of the images of an epoch.

    HPTTrainer(..., train_dataset=Mixture([tiny_imagenet, cifar10], weights=[0.7, 0.3]))
    HPTTrainer(..., train_dataset={"birds": birds, "cars": cars})  # every image once an epoch

By default each optimizer step sees images of one set, on all processes and in all micro-batches, and classifies them
over that set's classes by its own prompts. With `batches="mixed"` a batch has images of all sets, over all classes.
"""

import math
import warnings
from collections.abc import Mapping
from numbers import Real

import datasets
import numpy as np

from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.epochs import BATCHES, MIXED, ONE_SET
from hpt.data.given import SPLITS
from hpt.data.loading import load_training_data
from hpt.data.names import parse_benchmark
from hpt.errors import InputError, check_known
from hpt.references import check_names


# Fields of recipes that say what is trained on
OF_THE_SETS = ("train_dataset", "train_datasets", "dataset_weights", "batches")


class Mixture:
    """Several training sets with their weights, as [`HPTTrainer`] takes them.

    Args:
        sets (`dict[str, dataset]` or `list[Benchmark]`): The sets by name, each a [`Benchmark`] or another set of
            images with labels and class names, as of [`as_dataset`]; not streaming. Benchmarks have names.
        weights (`list[float]`, *optional*): Shares of the images of an epoch, in the order of the sets, of any sum. By
            default each set has the share of its size, and so every image has its turn once an epoch.
        batches (`str`, *optional*, defaults to `"one_set"`): `"one_set"`: each optimizer step has images of one set,
            over that set's classes with its prompt template. `"mixed"`: a batch has images of all sets, over the
            classes of all of them, where classes of equal names are one; a class of several sets has the templates
            of all of them.

    Raises:
        InputError: for no sets, a set that is there twice or streams, weights that aren't numbers above 0, one for
            each set, or an unknown kind of batches.
    """

    def __init__(self, sets: Mapping | list, weights: list[float] | None = None, batches: str = ONE_SET):
        self.sets = _by_name(sets)
        self.weights = None if weights is None else _check_weights(weights, list(self.sets))
        check_known("batches", batches, BATCHES)
        self.batches = batches

    def shares(self, step_size: int) -> list[int]:
        """How many images an epoch has of each set: as many in all as the sets have, shared out by weight.

        Where a step has images of one set, each set's share is filled up to whole steps of `step_size` images.

        Raises:
            InputError: for a weight that leaves a set without an image.
        """
        sizes = list(map(len, self.sets.values()))
        shares = share_out(sum(sizes), self.weights or sizes)
        for name, share, size in zip(self.sets, shares, sizes, strict=True):
            if size == 0:
                raise InputError(f"{name} has no rows.")
            if share == 0:
                raise InputError(
                    f"The weight of {name} gives it none of the {sum(sizes)} images of an epoch: raise it, or leave "
                    "the set out."
                )
        if self.batches == MIXED:
            return shares
        if small := [name for name, share in zip(self.sets, shares, strict=True) if share < step_size]:
            warnings.warn(
                f"By weight, an epoch has fewer images of {' and '.join(small)} than a step's {step_size}, and so a "
                "whole step of them: batches=mixed would keep the share.",
                stacklevel=4,
            )
        return [math.ceil(share / step_size) * step_size for share in shares]


def _by_name(sets: Mapping | list) -> dict:
    """The sets of a mixture by their names."""
    if isinstance(sets, SPLITS) or not isinstance(sets, Mapping | list | tuple):
        raise InputError(f"A mixture is of sets, but got a {type(sets).__name__}: give a dict, name -> set.")
    if not sets:
        raise InputError("The mixture has no sets: give at least one.")
    names = list(sets) if isinstance(sets, Mapping) else list(map(_name_of, sets))
    parts = list(sets.values()) if isinstance(sets, Mapping) else list(sets)
    _check_once(names, list(map(id, parts)))
    for name, part in zip(names, parts, strict=True):
        if not isinstance(name, str):
            raise InputError(f"A set of the mixture is called {name!r}, but names must be text.")
        if isinstance(part, StreamingBenchmark | datasets.IterableDataset):
            raise InputError(f"{name} is a stream, which has no size to share out: mix sets that don't stream.")
    check_names(names)
    return dict(zip(names, parts, strict=True))


def _check_once(names: list, contents: list) -> None:
    """Refuse a name, or what stands for a set's content, that is there twice."""
    for place, name in enumerate(names):
        if name in names[:place] or contents[place] in contents[:place]:
            raise InputError(f"{name} is twice in the mixture: give each set once, and its weight says how often.")


def _name_of(part) -> str:
    if not isinstance(part, Benchmark | StreamingBenchmark):
        kind = type(part).__name__
        raise InputError(f"The mixture has a {kind}, which has no name: give a dict, name -> set, or benchmarks.")
    return part.name


def _check_weights(weights: list[float], names: list[str]) -> list[float]:
    if not isinstance(weights, list | tuple) or len(weights) != len(names):
        given = f"{len(weights)} weights" if isinstance(weights, list | tuple) else repr(weights)
        raise InputError(
            f"The mixture has {len(names)} sets, {', '.join(names)}, but got {given}: give a weight for each."
        )
    for name, weight in zip(names, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 < weight < math.inf:
            raise InputError(
                f"The weight of {name} is {weight!r}, but must be a number above 0: leave out a set that isn't wanted."
            )
    return list(map(float, weights))


def share_out(images: int, weights: list[float]) -> list[int]:
    """Whole numbers of sum `images`, each less than 1 from its weight's share (the method of largest remainders)."""
    exact = images * np.asarray(weights, float) / math.fsum(weights)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: images - shares.sum()]] += 1
    return shares.tolist()


def choose_sets(one: str | None, several: list[str], settings: dict, default: str) -> str | None:
    """The training set of a recipe: what it names, or the default if it names none; `None` for several.

    Args:
        one, several: The recipe's fields `train_dataset`, which an empty text unsets, and `train_datasets`.
        settings (`dict`): All of its fields, among which are `dataset_weights` and `batches`.
        default (`str`): What is trained on if neither is given.

    Raises:
        InputError: if both are given, or neither, by an empty text, or what is of several sets alone without these.
    """
    if several and one:
        raise InputError(
            f"train_dataset is {one!r}, but train_datasets is given too: leave one of them out. What a config says is "
            'taken back by --train_dataset "".'
        )
    if several:
        return None
    for name in ("dataset_weights", "batches"):
        if settings[name] is not None:
            raise InputError(f"{name} is {settings[name]!r}, but is of several sets: give them as train_datasets.")
    if one == "":
        raise InputError("train_dataset is empty: name a set, or several by train_datasets.")
    return default if one is None else one


def load_mixture(
    names: list[str],
    weights: list[float] | None = None,
    batches: str | None = None,
    validation_size: int = 0,
    protocol: str = "hpt",
    rows: int | None = None,
) -> tuple[Mixture, dict[str, Benchmark] | None]:
    """A mixture of training sets, and by name the validation sets of those that have one; `None` if none has.

    Args:
        names (`list[str]`): Benchmarks as of [`load_training_data`].
        weights, batches: As of [`Mixture`], with its defaults.
        validation_size, protocol: As of [`load_training_data`], for each set.
        rows (`int`, *optional*): Take at most so many images of each.

    Raises:
        InputError: as of these, and for two names of one place.
    """
    references = [parse_benchmark(name) for name in names]
    names = [reference.name for reference in references]
    _check_once(
        list(map(str, references)),
        [(reference.place or reference.name, reference.settings) for reference in references],
    )
    batches = batches or ONE_SET
    check_known("batches", batches, BATCHES)
    if weights is not None:
        _check_weights(weights, names)  # before anything is loaded
    loaded = [
        load_training_data(reference, validation_size, protocol, labels_for="a mixture") for reference in references
    ]
    mixture = Mixture([train.subset(rows) for train, _ in loaded], weights, batches)
    return mixture, {train.name: validation for train, validation in loaded if validation is not None} or None
