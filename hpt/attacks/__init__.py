"""Adversarial attacks on any `images -> logits` callable, in [0, 1] pixels; a file per family over one base."""

from hpt.attacks.base import Attack, AttackResult
from hpt.attacks.gradient import FGSM, PGD
from hpt.errors import InputError


ATTACKS = {
    "fgsm": FGSM,
    "pgd": PGD,
}


def get_attack(name: str) -> type[Attack]:
    """The attack class of that name; [`InputError`] listing the known names otherwise."""
    if name not in ATTACKS:
        raise InputError(f"Unknown attack {name!r}; known: {', '.join(ATTACKS)}.")
    return ATTACKS[name]


__all__ = ["ATTACKS", "FGSM", "PGD", "Attack", "AttackResult", "get_attack"]
