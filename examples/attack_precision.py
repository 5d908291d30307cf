"""How strong PGD is when it runs in 16 bits, and what a proxy teaches and a target learns in them, beside float32.

    python examples/attack_precision.py                                            # the quickstart's models
    python examples/attack_precision.py --models vanilla=outputs/cifar10/target --proxy proxy=outputs/cifar10/proxy \\
        --benchmark cifar10=PATH --eps 1/255

- For each model and `attack_dtype`, the attack of the training (2 steps of half eps) and the one of `evaluate()` (10
  steps): accuracy and mean cross-entropy of the adversarial images, both in float32, and the share of pixels that come
  out otherwise than under the float32 attack from the same random start.
- For each `proxy_dtype`, which the proxy's weights are in: its accuracy on clean images, the share on which its
  answer is that of float32, and the mean KL divergence from what it says in float32.
- For each model and precision of the training (`bf16`, `fp16`): HPT's loss on the first batch, and how far its
  gradient in the vision tower's weights is from the one in float32, over that one's length.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from hpt import PGD, ZeroShotClassifier, load_benchmark
from hpt.cli import check_quickstart, parse_config, run_recipe
from hpt.data.benchmark import Benchmark
from hpt.data.images import collate, to_unit_range
from hpt.models.loading import load_named, load_reference
from hpt.models.proxies import ask, over_classes
from hpt.radius import Fraction, Radius
from hpt.references import Reference, parse_model
from hpt.training.config import DTYPES
from hpt.training.objectives import kl_divergence


LOSS_SCALE = 2.0**10  # so that in float16 small gradients don't become zero, as `fp16` scales them too


@dataclass
class Precisions:
    models: list[str] = field(
        default_factory=lambda: ["vanilla=outputs/quickstart/target", "robust=outputs/quickstart/robust"],
        metadata={"help": "Models, each as NAME=PATH, a path or a Hub id."},
    )
    proxy: str = field(default="proxy=outputs/quickstart/proxy", metadata={"help": "What teaches, likewise."})
    benchmark: str = field(default="digits", metadata={"help": "Benchmark, NAME=PATH, or any other."})
    eps: Fraction = field(default="16/255", metadata={"help": "l_inf radius in [0, 1] pixels."})
    max_samples: int = field(default=360, metadata={"help": "Attack so many images, stratified by class."})
    batch_size: int = field(default=60, metadata={"help": "Images at once."})


def computing_in(dtype: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def attack_in(dtype: str, attack: PGD, classifier, batches: list[dict]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Adversarial images `(n, 3, height, width)` made in `dtype`; in float32, who is still right, and mean loss."""
    adversarial, right, losses = [], [], []
    for batch in batches:
        images, labels = to_unit_range(batch["pixel_values"]), batch["labels"]
        with computing_in(dtype, images.device):
            attacked = attack(classifier, images, labels, batch["sample_ids"])
        with torch.no_grad():
            logits = classifier(attacked)
        adversarial.append(attacked)
        right.append(logits.argmax(-1) == labels)
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(adversarial), torch.cat(right), torch.cat(losses).mean().item()


def compare_attacks(name: str, classifier, batches: list[dict], eps: Radius) -> None:
    """Print the rows of a model."""
    for attack in (PGD(eps=eps, steps=2, step_size=eps / 2), PGD(eps=eps, steps=10)):
        exact = None
        for dtype in DTYPES:
            images, right, loss = attack_in(dtype, attack, classifier, batches)
            exact = images if exact is None else exact
            accuracy, differ = (100 * share.float().mean().item() for share in (right, images != exact))
            print(f"| {name} | {attack.label} | {dtype} | {accuracy:.1f} | {loss:.4f} | {differ:.2f} |", flush=True)


def compare_proxies(reference: Reference, benchmark: Benchmark, batches: list[dict], device: str) -> None:
    """Print the rows of a proxy."""
    exact = None
    for dtype in DTYPES:
        model, processor = load_reference(reference, getattr(torch, dtype))
        proxy = over_classes(ZeroShotClassifier(model, processor), benchmark.class_names, benchmark.template).to(
            device
        )
        said = torch.cat([ask(proxy, to_unit_range(batch["pixel_values"])).logits for batch in batches])
        exact = said if exact is None else exact
        right = said.argmax(-1) == torch.cat([batch["labels"] for batch in batches])
        accuracy, same = (100 * share.float().mean().item() for share in (right, said.argmax(-1) == exact.argmax(-1)))
        apart = kl_divergence(said, exact).mean().item()  # KL(float32 || dtype)
        print(f"| {reference.name} | {dtype} | {accuracy:.1f} | {same:.1f} | {apart:.2g} |", flush=True)


def compare_gradients(name: str, classifier, proxy, batch: dict, eps: Radius) -> None:
    """Print the rows of a target that learns from a proxy."""
    images = to_unit_range(batch["pixel_values"])
    images = PGD(eps=eps, steps=2, step_size=eps / 2)(classifier, images, batch["labels"], batch["sample_ids"])
    taught, exact = ask(proxy, images).logits, None
    tower = [w for part in classifier.family.vision_modules(classifier.model) for w in part.parameters()]
    for weight in tower:
        weight.requires_grad_(True)
    for dtype in DTYPES:
        with computing_in(dtype, images.device):
            loss = kl_divergence(classifier(images), taught).mean()
        gradient = torch.autograd.grad(loss * LOSS_SCALE, tower)
        gradient = torch.cat([values.flatten() for values in gradient]).double() / LOSS_SCALE
        exact = gradient if exact is None else exact
        apart = 100 * ((gradient - exact).norm() / exact.norm()).item()
        print(f"| {name} | {dtype} | {loss.item():.4f} | {apart:.3f} |", flush=True)


def main():
    (settings, _) = parse_config((Precisions,))
    models, proxy = [parse_model(text) for text in settings.models], parse_model(settings.proxy)
    check_quickstart([*models, proxy])
    eps, device = Radius(settings.eps), "cuda" if torch.cuda.is_available() else "cpu"
    benchmark = load_benchmark(settings.benchmark).subset(settings.max_samples)
    loader = DataLoader(benchmark, settings.batch_size, collate_fn=collate)
    batches = [{name: values.to(device) for name, values in batch.items()} for batch in loader]
    print(f"{benchmark.name} {benchmark.split}, n = {len(benchmark)}, l_inf eps = {eps}\n")
    targets = {}
    for name, model in (load_named(reference, device) for reference in models):
        targets[name] = model.with_classes(benchmark.class_names, benchmark.template)
    print("| model | attack | attack_dtype | accuracy in % | mean loss | pixels that differ in % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, classifier in targets.items():
        compare_attacks(name, classifier, batches, eps)
    print("\n| proxy | proxy_dtype | clean accuracy in % | same answer in % | mean KL divergence |")
    print("| --- | --- | --- | --- | --- |")
    compare_proxies(proxy, benchmark, batches, device)
    print("\n| target | training | loss | gradient apart in % |")
    print("| --- | --- | --- | --- |")
    teacher = load_named(proxy, device)[1].with_classes(benchmark.class_names, benchmark.template)
    for name, classifier in targets.items():
        compare_gradients(name, classifier, teacher, batches[0], eps)


if __name__ == "__main__":
    run_recipe(main)
