"""A protocol check: the mistakes that numbers of robustness were published with, looked for on about 128 images.

    findings = check_protocol(classifier, load_benchmark("cifar10"), attack=my_attack, eps="4/255")
    print(*findings, sep="\\n")

Each finding is a line: fine, wrong, or can't tell with the reason. A sound model isn't called wrong: what a check says
is wrong was seen on so many images that chance doesn't explain it. It sees mistakes that change what a model or an
attack does on these images, and no others.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from hpt.attacks import Attack, NamedAttack
from hpt.attacks.passes import watch_passes
from hpt.classifiers import Classifier, OpenClassifier
from hpt.data.benchmark import Benchmark
from hpt.errors import InputError, check_at_least, message_of
from hpt.escaping import one_line
from hpt.evaluation.functions import FunctionSubject
from hpt.evaluation.progress import PassCounter, describe_duration
from hpt.evaluation.protocol.attack_checks import (
    SMALL_BATCH,
    AnyAttack,
    ForeignAttack,
    check_attack,
    check_number,
    number_of_images,
)
from hpt.evaluation.protocol.data_checks import CLASSES, EACH, check_class_order, check_layout
from hpt.evaluation.protocol.findings import Finding
from hpt.evaluation.protocol.masking_checks import MOST_PASSES, check_robustness
from hpt.evaluation.protocol.model_checks import (
    ALONE,
    VERSIONS,
    check_batch_size,
    check_determinism,
    check_normalisation,
    check_precision,
    other_pixels,
)
from hpt.evaluation.protocol.probe import Probe
from hpt.evaluation.subject import Evaluated, Subject
from hpt.models.classifier import ZeroShotClassifier
from hpt.radius import Radius, as_radii


IMAGES = 128
SANITY = Radius("4/255")  # at which an undefended CLIP has nearly nothing left
BAR = "{l_bar}{bar}| {n:.1f}/{total} checks [{elapsed}]"


def check_protocol(
    subject: Evaluated | Classifier | OpenClassifier,
    benchmark: Benchmark,
    attack: Attack | AnyAttack | str | Iterable = "pgd",
    eps: float | str | Iterable[float | str] | None = None,
    *,
    norm: str | None = None,
    proxy: Classifier | None = None,
    name: str = "the classifier",
    max_samples: int = IMAGES,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[Finding]:
    """Look for published mistakes in how a model is shown images, and in how it is attacked.

    Args:
        subject ([`Evaluated`], [`Classifier`] or [`OpenClassifier`]): What is evaluated; of a classifier, its logits
            are over the benchmark's classes. Its mode and weights stay as they are.
        benchmark ([`Benchmark`]): Images with labels.
        attack ([`Attack`], `Callable`, `str` or a list of them, *optional*): What it is attacked by: attacks of hpt,
            also by name, and functions `(classifier, images, labels) -> images` of any other library.
        eps (`float`, `str` or a list of them, *optional*): The radii that are meant, in [0, 1] pixels. Attacks are
            held against the largest; defaults to the one of the first attack that says its own, or `4/255`.
        norm (`str`, *optional*): Of the radii; defaults to that of the first attack that says its own, or `"linf"`.
        proxy (`Callable`, *optional*): A classifier over the benchmark's classes, for attacks that are made with one.
        name (`str`, *optional*): What findings call a classifier that has no name.
        max_samples (`int`, *optional*, defaults to 128): About so many images, of at most 16 classes; of the order of
            many classes, 8 images of each of 128 at most.
        batch_size (`int`, *optional*): Images at once.
        seed (`int`, *optional*, defaults to 0): Of the choice of images and of noise.
        device (*optional*): Where images are put, if what is evaluated doesn't say so itself.

    Returns:
        `list[Finding]`: a line for each check, of one eps or attack after the other where there are several.

    Raises:
        InputError: for radii, attacks and numbers that can't be meant, images without labels, and logits that aren't
            finite or not over the benchmark's classes.
    """
    check_at_least(2, max_samples=max_samples, batch_size=batch_size)
    listed = list(attack) if isinstance(attack, Iterable) and not isinstance(attack, str) else [attack]
    claimed = next((one.radius for one in listed if isinstance(one, Attack)), SANITY)
    radii = [claimed] if eps is None else as_radii(eps, norm or claimed.norm)
    attacks = [_as_attack(one, radii[-1], seed, proxy) for one in listed]
    classifier, benchmark, name, device = _on(subject, benchmark, name, device)
    probe = Probe(classifier, benchmark, max_samples, batch_size, seed, device)
    findings = _run(f"checking {name} on {benchmark.name}", _plan(probe, attacks, radii))
    return [replace(finding, model=name, benchmark=benchmark.name) for finding in findings]


def check_protocols(
    subjects: Iterable[Evaluated],
    benchmarks: Iterable[Benchmark],
    attacks: Iterable[str],
    radii: Iterable[Radius],
    proxy: Evaluated | None,
    failures: list[str],
    **settings,
) -> list[Finding]:
    """[`check_protocol`] of each subject on each benchmark, with attacks by name.

    Attacks that are scored on the proxy instead of the subject are left out.

    Args:
        subjects, benchmarks, attacks, radii: What an evaluation has.
        proxy ([`Evaluated`], *optional*): For attacks that are made with one.
        failures (`list[str]`): Takes a line for each subject and benchmark that can't be checked.
        settings: `norm`, `max_samples`, `batch_size`, `seed` and `device` of [`check_protocol`].
    """
    attacks = [text for text in attacks if not NamedAttack.parse(text).scored_on_proxy]
    findings = []
    for subject in subjects:
        for benchmark in benchmarks:
            try:
                helper = None if proxy is None else proxy.on(benchmark)
                findings += check_protocol(subject, benchmark, attacks, radii, proxy=helper, **settings)
            except InputError as error:
                failures.append(f"{subject.name}, {benchmark.name}: {message_of(error)}")
    return findings


def _as_attack(given: Attack | AnyAttack | str, radius: Radius, seed: int, proxy: Classifier | None) -> Attack:
    if isinstance(given, Attack):
        return given
    if callable(given):
        return ForeignAttack(given, eps=radius, norm=radius.norm, seed=seed)
    return NamedAttack.parse(given).make(radius, seed=seed, proxy=proxy)


def _on(subject: Evaluated | Classifier | OpenClassifier, benchmark: Benchmark, name: str, device):
    """A subject as a classifier of a benchmark, the benchmark as it sees it, its name, and where it wants images."""
    if type(subject) is ZeroShotClassifier:  # a subclass may compute anything
        subject = Subject(subject)
    elif isinstance(subject, OpenClassifier):
        subject = FunctionSubject(subject, name, device or "cpu")
    if callable(subject):
        return subject, benchmark, name, device
    return subject.on(benchmark), subject.see(benchmark), subject.name, subject.device(benchmark)


def _plan(
    probe: Probe, attacks: list[Attack], radii: list[Radius]
) -> list[tuple[str, int, Callable[[], list[Finding]]]]:
    """The checks in order: what is looked at, the most passes through the classifier that it takes, and the check."""
    number, classes = len(probe), len(probe.benchmark.class_names)
    largest = max([SANITY, *(radius for radius in radii if radius.norm == "linf")])
    many = number if classes <= len(probe.labels.unique()) else min(classes, CLASSES) * EACH
    plan = [
        ("determinism", probe.batch_size, lambda: [check_determinism(probe)]),
        ("batch size", number + probe.batch_size + ALONE, lambda: [check_batch_size(probe)]),
        ("normalisation", number * VERSIONS * (1 + len(other_pixels())), lambda: [check_normalisation(probe)]),
        ("precision", 2, lambda: [check_precision(probe, largest)]),
        ("layout", 0, lambda: [check_layout(probe.benchmark)]),
        ("class order", many, lambda: [check_class_order(probe)]),
        ("masking", number * MOST_PASSES, lambda: check_robustness(probe, largest)),
        ("eps", 0, lambda: [check_number(radius) for radius in radii]),
    ]
    for attack in attacks:
        images = number_of_images(attack, classes)
        passes = (1 + (images > SMALL_BATCH)) * images * attack.most_passes(classes)
        plan.append((attack.label, passes, lambda attack=attack: check_attack(probe, attack, radii[-1])))
    return plan


def _run(title: str, checks: list[tuple[str, int, Callable[[], list[Finding]]]]) -> list[Finding]:
    """What the checks find, under a bar that says about how long the rest of them takes if no image breaks early."""
    findings, seconds, passes, left = [], 0.0, 0, sum(most for _, most, _ in checks)
    with tqdm(total=len(checks), bar_format=BAR, leave=False, mininterval=1, miniters=0) as bar:
        for what, most, check in checks:
            estimate = f", {describe_duration(left * seconds / passes)} left" if passes else ""
            bar.set_description(one_line(f"{title}: {what}{estimate}"))
            counter, begun = PassCounter(bar, max(1, most)), time.perf_counter()
            with watch_passes(counter.note):
                findings += check()
            counter.finish()
            seconds, passes, left = seconds + time.perf_counter() - begun, passes + counter.passes, left - most
    return findings
