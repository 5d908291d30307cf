"""What comes out of a comparison, as files: tables, a sentence for each pair of methods, pictures, and all as JSONL.

comparison.md      what is printed: budgets, choices, tests, doubts, pairs, cost
comparison.jsonl   a line for each record and each result: see its "kind"
frontiers.png      dials on held-out images; tests_TEST.png: the tested points
"""

from collections import Counter

from hpt.comparing.budget import ROLES, Budget, differing
from hpt.comparing.choices import DIVERGED, train_task
from hpt.comparing.figures import draw_frontiers, draw_tests
from hpt.comparing.grid import Grid
from hpt.comparing.records import Records
from hpt.comparing.results import TRAINED, Results, Tested, collect, describe_records, describe_results, pairs
from hpt.comparing.statistics import Difference, mean_and_spread
from hpt.comparing.tasks import PHASES, Plan
from hpt.escaping import file_name, markdown
from hpt.evaluation.report import fitting_tables
from hpt.evaluation.rows import CLEAN, WORST_CASE, wilson_interval
from hpt.files import write_file
from hpt.json_files import as_line


FRONTIERS = "frontiers.png"


def write_report(grid: Grid, records: Records) -> str:
    """Write a comparison's files into its folder, as far as it is finished; the text of `comparison.md`."""
    results = collect(grid, records)
    text = format_report(grid, records, results)
    write_file(grid.folder / "comparison.md", text + "\n")
    lines = [as_line(line) for line in [*describe_records(records), *describe_results(results)]]
    write_file(grid.folder / "comparison.jsonl", "".join(lines))
    if results.dials:  # none if every run diverged
        attack = f"{grid.comparison.tune_attack} at {grid.eps.title}"
        title = f"Held-out images, {attack}; lines: means over seeds, rings: each run's choice"
        draw_frontiers(list(grid.methods), results.dials, results.points, title, grid.folder / FRONTIERS)
    for test in tests_of(results):
        title = f"{test}, worst case at {grid.eps.title}; hollow at t = 1; bars: deviation between seeds"
        shown = [tested for tested in results.tested if tested.test == test]
        draw_tests(list(grid.methods), _accuracies(shown), title, grid.folder / picture_of(test))
    return text


def tests_of(results: Results) -> list[str]:
    return list(dict.fromkeys(tested.test for tested in results.tested))


def picture_of(test: str) -> str:
    return f"tests_{file_name(test)}.png"


def _accuracies(tested: list[Tested]) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    return {(one.method, one.where): (one.accuracies(CLEAN), one.accuracies(WORST_CASE)) for one in tested}


# Text


def format_report(grid: Grid, records: Records, results: Results) -> str:
    """All tables and sentences, in Markdown."""
    seeds = len(grid.comparison.seeds)
    parts = [f"# Comparison of {len(grid.methods)} methods, {seeds} seed{'s' * (seeds > 1)} each"]
    if results.left.ready:
        parts += ["## What isn't finished", format_left(results.left)]
    parts += ["## Budget of a run", format_budgets(results.budgets)]
    parts += ["## What was chosen on held-out images", format_choices(grid, records, results)]
    parts += [f"![Dials on held-out images]({FRONTIERS})"] * bool(results.dials)
    for test in tests_of(results):
        picture = f"![Clean and robust accuracy]({picture_of(test)})"
        parts += [f"## {markdown(test)}", format_test(results, test), picture]
    parts += ["## What makes these accuracies doubtful", format_doubts(results.tested)]
    parts += ["## Which differences the data can tell", format_pairs(results.tested)]
    parts += ["## What it cost", format_cost(records)]
    return "\n\n".join(parts)


def format_left(left: Plan) -> str:
    """The tasks that aren't done: those that can be done now by name, and how many wait for them."""
    names = "".join(f"\n- {markdown(task.id)}" for task in left.ready)
    later = sum(left.later.values())
    waiting = f" At least {later} more wait for these." if later else ""
    return f"{left.done} tasks are done. Of those that aren't, these can be done now.{waiting}\n{names}"


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
    """The rate of each method and the points of its runs, with what to know of them."""
    lines = [["method", "learning rates", "chosen", "points t of its runs"]]
    for method, rate in results.rates.items():
        rates = ", ".join(f"{value:g}" for value in grid.methods[method].learning_rates)
        points = ", ".join(f"{choice.point.t:g}" for choice in results.points.get(method, [])) or "-"
        lines.append([markdown(method), rates, "none" if rate is None else f"{rate.run.learning_rate:g}", points])
    comparison = grid.comparison
    first = comparison.seeds[0]
    said = (
        f"By the rule {comparison.choose}, on {comparison.tune_samples} training images that were held out, under "
        f"{comparison.tune_attack} at {grid.eps.title}, at t = {', '.join(f'{t:g}' for t in comparison.dial)}. Rates "
        f"were chosen by the runs with seed {first} alone; the best of them is one of those that are tested, with the "
        "luck that it may have had."
    )
    notes = [note for method in results.rates for note in _notes_of(grid, records, results, method)]
    listed = "".join(f"\n- {markdown(note)}" for note in notes)
    return f"{fitting_tables(lines, keys=1)}\n\n{markdown(said)}" + (f"\n{listed}" if notes else "")


def _notes_of(grid: Grid, records: Records, results: Results, method: str) -> list[str]:
    """What a reader should know of a method's choices: ends of what was tried, rules not kept, runs that diverged."""
    rates, chosen = grid.methods[method].learning_rates, results.rates[method]
    points = results.points.get(method, [])
    notes = [f"{choice.run} has no point that keeps the rule." for choice in points if not choice.keeps_rule]
    if chosen is not None and len(rates) > 1 and chosen.run.learning_rate in (min(rates), max(rates)):
        end, further = ("smallest", "smaller") if chosen.run.learning_rate == min(rates) else ("largest", "larger")
        notes.append(f"{method}: its rate is the {end} that was tried; a {further} one may be better.")
    least = min(grid.comparison.dial)
    if number := sum(choice.point.t == least > 0 for choice in points):
        notes.append(f"{method}: {number} of {len(points)} runs have the least t of the dial; less may be better.")
    for run in grid.runs_of(method):
        if (trained := records.read(train_task(run))) and DIVERGED in trained:
            notes.append(f"{run} diverged and is left out: {trained[DIVERGED].partition('. ')[0].rstrip('.')}.")
    return notes


def format_test(results: Results, test: str) -> str:
    """A test's table: accuracies in %, the mean over seeds with the standard deviation between them."""
    shown = [tested for tested in results.tested if tested.test == test]
    attacks = list(shown[0].right)
    lines = [["method", "", "runs", *map(markdown, attacks)]]
    for tested in sorted(shown, key=lambda tested: tested.where == TRAINED):
        cells = [_percent(*mean_and_spread(tested.accuracies(attack))) for attack in attacks]
        runs = str(len(tested.right[CLEAN])) if tested.where else "-"
        lines.append([markdown(tested.method), tested.where or "before training", runs, *cells])
    images = shown[0].right[CLEAN].shape[1]
    low, high = wilson_interval(images // 2, images)
    said = (
        f"Accuracy in % on {images:,} images: mean over the runs ± their standard deviation, which says nothing of "
        f"other images. On so many, an accuracy of 50 % is known to ± {50 * (high - low):.1f} points (95 %), and "
        "differences on the same images better, as below."
    )
    return f"{fitting_tables(lines, keys=3)}\n\n{said}"


def format_doubts(tested: list[Tested]) -> str:
    """A line for each reliability flag on each test, with the methods that raise it."""
    raised: dict[tuple[str, str], Counter] = {}
    messages: dict[tuple[str, str], str] = {}
    for one in tested:
        for flag in (flag for flags in one.flags for flag in flags):
            raised.setdefault((flag.name, one.test), Counter())[" ".join(filter(None, (one.method, one.where)))] += 1
            messages.setdefault((flag.name, one.test), f"{flag.model}: {flag.message}")
    lines = []
    for (name, test), methods in raised.items():
        whose = ", ".join(f"{method} ({number})" for method, number in methods.items())
        message = messages[name, test]
        lines.append(f"- {markdown(f'{name} on {test}: {whose}. The first is {message}')}")
    return "Runs that raise a flag, by method:\n\n" + "\n".join(lines) if lines else "Nothing that hpt looks for."


def format_pairs(tested: list[Tested]) -> str:
    """A line for each two methods on each test."""
    said: dict[tuple, list[str]] = {}
    found = pairs(tested)
    for first, second, attack, difference in found:
        said.setdefault((first.test, first.method, second.method), []).append(f"{attack} {_points(difference)}")
    if not found:
        return "There are no two methods yet that were tested on the same images."
    lines = [
        f"- {markdown(f'{test}: {first} against {second}: ' + '; '.join(parts))}."
        for (test, first, second), parts in said.items()
    ]
    single = [one.method for one in tested if one.where not in ("", TRAINED) and len(one.right[CLEAN]) == 1]
    how = [
        "Points of accuracy at the chosen points, with paired 95 % t intervals over images and seeds (see "
        "`hpt.comparing.statistics`).",
        f"Of {len(found)} such intervals, about {len(found) / 20:.0f} miss the truth by chance. A difference that is "
        "told by itself alone would not be if all of them had to hold at once (Bonferroni).",
    ]
    if single:
        how.append(f"Of {markdown(', '.join(dict.fromkeys(single)))} there is one run: nothing is known of others.")
    return "\n".join([" ".join(how), "", *lines])


def format_cost(records: Records) -> str:
    """Core-hours and hours of each phase."""
    spent = {phase: [record for record in records.read_all().values() if record["phase"] == phase] for phase in PHASES}
    spent["all"] = sum(spent.values(), [])
    lines = [["phase", "tasks", "core-hours", "hours"]]
    for phase, done in spent.items():
        core, wall = (sum(record[kind] for record in done) / 3600 for kind in ("cpu_seconds", "seconds"))
        lines.append([phase, str(len(done)), f"{core:.3f}", f"{wall:.3f}"])
    said = (
        "Core-hours are what processors computed, with what was lost when a process was cut off; hours are summed "
        "over processes, without that."
    )
    return f"{fitting_tables(lines, keys=1)}\n\n{said}"


def _percent(mean: float, spread: float | None) -> str:
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"


def _points(difference: Difference) -> str:
    """`+2.0 (+0.4 to +3.6), told by itself alone`"""
    middle, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    told = f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
    if not difference.is_told:
        return f"{told}, which can't be told from none"
    return told if difference.told_among_all else f"{told}, told by itself alone"
