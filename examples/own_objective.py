"""An objective of your own: TRADES on CLIP's zero-shot logits, trained, saved, and named by the model's card.

    python examples/own_objective.py

An objective says what a step minimises and what its attack maximises, and gives a loss for each image. All else,
stages, precision, checkpoints, cards, stays as it is for hpt's own objectives.
"""

import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPProcessor

from hpt import OBJECTIVES, HPTConfig, HPTTrainer, Objective, load_benchmark
from hpt.cli import run_recipe


class Trades(Objective):
    """TRADES (Zhang et al., 2019, arXiv 1901.08573, Eq. 5): `mean_i CE(T(x), y) + beta KL(T(x) || T(x_a))`.

    Args:
        beta (`float`, *optional*, defaults to 6.0): Weight of robustness, `1 / lambda` in the paper.
    """

    needs_labels = True
    arxiv = "1901.08573"

    def __init__(self, *, beta: float = 6.0):
        self.beta = beta

    def attack_loss(self, step, images) -> torch.Tensor:
        return self._divergence(step, images)  # from a random start, since it is 0, and flat, at x itself

    def __call__(self, step) -> torch.Tensor:
        natural = F.cross_entropy(step.target(step.images).logits, step.labels, reduction="none")  # CE(T(x), y)
        return natural + self.beta * self._divergence(step, step.adversarial)

    def _divergence(self, step, images) -> torch.Tensor:
        clean, moved = (F.log_softmax(step.target(seen).logits, dim=-1) for seen in (step.images, images))
        return F.kl_div(moved, clean, reduction="none", log_target=True).sum(-1)  # KL(T(x) || T(x_a))


def main(target="openai/clip-vit-base-patch32", dataset="tiny_imagenet", output_dir="outputs/trades", **settings):
    OBJECTIVES["trades"] = Trades
    one_stage = {"objective": "trades", "objective_args": "beta=6", "anchor_epochs": 0, "learning_rate": 5e-5}
    trainer = HPTTrainer(
        model=CLIPModel.from_pretrained(target),
        args=HPTConfig(output_dir, **one_stage | settings),
        processing_class=CLIPProcessor.from_pretrained(target),
        train_dataset=load_benchmark(dataset, "train"),
    )
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model(f"{output_dir}/robust")
    print(f"The robust model and its card, which names Trades: {output_dir}/robust")


if __name__ == "__main__":
    run_recipe(main)
