"""Several classifiers on the same images: clean, or adversarial ones made against one of them."""

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hpt.attacks import PGD
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate, to_unit_range
from hpt.evaluation.rows import CLEAN, Row, wilson_interval
from hpt.models.classifier import ZeroShotClassifier


def score(
    scored: dict[str, ZeroShotClassifier],
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> dict[str, np.ndarray]:
    """Which images each of several classifiers gets right, clean or made against one of them, in float32.

    All images are attacked, whether or not the attacked model is right without an attack.

    Args:
        scored (`dict[str, ZeroShotClassifier]`): Models by name, in eval mode; their classes are replaced by the
            benchmark's.
        benchmark ([`Benchmark`]): Images and labels.
        attack ([`PGD`], *optional*): Without it, images stay clean.
        attacked (`str`, *optional*): Name of the model that the images are made against.
        batch_size, num_workers (`int`, *optional*): Of the data loader; they change no number.

    Returns:
        `dict[str, np.ndarray]`: booleans of shape `(len(benchmark),)` by model.
    """
    scored = {name: one.with_classes(benchmark.class_names, benchmark.template) for name, one in scored.items()}
    device = next(iter(scored.values())).model.device
    loader = DataLoader(benchmark, batch_size, collate_fn=collate, num_workers=num_workers)
    correct = {name: [] for name in scored}
    what = "clean" if attack is None else f"eps {255 * attack.eps:g}/255 against the {attacked}"
    for batch in tqdm(loader, desc=f"{benchmark.name}, {what}", leave=False):
        batch = {name: values.to(device) for name, values in batch.items()}
        images = to_unit_range(batch["pixel_values"])
        if attack is not None:
            images = attack(scored[attacked], images, batch["labels"], batch["sample_ids"])
        with torch.no_grad():
            for name, classifier in scored.items():
                correct[name].append(classifier(images).argmax(-1) == batch["labels"])
    return {name: torch.cat(verdicts).cpu().numpy() for name, verdicts in correct.items()}


def measure(
    scored: dict[str, ZeroShotClassifier],
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    **loader,
) -> list[Row]:
    """The accuracies that [`score`] finds, one row per model; arguments as there."""
    correct = score(scored, benchmark, attack, attacked, **loader)
    return [make_row(name, verdicts, benchmark, attack, attacked) for name, verdicts in correct.items()]


def make_row(
    model: str, correct: np.ndarray, benchmark: Benchmark, attack: PGD | None = None, attacked: str | None = None
) -> Row:
    """The row of one model's verdicts from [`score`]."""
    how = {"attack": CLEAN, "attacked": None}
    if attack is not None:
        how = {"attack": "pgd", "attacked": attacked, "eps": attack.eps, "norm": attack.norm, "seed": attack.seed}
        how |= {"steps": attack.steps, "step_size": attack.step_size, "restarts": attack.restarts}
        how |= {"parameters": attack.parameters}
    where = {"benchmark": benchmark.name, "split": benchmark.split, "attack_space": benchmark.attack_space}
    where |= {"source": benchmark.source}
    number, n = int(correct.sum()), len(benchmark)
    low, high = wilson_interval(number, n)
    return Row(model=model, accuracy=number / n, low=low, high=high, n=n, **where, **how)


def compare_models(
    models: dict[str, ZeroShotClassifier], benchmark: Benchmark, attack: PGD, batch_size: int, num_workers: int
) -> list[Row]:
    """Every model on clean images, on images attacking the first model, and on images attacking itself."""
    loader = {"batch_size": batch_size, "num_workers": num_workers}
    rows = measure(models, benchmark, **loader)
    for place, (name, model) in enumerate(models.items()):
        rows += measure(models if place == 0 else {name: model}, benchmark, attack, name, **loader)
    return rows
