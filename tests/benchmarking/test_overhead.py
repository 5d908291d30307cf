"""The bare loop that Trainer is measured against takes the same steps, or no time is given."""

from dataclasses import replace

import pytest

from hpt.benchmarking import overhead
from hpt.benchmarking.settings import Settings


TINY = Settings(models="quickstart", images=4, classes=3, rounds=2, use_cpu=True)
APART = "difference of the weights, relative to how far they moved"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_trainer_and_the_bare_loop_train_the_same_weights(tmp_path, precision):
    measurement = overhead.compare_with_bare_loop("trainer", replace(TINY, precision=precision), str(tmp_path))
    assert measurement.further[APART] == [0.0] and measurement.faults == []
    assert {name: len(seconds) for name, seconds in measurement.values.items()} == {"bare loop": 2, "Trainer": 2}
    assert min(measurement.values["Trainer"] + measurement.values["bare loop"]) > 0


def test_another_loop_is_no_measure(tmp_path, monkeypatch):
    make = overhead.make_our_step
    monkeypatch.setattr(overhead, "make_our_step", lambda pair, attack_steps, dtype: make(pair, 1, dtype))
    measurement = overhead.compare_with_bare_loop("trainer", TINY, str(tmp_path))
    assert measurement.values == {} and measurement.further[APART][0] > 1e-3
    (fault,) = measurement.faults
    assert fault.startswith("After 3 steps the weights of Trainer and of the bare loop differ by ")


def test_of_the_weights_that_train_all_count():
    vanilla, other = (overhead.make_pair(TINY).target.model for _ in range(2))
    moved = overhead.trained_by(other, vanilla)
    trained = [weight for weight in other.parameters() if weight.requires_grad]
    assert len(moved) == len(trained) and not any(change.any() for change in moved)
    trained[-1].data += 1
    assert [bool(change.any()) for change in overhead.trained_by(other, vanilla)] == [False] * (len(moved) - 1) + [
        True
    ]
