"""Rows of an evaluation as the `model-index` of a model card, which the Hub and leaderboards read, and back."""

from huggingface_hub import EvalResult

from hpt.planning import describe_radius
from hpt.report import attack_label
from hpt.results import CLEAN, LARGE_EPS, WORST_CASE, Row


TASK = "zero-shot-image-classification"
# Fields of a row that stand elsewhere in an entry of the index, or say what the whole card is about
ELSEWHERE = {"model", "accuracy", "benchmark", "split", "source", "image_mean", "image_std", "templates", "seconds"}


def as_eval_result(row: Row) -> EvalResult:
    """A row as an entry of the index: accuracy in [0, 1], and in `metric_args` all that it depends on."""
    dataset, _, commit = (row.source or row.benchmark).partition("@")
    arguments = {name: value for name, value in vars(row).items() if name not in ELSEWHERE}
    return EvalResult(
        task_type=TASK,
        task_name="Zero-shot image classification",
        dataset_type=dataset,
        dataset_name=row.benchmark,
        dataset_split=row.split,
        dataset_revision=commit or None,
        metric_type="accuracy",
        metric_name=describe_row(row),
        metric_value=row.accuracy,
        metric_args={name: value for name, value in arguments.items() if value not in (None, [], {})},
    )


def as_row(result: EvalResult, model: str) -> Row:
    """The row that an entry of the index was made from, without what [`as_eval_result`] leaves out."""
    commit = result.dataset_revision
    return Row(
        model=model,
        accuracy=result.metric_value,
        benchmark=result.dataset_name,
        split=result.dataset_split,
        source=commit and f"{result.dataset_type}@{commit}",
        **({"attacked": None} | result.metric_args),
    )


def describe_row(row: Row) -> str:
    """What a row measured, in words: `Robust accuracy under PGD-10 at l_inf eps 16/255`."""
    if row.attack == CLEAN:
        return "Clean accuracy"
    radius = describe_radius(row.eps, row.norm)
    if row.attack == WORST_CASE:
        return f"Robust accuracy, worst case over {', '.join(row.parameters['attacks'])} at {radius}"
    if row.attack == LARGE_EPS:
        return f"Check that an attack at {radius} breaks everything"
    return f"Robust accuracy under {attack_label(row)} at {radius}"
