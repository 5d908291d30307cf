"""Clean and robust accuracy of points between a vanilla and a trained checkpoint, and which of them to take.

evaluator = RobustnessEvaluator(attacks="pgd", eps=4 / 255, max_samples=500, output_dir="outputs/run/dial")
points = measure_dial(ZeroShotClassifier(clip, processor), endpoints, held_out, evaluator, make_grid([0.4, 0.7, 1]))
best = choose_point(points, "clean>=0.6")
clip.load_state_dict(endpoints.at(best.t, best.u))
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from hpt.data.benchmark import Benchmark
from hpt.data.folders import role_of
from hpt.errors import InputError
from hpt.evaluation.evaluator import RobustnessEvaluator
from hpt.evaluation.rows import CLEAN, LARGE_EPS, measured_accuracy
from hpt.evaluation.subject import Subject
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.interpolation import Endpoints, check_point, name_point


SUM = "sum"
LEAST_CLEAN = re.compile(r"clean\s*>=\s*(\S+)")


@dataclass(frozen=True)
class DialPoint:
    """What was measured at a point of the dial.

    Args:
        t, u (`float`): Shares of the way to the final weights and to the average, as of [`interpolate`].
        clean, robust (`float`): Share of the samples that are right without an attack, and under every attack.
        num_samples (`int`): Images.
        weights (`str`): Hash of the point's weights, from [`hash_weights`].
    """

    t: float
    u: float
    clean: float
    robust: float
    num_samples: int
    weights: str

    @property
    def name(self) -> str:
        """`t=0.6`, as rows, tables and pictures call it."""
        return name_point(self.t, self.u)

    @property
    def counts(self) -> tuple[int, int]:
        """How many samples are right without an attack, and under every attack."""
        return round(self.clean * self.num_samples), round(self.robust * self.num_samples)

    @property
    def accuracies(self) -> tuple["Accuracy", "Accuracy"]:
        """Clean and robust accuracy, with their 95 % Wilson intervals."""
        clean, robust = (Accuracy(**measured_accuracy(right, self.num_samples)) for right in self.counts)
        return clean, robust


class Accuracy(NamedTuple):
    """A share of samples that are right, with its interval."""

    accuracy: float
    low: float
    high: float


def measure_dial(
    classifier: ZeroShotClassifier,
    endpoints: Endpoints,
    benchmark: Benchmark,
    evaluator: RobustnessEvaluator,
    points: Iterable[tuple[float, float]],
) -> list[DialPoint]:
    """Measure points between checkpoints, one after the other.

    What is measured is kept in the evaluator's folder, row by row and batch by batch, with the hash of each point's
    weights, so that a dial that was cut off goes on where it stopped. Every point is attacked with the same noise,
    from (seed, sample id).

    Args:
        classifier ([`ZeroShotClassifier`]): Of the endpoints' architecture; its weights are put back in the end.
        endpoints ([`Endpoints`]): What lies at the ends.
        benchmark ([`Benchmark`]): Images to choose by, which neither endpoint was trained on: never those of a test.
        evaluator ([`RobustnessEvaluator`]): With the attacks, the one radius, and how many samples are taken.
        points (`list[tuple[float, float]]`): `(t, u)`, from [`make_grid`].

    Raises:
        InputError: for points out of range, a benchmark that is a test split, an evaluator without an attack or with
            several radii, logits that aren't finite, or results of other weights in the evaluator's folder.
    """
    points = list(points)
    for point in points:
        check_point(*point)
    if endpoints.average is None and any(u for _, u in points):
        raise InputError("There is no average to go to, as a run with an anchor stage keeps it: leave its points out.")
    refuse_test_split(benchmark)
    if len(evaluator.radii) != 1 or all(attack.scored_on_proxy for attack in evaluator.attacks):
        raise InputError("A dial is measured under attacks on the model, one or several, at one eps.")
    model = classifier.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    try:
        return [_measure(classifier, endpoints, benchmark, evaluator, *point) for point in points]
    finally:
        model.load_state_dict(before)


def _measure(classifier, endpoints: Endpoints, benchmark: Benchmark, evaluator, t: float, u: float) -> DialPoint:
    classifier.model.load_state_dict(endpoints.at(t, u))
    subject = Subject(classifier.eval(), name_point(t, u))
    tasks = evaluator.plan(subject, benchmark)
    # Whether attacks work at all is asked where results are reported
    rows = evaluator.run([task for task in tasks if task.settings["attack"] != LARGE_EPS])
    clean = next(row for row in rows if row.attack == CLEAN)
    robust = next((row for row in rows if row.is_worst_case), None)
    if robust is None:
        raise InputError(" ".join(evaluator.left_out))
    return DialPoint(t, u, clean.accuracy, robust.accuracy, clean.n, subject.weights)


def refuse_test_split(benchmark: Benchmark) -> None:
    """Refuse images of a test split: a point that is chosen on them flatters what is then reported on them."""
    if role_of(benchmark.split) == "test":
        raise InputError(
            f"{benchmark.name} ({benchmark.split}) is what models are tested on: choose on training images that were "
            "held out, or on a validation split."
        )


# The choice


def choose_point(points: Iterable[DialPoint], rule: str) -> DialPoint:
    """The best of measured points by a rule.

    `"sum"` takes the largest sum of clean and robust accuracy; of equal ones the most robust. `"clean>=0.6"` takes
    the most robust of those with a clean accuracy of at least 0.6; of equal ones that with the most clean accuracy. Of
    points that are equal in both, the nearest to vanilla is taken: that of the smallest `t + u`, then of the smallest
    `t`.

    Args:
        points (`list[DialPoint]`): From [`measure_dial`].
        rule (`str`): `"sum"` or `"clean>=NUMBER"`, with a number in [0, 1].

    Raises:
        InputError: for a rule that isn't one, no points, or none with so much clean accuracy.
    """
    least, points = check_rule(rule), list(points)
    if not points:
        raise InputError("There are no points to choose from.")
    allowed = [point for point in points if least is None or point.clean >= least]
    if not allowed:
        best = max(points, key=lambda point: point.clean)
        raise InputError(
            f"No point has a clean accuracy of {least:g} or more: the best has {best.clean:.3f}, at {best.name}. Give "
            "a lower one, or points that are nearer to vanilla."
        )
    return max(allowed, key=lambda point: (*_merits(point, least), -(point.t + point.u), -point.t))


def _merits(point: DialPoint, least: float | None) -> tuple[int, int]:
    """What decides between points, as numbers of samples: sums of shares would be equal but for their rounding."""
    clean, robust = point.counts
    return (clean + robust, robust) if least is None else (robust, clean)


def check_rule(rule: str) -> float | None:
    """The least clean accuracy that a rule asks for, `None` for `"sum"`; [`InputError`] for what isn't a rule."""
    if rule == SUM:
        return None
    matched = LEAST_CLEAN.fullmatch(rule)
    try:
        least = float(matched[1]) if matched else math.nan
    except ValueError:
        least = math.nan
    if not 0 <= least <= 1:
        raise InputError(f"The rule is {rule!r}, but must be sum, or clean>=NUMBER with a number from 0 to 1.")
    return least
