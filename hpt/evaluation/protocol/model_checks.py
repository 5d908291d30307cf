"""Checks of a classifier by itself: does it repeat itself, alone as in a batch, on the pixels and dtype it wants?"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from hpt.attacks import PGD
from hpt.classifiers import Classifier, is_randomised
from hpt.evaluation.protocol.findings import (
    CANT_TELL,
    DECIDED,
    DOUBTFUL,
    FINE,
    WRONG,
    Finding,
    better_by_chance,
    cant_tell,
    fine,
    percent,
    sees_something,
    skill,
    wrong,
)
from hpt.evaluation.protocol.probe import Probe
from hpt.radius import Radius


# How far logits move, as a share of their spread over the classes: at most by rounding, and at least by more than that
IN_FLOAT32 = (0.01, 0.05)  # also where TensorFloat-32 helps
IN_16_BITS = (0.1, 0.5)
LEAST_SPREAD = 0.125  # in 16 bits, as a share of the logits' own size, which is rounded: 16 steps of bfloat16
ENOUGH = 0.05  # share of the images on which something has to be seen, to be more than an accident of a few
ALONE = 16  # images that are shown by themselves
SMALLER, NOISE = 6, 0.3  # of images made harder: part of their size, and deviation of noise in [0, 1] pixels
VERSIONS = 3  # of an image: as it is, blurred, with noise
GAIN, OF_GUESSING = 0.1, 0.3  # of skill by other pixels, from which on a model, and one that guesses, wants them
LOW_CONTRAST = 0.15  # mean deviation of an image's pixels, below which stretching them may help any model
STEPS = 10  # of PGD

# Mean and standard deviation per channel with which published models normalise
STATISTICS = {
    "CLIP's": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "ImageNet's": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "SigLIP's (0.5)": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}


def enough(number: int, of: int) -> bool:
    """Whether so many of so many images are more than an accident."""
    return number >= max(3, ENOUGH * of)


def moved(probe: Probe, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """By how much each image's logits differ at most, `(images,)`, as a share of their spread over the classes."""
    least = LEAST_SPREAD * first.abs().mean().item() if probe.low_precision() else 0.0
    spread = first.std(1).mean().clamp(min=max(least, 1e-30))
    return ((first - second).abs().amax(1) / spread).numpy()


def _verdict(probe: Probe, change: np.ndarray) -> str:
    """What to say of logits that have [`moved`] so far: rounding, more than that on enough images, or can't tell."""
    rounding, real = IN_16_BITS if probe.low_precision() else IN_FLOAT32
    if change.max() <= rounding:
        return FINE
    return WRONG if enough(int((change > real).sum()), len(change)) else CANT_TELL


def check_determinism(probe: Probe) -> Finding:
    """Whether a second call, after other images were shown, gives the same logits."""
    check, number = "determinism", min(probe.batch_size, len(probe))
    before, again = probe.logits[:number], probe.see(probe.images[:number])
    change = moved(probe, before, again)
    verdict, other = _verdict(probe, change), int((again.argmax(1) != before.argmax(1)).sum())
    if torch.equal(again, before):
        return fine(check, f"a second call on {number} images gives the same logits, bit for bit.")
    seen = f"a second call on the same {number} images moves logits by up to {percent(change.max())} of their spread"
    if verdict == FINE:
        return fine(check, f"{seen}, as rounding does.")
    if verdict == CANT_TELL:
        return cant_tell(check, f"{seen}: little, and more than rounding.")
    meaning = (
        f"{seen}, and changes {other} predictions: it is in training mode (dropout), keeps something of earlier "
        "calls, or draws random numbers. One that is meant to draw them takes its draws from seeds (randomised = "
        "True), and is attacked by gradients averaged over them (EOT)."
    )
    return wrong(check, meaning, "arXiv 1802.00420, on randomised defences; arXiv 1707.07397, for EOT")


def check_batch_size(probe: Probe) -> Finding:
    """Whether an image's logits depend on the images beside it."""
    check, alone = "batch size", min(ALONE, len(probe))
    published = "github.com/yaodongyu/TRADES, issue 3"
    if check_determinism(probe).verdict == WRONG:
        return cant_tell(check, "two calls on the same batch differ already.")
    try:
        by_itself = probe.see(probe.images[:alone], batch_size=1)
    except (RuntimeError, ValueError) as error:  # as BatchNorm in training mode raises
        return wrong(check, f"it fails on a batch of one image: {error}", published)
    smaller = max(2, probe.batch_size // 3)
    in_smaller = probe.see(probe.images, batch_size=smaller)
    change = np.concatenate([moved(probe, probe.logits[:alone], by_itself), moved(probe, probe.logits, in_smaller)])
    verdict = _verdict(probe, change)
    seen = (
        f"logits of {alone} images alone, and of {len(probe)} in batches of {smaller}, differ from those in batches "
        f"of {probe.batch_size} by up to {percent(change.max())} of their spread"
    )
    if verdict == FINE:
        return fine(check, f"{seen}, as rounding makes them.")
    if verdict == CANT_TELL:
        meaning = f"{seen}: little, and more than rounding makes them, or only a few."
        return cant_tell(check, meaning, "github.com/openai/CLIP, issue 198, on rounding")
    singly = percent(by_itself.argmax(1).numpy() == probe.labels[:alone].cpu().numpy())
    meaning = (
        f"{seen}; of the {alone}, {singly} are right alone, {percent(probe.right[:alone])} in the batch. It is in "
        "training mode (BatchNorm), or looks at the whole batch."
    )
    return wrong(check, meaning, published)


class Pixels(NamedTuple):
    """Pixels that a classifier may want instead of those in [0, 1].

    Args:
        name (`str`): What is done to the images.
        make (`Callable`): Does it.
        meaning (`str`): What is wrong with a classifier that does better on them.
        published (`str`, *optional*): As of [`Finding`].
    """

    name: str
    make: Callable[[torch.Tensor], torch.Tensor]
    meaning: str
    published: str | None = None


def other_pixels() -> list[Pixels]:
    """All [`Pixels`] that are tried."""
    pixels = [
        Pixels(
            "multiplied by 255",
            lambda x: 255 * x,
            "it wants pixels of 0 to 255: multiply inside, after the attack",
            "github.com/MadryLab/mnist_challenge, issue 13, on the two scales",
        ),
        Pixels("with red and blue exchanged", lambda x: x.flip(1), "it wants blue first: exchange them inside"),
    ]
    for whose, statistics in STATISTICS.items():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
        pixels.append(
            Pixels(
                f"with {whose} normalisation undone beforehand",
                lambda x, mean=mean, std=std: x * std.to(x) + mean.to(x),
                "it normalises twice: leave out one of the two",
                "github.com/MadryLab/robustness, issue 14 (95.25 % becomes 68.51 %)",
            )
        )
        pixels.append(
            Pixels(
                f"with {whose} normalisation",
                lambda x, mean=mean, std=std: (x - mean.to(x)) / std.to(x),
                "its network wants normalised pixels: normalise inside, after the attack",
                "github.com/k1rezaei/Text-to-concept, issue 2",
            )
        )
    return pixels


def check_normalisation(probe: Probe) -> Finding:
    """Whether pixels in [0, 1] are what it wants: by verdicts on the same images with other pixels.

    Images are shown as they are, blurred, and with noise, since on easy ones many pixels do. Something is wrong only
    if other pixels are right far more often than chance and than guessing make them. Where contrast helps any model,
    on images that have little and in noise of the model's own, other pixels decide nothing.
    """
    check, labels = "normalisation", probe.labels.cpu().numpy()
    images = [probe.images, *_made_harder(probe)]
    own_right, own_skill = _on_all(probe, images, labels)
    found = []
    for pixels in other_pixels():
        right, skilled = _on_all(probe, [pixels.make(shown) for shown in images], labels)
        chance, gain = better_by_chance(right, own_right), skilled - max(own_skill, 0)
        found.append((chance, gain, percent(right / len(images)), pixels))
    chance, gain, accuracy, pixels = min(found, key=lambda one: (one[1] <= 0, one[0]))
    seen = (
        f"{percent(probe.right)} of {len(probe)} images are right in [0, 1], and with blurred and noisy ones "
        f"{percent(own_right / len(images))}"
    )
    sees = sees_something(probe.predicted, labels)
    if chance < DECIDED and gain > (GAIN if sees else OF_GUESSING):
        meaning = f"{seen}; {pixels.name}, {accuracy} (p = {chance:.0e}): {pixels.meaning}"
        if doubt := _contrast_helps(probe):
            return cant_tell(check, f"{meaning}, unless contrast is what helps: {doubt}.", pixels.published)
        return wrong(check, f"{meaning}.", pixels.published)
    if chance < DOUBTFUL and gain > 0:
        meaning = f"{seen}; {pixels.name}, {accuracy}: {pixels.meaning}, or that is how it happens to be on these."
        return cant_tell(check, f"{meaning} Check more images (max_samples).", pixels.published)
    if not sees:
        return cant_tell(check, f"{seen}: no more than by guessing, and no other pixels do better.")
    _, _, accuracy, pixels = max(found, key=lambda one: one[1])
    return fine(check, f"{seen}; none of {len(found)} others are what it wants; the best, {pixels.name}, {accuracy}.")


def _contrast_helps(probe: Probe) -> str | None:
    """Why a sound model may do better on pixels of more contrast, if it may."""
    deviation = probe.images.flatten(1).std(1).mean().item()
    if deviation < LOW_CONTRAST:
        return f"these images have little, with a deviation of {deviation:.2f} of their pixels"
    return "it draws noise, which contrast drowns" if is_randomised(probe.classifier) else None


def _made_harder(probe: Probe) -> list[torch.Tensor]:
    """The images at a sixth of their size, and with noise: neither changes their brightness or contrast."""
    images, (height, width) = probe.images, probe.images.shape[-2:]
    small = F.interpolate(images, (max(1, height // SMALLER), max(1, width // SMALLER)), mode="area")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(probe.seed)).to(images)
    return [F.interpolate(small, (height, width), mode="bilinear"), (images + NOISE * noise).clamp(0, 1)]


def _on_all(probe: Probe, images: list[torch.Tensor], labels: np.ndarray) -> tuple[np.ndarray, float]:
    """How many of an image's versions are right, `(images,)`, and the mean [`skill`] on them."""
    predicted = [probe.see(shown).argmax(1).numpy() for shown in images]
    right = np.sum([classes == labels for classes in predicted], axis=0)
    return right, float(np.mean([skill(classes, labels) for classes in predicted]))


def check_precision(probe: Probe, radius: Radius) -> Finding:
    """Whether it computes in less than float32, and what that changes in accuracy and for an attack."""
    check = "precision"
    low = probe.low_precision()
    if low is None:
        return fine(check, "all is computed in float32 or wider.")
    exact_classifier = _in_float32(probe.classifier)
    exact = None if exact_classifier is None else probe.seen_by(exact_classifier)
    if exact is None or exact.low_precision():
        return cant_tell(
            check, f"it computes in {low}, and can't be put into float32 from outside: compare the two by hand."
        )
    published = "github.com/Sxing2/CLIP-Test-time-Counterattacks, whose attack runs under autocast"
    if better_by_chance(exact.right, probe.right) < DECIDED:
        seen = f"{percent(probe.right)} are right in {low}, {percent(exact.right)} in float32"
        return wrong(check, f"{seen}: the model doesn't bear that dtype.")
    rows = torch.from_numpy(probe.right.nonzero()[0]).to(probe.device)
    if len(rows) == 0:
        return cant_tell(check, f"it computes in {low}, and no image is right, so that no attack can be compared.")
    attack = PGD(eps=radius, steps=STEPS, seed=probe.seed)
    own, made_exactly = (one.attack(attack, rows) for one in (probe, exact))
    left, left_exactly = (probe.judge(result.images, rows) for result in (own, made_exactly))
    zeros, zeros_exactly = (int(result.zero_gradient.sum()) for result in (own, made_exactly))
    seen = f"in {low}, {attack.label} at {radius} leaves {percent(left)} of {len(rows)} images"
    if enough(zeros - zeros_exactly, len(rows)):
        return wrong(
            check, f"{zeros} of {len(rows)} gradients are zero in {low}, {zeros_exactly} in float32.", published
        )
    if better_by_chance(left, left_exactly) < DECIDED:
        return wrong(check, f"{seen}, and made in float32 {percent(left_exactly)}: attack in float32.", published)
    same = percent(exact.predicted == probe.predicted)
    return fine(check, f"{seen}, made in float32 {percent(left_exactly)}; {same} of the predictions are the same.")


def _in_float32(classifier: Classifier) -> Classifier | None:
    """A copy of a module that computes in float32; `None` of what isn't a module."""
    return copy.deepcopy(classifier).float() if isinstance(classifier, nn.Module) else None
