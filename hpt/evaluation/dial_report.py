"""A dial as a table, a picture and lines of JSON, and the choice of a point as its model's folder keeps it.

dial.md       the points, clean and robust, with the one that was chosen
dial.png      the same as a curve
points.jsonl  a line for each point
"""

from dataclasses import asdict
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.escaping import code, markdown, mathtext
from hpt.evaluation.dial import Accuracy, DialPoint, check_rule
from hpt.evaluation.evaluator import RobustnessEvaluator
from hpt.evaluation.figures import COLORS, error_bars, name_points, save_figure
from hpt.evaluation.report import describe_resolution, markdown_table
from hpt.files import write_file
from hpt.json_files import as_line, check_whole, unsealed
from hpt.models.interpolation import Endpoints
from hpt.models.weights import hash_weights


POINT = {"t": float, "u": float, "clean": float, "robust": float, "num_samples": int, "weights": str}
# What is kept of a choice
CHOICE = {
    "t": float,
    "u": float,
    "rule": str,
    "points": list[dict],
    "attack": str,
    "attacks": list[str],
    "eps": str,
    "benchmark": str,
    "split": str,
    "source": str | None,
    "attack_space": str,
    "samples": int,
    "seed": int,
    "vanilla_weights": str,
    "final_weights": str,
}


def describe_dial(
    points: list[DialPoint], benchmark: Benchmark, evaluator: RobustnessEvaluator, endpoints: Endpoints
) -> dict:
    """Measured points with all that they depend on: the images, how these were attacked, and what lies at the ends."""
    attacks = ", ".join(named.label for named in evaluator.attacks)
    return {
        "points": list(map(asdict, points)),
        "attack": f"{attacks} at {evaluator.radii[0].title}",
        "attacks": list(map(str, evaluator.attacks)),
        "eps": str(evaluator.radii[0]),
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "source": benchmark.source,
        "attack_space": benchmark.attack_space,
        "samples": points[0].num_samples,
        "seed": evaluator.seed,
        "vanilla_weights": hash_weights(endpoints.vanilla),
        "final_weights": hash_weights(endpoints.at(1)),
    }


def parse_choice(value: object) -> dict:
    """The choice of a point that a value of JSON is, without its digest.

    Raises:
        ValueError: if it was altered, or lacks something.
    """
    choice = unsealed(value)
    check_whole(choice, CHOICE | {"saved_weights": str})
    for point in choice["points"]:
        check_whole(point, POINT, "a point's ")
        if not (0 <= point["clean"] <= 1 and 0 <= point["robust"] <= 1 and point["num_samples"] > 0):
            raise ValueError(f"{point} can't have been measured")
    if not any((point["t"], point["u"]) == (choice["t"], choice["u"]) for point in choice["points"]):
        raise ValueError("the point that was chosen isn't among its points")
    try:
        check_rule(choice["rule"])
    except InputError as error:
        raise ValueError(str(error)) from error
    return choice


def report_dial(dial: dict, rule: str, chosen: DialPoint | None, folder: Path) -> None:
    """Print the points and write them as a table, a picture and lines of JSON.

    Args:
        dial (`dict`): From [`describe_dial`].
        rule (`str`): By which one was chosen.
        chosen ([`DialPoint`], *optional*): `None` if the rule took none.
        folder (`Path`): Where the files go.
    """
    points = [DialPoint(**point) for point in dial["points"]]
    title = f"Accuracy in %, with its 95 % interval, on {describe_samples(dial)}"
    lines = [markdown(title), format_points(points, chosen)]
    if chosen is not None:
        lines.append(f"Chosen: {chosen.name}, by the rule {code(rule)}: {explain_rule(rule)}.")
    page = "\n\n".join(lines) + "\n"
    print(f"\n{page}")
    write_file(folder / "dial.md", page)
    write_file(folder / "points.jsonl", "".join(as_line(_as_json(point, point == chosen)) for point in points))
    draw_dial(points, chosen, describe_samples(dial), folder / "dial.png")
    print(f"Table, picture and points: {folder}/dial.md, dial.png, points.jsonl")


def describe_samples(dial: dict) -> str:
    """`500 images of digits (validation), attacked at native resolution by PGD-10 at l_inf eps 16/255`"""
    where = f"{dial['samples']} images of {dial['benchmark']} ({dial['split']})"
    return f"{where}, attacked at {describe_resolution(dial['attack_space'])} by {dial['attack']}"


def explain_rule(rule: str) -> str:
    """A rule in words."""
    least = check_rule(rule)
    if least is None:
        return "the largest sum of clean and robust accuracy"
    return f"the most robust of the points with a clean accuracy of at least {least:g}"


def format_points(points: list[DialPoint], chosen: DialPoint | None) -> str:
    """A Markdown table with a line for each point, in order, and a mark at the one that was chosen."""
    lines = [["point", "clean", "robust", "sum", ""]]
    for point in points:
        total = f"{100 * (point.clean + point.robust):.1f}"
        mark = "chosen" if point == chosen else ""
        lines.append([point.name, *map(_cell, point.accuracies), total, mark])
    return markdown_table(lines)


def _cell(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.accuracy:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _as_json(point: DialPoint, is_chosen: bool) -> dict:
    clean, robust = ({"low": part.low, "high": part.high} for part in point.accuracies)
    return asdict(point) | {"clean_interval": clean, "robust_interval": robust, "chosen": is_chosen}


def draw_dial(points: list[DialPoint], chosen: DialPoint | None, title: str, path: Path) -> None:
    """Clean accuracy of each point against robust accuracy, with 95 % intervals, and a curve for each `u`."""
    figure = Figure(figsize=(6.4, 5))
    axes = figure.subplots()
    us, named = list(dict.fromkeys(point.u for point in points)), []
    for u, color in zip(us, cycle(COLORS), strict=False):
        own = [point for point in points if point.u == u]
        clean, robust = zip(*(point.accuracies for point in own), strict=True)
        across, up = ([100 * part.accuracy for part in axis] for axis in (clean, robust))
        bars = {"xerr": error_bars(clean), "yerr": error_bars(robust), "fmt": "none", "alpha": 0.35}
        axes.errorbar(across, up, color=color, elinewidth=0.7, capsize=2, **bars)
        axes.plot(across, up, "o-", color=color, lw=1, ms=4, label=f"u = {u:g}" if us != [0] else None)
        named += [(f"t = {point.t:g}", *point.accuracies, color) for point in own]
    if chosen is not None:
        place = 100 * chosen.clean, 100 * chosen.robust
        axes.plot(*place, "*", color="black", ms=13, zorder=3, label=f"chosen: {chosen.name}")
    axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
    axes.margins(0.15)
    axes.set(xlim=_within_percent(axes.get_xlim()), ylim=_within_percent(axes.get_ylim()))
    axes.set_title(mathtext(title), fontsize=9, wrap=True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    name_points(axes, named)
    save_figure(figure, path, layout=False)


def _within_percent(limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of an axis, without what no accuracy can be, but for room around a point at the edge."""
    return max(-2, limits[0]), min(102, limits[1])
