"""Rows of an evaluation as the `model-index` of a model card, which the Hub and leaderboards read, and back."""

import json
import math
from contextlib import suppress

from huggingface_hub import EvalResult

from hpt.errors import InputError
from hpt.evaluation.report import describe_row
from hpt.evaluation.rows import ADDED, CLEAN, WORST_CASE, Row


TASK = "zero-shot-image-classification"
# Fields of a row that stand elsewhere in an entry of the index or of the card
ELSEWHERE = {"model", "accuracy", "split", "source", "image_mean", "image_std", "templates", "seconds"} | ADDED


def as_eval_result(row: Row) -> EvalResult:
    """A row as an entry of the index: accuracy in [0, 1], and in `metric_args` all that it depends on."""
    dataset, _, commit = (row.source or row.benchmark).partition("@")
    arguments = {name: value for name, value in vars(row).items() if name not in ELSEWHERE}
    arguments["parameters"] = row.strength  # who attacks all images is known by the batch size, as in all cards
    return EvalResult(
        task_type=TASK,
        task_name="Zero-shot image classification",
        dataset_type=dataset,
        dataset_name=row.benchmark,
        # Without it, results on other labels of the same dataset would be taken for results on the same samples
        dataset_config=row.benchmark if row.source and row.benchmark != dataset.split("/")[-1] else None,
        dataset_split=row.split,
        dataset_revision=commit or None,
        metric_type="accuracy",
        metric_name=describe_row(row),
        metric_value=row.accuracy,
        metric_args={name: value for name, value in arguments.items() if value not in (None, [], {})},
    )


def as_row(result: EvalResult, model: str) -> Row:
    """The row that an entry of the index was made from, without what [`as_eval_result`] leaves out.

    Raises:
        ValueError: for an entry of another tool or another version of hpt, or a number that can't be.
    """
    arguments = result.metric_args
    if result.metric_type != "accuracy" or not isinstance(arguments, dict):
        raise ValueError("it isn't an accuracy with its settings")
    commit = result.dataset_revision
    measured = {"accuracy": result.metric_value, "split": result.dataset_split}
    measured["source"] = commit and f"{result.dataset_type}@{commit}"
    try:
        row = Row(model=model, **({"attacked": None} | arguments | measured))
    except TypeError as error:
        raise ValueError("it hasn't the fields of a row") from error
    if not is_sound(row):
        raise ValueError("it has a value that can't be")
    return row


def is_sound(row: Row) -> bool:
    """Whether what a comparison needs of a row is there, of the right kind and possible."""
    texts = [row.benchmark, row.split, row.attack, row.attack_space]
    texts += [text for text in (row.attacked, row.samples) if text is not None]
    numbers = [row.accuracy, row.low, row.high] + ([] if row.attack == CLEAN else [row.eps])
    numbers += [number for number in (row.steps, row.step_size, row.restarts) if number is not None]
    if not all(isinstance(text, str) for text in texts) or type(row.n) is not int:
        return False
    if not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
        return False
    if not isinstance(row.parameters, dict) or not _is_list_of_texts(row.left_out) or not _has_json(row.parameters):
        return False
    if row.attack == WORST_CASE and not (
        row.parameters.get("attacks") and _is_list_of_texts(row.parameters["attacks"])
    ):
        return False
    known_radius = row.eps is None if row.attack == CLEAN else _is_radius(row)
    return known_radius and row.n > 0 and 0 <= row.low <= row.accuracy <= row.high <= 1


def _is_radius(row: Row) -> bool:
    with suppress(InputError):
        return row.radius is not None
    return False


def _is_list_of_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _has_json(value: dict) -> bool:
    try:
        return bool(json.dumps(value, sort_keys=True))
    except TypeError:
        return False
