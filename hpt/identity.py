"""What makes two runs the same run: the settings, data and models on which each of its numbers depends."""

import hashlib
import json

import numpy as np
import torch

from hpt.benchmarks import Benchmark
from hpt.config import MATHEMATICS, HPTConfig
from hpt.data import hash_samples
from hpt.modeling import ZeroShotClassifier, plain_weights
from hpt.streams import EpochStream


NOT_OF_AN_ADAPTER = {"base_model_name_or_path", "inference_mode", "peft_version", "revision", "auto_mapping"}


def describe_mathematics(args: HPTConfig, train: Benchmark | EpochStream, proxy: ZeroShotClassifier, model) -> dict:
    """Everything that fixes the numbers of a run, by readable name; hashes stand for data and weights.

    The target's own weights are left out, since a checkpoint has them; but for an adapter, they are its base's.
    """
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    described = {name: getattr(args, name) for name in MATHEMATICS}
    described |= {"global_batch_size": batch_size, "images_per_epoch": _images_per_epoch(args, len(train))}
    described |= {"train_dataset": _describe_data(train), "proxy": _describe_model(proxy.model)}
    if hasattr(model, "peft_config"):
        described["adapter_base"] = _describe_model(model)
        adapter = model.peft_config[model.active_adapter].to_dict()
        described |= {f"adapter.{name}": value for name, value in adapter.items() if name not in NOT_OF_AN_ADAPTER}
    return json.loads(
        json.dumps(described, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


def describe_launch(args: HPTConfig) -> dict:
    """How the work of a run is divided and computed, which changes no more than the order of rounding."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "torch_compile")
    return {name: getattr(args, name) for name in names} | {"device": args.device.type}


def _images_per_epoch(args: HPTConfig, images: int) -> int:
    """How many images an epoch takes; several processes fill up its last batches from its beginning."""
    batch_size = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last:
        return images // batch_size * batch_size
    return images if args.world_size == 1 else -(-images // batch_size) * batch_size


def _describe_data(train: Benchmark | EpochStream) -> str:
    """Of a stream only its name is known; of a benchmark all labels, and some images."""
    state = hashlib.sha256(json.dumps([train.class_names, str(train.transform)]).encode())
    if isinstance(train, EpochStream):
        return f"{len(train)} images an epoch of {train.name} ({train.split}), {state.hexdigest()[:12]}"
    state.update(np.asarray(train.dataset.with_format("numpy", columns=["label"])[:]["label"], np.int64).tobytes())
    some = np.unique(np.linspace(0, len(train) - 1, 16).astype(int))
    state.update(hash_samples(train.dataset.select(some)).encode())
    return f"{len(train)} images, {len(train.class_names)} classes, {state.hexdigest()[:12]}"


def _describe_model(model) -> str:
    state = hashlib.sha256()
    for name, weight in sorted(plain_weights(model).items()):
        state.update(name.encode() + str(weight.dtype).encode())
        state.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"{model.config.model_type}, {state.hexdigest()[:12]}"
