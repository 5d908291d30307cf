"""Your own images, from a vanilla CLIP to a robust one with its card.

    python examples/own_images.py birds=PATH

`PATH` has `train/` and `test/` in it, each with a folder of images for every class. `hpt train` does the same, and
more; this is what happens in it.
"""

import sys

from transformers import CLIPModel, CLIPProcessor

from hpt import HPTConfig, HPTTrainer, RobustnessEvaluator, format_accuracies, load_benchmark, load_proxy
from hpt.cli import run_recipe
from hpt.hub.evaluations import add_evaluation


def main(
    images,
    target="openai/clip-vit-base-patch32",
    proxy="openai/clip-vit-base-patch16",
    output_dir="outputs/own_images",
    **settings,
):
    clip, processor = CLIPModel.from_pretrained(target), CLIPProcessor.from_pretrained(target)
    args = HPTConfig(output_dir, **settings)
    train, test = load_benchmark(images, "train"), load_benchmark(images)
    evaluator = RobustnessEvaluator(attacks=["pgd", "apgd"], eps=args.attack_eps)
    rows = evaluator(clip.to(args.device), processor, test, "vanilla")

    trainer = HPTTrainer(
        model=clip,
        args=args,
        proxy=load_proxy(proxy),
        processing_class=processor,
        train_dataset=train,
    )
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model(f"{output_dir}/robust")

    rows += (measured := evaluator(clip, processor, test, "robust"))
    print(f"\n{format_accuracies(rows)}\n")
    add_evaluation(trainer.describe(f"{output_dir}/robust"), rows, measured[0].weights)
    print(f"The robust model and its card, with these numbers: {output_dir}/robust")


if __name__ == "__main__":
    run_recipe(lambda: main(*sys.argv[1:]))
