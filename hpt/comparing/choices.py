"""What is chosen on held-out images: a learning rate for each method, and a point of the dial for each run.

Choices follow from the records of dials alone, and are made anew whenever they are asked for: nothing of a test can
enter them, since nothing here has it.
"""

from dataclasses import dataclass

from hpt.comparing.grid import Grid, Run
from hpt.comparing.records import Records
from hpt.evaluation.dial import DialPoint, check_rule, choose_point


DIVERGED = "diverged"  # what a record of training says of a run that became NaN, with the line that says so


@dataclass(frozen=True)
class Choice:
    """What was chosen of a method or a run.

    Args:
        run ([`Run`]): The run.
        point ([`DialPoint`]): Its point.
        keeps_rule (`bool`): Whether the point is what the rule asks for; if none of the points is, the one with the
            most clean accuracy is taken.
    """

    run: Run
    point: DialPoint
    keeps_rule: bool


def dial_task(run: Run) -> str:
    return f"dial--{run}"


def train_task(run: Run) -> str:
    return f"train--{run}"


def read_dial(records: Records, run: Run) -> list[DialPoint] | None:
    """The measured points of a run; none of a run that diverged, and `None` if it isn't known yet."""
    trained = records.read(train_task(run))
    if trained is None or DIVERGED in trained:
        return None if trained is None else []
    dial = records.read(dial_task(run))
    return dial and [DialPoint(**point) for point in dial["points"]]


def choose(points: dict[Run, list[DialPoint]], rule: str) -> Choice | None:
    """The best point of one or several runs by a rule; `None` if there are none.

    Among runs whose points are equally good, that of the first run is taken.
    """
    every = [(run, point) for run, measured in points.items() for point in measured]
    if not every:
        return None
    least = check_rule(rule)
    keeps_rule = least is None or any(point.clean >= least for _, point in every)
    if keeps_rule:
        best = choose_point([point for _, point in every], rule)
    else:
        best = max((point for _, point in every), key=lambda point: (point.clean, point.robust))
    return Choice(next(run for run, point in every if point == best), best, keeps_rule)


def is_tuned(grid: Grid, records: Records, method: str) -> bool:
    """Whether all is known that the choice of a method's rate depends on."""
    return all(read_dial(records, run) is not None for run in grid.tuning_runs(method))


def choose_rate(grid: Grid, records: Records, method: str) -> Choice | None:
    """The rate of a method that [`is_tuned`]: that whose run has the best point of all, wherever on the dial.

    `None` if every rate diverged.
    """
    return choose({run: read_dial(records, run) for run in grid.tuning_runs(method)}, grid.comparison.choose)


def choose_run_point(grid: Grid, records: Records, run: Run) -> Choice | None:
    """The point of a run; `None` if it diverged, or isn't known yet."""
    return choose({run: read_dial(records, run) or []}, grid.comparison.choose)


def chosen_runs(grid: Grid, records: Records, method: str) -> list[Run]:
    """The runs of a method that [`is_tuned`] at its rate, one for each seed."""
    choice = choose_rate(grid, records, method)
    return [run for run in grid.runs_of(method) if choice and run.learning_rate == choice.run.learning_rate]
