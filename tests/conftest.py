"""Tiny models and datasets, made on the spot: nothing is downloaded."""

import os
import shutil
import time
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from PIL import Image  # noqa: E402
from stand_in_hub import TOKEN, stand_in_hub  # noqa: E402

from hpt import HPTConfig, HPTTrainer, ZeroShotClassifier  # noqa: E402
from hpt.modeling import save_finished  # noqa: E402
from hpt.pretraining import PretrainingConfig, build_clip  # noqa: E402


CLASSES = ["cat", "dog", "grey heron"]

datasets.disable_progress_bars()


def make_clip(seed: int = 0, **architecture):
    """A two-layer CLIP at 16 pixels with random weights, and its processor."""
    torch.manual_seed(seed)
    shape = {"image_size": 16, "patch_size": 8, "vision_hidden_size": 16, "vision_layers": 2, "projection_dim": 8}
    shape |= {"text_hidden_size": 16} | architecture
    return build_clip(PretrainingConfig(output_dir="unused", use_cpu=True, **shape))


def make_dataset(rows: int = 12, size: int = 16, seed: int = 0) -> datasets.Dataset:
    """Random images with labels 0, 1, 2, 0, ... that name [`CLASSES`]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    labels = [row % len(CLASSES) for row in range(rows)]
    return datasets.Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)


def save_images(folder, splits=("train",), kinds=("cat", "dog")):
    """A folder of images with a subfolder for each split, and in it one for each class."""
    for split in splits:
        for label, kind in enumerate(kinds):
            (folder / split / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (20, 16), (90 * label, 40 * number, 0)).save(folder / split / kind / f"{number}.png")
    return folder


def make_trainer(
    folder, model=None, dataset=None, eval_dataset=None, proxy=None, processor=None, **settings
) -> HPTTrainer:
    """A trainer of a tiny pair over 12 images: 3 steps an epoch, 2 + 2 epochs, unless told otherwise."""
    target, own_processor = make_clip(0)
    settings = {
        "anchor_epochs": 2,
        "transfer_epochs": 2,
        "anchor_learning_rate": 0.05,
        "learning_rate": 0.5,
        "warmup_steps": 1,
        "attack_eps": 8 / 255,
        "attack_step_size": 4 / 255,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    } | settings
    return HPTTrainer(
        model=target if model is None else model,
        args=HPTConfig(output_dir=str(folder), **settings),
        proxy=ZeroShotClassifier(*make_clip(1, patch_size=4)) if proxy is None else proxy,
        processing_class=own_processor if processor is None else processor,
        train_dataset=make_dataset() if dataset is None else dataset,
        eval_dataset=eval_dataset,
    )


@pytest.fixture
def classifier() -> ZeroShotClassifier:
    model, processor = make_clip(0)
    return ZeroShotClassifier(model.eval(), processor, CLASSES)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0])


# The Hub and what is pushed


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, which huggingface_hub takes for the Hub, with a user logged in."""
    with stand_in_hub(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        sleep = time.sleep  # between attempts to reach a Hub that is gone
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a trained model, with figures, beside what must not be pushed."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder)
    trainer.train()
    save_finished(trainer.model, trainer.processing_class, folder / "robust")
    trainer.describe(folder / "robust")
    for name in ("optimizer.pt", "training_args.bin", "notes.txt", "proxy/model.safetensors", "scheduler.pt"):
        (folder / "robust" / name).parent.mkdir(exist_ok=True)
        (folder / "robust" / name).write_bytes(b"private")
    return folder / "robust"


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run" / "robust"))
