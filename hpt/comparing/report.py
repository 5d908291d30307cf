"""What comes out of a comparison, as files: tables, a sentence for each pair of methods, pictures, and all as JSONL.

comparison.md      what is printed: budgets, choices, tests, doubts, pairs, cost
comparison.jsonl   a line for each record and each result: see its "kind"
frontiers.png      dials on held-out images; tests_TEST.png: the tested points; tests_TEST_epsEPS.png: at other radii
"""

from itertools import product

from hpt.comparing.budget import ROLES, Budget, differing
from hpt.comparing.choices import DIVERGED, train_task
from hpt.comparing.figures import draw_frontiers, draw_tests
from hpt.comparing.grid import Grid
from hpt.comparing.records import Records
from hpt.comparing.results import TRAINED, Results, Tested, collect, describe_records, describe_results, pairs
from hpt.comparing.statistics import Difference, mean_and_spread
from hpt.comparing.tasks import PHASES, Plan
from hpt.data.classes import show_names
from hpt.escaping import file_name, markdown
from hpt.evaluation.report import fitting_tables
from hpt.evaluation.rows import CLEAN, WORST_CASE, wilson_interval
from hpt.files import write_file
from hpt.json_files import as_line
from hpt.radius import Radius


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
    for test, eps in product(tests_of(results), grid.test_eps):
        shown = tested_at(results, test, eps)
        title = f"{test}, worst case at {eps.title}"
        title += "; hollow at t = 1" if any(tested.where == TRAINED for tested in shown) else ""
        title += "; bars: deviation between seeds" if len(grid.comparison.seeds) > 1 else ""
        if shown:
            draw_tests(list(grid.methods), _accuracies(shown), title, grid.folder / picture_of(grid, test, eps))
    return text


def tests_of(results: Results) -> list[str]:
    return list(dict.fromkeys(tested.test for tested in results.tested))


def tested_at(results: Results, test: str, eps: Radius) -> list[Tested]:
    """All that was tested on a test at a radius: vanilla, then methods at their chosen points, then at t = 1."""
    shown = [tested for tested in results.tested if (tested.test, tested.eps) == (test, eps)]
    return sorted(shown, key=lambda tested: tested.where == TRAINED)


def picture_of(grid: Grid, test: str, eps: Radius) -> str:
    """`tests_digits.png`; at another radius than that of the choices, `tests_digits_eps4--255.png`."""
    return "_".join(filter(None, ("tests", file_name(test), grid.in_file_names(eps)))) + ".png"


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
        parts += [f"## {markdown(test)}", *_parts_of_test(grid, results, test)]
    parts += ["## What makes these accuracies doubtful", format_doubts(results.tested)]
    parts += ["## Which differences the data can tell", format_pairs(results.tested)]
    parts += ["## What it cost", format_cost(records)]
    return "\n\n".join(parts)


def _parts_of_test(grid: Grid, results: Results, test: str) -> list[str]:
    """A test's table and picture; of several radii one of each, after a table of the worst case at all of them."""
    parts = [format_radii(grid, results, test)] if len(grid.test_eps) > 1 else []
    for eps in grid.test_eps:
        if shown := tested_at(results, test, eps):
            parts += [f"### At {eps.title}"] if grid.test_eps != [grid.eps] else []
            parts += [format_test(shown), f"![Clean and robust accuracy]({picture_of(grid, test, eps)})"]
    return parts


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
        f"By the rule {comparison.choose}, on {comparison.tune_samples} training images {_held_out(grid)}, under "
        f"{comparison.tune_attack} at {grid.eps.title}, at t = {', '.join(f'{t:g}' for t in comparison.dial)}. Rates "
        f"were chosen by the runs with seed {first} alone; the best of them is one of those that are tested, with the "
        "luck that it may have had."
    )
    notes = [note for method in results.rates for note in _notes_of(grid, records, results, method)]
    listed = "".join(f"\n- {markdown(note)}" for note in notes)
    return f"{fitting_tables(lines, keys=1)}\n\n{markdown(said)}" + (f"\n{listed}" if notes else "")


def _held_out(grid: Grid) -> str:
    """Which of the training images those are that choices are made on."""
    if grid.comparison.validation_classes is None:
        return "that were held out"
    _, held_out = grid.choosing_images(grid.first_run(next(iter(grid.methods))))
    return f"of classes that no run was trained on ({show_names(held_out.class_names)})"


def _notes_of(grid: Grid, records: Records, results: Results, method: str) -> list[str]:
    """What a reader should know of a method's choices: ends of what was tried, rules not kept, runs that diverged."""
    rates, chosen = grid.methods[method].learning_rates, results.rates[method]
    points = results.points.get(method, [])
    notes = [f"{choice.run} has no point that keeps the rule." for choice in points if not choice.keeps_rule]
    if chosen is not None and len(rates) > 1 and chosen.run.learning_rate in (min(rates), max(rates)):
        end, further = ("smallest", "smaller") if chosen.run.learning_rate == min(rates) else ("largest", "larger")
        notes.append(f"{method}: its rate is the {end} that was tried; a {further} one may be better.")
    dial = grid.comparison.dial
    number = sum(choice.point.t == min(dial) > 0 for choice in points)
    if number and len(dial) > 1:
        notes.append(f"{method}: {number} of {len(points)} runs have the least t of the dial; less may be better.")
    for run in grid.runs_of(method):
        if (trained := records.read(train_task(run))) and DIVERGED in trained:
            notes.append(f"{run} diverged and is left out: {trained[DIVERGED].partition('. ')[0].rstrip('.')}.")
    return notes


def format_radii(grid: Grid, results: Results, test: str) -> str:
    """The worst case on a test by the radius of training and of testing, in %, means and deviations as elsewhere."""
    shown = {eps: tested_at(results, test, eps) for eps in grid.test_eps}
    cells = {
        (tested.method, tested.where, eps): _percent(*mean_and_spread(tested.accuracies(WORST_CASE)))
        for eps in grid.test_eps
        for tested in shown[eps]
    }
    lines = [["method", "", "trained at", *(f"at {eps}" for eps in grid.test_eps)]]
    for method, where in dict.fromkeys((one.method, one.where) for of_eps in shown.values() for one in of_eps):
        trained = str(Radius(grid.settings(grid.first_run(method))[1].attack_eps)) if where else "-"
        accuracies = [cells.get((method, where, eps), "-") for eps in grid.test_eps]
        lines.append([markdown(method), where or "before training", trained, *accuracies])
    said = (
        "Accuracy in % in the worst case at each radius, as below. Rates and points of all methods were chosen at "
        f"{grid.eps.title}: chosen at another, a method may do better there. Which differences the data can tell is "
        "said below, at each radius by itself: no order of methods follows from the means alone."
    )
    return f"{fitting_tables(lines, keys=3)}\n\n{said}"


def format_test(shown: list[Tested]) -> str:
    """The table of a test at a radius: accuracies in %, means over seeds and the standard deviation between them."""
    attacks = list(shown[0].right)
    lines = [["method", "", "runs", *map(markdown, attacks)]]
    for tested in shown:
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
    """A line for each reliability flag on each test at each radius, with the methods that raise it."""
    several = _of_several_radii(tested)
    raised: dict[str, dict[str, set[str]]] = {}  # by what, then by whom: the runs
    messages: dict[str, str] = {}
    for one in tested:
        for flag in (flag for flags in one.flags for flag in flags):
            at = f" at {one.eps}" if several and flag.radius == one.eps else ""  # else it isn't of the tests' attacks
            what, who = f"{flag.name} on {one.test}{at}", " ".join(filter(None, (one.method, one.where)))
            raised.setdefault(what, {}).setdefault(who, set()).add(flag.model)
            messages.setdefault(what, f"{flag.model}: {flag.message}")
    lines = []
    for what, methods in raised.items():
        whose = ", ".join(f"{method} ({len(runs)})" for method, runs in methods.items())
        lines.append(f"- {markdown(f'{what}: {whose}. The first is {messages[what]}')}")
    return "Runs that raise a flag, by method:\n\n" + "\n".join(lines) if lines else "Nothing that hpt looks for."


def format_pairs(tested: list[Tested]) -> str:
    """A line for each two methods on each test."""
    said: dict[tuple, list[str]] = {}
    found, several = pairs(tested), _of_several_radii(tested)
    for first, second, attack, difference in found:
        what = f"{attack} at {first.eps}" if several and attack != CLEAN else attack
        said.setdefault((first.test, first.method, second.method), []).append(f"{what} {_points(difference)}")
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


def _of_several_radii(tested: list[Tested]) -> bool:
    return len({one.eps for one in tested}) > 1


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
