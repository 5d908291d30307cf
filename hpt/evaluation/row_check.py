"""What can't have been measured: the check of every row that is read, from results, beside a model or in a card.

A row says some things twice: its interval follows from its accuracy and its samples, of which the accuracy is a share.
So even in rows without a digest an altered number is noticed.
"""

import math
from dataclasses import fields

from hpt.errors import InputError
from hpt.evaluation.rows import CLEAN, Row, wilson_interval
from hpt.json_files import check_kinds


FIELDS = {field.name: field.type for field in fields(Row)}
# The least that a number can be, if there is one
LEAST = {"n": 1, "batch_size": 1, "max_samples": 1, "seed": 0, "steps": 0, "restarts": 0, "step_size": 0, "seconds": 0}
LEAST |= {"evaluations": 1}
SHARES_OF_SAMPLES = ("accuracy", "most_predicted", "chance")
SHARES = (*SHARES_OF_SAMPLES, "mean_per_class_accuracy", "always_right")


def check_row(row: Row) -> None:
    """Refuse a row that can't have been measured.

    Raises:
        ValueError: saying what can't be.
    """
    check_kinds(vars(row), FIELDS)
    _check_numbers(row)
    _check_interval(row)
    _check_evaluations(row)
    _check_attack(row)


def _check_numbers(row: Row) -> None:
    values = {name: value for name, value in vars(row).items() if value is not None}
    for name, least in LEAST.items():
        if values.get(name, least) < least:
            raise ValueError(f"{name} is {values[name]}, but must be at least {least}")
    for name in SHARES:
        if not 0 <= values.get(name, 0) <= 1:
            raise ValueError(f"{name} is {values[name]}, but must be in [0, 1]")
    verdicts = row.n * (row.evaluations or 1)
    for name in SHARES_OF_SAMPLES:
        if not _is_share(values.get(name, 0), verdicts):
            raise ValueError(f"{name} is {values[name]}, which isn't a share of {verdicts} samples")
    counts = {"zero_gradient": row.zero_gradient or 0} | row.broken_by
    for name, count in counts.items():
        if not 0 <= count <= row.n:
            raise ValueError(f"{name} is {count}, but must be in [0, {row.n}], the number of samples")


def _check_interval(row: Row) -> None:
    evaluations = row.evaluations or 1
    right = round(row.accuracy * row.n * evaluations) / evaluations
    low, high = wilson_interval(right, row.n)
    if not (_same(row.low, low) and _same(row.high, high)):
        raise ValueError(
            f"low and high are {row.low:.4g} and {row.high:.4g}, but of {right:g} right samples of {row.n} they are "
            f"{low:.4g} and {high:.4g}"
        )


def _check_evaluations(row: Row) -> None:
    """Whether a randomised classifier's accuracy is the mean of those in its evaluations, and another has none."""
    if row.evaluations is None and not row.accuracies and row.always_right is None:
        return
    shares = [*row.accuracies, row.always_right]
    if row.always_right is None or len(row.accuracies) != row.evaluations:
        raise ValueError(f"it has {row.evaluations} evaluations, but accuracies in {len(row.accuracies)} of them")
    if not all(0 <= share <= 1 and _is_share(share, row.n) for share in shares):
        raise ValueError(f"accuracies and always_right are {shares}, which aren't shares of {row.n} samples")
    mean = sum(row.accuracies) / len(row.accuracies)
    if not _same(row.accuracy, mean) or row.always_right > min(row.accuracies):
        raise ValueError(
            f"accuracy and always_right are {row.accuracy} and {row.always_right}, but the evaluations have a mean of "
            f"{mean} and at least {min(row.accuracies)}"
        )


def _check_attack(row: Row) -> None:
    """Whether an attack has whom it was made against and a radius, and clean images have neither."""
    for name in ("attacked", "eps"):
        if (getattr(row, name) is None) != (row.attack == CLEAN):
            raise ValueError(f"attack is {row.attack!r}, but {name} is {getattr(row, name)!r}")
    try:
        row.radius  # noqa: B018
    except InputError as error:
        raise ValueError(f"its radius can't be: {error}") from error
    if row.is_worst_case:
        named = {"attacks": row.parameters.get("attacks")}
        check_kinds(named, {"attacks": list[str]})
        if not named["attacks"]:
            raise ValueError("it is the worst case over no attack")


def _is_share(value: float, number: int) -> bool:
    return _same(value * number, round(value * number))


def _same(first: float, second: float) -> bool:
    """Whether numbers are the same, rounding aside."""
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)
