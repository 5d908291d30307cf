"""What the records of a comparison come to: choices, accuracies, and differences between methods.

results = collect(grid, records)
for first, second, attack, difference in pairs(results.tested):
    ...
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, product

import numpy as np

from hpt.comparing.budget import Budget
from hpt.comparing.choices import Choice, choose_rate, choose_run_point, chosen_runs, is_tuned, read_dial
from hpt.comparing.grid import Grid, Run
from hpt.comparing.records import Records
from hpt.comparing.statistics import Difference, compare_verdicts, mean_and_spread
from hpt.comparing.tasks import Plan, budget_task, plan_runs, test_task, tested_images
from hpt.errors import InputError
from hpt.evaluation.dial import DialPoint
from hpt.evaluation.flags import Flag, find_flags
from hpt.evaluation.rows import CLEAN, WORST_CASE, Row
from hpt.radius import Radius


CHOSEN, TRAINED = "at the chosen point", "at t = 1"  # where runs are tested


@dataclass(frozen=True)
class Tested:
    """What a method's runs did on a test at a radius, at one of [`CHOSEN`] and [`TRAINED`].

    Args:
        method, where, test (`str`): What was tested; of a vanilla target, `where` is empty.
        eps ([`Radius`]): The radius of the attacks.
        right (`dict[str, np.ndarray]`): By attack, verdicts of shape `(seeds, images)`.
        flags (`list[list[Flag]]`): What makes the accuracies of each run doubtful.
    """

    method: str
    where: str
    test: str
    eps: Radius
    right: dict[str, np.ndarray]
    flags: list[list[Flag]]

    def accuracies(self, attack: str) -> list[float]:
        """The accuracy of each run."""
        return self.right[attack].mean(1).tolist()


@dataclass(frozen=True)
class Results:
    """All that a comparison says of its methods, as far as it is finished.

    Args:
        budgets (`dict[str, Budget]`): By method.
        rates (`dict[str, Choice | None]`): What was chosen of each method whose rates have all been tried; `None` if
            all of its runs diverged.
        points (`dict[str, list[Choice]]`): What was chosen of each run at the chosen rate that didn't.
        dials (`dict[str, list[list[DialPoint]]]`): By method, the dial of each of these runs.
        tested (`list[Tested]`): Vanilla targets first; of each method, at each radius, the runs whose tests are all
            done.
        left ([`Plan`]): What isn't finished.
    """

    budgets: dict[str, Budget]
    rates: dict[str, Choice | None]
    points: dict[str, list[Choice]]
    dials: dict[str, list[list[DialPoint]]]
    tested: list[Tested]
    left: Plan


def collect(grid: Grid, records: Records) -> Results:
    """The results of a comparison, as far as its records go.

    Raises:
        InputError: if tests of one name were of other images.
    """
    refuse_other_images(grid, records)
    rates = {method: choose_rate(grid, records, method) for method in grid.methods if is_tuned(grid, records, method)}
    points, dials, tested = {}, {}, []
    for name, eps in product(grid.targets(), grid.test_eps):
        tested += _read_tests(grid, records, name, "", {name: 0.0}, eps)
    for method in rates:
        chosen = {run: choose_run_point(grid, records, run) for run in chosen_runs(grid, records, method)}
        chosen = {run: choice for run, choice in chosen.items() if choice is not None}
        if chosen:
            points[method] = list(chosen.values())
            dials[method] = [read_dial(records, run) for run in chosen]
        for eps in grid.test_eps:
            done = {run: choice for run, choice in chosen.items() if _is_tested(grid, records, run, choice, eps)}
            at_choice = {run: choice.point.t for run, choice in done.items()}
            tested += _read_tests(grid, records, method, CHOSEN, at_choice, eps)
            if grid.comparison.dial != [1.0]:  # else these are the chosen points
                tested += _read_tests(grid, records, method, TRAINED, dict.fromkeys(at_choice, 1.0), eps)
    budgets = {method: Budget.of(records.read(budget_task(method))) for method in grid.methods}
    return Results(budgets, rates, points, dials, tested, plan_runs(grid, records))


def _is_tested(grid: Grid, records: Records, run: Run, choice: Choice, eps: Radius) -> bool:
    tasks = [test_task(grid, run, t, test, eps) for t in (choice.point.t, 1.0) for test in grid.tests]
    return all(records.read(task) is not None for task in tasks)


def _read_tests(
    grid: Grid, records: Records, method: str, where: str, points: dict[Run | str, float], eps: Radius
) -> Iterator[Tested]:
    """What runs did on each test at points of theirs and a radius, if it is known of one or several."""
    for test in grid.tests:
        read = [records.read(test_task(grid, run, t, test, eps)) for run, t in points.items()]
        read = [record for record in read if record is not None]
        if read:
            right = {
                attack: np.array([[digit == "1" for digit in record["right"][attack]] for record in read])
                for attack in read[0]["right"]
            }
            rows = [[Row(**row) for row in record["rows"]] for record in read]
            yield Tested(method, where, rows[0][0].benchmark, eps, right, [find_flags(own) for own in rows])


def refuse_other_images(grid: Grid, records: Records) -> None:
    """Refuse tests of one name on other images, whose verdicts can't be paired.

    Raises:
        InputError: naming two records.
    """
    for test in grid.tests:
        images = tested_images(grid, records, test)
        first = next(iter(images), None)
        for task, samples in images.items():
            if samples != images[first]:
                raise InputError(
                    f"{first} and {task} were tested on other images under one name: delete the records of the older, "
                    f"in {records.folder}, and it is tested again."
                )


def pairs(tested: list[Tested]) -> list[tuple[Tested, Tested, str, Difference]]:
    """Each two methods on each test, at the chosen points, without an attack and in the worst case at each radius."""
    shown = [one for one in tested if one.where != TRAINED]
    alike = [two for two in combinations(shown, 2) if (two[0].test, two[0].eps) == (two[1].test, two[1].eps)]
    first_eps = {_names(*two): two[0].eps for two in reversed(alike)}  # what no attack changes is compared once
    compared = [
        (*two, attack)
        for two in alike
        for attack in (CLEAN, WORST_CASE)
        if attack != CLEAN or two[0].eps == first_eps[_names(*two)]
    ]
    return [
        (first, second, attack, compare_verdicts(first.right[attack], second.right[attack], len(compared)))
        for first, second, attack in compared
    ]


def _names(first: Tested, second: Tested) -> tuple[str, str, str]:
    return first.method, second.method, first.test


# As lines of `comparison.jsonl`


def describe_records(records: Records) -> Iterator[dict]:
    """Each task's record."""
    for task, record in records.read_all().items():
        yield {"kind": "record", "task": task} | record


def describe_results(results: Results) -> Iterator[dict]:
    """What follows from the records."""
    for method, rate in results.rates.items():
        runs = [{"run": str(choice.run)} | asdict(choice.point) for choice in results.points.get(method, [])]
        chosen = rate and rate.run.learning_rate
        yield {"kind": "choice", "method": method, "learning_rate": chosen, "runs": runs}
    for tested in results.tested:
        what = {"method": tested.method, "where": tested.where, "test": tested.test, "test_eps": tested.eps}
        for attack in tested.right:
            mean, spread = mean_and_spread(tested.accuracies(attack))
            measured = {"attack": attack, "mean": mean, "spread": spread, "runs": tested.accuracies(attack)}
            yield {"kind": "accuracy"} | what | measured
        yield from ({"kind": "flag"} | what | asdict(flag) for flags in tested.flags for flag in flags)
    for first, second, attack, difference in pairs(results.tested):
        what = {"first": first.method, "second": second.method, "where": first.where or second.where}
        what |= {"test": first.test, "test_eps": first.eps, "attack": attack}
        yield {"kind": "pair"} | what | asdict(difference)
