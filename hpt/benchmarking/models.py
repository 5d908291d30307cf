"""What is measured on: CLIPs of real and of small shapes with random weights, and random images; nothing is read."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from hpt.data.benchmark import Benchmark
from hpt.data.images import to_unit_range
from hpt.errors import InputError
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import freeze_untrained
from hpt.training.pretraining import byte_tokenizer


@dataclass(frozen=True)
class Architecture:
    """Shapes of a target and of a proxy with other patches.

    Args:
        image_size, target_patch, proxy_patch (`int`): Sides in pixels.
        vision, text (`dict`): Where the towers' configurations differ from CLIP's ViT-B.
        projection_dim (`int`, *optional*, defaults to 512): Of the common embedding.
    """

    image_size: int
    target_patch: int
    proxy_patch: int
    vision: dict
    text: dict
    projection_dim: int = 512

    def check_size(self, image_size: int) -> None:
        """Refuse images that aren't whole patches; [`InputError`]."""
        for patch in (self.target_patch, self.proxy_patch):
            if image_size % patch:
                raise InputError(f"Images of {image_size} pixels aren't whole patches of {patch}: give a multiple.")


NARROW = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
ARCHITECTURES = {
    "vit_b": Architecture(224, 32, 16, {}, {}),
    "quickstart": Architecture(
        32, 8, 16, NARROW | {"num_hidden_layers": 2}, NARROW | {"num_hidden_layers": 1, "vocab_size": 514}, 64
    ),
}


def make_clip(settings, patch_size: int, dtype: torch.dtype | None = None) -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of the [`Settings`](settings.py), on their device, and its processor, which needs no download.

    Its weights are random, and the same for the same patch size on the same kind of device, but for a dtype of their
    own, if one is given.
    """
    architecture, image_size = settings.architecture, settings.side
    torch.manual_seed(patch_size)
    tokenizer, projection = byte_tokenizer(), {"projection_dim": architecture.projection_dim}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = architecture.vision | {"patch_size": patch_size, "image_size": image_size}
    config = CLIPConfig(
        vision_config=vision | projection, text_config=architecture.text | tokens | projection, **projection
    )
    side = {"height": image_size, "width": image_size}
    with settings.device:
        model = CLIPModel(config).eval().to(dtype or torch.float32)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)
    return model, CLIPProcessor(image_processor, tokenizer)


def name_classes(number: int) -> list[str]:
    return [f"thing {place}" for place in range(number)]


class Pair(NamedTuple):
    """A target whose vision tower trains, and a frozen proxy, over the same classes.

    Args:
        target, proxy ([`ZeroShotClassifier`]): On the device that is measured.
    """

    target: ZeroShotClassifier
    proxy: ZeroShotClassifier

    def with_classes(self, number: int) -> "Pair":
        """The same models over so many classes."""
        return Pair(*(model.with_classes(name_classes(number)) for model in self))


def make_pair(settings, dtype: torch.dtype | None = None) -> Pair:
    """Target and proxy of the [`Settings`](settings.py), as a trainer prepares them.

    The proxy's weights are in a dtype, if one is given, as `--proxy_dtype` has it: autocast leaves it alone.
    """
    architecture, names = settings.architecture, name_classes(settings.classes)
    models = [
        ZeroShotClassifier(*make_clip(settings, patch, own), names)
        for patch, own in ((architecture.target_patch, None), (architecture.proxy_patch, dtype))
    ]
    freeze_untrained(models[0].model, "vision")
    models[1].requires_grad_(False)
    return Pair(*models)


class Samples(NamedTuple):
    """The batch of a step.

    Args:
        images (`torch.Tensor` of shape `(batch, 3, height, width)`): In [0, 1].
        labels (`torch.Tensor` of shape `(batch,)`): Their classes.
        ids (`torch.Tensor` of shape `(batch,)`): What fixes the attack's noise.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor


def draw_samples(settings) -> Samples:
    """Random images and labels, the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    shape = (settings.images, 3, settings.side, settings.side)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, settings.classes, (settings.images,), generator=generator)
    device = settings.device
    return Samples(to_unit_range(pixels.to(device)), labels.to(device), torch.arange(settings.images))


def make_training_set(rows: int, classes: int, image_size: int) -> Benchmark:
    """Random images as JPEG files of the input's size, each of its own bytes, which are decoded as any others are.

    There are at most 256 different pictures: behind the end of its picture, each file has its row's number.
    """
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(min(rows, 256)):
        content = io.BytesIO()
        pixels = generator.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "JPEG")
        pictures.append(content.getvalue())
    files = [pictures[row % len(pictures)] + row.to_bytes(4, "big") for row in range(rows)]
    names = name_classes(classes)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": file, "path": None} for file in files],
        "label": [row % classes for row in range(rows)],
    }
    return Benchmark("random", "train", datasets.Dataset.from_dict(columns, features), names, None)
