"""Attacks by name, and the texts that name them with their settings: `pgd:steps=50,restarts=5`."""

import inspect

from hpt.attacks.apgd import APGDCE, APGDDLR, APGDT
from hpt.attacks.base import Attack
from hpt.attacks.fab import FABT
from hpt.attacks.gradient import CW, FGSM, PGD, Adaptive, Transfer
from hpt.attacks.square import Square
from hpt.attacks.suites import APGD, AutoAttack
from hpt.errors import InputError
from hpt.radius import Fraction, check_eps


REVERSE_TRANSFER = "transfer-to-proxy"  # made on the evaluated model, scored on the proxy
SET_BY_EVALUATOR = {"eps", "norm", "seed", "proxy", "loss"}


def parse_attack(text: str) -> tuple[type[Attack], dict]:
    """`"pgd:steps=50,restarts=5"` as the attack's class and its settings.

    Raises:
        InputError: for an unknown attack or setting, listing the known ones, or a value that isn't a number.
    """
    name, _, listed = text.partition(":")
    kind = Transfer if name == REVERSE_TRANSFER else get_attack(name)
    known = [
        key
        for base in kind.__mro__
        if "__init__" in vars(base)
        for key, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in SET_BY_EVALUATOR
    ]
    settings = {}
    for item in filter(None, listed.split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            raise InputError(f"{name} has no setting {key!r}; known: {', '.join(dict.fromkeys(known)) or 'none'}.")
        try:
            number = Fraction(value)
        except ValueError:
            raise InputError(f"{text!r} sets {key} to {value!r}, which isn't a number.") from None
        if key != "step_size" and not number.is_integer():
            raise InputError(f"{text!r} sets {key} to {value}, but it must be a whole number.")
        settings[key] = float(number) if key == "step_size" else int(number)
    return kind, settings


def make_attack(text: str, eps: float, norm: str, seed: int, proxy) -> Attack:
    """The attack that a text names; `proxy` is the classifier it is made with, if it needs one.

    Raises:
        InputError: for a text, radius or norm that can't be meant, or a proxy that is missing.
    """
    kind, settings = parse_attack(text)
    if not kind.needs_proxy:
        return kind(eps=eps, norm=norm, seed=seed, **settings)
    if proxy is None:
        raise InputError(f"The attack {text!r} needs a proxy: give one from load_proxy(name).")
    return kind(eps=eps, norm=norm, seed=seed, proxy=proxy, **settings)


def check_attacks(attacks: list[str], radii: list[float], norm: str, proxy) -> None:
    """Refuse attacks and radii that can't be meant; `proxy` is anything but `None` if there will be one.

    Raises:
        InputError: saying which.
    """
    if not radii:
        raise InputError("There is no eps: give one or several radii in [0, 1] pixels, such as 1/255.")
    for eps in radii:
        check_eps(eps, norm)
        for text in attacks:
            make_attack(text, eps, norm, 0, proxy)


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
