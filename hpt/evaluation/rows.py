"""A measured accuracy with all that it depends on, and its confidence interval.

A row is complete when it is made: of its settings, see `hpt.evaluation.row_settings`, and what was measured.
"""

import math
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from hpt.attacks import NamedAttack
from hpt.escaping import one_line
from hpt.json_files import digest
from hpt.radius import Radius


# The version since which hpt measures as it does now: it is raised when the same settings would give another number,
# and not otherwise, so that results of earlier versions are gone on with.
MEASURED_SINCE = "0.1.0"
LOWER_CASE_SINCE = "0.3.0"  # likewise, of models whose prompts hpt puts into lower case, as those of SigLIP 2

CLEAN, WORST_CASE, LARGE_EPS = "clean", "worst case", "large-eps check"
CASCADE = "worst case (cascade)"
ALL_IMAGES = "attacks_all_images"  # among the parameters of a comparison's attack
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
    "most_predicted",
    "chance",
    "accuracies",
    "always_right",
    "seconds",
}
SAID_SINCE = {"configuration", "tokens", "other_model"}  # settings that rows of 0.1.0 to 0.3.0 and of cards lack
OF_FUNCTIONS = {
    "identified_by",
    "evaluations",
}  # settings that rows of dual encoders lack, whichever version wrote them
# What rows of earlier versions lack: the former two of 0.1.0 and 0.2.0, the latter two of 0.1.0 to 0.5.0
ADDED = {"most_predicted", "chance"} | SAID_SINCE | OF_FUNCTIONS | {"accuracies", "always_right"}

UNSAID_BY_COMPARISONS = {"revision", "templates", "image_mean", "image_std"}  # of version 0.1.0
OF_THE_ATTACK = {"attack", "attacked", "eps", "norm", "steps", "step_size", "restarts", "parameters", "left_out"}
OF_THE_ATTACK |= {"other_model"}


@dataclass(frozen=True)
class Row:
    """One measured accuracy, with all that it depends on.

    Args:
        model (`str`): Name of the model scored.
        attacked (`str`, *optional*): Name of the model that the images were made against; `None` for clean images.
        accuracy, low, high (`float`): Share of correct samples and its 95 % Wilson interval, in [0, 1]. Of an
            evaluation, a sample that is wrong without an attack is wrong under every attack; a comparison, which
            scores several models on the same images, attacks them all: see `attacks_all_images`.
            Of a randomised classifier, it is the mean over its `evaluations`: see `accuracies`.
        n (`int`): Samples.
        benchmark, split (`str`): What was classified.
        source (`str`, *optional*): `ID@COMMIT` of the dataset, if it was read from the Hub.
        attack_space (`str`): Resolution at which images were attacked: `"native"`; pixels, such as `"224"`; or what
            the model's own processor does, such as `"224-224"`, see [`ProcessorTransform`].
        attack (`str`): As it was asked for, such as `"pgd"` or `"pgd:steps=50"`; `"clean"`; `"worst case"`, over the
            attacks named in `parameters`, which have rows of their own; `"worst case (cascade)"`, over the attacks
            named there in their order, each on the samples that those before left, which have none;
            `"large-eps check"`, an attack that must break everything.
        eps (`float`, *optional*): Radius in [0, 1] pixels.
        steps, restarts (`int`), step_size (`float`), norm (`str`), *optional*: The attack, where it has them.
        parameters (`dict`): All that says how strong the attack is.
        left_out (`list[str]`): Parts of a suite that aren't defined for so few classes.
        mean_per_class_accuracy (`float`, *optional*): Where the benchmark is customarily reported so.
        zero_gradient (`int`, *optional*): Samples whose gradient was exactly zero, or not finite, at some step.
        broken_by (`dict[str, int]`): Of a suite or cascade, how many samples each part broke that those before hadn't.
        stochastic (`bool`, *optional*): Whether the same images gave other logits the second time; for clean rows.
        most_predicted (`float`, *optional*): Share of the samples in the class that is predicted most often; for
            clean rows.
        chance (`float`, *optional*): Share of the samples in their most frequent class, which is the accuracy of
            naming it for every image; for clean rows.
        accuracies (`list[float]`): Of a randomised classifier, the accuracy in each of its evaluations.
        always_right (`float`, *optional*): Of a randomised classifier, share of the samples that are right in every
            evaluation, as one asked over and over needs to be.
        dtype (`str`): Of the model's weights; logits and attacks are float32.
        templates (`list[str]`): Prompt templates.
        image_mean, image_std (`list[float]`): Normalisation inside the model; not known of other functions.
        seed, batch_size (`int`), max_samples (`int`, *optional*): Settings of the evaluation.
        samples (`str`): Hash of the sample ids, images, labels and class names.
        revision (`str`, *optional*): The model's commit on the Hub.
        weights (`str`, *optional*): Hash of the model's weights; `None` if it is a function without any.
        configuration (`str`, *optional*): Hash of how it computes with them, from [`hash_configuration`]; of other
            functions, of what [`~hpt.evaluation.identity.identify`] finds, and of the file that they came out of.
        tokens (`str`, *optional*): Hash of the token ids of the class prompts; of other functions, of what they make
            of the classes.
        identified_by (`str`, *optional*): Of a function that is no dual encoder, what stands for it beside its
            settings: `"weights"`, `"file"`, `"file and weights"`, or else only its `"name"`.
        evaluations (`int`, *optional*): Of a randomised classifier, how often each image is classified, each time
            with draws that no attack has seen.
        other_model (`str`, *optional*): Hash of configuration and tokens of the proxy that the attack uses, or of the
            model attacked if that isn't the one scored.
        seconds (`float`): Time spent, summed over processes.
        hpt_version (`str`): Version since which hpt measures as it did for this row: see [`Subject`].
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
    most_predicted: float | None = None
    chance: float | None = None
    accuracies: list[float] = field(default_factory=list)
    always_right: float | None = None
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
    configuration: str | None = None
    tokens: str | None = None
    other_model: str | None = None
    identified_by: str | None = None
    evaluations: int | None = None
    seconds: float | None = None
    hpt_version: str | None = None

    def __repr__(self) -> str:
        """`Row(mine on digits test, PGD-10 at l_inf eps 16/255: 56.9 % [51.8, 62.0], n = 360)`"""
        what = self.label if self.radius is None else f"{self.label} at {self.radius.title}"
        what += self._made_on
        measured = f"{100 * self.accuracy:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}], n = {self.n}"
        return one_line(f"Row({self.model} on {self.benchmark} {self.split}, {what}: {measured})")

    @property
    def named_attack(self) -> NamedAttack:
        """`attack`, taken apart; clean rows, worst cases and checks have names of their own, which no attack has."""
        return NamedAttack.parse(self.attack)

    @property
    def radius(self) -> Radius | None:
        """`eps` in its norm; `None` for clean rows."""
        return None if self.eps is None else Radius(self.eps, self.norm)

    @property
    def label(self) -> str:
        """What tables call what was measured: `PGD-10`, `square (queries=100)`, `transfer from my proxy`, `clean`."""
        attack = self.named_attack
        if attack.is_transfer:
            return f"made on {self.attacked}" if attack.scored_on_proxy else f"{attack.name} from {self.attacked}"
        return attack.label_with(self.steps, self.restarts)

    @property
    def whole_label(self) -> str:
        """The label, with what images were made on where that isn't the model scored: `PGD-10 made on mine`."""
        return self.label + self._made_on

    @property
    def _made_on(self) -> str:
        is_said = not self.made_on_other or self.named_attack.is_transfer  # whose label says it
        return "" if is_said else f" made on {self.attacked}"

    @property
    def is_worst_case(self) -> bool:
        """Whether it is over several attacks, which `parameters["attacks"]` names."""
        return self.attack in (WORST_CASE, CASCADE)

    @property
    def made_on_other(self) -> bool:
        """Whether its images were made on another function than the one scored, which the attack didn't see."""
        return self.attacked not in (None, self.model)

    @property
    def against(self) -> str | None:
        """Whose worst case it belongs to; transfer attacks to that of the model scored, which must withstand them."""
        return self.model if self.named_attack.is_transfer else self.attacked

    @property
    def attacks_all_images(self) -> bool:
        """Whether images that are wrong without an attack were attacked too, as a comparison does.

        It says so in `parameters`; in rows of 0.1.0 and of cards, it is the rows without the batch size that an
        evaluation has.
        """
        return self.parameters.get(ALL_IMAGES, self.attack != CLEAN and self.batch_size is None)

    @property
    def strength(self) -> dict:
        """`parameters` as rows of all versions have them: without what `attacks_all_images` says."""
        return {name: value for name, value in self.parameters.items() if name != ALL_IMAGES}

    @property
    def sample_set(self) -> tuple:
        """What rows share whose attacks had the same samples, at the same resolution."""
        return self.benchmark, self.split, self.attack_space, self.samples or self.n

    def settings(self) -> dict:
        """All that the number depends on, as far as rows of its version say it."""
        unsaid = MEASURED | (SAID_SINCE if self.configuration is None else set())
        unsaid |= {name for name in OF_FUNCTIONS if getattr(self, name) is None}
        settings = {name: value for name, value in asdict(self).items() if name not in unsaid}
        return settings | {"parameters": self.strength}

    @property
    def identity(self) -> str:
        """Digest of what two rows share of which the later is the earlier measured again.

        What earlier versions left out doesn't count: how a model computes and, in comparisons of 0.1.0, how it is
        prompted and normalised.
        """
        unsaid = SAID_SINCE | (UNSAID_BY_COMPARISONS if self.batch_size is None else set())
        return digest({name: value for name, value in self.settings().items() if name not in unsaid})

    def subject(self) -> dict:
        """Of the settings, those of model, samples and evaluation, without the attack's."""
        return {name: value for name, value in self.settings().items() if name not in OF_THE_ATTACK}


class Rows(list):
    """A list of [`Row`], which prints a line for each and can become a table of pandas."""

    def __repr__(self) -> str:
        return "\n".join(["Rows:", *map(repr, self)])

    def to_pandas(self):
        """A `pandas.DataFrame` with a line for each row and a column for each field of [`Row`]."""
        import pandas  # slow to import

        return pandas.DataFrame(list(map(asdict, self)), columns=[column.name for column in fields(Row)])


def measured_accuracy(right: float, n: int) -> dict[str, float]:
    """The share of samples that are right, and its 95 % interval, as a row has them.

    Of a randomised classifier, each sample counts by its share of evaluations that are right. Shares vary no more
    between samples than verdicts with the same mean do, so that the interval is wide enough.
    """
    low, high = wilson_interval(right, n)
    return {"accuracy": right / n, "low": low, "high": high}


def predicted_shares(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How much of the samples the most frequent predicted class takes, and the most frequent true one."""
    shares = {"most_predicted": predictions.ravel(), "chance": labels}
    return {name: np.bincount(classes).max().item() / len(classes) for name, classes in shares.items()}


def wilson_interval(correct: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of the share `correct / total` (Wilson, 1927, JASA 22:209-212); 95 % for the default `z`."""
    share = correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))  # rounding aside, share is inside
