r"""How much sooner attacks end in pools of batches than batch by batch, the verdicts being the same.

    target = ZeroShotClassifier(*load_dual_encoder("outputs/quickstart/target")).eval()
    attacks = [NamedAttack.parse(name).make(Radius("16/255")) for name in ("autoattack", "apgd")]
    print(*compare_evaluation(target, load_benchmark("digits"), attacks), sep="\n")

Both ways take turns in one process, so that ratios hold on a noisy machine. Before anything is timed, each has given
its verdicts, which have to be the same for every sample.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from hpt.attacks import Attack
from hpt.attacks.passes import watch_passes
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate, to_unit_range
from hpt.errors import InputError, check_at_least
from hpt.evaluation.pools import make_pools
from hpt.evaluation.scoring import score_images
from hpt.models.classifier import ZeroShotClassifier


class Work(NamedTuple):
    """What one way of attacking found and took.

    Args:
        right (`torch.Tensor` of shape `(samples,)`, bool): Which samples are right under the attack.
        calls, passes (`int`): Calls of the classifier, and passes of an image through it, forward or backward.
        seconds (`float`): Of the process on a CPU, or else of a clock.
    """

    right: torch.Tensor
    calls: int
    passes: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """An attack batch by batch, and in pools.

    Args:
        attack (`str`): Its label.
        samples, robust (`int`): How many are right without it, and how many under it.
        calls, passes (`tuple[int, int]`): Batch by batch, and in pools.
        seconds (`list[tuple[float, float]]`): The same, of each round.
    """

    attack: str
    samples: int
    robust: int
    calls: tuple[int, int]
    passes: tuple[int, int]
    seconds: list[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        """How many times as long it takes batch by batch, in each round."""
        return [alone / pooled for alone, pooled in self.seconds]

    def __str__(self) -> str:
        alone, pooled = (statistics.median(times) for times in zip(*self.seconds, strict=True))
        ratio = f"{statistics.median(self.ratios):.2f} [{min(self.ratios):.2f}, {max(self.ratios):.2f}]"
        calls, passes = (" and ".join(f"{number:,}" for number in pair) for pair in (self.calls, self.passes))
        return (
            f"{self.attack}: {self.robust} of {self.samples} samples stay right, both ways the same; {alone:.2f} s "
            f"batch by batch, {pooled:.2f} s in pools, ratio {ratio}; calls {calls}, passes {passes}."
        )


def compare_evaluation(
    classifier: ZeroShotClassifier,
    benchmark: Benchmark,
    attacks: Iterable[Attack],
    *,
    batch_size: int = 64,
    rounds: int = 5,
) -> list[Comparison]:
    """Attack the samples that are right without an attack, batch by batch as hpt 0.6.0 did, and in pools.

    Args:
        classifier ([`ZeroShotClassifier`]): In eval mode, on its device.
        benchmark ([`Benchmark`]): What it classifies.
        attacks (`list[Attack]`): Each is compared by itself.
        batch_size (`int`, *optional*, defaults to 64): Most images that go through the classifier at once.
        rounds (`int`, *optional*, defaults to 5): How often each way is timed.

    Raises:
        InputError: if it is right on none of them.
        RuntimeError: if a sample's verdict isn't the same both ways.
    """
    check_at_least(1, batch_size=batch_size, rounds=rounds)
    benchmark = benchmark.for_model(classifier.processor.image_processor)
    classifier = classifier.with_classes(benchmark.class_names, benchmark.template)
    batches = _right_samples(classifier, benchmark, batch_size)
    pools = make_pools(len(batches), batch_size * benchmark[0]["pixel_values"].numel())
    pooled = [tuple(map(torch.cat, zip(*(batches[place] for place in pool), strict=True))) for pool in pools]
    batches, pooled = ([part for part in parts if len(part[0]) > 0] for parts in (batches, pooled))
    if not batches:
        raise InputError(f"The classifier is right on no image of {benchmark.name}: there is nothing to attack.")
    return [_compare(classifier, attack, batches, pooled, batch_size, rounds) for attack in attacks]


def _right_samples(classifier, benchmark: Benchmark, batch_size: int) -> list[tuple[torch.Tensor, ...]]:
    """Images, labels and ids of each batch, without those that are wrong."""
    batches = []
    for batch in DataLoader(benchmark, batch_size, collate_fn=collate):
        batch = {name: values.to(classifier.image_mean.device) for name, values in batch.items()}
        images = to_unit_range(batch["pixel_values"])
        right = score_images(classifier, images).argmax(1) == batch["labels"]
        batches.append((images[right], batch["labels"][right], batch["sample_ids"][right]))
    return batches


def _compare(classifier, attack: Attack, batches: list, pools: list, batch_size: int, rounds: int) -> Comparison:
    def run_alone() -> Work:
        return _work_off(classifier, attack, batches, None)

    def run_pooled() -> Work:
        return _work_off(classifier, attack, pools, batch_size)

    alone, pooled = run_alone(), run_pooled()
    if not torch.equal(alone.right, pooled.right):
        different = int((alone.right != pooled.right).sum())
        raise RuntimeError(f"{attack.label}: {different} of {len(alone.right)} verdicts differ, so nothing is timed.")
    seconds = [_in_turn(run_alone, run_pooled, place % 2 == 1) for place in range(rounds)]
    calls, passes = (alone.calls, pooled.calls), (alone.passes, pooled.passes)
    return Comparison(attack.label, len(alone.right), int(alone.right.sum()), calls, passes, seconds)


def _in_turn(first: Callable[[], Work], second: Callable[[], Work], swapped: bool) -> tuple[float, float]:
    """Seconds of both, of which the second goes first if they are swapped."""
    if swapped:
        return _in_turn(second, first, False)[::-1]
    return first().seconds, second().seconds


def _work_off(classifier, attack: Attack, parts: list[tuple], batch_size: int | None) -> Work:
    """Attack and score samples part by part."""
    calls: list[int] = []
    right, begun = [], _clock()
    with watch_passes(calls.append):
        for images, labels, sample_ids in parts:
            found = attack.perturb(classifier, images, labels, sample_ids, batch_size=batch_size).images
            right.append(score_images(classifier, found, batch_size=batch_size).argmax(1) == labels)
    return Work(torch.cat(right).cpu(), len(calls), sum(calls), _clock() - begun)


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
