"""Any function of images to logits as what an evaluation measures: a defence, another library's model, several in one.

subject = as_subject(defence, "my defence", device)  # `defence(images)`, or `defence.with_classes(names, template)`
RobustnessEvaluator()(classifier=defence, benchmarks="digits", name="my defence")  # the same, and its rows
"""

import textwrap
from dataclasses import dataclass

import torch

from hpt.classifiers import VERDICTS, Classifier, OpenClassifier, check_logits, draw_seeds, is_randomised
from hpt.data.benchmark import Benchmark
from hpt.data.images import to_unit_range
from hpt.errors import InputError, failures_explained
from hpt.evaluation.identity import Identity, identify
from hpt.evaluation.rows import MEASURED_SINCE
from hpt.evaluation.subject import Evaluated, Subject
from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.prompts import list_templates
from hpt.references import check_names


@dataclass(frozen=True)
class _View:
    """A function over the classes of a benchmark, tried out on one image."""

    classifier: Classifier
    identity: Identity
    why_no_gradient: str | None


class FunctionSubject:
    """Any function of images to logits that is measured; see [`Evaluated`].

    Images come to it as the benchmark says, or else at their own size: it has no processor. The modules that are found
    in it are put into eval mode. It is tried out on the first image of each benchmark's classes.

    Args:
        classifier ([`Classifier`] or [`OpenClassifier`]): The function, or what makes one over any classes.
        name (`str`): What rows call it.
        device (`torch.device`, *optional*, defaults to the CPU): Where images are put, if it has no weights, which
            say so themselves.
        file (`str`, *optional*): Hash of the file that it came out of.

    Raises:
        InputError: for a name that tables can't show on a line.
    """

    measured_since = MEASURED_SINCE

    def __init__(
        self,
        classifier: Classifier | OpenClassifier,
        name: str,
        device: torch.device | str = "cpu",
        file: str | None = None,
    ):
        check_names([name])
        self.classifier, self.name, self.file = classifier, name, file
        self._default_device = torch.device(device)
        self._is_open = isinstance(classifier, OpenClassifier)
        self._identity = _identified_in_eval_mode(classifier)
        self.weights = self._identity.weights
        self.configuration = digest([self._identity.configuration, file])
        self._views: dict[str, _View] = {}  # by classes and templates

    def see(self, benchmark: Benchmark) -> Benchmark:
        return benchmark.for_model(None)

    def on(self, benchmark: Benchmark) -> Classifier:
        return self._view(benchmark).classifier

    def device(self, benchmark: Benchmark) -> torch.device:
        return self._view(benchmark).identity.device or self._default_device

    def why_no_gradient(self, benchmark: Benchmark) -> str | None:
        return self._view(benchmark).why_no_gradient

    def settings(self, benchmark: Benchmark) -> dict:
        view = self._view(benchmark)
        has_weights = self.weights is not None or view.identity.weights is not None
        known = ["file"] * (self.file is not None) + ["weights"] * has_weights
        return {
            "model": self.name,
            "revision": None,
            "weights": self.weights,
            "configuration": self.configuration,
            "tokens": digest([view.identity.configuration, view.identity.weights]) if self._is_open else None,
            "dtype": view.identity.dtype,
            "templates": list_templates(benchmark.template or []) if self._is_open else [],
            "image_mean": [],
            "image_std": [],
            "identified_by": " and ".join(known) or "name",
        }

    def computes_with(self, benchmark: Benchmark) -> str:
        return digest([self.configuration, self.settings(benchmark)["tokens"]])

    def as_proxy(self) -> dict:
        return {"proxy": self.name, "proxy_weights": self.weights}

    def _view(self, benchmark: Benchmark) -> _View:
        key = digest([benchmark.class_names, benchmark.template])
        if key not in self._views:
            self._views[key] = self._make(benchmark)
        return self._views[key]

    def _make(self, benchmark: Benchmark) -> _View:
        classifier = self.classifier
        if self._is_open:
            with failures_explained(f"{self.name} gives no classifier over the classes of {benchmark.name}"):
                classifier = classifier.with_classes(benchmark.class_names, benchmark.template)
        if not callable(classifier):
            raise InputError(
                f"{self.name} gives a {type(classifier).__name__} for the classes of {benchmark.name}, but must give "
                "a function of images in [0, 1] to logits."
            )
        identity = _identified_in_eval_mode(classifier) if self._is_open else self._identity
        device = identity.device or self._default_device
        return _View(classifier, identity, try_out(classifier, self.see(benchmark), device, self.name))


def _identified_in_eval_mode(classifier) -> Identity:
    identity = identify(classifier)
    for module in identity.modules:
        module.eval()  # in training mode, logits would depend on the batch, and change statistics
    return identity


def as_subject(
    classifier, name: str | None, device: torch.device | str = "cpu", file: str | None = None, what: str = "classifier"
) -> Evaluated:
    """What a user gives, to be measured: a dual encoder as [`Subject`], and any other function as [`FunctionSubject`].

    Args:
        classifier: A [`ZeroShotClassifier`], another [`Classifier`], or an [`OpenClassifier`].
        name (`str`, *optional*): What rows call it; a function needs one.
        device, file: As of [`FunctionSubject`].
        what (`str`, *optional*): The argument that it is given as, which messages name.

    Raises:
        InputError: for what is neither, and a function without a name.
    """
    if type(classifier) is ZeroShotClassifier:  # a subclass may compute anything
        return Subject(classifier.eval(), name)
    if not callable(classifier) and not isinstance(classifier, OpenClassifier):
        raise InputError(
            f"The {what} is a {type(classifier).__name__}, but must be a function of images in [0, 1] to logits, or "
            "have with_classes(class_names, template), which gives one."
        )
    if not name:
        raise InputError(f"The {what} has no name that rows could call it: give one, such as name='my defence'.")
    return FunctionSubject(classifier, name, device, file)


def try_out(classifier: Classifier, benchmark: Benchmark, device: torch.device, name: str) -> str | None:
    """Ask a classifier about the first image of a benchmark, before anything long begins.

    Returns:
        `str`, *optional*: why its logits have no gradient for the image, unless they have one.

    Raises:
        InputError: naming it, if it can't take the image, or gives what aren't finite logits over the classes.
    """
    sample, classes = benchmark[0], len(benchmark.class_names)
    images = to_unit_range(sample["pixel_values"].to(device))[None]
    ids = torch.tensor([sample["sample_ids"]])
    drawn = {"seeds": draw_seeds(0, ids, VERDICTS, 0)} if is_randomised(classifier) else {}
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        with failures_explained(f"{name} can't take an image of shape {tuple(images.shape[1:])} in [0, 1]"):
            logits = classifier(images.clone(), **drawn)  # which it may change in place
    check_logits(logits, images, name)
    if logits.shape[1:] != (classes,) or not logits.is_floating_point():
        raise InputError(
            f"{name} gives logits of shape {tuple(logits.shape[1:])} in {logits.dtype} for an image, but "
            f"{benchmark.name} has {classes} classes: give a function with a float for each of them, in their order."
        )
    if not logits.isfinite().all():
        raise InputError(f"{name} gives NaN or infinite logits for an image of {benchmark.name}: give a sound model.")
    _refuse_probabilities(logits[0].float(), name)
    return _why_no_gradient(classifier, images, drawn)


def _refuse_probabilities(values: torch.Tensor, name: str) -> None:
    """Refuse what sums to 1 as probabilities do, of which cross-entropy would take the softmax again."""
    is_distribution = values.min() >= 0 and abs(values.sum().item() - 1) < 1e-3
    if is_distribution and not (values == values.round()).all():  # a decision alone has no logits to give instead
        raise InputError(
            f"{name} gives probabilities, which attacks on cross-entropy hardly climb: give its logits, without the "
            "softmax, or the logarithm of the probabilities."
        )


def _why_no_gradient(classifier: Classifier, images: torch.Tensor, drawn: dict) -> str | None:
    with torch.autocast(images.device.type, enabled=False), torch.inference_mode(False), torch.enable_grad():
        images = images.clone().requires_grad_()
        try:
            logits = classifier(images.clone(), **drawn).sum()
            gradients = torch.autograd.grad(logits, images, allow_unused=True) if logits.requires_grad else [None]
        except Exception as error:  # of the user's own code, which may be right where no gradient is wanted
            return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...").rstrip(".")
    return "they are detached from it" if gradients[0] is None else None
