"""Proxies: what a target learns from, one classifier or several, and how the answers of several become one.

proxy = combine([a.with_classes(names), b.with_classes(names)], "probabilities", weights=[3, 1])
outputs = ask(proxy, images)  # (batch, 3, height, width) in [0, 1]
outputs.logits  # (batch, classes), whose softmax is what both say together
outputs.log_probabilities(temperature=2)
"""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hpt.classifiers import Classifier, OpenClassifier, check_logits
from hpt.errors import InputError, failures_explained
from hpt.models.classifier import ZeroShotClassifier
from hpt.prompts import check_templates
from hpt.references import STATED, Reference, check_names


ORIGINAL = "original"  # the target's own frozen vanilla copy, as a proxy by name
PROBABILITIES, LOGITS, MOST_CONFIDENT = COMBINATIONS = ("probabilities", "logits", "most_confident")


@dataclass(frozen=True)
class ProxyOutputs:
    """What one or several proxies say of a batch of images, and together.

    With weights `w_k` that sum to 1, logits `z_k` and a temperature `t`, they say together

    - `"probabilities"`: `sum_k w_k softmax(z_k / t)`, the mean of what each holds for likely;
    - `"logits"`: `softmax(sum_k w_k z_k / t)`, in which a model of large scale says more;
    - `"most_confident"`: for each image, what the proxy says whose largest probability at `t` is the largest.

    The softmax is taken whatever a model was trained with: of a SigLIP too, whose bias it doesn't see and whose scale,
    near 117, makes it surer than its sigmoids were.

    Args:
        each (`tuple[torch.Tensor]`): Logits of each proxy, `(batch, classes)`.
        combination (`str`, *optional*, defaults to `"probabilities"`): One of the three.
        weights (`tuple[float]`, *optional*, defaults to `(1.0,)`): One for each proxy, from [`normalise_weights`].
    """

    each: tuple[torch.Tensor, ...]
    combination: str = PROBABILITIES
    weights: tuple[float, ...] = (1.0,)

    @property
    def logits(self) -> torch.Tensor:
        """`(batch, classes)`, whose softmax is what they say together at temperature 1; of one proxy, its own."""
        return self.each[0] if len(self.each) == 1 else self.log_probabilities()

    def log_probabilities(self, temperature: float = 1.0) -> torch.Tensor:
        """Logarithms of what they say together, `(batch, classes)`."""
        if self.combination == LOGITS:  # log softmax(sum_k w_k z_k / t)
            mean = sum(weight * logits for weight, logits in zip(self.weights, self.each, strict=True))
            return F.log_softmax(mean / temperature, dim=-1)
        each = [F.log_softmax(logits / temperature, dim=-1) for logits in self.each]
        if self.combination == MOST_CONFIDENT:
            stacked = torch.stack(each)  # (proxies, batch, classes)
            others = stacked.scatter(-1, stacked.argmax(-1, keepdim=True), -math.inf)
            surest = others.logsumexp(-1).argmin(0)  # log(1 - p_max), also where p_max rounds to 1, as CLIP's often do
            return stacked[surest, torch.arange(len(surest), device=surest.device)]
        # log sum_k w_k softmax(z_k / t) = logsumexp_k (log w_k + log softmax(z_k / t))
        weighted = [part + math.log(weight) for weight, part in zip(self.weights, each, strict=True) if weight > 0]
        return torch.logsumexp(torch.stack(weighted), 0)


class CombinedProxy(nn.Module):
    """Several proxies as one; see [`ProxyOutputs`] for what they say together.

    Args:
        proxies (`Sequence[nn.Module]`): Classifiers over the same classes.
        combination (`str`): One of [`COMBINATIONS`].
        weights (`Sequence[float]`, *optional*): As of [`normalise_weights`].
    """

    def __init__(
        self, proxies: Sequence[nn.Module], combination: str = PROBABILITIES, weights: Sequence[float] | None = None
    ):
        super().__init__()
        self.proxies, self.combination = nn.ModuleList(proxies), combination
        self.weights = normalise_weights(weights, len(proxies))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs(images).logits

    def outputs(self, images: torch.Tensor, features: Mapping[nn.Module, torch.Tensor] | None = None) -> ProxyOutputs:
        """What each says of images `(batch, 3, height, width)` in [0, 1], and all together; see [`ask`]."""
        each = tuple(_logits(proxy, images, features) for proxy in self.proxies)
        return ProxyOutputs(each, self.combination, self.weights)

    def with_classes(self, class_names: list[str], template: str | list[str] | None = None) -> "CombinedProxy":
        """The same proxies over other classes."""
        proxies = [proxy.with_classes(class_names, template) for proxy in self.proxies]
        return CombinedProxy(proxies, self.combination, self.weights)


class FunctionProxy(nn.Module):
    """A function of images to logits as a proxy: a module of any kind, or another callable. It is given float32.

    Args:
        function ([`Classifier`]): If it is a module, it moves and freezes with the proxy.
        name (`str`): What records call it.
        model ([`OpenClassifier`], *optional*): What has made it over classes.
    """

    def __init__(self, function: Classifier, name: str, model: OpenClassifier | None = None):
        super().__init__()
        self.function, self.name, self.model = function, name, model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.function(images.to(torch.float32, copy=True))  # which it may write into
        check_logits(logits, images, f"The proxy {self.name}")
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def with_classes(self, class_names: list[str], template: str | list[str] | None = None) -> nn.Module:
        """The same over other classes; [`InputError`] for a function that has no text side."""
        if self.model is None:
            raise InputError(
                f"The proxy {self.name} is a function over classes of its own, and can't be asked about others, such "
                "as those of one set of a mixture: give an object with with_classes(class_names, template), or mix "
                "the batches (batches=mixed)."
            )
        return over_classes(self.model, class_names, template)


def parse_proxies(texts: Iterable[str]) -> list[Reference]:
    """Proxies as recipes name them: `NAME=PATH`, `ID@REVISION` or `original`, with `:template=...` of their own.

    Of one that is converted, what it doesn't say can stand there too, as of [`~hpt.references.parse_model`].

    Raises:
        InputError: for a setting that isn't known, a template that doesn't take a class name, or two of one name.
    """
    references = [Reference.parse(text) for text in texts]
    check_names(reference.name for reference in references)
    for reference in references:
        for key in reference.settings:
            if key not in ("template", *STATED):
                known = f"template can be set, and of one that is converted {', '.join(STATED)}"
                raise InputError(f"{str(reference)!r} sets {key!r}, but of a proxy only {known}.")
        if template := reference.settings.get("template"):
            check_templates(template)
        check_original(reference)
    return references


def check_original(reference: Reference) -> None:
    """Refuse a template or a revision of the target's own copy, which has those of the target."""
    if reference.source == ORIGINAL and "template" in reference.settings:
        raise InputError(f"{str(reference)!r} has a template, but {ORIGINAL} has that of the training.")
    if reference.source == ORIGINAL and reference.revision:
        raise InputError(
            f"{reference.place!r} has a revision, but {ORIGINAL} is a copy of the target, which has target_revision."
        )


def over_classes(proxy, class_names: list[str], template: str | list[str] | None) -> nn.Module:
    """A proxy as a frozen classifier over classes, in eval mode: by its text side if it has one, or as it stands.

    What a user's own text side makes stays with it, whatever that is: asked about other classes, it makes another.
    """
    model = proxy if isinstance(proxy, OpenClassifier) else None
    with failures_explained(f"The proxy {name_function(proxy)} gives no classifier by with_classes(names, template)"):
        classifier = proxy.with_classes(class_names, template) if model else proxy
    if not isinstance(proxy, ZeroShotClassifier):
        classifier = FunctionProxy(classifier, name_function(proxy), model)
    return classifier.requires_grad_(False).eval()


def combine(proxies: Sequence[nn.Module], combination: str, weights: Sequence[float] | None = None) -> nn.Module:
    """Several proxies as one; a single one stays as it is. Arguments as of [`CombinedProxy`]."""
    normalise_weights(weights, len(proxies))
    return proxies[0] if len(proxies) == 1 else CombinedProxy(proxies, combination, weights)


def parts_of(proxy: nn.Module) -> list[nn.Module]:
    """The proxies that one is combined of, in order, or it alone."""
    return list(proxy.proxies) if isinstance(proxy, CombinedProxy) else [proxy]


def zero_shot_parts(*models: nn.Module | None) -> list[ZeroShotClassifier]:
    """The dual encoders as classifiers that models are or are made of, at any depth; `None` has none."""
    modules = [module for model in models if model is not None for module in model.modules()]
    return [module for module in modules if isinstance(module, ZeroShotClassifier)]


def normalise_weights(weights: Sequence[float] | None, number: int) -> tuple[float, ...]:
    """One weight for each proxy, with the sum 1; equal ones for `None`.

    Raises:
        InputError: for another number of weights, or such as don't sum to something positive.
    """
    weights = [1.0] * number if weights is None else list(weights)
    if len(weights) != number:
        given = ", ".join(f"{weight:g}" for weight in weights) or "empty"
        raise InputError(
            f"proxy_weights is {given}, but of proxies the run has {number}: give as many weights, or none."
        )
    check_weights(weights)
    return tuple(weight / sum(weights) for weight in weights)


def check_weights(weights: Sequence[float]) -> None:
    """Refuse weights that aren't finite numbers of at least 0, one of them above it."""
    total = sum(weights)
    if not all(0 <= weight < math.inf for weight in weights) or not 0 < total < math.inf:
        given = ", ".join(f"{weight:g}" for weight in weights) or "empty"
        raise InputError(f"proxy_weights is {given}, but must be finite numbers of at least 0, one of them above 0.")


def name_function(function) -> str:
    """What a callable is called: a function by its own name, anything else by its class."""
    return function.__qualname__ if inspect.isroutine(function) else type(function).__qualname__


@torch.no_grad()
def ask(
    proxy: Classifier, images: torch.Tensor, features: Mapping[nn.Module, torch.Tensor] | None = None
) -> ProxyOutputs:
    """What a proxy says of images `(batch, 3, height, width)` in [0, 1]: without gradients, outside autocast.

    Of a [`ZeroShotClassifier`] whose features of these images, `(batch, dim)`, are known, it follows from them.
    """
    with torch.autocast(images.device.type, enabled=False):
        if isinstance(proxy, CombinedProxy):
            return proxy.outputs(images, features)
        return ProxyOutputs((_logits(proxy, images, features),))


def _logits(proxy: Classifier, images: torch.Tensor, features: Mapping[nn.Module, torch.Tensor] | None):
    return proxy.outputs_of(features[proxy]).logits if features and proxy in features else proxy(images)


def try_out(proxy: nn.Module, images: torch.Tensor, num_classes: int) -> None:
    """Ask a proxy about an image or a few, before anything long begins.

    Raises:
        InputError: if it, or one that it is combined of, can't take them, or gives what aren't finite logits over so
            many classes.
    """
    parts = parts_of(proxy)
    for number, part in enumerate(parts, 1):
        if type(part) is ZeroShotClassifier:  # over the classes by how it was made; prompts needn't be encoded yet
            continue
        name = f"The proxy {name_proxy(part)}" if len(parts) == 1 else f"Proxy {number}, {name_proxy(part)},"
        with failures_explained(f"{name} can't take an image of shape {tuple(images.shape)} in [0, 1]"):
            logits = ask(part, images).logits
        check_logits(logits, images, name)
        if logits.shape[1:] != (num_classes,):
            raise InputError(
                f"{name} gives logits of shape {tuple(logits.shape[1:])} for an image, but there are {num_classes} "
                "training classes: give one that tells these apart, in their order."
            )
        if logits.device != images.device or not logits.is_floating_point():
            raise InputError(
                f"{name} gives logits of {logits.dtype} on {logits.device} for images on {images.device}: give floats."
            )
        if not logits.isfinite().all():
            raise InputError(f"{name} gives NaN or infinite logits for an image: give a sound model.")


def name_proxy(proxy: nn.Module) -> str:
    """What messages call a proxy: its function's name, or where its model came from."""
    return proxy.name if isinstance(proxy, FunctionProxy) else str(proxy.model.name_or_path or type(proxy).__name__)
