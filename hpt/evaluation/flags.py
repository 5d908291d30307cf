"""What makes an accuracy doubtful, found in an evaluation's rows.

Most flags don't say that a model isn't robust; they say why the number may be wrong, and what to do about it (arXiv
1802.00420, 1902.06705). Those in [`GUESSING`] say that the model only guesses, so that no number means anything.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from hpt.attacks import FGSM, PGD, Attack, Square
from hpt.evaluation.rows import CASCADE, CLEAN, LARGE_EPS, WORST_CASE, Row
from hpt.radius import Radius


PGD_GAP = 0.02  # how far PGD may lie above the worst case
ZERO_GRADIENTS = 0.01  # share of the samples; images of a class whose name is given twice have one on the margin
ALMOST_ZERO = 0.05  # what may be left when images are free to become grey
SQUARE_ALONE = 0.01  # share of the samples that Square may break after gradients failed
FEWEST_SAMPLES = 1000
FEWEST_OTHERS = 0.01  # share of other predictions, of the images that aren't of the most frequent class
COLLAPSED, AT_CHANCE = GUESSING = ("collapsed", "at-chance")
UNSEEN = "attack-did-not-see-defence"


@dataclass(frozen=True)
class Flag:
    """A reason for doubt.

    Args:
        name (`str`): `"pgd-too-weak"`, `"large-eps-survivors"`, `"square-beats-gradients"`, `"zero-gradients"`,
            `"stochastic-model"`, `"attack-did-not-see-defence"`, `"collapsed"`, `"at-chance"` or `"few-samples"`.
        model, benchmark (`str`): What it is about.
        eps (`float`), norm (`str`), *optional*: The radius that it is about.
        message (`str`): What was seen and what to do.
        masking (`bool`): Whether it suggests that gradients are masked, so that robust accuracy is overstated.
    """

    name: str
    model: str
    benchmark: str
    eps: float | None
    norm: str | None
    message: str
    masking: bool

    @property
    def radius(self) -> Radius | None:
        return None if self.eps is None else Radius(self.eps, self.norm)


def find_flags(rows: list[Row]) -> list[Flag]:
    """All flags that rows raise, by model, samples and eps; rows on different samples aren't compared."""
    flags = []
    for every in _group(rows, lambda row: (row.model, row.sample_set)).values():
        own = [row for row in every if row.against in (None, row.model) and not row.named_attack.scored_on_proxy]
        for check in (_guessing, _few_samples, _stochastic, _large_eps, _zero_gradients):
            flags += check(own)
        flags += _unseen(every)
        at_radius = _group(own, lambda row: row.radius)
        for radius in dict.fromkeys(row.radius for row in own if row.attack not in (CLEAN, LARGE_EPS)):
            flags += _pgd_too_weak(at_radius[radius]) + _square_beats_gradients(at_radius[radius])
    return flags


def _group(rows: list[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _flag(name: str, row: Row, message: str, masking: bool) -> list[Flag]:
    return [Flag(name, row.model, row.benchmark, row.eps, row.norm, message, masking)]


def _under(kind: type[Attack], rows: list[Row]) -> list[Row]:
    """Rows of an attack, whatever its settings."""
    return [row for row in rows if row.named_attack.name == kind.name]


def _further(above: Row, below: Row, share: float) -> bool:
    """Whether accuracies differ by more than a share of the samples, counted in samples."""
    return round(above.accuracy * above.n) - round(below.accuracy * below.n) > share * below.n


def _guessing(rows: list[Row]) -> list[Flag]:
    row = next((row for row in rows if row.attack == CLEAN and row.chance is not None), None)
    if row is None:
        return []
    if 1 - row.most_predicted < FEWEST_OTHERS * (1 - row.chance):
        same = round(row.most_predicted * row.n)
        message = f"{same} of {row.n} images get the same class: what such a model withstands says nothing."
        return _flag(COLLAPSED, row, message, masking=False)
    if row.low > row.chance:
        return []
    message = (
        f"{100 * row.accuracy:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}] without an attack isn't above the "
        f"{100 * row.chance:.1f} % of naming the most frequent class each time."
    )
    return _flag(AT_CHANCE, row, message, masking=False)


def _few_samples(rows: list[Row]) -> list[Flag]:
    """Where samples were taken: of a whole split, which has no more, the intervals say enough."""
    row = next((row for row in rows if row.attack == CLEAN), None)
    if row is None or row.n != row.max_samples or row.n >= FEWEST_SAMPLES:
        return []
    half = 50 * (row.high - row.low)
    message = f"{row.n} samples were taken: +-{half:.1f} points even without an attack."
    return _flag("few-samples", row, message, masking=False)


def _stochastic(rows: list[Row]) -> list[Flag]:
    row = next((row for row in rows if row.stochastic), None)
    if row is not None:
        message = (
            "The same images gave other logits the second time: average gradients over its randomness (EOT), which a "
            "classifier allows that has `randomised = True` and draws from `seeds`."
        )
        return _flag("stochastic-model", row, message, masking=True)
    climbed = [row for row in rows if row.evaluations is not None and row.named_attack.uses_gradients]
    if not climbed or any(_averages(row.parameters) for row in climbed):
        return []
    message = "It is randomised, and no attack averages its gradient over draws (EOT): attack by apgd:eot=20 or more."
    return _flag("stochastic-model", replace(climbed[0], eps=None), message, masking=True)


def _averages(parameters: dict) -> bool:
    """Whether an attack, or a part of a suite, averages gradients over draws of a randomised classifier."""
    parts = [part for part in parameters.values() if isinstance(part, dict)]
    return parameters.get("eot", 1) > 1 or any(map(_averages, parts))


def _unseen(rows: list[Row]) -> list[Flag]:
    """Where images were made on another function than the one scored, as those of transfer attacks are."""
    made_on_others = [row for row in rows if row.made_on_other and row.attack != WORST_CASE]
    if not made_on_others:
        return []
    model = made_on_others[0].model
    attacks = dict.fromkeys(f"{row.whole_label} at {row.radius}" for row in made_on_others)
    message = (
        f"{', '.join(attacks)}: the attack has seen another function than the one scored, so this doesn't say what "
        f"{model} withstands of an attacker who knows it."
    )
    return [Flag(UNSEEN, model, made_on_others[0].benchmark, None, None, message, masking=False)]


def _large_eps(rows: list[Row]) -> list[Flag]:
    row = next((row for row in rows if row.attack == LARGE_EPS and row.accuracy > ALMOST_ZERO), None)
    if row is None:
        return []
    message = (
        f"{100 * row.accuracy:.1f} % survive APGD at {row.radius}, where every image may become grey: the "
        "attack doesn't work on this model."
    )
    return _flag("large-eps-survivors", row, message, masking=True)


def _zero_gradients(rows: list[Row]) -> list[Flag]:
    row = max((row for row in rows if row.zero_gradient), key=lambda row: row.zero_gradient / row.n, default=None)
    if row is None or row.zero_gradient <= ZERO_GRADIENTS * row.n:
        return []
    message = (
        f"{row.zero_gradient} of {row.n} samples had a gradient of exactly zero under {row.attack}: trust Square and "
        "margin attacks more than this one."
    )
    return _flag("zero-gradients", row, message, masking=True)


def _pgd_too_weak(rows: list[Row]) -> list[Flag]:
    pgd = min(_under(PGD, rows), key=lambda row: row.accuracy, default=None)
    worst = next((row for row in reversed(rows) if row.is_worst_case), None)
    if pgd is None or worst is None or not _further(pgd, worst, PGD_GAP):
        return []
    message = (
        f"PGD-{pgd.steps} leaves {100 * pgd.accuracy:.1f} %, the worst case {100 * worst.accuracy:.1f} %: report the "
        "worst case."
    )
    return _flag("pgd-too-weak", worst, message, masking=True)


def _square_beats_gradients(rows: list[Row]) -> list[Flag]:
    for row in rows:  # of a suite, Square is handed what the gradient attacks left; of a cascade, maybe everything
        alone = 0 if row.attack == CASCADE else row.broken_by.get(Square.name, 0)
        if alone > SQUARE_ALONE * row.n:
            message = f"Square breaks {alone} of {row.n} samples that gradients didn't: they are masked."
            return _flag("square-beats-gradients", row, message, masking=True)
    square = next(iter(_under(Square, rows)), None)
    gradients = [row for row in rows if row.named_attack.uses_gradients and row.named_attack.name != FGSM.name]
    best = min(gradients, key=lambda row: row.accuracy, default=None)
    if square is None or best is None or not _further(best, square, SQUARE_ALONE):
        return []
    message = (
        f"Square, without gradients, leaves {100 * square.accuracy:.1f} %, {best.attack} {100 * best.accuracy:.1f} %: "
        "gradients are masked."
    )
    return _flag("square-beats-gradients", square, message, masking=True)
