"""Accuracies as `evaluate.Metric`s, used directly: nothing is downloaded.

CleanAccuracy().compute(predictions=[1, 0], references=[1, 1])
    {"clean_accuracy": 0.5, "clean_accuracy_low": 0.09, "clean_accuracy_high": 0.91, "n": 2}
RobustAccuracy().compute(predictions=[1, 0], references=[1, 1], adversarial_predictions=[[1, 0], [1, 1]])
    {"robust_accuracy": 0.0, ...}    # the first is broken by the second attack, the second is wrong anyway
"""

import datasets
import evaluate
import numpy as np

from hpt.errors import InputError
from hpt.evaluation.rows import wilson_interval


WILSON = "@article{wilson1927, author={E. B. Wilson}, title={Probable inference}, journal={JASA}, volume={22}}"


class AccuracyMetric(evaluate.Metric):
    """Base of the metrics here: predicted and true classes as integers, the accuracy's name, and its interval."""

    name: str
    more_features: dict = {}

    def __init__(self, **kwargs):
        super().__init__(**({"keep_in_memory": True} | kwargs))

    def _info(self) -> evaluate.MetricInfo:
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=WILSON,
            features=datasets.Features({"predictions": integer, "references": integer, **self.more_features}),
        )

    def _compute(self, predictions, references, **more) -> dict[str, float]:
        right = np.asarray(predictions) == np.asarray(references)
        return self._summary(self._right(right, np.asarray(references), **more), np.asarray(references))

    def _right(self, right: np.ndarray, references: np.ndarray) -> np.ndarray:
        return right

    def _summary(self, right: np.ndarray, references: np.ndarray) -> dict[str, float]:
        if len(right) == 0:
            raise InputError(f"There is nothing to compute the {self.name} of.")
        low, high = wilson_interval(int(right.sum()), len(right))
        return {self.name: float(right.mean()), f"{self.name}_low": low, f"{self.name}_high": high, "n": len(right)}


class CleanAccuracy(AccuracyMetric):
    """Share of right predictions, `clean_accuracy`, with its 95 % Wilson interval and the number of samples."""

    name = "clean_accuracy"


class RobustAccuracy(AccuracyMetric):
    """Share of samples right without an attack and under every attack, `robust_accuracy`, with its 95 % interval.

    `compute` takes `predictions` on clean images, `references`, and `adversarial_predictions`: for each sample a list
    of its predictions under one or more attacks or restarts.
    """

    name = "robust_accuracy"
    more_features = {"adversarial_predictions": datasets.Sequence(datasets.Value("int64"))}

    def _right(self, right, references, adversarial_predictions) -> np.ndarray:
        attacked = np.asarray(adversarial_predictions).reshape(len(references), -1)
        return right & (attacked == references[:, None]).all(1)


class MeanPerClassAccuracy(AccuracyMetric):
    """Mean over the classes of the share of their samples that are right, `mean_per_class_accuracy`.

    Customary where classes have unequal numbers of samples: Oxford Pets, Flowers-102, FGVC-Aircraft, Caltech-101.
    The mean isn't a share of samples, so it has no Wilson interval.
    """

    name = "mean_per_class_accuracy"

    def _summary(self, right, references) -> dict[str, float]:
        per_class = [right[references == label].mean() for label in np.unique(references)]
        return {self.name: float(np.mean(per_class)), "n": len(right)}
