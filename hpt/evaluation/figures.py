"""Pictures of a run and of an evaluation: the phenomenon, the training curves, the results, the images."""

import io
import math
from itertools import cycle
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from hpt.attacks import PGD
from hpt.escaping import mathtext
from hpt.evaluation.report import latest, worst_cases
from hpt.evaluation.rows import CLEAN, Row
from hpt.files import write_file
from hpt.radius import Radius


BLUE, ORANGE, GREEN, GREY, *_ = COLORS = (
    *("#3b6fb6", "#d9772b", "#3a8f5c", "#8a8a8a", "#8e5ea8"),
    *("#c44e52", "#937860", "#64b5cd", "#b5a642", "#d67fb0"),
)
CONTRAST = 0.25  # how far a magnified perturbation may go from grey, which leaves its colours apart
_EPS_LABELS = {"linf": "eps (1/255); 0 is clean", "l2": "eps (l_2); 0 is clean"}


class Measured(Protocol):
    """An accuracy with its interval, such as a [`Row`]."""

    accuracy: float
    low: float
    high: float


def draw_accuracy_over_eps(rows: list[Row], title: str, path: str | Path) -> None:
    """Accuracy of several models over eps, with 95 % intervals, a row each per eps and one for clean images."""
    figure = Figure(figsize=(6, 3.8))
    axes = figure.subplots()
    norm = next((row.norm for row in rows if row.norm), "linf")
    for model, color in zip(dict.fromkeys(row.model for row in rows), cycle(COLORS), strict=False):
        own = sorted((row for row in rows if row.model == model), key=lambda row: row.eps or 0)
        eps = [_axis_eps(row) for row in own]
        axes.plot(eps, [100 * row.accuracy for row in own], "o-", color=color, label=mathtext(model))
        axes.fill_between(
            eps, [100 * row.low for row in own], [100 * row.high for row in own], color=color, alpha=0.15
        )
    axes.set(xlabel=_EPS_LABELS[norm], ylabel="accuracy (%)", ylim=(0, 100))
    axes.set_title(mathtext(title), fontsize=10)
    axes.set_xticks(sorted({_axis_eps(row) for row in rows}))
    axes.legend(frameon=False)
    save_figure(figure, path)


def draw_transfer_matrix(rows: list[Row], title: str, path: str | Path) -> None:
    """A heat map per eps: accuracy of each model (across) on clean images and on those made against each (down).

    Args:
        rows (`list[Row]`): Of one benchmark: each model on clean images, and at each eps on images made against each.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    radii = sorted({row.radius for row in rows if row.radius is not None})
    accuracy = {(row.attacked, row.radius, row.model): 100 * row.accuracy for row in rows}
    across = min(2, len(radii))
    side = 1.6 + 0.62 * len(models)
    names = [mathtext(model) for model in models]
    figure = Figure(figsize=(across * (side + 0.6), -(-len(radii) // across) * side + 0.4))
    panels = figure.subplots(-(-len(radii) // across), across, squeeze=False).flatten()
    for axes in panels[len(radii) :]:
        axes.axis("off")
    for axes, radius in zip(panels, radii, strict=False):
        columns = [(None, None), *((attacked, radius) for attacked in models)]
        values = [[accuracy[(*column, model)] for model in models] for column in columns]
        axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                axes.text(
                    x,
                    y,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 55 else "black",
                )
        axes.axhline(0.5, color="white", lw=3)
        axes.set_xticks(range(len(models)), names, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(columns)), ["clean", *names], fontsize=8)
        axes.set_title(f"eps = {radius}", fontsize=9)
        axes.set(xlabel="scored", ylabel="made against")
    figure.suptitle(mathtext(title), fontsize=10, wrap=True)  # few models are narrower than a title
    save_figure(figure, path)


def draw_training_curves(history: list[dict], boundary: int, path: str | Path) -> None:
    """Loss, learning rate and accuracies over optimizer steps, with the two stages marked.

    Args:
        history (`list[dict]`): `trainer.state.log_history`.
        boundary (`int`): First step of the transfer stage; 0 if there is no anchor stage.
    """
    figure = Figure(figsize=(7, 8.5))
    loss, rate, accuracy = figure.subplots(3, 1, sharex=True)
    train = [entry for entry in history if "loss" in entry]
    loss.plot(*_series(train, "loss"), color=GREY)
    loss.set(ylabel="loss")
    rate.plot(*_series(train, "learning_rate"), color=GREY)
    rate.set(ylabel="learning rate")
    if any(entry.get("learning_rate") for entry in train):  # the first is 0 where there is a warm-up
        rate.set_yscale("log", nonpositive="mask")
    for key, label, color in (
        ("train_clean_accuracy", "target, clean", BLUE),
        ("train_robust_accuracy", "target, adversarial", ORANGE),
        ("proxy_robust_accuracy", "proxy, adversarial", GREEN),
    ):
        steps, values = _series(train, key)
        if values:
            accuracy.plot(steps, _smooth([100 * value for value in values]), color=color, label=f"training: {label}")
    keys = {key for entry in history for key in entry}
    for key in sorted(key for key in keys if key.startswith("eval_") and key.endswith("_accuracy")):
        steps, values = _series(history, key)
        color = BLUE if key.endswith("clean_accuracy") else ORANGE
        name = key.removeprefix("eval_").replace("_", " ")
        accuracy.plot(
            steps, [100 * value for value in values], "o", color=color, label=mathtext(f"evaluation: {name}")
        )
    accuracy.set(ylabel="accuracy (%)", xlabel="optimizer step", ylim=(0, 100))
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    if accuracy.lines:
        accuracy.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    last = max(entry["step"] for entry in history)
    for axes in (loss, rate, accuracy):
        if 0 < boundary < last:
            axes.axvspan(0, boundary, color=GREY, alpha=0.12)
    if 0 < boundary < last:
        loss.set_title("anchor stage (shaded), then transfer stage", fontsize=10)
    save_figure(figure, path)


def draw_accuracy_bars(rows: list[Row], title: str, path: str | Path) -> None:
    """Accuracy per model, clean and under an attack on itself, as bars with 95 % intervals."""
    figure = Figure(figsize=(6, 3.8))
    axes = figure.subplots()
    models = list(dict.fromkeys(row.model for row in rows))
    kinds = {"clean": lambda row: row.attacked is None, "attacked by PGD": lambda row: row.attacked == row.model}
    for offset, (label, belongs), color in zip((-0.19, 0.19), kinds.items(), cycle(COLORS), strict=False):
        shown = {row.model: row for row in rows if belongs(row)}
        places = [index + offset for index in range(len(models))]
        values = [100 * shown[model].accuracy for model in models]
        axes.bar(places, values, 0.36, color=color, label=label)
        axes.errorbar(
            places, values, error_bars([shown[model] for model in models]), fmt="none", ecolor="black", capsize=3
        )
        for place, model in zip(places, models, strict=True):
            axes.text(
                place, 100 * shown[model].high + 1.5, f"{100 * shown[model].accuracy:.1f}", ha="center", fontsize=9
            )
    axes.set_xticks(range(len(models)), [mathtext(model) for model in models])
    axes.set(ylabel="accuracy (%)", ylim=(0, 108), yticks=range(0, 101, 20))
    axes.set_title(mathtext(title), fontsize=10)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    save_figure(figure, path)


def draw_robustness_curves(rows: list[Row], benchmark: str, norm: str, path: str | Path) -> None:
    """Accuracy over eps of each model on a benchmark: its worst case with 95 % intervals, and dashed its PGD."""
    figure = Figure(figsize=(6, 3.8))
    axes = figure.subplots()
    rows = [row for row in latest(rows) if row.benchmark == benchmark and row.norm in (None, norm)]
    rows = [row for row in rows if row.against in (None, row.model) and not row.named_attack.scored_on_proxy]
    models = list(dict.fromkeys(row.model for row in rows if row.is_worst_case))
    for model, color in zip(models, cycle(COLORS), strict=False):
        own = sorted((row for row in rows if row.model == model), key=lambda row: row.eps or 0)
        worst = [row for row in own if row.attack == CLEAN]
        worst += sorted(worst_cases(own), key=lambda row: row.eps)
        eps = [_axis_eps(row) for row in worst]
        axes.plot(
            eps, [100 * row.accuracy for row in worst], "o-", color=color, label=mathtext(f"{model}, worst case")
        )
        low, high = ([100 * getattr(row, end) for row in worst] for end in ("low", "high"))
        axes.fill_between(eps, low, high, color=color, alpha=0.15)
        kind = next((row.attack for row in own if row.named_attack.name == PGD.name), None)
        pgd = [row for row in own if row.attack in (CLEAN, kind)]
        if len(pgd) == len(worst):
            accuracies = [100 * row.accuracy for row in pgd]
            label = mathtext(f"{model}, {pgd[-1].label}")
            axes.plot(eps, accuracies, "--", color=color, lw=1, label=label)
    axes.set(xlabel=_EPS_LABELS[norm], ylabel="accuracy (%)")
    axes.set(ylim=(0, 100), xticks=sorted({_axis_eps(row) for row in rows}))
    axes.set_title(mathtext(f"{benchmark}, n = {rows[0].n}"), fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def draw_clean_against_robust(rows: list[Row], radius: Radius, path: str | Path) -> None:
    """Clean accuracy of each model on each benchmark against its worst case at a radius, with 95 % intervals."""
    rows = latest(rows)
    clean = {(row.model, row.benchmark): row for row in rows if row.attack == CLEAN}
    worst = [row for row in worst_cases(rows) if row.radius == radius and not row.made_on_other]
    figure = Figure(figsize=(6, 4.8) if len(worst) < 16 else (9, 7.5))  # names need room
    axes = figure.subplots()
    named = []
    for model, color in zip(dict.fromkeys(row.model for row in worst), cycle(COLORS), strict=False):
        own = [row for row in worst if row.model == model]
        points = [(clean[model, row.benchmark], row) for row in own]
        across, up = ([100 * pair[axis].accuracy for pair in points] for axis in (0, 1))
        across_ends, up_ends = (error_bars([pair[axis] for pair in points]) for axis in (0, 1))
        style = {"fmt": "o", "color": color, "capsize": 2, "label": mathtext(model)}
        axes.errorbar(across, up, yerr=up_ends, xerr=across_ends, **style)
        named += [(row.benchmark, clean_row, row, color) for clean_row, row in points]
    axes.set(xlabel="clean accuracy (%)", ylabel=f"worst case at {radius} (%)")
    axes.set(xlim=(0, 105), ylim=(-2, 105))
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=9)
    figure.tight_layout()
    name_points(axes, named)
    save_figure(figure, path, layout=False)


def name_points(axes, points: list[tuple[str, Measured, Measured, str]]) -> None:
    """Write each point's name at the nearest place where it covers no other name and no point, with a line to it.

    Args:
        axes (`Axes`): With the limits and the size that it keeps.
        points (`list[tuple[str, Measured, Measured, str]]`): The name, what is measured across and up, and the color.
    """
    room, taken = axes.get_window_extent(), []
    for _, across, up, _ in points:
        x, y = across.accuracy, up.accuracy
        for interval in (((across.low, y), (across.high, y)), ((x, up.low), (x, up.high))):
            ends = [[100 * value for value in end] for end in interval]
            taken.append(Bbox(axes.transData.transform(ends)).padded(3))
    for label, across, up, color in points:
        place = 100 * across.accuracy, 100 * up.accuracy
        line = {"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 0}
        style = {"fontsize": 7, "color": color, "ha": "center", "va": "center", "arrowprops": line}
        name = axes.annotate(mathtext(label), place, **style)
        boxes = _boxes_around(axes.transData.transform(place), name.get_window_extent())
        inside = [box for box in boxes if room.containsx(box.x0) and room.containsx(box.x1) and room.containsy(box.y0)]
        boxes = inside or boxes  # a name may be wider than the picture
        box = next((box for box in boxes if box.count_overlaps(taken) == 0), boxes[0])
        taken.append(box)
        name.set_position(axes.transData.inverted().transform([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]))


def _boxes_around(point, size: Bbox) -> list[Bbox]:
    """Boxes of a size around a point, the nearest first, on a spiral whose golden angle spreads them evenly."""
    boxes = []
    for number in range(3000):
        angle, distance = 2.4 * number, 2 * math.sqrt(number)
        x = point[0] + math.cos(angle) * (distance + size.width / 2) - size.width / 2
        y = point[1] + math.sin(angle) * (distance + size.height / 2) - size.height / 2
        boxes.append(Bbox.from_bounds(x, y, size.width, size.height))
    return boxes


def draw_adversarial_images(examples: list[dict], title: str, path: str | Path) -> None:
    """A row for each example: the clean image, the perturbation magnified, the adversarial image, with predictions.

    Args:
        examples (`list[dict]`): `clean` and `adversarial` images of shape `(3, height, width)` in [0, 1], and the
            names `label`, `before` and `after` of the true class and of those predicted.
    """
    figure = Figure(figsize=(6.2, 2.15 * len(examples) + 0.5))
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for axes, example in zip(grid, examples, strict=True):
        clean, adversarial = (example[key].permute(1, 2, 0) for key in ("clean", "adversarial"))
        change = adversarial - clean
        scale = CONTRAST / change.abs().max().clamp(min=1e-12).item()
        for panel, image in zip(axes, (clean, 0.5 + scale * change, adversarial), strict=True):
            panel.imshow(image.clamp(0, 1).numpy(), interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
        label, before, after = (mathtext(example[key]) for key in ("label", "before", "after"))
        axes[0].set_ylabel(label, fontsize=9)
        right = example["after"] == example["label"]
        axes[0].set_title(f"clean: {before}", fontsize=9)
        axes[1].set_title(f"perturbation x {scale:.2g}" if change.any() else "no perturbation", fontsize=9)
        axes[2].set_title(f"adversarial: {after}", fontsize=9, color=GREEN if right else ORANGE)
    figure.suptitle(mathtext(title), fontsize=10)
    save_figure(figure, path)


def error_bars(rows: list[Measured]) -> tuple[list[float], list[float]]:
    """How far each interval reaches below and above its accuracy, in points."""
    below = [100 * (row.accuracy - row.low) for row in rows]
    return below, [100 * (row.high - row.accuracy) for row in rows]


def _axis_eps(row: Row) -> float:
    return (255 if row.norm == "linf" else 1) * (row.eps or 0)


def _series(entries: list[dict], key: str) -> tuple[list, list]:
    having = [entry for entry in entries if key in entry]
    return [entry["step"] for entry in having], [entry[key] for entry in having]


def _smooth(values: list[float], window: int = 5) -> list[float]:
    """Trailing mean: one batch's accuracy alone is noise."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def save_figure(figure, path: str | Path, layout: bool = True) -> None:
    """Write a picture of the kind that its name ends in; `layout` moves its parts so that they don't cover each other.

    Raises:
        WriteFailed: if it can't be written.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if layout:
        figure.tight_layout()
    path, content = Path(path), io.BytesIO()
    figure.savefig(content, dpi=150, format=path.suffix.removeprefix(".") or "png")
    write_file(path, content.getvalue())
