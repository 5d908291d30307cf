"""What an evaluation is going to do: one [`Task`] for each row, with everything that its number depends on."""

import math
from dataclasses import dataclass, replace

import torch

import hpt
from hpt.attacks import Attack
from hpt.attacks.apgd import APGDCE
from hpt.data.benchmark import Benchmark
from hpt.evaluation.rows import LARGE_EPS, Row, hash_benchmark
from hpt.files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import hash_weights
from hpt.radius import describe_eps


LARGE_RADIUS, LARGE_SAMPLES = 0.5, 128  # every image can become grey: nothing may withstand that


class Subject:
    """A model under evaluation, by the name that rows call it.

    Args:
        classifier ([`ZeroShotClassifier`]): The model; its classes don't matter.
        name (`str`, *optional*): Defaults to its Hub id or path.
    """

    def __init__(self, classifier: ZeroShotClassifier, name: str | None = None):
        self.classifier = classifier
        self.name = name or classifier.model.name_or_path
        self.revision = getattr(classifier.model.config, "_commit_hash", None)  # only models from the Hub have one
        self.weights = hash_weights(classifier.model.state_dict())

    def on(self, benchmark: Benchmark) -> ZeroShotClassifier:
        """It as a classifier of a benchmark's classes."""
        return self.classifier.with_classes(benchmark.class_names, benchmark.template)


@dataclass(frozen=True, eq=False)
class Task:
    """One row to be: what is scored, on which samples, and how they are attacked.

    Args:
        settings (`dict`): The row's settings, as [`Row.settings`] has them.
        scored ([`ZeroShotClassifier`]): Over the benchmark's classes.
        benchmark ([`Benchmark`]): The samples.
        attack ([`Attack`], *optional*): `None` for clean images.
        clean (`Task`, *optional*): The task that says which of the samples are right without an attack.
    """

    settings: dict
    scored: ZeroShotClassifier
    benchmark: Benchmark
    attack: Attack | None = None
    clean: "Task | None" = None

    @property
    def key(self) -> str:
        """Names the predictions of exactly these settings."""
        return digest(self.settings)

    def __str__(self) -> str:
        row = self.settings
        eps = "" if row["eps"] is None else f" at {describe_eps(row['eps'], row['norm'])}"
        return f"{row['model']}, {row['benchmark']}, {row['attack']}{eps}"


def plan_clean(subject: Subject, benchmark: Benchmark, seed: int, batch_size: int, max_samples: int | None) -> Task:
    """The task of a model's clean accuracy."""
    scored = subject.on(benchmark)
    row = Row(
        model=subject.name,
        attacked=None,
        accuracy=0,
        low=0,
        high=0,
        n=len(benchmark),
        benchmark=benchmark.name,
        split=benchmark.split,
        attack_space=benchmark.attack_space,
        dtype=str(scored.model.dtype).removeprefix("torch."),
        templates=scored.templates,
        image_mean=_rounded(scored.image_mean),
        image_std=_rounded(scored.image_std),
        seed=seed,
        batch_size=batch_size,
        max_samples=max_samples,
        samples=hash_benchmark(benchmark),
        revision=subject.revision,
        weights=subject.weights,
        hpt_version=hpt.__version__,
    )
    return Task(row.settings(), scored, benchmark)


def plan_attack(clean: Task, text: str, attack: Attack, attacked: str, **parameters) -> Task:
    """The task of an attack on the samples of a clean one; `parameters` add to the attack's own in the row."""
    parameters = attack.parameters | parameters
    settings = {name: parameters.get(name) for name in ("steps", "step_size", "restarts")}
    settings |= {"attack": text, "attacked": attacked, "eps": attack.eps, "norm": attack.norm}
    settings |= {"parameters": parameters, "left_out": attack.left_out(len(clean.benchmark.class_names))}
    return replace(clean, settings=clean.settings | settings, attack=attack, clean=clean)


def plan_large_eps(clean: Task) -> Task:
    """An attack that has to break everything, on the first batches of the samples."""
    batch_size = clean.settings["batch_size"]
    number = min(len(clean.benchmark), batch_size * math.ceil(LARGE_SAMPLES / batch_size))
    attack = APGDCE(eps=LARGE_RADIUS, seed=clean.settings["seed"])
    task = plan_attack(clean, LARGE_EPS, attack, clean.settings["model"])
    few = clean.benchmark.rows(range(number))
    return replace(task, settings=task.settings | {"n": number}, benchmark=few)


def _rounded(statistics: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in statistics.flatten().tolist()]
