"""What all attacks share: the contract, its checks, reproducible noise, norms, and leaving the model as it was."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hpt.attacks.batch import Batch, check_values, make_batch
from hpt.attacks.queries import Seeds, float_logits, judge
from hpt.classifiers import Classifier, RandomisedClassifier, draw_seeds, is_randomised
from hpt.errors import InputError
from hpt.radius import Radius


ABBREVIATIONS = ("pgd", "cw")  # names that tables write in capitals


class AttackResult(NamedTuple):
    """What an attack found.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`):
            Adversarial images in [0, 1], within eps of the originals.
        zero_gradient (`torch.Tensor` of shape `(batch,)`, bool):
            Whether the gradient of an image was exactly zero, or not finite, at some step: a sign of gradient masking.
        broken_by (`torch.Tensor` of shape `(batch,)`, int64, *optional*):
            Of attacks made of several attempts, the number of the one after which the image was misclassified, or -1,
            as always of a randomised classifier.
    """

    images: torch.Tensor
    zero_gradient: torch.Tensor
    broken_by: torch.Tensor | None = None


def check_count(number: int, what: str) -> None:
    """Refuse fewer than one of something."""
    if number < 1:
        raise InputError(f"The attack has {number} {what}, but needs at least 1.")


class Attack(ABC):
    """Base of all attacks. They change nothing but the image: no `.grad`, no mode, no BatchNorm statistics.

    A further attack is a class with a name, and a line in [`ATTACKS`].

    Args:
        eps (`float` or `str`): Radius of the ball around each image, in [0, 1] pixels: `8/255` or `"8/255"`.
        norm (`str`, *optional*, defaults to `"linf"`): Norm of the ball, `"linf"` or, where the attack has it, `"l2"`.
        seed (`int`, *optional*, defaults to `0`): With a sample's id, fixes that sample's noise.

    Attributes:
        name (`str`): What texts call it, such as `"pgd"`.
        norms (`tuple[str]`): Norms that the attack is defined for.
        min_classes (`int`): Fewest classes that it is defined for.
        uses_gradients (`bool`): Whether it follows gradients of the model that is scored.
        needs_proxy (`bool`): Whether it is made with a second model, given as `proxy`.
        scored_on_proxy (`bool`): Whether it is made on the model under evaluation and scored on its proxy.
        leaves_early (`bool`): Whether samples leave as soon as they are broken, so that batches are better pooled.
        eot (`int`): Draws of a randomised classifier at each step; see `hpt.attacks.queries`.

    Raises:
        InputError: if eps isn't above 0 or, in l_inf, not below 1; if the attack doesn't have the norm.
    """

    name: str
    norms: tuple[str, ...] = ("linf",)
    min_classes = 2
    uses_gradients = True
    needs_proxy = False
    scored_on_proxy = False
    leaves_early = False
    eot = 1
    reported: tuple[str, ...] = ()  # attributes that say how strong it is

    def __init__(self, *, eps: float, norm: str = "linf", seed: int = 0):
        self.radius, self.seed = Radius(eps, norm), seed
        if norm not in self.norms:
            raise InputError(f"{type(self).__name__} isn't defined in {norm}; known: {', '.join(self.norms)}.")

    def __call__(self, classifier: Classifier, images, labels, sample_ids=None, eps=None) -> torch.Tensor:
        """Adversarial images; see [`perturb`](Attack.perturb)."""
        return self.perturb(classifier, images, labels, sample_ids, eps).images

    def perturb(
        self,
        classifier: Classifier,
        images,
        labels,
        sample_ids=None,
        eps=None,
        batch_size: int | None = None,
        *,
        checked: bool = False,
    ) -> AttackResult:
        """Attack each image within its eps-ball. Logits are taken to float32, whatever the classifier computes in.

        It may be called under `torch.no_grad` and `torch.inference_mode`, and with no images.

        Args:
            classifier: Any callable from images `(batch, 3, height, width)` in [0, 1] to logits `(batch, classes)`;
                one that is randomised gets seeds too, from (seed, sample id, step, draw): see [`draw_seeds`].
            images (`torch.Tensor` of shape `(batch, 3, height, width)`): Clean images in [0, 1], float32 or float64.
            labels (`torch.Tensor` of shape `(batch,)`): True classes, integers from 0.
            sample_ids (`torch.Tensor` of shape `(batch,)`, *optional*): Integer ids of the samples. With them, noise
                depends on (seed, id) alone, so that no batching or process count changes it; without, it comes
                from torch's global generator.
            eps (`torch.Tensor` of shape `(batch,)`, *optional*): A radius for each image, instead of the attack's own;
                steps scale with it.
            batch_size (`int`, *optional*): Most images that go through a model at once, which bounds memory: of more
                images those that are left share full batches. By default all of them. It changes no image, apart from
                the last digits in which models compute batches of other sizes.
            checked (`bool`, *optional*, defaults to `False`): Whether pixels are known to be in [0, 1] and labels to
                be classes, as in training. Then nobody looks, for whoever looks at values waits for their device.

        Raises:
            InputError: if there are fewer classes than the attack is defined for; for images out of [0, 1] or in
                another dtype, what isn't one for each image, labels that aren't classes, and what isn't logits; for
                more than one draw of a classifier that isn't randomised.
        """
        self.check_draws(classifier)
        # The batch is made inside, since what is made under inference mode can't enter autograd
        with torch.inference_mode(False), torch.enable_grad(), batch_norm_untouched(classifier):
            batch = make_batch(images, labels, sample_ids, eps, self.radius)
            if len(batch.images) == 0:
                return AttackResult(batch.images, batch.labels.bool(), batch.labels)
            if any(map(is_randomised, [classifier, *self.followed(classifier)])):
                batch = batch.with_draws()
            highest_label = 0 if checked else check_values(batch)
            return self._run(float_logits(classifier, highest_label, batch_size), batch)

    @abstractmethod
    def _run(self, classifier, batch: Batch) -> AttackResult:
        """The attack itself, with gradients enabled; returns detached images.

        Args:
            classifier: From images and their seeds in a draw to logits; see [`float_logits`] and [`seeds`].
            batch ([`Batch`]): The samples.
        """

    def followed(self, classifier) -> list[Classifier | RandomisedClassifier]:
        """The models whose losses it climbs when it attacks a classifier."""
        return [classifier]

    def lacks_draws(self, classifier: Classifier | RandomisedClassifier) -> bool:
        """Whether it averages over several draws of what draws nothing, or doesn't say so."""
        return self.eot > 1 and not any(map(is_randomised, self.followed(classifier)))

    def check_draws(self, classifier: Classifier | RandomisedClassifier) -> None:
        """Refuse an attack that [`lacks_draws`]; [`InputError`]."""
        if self.lacks_draws(classifier):
            raise InputError(
                f"{self.label} averages gradients over {self.eot} draws of a randomised classifier, but what it "
                "attacks doesn't say `randomised = True`, so that all draws would be the same: leave eot out, or let "
                "a classifier that draws random numbers say so and take them from `seeds`, as hpt.classifiers has it."
            )

    def seeds(self, batch: Batch, step: int) -> Seeds:
        """What each draw of a step hands a randomised classifier.

        Args:
            batch ([`Batch`]): The samples that it is shown.
            step (`int`): Number of the step, from 0, or, of a judgement in between, from -1 downwards.
        """
        if batch.draw_ids is None:
            return [None]
        return [draw_seeds(self.seed, batch.draw_ids, step, draw) for draw in range(self.eot)]

    def most_passes(self, num_classes: int) -> int:
        """Most passes through models for an image, forward or backward: fewer if it breaks early; 0 if not known."""
        return 0

    def left_out(self, num_classes: int) -> list[str]:
        """Names of the parts that aren't defined for so few classes, and don't run."""
        return []

    @property
    def eps(self) -> float:
        return float(self.radius)

    @property
    def norm(self) -> str:
        return self.radius.norm

    @property
    def label(self) -> str:
        """What tables call it: `PGD-10`, `CW-50 x 5`, `apgd-ce-100 (eot=20)`, `square`."""
        others = [f"eot={self.eot}"] if self.eot > 1 else []
        return make_label(self.name, self.parameters.get("steps"), self.parameters.get("restarts"), others)

    @property
    def parameters(self) -> dict:
        """What says how strong the attack is, beside eps, norm and seed, as JSON has it."""
        draws = {"eot": self.eot} if self.eot > 1 else {}  # rows of earlier versions don't say it
        return {name: getattr(self, name) for name in self.reported} | draws


def make_label(name: str, steps: int | None, restarts: int | None, others: Sequence[str] = ()) -> str:
    """What tables call an attack: `PGD-10`, `CW-50 x 5`, `square (queries=100)`.

    Args:
        name (`str`): Key in [`ATTACKS`], or of another version's.
        steps, restarts (`int`, *optional*): Where it has them.
        others (`Sequence[str]`, *optional*): Further settings that were asked for, such as `"queries=100"`.
    """
    label = f"{name.upper() if name in ABBREVIATIONS else name}-{steps}" if steps else name
    label += f" x {restarts}" if restarts and restarts > 1 else ""
    return f"{label} ({', '.join(others)})" if others else label


def attack_until_broken(
    classifier,
    batch: Batch,
    attempts: Sequence[Callable[[Batch, torch.Tensor], AttackResult]],
    seeds: Callable[[Batch, int], Seeds],
) -> AttackResult:
    """Attempts in turn, each on the samples that are still classified right: the worst case per sample.

    Args:
        classifier: What decides whether a sample is still right; of a randomised one, no sample is ever broken.
        batch ([`Batch`]): All samples; those misclassified from the start stay as they are.
        attempts: Callables from the samples left, and their places in `batch`, to an [`AttackResult`].
        seeds: [`Attack.seeds`] of the attack that they are attempts of; its judgements are steps from -1 downwards.

    Returns:
        [`AttackResult`]: with the image of the largest margin where no attempt succeeded.
    """
    images = batch.images.clone()
    zero_gradient = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    broken_by = torch.full((len(images),), -1, device=images.device)
    worst, right = judge(classifier, batch.images, batch.labels, seeds(batch, -1))
    left = right.nonzero().squeeze(1)
    for number, attempt in enumerate(attempts):
        if len(left) == 0:
            break
        samples = batch.take(left)
        result = attempt(samples, left)
        zero_gradient[left] |= result.zero_gradient
        reached, right = judge(classifier, result.images, samples.labels, seeds(samples, -2 - number))
        worse = (reached > worst[left]) | ~right
        images[left[worse]], worst[left[worse]] = result.images[worse], reached[worse]
        broken_by[left[~right]] = number
        left = left[right]
    return AttackResult(images, zero_gradient, broken_by)


def is_zero(gradient: torch.Tensor) -> torch.Tensor:
    """Of which images, `(batch,)`, the gradient says nothing: it is exactly zero, or not finite."""
    largest = torch.linalg.vector_norm(gradient.flatten(1), torch.inf, dim=1)  # in one pass; NaN if any value is
    return (largest == 0) | ~largest.isfinite()


# Norms


def project(points: torch.Tensor, batch: Batch, norm: str) -> torch.Tensor:
    """The nearest points of the eps-balls around the images, then of [0, 1]; the latter leaves no ball."""
    return projection(batch, norm)(points)


def projection(batch: Batch, norm: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """[`project`] for many points of the same balls, which are taken together with [0, 1] once."""
    if norm == "linf":
        lowest, highest = (batch.images - batch.eps).clamp(0, 1), (batch.images + batch.eps).clamp(0, 1)
        return lambda points: points.clamp(lowest, highest)

    def into_ball(points: torch.Tensor) -> torch.Tensor:
        delta = points - batch.images
        return (batch.images + delta * (batch.eps / l2_norm(delta)).clamp(max=1)).clamp(0, 1)

    return into_ball


def steepest(gradient: torch.Tensor, norm: str) -> torch.Tensor:
    """The direction of unit length, in that norm, along which the loss rises fastest."""
    return gradient.sign() if norm == "linf" else gradient / l2_norm(gradient)


def l2_norm(values: torch.Tensor) -> torch.Tensor:
    """Euclidean length of each sample, kept broadcastable, `(batch, 1, 1, 1)`; never exactly zero."""
    return values.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (values.dim() - 1))


# Noise


def noise_generators(seed: int, sample_ids: torch.Tensor, restart: int, device: torch.device):
    """One torch generator after the other, set by (seed, id, restart) alone."""
    generator = torch.Generator(device)
    for sample_id in sample_ids.tolist():
        # Torch's CPU generator keeps the low 32 bits of a seed: prime strides separate neighbouring seeds there.
        yield generator.manual_seed(seed * 1_000_003 + restart * 433_494_437 + sample_id)


def uniform_noise(shaped_like: torch.Tensor, seed: int, sample_ids: torch.Tensor | None, restart: int = 0):
    """Noise from U[-1, 1) in the shape given, `(batch, ...)`; the same for the same (seed, id), whatever the batch."""
    noise = torch.empty_like(shaped_like)
    if sample_ids is None:
        return noise.uniform_(-1, 1)
    generators = noise_generators(seed, sample_ids, restart, noise.device)
    for row, generator in zip(noise, generators, strict=True):
        row.uniform_(-1, 1, generator=generator)
    return noise


def random_start(batch: Batch, norm: str, seed: int, restart: int = 0) -> torch.Tensor:
    """A uniform point of each image's eps-ball, clipped to [0, 1]."""
    if norm == "linf":
        noise = uniform_noise(batch.images, seed, batch.sample_ids, restart)
        return project(batch.images + batch.eps * noise, batch, norm)
    noise = torch.empty_like(batch.images)
    radius = torch.empty_like(batch.eps)
    if batch.sample_ids is None:
        noise.normal_()
        radius.uniform_()
    else:
        generators = noise_generators(seed, batch.sample_ids, restart, noise.device)
        for row, one_radius, generator in zip(noise, radius, generators, strict=True):
            row.normal_(generator=generator)
            one_radius.uniform_(generator=generator)
    radius = radius ** (1 / batch.images[0].numel())  # volume grows with that power of the radius
    return project(batch.images + batch.eps * radius * noise / l2_norm(noise), batch, norm)


@contextmanager
def batch_norm_untouched(classifier: Classifier):
    """Keep normalisation layers in training mode from updating their running statistics, without changing mode."""
    modules = classifier.modules() if isinstance(classifier, nn.Module) else ()
    tracking = [m for m in modules if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
