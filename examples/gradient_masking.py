"""What a model that only looks robust is told: mask the gradients of a vanilla CLIP, and evaluate it.

    python examples/gradient_masking.py     # after the quickstart, whose vanilla target it takes

Two masks that make no model more robust: logits times 10,000, where the softmax saturates, and pixels rounded to few
levels, through which no gradient passes.
"""

import math

from torch import nn

from hpt import RobustnessEvaluator, load_benchmark
from hpt.cli import check_quickstart, run_recipe
from hpt.evaluation.flags import find_flags
from hpt.evaluation.report import format_accuracies, format_flags
from hpt.models.loading import load_dual_encoder
from hpt.references import parse_model


TARGET = "outputs/quickstart/target"


class Quantised(nn.Module):
    """Embeddings of pixels that are rounded to a quarter of a standard deviation."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, pixel_values, **kwargs):
        return self.embeddings((pixel_values * 4).round() / 4, **kwargs)


def main():
    check_quickstart([parse_model(TARGET)])
    models = {name: load_dual_encoder(TARGET) for name in ("vanilla", "logits x 10,000", "quantised input")}
    models["logits x 10,000"][0].logit_scale.data += math.log(10_000)
    vision = models["quantised input"][0].vision_model
    vision.embeddings = Quantised(vision.embeddings)

    evaluator = RobustnessEvaluator(attacks=["pgd", "cw", "square:queries=1000"], eps=16 / 255)
    digits = load_benchmark("digits")
    rows = [row for name, (model, processor) in models.items() for row in evaluator(model, processor, digits, name)]
    print(f"\n{format_accuracies(rows)}\n\n{format_flags(find_flags(rows))}")


if __name__ == "__main__":
    run_recipe(main)
