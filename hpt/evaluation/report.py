"""An evaluation's rows as Markdown tables and as a CSV file, and its flags as lines."""

import csv
import io
import json
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

from hpt.escaping import csv_cell, markdown
from hpt.evaluation.flags import GUESSING, Flag
from hpt.evaluation.rows import CASCADE, CLEAN, LARGE_EPS, WORST_CASE, Row
from hpt.files import write_file
from hpt.radius import describe_length, describe_norm


OF_RANDOMISED = (
    "Of a randomised classifier, accuracy is the mean over evaluations with draws that no attack has seen; behind it "
    "stand the least and the most of them, and the share of images that are right in all."
)


def latest(rows: list[Row]) -> list[Row]:
    """Without checks, and of a worst case, which grows with the attacks that ran, the last."""
    last = {
        (row.model, row.attacked, row.benchmark, row.attack, row.eps, row.norm): row
        for row in rows
        if row.attack != LARGE_EPS
    }
    return list(last.values())


def worst_cases(rows: list[Row]) -> list[Row]:
    """The worst case of each model on each benchmark at each radius; a cascade's where there is no other."""
    found = {}
    for row in sorted((row for row in rows if row.is_worst_case), key=lambda row: row.attack == WORST_CASE):
        found[row.model, row.attacked, row.benchmark, row.radius] = row
    return list(found.values())


def format_accuracies(rows: list[Row], benchmarks: list[str] | None = None) -> str:
    """Markdown tables, one for each radius: a line per model and attack, a column per benchmark, the mean last.

    Args:
        rows (`list[Row]`): Of one evaluation, from [`RobustnessEvaluator`].
        benchmarks (`list[str]`, *optional*): The columns, instead of the benchmarks that the rows have.
    """
    rows = latest(rows)
    benchmarks = benchmarks or list(dict.fromkeys(row.benchmark for row in rows))
    sections = []
    radii = {row.radius for row in rows if row.attack != CLEAN}
    for radius in sorted(radii, key=lambda radius: (radius, radius.norm)):
        title = f"{describe_norm(radius.norm)} eps = {radius}"
        shown = [row for row in rows if row.attack == CLEAN or row.radius == radius]
        sections.append(f"{title}\n\n{_accuracy_table(shown, benchmarks)}")
        sections += filter(None, [_describe_worst_cases(shown), _describe_cascades(shown)])
    if not sections:
        sections.append(_accuracy_table(rows, benchmarks))
    sections += [OF_RANDOMISED] if any(row.accuracies for row in rows) else []
    return "\n\n".join(sections)


def _describe_worst_cases(rows: list[Row]) -> str:
    """Over which attacks worst cases are: a line, or one for each group of models where these differ."""
    ran: dict[str, set[str]] = {}  # by model, on any benchmark
    for row in rows:
        if row.attack == WORST_CASE:
            model = row.model + row.whole_label.removeprefix(WORST_CASE)
            ran.setdefault(model, set()).update(row.parameters["attacks"])
    models: dict[str, list[str]] = {}
    for model, attacks in ran.items():
        models.setdefault(", ".join(sorted(attacks)), []).append(model)
    of = {attacks: f" of {', '.join(names)}" if len(models) > 1 else "" for attacks, names in models.items()}
    return "\n\n".join(markdown(f"Worst case{of[attacks]} over {attacks}.") for attacks in models)


def _describe_cascades(rows: list[Row]) -> str:
    """Of which attacks cascades are, in order; a line for each order, which names its models if there are several."""
    models: dict[tuple, dict[str, None]] = {}
    for row in rows:
        if row.attack == CASCADE:
            models.setdefault(tuple(row.parameters["attacks"]), {})[row.model] = None
    of = {attacks: f" of {', '.join(names)}" if len(models) > 1 else "" for attacks, names in models.items()}
    how = "each on the samples that those before left"
    lines = [f"Worst case (cascade){of[attacks]}: {', then '.join(attacks)}, {how}." for attacks in models]
    return "\n\n".join(map(markdown, lines))


def format_samples(rows: list[Row]) -> str:
    """A line for each benchmark: its split, samples, and the resolution at which its images are attacked; where that
    differs between models, a line for each resolution, which names them."""
    models: dict[tuple, list[str]] = {}
    for row in rows:
        if row.attack == CLEAN:
            models.setdefault((row.benchmark, row.split, row.n, row.attack_space), []).append(row.model)
    several = Counter(benchmark for benchmark, *_ in models)
    lines = []
    for (benchmark, split, n, attack_space), names in models.items():
        of_models = f": {', '.join(names)}" if several[benchmark] > 1 else ""
        text = f"{benchmark}: {split}, n = {n}, attacked at {describe_resolution(attack_space)}{of_models}"
        lines.append(f"- {markdown(text)}")
    return "\n".join(lines)


def describe_resolution(attack_space: str) -> str:
    """At how many pixels images were attacked, in words."""
    if attack_space == "native":
        return "native resolution"
    if attack_space.isdigit():
        return f"{attack_space} pixels"
    return f"{attack_space.split('-')[-1]} pixels, by the model's own processor ({attack_space})"


def _accuracy_table(rows: list[Row], benchmarks: list[str]) -> str:
    cells: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row.model, row.whole_label), {})[row.benchmark] = row
    places = {model: place for place, model in enumerate(dict.fromkeys(model for model, _ in cells))}
    lines = [["model", "attack", *map(markdown, benchmarks), "mean"]]
    for model, attack in sorted(
        cells, key=lambda key: (places[key[0]], key[1] != CLEAN, key[1].startswith(WORST_CASE))
    ):
        measured = cells[model, attack]
        values = [_accuracy(measured[name]) for name in benchmarks if name in measured]
        mean = f"{100 * sum(values) / len(values):.1f}" if len(values) == len(benchmarks) else "-"
        lines.append(
            [markdown(model), markdown(attack), *(format_accuracy(measured.get(name)) for name in benchmarks), mean]
        )
    return fitting_tables(lines, keys=2)


def fitting_tables(lines: list[list[str]], *, keys: int, width: int = 100) -> str:
    """A Markdown table; or, if it is wider than a terminal, several below each other that share their first columns.

    Args:
        lines (`list[list[str]]`): Cells, the header first.
        keys (`int`): How many first columns say what a line is about.
        width (`int`, *optional*, defaults to 100): Characters in a line, unless one column alone takes more.
    """
    widths = [max(map(len, column)) + 3 for column in zip(*lines, strict=True)]
    tables, room = [], 0
    for place in range(keys, len(widths)):
        if not tables or widths[place] > room:
            tables.append([*range(keys)])
            room = width - 1 - sum(widths[:keys])
        tables[-1].append(place)
        room -= widths[place]
    return "\n\n".join(markdown_table([[line[place] for place in places] for line in lines]) for places in tables)


def markdown_table(lines: list[list[str]]) -> str:
    """Lines of cells, the first of them the header, with columns aligned."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _accuracy(row: Row) -> float:
    return row.accuracy if row.mean_per_class_accuracy is None else row.mean_per_class_accuracy


def format_accuracy(row: Row | None) -> str:
    """Accuracy in % with its interval, as a table's cell; a dash for what wasn't measured.

    Of a randomised classifier, also the range over its evaluations, and the share of images right in all of them.
    """
    if row is None:
        return "-"
    cell = f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
    if row.accuracies:
        ends = f"{100 * min(row.accuracies):.1f} to {100 * max(row.accuracies):.1f}"
        cell += f", {ends} in {row.evaluations} evaluations, {100 * row.always_right:.1f} in all"
    if row.mean_per_class_accuracy is not None:  # which has no Wilson interval
        cell = f"{100 * row.mean_per_class_accuracy:.1f} per class; {cell}"
    return f"{cell}, without {markdown(', '.join(row.left_out))}" if row.left_out else cell


def format_flags(flags: list[Flag]) -> str:
    """A line for each flag: models that guess first, then doubts about masked gradients."""
    lines = []
    for flag in sorted(flags, key=lambda flag: (flag.name not in GUESSING, not flag.masking)):
        radius = "" if flag.radius is None else f" at {flag.radius}"
        text = f"{flag.name}: {flag.model} on {flag.benchmark}{radius}. {flag.message}"
        lines.append(f"- {markdown(text)}")
    return "\n".join(lines) or "- none"


def write_csv(rows: list[Row], path: str | Path) -> None:
    """One line per row, every field a column; dictionaries and lists as JSON."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [column.name for column in fields(Row)])
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _as_cell(value) for name, value in asdict(row).items()})
    write_file(Path(path), text.getvalue())


def _as_cell(value):
    return json.dumps(value) if isinstance(value, dict | list) else csv_cell(value)


def attack_with_step(row: Row) -> str:
    """What a card and a leaderboard call the attack of a row, with its step size and whom it was made against."""
    if row.is_worst_case:
        return f"the {row.attack}"
    label = row.label + (f" (steps of {describe_length(row.step_size, row.norm)})" if row.step_size else "")
    if row.attacked == row.model or row.named_attack.is_transfer:  # whose label says it
        return label
    return f"{label} on images made against the {row.attacked} model"


def percent(row: Row) -> str:
    return f"{100 * row.accuracy:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"


def describe_row(row: Row) -> str:
    """What a row measured, in words: `Robust accuracy under PGD-10 at l_inf eps 16/255`."""
    if row.attack == CLEAN:
        return "Clean accuracy"
    radius = row.radius.title
    if row.is_worst_case:
        return f"Robust accuracy, {row.attack} over {', '.join(row.parameters['attacks'])} at {radius}"
    if row.attack == LARGE_EPS:
        return f"Check that an attack at {radius} breaks everything"
    return f"Robust accuracy under {attack_with_step(row)} at {radius}"


def format_table(rows: list[Row]) -> str:
    """Rows of one benchmark and attack as a Markdown table of percentages, a line per model."""
    first = rows[0].model
    attack = next(row.label for row in rows if row.attacked)
    clean, itself, transferred = columns = {}, {}, {}
    for row in rows:
        cell = f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        if row.attacked is None:
            clean[row.model] = cell
        if row.attacked == row.model:
            itself[row.model] = cell
        if row.attacked == first:
            transferred[row.model] = cell
    lines = [[markdown(model), *(column[model] for column in columns)] for model in clean]
    titles = "clean", f"{attack} on itself", f"{attack} on the {first}"
    return markdown_table([["", *map(markdown, titles)], *lines])
