"""What an evaluation is going to do: one [`Task`] for each row, with everything that its number depends on."""

import math
from dataclasses import dataclass, replace

from hpt.attacks import Attack
from hpt.attacks.apgd import APGDCE
from hpt.data.benchmark import Benchmark
from hpt.escaping import one_line
from hpt.evaluation.rows import (
    LARGE_EPS,
    attack_settings,
    clean_settings,
    hash_benchmark,
    sample_settings,
)
from hpt.evaluation.subject import Subject
from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier


LARGE_RADIUS, LARGE_SAMPLES = 0.5, 128  # every image can become grey: nothing may withstand that


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

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.benchmark) / self.settings["batch_size"])

    @property
    def most_passes(self) -> int:
        """Most passes through models, forward or backward, for a sample: those of its attack, and the one scored."""
        return 1 + (0 if self.attack is None else self.attack.most_passes(len(self.benchmark.class_names)))

    def __str__(self) -> str:
        row = self.settings
        eps = "" if self.attack is None else f" at {self.attack.radius}"
        model = row["model"] or "the model"  # one that was neither loaded nor named
        return one_line(f"{model}, {row['benchmark']}, {row['attack']}{eps}")


def plan_clean(subject: Subject, benchmark: Benchmark, seed: int, batch_size: int, max_samples: int | None) -> Task:
    """The task of a model's clean accuracy."""
    settings = subject.settings(benchmark) | sample_settings(benchmark, hash_benchmark(benchmark)) | clean_settings()
    settings |= {"seed": seed, "batch_size": batch_size, "max_samples": max_samples}
    settings["hpt_version"] = subject.measured_since
    return Task(settings, subject.on(benchmark), benchmark)


def plan_attack(
    clean: Task, text: str, attack: Attack, attacked: str, other: Subject | None = None, **parameters
) -> Task:
    """The task of an attack on the samples of a clean one, for which it may use another model than the one scored.

    `parameters` add to the attack's own in the row.
    """
    settings = attack_settings(attack, text, attacked, len(clean.benchmark.class_names), **parameters)
    if other is not None and "other_model" in clean.settings:
        settings["other_model"] = other.computes_with(clean.benchmark)
    return replace(clean, settings=clean.settings | settings, attack=attack, clean=clean)


def plan_large_eps(clean: Task) -> Task:
    """An attack that has to break everything, on the first batches of the samples."""
    batch_size = clean.settings["batch_size"]
    number = min(len(clean.benchmark), batch_size * math.ceil(LARGE_SAMPLES / batch_size))
    attack = APGDCE(eps=LARGE_RADIUS, seed=clean.settings["seed"])
    task = plan_attack(clean, LARGE_EPS, attack, clean.settings["model"])
    few = clean.benchmark.rows(range(number))
    return replace(task, settings=task.settings | {"n": number}, benchmark=few)
