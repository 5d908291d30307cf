"""What makes two runs the same run: the settings, data and models on which each of its numbers depends."""

import hashlib
import json

import numpy as np
import torch
from transformers import TrainingArguments

from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ProcessorTransform
from hpt.data.images import hash_samples, read_labels
from hpt.data.streams import EpochStream
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.weights import architecture
from hpt.training.checkpoints import ADDED_SETTINGS


# What the configuration of an adapter says beside what it computes
NOT_OF_AN_ADAPTER = "base_model_name_or_path inference_mode peft_version revision auto_mapping megatron_core".split()


def describe_training(args: TrainingArguments, names: list[str], train: Benchmark | EpochStream) -> dict:
    """What fixes the numbers of any training: its settings `names`, and its data, by readable name.

    The global batch counts, and not how it is divided, unless an epoch's last batch is divided into unequal parts.
    """
    adam = "adam" in str(getattr(args.optim, "value", args.optim))
    described = {name: getattr(args, name) for name in names if adam or not name.startswith("adam_")}
    described["data_seed"] = args.seed if args.data_seed is None else args.data_seed
    described["use_seedable_sampler"] = args.accelerator_config.use_seedable_sampler
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    images = images_per_epoch(args, len(train))
    described |= {"global_batch_size": batch_size, "images_per_epoch": images, "train_dataset": _describe_data(train)}
    described["geometry"] = _describe_geometry(train)
    if images % batch_size:
        described["division of the last batch"] = describe_launch(args)
    if isinstance(train, EpochStream):
        described["shuffle_buffer_size"] = train.buffer_size
        described["dataloader_num_workers"] = args.dataloader_num_workers
    return described


def describe_launch(args: TrainingArguments) -> dict:
    """How the work of a run is divided and computed, which changes no more than the order of rounding."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "torch_compile")
    return {name: getattr(args, name) for name in names} | {"device": args.device.type}


def describe_target(classifier: ZeroShotClassifier) -> dict:
    """Of the target what a checkpoint doesn't have: classes, prompts and pixel statistics; also an adapter's base."""
    model = classifier.model
    described = {
        "classes": _hash([classifier.class_names, classifier.templates]),
        "target": _describe_shape(classifier),
    }
    if hasattr(model, "peft_config"):
        described["adapter_base"] = _hash_frozen(model)
        adapter = model.peft_config[model.active_adapter].to_dict()
        given = {name: value for name, value in adapter.items() if value and name not in NOT_OF_AN_ADAPTER}
        described |= {f"adapter.{name}": value for name, value in given.items()}
    return described


def describe_proxy(proxy: ZeroShotClassifier) -> str:
    """Family, shape and weights of a frozen proxy."""
    return f"{_describe_shape(proxy)}, weights {_hash_frozen(proxy.model)}"


def images_per_epoch(args: TrainingArguments, images: int) -> int:
    """How many images an epoch takes; several processes fill up its last batches from its beginning."""
    batch_size = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last:
        return images // batch_size * batch_size
    return images if args.world_size == 1 else -(-images // batch_size) * batch_size


def _describe_geometry(train: Benchmark | EpochStream) -> str:
    """That of the target's processor, or else what earlier checkpoints had: the data's description tells which."""
    return str(train.transform) if isinstance(train.transform, ProcessorTransform) else ADDED_SETTINGS["geometry"]


def _describe_data(train: Benchmark | EpochStream) -> str:
    """Of a stream only its name and files are known; of a benchmark all labels, and some images."""
    kinds = f"{len(train.class_names)} classes"
    if isinstance(train, EpochStream):
        files = train.stream.dataset.num_shards
        return f"{train.name} ({train.split}) streamed from {files} files, {kinds}, {_hash(repr(train.transform))}"
    labels = read_labels(train.dataset).astype(np.int64).tolist()
    some = np.unique(np.linspace(0, len(train) - 1, 16).astype(int))
    content = _hash([labels, repr(train.transform), hash_samples(train.dataset.select(some))])
    return f"{len(train)} images, {kinds}, {content}"


def _describe_shape(classifier: ZeroShotClassifier) -> str:
    statistics = [classifier.image_mean.flatten().tolist(), classifier.image_std.flatten().tolist()]
    shape = _hash([architecture(classifier.model), statistics, classifier.image_size])
    prompts = ", prompts in lower case" if classifier.changes_case else ""  # as they weren't in 0.2.0
    return f"{classifier.model.config.model_type} of shape {shape}{prompts}"


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _hash_frozen(model) -> str:
    state = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if not weight.requires_grad:
            state.update(f"{name} {weight.dtype}".encode())
            state.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()[:12]
