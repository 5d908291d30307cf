"""What is measured, by the name that rows call it, with what they say of it."""

from typing import Protocol

import torch

from hpt.classifiers import Classifier
from hpt.data.benchmark import Benchmark
from hpt.evaluation.rows import LOWER_CASE_SINCE, MEASURED_SINCE
from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.identity import hash_configuration, hash_prompts
from hpt.models.weights import hash_weights
from hpt.references import check_names


class Evaluated(Protocol):
    """What can be measured: a dual encoder, as [`Subject`], or any other function of images, as
    [`~hpt.evaluation.functions.FunctionSubject`].

    Attributes:
        name (`str`): What rows call it.
        weights (`str`, *optional*): Hash of its weights; `None` if it has none.
        measured_since (`str`): Version since which hpt measures it as it does now.
    """

    name: str
    weights: str | None
    measured_since: str

    def see(self, benchmark: Benchmark) -> Benchmark:
        """A benchmark as it sees the images, if the benchmark doesn't say how they come to models."""

    def on(self, benchmark: Benchmark) -> Classifier:
        """It as a classifier of a benchmark's classes, the same one each time, in eval mode."""

    def device(self, benchmark: Benchmark) -> torch.device:
        """Where that classifier wants its images."""

    def why_no_gradient(self, benchmark: Benchmark) -> str | None:
        """Why no attack can follow gradients of that classifier; `None` if one can."""

    def settings(self, benchmark: Benchmark) -> dict:
        """What a row says of it as a classifier of a benchmark's classes."""

    def computes_with(self, benchmark: Benchmark) -> str:
        """What a row says of how it computes if it is attacked, or helps to attack, another one."""

    def as_proxy(self) -> dict:
        """What a row of an attack says of it that is made with it."""


class Subject:
    """A model that is measured; see [`Evaluated`].

    Args:
        classifier ([`ZeroShotClassifier`]): The model; its classes don't matter.
        name (`str`, *optional*): What rows call it; defaults to its Hub id or path.

    Raises:
        InputError: for a name that tables can't show on a line.
    """

    def __init__(self, classifier: ZeroShotClassifier, name: str | None = None):
        check_names([name] if name else [])
        self.classifier = classifier
        self.name = name or classifier.model.name_or_path
        self.revision = getattr(classifier.model.config, "_commit_hash", None)  # only models from the Hub have one
        self.weights = hash_weights(classifier.model.state_dict())
        self.configuration = hash_configuration(classifier)
        self._views: dict[str, ZeroShotClassifier] = {}  # by classes and templates
        self.measured_since = LOWER_CASE_SINCE if classifier.changes_case else MEASURED_SINCE

    def see(self, benchmark: Benchmark) -> Benchmark:
        """A benchmark as it sees the images: by its own processor, unless the benchmark says how."""
        return benchmark.for_model(self.classifier.processor.image_processor)

    def on(self, benchmark: Benchmark) -> ZeroShotClassifier:
        """It as a classifier of a benchmark's classes, the same one each time, which encodes them once."""
        prompts = digest([benchmark.class_names, benchmark.template])
        if prompts not in self._views:
            self._views[prompts] = self.classifier.with_classes(benchmark.class_names, benchmark.template)
        return self._views[prompts]

    def device(self, benchmark: Benchmark) -> torch.device:
        return self.classifier.model.device

    def why_no_gradient(self, benchmark: Benchmark) -> None:
        return None

    def settings(self, benchmark: Benchmark) -> dict:
        """What a row says of it as a classifier of a benchmark's classes."""
        scored = self.on(benchmark)
        return {
            "model": self.name,
            "revision": self.revision,
            "weights": self.weights,
            "configuration": self.configuration,
            "tokens": hash_prompts(scored),
            "dtype": str(scored.model.dtype).removeprefix("torch."),
            "templates": scored.templates,
            "image_mean": _rounded(scored.image_mean),
            "image_std": _rounded(scored.image_std),
        }

    def computes_with(self, benchmark: Benchmark) -> str:
        """What a row says of its configuration and tokens if it is attacked, or helps to attack, another model."""
        return digest([self.configuration, hash_prompts(self.on(benchmark))])

    def as_proxy(self) -> dict[str, str]:
        """What a row of an attack says of it that is made with it."""
        since = {} if self.measured_since == MEASURED_SINCE else {"proxy_hpt_version": self.measured_since}
        return {"proxy": self.name, "proxy_weights": self.weights} | since


def _rounded(statistics: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in statistics.flatten().tolist()]
