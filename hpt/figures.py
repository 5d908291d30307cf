"""Pictures of a run: the phenomenon, the training curves, the result."""

from pathlib import Path

from matplotlib.figure import Figure

from hpt.evaluation import Row


BLUE, ORANGE, GREEN, GREY = COLORS = "#3b6fb6", "#d9772b", "#3a8f5c", "#8a8a8a"


def draw_proxy_robustness(rows: list[Row], title: str, path: str | Path) -> None:
    """Accuracy of several models on the same images made against one of them, over eps, with 95 % intervals."""
    figure = Figure(figsize=(6, 3.8))
    axes = figure.subplots()
    for model, color in zip(dict.fromkeys(row.model for row in rows), COLORS, strict=False):
        own = sorted((row for row in rows if row.model == model), key=lambda row: row.eps or 0)
        eps = [255 * (row.eps or 0) for row in own]
        axes.plot(eps, [100 * row.accuracy for row in own], "o-", color=color, label=model)
        axes.fill_between(
            eps, [100 * row.low for row in own], [100 * row.high for row in own], color=color, alpha=0.15
        )
    axes.set(xlabel="eps (1/255); 0 is clean", ylabel="accuracy (%)", ylim=(0, 100))
    axes.set_title(title, fontsize=10)
    axes.set_xticks(eps)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_training_curves(history: list[dict], boundary: int, path: str | Path) -> None:
    """Loss, learning rate and accuracies over optimizer steps, with the two stages marked.

    Args:
        history (`list[dict]`): `trainer.state.log_history`.
        boundary (`int`): First step of the transfer stage; 0 if there is no anchor stage.
    """
    figure = Figure(figsize=(7, 8.5))
    loss, rate, accuracy = figure.subplots(3, 1, sharex=True)
    train = [entry for entry in history if "train_clean_accuracy" in entry]
    loss.plot(*_series(train, "loss"), color=GREY)
    loss.set(ylabel="loss")
    rate.plot(*_series(train, "learning_rate"), color=GREY)
    rate.set(ylabel="learning rate", yscale="log")
    for key, label, color in (
        ("train_clean_accuracy", "target, clean", BLUE),
        ("train_robust_accuracy", "target, adversarial", ORANGE),
        ("proxy_robust_accuracy", "proxy, adversarial", GREEN),
    ):
        steps, values = _series(train, key)
        accuracy.plot(steps, _smooth([100 * value for value in values]), color=color, label=f"training: {label}")
    keys = {key for entry in history for key in entry}
    for key in sorted(key for key in keys if key.startswith("eval_") and key.endswith("_accuracy")):
        steps, values = _series(history, key)
        color = BLUE if key.endswith("clean_accuracy") else ORANGE
        name = key.removeprefix("eval_").replace("_", " ")
        accuracy.plot(steps, [100 * value for value in values], "o", color=color, label=f"evaluation: {name}")
    accuracy.set(ylabel="accuracy (%)", xlabel="optimizer step", ylim=(0, 100))
    accuracy.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    last = max(entry["step"] for entry in history)
    for axes in (loss, rate, accuracy):
        if 0 < boundary < last:
            axes.axvspan(0, boundary, color=GREY, alpha=0.12)
    if 0 < boundary < last:
        loss.set_title("generalization-anchored warm-up (shaded), then generalization-pulled HPT", fontsize=10)
    _save(figure, path)


def draw_accuracy_bars(rows: list[Row], title: str, path: str | Path) -> None:
    """Accuracy per model, clean and under an attack on itself, as bars with 95 % intervals."""
    figure = Figure(figsize=(6, 3.8))
    axes = figure.subplots()
    models = list(dict.fromkeys(row.model for row in rows))
    kinds = {"clean": lambda row: row.attacked is None, "attacked by PGD": lambda row: row.attacked == row.model}
    for offset, (label, belongs), color in zip((-0.19, 0.19), kinds.items(), COLORS, strict=False):
        shown = {row.model: row for row in rows if belongs(row)}
        places = [index + offset for index in range(len(models))]
        values = [100 * shown[model].accuracy for model in models]
        ends = [(100 * (shown[m].accuracy - shown[m].low), 100 * (shown[m].high - shown[m].accuracy)) for m in models]
        axes.bar(places, values, 0.36, color=color, label=label)
        axes.errorbar(places, values, [*zip(*ends, strict=True)], fmt="none", ecolor="black", capsize=3)
        for place, model in zip(places, models, strict=True):
            axes.text(
                place, 100 * shown[model].high + 1.5, f"{100 * shown[model].accuracy:.1f}", ha="center", fontsize=9
            )
    axes.set_xticks(range(len(models)), models)
    axes.set(ylabel="accuracy (%)", ylim=(0, 108), yticks=range(0, 101, 20))
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    _save(figure, path)


def _series(entries: list[dict], key: str) -> tuple[list, list]:
    found = [entry for entry in entries if key in entry]
    return [entry["step"] for entry in found], [entry[key] for entry in found]


def _smooth(values: list[float], window: int = 5) -> list[float]:
    """Trailing mean: one batch's accuracy alone is noise."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _save(figure, path: str | Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
