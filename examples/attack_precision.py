"""How strong PGD is when it runs in 16 bits, scored in float32.

    python examples/attack_precision.py                                            # the quickstart's models
    python examples/attack_precision.py --models vanilla=outputs/cifar10/target --benchmark cifar10=PATH --eps 1/255

For each model and `attack_dtype`, the attack of the training (2 steps of half eps) and the one of `evaluate()` (10
steps): accuracy and mean cross-entropy of the adversarial images, both in float32, and the share of pixels that come
out otherwise than under the float32 attack from the same random start.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from hpt import PGD, load_benchmark
from hpt.cli import check_quickstart, parse_config, run_recipe
from hpt.data.images import collate, to_unit_range
from hpt.models.loading import load_named
from hpt.radius import Fraction, Radius
from hpt.references import parse_model
from hpt.training.config import DTYPES


@dataclass
class Precisions:
    models: list[str] = field(
        default_factory=lambda: ["vanilla=outputs/quickstart/target", "robust=outputs/quickstart/robust"],
        metadata={"help": "Models, each as NAME=PATH, a path or a Hub id."},
    )
    benchmark: str = field(default="digits", metadata={"help": "Benchmark, NAME=PATH, or any other."})
    eps: Fraction = field(default="16/255", metadata={"help": "l_inf radius in [0, 1] pixels."})
    max_samples: int = field(default=360, metadata={"help": "Attack so many images, stratified by class."})
    batch_size: int = field(default=60, metadata={"help": "Images at once."})


def attack_in(dtype: str, attack: PGD, classifier, batches: list[dict]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Adversarial images `(n, 3, height, width)` made in `dtype`; in float32, who is still right, and mean loss."""
    adversarial, right, losses = [], [], []
    for batch in batches:
        images, labels = to_unit_range(batch["pixel_values"]), batch["labels"]
        with torch.autocast(images.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            attacked = attack(classifier, images, labels, batch["sample_ids"])
        with torch.no_grad():
            logits = classifier(attacked)
        adversarial.append(attacked)
        right.append(logits.argmax(-1) == labels)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(adversarial), torch.cat(right), torch.cat(losses).mean().item()


def main():
    (settings, _) = parse_config((Precisions,))
    models = [parse_model(text) for text in settings.models]
    check_quickstart(models)
    eps, device = Radius(settings.eps), "cuda" if torch.cuda.is_available() else "cpu"
    benchmark = load_benchmark(settings.benchmark).subset(settings.max_samples)
    loader = DataLoader(benchmark, settings.batch_size, collate_fn=collate)
    batches = [{name: values.to(device) for name, values in batch.items()} for batch in loader]
    print(f"{benchmark.name} {benchmark.split}, n = {len(benchmark)}, l_inf eps = {eps}\n")
    print("| model | attack | attack_dtype | accuracy in % | mean loss | pixels that differ in % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for reference in models:
        name, model = load_named(reference, device)
        classifier = model.with_classes(benchmark.class_names, benchmark.template)
        for attack in (PGD(eps=eps, steps=2, step_size=eps / 2), PGD(eps=eps, steps=10)):
            exact = None
            for dtype in DTYPES:
                images, right, loss = attack_in(dtype, attack, classifier, batches)
                exact = images if exact is None else exact
                accuracy, differ = (100 * share.float().mean().item() for share in (right, images != exact))
                print(
                    f"| {name} | {attack.label} | {dtype} | {accuracy:.1f} | {loss:.4f} | {differ:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    run_recipe(main)
