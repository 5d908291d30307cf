"""Attacks on trained models in pools of batches beside batch by batch, with the same verdict for every sample."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import DataLoader

from hpt.attacks import Attack
from hpt.attacks.passes import watch_passes
from hpt.attacks.registry import parse_attacks_without_proxy
from hpt.benchmarking.gates import Outcome, check_equal
from hpt.benchmarking.measurement import Measurement
from hpt.benchmarking.models import Samples
from hpt.benchmarking.settings import Settings
from hpt.benchmarking.timing import interleave
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate, to_unit_range
from hpt.data.loading import load_benchmark
from hpt.data.names import parse_benchmark
from hpt.errors import InputError
from hpt.evaluation.pools import make_pools
from hpt.evaluation.scoring import score_images
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.converted import check_model
from hpt.models.loading import load_named
from hpt.radius import Radius
from hpt.references import Reference, parse_model


ALONE, POOLED = "batch by batch", "in pools"


def measure_attacks(settings: Settings) -> Iterator[Measurement]:
    """Each attack on each model, in pools of batches, times batch by batch."""
    models, attacks = parse_attacked(settings)
    benchmark = load_benchmark(settings.attacked_dataset)
    for reference in models:
        name, classifier = load_named(reference, settings.device)
        parts = cut_samples(classifier, benchmark, settings.batch_size)
        over_classes = classifier.with_classes(benchmark.class_names, benchmark.template)
        for attack in attacks:
            yield measure_attack(f"attacks: {attack.label}, {name}", over_classes, attack, parts, settings)


def parse_attacked(settings: Settings) -> tuple[list[Reference], list[Attack]]:
    """The models that are attacked, and the attacks; [`InputError`] for what can be neither, or no benchmark."""
    if not settings.attacked:
        raise InputError("attacks are timed on trained models: give attacked, such as outputs/quickstart/robust.")
    radius = Radius(settings.attacked_eps)
    attacks = [attack.make(radius) for attack in parse_attacks_without_proxy(settings.attacks, [radius])]
    models = [parse_model(text, loaded=True) for text in settings.attacked]
    for model in models:
        check_model(model)
    parse_benchmark(settings.attacked_dataset)
    return models, attacks


def cut_samples(classifier: ZeroShotClassifier, benchmark: Benchmark, batch_size: int) -> dict[str, list[Samples]]:
    """The samples that a classifier is right on, in the benchmark's batches and in an evaluation's pools of these.

    Raises:
        InputError: if it is right on none of them.
    """
    benchmark = benchmark.for_model(classifier.processor.image_processor)
    classifier = classifier.with_classes(benchmark.class_names, benchmark.template)
    batches = []
    for batch in DataLoader(benchmark, batch_size, collate_fn=collate):
        batch = {name: values.to(classifier.image_mean.device) for name, values in batch.items()}
        images = to_unit_range(batch["pixel_values"])
        right = score_images(classifier, images).argmax(1) == batch["labels"]
        batches.append(Samples(images[right], batch["labels"][right], batch["sample_ids"][right]))
    pools = make_pools(len(batches), batch_size * benchmark[0]["pixel_values"].numel())
    pooled = [Samples(*map(torch.cat, zip(*(batches[place] for place in pool), strict=True))) for pool in pools]
    parts = {way: [part for part in own if len(part.labels)] for way, own in ((ALONE, batches), (POOLED, pooled))}
    if not parts[ALONE]:
        raise InputError(f"The classifier is right on no image of {benchmark.name}: there is nothing to attack.")
    return parts


@dataclass
class Way:
    """Attacks and scores samples part by part.

    Args:
        classifier ([`ZeroShotClassifier`]): Over the samples' classes, in eval mode.
        attack ([`Attack`]): With the eps that it has by itself.
        parts (`list[Samples]`): Which are attacked one after the other.
        batch_size (`int`, *optional*): Most images that go through the classifier at once; by default a whole part.

    Attributes:
        calls (`list[int]`): Of the last run, passes of an image through the classifier, forward or backward, by call.
    """

    classifier: ZeroShotClassifier
    attack: Attack
    parts: list[Samples]
    batch_size: int | None = None
    calls: list[int] = field(default_factory=list)

    def __call__(self) -> Outcome:
        """Which samples stay right."""
        self.calls, right = [], []
        with watch_passes(self.calls.append):
            for part in self.parts:
                found = self.attack.perturb(self.classifier, *part, batch_size=self.batch_size).images
                right.append(score_images(self.classifier, found, batch_size=self.batch_size).argmax(1) == part.labels)
        return Outcome(right=torch.cat(right))


def measure_attack(
    name: str,
    classifier: ZeroShotClassifier,
    attack: Attack,
    parts: dict[str, list[Samples]],
    settings: Settings,
) -> Measurement:
    """An attack in pools, times batch by batch, if no verdict differs; how often the model was asked, as well."""
    sizes = {ALONE: None, POOLED: settings.batch_size}
    ways = {way: Way(classifier, attack, own, sizes[way]) for way, own in parts.items()}
    gate = check_equal(ways, ALONE)
    samples = sum(len(part.labels) for part in parts[ALONE])
    title = f"at {attack.radius}, on the {samples} images that are right without it"
    measurement = Measurement(name, title, "s", {}, ALONE, True, gate.further, faults=gate.faults)
    for way, run in ways.items():
        measurement.further |= {f"{way}: calls": [len(run.calls)], f"{way}: passes": [sum(run.calls)]}
    if not gate.faults:
        measurement.values = interleave(ways, settings.rounds, settings.device, name, warm_up=False)
    return measurement
