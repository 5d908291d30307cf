"""What comes out of a comparison: tables, a sentence for each pair of methods, pictures, and all of it as JSONL.

comparison.md      what is printed: budgets, choices, tests, pairs, cost
comparison.jsonl   a line for each record and each result: see its "kind"
frontiers.png      dials on held-out images; tests_TEST.png: the tested points
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from hpt.comparing.budget import ROLES, Budget, differing
from hpt.comparing.choices import DIVERGED, Choice, choose_rate, choose_run_point, chosen_runs, read_dial, train_task
from hpt.comparing.figures import draw_frontiers, draw_tests
from hpt.comparing.grid import Grid, Run
from hpt.comparing.records import Records
from hpt.comparing.statistics import Difference, compare_verdicts, mean_and_spread
from hpt.comparing.tasks import PHASES, budget_task, test_task
from hpt.escaping import file_name, markdown
from hpt.evaluation.dial import DialPoint
from hpt.evaluation.report import fitting_tables
from hpt.evaluation.rows import CLEAN, WORST_CASE
from hpt.files import write_file
from hpt.json_files import as_line


CHOSEN, TRAINED = "at the chosen point", "at t = 1"  # where runs are tested


@dataclass(frozen=True)
class Tested:
    """What a method's runs did on a test, at one of [`CHOSEN`] and [`TRAINED`].

    Args:
        method, where, test (`str`): What was tested.
        right (`dict[str, np.ndarray]`): By attack, verdicts of shape `(seeds, images)`.
    """

    method: str
    where: str
    test: str
    right: dict[str, np.ndarray]

    def accuracies(self, attack: str) -> list[float]:
        """The accuracy of each run."""
        return self.right[attack].mean(1).tolist()


@dataclass(frozen=True)
class Results:
    """All that a comparison says of its methods.

    Args:
        budgets (`dict[str, Budget]`): By method.
        rates (`dict[str, Choice | None]`): What was chosen of each method; `None` if all of its runs diverged.
        points (`dict[str, list[Choice]]`): What was chosen of each run of a method that didn't.
        dials (`dict[str, list[list[DialPoint]]]`): By method, the dial of each of these runs.
        tested (`list[Tested]`): Vanilla targets first.
    """

    budgets: dict[str, Budget]
    rates: dict[str, Choice | None]
    points: dict[str, list[Choice]]
    dials: dict[str, list[list[DialPoint]]]
    tested: list[Tested]


def write_report(grid: Grid, records: Records) -> str:
    """Write a finished comparison's files into its folder; the text of `comparison.md`."""
    results = collect(grid, records)
    text = format_report(grid, records, results)
    write_file(grid.folder / "comparison.md", text + "\n")
    lines = [as_line(line) for line in [*describe_records(records), *describe_results(results)]]
    write_file(grid.folder / "comparison.jsonl", "".join(lines))
    title = f"Held-out images, {grid.comparison.tune_attack} at {grid.eps.title}; the rings were chosen"
    if results.dials:  # none if every run diverged
        draw_frontiers(results.dials, results.points, title, grid.folder / "frontiers.png")
    for test in dict.fromkeys(tested.test for tested in results.tested):
        of_test = [tested for tested in results.tested if tested.test == test]
        title = f"{test}, worst case at {grid.eps.title}; hollow at t = 1"
        draw_tests(_accuracies(of_test), title, grid.folder / f"tests_{file_name(test)}.png")
    return text


def _accuracies(tested: list[Tested]) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    return {(one.method, one.where): (one.accuracies(CLEAN), one.accuracies(WORST_CASE)) for one in tested}


# Collecting


def collect(grid: Grid, records: Records) -> Results:
    """The results of a comparison of which no task is left."""
    rates = {method: choose_rate(grid, records, method) for method in grid.methods}
    points, dials, tested = {}, {}, []
    for name, _ in grid.targets().items():
        tested += [_read_test(records, name, "", {name: 0.0}, test) for test in grid.tests]
    for method in grid.methods:
        chosen = {run: choose_run_point(grid, records, run) for run in chosen_runs(grid, records, method)}
        chosen = {run: choice for run, choice in chosen.items() if choice is not None}
        if chosen:
            points[method] = list(chosen.values())
            dials[method] = [read_dial(records, run) for run in chosen]
            for test in grid.tests:
                at_choice = {run: choice.point.t for run, choice in chosen.items()}
                tested.append(_read_test(records, method, CHOSEN, at_choice, test))
                tested.append(_read_test(records, method, TRAINED, dict.fromkeys(chosen, 1.0), test))
    budgets = {method: Budget.of(records.read(budget_task(method))) for method in grid.methods}
    return Results(budgets, rates, points, dials, tested)


def _read_test(records: Records, method: str, where: str, points: dict[Run | str, float], test: str) -> Tested:
    read = [records.read(test_task(run, t, test)) for run, t in points.items()]
    right = {
        attack: np.array([[digit == "1" for digit in record["right"][attack]] for record in read])
        for attack in read[0]["right"]
    }
    return Tested(method, where, read[0]["rows"][0]["benchmark"], right)


def describe_records(records: Records) -> Iterator[dict]:
    """Each task's record, as a line of `comparison.jsonl`."""
    for task, record in records.read_all().items():
        yield {"kind": "record", "task": task} | record


def describe_results(results: Results) -> Iterator[dict]:
    """What follows from the records, as lines of `comparison.jsonl`."""
    for method, rate in results.rates.items():
        runs = [{"run": str(choice.run)} | asdict(choice.point) for choice in results.points.get(method, [])]
        chosen = rate and rate.run.learning_rate
        yield {"kind": "choice", "method": method, "learning_rate": chosen, "runs": runs}
    for tested in results.tested:
        for attack in tested.right:
            mean, spread = mean_and_spread(tested.accuracies(attack))
            what = {"method": tested.method, "where": tested.where, "test": tested.test, "attack": attack}
            yield {"kind": "accuracy"} | what | {"mean": mean, "spread": spread, "runs": tested.accuracies(attack)}
    for first, second, attack, difference in pairs(results.tested):
        what = {"first": first.method, "second": second.method, "where": first.where or second.where}
        yield {"kind": "pair"} | what | {"test": first.test, "attack": attack} | asdict(difference)


def pairs(tested: list[Tested]) -> Iterator[tuple[Tested, Tested, str, Difference]]:
    """Each two methods on each test, at the chosen points, without an attack and in the worst case."""
    shown = [one for one in tested if one.where != TRAINED]
    for first, second in combinations(shown, 2):
        if first.test == second.test:
            for attack in (CLEAN, WORST_CASE):
                yield first, second, attack, compare_verdicts(first.right[attack], second.right[attack])


# Text


def format_report(grid: Grid, records: Records, results: Results) -> str:
    """All tables and sentences, in Markdown."""
    seeds = len(grid.comparison.seeds)
    sections = [
        f"# Comparison of {len(grid.methods)} methods, {seeds} seed{'s' * (seeds > 1)} each",
        "## Budget of a run",
        format_budgets(results.budgets),
        "## What was chosen on held-out images",
        format_choices(grid, records, results),
        *(part for test in grid_tests(results) for part in (f"## {markdown(test)}", format_test(results, test))),
        "## Which differences the data can tell",
        format_pairs(results),
        "## What it cost",
        format_cost(records),
    ]
    return "\n\n".join(sections)


def grid_tests(results: Results) -> list[str]:
    return list(dict.fromkeys(tested.test for tested in results.tested))


def format_budgets(budgets: dict[str, Budget]) -> str:
    """Images, attack steps and passes of each method."""
    roles = [role for role in ROLES if any(budget.forward[role] for budget in budgets.values())]
    lines = [["method", "images", "attack steps", *(f"{role}, forward + backward" for role in roles)]]
    for method, budget in budgets.items():
        passes = [f"{budget.forward[role]:,} + {budget.backward[role]:,}" for role in roles]
        lines.append([markdown(method), f"{budget.images:,}", f"{budget.attack_steps:,}", *passes])
    unequal = " and ".join(differing(budgets))
    said = f"**The budgets differ in {unequal}.** " if unequal else "All see as many images in as many attack steps. "
    said += "Passes are of an image through a model's image tower, counted on a step of each stage."
    return f"{fitting_tables(lines, keys=1)}\n\n{said}"


def format_choices(grid: Grid, records: Records, results: Results) -> str:
    """The rate of each method and the points of its runs, and what happened at the rates."""
    lines = [["method", "learning rates", "chosen", "points t of its runs"]]
    notes = []
    for method, rate in results.rates.items():
        rates = ", ".join(f"{value:g}" for value in grid.methods[method].learning_rates)
        chosen = results.points.get(method, [])
        points = ", ".join(f"{choice.point.t:g}" for choice in chosen) or "-"
        lines.append([markdown(method), rates, "none" if rate is None else f"{rate.run.learning_rate:g}", points])
        notes += [f"{choice.run} has no point that keeps the rule." for choice in chosen if not choice.keeps_rule]
        for run in grid.runs_of(method):
            if (trained := records.read(train_task(run))) and DIVERGED in trained:
                notes.append(f"{run} diverged: {trained[DIVERGED]}")
    comparison = grid.comparison
    said = (
        f"By the rule {comparison.choose}, on {comparison.tune_samples} training images that were held out, under "
        f"{comparison.tune_attack} at {grid.eps.title}, at t = {', '.join(f'{t:g}' for t in comparison.dial)}; rates "
        f"with seed {comparison.seeds[0]} alone."
    )
    listed = "".join(f"\n- {markdown(note)}" for note in notes)
    return f"{fitting_tables(lines, keys=1)}\n\n{markdown(said)}" + (f"\n{listed}" if notes else "")


def format_test(results: Results, test: str) -> str:
    """A test's table: accuracies in %, the mean over seeds with the standard deviation between them."""
    shown = [tested for tested in results.tested if tested.test == test]
    attacks = list(shown[0].right)
    lines = [["method", "", *map(markdown, attacks)]]
    for tested in sorted(shown, key=lambda tested: tested.where == TRAINED):
        cells = [_percent(*mean_and_spread(tested.accuracies(attack))) for attack in attacks]
        lines.append([markdown(tested.method), tested.where or "before training", *cells])
    images = shown[0].right[CLEAN].shape[1]
    return f"{fitting_tables(lines, keys=2)}\n\nAccuracy in % on {images:,} images: mean ± deviation over the seeds."


def format_pairs(results: Results) -> str:
    """A line for each two methods on each test."""
    said: dict[tuple, list[str]] = {}
    for first, second, attack, difference in pairs(results.tested):
        told = f"{_points(difference)}" + ("" if difference.is_told else ", which can't be told from none")
        said.setdefault((first.test, first.method, second.method), []).append(f"{attack} {told}")
    lines = [
        f"- {markdown(f'{test}: {first} against {second}: ' + '; '.join(parts))}."
        for (test, first, second), parts in said.items()
    ]
    number = sum(map(len, said.values()))
    how = (
        "Points of accuracy at the chosen points, with paired 95 % t intervals over images and seeds (see "
        f"`hpt.comparing.statistics`). Of {number} such intervals, about {number / 20:.0f} miss the truth by chance."
    )
    return "\n".join([how, "", *lines])


def format_cost(records: Records) -> str:
    """Core-hours of each phase."""
    spent = records.cpu_seconds()
    lines = [["phase", "tasks", "core-hours"]]
    for phase in PHASES:
        hours = sum(spent.get(phase, [])) / 3600
        lines.append([phase, str(len(spent.get(phase, []))), f"{hours:.3g}"])
    total = sum(map(sum, spent.values())) / 3600
    lines.append(["all", str(sum(map(len, spent.values()))), f"{total:.3g}"])
    return fitting_tables(lines, keys=1)


def _percent(mean: float, spread: float | None) -> str:
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"


def _points(difference: Difference) -> str:
    middle, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
