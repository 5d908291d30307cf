"""Accuracy of classifiers on clean images and on adversarial images made against one of them."""

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hpt.attacks import PGD
from hpt.benchmarks import Benchmark
from hpt.data import collate, to_unit_range
from hpt.metrics import wilson_interval
from hpt.modeling import ZeroShotClassifier


@dataclass(frozen=True)
class Row:
    """One measured accuracy, with all that it depends on.

    Args:
        model, attacked (`str`): Names of the model scored and of the one attacked; `attacked` is `None` for clean
            images.
        accuracy, low, high (`float`): Share of correct samples and its 95 % Wilson interval, in [0, 1].
        n (`int`): Samples.
        benchmark, split, attack_space (`str`): What was classified, and at which resolution it was attacked.
        eps, step_size (`float`), steps, seed (`int`), norm (`str`): The attack; `None` for clean images.
        dtype (`str`): Of the attacked images.
    """

    model: str
    attacked: str | None
    accuracy: float
    low: float
    high: float
    n: int
    benchmark: str
    split: str
    attack_space: str
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    norm: str | None = None
    seed: int | None = None
    dtype: str = "float32"


def measure(
    scored: dict[str, ZeroShotClassifier],
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> list[Row]:
    """Score classifiers on the same images, clean or made against one of them, in float32.

    Args:
        scored (`dict[str, ZeroShotClassifier]`): Models by name, in eval mode; their classes are replaced by the
            benchmark's.
        benchmark ([`Benchmark`]): Images and labels.
        attack ([`PGD`], *optional*): Without it, images stay clean.
        attacked (`str`, *optional*): Name of the model that the images are made against.
        batch_size, num_workers (`int`, *optional*): Of the data loader; they change no number.

    Returns:
        `list[Row]`: one per model.
    """
    scored = {name: one.with_classes(benchmark.class_names, benchmark.template) for name, one in scored.items()}
    device = next(iter(scored.values())).model.device
    loader = DataLoader(benchmark, batch_size, collate_fn=collate, num_workers=num_workers)
    correct = dict.fromkeys(scored, 0)
    what = "clean" if attack is None else f"eps {255 * attack.eps:g}/255 against the {attacked}"
    for batch in tqdm(loader, desc=f"{benchmark.name}, {what}", leave=False):
        batch = {name: values.to(device) for name, values in batch.items()}
        images = to_unit_range(batch["pixel_values"])
        if attack is not None:
            images = attack(scored[attacked], images, batch["labels"], batch["sample_ids"])
        with torch.no_grad():
            for name, classifier in scored.items():
                correct[name] += (classifier(images).argmax(-1) == batch["labels"]).sum().item()
    where = (benchmark.name, benchmark.split, benchmark.attack_space)
    how = () if attack is None else (attack.eps, attack.steps, attack.step_size, attack.norm, attack.seed)
    n = len(benchmark)
    return [
        Row(name, attacked, number / n, *wilson_interval(number, n), n, *where, *how)
        for name, number in correct.items()
    ]


def compare_models(
    models: dict[str, ZeroShotClassifier], benchmark: Benchmark, attack: PGD, batch_size: int, num_workers: int
) -> list[Row]:
    """Every model on clean images, on images attacking the first model, and on images attacking itself."""
    loader = {"batch_size": batch_size, "num_workers": num_workers}
    rows = measure(models, benchmark, **loader)
    for place, (name, model) in enumerate(models.items()):
        rows += measure(models if place == 0 else {name: model}, benchmark, attack, name, **loader)
    return rows


def format_table(rows: list[Row]) -> str:
    """Rows of one benchmark and attack as a Markdown table of percentages, a line per model."""
    first = rows[0].model
    steps = next(row.steps for row in rows if row.attacked)
    kinds = {"clean": {}, f"PGD-{steps} on itself": {}, f"PGD-{steps} on the {first}": {}}
    clean, itself, transferred = kinds.values()
    for row in rows:
        cell = f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        if row.attacked is None:
            clean[row.model] = cell
        if row.attacked == row.model:
            itself[row.model] = cell
        if row.attacked == first:
            transferred[row.model] = cell
    lines = [["", *kinds], ["---"] * (len(kinds) + 1)]
    lines += [[model, *(column[model] for column in kinds.values())] for model in clean]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
