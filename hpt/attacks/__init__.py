"""Adversarial attacks on any `images -> logits` callable, in [0, 1] pixels; a file per family over one base."""

from hpt.attacks.apgd import APGDCE, APGDDLR, APGDT
from hpt.attacks.base import Attack, AttackResult
from hpt.attacks.fab import FABT
from hpt.attacks.gradient import CW, FGSM, PGD, Adaptive, Transfer
from hpt.attacks.square import Square
from hpt.attacks.suites import APGD, AutoAttack, Suite
from hpt.errors import InputError


ATTACKS = {
    "fgsm": FGSM,
    "pgd": PGD,
    "cw": CW,
    "apgd-ce": APGDCE,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
    "fab-t": FABT,
    "square": Square,
    "apgd": APGD,
    "autoattack": AutoAttack,
    "adaptive": Adaptive,
    "transfer": Transfer,
}


def get_attack(name: str) -> type[Attack]:
    """The attack class of that name; [`InputError`] listing the known names otherwise."""
    if name not in ATTACKS:
        raise InputError(f"Unknown attack {name!r}; known: {', '.join(ATTACKS)}.")
    return ATTACKS[name]


__all__ = [
    "APGD",
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "ATTACKS",
    "CW",
    "FABT",
    "FGSM",
    "PGD",
    "Adaptive",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Square",
    "Suite",
    "Transfer",
    "get_attack",
]
