"""A proxy of your own: an ordinary ResNet-50, trained with labels on ImageNet, teaches a CLIP.

    python examples/own_proxy.py

A proxy is any function of images in [0, 1] to logits over the training classes, in the order of the labels. It is
asked without gradients, so it may be anything: a model of another library, a remote one, or several in one.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPModel, CLIPProcessor

from hpt import HPTConfig, HPTTrainer, load_benchmark
from hpt.cli import run_recipe
from hpt.errors import InputError


class SupervisedProxy(nn.Module):
    """An image classifier of transformers, over those of its classes that a training set has, by their names."""

    def __init__(self, name: str, class_names: list[str]):
        super().__init__()
        self.model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        self.register_buffer("mean", torch.tensor(processor.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(processor.image_std).view(3, 1, 1))
        numbers = {label.split(",")[0]: number for number, label in self.model.config.id2label.items()}  # tench, Tinca
        if missing := [name for name in class_names if name not in numbers]:
            raise InputError(f"{name} knows no {missing[0]}: give a classifier of the training classes.")
        self.columns = [numbers[name] for name in class_names]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = F.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return self.model((images - self.mean) / self.std).logits[:, self.columns]


def main(
    target="openai/clip-vit-base-patch32",
    proxy="microsoft/resnet-50",
    dataset="tiny_imagenet",
    output_dir="outputs/own_proxy",
    **settings,
):
    train = load_benchmark(dataset, "train")
    trainer = HPTTrainer(
        model=CLIPModel.from_pretrained(target),
        args=HPTConfig(output_dir, **settings),
        proxy=SupervisedProxy(proxy, train.class_names),
        processing_class=CLIPProcessor.from_pretrained(target),
        train_dataset=train,
    )
    trainer.train(resume_from_checkpoint="last")
    trainer.save_model(f"{output_dir}/robust")
    print(f"The robust model, with a card that names its proxy: {output_dir}/robust")


if __name__ == "__main__":
    run_recipe(main)
