"""What two small test-time defences are worth, by the naive protocol and by an adaptive one.

    python examples/test_time_defence.py                                                # the quickstart's robust model
    python examples/test_time_defence.py --model outputs/cifar10/robust --benchmark cifar10=PATH --eps 4/255

The naive protocol attacks the model without its defence, and scores the defended one on the images: this attacker
doesn't know the defence. The adaptive one attacks through the defence, and averages gradients over its draws (EOT).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpt import RobustnessEvaluator, ZeroShotClassifier, load_benchmark
from hpt.attacks import straight_through
from hpt.classifiers import draw_uniform
from hpt.cli import check_quickstart, parse_config, run_recipe
from hpt.evaluation.flags import find_flags
from hpt.evaluation.report import format_accuracies, format_flags
from hpt.models.loading import load_named
from hpt.radius import Fraction, Radius
from hpt.references import parse_model


@dataclass
class Settings:
    model: str = field(default="outputs/quickstart/robust", metadata={"help": "What to defend: a path or a Hub id."})
    benchmark: str = field(default="digits", metadata={"help": "Benchmark, NAME=PATH, or any other."})
    eps: Fraction = field(default="16/255", metadata={"help": "l_inf radius, of attacks and counter-perturbations."})
    naive: str = field(default="pgd", metadata={"help": "Attack on the model without its defence."})
    adaptive: str = field(default="pgd:eot=10", metadata={"help": "Attack through the defence."})
    max_samples: int = field(default=120, metadata={"help": "Attack so many images, stratified by class."})
    batch_size: int = field(default=60, metadata={"help": "Images at once: unrolling takes memory."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder in which a killed evaluation goes on."})


class Defence(nn.Module):
    """A model behind a change of its images that is drawn anew each time; `settings` are that change's."""

    randomised = True

    def __init__(self, model: ZeroShotClassifier, **settings):
        super().__init__()
        self.model, self.settings = model, settings

    def with_classes(self, class_names: list[str], template=None) -> "Defence":
        return type(self)(self.model.with_classes(class_names, template), **self.settings)

    def forward(self, images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return self.model(self.change(images, seeds, **self.settings))


class RandomResize(Defence):
    """Each image is shrunk by chance and put anywhere on black (after Xie et al., 2018, arXiv 1711.01991)."""

    def change(self, images: torch.Tensor, seeds: torch.Tensor, least: float = 0.75) -> torch.Tensor:
        size, x, y = draw_uniform(seeds, 3).to(images).T
        size = least + (1 - least) * size
        x, y = ((1 - size) * (2 * place - 1) for place in (x, y))  # of the centre, in [-1, 1]
        none = torch.zeros_like(size)
        source = torch.stack([1 / size, none, -x / size, none, 1 / size, -y / size], 1).view(-1, 2, 3)
        grid = F.affine_grid(source, images.shape, align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class CounterPerturbation(Defence):
    """Each image is moved, within a ball, to where its embedding is far from the one that it came with.

    After the counterattacks of Xing et al. (2025, arXiv 2503.03613), without their choice of the images to move. With
    `unrolled`, an attack sees how the movement depends on the image; without, it takes the movement as given.
    """

    def change(self, images: torch.Tensor, seeds: torch.Tensor, eps: float, unrolled: bool) -> torch.Tensor:
        noise = eps * (2 * draw_uniform(seeds, *images.shape[1:]).to(images) - 1)
        # Scored, it runs without gradients, and needs its own; fused attention has no second ones
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            start = images if images.requires_grad else images.detach().requires_grad_()
            seen, moved = self.model.image_embeds(start), start + noise
            for _ in range(2):
                distance = (self.model.image_embeds(moved) - seen).square().sum()
                follow = unrolled and images.requires_grad
                (gradient,) = torch.autograd.grad(distance, moved, create_graph=follow)
                moved = _step(moved, gradient, start, eps)
        return moved.clamp(0, 1)


def _signed(moved: torch.Tensor, gradient: torch.Tensor, start: torch.Tensor, eps: float) -> torch.Tensor:
    return start + (moved + eps * gradient.sign() - start).clamp(-eps, eps)


def _smooth(moved: torch.Tensor, gradient: torch.Tensor, start: torch.Tensor, eps: float) -> torch.Tensor:
    return moved + eps * F.normalize(gradient.flatten(1), p=torch.inf).view_as(gradient)


_step = straight_through(_signed, _smooth)  # sign and clamp have no gradient that an attack could follow


def main():
    (settings, _) = parse_config((Settings,))
    reference = parse_model(settings.model)
    check_quickstart([reference])
    _, model = load_named(reference, "cuda" if torch.cuda.is_available() else "cpu")
    eps = float(Radius(settings.eps))
    defences = {
        "random resize": RandomResize(model),
        "counter-perturbation": CounterPerturbation(model, eps=eps, unrolled=True),
        "counter-perturbation, not unrolled": CounterPerturbation(model, eps=eps, unrolled=False),
    }
    common = {"eps": eps, "max_samples": settings.max_samples, "batch_size": settings.batch_size}
    common["output_dir"] = settings.output_dir
    naive = RobustnessEvaluator(attacks=settings.naive, **common)
    adaptive = RobustnessEvaluator(attacks=settings.adaptive, **common)
    benchmark = load_benchmark(settings.benchmark)
    rows = naive(classifier=model, benchmarks=benchmark, name="undefended")
    for name, defence in defences.items():
        defended = {"classifier": defence, "benchmarks": benchmark, "name": name}
        rows += naive(**defended, attacked=model, attacked_name="undefended")
        rows += adaptive(**defended)
    print(f"\n{format_accuracies(rows)}\n\n{format_flags(find_flags(rows))}")


if __name__ == "__main__":
    run_recipe(main)
