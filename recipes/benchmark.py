"""Time HPT-GPD's training step and PGD-10 at real size: ViT-B/32, ViT-B/16 proxy, random weights, images at 224.

    hpt benchmark --dataset tiny_imagenet=PATH
    hpt benchmark --dataset tiny_imagenet=PATH --batch_size 1 --steps 300 --rounds 0 --compile
    hpt benchmark --dataset tiny_imagenet=PATH --objectives tecoa hpt fare "0.5*hpt + tecoa"
    hpt benchmark --dataset cifar10=PATH --only_loading

Prints seconds per step, peak memory at the paper's batch size and what is in use as the steps go on; and, at a smaller
one, the ratio to the published order of work (all prompts re-encoded at every forward, padded to 77; `backward()` into
all weights in the attack; the proxy with gradients). Both are timed in turn within one run, so that the ratio holds on
a noisy machine. `--objectives` times steps of each objective in turn instead, beside the first, and `--only_loading`
the way of the test split's images from the file to the batch.
"""

from dataclasses import dataclass, field

from hpt import load_benchmark
from hpt.cli import parse_config, run_recipe
from hpt.training.speed import compare_objectives, compare_with_published, time_loading, time_steps
from hpt.training.sums import parse_terms


@dataclass
class Sizes:
    """What is timed, and at which size."""

    dataset: str = field(default="tiny_imagenet", metadata={"help": "Training benchmark, or NAME=PATH."})
    batch_size: int = field(default=64, metadata={"help": "Images per step."})
    steps: int = field(default=3, metadata={"help": "Steps to time."})
    compared_images: int = field(default=8, metadata={"help": "Images per step beside the published order of work."})
    compared_classes: int = field(default=25, metadata={"help": "Classes of that comparison."})
    rounds: int = field(default=3, metadata={"help": "Rounds of that comparison; 0 for none."})
    objectives: list[str] = field(
        default_factory=list, metadata={"help": "Time these beside each other instead; the first is the measure."}
    )
    precision: str = field(default="float32", metadata={"help": "Of the training: float32, bf16 or fp16."})
    compile: bool = field(default=False, metadata={"help": "Compile the towers, as --torch_compile does."})
    only_loading: bool = field(default=False, metadata={"help": "Time loading the test split, and nothing else."})


def main():
    (sizes, _) = parse_config((Sizes,))
    if sizes.only_loading:
        return time_loading(load_benchmark(sizes.dataset), sizes.batch_size, max(1, sizes.rounds))
    for text in sizes.objectives:
        parse_terms("objectives", text)  # refuses what isn't known, before anything is loaded
    train = load_benchmark(sizes.dataset, "train", protocol="pmg")
    settings = {"precision": sizes.precision, "compiled": sizes.compile}
    few = {"images": sizes.compared_images, "classes": sizes.compared_classes}
    if sizes.objectives:
        return compare_objectives(train, sizes.objectives, **few, rounds=max(1, sizes.rounds), **settings)
    time_steps(train, batch_size=sizes.batch_size, steps=sizes.steps, **settings)
    if sizes.rounds:
        compare_with_published(train, **few, rounds=sizes.rounds, **settings)


if __name__ == "__main__":
    run_recipe(main)
