"""Checks of what attacks can do to a classifier: does a vanilla one fall, and do gradients say what they should?"""

import numpy as np
import torch

from hpt.attacks import CW, PGD, AttackResult, Square
from hpt.errors import InputError, message_of
from hpt.evaluation.protocol.findings import (
    DECIDED,
    Finding,
    better_by_chance,
    cant_tell,
    fine,
    more_by_chance,
    percent,
    sees_something,
    wrong,
)
from hpt.evaluation.protocol.model_checks import STEPS, enough
from hpt.evaluation.protocol.probe import Probe
from hpt.radius import Radius


NEAR_ZERO = 0.05  # what may be left of an undefended model
QUERIES = 200  # of Square, on the images that gradients leave
BY_LUCK = 0.02  # share of the images that Square may break where gradients failed by bad luck alone
GAP = 0.1  # how far one attack has to lie above another to be called useless
LARGE = 0.5  # eps at which each image may become grey
MASKED = "arXiv 1802.00420 and arXiv 1902.06705, on gradient masking"

MOST_PASSES = 2 * STEPS * 3 + QUERIES  # for each image: PGD, CW and CW at a large eps, then Square


def check_robustness(probe: Probe, radius: Radius) -> list[Finding]:
    """Two findings: whether it falls as an undefended model does, and whether its gradients are masked."""
    sanity, masking = "vanilla sanity", "gradient masking"
    if not sees_something(probe.predicted, probe.labels.cpu().numpy()):
        reason = (
            f"{percent(probe.right)} of {len(probe)} images are right without an attack, no more than by guessing."
        )
        return [cant_tell(sanity, reason), cant_tell(masking, reason)]
    rows = torch.from_numpy(probe.right.nonzero()[0]).to(probe.device)
    pgd, cw = (kind(eps=radius, steps=STEPS, seed=probe.seed) for kind in (PGD, CW))
    try:
        by_pgd = probe.attack(pgd, rows)
    except InputError as error:
        reason = f"no attack can follow its gradients: {message_of(error)}"
        say = wrong if error.__cause__ is None else cant_tell  # the classifier's own error may have any reason
        return [cant_tell(sanity, reason), say(masking, reason, MASKED)]
    by_cw = probe.attack(cw, rows)
    return [
        _say_sanity(sanity, probe, pgd, probe.judge(by_pgd.images, rows)),
        _say_masking(masking, probe, rows, radius, by_pgd, by_cw),
    ]


def _say_sanity(check: str, probe: Probe, attack: PGD, left: np.ndarray) -> Finding:
    seen = f"{attack.label} at {attack.radius} leaves {percent(left.sum() / len(probe))} of {len(probe)} images"
    if left.sum() <= NEAR_ZERO * len(probe):
        return fine(check, f"{seen}, as it does of an undefended model.")
    meaning = (
        f"{seen}. Of an undefended CLIP, on images of 224 pixels, nearly nothing is left, and whether this one is "
        "undefended isn't known here: if it is, the attack or the preprocessing is wrong."
    )
    return cant_tell(check, meaning, "github.com/Sxing2/CLIP-Test-time-Counterattacks, issue 2")


def _say_masking(
    check: str,
    probe: Probe,
    rows: torch.Tensor,
    radius: Radius,
    by_pgd: AttackResult,
    by_cw: AttackResult,
) -> Finding:
    number = len(rows)
    after_pgd, after_cw = (probe.judge(result.images, rows) for result in (by_pgd, by_cw))
    zeros, zeros_of_both = int(by_pgd.zero_gradient.sum()), int((by_pgd.zero_gradient & by_cw.zero_gradient).sum())
    left = rows[torch.from_numpy(after_pgd & after_cw).to(rows.device)]
    broken = 0
    if len(left):
        square = Square(eps=radius, queries=QUERIES, seed=probe.seed)
        broken = int((~probe.judge(probe.attack(square, left).images, left)).sum())
    at_large = probe.judge(probe.attack(CW(eps=LARGE, steps=2 * STEPS, seed=probe.seed), rows).images, rows)
    as_grey = probe.judge(torch.full_like(probe.images[rows], 0.5), rows)
    clues = []
    if enough(zeros_of_both, number):
        clues.append(f"{zeros_of_both} of {number} images have a gradient of exactly zero under PGD and CW")
    if better_by_chance(after_pgd, after_cw) < DECIDED and after_pgd.mean() - after_cw.mean() > GAP:
        clues.append(
            f"PGD on cross-entropy leaves {percent(after_pgd)} of them, on the margin (CW) {percent(after_cw)}, as "
            "where the softmax saturates"
        )
    if more_by_chance(broken, number, BY_LUCK) < DECIDED:
        clues.append(f"Square, without gradients, breaks {broken} of {len(left)} that gradients leave")
    if better_by_chance(at_large, as_grey) < DECIDED and at_large.mean() - as_grey.mean() > GAP:
        clues.append(
            f"at eps {LARGE}, where each image may become grey, CW leaves {percent(at_large)}, plain grey "
            f"{percent(as_grey)}"
        )
    if clues:
        return wrong(check, f"{'; '.join(clues)}: robust accuracy by gradients is overstated.", MASKED)
    seen = (
        f"of {number} images that are right, PGD leaves {percent(after_pgd)}, on the margin (CW) {percent(after_cw)}; "
        f"Square then breaks {broken} of {len(left)}; at eps {LARGE}, {percent(at_large)} are left; {zeros} gradients "
        "are zero."
    )
    if enough(zeros, number):
        return cant_tell(
            check, f"{seen} CW agrees here; where those of cross-entropy vanish, attack by CW too.", MASKED
        )
    return fine(check, seen)
