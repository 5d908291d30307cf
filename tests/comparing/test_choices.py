"""Rates and points that follow from what was measured on held-out images."""

import pytest

from hpt.comparing.choices import DIVERGED, choose, choose_rate, is_tuned
from hpt.comparing.grid import Method, Run
from hpt.comparing.records import Records
from hpt.evaluation.dial import DialPoint


class Grid:
    """What choices ask of a grid: one method with two rates."""

    class comparison:
        choose, seeds = "sum", [0, 1]

    methods = {"m": Method("m", {}, (0.1, 0.2))}

    def tuning_runs(self, method):
        return [Run(method, rate, 0) for rate in self.methods[method].learning_rates]


LOW, HIGH = Run("m", 0.1, 0), Run("m", 0.2, 0)


def points(*accuracies):
    return [
        DialPoint(t, 0.0, clean, robust, 100, f"{clean}")
        for t, (clean, robust) in zip((0.5, 1.0), accuracies, strict=True)
    ]


@pytest.mark.parametrize(
    "rule, run, t, keeps_rule",
    [
        ("sum", HIGH, 0.5, True),
        ("clean>=0.7", HIGH, 0.5, True),
        ("clean>=0.75", LOW, 1.0, True),
        ("clean>=0.85", LOW, 0.5, True),
        ("clean>=0.95", LOW, 0.5, False),  # by as much clean accuracy as there is
    ],
)
def test_the_best_point_of_all_rates_is_taken(rule, run, t, keeps_rule):
    choice = choose({LOW: points((0.9, 0.1), (0.8, 0.2)), HIGH: points((0.7, 0.5), (0.4, 0.6))}, rule)
    assert (choice.run, choice.point.t, choice.keeps_rule) == (run, t, keeps_rule)


def test_runs_that_diverged_are_not_chosen(tmp_path):
    grid, records = Grid(), Records(tmp_path)
    assert not is_tuned(grid, records, "m")
    records.write(f"train--{HIGH}", {DIVERGED: "The loss isn't finite."})
    records.write(f"train--{LOW}", {})
    assert not is_tuned(grid, records, "m")
    records.write(f"dial--{LOW}", {"points": [vars(point) for point in points((0.5, 0.1), (0.4, 0.1))]})
    assert is_tuned(grid, records, "m") and choose_rate(grid, records, "m").run == LOW
    records.write(f"train--{LOW}", {DIVERGED: "The loss isn't finite."})
    assert is_tuned(grid, records, "m") and choose_rate(grid, records, "m") is None


def test_a_damaged_record_is_no_record(tmp_path, caplog):
    records = Records(tmp_path)
    records.write("a", {"points": [1]})
    file = tmp_path / "records" / "a.json"
    file.write_text(file.read_text().replace("[1]", "[2]"))
    assert records.read("a") is None and "a.json is damaged" in caplog.text
