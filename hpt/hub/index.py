"""Rows of an evaluation as the `model-index` of a model card, which the Hub and leaderboards read, and back."""

import json

from huggingface_hub import EvalResult

from hpt.evaluation.report import describe_row
from hpt.evaluation.row_check import check_row
from hpt.evaluation.rows import ADDED, Row
from hpt.json_files import DIGEST, sealed, unsealed


TASK = "zero-shot-image-classification"
# Fields of a row that stand elsewhere in an entry of the index or of the card
ELSEWHERE = {"model", "accuracy", "split", "source", "image_mean", "image_std", "templates", "seconds"} | ADDED


def as_eval_result(row: Row) -> EvalResult:
    """A row as an entry of the index: accuracy in [0, 1], and in `metric_args` all that it depends on.

    There too is the digest of all that the entry says of the row.
    """
    dataset, _, commit = (row.source or row.benchmark).partition("@")
    arguments = {name: value for name, value in vars(row).items() if name not in ELSEWHERE}
    arguments["parameters"] = row.strength  # who attacks all images is known by the batch size, as in all cards
    result = EvalResult(
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
    result.metric_args[DIGEST] = sealed(_values(result))[DIGEST]
    return result


def _values(result: EvalResult) -> dict:
    """The fields of a row that an entry has, with the digest of them if it has one."""
    source = result.dataset_revision and f"{result.dataset_type}@{result.dataset_revision}"
    measured = {"accuracy": result.metric_value, "split": result.dataset_split, "source": source}
    return {"attacked": None} | result.metric_args | measured


def as_row(result: EvalResult, model: str) -> Row:
    """The row that an entry of the index was made from, without what [`as_eval_result`] leaves out.

    Raises:
        ValueError: for an entry of another tool or another version of hpt, one that was altered, or one with a value
            that can't be.
    """
    if result.metric_type != "accuracy" or not isinstance(result.metric_args, dict):
        raise ValueError("it isn't an accuracy with its settings")
    try:
        values = json.loads(json.dumps(_values(result), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("it has a value that can't be") from error
    try:
        row = Row(model=model, **unsealed(values))
    except TypeError as error:
        raise ValueError("it hasn't the fields of a row") from error
    try:
        check_row(row)
    except ValueError as error:
        raise ValueError(f"it has a value that can't be: {error}") from error
    return row
