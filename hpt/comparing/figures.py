"""Pictures of a comparison: dials on held-out images, and the tested points, clean against robust accuracy."""

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hpt.comparing.choices import Choice
from hpt.escaping import mathtext
from hpt.evaluation.dial import DialPoint
from hpt.evaluation.figures import COLORS, save_figure


MARKERS = "osD^vPX<>hd"  # one more than there are colors, so that a hundred methods look different
VANILLA_STYLE = ("black", "*")


def draw_frontiers(
    methods: list[str],
    dials: dict[str, list[list[DialPoint]]],
    points: dict[str, list[Choice]],
    title: str,
    path: Path,
) -> None:
    """Each method's dial, the mean over its runs at each point, with its ends named, and rings where a run was chosen.

    Args:
        methods (`list[str]`): All methods, which look the same in all pictures.
        dials (`dict`): By method, the dial of each run.
        points (`dict`): By method, what was chosen of each run.
    """
    figure, axes = _axes(title)
    styles = _styles(methods)
    for method, runs in dials.items():
        color, marker = styles[method]
        clean, robust = (
            100 * np.array([[getattr(point, kind) for point in run] for run in runs]).mean(0)
            for kind in ("clean", "robust")
        )
        axes.plot(clean, robust, f"{marker}-", color=color, ms=3.5, lw=1, label=mathtext(method))
        for end in sorted({0, len(clean) - 1}):
            place = (clean[end], robust[end])
            axes.annotate(
                f"t = {runs[0][end].t:g}", place, (4, 4), textcoords="offset points", fontsize=7, color=color
            )
        ends = [100 * choice.point.clean for choice in points[method]]
        heights = [100 * choice.point.robust for choice in points[method]]
        axes.plot(ends, heights, "o", color=color, mfc="none", ms=9)
    _save(figure, axes, path)


def draw_tests(
    methods: list[str], accuracies: dict[tuple[str, str], tuple[list[float], list[float]]], title: str, path: Path
) -> None:
    """Each method's tested points, filled where it was chosen and hollow at its trained weights, with deviations.

    Args:
        methods (`list[str]`): As of [`draw_frontiers`]; what else was tested are vanilla targets.
        accuracies (`dict`): By method and place, the clean and the robust accuracy of each run.
    """
    figure, axes = _axes(title)
    styles, labelled = _styles(methods), set()
    for (method, where), (clean, robust) in accuracies.items():
        color, marker = styles.get(method, VANILLA_STYLE)
        across, up = (100 * np.array(values) for values in (clean, robust))
        reach = [values.std(ddof=1) if len(values) > 1 else 0 for values in (across, up)]
        axes.errorbar(
            across.mean(),
            up.mean(),
            xerr=reach[0],
            yerr=reach[1],
            fmt=marker,
            color=color,
            mfc="white" if where == "at t = 1" else color,
            ms=7,
            zorder=2 if where == "at t = 1" else 3,  # where both are one point, it is filled
            lw=0.8,
            label=None if method in labelled else mathtext(method),
        )
        labelled.add(method)
    _save(figure, axes, path)


def _styles(methods: list[str]) -> dict[str, tuple[str, str]]:
    """A color and a marker for each method."""
    return dict(zip(methods, zip(cycle(COLORS), cycle(MARKERS), strict=False), strict=False))


def _axes(title: str):
    figure = Figure(figsize=(7.5, 4.8))
    axes = figure.subplots()
    axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)")
    axes.set_title(mathtext(title), fontsize=9, wrap=True)
    return figure, axes


def _save(figure, axes, path: Path) -> None:
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)
