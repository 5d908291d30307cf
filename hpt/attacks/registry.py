"""Attacks by name, and the texts that name them with their settings: `pgd:steps=50,restarts=5`."""

import inspect
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hpt.attacks.apgd import APGDCE, APGDDLR, APGDT
from hpt.attacks.base import Attack, make_label
from hpt.attacks.fab import FABT
from hpt.attacks.gradient import CW, FGSM, PGD, Adaptive, ReverseTransfer, Transfer
from hpt.attacks.square import Square
from hpt.attacks.suites import APGD, AutoAttack
from hpt.errors import InputError, check_known, list_known
from hpt.radius import Radius, read_number


ATTACKS = {
    kind.name: kind
    for kind in (
        FGSM,
        PGD,
        CW,
        APGDCE,
        APGDDLR,
        APGDT,
        FABT,
        Square,
        APGD,
        AutoAttack,
        Adaptive,
        Transfer,
    )
}
SET_BY_EVALUATOR = {"eps", "norm", "seed", "proxy", "loss"}


def known_attacks() -> dict[str, type[Attack]]:
    """All that texts may name: [`ATTACKS`], and the one that is scored on the proxy instead of the model."""
    return ATTACKS | {ReverseTransfer.name: ReverseTransfer}


def get_attack(name: str) -> type[Attack]:
    """The attack class of that name; [`InputError`] listing the known names otherwise."""
    known = known_attacks()
    check_known("attack", name, known)
    return known[name]


@dataclass(frozen=True)
class NamedAttack:
    """An attack as a text names it, with the settings in which it differs from its defaults.

    `NamedAttack.parse("pgd:steps=50,restarts=5")`; `str()` gives the text back. Rows of other versions may name
    attacks that this one doesn't have: only [`kind`], [`numbers`] and [`make`] refuse those.

    Args:
        name (`str`): Key in [`ATTACKS`], or `"transfer-to-proxy"`.
        settings (`tuple[str]`): As they are written: `"steps=50"`.
    """

    name: str
    settings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "NamedAttack":
        """[`InputError`] for anything but a text, such as an attack itself."""
        if not isinstance(text, str):
            raise InputError(
                f"An attack is given as a {type(text).__name__}, but is named by a text, such as 'pgd:steps=50'; its "
                "eps, norm and seed are given beside it."
            )
        name, _, settings = text.partition(":")
        return cls(name, tuple(filter(None, settings.split(","))))

    def __str__(self) -> str:
        return f"{self.name}:{','.join(self.settings)}" if self.settings else self.name

    @property
    def is_known(self) -> bool:
        """Whether this version of hpt has the attack."""
        return self.name in known_attacks()

    @property
    def kind(self) -> type[Attack]:
        """Its class.

        Raises:
            InputError: for an unknown attack, listing the known ones.
        """
        return get_attack(self.name)

    @property
    def uses_gradients(self) -> bool:
        """Whether it follows gradients of the model that is scored; not known of an unknown one."""
        return self.is_known and self.kind.uses_gradients

    @property
    def needs_proxy(self) -> bool:
        return self.is_known and self.kind.needs_proxy

    @property
    def scored_on_proxy(self) -> bool:
        """Whether it is made on the model under evaluation and scored on its proxy."""
        return self.is_known and self.kind.scored_on_proxy

    @property
    def is_transfer(self) -> bool:
        """Whether its images are made on another model than the one scored."""
        return self.needs_proxy and not self.uses_gradients

    @property
    def label(self) -> str:
        """What tables call it: `PGD-10`, `CW-50 x 5`, `square (queries=100)`."""
        defaults = {name: parameter.default for name, parameter in known_settings(self.kind).items()}
        numbers = defaults | self.numbers()
        return self.label_with(numbers.get("steps"), numbers.get("restarts"))

    def label_with(self, steps: int | None, restarts: int | None) -> str:
        """The label, with the numbers that a row says, whatever the defaults are today."""
        others = [setting for setting in self.settings if setting.partition("=")[0] not in ("steps", "restarts")]
        return make_label(self.name, steps, restarts, others)

    def numbers(self) -> dict[str, int | float]:
        """Its settings.

        Raises:
            InputError: for an unknown one, listing the known, or a value that isn't a number.
        """
        known, numbers = known_settings(self.kind), {}
        for setting in self.settings:
            key, _, value = setting.partition("=")
            if key not in known:
                raise InputError(f"{self.name} has no setting {key!r}; {list_known(key, known)}")
            numbers[key] = read_number(value, f"{str(self)!r} sets {key}", whole=key != "step_size")
        return numbers

    def make(self, radius: Radius, *, seed: int = 0, proxy=None) -> Attack:
        """The attack itself.

        Args:
            radius ([`Radius`]): How far it may change an image, and in which norm.
            seed (`int`, *optional*, defaults to 0): Of its noise.
            proxy (`Callable`, *optional*): The classifier that it is made with, if it needs one.

        Raises:
            InputError: for an attack, setting or norm that can't be meant, or a proxy that is missing.
        """
        settings = self.numbers() | {"eps": radius, "norm": radius.norm, "seed": seed}
        if not self.needs_proxy:
            return self.kind(**settings)
        if proxy is None:
            raise InputError(f"The attack {str(self)!r} needs a proxy: give one, by --proxy or from load_proxy(name).")
        return self.kind(proxy=proxy, **settings)


def known_settings(kind: type[Attack]) -> dict[str, inspect.Parameter]:
    """What a text may set: keyword arguments of an attack's constructor, and of those that it hands the rest on to."""
    known = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            keywords = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
            known = {key.name: key for key in keywords if key.name not in SET_BY_EVALUATOR} | known
            if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
    return known


def parse_attacks(texts: str | Iterable[str], radii: Collection[Radius], proxy) -> list[NamedAttack]:
    """The attacks that one or several texts name, each once; `proxy` is anything but `None` if there will be one.

    Raises:
        InputError: for an attack or setting that can't be meant, or not at these radii; if there are no radii.
    """
    if not radii:
        raise InputError("There is no eps: give one or several radii in [0, 1] pixels, such as 1/255.")
    texts = texts if isinstance(texts, Iterable) and not isinstance(texts, str) else [texts]
    attacks = list(dict.fromkeys(map(NamedAttack.parse, texts)))
    for attack in attacks:
        for radius in radii:
            attack.make(radius, proxy=proxy)
    return attacks


def parse_attacks_without_proxy(texts: Iterable[str], radii: Collection[Radius]) -> list[NamedAttack]:
    """[`parse_attacks`] where models are attacked by themselves alone: an attack that needs a proxy is refused too."""
    for attack in map(NamedAttack.parse, texts):
        if attack.needs_proxy:
            raise InputError(f"The attack {str(attack)!r} needs a proxy, but there is none here: give another attack.")
    return parse_attacks(texts, radii, None)
