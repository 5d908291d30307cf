"""Tiny models and datasets, made on the spot: nothing is downloaded."""

import gc
import os
import shutil
import tempfile
import time
from pathlib import Path


HOME = tempfile.TemporaryDirectory()
os.environ.setdefault("HF_HOME", HOME.name)  # what tests keep there goes with them; those beside this one share it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import CLASSES, make_benchmark, make_clip, make_trainer  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from stand_in_hub import TOKEN, stand_in_hub  # noqa: E402

from hpt import ZeroShotClassifier  # noqa: E402
from hpt.data.benchmark import Benchmark  # noqa: E402
from hpt.evaluation.subject import Subject  # noqa: E402
from hpt.models.loading import load_dual_encoder, save_finished  # noqa: E402
from hpt.models.lora import add_lora  # noqa: E402


datasets.disable_progress_bars()
# Seconds that a stream waits at its end, or Arrow's threads could abort a Python that ends right then: 5 by default
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.2


def pytest_collection_finish() -> None:
    """Accelerate collects garbage at each training's start, which would go through all that was imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def classifier() -> ZeroShotClassifier:
    model, processor = make_clip(0)
    return ZeroShotClassifier(model.eval(), processor, CLASSES)


@pytest.fixture
def subject(classifier) -> Subject:
    return Subject(classifier, "mine")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0])


@pytest.fixture
def benchmark() -> Benchmark:
    return make_benchmark()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a tiny CLIP."""
    folder = tmp_path_factory.mktemp("models") / "target"
    save_finished(*make_clip(0), folder)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folders of a tiny CLIP and of an adapter on it."""
    folder = tmp_path_factory.mktemp("models")
    save_finished(*make_clip(0), folder / "base")
    model, processor = load_dual_encoder(str(folder / "base"))
    save_finished(add_lora(model, rank=2), processor, folder / "adapter")
    return folder


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
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
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
