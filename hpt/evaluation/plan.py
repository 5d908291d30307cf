"""What an evaluation is going to do: one [`Task`] for each row, with everything that its number depends on."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from hpt.attacks import Attack, Cascade, NamedAttack
from hpt.attacks.apgd import APGDCE
from hpt.classifiers import Classifier, is_randomised
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError
from hpt.escaping import one_line
from hpt.evaluation.pools import make_pools
from hpt.evaluation.row_settings import attack_settings, clean_settings, hash_benchmark, sample_settings
from hpt.evaluation.rows import CASCADE, LARGE_EPS
from hpt.evaluation.subject import Evaluated
from hpt.json_files import digest


LARGE_RADIUS, LARGE_SAMPLES = 0.5, 128  # every image can become grey: nothing may withstand that


@dataclass(frozen=True, eq=False)
class Task:
    """One row to be: what is scored, on which samples, and how they are attacked.

    Args:
        settings (`dict`): The row's settings, as [`Row.settings`] has them.
        scored ([`Classifier`]): Over the benchmark's classes.
        device (`torch.device`): Where it wants its images.
        benchmark ([`Benchmark`]): The samples.
        attack ([`Attack`], *optional*): `None` for clean images.
        clean (`Task`, *optional*): The task that says which of the samples are right without an attack.
        attacked ([`Classifier`], *optional*): What the attack sees instead of the classifier that is scored.
    """

    settings: dict
    scored: Classifier
    device: torch.device
    benchmark: Benchmark
    attack: Attack | None = None
    clean: "Task | None" = None
    attacked: Classifier | None = None

    @property
    def key(self) -> str:
        """Names the predictions of exactly these settings."""
        return digest(self.settings)

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.benchmark) / self.settings["batch_size"])

    @cached_property
    def pools(self) -> list[range]:
        """The batches that are worked off together: several where samples leave an attack before its end."""
        if self.attack is None or not self.attack.leaves_early or is_randomised(self.attacked or self.scored):
            return [range(batch, batch + 1) for batch in range(self.num_batches)]
        values = self.settings["batch_size"] * self.benchmark[0]["pixel_values"].numel()
        return make_pools(self.num_batches, values)

    @property
    def evaluations(self) -> int:
        """How often each image is classified: once, unless the classifier is randomised."""
        return self.settings.get("evaluations", 1)

    @property
    def most_passes(self) -> int:
        """Most passes through models, forward or backward, for a sample: those of its attack, and those scored."""
        return self.evaluations + (
            0 if self.attack is None else self.attack.most_passes(len(self.benchmark.class_names))
        )

    def __str__(self) -> str:
        row = self.settings
        eps = "" if self.attack is None else f" at {self.attack.radius}"
        model = row["model"] or "the model"  # one that was neither loaded nor named
        return one_line(f"{model}, {row['benchmark']}, {row['attack']}{eps}")


def plan_clean(
    subject: Evaluated, benchmark: Benchmark, seed: int, batch_size: int, max_samples: int | None, evaluations: int = 1
) -> Task:
    """The task of a subject's clean accuracy; `evaluations` are those of a randomised one."""
    scored = subject.on(benchmark)
    settings = subject.settings(benchmark) | sample_settings(benchmark, hash_benchmark(benchmark)) | clean_settings()
    settings |= {"seed": seed, "batch_size": batch_size, "max_samples": max_samples}
    settings |= {"evaluations": evaluations} if is_randomised(scored) else {}
    settings["hpt_version"] = subject.measured_since
    return Task(settings, scored, subject.device(benchmark), benchmark)


def plan_attack(
    clean: Task, text: str, attack: Attack, attacked: str, other: Evaluated | None = None, **parameters
) -> Task:
    """The task of an attack on the samples of a clean one, for which it may use another model than the one scored.

    `parameters` add to the attack's own in the row.
    """
    settings = attack_settings(attack, text, attacked, len(clean.benchmark.class_names), **parameters)
    if other is not None and "other_model" in clean.settings:
        settings["other_model"] = other.computes_with(clean.benchmark)
    return replace(clean, settings=clean.settings | settings, attack=attack, clean=clean)


def plan_attack_on(clean: Task, text: str, attack: Attack, attacked: Evaluated) -> Task:
    """The task of an attack that sees another function than the one scored, on the samples of a clean one."""
    task = plan_attack(clean, text, attack, attacked.name, attacked, attacked_weights=attacked.weights)
    return replace(task, attacked=attacked.on(clean.benchmark))


def plan_cascade(clean: Task, attacks: dict[NamedAttack, Attack], proxy: Evaluated | None) -> Task:
    """The task of several attacks of one radius on the samples of a clean one, each on what those before left.

    `proxy` is what some of them are made with.
    """
    cascade = Cascade({str(named): attack for named, attack in attacks.items()}, len(clean.benchmark.class_names))
    uses_proxy = any(named.needs_proxy for named in attacks)
    parameters = proxy.as_proxy() if uses_proxy else {}
    return plan_attack(clean, CASCADE, cascade, clean.settings["model"], proxy if uses_proxy else None, **parameters)


def check_cascade(attacks: list[NamedAttack]) -> None:
    """Refuse attacks that say nothing of the model scored, whose worst case a cascade is."""
    for attack in attacks:
        if attack.scored_on_proxy:
            raise InputError(
                f"{attack} is scored on the proxy, and a cascade is the worst case of the model alone: leave {attack} "
                "out, or the cascade."
            )


def check_samples_leave(subject: Evaluated, scored: Classifier, attacked: Evaluated | None) -> None:
    """Refuse a cascade in which no attack can tell that a sample needs no other."""
    if attacked is not None:
        raise InputError(
            f"A cascade ends for a sample that is broken, but its attacks see {attacked.name} and not {subject.name}, "
            "which is scored: evaluate without cascade."
        )
    if is_randomised(scored):
        raise InputError(
            f"A cascade ends for a sample that is broken, but {subject.name} is randomised, and may be right the next "
            "time: evaluate without cascade."
        )


def plan_large_eps(clean: Task) -> Task:
    """An attack that has to break everything, on the first batches of the samples."""
    batch_size = clean.settings["batch_size"]
    number = min(len(clean.benchmark), batch_size * math.ceil(LARGE_SAMPLES / batch_size))
    attack = APGDCE(eps=LARGE_RADIUS, seed=clean.settings["seed"])
    task = plan_attack(clean, LARGE_EPS, attack, clean.settings["model"])
    few = clean.benchmark.rows(range(number))
    return replace(task, settings=task.settings | {"n": number}, benchmark=few)


def check_attacked(subject: Evaluated, attacked: Evaluated | None, attacks: list[NamedAttack]) -> None:
    """Refuse what attacks are to see instead of a subject, if rows couldn't say what they have seen."""
    if attacked is None:
        return
    if attacked.name == subject.name:
        raise InputError(f"What is attacked and what is scored are both called {subject.name!r}: name one otherwise.")
    for attack in attacks:
        if attack.needs_proxy:
            raise InputError(f"{attack} is made with the proxy, and not on {attacked.name} alone: leave it out.")


def check_gradients(attacked: Evaluated, benchmark: Benchmark, attacks: list[NamedAttack]) -> None:
    """Refuse attacks that follow gradients of what has none."""
    reason = attacked.why_no_gradient(benchmark)
    for attack in attacks:
        if reason is not None and (attack.uses_gradients or attack.scored_on_proxy):
            raise InputError(
                f"{attacked.name} gives logits without a gradient for the image ({reason}), which {attack} follows: "
                "let it through, for a step that has none by hpt.attacks.straight_through, or give attacks that need "
                "none, such as square."
            )
