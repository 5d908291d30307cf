"""The one way to attack a batch and score a classifier on it, for evaluator, comparison and trainer."""

from typing import NamedTuple

import torch

from hpt.attacks import Attack
from hpt.attacks.base import AttackResult, float_logits
from hpt.classifiers import Classifier
from hpt.data.images import to_unit_range


class Scores(NamedTuple):
    """What a classifier says of a batch, or of those of its images that were attacked.

    Args:
        images (`torch.Tensor` of shape `(n, 3, height, width)`): What it was shown, in [0, 1]: clean or adversarial.
        logits (`torch.Tensor` of shape `(n, classes)`): What it said, in float32.
        result ([`AttackResult`], *optional*): What the attack found.
    """

    images: torch.Tensor
    logits: torch.Tensor
    result: AttackResult | None = None


def score_batch(
    classifier: Classifier, attack: Attack | None, batch: dict, *, only: torch.Tensor | None = None
) -> Scores:
    """Attack a classifier on a batch, and score it on the adversarial images; without an attack, on the clean ones.

    Whether images that are wrong already are attacked is up to the caller, who says so in the row: an evaluation and
    the trainer attack those alone that are right, a comparison all.

    Args:
        classifier (`Callable`): From images in [0, 1] to logits; in eval mode, outside autocast.
        attack ([`Attack`], *optional*): Its noise follows from its seed and the samples' ids.
        batch (`dict`): As [`collate`] makes it, on the classifier's device: uint8 `pixel_values` of shape
            `(batch, 3, height, width)`, `labels` and `sample_ids` of shape `(batch,)`.
        only (`torch.Tensor` of shape `(batch,)`, bool, *optional*): Attack and score these images alone, at least one
            of them; the others are left alone. By default all.
    """
    images, labels, sample_ids = to_unit_range(batch["pixel_values"]), batch["labels"], batch["sample_ids"]
    if only is not None:
        images, labels, sample_ids = images[only], labels[only], sample_ids[only]
    if attack is None:
        return Scores(images, score_images(classifier, images))
    result = attack.perturb(classifier, images, labels, sample_ids)
    return Scores(result.images, score_images(classifier, result.images), result)


def score_images(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Logits of images in [0, 1], in float32 and without gradients."""
    with torch.no_grad():
        return float_logits(classifier)(images)
