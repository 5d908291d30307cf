"""The one way to attack a batch and score a classifier on it, for evaluator, comparison and trainer.

A randomised classifier is scored several times, each time with draws that no attack has seen. Its accuracy is the mean
over these evaluations. It estimates the probability of being right that is left when an attacker has chosen the image
and chance comes after: the adversarial risk of a randomised classifier (Pinot et al., 2020, arXiv 2002.11565).
AutoAttack's "rand" version decides by the draws of the attack itself.
"""

from typing import NamedTuple

import torch

from hpt.attacks import Attack
from hpt.attacks.base import AttackResult
from hpt.attacks.queries import float_logits
from hpt.classifiers import VERDICTS, Classifier, draw_seeds, is_randomised
from hpt.data.images import to_unit_range
from hpt.precision import exact_convolutions


class Scores(NamedTuple):
    """What a classifier says of a batch, or of those of its images that were attacked.

    Args:
        images (`torch.Tensor` of shape `(n, 3, height, width)`): What it was shown, in [0, 1]: clean or adversarial.
        evaluations (`torch.Tensor` of shape `(evaluations, n, classes)`): What it said each time, in float32.
        result ([`AttackResult`], *optional*): What the attack found.
    """

    images: torch.Tensor
    evaluations: torch.Tensor
    result: AttackResult | None = None

    @property
    def logits(self) -> torch.Tensor:
        """What it said first, `(n, classes)`; all that a classifier has to say that isn't randomised."""
        return self.evaluations[0]


@exact_convolutions()
def score_batch(
    classifier: Classifier,
    attack: Attack | None,
    batch: dict,
    *,
    only: torch.Tensor | None = None,
    attacked: Classifier | None = None,
    seed: int = 0,
    evaluations: int = 1,
    batch_size: int | None = None,
) -> Scores:
    """Attack a classifier on a batch, and score it on the adversarial images; without an attack, on the clean ones.

    Float32 is float32 on a GPU too, in convolutions as in products: see `hpt.precision`.

    Whether images that are wrong already are attacked is up to the caller, who says so in the row: an evaluation and
    the trainer attack those alone that are right, a comparison all.

    Args:
        classifier (`Callable`): From images in [0, 1] to logits; in eval mode, outside autocast.
        attack ([`Attack`], *optional*): Its noise follows from its seed and the samples' ids.
        batch (`dict`): As [`collate`] makes it, on the classifier's device: uint8 `pixel_values` of shape
            `(batch, 3, height, width)`, `labels` and `sample_ids` of shape `(batch,)`.
        only (`torch.Tensor` of shape `(batch,)`, bool, *optional*): Attack and score these images alone, at least one
            of them; the others are left alone. By default all.
        attacked (`Callable`, *optional*): What the attack sees instead of the classifier that is scored.
        seed, evaluations, batch_size (`int`, *optional*): As of [`evaluate_images`].
    """
    images, labels, sample_ids = to_unit_range(batch["pixel_values"]), batch["labels"], batch["sample_ids"]
    if only is not None:
        images, labels, sample_ids = images[only], labels[only], sample_ids[only]
    if attack is None:
        return Scores(images, evaluate_images(classifier, images, sample_ids, seed, evaluations, batch_size))
    result = attack.perturb(attacked or classifier, images, labels, sample_ids, None, batch_size)
    logits = evaluate_images(classifier, result.images, sample_ids, seed, evaluations, batch_size)
    return Scores(result.images, logits, result)


@exact_convolutions()
def evaluate_images(
    classifier: Classifier,
    images: torch.Tensor,
    sample_ids: torch.Tensor,
    seed: int = 0,
    evaluations: int = 1,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Logits of images in [0, 1], in float32 and without gradients, `(evaluations, n, classes)`.

    Args:
        classifier (`Callable`): One that isn't randomised says the same each time, and is asked once.
        images (`torch.Tensor` of shape `(n, 3, height, width)`): What it is shown.
        sample_ids (`torch.Tensor` of shape `(n,)`): What fixes, with `seed`, each image's draws.
        seed (`int`, *optional*, defaults to 0): Of the evaluation.
        evaluations (`int`, *optional*, defaults to 1): How often a randomised classifier is asked.
        batch_size (`int`, *optional*): Most images that it is shown at once; by default all.
    """
    if not is_randomised(classifier):
        return score_images(classifier, images, batch_size=batch_size)[None]
    seeds = [draw_seeds(seed, sample_ids, VERDICTS, number) for number in range(evaluations)]
    return torch.stack([score_images(classifier, images, drawn, batch_size) for drawn in seeds])


def score_images(
    classifier: Classifier,
    images: torch.Tensor,
    seeds: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Logits of images in [0, 1], in float32 and without gradients; of a randomised classifier, with these seeds."""
    with torch.no_grad():
        return float_logits(classifier, batch_size=batch_size)(images, seeds)
