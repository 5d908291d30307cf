"""Rows out of predictions: the accuracy of a task whose batches are all there, and of the worst case over attacks."""

import math

import numpy as np

from hpt.errors import InputError
from hpt.evaluation.plan import Task
from hpt.evaluation.results import ResultsFolder, predictions_of
from hpt.evaluation.rows import CLEAN, LARGE_EPS, MEASURED, WORST_CASE, Row, measured_accuracy, predicted_shares
from hpt.json_files import digest
from hpt.radius import Radius


# What of the measured doesn't follow from predictions
UNPREDICTED = {"source", "seconds"}


def summarise(results: ResultsFolder, task: Task) -> Row:
    """The row of a task whose batches are all in the results."""
    records = [results.predictions[task.key][batch] for batch in range(task.num_batches)]
    more = {"source": task.benchmark.source, "seconds": sum(record["seconds"] for record in records)}
    if task.attack is None:
        more |= {"stochastic": records[0]["stochastic"]}
        more |= predicted_shares(results.predicted(task.key), np.asarray(task.benchmark.dataset["label"][:]))
        return Row(**task.settings, **_measure(results, task, task.settings["n"], []), **more)
    more["zero_gradient"] = sum(record["zero_gradient"] for record in records)
    parts = {part: 0 for record in records for part in record["broken_by"]}
    more["broken_by"] = {part: sum(record["broken_by"].get(part, 0) for record in records) for part in parts}
    return Row(**task.settings, **_measure(results, task.clean, task.settings["n"], [task.key]), **more)


def find_worst_case(results: ResultsFolder, clean: Task, radius: Radius, against: str) -> Row:
    """The row of the samples that are right under every attack of that radius in the results, added to these.

    `against` names what the attacks have seen: see [`Row.against`].

    Raises:
        InputError: if the predictions of one are missing, or don't give its row.
    """
    subject = results.rows[clean.key].subject()
    rows = {
        key: row
        for key, row in results.rows.items()
        if row.model == subject["model"]
        and counts_against_model(row)
        and (row.radius, row.against) == (radius, against)
        and row.subject() == subject
    }
    for key, row in rows.items():
        if results.predicted(key).shape[1] != row.n:
            raise InputError(
                f"{results.folder} has the row of {row.attack} at {radius}, but not all of its predictions, without "
                f"which there is no worst case: bring predictions-*.jsonl back, or add {row.attack} to the attacks, "
                "which measures it again."
            )
        refuse_contradiction(results, key, _measure(results, clean, row.n, [key]))
    settings = clean.settings | {"attack": WORST_CASE, "attacked": against}
    settings |= {"eps": float(radius), "norm": radius.norm}
    settings |= {"parameters": {"attacks": sorted(row.attack for row in rows.values())}}
    key, measured = digest(settings), _measure(results, clean, settings["n"], list(rows))
    if key in results.rows:
        refuse_contradiction(results, key, measured)
    else:
        more = {"source": clean.benchmark.source, "seconds": sum(row.seconds for row in rows.values())}
        results.add_row(Row(**settings, **measured, **more))
    return results.rows[key]


def counts_against_model(row: Row) -> bool:
    """Whether a row is of an attack that the model had to withstand, and of no other beside it."""
    is_attack = row.attack not in (CLEAN, LARGE_EPS) and not row.is_worst_case
    return is_attack and not row.named_attack.scored_on_proxy


def _measure(results: ResultsFolder, clean: Task, number: int, under_attack: list[str]) -> dict:
    """The accuracy of the first samples without an attack and under all of the attacks whose rows have these digests.

    As [`~hpt.evaluation.metrics.RobustAccuracy`] has it, and `MeanPerClassAccuracy` where that is customary.
    """
    labels = np.asarray(clean.benchmark.dataset["label"][:number])
    right = weakest(np.stack([results.predicted(key)[:, :number] == labels for key in (clean.key, *under_attack)]))
    measured = measured_accuracy(right.sum().item() / len(right), number)
    if "evaluations" in clean.settings:
        measured["accuracies"] = right.mean(1).tolist()
        measured["always_right"] = right.all(0).mean().item()
    if clean.benchmark.mean_per_class:
        per_class = [right[:, labels == label].mean() for label in np.unique(labels)]
        measured["mean_per_class_accuracy"] = float(np.mean(per_class))
    return measured


def weakest(right: np.ndarray) -> np.ndarray:
    """Of each sample the verdicts under the attack that leaves the fewest of them right, `(evaluations, samples)`.

    `right` has verdicts of shape `(attacks, evaluations, samples)`. Of a single evaluation, a sample stays right that
    is right under every attack. Of several, chance has a part in which attack that is, so that the mean is a little
    too low, the less the more evaluations there are. To choose by other verdicts than those that count would make it
    too high: attacks that chance makes seem strong would be taken for strong ones.
    """
    worst = right.sum(1).argmin(0)  # (samples,), the first of those that are equal
    return np.take_along_axis(right, worst[None, None, :], 0)[0]


# Of files whose lines carry no digest, as those of earlier versions


def refuse_odd_predictions(results: ResultsFolder, task: Task) -> None:
    """Refuse predictions in the results that can't be of a task; [`InputError`] naming the first of their lines."""
    number, classes = len(task.benchmark), len(task.benchmark.class_names)
    size = task.settings["batch_size"]
    for batch, record in results.predictions.get(task.key, {}).items():
        noted = {"zero_gradient", "broken_by"} if task.attack else {"stochastic"} if batch == 0 else set()
        samples = len(range(batch * size, min((batch + 1) * size, number)))
        predictions = predictions_of(record)
        if not samples or predictions.shape != (task.evaluations, samples) or not noted <= set(record):
            problem = f"isn't of {samples} samples, or lacks what was noted of them"
        elif predictions.max() >= classes:
            problem = f"predicts class {predictions.max()} of {classes}"
        else:
            continue
        raise InputError(
            f'The line of {results.folder}/predictions-*.jsonl with "row": "{task.key}" and "batch": {batch} '
            f"{problem}: it was altered. Remove it, and its samples are measured again."
        )


def refuse_altered_row(results: ResultsFolder, task: Task) -> None:
    """[`refuse_contradiction`] of the row of a task whose batches are all in the results."""
    again = summarise(results, task)
    refuse_contradiction(results, task.key, {name: getattr(again, name) for name in MEASURED - UNPREDICTED})


def refuse_contradiction(results: ResultsFolder, key: str, measured: dict) -> None:
    """Refuse the row with that digest in the results, which lose it, if its predictions measure something else.

    Raises:
        InputError: naming the row and what differs.
    """
    row = results.rows[key]
    for name, here in measured.items():
        there = getattr(row, name)  # what earlier versions didn't measure is None
        if there is not None and there != here and not (isinstance(here, float) and math.isclose(there, here)):
            del results.rows[key]
            raise InputError(
                f"{results.file} has {name} {there!r} of {row.attack} on {row.benchmark}, but its predictions give "
                f'{here!r}: one of them was altered. Remove that row and the lines of predictions-*.jsonl with "row": '
                f'"{key}", and it is measured again.'
            )
