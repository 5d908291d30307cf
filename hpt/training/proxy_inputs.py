"""The proxies that a trainer is given, checked before any long work, and as the one that its objectives ask."""

import inspect
import warnings

import torch
from torch import nn
from transformers import PreTrainedModel

from hpt.classifiers import Classifier, OpenClassifier
from hpt.errors import InputError, did_you_mean
from hpt.models.classifier import ZeroShotClassifier, frozen_copy
from hpt.models.proxies import ORIGINAL, combine, over_classes, zero_shot_parts
from hpt.models.weights import architecture, find_non_finite, plain_weights
from hpt.training.config import HPTConfig
from hpt.training.gpd import ANCHOR
from hpt.training.needs import who_needs_proxy
from hpt.training.sums import name_objective


ASK_FOR = "load it with load_proxy(name), or give a function of images in [0, 1] to logits over the training classes"


def as_list(proxy) -> list:
    """None, one or several proxies as a list."""
    if proxy is None:
        return []
    return list(proxy) if isinstance(proxy, list | tuple) else [proxy]


def check_kinds_of_proxies(proxies: list, args: HPTConfig) -> None:
    """Refuse proxies that are missing or can't be any.

    Raises:
        InputError: naming what is wrong with which.
    """
    if not proxies and (needed_by := who_needs_proxy(args)):
        raise InputError(f"There is no proxy, but one is needed by {needed_by}: load it with load_proxy(name).")
    for name, proxy in zip(_names(proxies), proxies, strict=True):
        if isinstance(proxy, str):
            if proxy != ORIGINAL:
                hint = did_you_mean(proxy, [ORIGINAL])
                raise InputError(f"{name} is the text {proxy!r}; known: {ORIGINAL}. Of any other, {ASK_FOR}{hint}")
        elif inspect.isclass(proxy):
            raise InputError(f"{name} is the class {proxy.__name__}: make one of it.")
        elif isinstance(proxy, PreTrainedModel) or not isinstance(proxy, Classifier | OpenClassifier):
            raise InputError(f"{name} is a {type(proxy).__name__}: {ASK_FOR}.")


def prepare_proxy(given: list, classifier: ZeroShotClassifier, template, args: HPTConfig) -> tuple:
    """What the objectives ask, over the training classes and frozen, and the target's vanilla copy; or `None`.

    Args:
        given (`list`): The proxies, looked at by [`check_kinds_of_proxies`].
        classifier ([`ZeroShotClassifier`]): The target, before it is trained.
        template: Of the training classes.
        args ([`HPTConfig`]): Settings.

    Raises:
        InputError: for weights of the proxies that don't go with them, or a proxy that isn't finite, or is the target.
    """
    needs_original = args.needs_original or any(isinstance(proxy, str) for proxy in given)
    original = frozen_copy(classifier) if needs_original else None
    if classifier.class_names is None:  # no objective asks about classes
        return None, original
    proxies = []
    for name, proxy in zip(_names(given), given, strict=True):
        if isinstance(proxy, str):
            proxies.append(original)
        else:
            proxies.append(over_classes(proxy, classifier.class_names, template))
            _check_weights(name, proxies[-1], classifier.model)
    if not proxies:
        if args.proxy_weights is not None:
            raise InputError("proxy_weights are given, but there is no proxy: leave them out.")
        return None, original
    if all(proxy is original for proxy in proxies):
        _warn_if_idle(args)
    return combine(proxies, args.proxy_combination, args.proxy_weights), original


def _warn_if_idle(args: HPTConfig) -> None:
    """Warn of a stage that begins where target and proxy are the same, and whose loss is 0 there."""
    objectives = args.make_objectives()
    begins_vanilla = [stage for stage in objectives if stage == ANCHOR or args.restart or ANCHOR not in objectives]
    for stage in begins_vanilla:
        if objectives[stage].is_idle_with_original:
            warnings.warn(
                f"The proxy is the target's own vanilla copy: the loss of {name_objective(objectives[stage])} is 0 "
                f"where the {stage} stage begins, and only rounding moves the weights from there. Give another proxy "
                "or objective, or a proxy_temperature other than 1.",
                stacklevel=5,
            )


def _names(proxies: list) -> list[str]:
    """What messages call each."""
    several = len(proxies) > 1
    return [f"Proxy {number} of {len(proxies)}" if several else "The proxy" for number in range(1, len(proxies) + 1)]


def _check_weights(name: str, proxy: nn.Module, target: nn.Module) -> None:
    """Refuse a proxy with weights that aren't finite, or are the target's; warn of one of the same architecture."""
    if broken := find_non_finite(proxy.state_dict()):
        raise InputError(f"{name} has NaN or infinite weights, {broken}: load a sound copy.")
    models = [part.model for part in zero_shot_parts(proxy)]
    shared = {id(weight) for weight in target.parameters()} & {id(weight) for weight in proxy.parameters()}
    if shared or any(_same_weights(target, model) for model in models):
        raise InputError(
            f"{name} and the target are the same weights: HPT needs a proxy of another architecture, or, by the name "
            f"{ORIGINAL!r}, the target's frozen copy."
        )
    if any(architecture(target) == architecture(model) for model in models):
        warnings.warn(
            f"{name} and the target have the same architecture: adversarial images carry over between them, while HPT "
            "relies on a heterogeneous proxy, such as ViT-B/16 for ViT-B/32.",
            stacklevel=5,
        )


def _same_weights(target, proxy) -> bool:
    weights, proxy_weights = plain_weights(target), plain_weights(proxy)
    return weights.keys() == proxy_weights.keys() and all(
        weight.shape == proxy_weights[name].shape and torch.equal(weight.to(proxy_weights[name]), proxy_weights[name])
        for name, weight in weights.items()
    )
