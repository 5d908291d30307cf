"""What `HPTTrainer.evaluate()` and `predict()` measure: clean accuracy, and robust accuracy under PGD in float32."""

import torch

from hpt.attacks import Attack
from hpt.data.benchmark import Benchmark
from hpt.evaluation.scoring import score_batch
from hpt.models.classifier import ZeroShotClassifier
from hpt.prompts import list_templates


class RobustEvaluation:
    """The target over the classes of whatever set is evaluated.

    Args:
        classifier ([`ZeroShotClassifier`]): The target over the training classes.
        template (`str` or `list[str]`): Of classes that a mixture has no prompts for.

    Attributes:
        classifier ([`ZeroShotClassifier`]): The target over the classes of the set that was last begun.
    """

    def __init__(self, classifier: ZeroShotClassifier, template: str | list[str]):
        self._target = self.classifier = classifier
        self._default = list_templates(template)

    def begin(self, benchmark: Benchmark) -> None:
        """Predict the classes of a benchmark from here on; its prompts are encoded by the text tower as it is now."""
        template, own = benchmark.template, self._target.templates
        if template is None and isinstance(own, dict):  # each class of a mixture has the prompts of its sets
            template = {name: own.get(name, self._default) for name in benchmark.class_names}
        self.classifier = self._target.with_classes(benchmark.class_names, template)

    def score(self, attack: Attack, batch: dict) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Logits of a batch's clean and adversarial images, and its labels; an image that is wrong stays as it is.

        The classifier attacked is the one scored: unwrapped, not compiled, and outside autocast, so in float32.
        """
        with torch.compiler.set_stance("force_eager"):
            clean = score_batch(self.classifier, None, batch).logits
            robust, right = clean.clone(), clean.argmax(-1) == batch["labels"]
            if right.any():
                robust[right] = score_batch(self.classifier, attack, batch, only=right).logits
        return (clean, robust), batch["labels"]


def keep_predictions(logits: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is kept of each batch's logits: the predicted classes, clean and adversarial."""
    return tuple(scores.argmax(-1) for scores in logits)


def measure_accuracies(prediction) -> dict[str, float]:
    """Clean and robust accuracy, in [0, 1], of an `EvalPrediction` with what [`keep_predictions`] keeps."""
    clean, robust = ((classes == prediction.label_ids).mean().item() for classes in prediction.predictions)
    return {"clean_accuracy": clean, "robust_accuracy": robust}
