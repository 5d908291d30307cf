"""How far what users see through the saved processor, which resizes by PIL, is from what was trained and measured.

The classifier resizes and normalises within torch, so that attacks can differentiate it; `CLIPProcessor` does it
before, on the image. For images of the model's own size, or of datasets without a record, both give the same pixels.
"""

import numpy as np
import torch

from hpt.data.benchmark import Benchmark
from hpt.data.images import to_unit_range
from hpt.json_files import check_kinds, unsealed
from hpt.models.classifier import ZeroShotClassifier


SHARES = ("accuracy", "accuracy_by_processor", "same_prediction")
DIFFERENCES = ("mean_difference", "largest_difference", "logit_range")
AGREEMENT = {"benchmark": str, "split": str, "n": int} | dict.fromkeys(SHARES + DIFFERENCES, float)


@torch.no_grad()
def compare_with_processor(
    classifier: ZeroShotClassifier, benchmark: Benchmark, max_samples: int = 512, batch_size: int = 64
) -> dict:
    """Classify images as the classifier does, and from the pixels that its processor makes for `model(**inputs)`.

    Args:
        classifier ([`ZeroShotClassifier`]): The model with its processor; its classes don't matter.
        benchmark ([`Benchmark`]): Images, of which the first way has the benchmark's transform.
        max_samples (`int`, *optional*, defaults to 512): Use so many of them, evenly spaced.
        batch_size (`int`, *optional*): Images per batch.

    Returns:
        `dict`: `accuracy` and `accuracy_by_processor`, the share `same_prediction`, and over all logits their
        `mean_difference`, `largest_difference` and `logit_range`; `benchmark`, `split` and `n`.
    """
    rows = np.unique(np.linspace(0, len(benchmark) - 1, min(max_samples, len(benchmark))).astype(int))
    benchmark = benchmark.for_model(classifier.processor.image_processor).rows(rows)
    classifier = classifier.with_classes(benchmark.class_names, benchmark.template)
    model, processor = classifier.model, classifier.processor
    unchanged = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}  # its processor has normalised already
    on_processed = ZeroShotClassifier(model, processor, benchmark.class_names, classifier.templates, **unchanged)
    ours, theirs = [], []
    for start in range(0, len(benchmark), batch_size):
        chunk = list(range(start, min(start + batch_size, len(benchmark))))
        pixels = torch.stack([row["pixel_values"] for row in benchmark.__getitems__(chunk)])
        ours.append(classifier(to_unit_range(pixels.to(model.device))).float().cpu())
        images = [image.convert("RGB") for image in benchmark.dataset[chunk]["image"]]
        inputs = processor.image_processor(images=images, return_tensors="pt").to(model.device)
        theirs.append(on_processed(inputs["pixel_values"]).float().cpu())
    ours, theirs, labels = torch.cat(ours), torch.cat(theirs), torch.tensor(benchmark.dataset["label"][:])
    difference = (ours - theirs).abs()
    return {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "n": len(benchmark),
        "accuracy": (ours.argmax(1) == labels).float().mean().item(),
        "accuracy_by_processor": (theirs.argmax(1) == labels).float().mean().item(),
        "same_prediction": (ours.argmax(1) == theirs.argmax(1)).float().mean().item(),
        "mean_difference": difference.mean().item(),
        "largest_difference": difference.max().item(),
        "logit_range": (ours.max() - ours.min()).item(),
    }


def parse_agreement(value: object) -> dict:
    """What [`compare_with_processor`] gave, from a value of JSON; `ValueError` saying what of it can't be."""
    agreement = unsealed(value)
    if set(agreement) != set(AGREEMENT):
        raise ValueError(f"it doesn't have {', '.join(AGREEMENT)}")
    check_kinds(agreement, AGREEMENT)
    for name in SHARES:
        if not 0 <= agreement[name] <= 1:
            raise ValueError(f"{name} is {agreement[name]}, but must be in [0, 1]")
    return agreement
