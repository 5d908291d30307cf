"""A measured accuracy with all that it depends on, and its confidence interval."""

import math
from dataclasses import asdict, dataclass, field

from hpt.data.benchmark import Benchmark
from hpt.data.images import hash_samples
from hpt.files import digest


CLEAN, WORST_CASE, LARGE_EPS = "clean", "worst case", "large-eps check"
# What isn't a setting: the measured, and where the samples were read from, for which their hash stands.
MEASURED = {
    "source",
    "accuracy",
    "low",
    "high",
    "mean_per_class_accuracy",
    "zero_gradient",
    "broken_by",
    "stochastic",
    "seconds",
}


OF_THE_ATTACK = {"attack", "attacked", "eps", "norm", "steps", "step_size", "restarts", "parameters", "left_out"}


@dataclass(frozen=True)
class Row:
    """One measured accuracy, with all that it depends on.

    Args:
        model (`str`): Name of the model scored.
        attacked (`str`, *optional*): Name of the model that the images were made against; `None` for clean images.
        accuracy, low, high (`float`): Share of correct samples and its 95 % Wilson interval, in [0, 1]. Of an
            evaluation, a sample that is wrong without an attack is wrong under every attack; a comparison, which
            scores several models on the same images, attacks them all.
        n (`int`): Samples.
        benchmark, split (`str`): What was classified.
        source (`str`, *optional*): `ID@COMMIT` of the dataset, if it was read from the Hub.
        attack_space (`str`): Resolution at which images were attacked: `"native"`, or pixels.
        attack (`str`): As it was asked for, such as `"pgd"` or `"pgd:steps=50"`; `"clean"`; `"worst case"`, over the
            attacks named in `parameters`; `"large-eps check"`, an attack that must break everything.
        eps (`float`, *optional*): Radius in [0, 1] pixels.
        steps, restarts (`int`), step_size (`float`), norm (`str`), *optional*: The attack, where it has them.
        parameters (`dict`): All that says how strong the attack is.
        left_out (`list[str]`): Parts of a suite that aren't defined for so few classes.
        mean_per_class_accuracy (`float`, *optional*): Where the benchmark is customarily reported so.
        zero_gradient (`int`, *optional*): Samples whose gradient was exactly zero, or not finite, at some step.
        broken_by (`dict[str, int]`): Of a suite, how many samples each part broke that those before hadn't.
        stochastic (`bool`, *optional*): Whether the same images gave other logits the second time; for clean rows.
        dtype (`str`): Of the model's weights; logits and attacks are float32.
        templates (`list[str]`): Prompt templates.
        image_mean, image_std (`list[float]`): Normalisation inside the model.
        seed, batch_size (`int`), max_samples (`int`, *optional*): Settings of the evaluation.
        samples (`str`): Hash of the sample ids, images, labels and class names.
        revision (`str`, *optional*): The model's commit on the Hub.
        weights (`str`): Hash of the model's weights.
        seconds (`float`): Time spent, summed over processes.
        hpt_version (`str`): Version that measured it.
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
    attack: str = CLEAN
    eps: float | None = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int | None = None
    norm: str | None = None
    parameters: dict = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    mean_per_class_accuracy: float | None = None
    zero_gradient: int | None = None
    broken_by: dict[str, int] = field(default_factory=dict)
    stochastic: bool | None = None
    dtype: str = "float32"
    templates: list[str] = field(default_factory=list)
    image_mean: list[float] = field(default_factory=list)
    image_std: list[float] = field(default_factory=list)
    seed: int | None = None
    batch_size: int | None = None
    max_samples: int | None = None
    samples: str | None = None
    source: str | None = None
    revision: str | None = None
    weights: str | None = None
    seconds: float | None = None
    hpt_version: str | None = None

    @property
    def sample_set(self) -> tuple:
        """What rows share whose attacks had the same samples, at the same resolution."""
        return self.benchmark, self.split, self.attack_space, self.samples or self.n

    def settings(self) -> dict:
        """All that the number depends on."""
        return {name: value for name, value in asdict(self).items() if name not in MEASURED}

    def subject(self) -> dict:
        """Of the settings, those of model, samples and evaluation, without the attack's."""
        return {name: value for name, value in self.settings().items() if name not in OF_THE_ATTACK}


def hash_benchmark(benchmark: Benchmark) -> str:
    """16 hexadecimal digits that stand for the ids, images, labels and class names of a benchmark's samples."""
    return digest([benchmark.ids().tolist(), hash_samples(benchmark.dataset), benchmark.class_names])


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of the share `correct / total` (Wilson, 1927, JASA 22:209-212); 95 % for the default `z`."""
    share = correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding aside, share is inside
