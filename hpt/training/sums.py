"""Weighted sums of objectives, and objectives from text: `"hpt"`, or `"0.5*hpt + 1.0*tecoa"` with settings.

make_objective("0.5*hpt + tecoa", settings="hpt.temperature=2")
"""

import inspect
import math
import re
from collections.abc import Iterable
from typing import get_args, get_type_hints

import torch

from hpt.errors import InputError, check_known, did_you_mean, list_known
from hpt.radius import read_number
from hpt.training.objectives import OBJECTIVES, OF_HPT, Objective
from hpt.training.step import TrainingStep


PLUS = re.compile(r"(?<!\d[eE])\+")  # not that of 1e+2
SIGNS = re.compile(r"[-/,*()]")  # of what people write between terms, and no name of hpt's has


class WeightedSum(Objective):
    """`sum_k w_k L_k` of other objectives `L_k`, its terms. It needs what any of them needs.

    Its attack maximises `sum_k w_k A_k` of their attack losses `A_k`, without those of terms that need no attack; or
    that of one term. The log has the mean loss of each term, as `loss_NAME`, without its weight.

    Args:
        terms (`dict[str, Objective]`): The objectives, by name.
        weights (`dict[str, float]`): Their weights, above 0. They needn't sum to 1.
        attack_loss (`str`, *optional*): Name of the term whose attack loss alone is maximised.

    Raises:
        InputError: if the attack loss is that of a term that needs no attack.
    """

    def __init__(self, terms: dict[str, Objective], weights: dict[str, float], attack_loss: str | None = None):
        self.terms, self.weights = terms, weights
        attacks = {name: weights[name] for name, term in terms.items() if term.needs_attack}
        if attack_loss is not None and attack_loss not in attacks:
            raise InputError(
                f"attack_loss is {attack_loss!r}, which runs no attack; {list_known(attack_loss, attacks)}"
            )
        self.attacks = attacks if attack_loss is None else {attack_loss: 1.0}
        for need in ("proxy", "original", "labels", "classes", "patches", "attack"):
            setattr(self, f"needs_{need}", any(getattr(term, f"needs_{need}") for term in terms.values()))
        self.needs_random_start = bool(attacks) and all(terms[name].needs_random_start for name in self.attacks)
        self.is_idle_with_original = all(term.is_idle_with_original for term in terms.values())
        self.asks_about_clean = tuple(
            dict.fromkeys(asked for term in terms.values() for asked in term.asks_about_clean)
        )
        self.fields = tuple({field: None for term in terms.values() for field in term.fields})

    def attack_loss(self, step: TrainingStep, images: torch.Tensor) -> torch.Tensor:
        with step.keeping(images):  # which the terms see alike
            return sum(weight * self.terms[name].attack_losses(step, images) for name, weight in self.attacks.items())

    def __call__(self, step: TrainingStep) -> torch.Tensor:
        losses = {name: term.losses(step) for name, term in self.terms.items()}
        for name, loss in losses.items():
            step.note(f"loss_{name}", loss)
        return sum(self.weights[name] * loss for name, loss in losses.items())  # sum_k w_k L_k

    @property
    def papers(self) -> list[str]:
        return [paper for term in self.terms.values() for paper in term.papers]

    def describe(self, reduction: str) -> str:
        terms = [f"{name}: {term.describe(reduction)}" for name, term in self.terms.items()]
        attacks = list(self.attacks) if list(self.attacks.values()) == [1] else _weighted(self.attacks)
        attack = f"the attack maximises the attack loss of {' + '.join(attacks)}" if self.needs_attack else ""
        return "; ".join(filter(None, [*terms, attack]))


def name_objective(objective: Objective) -> str:
    """Its key in [`OBJECTIVES`], or its class's name where it has none, or has taken the place of one of hpt's.

    A sum is called as it is written: `0.5*hpt + 1*tecoa`.
    """
    if isinstance(objective, WeightedSum):
        return " + ".join(_weighted(objective.weights))
    names = {kind: name for name, kind in (OBJECTIVES | OF_HPT).items()}
    return names.get(type(objective), type(objective).__name__)


def name_terms(objective: Objective) -> list[str]:
    """The names of the terms of a sum; of any other objective, its own."""
    terms = objective.terms.values() if isinstance(objective, WeightedSum) else [objective]
    return [name_objective(term) for term in terms]


def _weighted(weights: dict[str, float]) -> list[str]:
    return [f"{weight:g}*{name}" for name, weight in weights.items()]


def check_attack_loss(name: str | None, objectives: Iterable[Objective]) -> None:
    """Refuse the name of an attack loss that no sum among the objectives has as a term."""
    sums = [objective for objective in objectives if isinstance(objective, WeightedSum)]
    terms = list(dict.fromkeys(term for objective in sums for term in objective.terms))
    if name is not None and not sums:
        raise InputError(
            f"attack_loss is {name!r}, but chooses a term of a sum, and no objective is one: leave it out."
        )
    if name is not None and name not in terms:
        raise InputError(f"attack_loss is {name!r}, which is no term of a sum; {list_known(name, terms)}")


def check_needs(objective: Objective, random_start: bool, trainable: str) -> None:
    """Refuse settings of a run with which an objective would train nothing, or not what is asked for."""
    if objective.needs_random_start and not random_start:
        raise InputError(
            f"attack_random_start is False, but the attack of {name_objective(objective)} has no gradient at a clean "
            "image of the vanilla target, so that nothing would ever move: leave it out."
        )
    if trainable == "all" and not objective.needs_classes:
        raise InputError(
            f"trainable is 'all', but {name_objective(objective)} trains the vision tower alone: leave it out."
        )


def make_objective(
    text: str,
    defaults: dict | None = None,
    field: str = "objective",
    settings: str | None = None,
    attack_loss: str | None = None,
) -> Objective:
    """The objective, or the sum of objectives, that a text calls, with the settings that another gives.

    Args:
        text (`str`): Key in [`OBJECTIVES`], or a sum such as `"0.5*hpt + 1.0*tecoa"`. A weight may be a fraction, and
            is 1 if it is left out.
        defaults (`dict`, *optional*): Values of fields, among them those that objectives have as settings.
        field (`str`, *optional*): What messages call it; its settings stand in `{field}_args`.
        settings (`str`, *optional*): `"temperature=2,kl_direction=target_to_proxy"`; of a sum, with the names of its
            terms, `"hpt.temperature=2,pmg_aft.a=0.5"`. They win over the defaults.
        attack_loss (`str`, *optional*): See [`WeightedSum`]; it says nothing of a sum without that term.

    Raises:
        InputError: for an unknown objective, term or setting, with the known ones; a term that stands twice; a weight
            that isn't above 0; a value that can't be meant; or two values for a setting, in its own field and in
            `settings`.
    """
    weights = parse_terms(field, text)
    given = _parse_settings(f"{field}_args", settings, text, list(weights))
    terms = {name: _make_term(name, defaults or {}, f"{field}_args", given[name]) for name in weights}
    if text in OBJECTIVES:
        return terms[text]
    return WeightedSum(terms, weights, attack_loss if attack_loss in terms else None)


def parse_terms(field: str, text: str) -> dict[str, float]:
    """The names of a sum's terms with their weights, or of an objective with 1; errors as of [`make_objective`]."""
    if not isinstance(text, str):
        raise InputError(f"{field} is {text!r}, but must be a text, such as 'hpt' or '0.5*hpt + 1.0*tecoa'.")
    if text in OBJECTIVES:
        return {text: 1.0}
    weights: dict[str, float] = {}
    for item in PLUS.split(text):
        weight, times, name = (part.strip() for part in item.rpartition("*"))
        if not name or (times and not weight):
            raise InputError(f"{field} is {text!r}, which lacks a term: write a sum as '0.5*hpt + 1.0*tecoa'.")
        if weight in OBJECTIVES or (name not in OBJECTIVES and SIGNS.search(name)):
            raise InputError(f"{field} is {text!r}, but a sum is of WEIGHT*NAME with + between, as '0.5*hpt + tecoa'.")
        check_known(field, name, OBJECTIVES)
        if name in weights:
            raise InputError(f"{field} is {text!r}, which has {name} twice: give it once, with one weight.")
        weights[name] = read_number(weight, f"{field} weighs {name}", whole=False) if times else 1.0
        if not 0 < weights[name] < math.inf:
            raise InputError(f"{field} weighs {name} by {weight}, but a weight must be a number above 0.")
    return weights


def _parse_settings(field: str, settings: str | None, text: str, terms: list[str]) -> dict[str, dict[str, str]]:
    """The settings of each term, as they are written."""
    if not isinstance(settings, str | None):
        raise InputError(f"{field} is {settings!r}, but must be a text, such as 'temperature=2'.")
    given: dict[str, dict[str, str]] = {name: {} for name in terms}
    for item in filter(None, (settings or "").split(",")):
        key, value = (part.strip() for part in item.partition("=")[::2])
        if not value:
            raise InputError(
                f"{field} has {item.strip()!r}, which sets nothing: write NAME=VALUE, with commas between."
            )
        name, dot, setting = key.rpartition(".")
        if not dot and len(terms) > 1:
            raise InputError(f"{field} sets {key!r}, but of which term of {text!r}? Write {terms[0]}.{key}, for one.")
        name = name if dot else terms[0]
        if name not in given:
            raise InputError(f"{field} sets {key!r}, but {text!r} has no term {name!r}; {list_known(name, terms)}")
        if setting in given[name]:
            raise InputError(f"{field} sets {key!r} twice: give it once.")
        given[name][setting] = value
    return given


def _make_term(name: str, defaults: dict, field: str, given: dict[str, str]) -> Objective:
    """An objective by its key, with the settings that stand in fields of their own, and those that a text gives."""
    kind = OBJECTIVES[name]
    known, kinds = inspect.signature(kind).parameters, get_type_hints(kind.__init__)
    values = {setting: defaults[setting] for setting in kind.fields if setting in defaults}
    for key, text in given.items():
        if key not in known:
            listed = f"{', '.join(known) or 'no settings'}{did_you_mean(key, known)}"
            raise InputError(f"{field} sets {key!r}; known of {name}: {listed}")
        value = _parse_setting(field, key, text, kinds.get(key, type(known[key].default)))
        if values.get(key, value) not in (value, known[key].default):
            raise InputError(f"{key} is {values[key]!r}, but {field} sets it to {value!r}: give it once.")
        values[key] = value
    missing = [key for key, setting in known.items() if setting.default is setting.empty and key not in values]
    if missing:
        raise InputError(f"{name} has no {missing[0]} by default: give it in {field}.")
    objective = kind(**values)
    if unkept := [key for key in known if not hasattr(objective, key)]:  # which cards ask for
        raise InputError(f"{kind.__name__} takes {unkept[0]}, but doesn't keep it: set self.{unkept[0]} to it.")
    return objective


def _parse_setting(field: str, key: str, text: str, kind):
    """A setting's value as its constructor wants it: a number, which may be a fraction, `true` or `false`, or text."""
    kind = next((part for part in get_args(kind) if part is not type(None)), kind)  # of `float | None`, float
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{field} sets {key} to {text!r}, which must be true or false.")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    return read_number(text, f"{field} sets {key}", whole=kind is int)
