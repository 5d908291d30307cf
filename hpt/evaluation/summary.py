"""Rows out of predictions: the accuracy of a task whose batches are all there, and of the worst case over attacks."""

import numpy as np

from hpt.evaluation.plan import Task
from hpt.evaluation.results import ResultsFolder
from hpt.evaluation.rows import CLEAN, LARGE_EPS, WORST_CASE, Row, predicted_shares
from hpt.files import digest
from hpt.radius import Radius


def summarise(results: ResultsFolder, task: Task) -> Row:
    """The row of a task, added to the results, which have all of its batches."""
    records = [results.predictions[task.key][batch] for batch in range(task.num_batches)]
    more = {"seconds": sum(record["seconds"] for record in records)}
    if task.attack is None:
        more |= {"stochastic": records[0]["stochastic"]}
        more |= predicted_shares(results.predicted(task.key), np.asarray(task.benchmark.dataset["label"][:]))
        return _add_row(results, task.settings, task, [], **more)
    more["zero_gradient"] = sum(record["zero_gradient"] for record in records)
    parts = {part: 0 for record in records for part in record["broken_by"]}
    more["broken_by"] = {part: sum(record["broken_by"].get(part, 0) for record in records) for part in parts}
    return _add_row(results, task.settings, task.clean, [results.predicted(task.key)], **more)


def find_worst_case(results: ResultsFolder, clean: Task, radius: Radius) -> Row:
    """The row of the samples that are right under every attack of that radius in the results, added to these."""
    subject = results.rows[clean.key].subject()
    rows = {
        key: row
        for key, row in results.rows.items()
        if (row.subject(), row.radius) == (subject, radius) and counts_against_model(row)
    }
    settings = clean.settings | {"attack": WORST_CASE, "attacked": subject["model"]}
    settings |= {"eps": float(radius), "norm": radius.norm}
    settings |= {"parameters": {"attacks": sorted(row.attack for row in rows.values())}}
    key = digest(settings)
    if key not in results.rows:
        seconds = sum(row.seconds for row in rows.values())
        _add_row(results, settings, clean, [results.predicted(attack) for attack in rows], seconds=seconds)
    return results.rows[key]


def counts_against_model(row: Row) -> bool:
    """Whether a row is of an attack that the model had to withstand itself."""
    return row.attack not in (CLEAN, WORST_CASE, LARGE_EPS) and not row.named_attack.scored_on_proxy


def _add_row(results: ResultsFolder, settings: dict, clean: Task, under_attack: list[np.ndarray], **more) -> Row:
    """A row of the accuracy without an attack and under all of the attacks given by their predictions."""
    from hpt.evaluation.metrics import CleanAccuracy, MeanPerClassAccuracy, RobustAccuracy

    number = settings["n"]
    labels = np.asarray(clean.benchmark.dataset["label"][:number])
    data = {"predictions": results.predicted(clean.key)[:number], "references": labels}
    if under_attack:
        measured = RobustAccuracy().compute(**data, adversarial_predictions=np.stack(under_attack, axis=1))
    else:
        measured = CleanAccuracy().compute(**data)
    accuracy, low, high, _ = measured.values()
    if clean.benchmark.mean_per_class:
        right = np.all([predicted == labels for predicted in (data["predictions"], *under_attack)], axis=0)
        data["predictions"] = np.where(right, labels, -1)
        more |= MeanPerClassAccuracy().compute(**data)
        more.pop("n")
    row = Row(**settings, source=clean.benchmark.source, accuracy=accuracy, low=low, high=high, **more)
    results.add_row(row)
    return row
