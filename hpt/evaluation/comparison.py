"""Several classifiers on the same images: clean, or adversarial ones made against one of them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hpt.attacks import PGD
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate
from hpt.escaping import one_line
from hpt.evaluation.row_settings import attack_settings, clean_settings, hash_benchmark, sample_settings
from hpt.evaluation.rows import ALL_IMAGES, Row, measured_accuracy, predicted_shares
from hpt.evaluation.scoring import evaluate_images, score_batch
from hpt.evaluation.subject import Subject
from hpt.processes import dead_workers_explained


@dead_workers_explained()
def predict(
    subjects: Iterable[Subject],
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
) -> dict[str, np.ndarray]:
    """What each of several classifiers predicts for images, clean or made against one of them, in float32.

    All images are attacked, whether or not the attacked model is right without an attack.

    Args:
        subjects (`Iterable[Subject]`): Models, in eval mode, on one device; they classify the benchmark's classes.
        benchmark ([`Benchmark`]): Images and labels. If it doesn't say how images come to a model, all models get
            them as the first one sees them.
        attack ([`PGD`], *optional*): Without it, images stay clean.
        attacked (`str`, *optional*): Name of the model that the images are made against, one of the subjects.
        batch_size, num_workers (`int`, *optional*): Of the data loader; they change no number.

    Returns:
        `dict[str, np.ndarray]`: classes of shape `(len(benchmark),)` by model.
    """
    subjects = list(subjects)
    benchmark = subjects[0].see(benchmark)
    scored = {subject.name: subject.on(benchmark) for subject in subjects}
    shown = attacked or next(iter(scored))  # the first to score each batch
    device = next(subject for subject in subjects if subject.name == shown).device(benchmark)
    loader = DataLoader(benchmark, batch_size, collate_fn=collate, num_workers=num_workers)
    predicted = {name: [] for name in scored}
    what = "clean" if attack is None else f"eps {attack.radius} against the {attacked}"
    batches = iter(loader)  # given the loader, tqdm.auto would begin a second pass, with workers that nobody needs
    for batch in tqdm(batches, desc=one_line(f"{benchmark.name}, {what}"), leave=False):
        batch = {name: values.to(device) for name, values in batch.items()}
        seen = score_batch(scored[shown], attack, batch)
        for name, classifier in scored.items():
            own = seen.evaluations if name == shown else evaluate_images(classifier, seen.images, batch["sample_ids"])
            predicted[name].append(own[0].argmax(-1))
    return {name: torch.cat(classes).cpu().numpy() for name, classes in predicted.items()}


def score(
    subjects: Iterable[Subject],
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    **loader,
) -> dict[str, np.ndarray]:
    """Which images each classifier gets right, booleans of shape `(len(benchmark),)` by model; see [`predict`]."""
    labels = np.asarray(benchmark.dataset["label"][:])
    predicted = predict(subjects, benchmark, attack, attacked, **loader)
    return {name: classes == labels for name, classes in predicted.items()}


def measure(
    subjects: Iterable[Subject],
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    *,
    samples: str | None = None,
    **loader,
) -> list[Row]:
    """The accuracies of what [`predict`] finds, one row per model; other arguments as there.

    `samples` is the hash from [`hash_benchmark`], where it is known already.
    """
    subjects, samples = list(subjects), samples or hash_benchmark(benchmark)
    benchmark = subjects[0].see(benchmark)
    labels = np.asarray(benchmark.dataset["label"][:])
    predicted = predict(subjects, benchmark, attack, attacked, **loader)
    rows = []
    for subject in subjects:
        classes = predicted[subject.name]
        shares = predicted_shares(classes, labels) if attack is None else {}
        rows.append(make_row(subject, classes == labels, benchmark, attack, attacked, samples=samples, **shares))
    return rows


def make_row(
    subject: Subject,
    correct: np.ndarray,
    benchmark: Benchmark,
    attack: PGD | None = None,
    attacked: str | None = None,
    *,
    samples: str,
    **settings,
) -> Row:
    """The row of one model's verdicts from [`score`], and what else was measured of it.

    `samples` is the hash of what was classified.
    """
    attacks = clean_settings()
    if attack is not None:
        attacks = attack_settings(attack, attack.name, attacked, len(benchmark.class_names), **{ALL_IMAGES: True})
        settings["seed"] = attack.seed
    return Row(
        **subject.settings(benchmark),
        **sample_settings(benchmark, samples),
        **attacks,
        **settings,
        source=benchmark.source,
        **measured_accuracy(int(correct.sum()), len(benchmark)),
    )


def compare_models(subjects: Iterable[Subject], benchmark: Benchmark, attack: PGD, **settings) -> list[Row]:
    """Every model on clean images, on images attacking the first model, and on images attacking itself.

    `settings` are those of [`measure`].
    """
    first, *others = subjects
    benchmark = first.see(benchmark)
    rows = measure([first, *others], benchmark, **settings)
    rows += measure([first, *others], benchmark, attack, first.name, **settings)
    for subject in others:
        rows += measure([subject], benchmark, attack, subject.name, **settings)
    return rows
