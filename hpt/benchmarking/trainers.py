"""Trainers of random models on random images: what `Trainer` adds to a step, and how long it takes to begin."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PrinterCallback

from hpt.benchmarking.models import make_clip, make_training_set
from hpt.benchmarking.settings import PRECISIONS, Settings
from hpt.models.classifier import ZeroShotClassifier
from hpt.training.config import HPTConfig
from hpt.training.trainer import HPTTrainer


SMALL = {"models": "quickstart", "images": 32, "classes": 10, "image_size": None}  # settings of models that are quick


def prepare_trainer(settings: Settings, folder: str | Path, rows: int, **arguments) -> Callable[[], HPTTrainer]:
    """Models, images and settings of a trainer, and what makes it of them.

    It has one stage, HPT's transfer, and saves and logs nothing unless told to.

    Args:
        settings ([`Settings`]): Its models, classes, attack and precision.
        folder (`str` or `Path`): Its `output_dir`.
        rows (`int`): Images of its training set.
        arguments: Further fields of [`HPTConfig`].
    """
    architecture = settings.architecture
    target, processor = make_clip(settings, architecture.target_patch)
    proxy_model, proxy_processor = make_clip(settings, architecture.proxy_patch, PRECISIONS[settings.precision])
    target, proxy = target.cpu(), ZeroShotClassifier(proxy_model.cpu(), proxy_processor)  # as they are loaded
    train = make_training_set(rows, settings.classes, settings.side)
    arguments = {
        "anchor_epochs": 0,
        "transfer_epochs": 1,
        "warmup_steps": 0,
        "attack_steps": settings.attack_steps,
        "per_device_train_batch_size": settings.images,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "use_cpu": settings.device.type == "cpu",
    } | arguments
    args = HPTConfig(output_dir=str(folder), **arguments)

    def make() -> HPTTrainer:
        trainer = HPTTrainer(target, args, proxy, processor, train)
        trainer.remove_callback(PrinterCallback)  # whose line of the end would stand among the tables
        return trainer

    return make


def temporary_folder() -> TemporaryDirectory:
    """Where a trainer may write, gone in the end."""
    return TemporaryDirectory(prefix="hpt-benchmark-")
