"""Adversarial attacks on any `images -> logits` callable, in [0, 1] pixels; a file per family over one base."""

from hpt.attacks.apgd import APGDCE, APGDDLR, APGDT
from hpt.attacks.backward import straight_through
from hpt.attacks.base import Attack, AttackResult
from hpt.attacks.fab import FABT
from hpt.attacks.gradient import CW, FGSM, PGD, Adaptive, ReverseTransfer, Transfer
from hpt.attacks.registry import ATTACKS, NamedAttack, get_attack
from hpt.attacks.square import Square
from hpt.attacks.suites import APGD, AutoAttack, Cascade, Suite


__all__ = [
    "APGD",
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "ATTACKS",
    "CW",
    "Cascade",
    "FABT",
    "FGSM",
    "NamedAttack",
    "PGD",
    "ReverseTransfer",
    "Adaptive",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Square",
    "Suite",
    "Transfer",
    "get_attack",
    "straight_through",
]
