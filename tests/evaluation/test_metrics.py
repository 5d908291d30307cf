import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from hpt import InputError
from hpt.evaluation.metrics import CleanAccuracy, MeanPerClassAccuracy, RobustAccuracy


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    references = random.choice(4, 200, p=[0.6, 0.2, 0.1, 0.1])
    predictions, *attacked = (
        np.where(random.random(200) < 0.7, references, random.integers(0, 4, 200)) for _ in range(4)
    )
    return predictions, references, np.stack(attacked, axis=1)


def test_clean_accuracy_equals_sklearns_and_scipys(data):
    predictions, references, _ = data
    result = CleanAccuracy().compute(predictions=predictions, references=references)
    assert result["clean_accuracy"] == pytest.approx(accuracy_score(references, predictions))
    interval = binomtest(int((predictions == references).sum()), 200).proportion_ci(method="wilson")
    assert result["clean_accuracy_low"] == pytest.approx(interval.low, abs=1e-6)
    assert result["clean_accuracy_high"] == pytest.approx(interval.high, abs=1e-6)
    assert result["n"] == 200


def test_robust_accuracy_needs_every_prediction_right(data):
    predictions, references, attacked = data
    inputs = {"predictions": predictions, "references": references}
    result = RobustAccuracy().compute(**inputs, adversarial_predictions=attacked)
    expected = np.mean([p == y and all(a == y) for p, y, a in zip(predictions, references, attacked, strict=True)])
    assert result["robust_accuracy"] == pytest.approx(expected)


def test_mean_per_class_accuracy_equals_sklearns(data):
    predictions, references, _ = data
    result = MeanPerClassAccuracy().compute(predictions=predictions, references=references)
    assert result["mean_per_class_accuracy"] == pytest.approx(balanced_accuracy_score(references, predictions))
    assert set(result) == {"mean_per_class_accuracy", "n"}


def test_batches_can_be_added(data):
    predictions, references, _ = data
    metric = CleanAccuracy()
    for rows in np.split(np.arange(200), 4):
        metric.add_batch(predictions=predictions[rows], references=references[rows])
    assert metric.compute() == CleanAccuracy().compute(predictions=predictions, references=references)


def test_nothing_to_measure_is_refused():
    with pytest.raises(InputError, match="nothing to compute the clean_accuracy of"):
        CleanAccuracy().compute(predictions=[], references=[])
