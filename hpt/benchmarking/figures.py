"""A picture of what was measured: a panel for each measurement."""

from pathlib import Path

from matplotlib.figure import Figure

from hpt.benchmarking.measurement import Measurement, summary
from hpt.evaluation.figures import BLUE, GREY, save_figure


MOST_ACROSS = 2  # panels beside each other


def draw_measurements(measurements: list[Measurement], path: str | Path) -> None:
    """Ratios of the variants, from least to most with the median marked; along an axis, the values themselves."""
    drawn = [measurement for measurement in measurements if measurement.values]
    if not drawn:
        return
    across = min(MOST_ACROSS, len(drawn))
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(5.5 * across, 3 * down))
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(drawn) :]:
        axes.axis("off")
    for axes, measurement in zip(panels, drawn, strict=False):
        (_draw_along_axis if measurement.axis else _draw_ratios)(axes, measurement)
        axes.set_title(measurement.name, fontsize=10)
    save_figure(figure, path)


def _draw_along_axis(axes, measurement: Measurement) -> None:
    summaries = [summary(values) for values in measurement.values.values()]
    _draw(axes, [float(name) for name in measurement.values], summaries, across=False)
    highest = max(values["max"] for values in summaries)
    axes.set(xlabel=measurement.axis, ylabel=measurement.unit, ylim=(0, 1.1 * highest))


def _draw_ratios(axes, measurement: Measurement) -> None:
    names = list(measurement.values)[::-1]  # the first on top
    summaries = [summary(measurement.ratios(name)) for name in names]
    _draw(axes, range(len(names)), summaries, across=True)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(measurement.ratio_title, fontsize=8)
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xlim(0, 1.1 * max(values["max"] for values in summaries))


def _draw(axes, places, summaries: list[dict[str, float]], *, across: bool) -> None:
    """Medians with bars from minimum to maximum, along x or along y."""
    medians = [values["median"] for values in summaries]
    bars = [[v["median"] - v["min"] for v in summaries], [v["max"] - v["median"] for v in summaries]]
    coordinates = (medians, places) if across else (places, medians)
    axes.errorbar(*coordinates, **{"xerr" if across else "yerr": bars}, fmt="o" if across else "o-", color=BLUE)
