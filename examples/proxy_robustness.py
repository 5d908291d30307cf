"""Proxy robustness, the phenomenon of the paper (arXiv 2601.12865): images made against one vanilla CLIP hardly fool
another, of a different architecture, though neither is robust.

    python examples/proxy_robustness.py
"""

import torch
from torch.utils.data import DataLoader

from hpt import PGD, load_benchmark, load_proxy
from hpt.cli import run_recipe
from hpt.data.images import collate, to_unit_range


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(
    target="openai/clip-vit-base-patch32", proxy="openai/clip-vit-base-patch16", dataset="cifar10", num_images=200
):
    benchmark = load_benchmark(dataset).subset(num_images)
    models = {"target": load_proxy(target), "proxy": load_proxy(proxy)}  # both frozen, as they were pretrained
    for name, model in models.items():
        models[name] = model.with_classes(benchmark.class_names, benchmark.template).to(DEVICE)
    for eps in (0, 1, 2, 4, 8):
        right = dict.fromkeys(models, 0)
        for batch in DataLoader(benchmark, batch_size=50, collate_fn=collate):
            images, labels = to_unit_range(batch["pixel_values"].to(DEVICE)), batch["labels"].to(DEVICE)
            attacked = PGD(eps=eps / 255, steps=10)(models["target"], images, labels) if eps else images
            for name, model in models.items():
                right[name] += (model(attacked).argmax(-1) == labels).sum().item()
        shares = ", ".join(f"{name} {100 * count / len(benchmark):.1f} %" for name, count in right.items())
        print(f"PGD-10 on the target at {eps}/255: {shares} right")


if __name__ == "__main__":
    run_recipe(main)
