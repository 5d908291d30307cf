"""What makes two runs the same run: the settings, data and models on which each of its numbers depends."""

import hashlib
import json
import logging

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from hpt.data.benchmark import Benchmark
from hpt.data.epochs import EpochMixture
from hpt.data.geometry import ProcessorTransform
from hpt.data.hashing import hash_samples
from hpt.data.images import read_labels
from hpt.data.streams import EpochStream, identify_stream
from hpt.evaluation.row_settings import hash_benchmark
from hpt.json_files import digest
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.identity import hash_configuration, hash_prompts
from hpt.models.proxies import FunctionProxy, parts_of, zero_shot_parts
from hpt.models.weights import architecture, hash_weights, normalizers
from hpt.training.checkpoints import ADDED_SETTINGS
from hpt.training.config import MATHEMATICS, HPTConfig


logger = logging.getLogger(__name__)

# What the configuration of an adapter says beside what it computes
NOT_OF_AN_ADAPTER = "base_model_name_or_path inference_mode peft_version revision auto_mapping megatron_core".split()


def describe_training(
    args: TrainingArguments, names: list[str], train: Benchmark | EpochStream | EpochMixture
) -> dict:
    """What fixes the numbers of any training: its settings `names`, and its data, by readable name.

    The global batch counts, and not how it is divided, unless an epoch's last batch is divided into unequal parts.
    """
    adam = "adam" in str(getattr(args.optim, "value", args.optim))
    described = {name: getattr(args, name) for name in names if adam or not name.startswith("adam_")}
    described["data_seed"] = data_seed(args)
    described["use_seedable_sampler"] = args.accelerator_config.use_seedable_sampler
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    images = images_per_epoch(args, len(train))
    described |= {"global_batch_size": batch_size, "images_per_epoch": images}
    described |= _describe_mixture(train) if isinstance(train, EpochMixture) else _describe_set(train)
    if images % batch_size:
        described["division of the last batch"] = describe_launch(args)
    if isinstance(train, EpochStream):
        described["shuffle_buffer_size"] = train.buffer_size
        described["dataloader_num_workers"] = args.dataloader_num_workers
    return described


def describe_robust_training(
    args: HPTConfig,
    train: Benchmark | EpochStream | EpochMixture,
    target: ZeroShotClassifier,
    proxy: nn.Module | None,
    original: ZeroShotClassifier | None,
    vanilla_weights: str,
) -> dict:
    """What fixes the numbers of a run of [`HPTTrainer`], by readable name; `vanilla_weights` is a hash."""
    described = describe_training(args, MATHEMATICS, train) | describe_target(target, vanilla_weights)
    if args.kl_reduction == "mean" and _has_uneven_micro_batches(args, len(train)):
        described["micro-batches weigh"] = "by their images"
    if args.needs_proxy:
        described |= {"proxy": describe_proxy(proxy), "proxy_models": identify_proxy(proxy)}
    if original is not None:
        described["original"] = vanilla_weights
    return described


def _has_uneven_micro_batches(args: TrainingArguments, images: int) -> bool:
    """Whether an epoch's last optimizer step has a micro-batch that is smaller than the step's others."""
    batches, rest = divmod(images_per_epoch(args, images), args.train_batch_size)
    return rest > 0 and batches % args.gradient_accumulation_steps > 0


def data_seed(args: TrainingArguments) -> int:
    """What the order of the training images comes from, and how they are augmented."""
    return args.seed if args.data_seed is None else args.data_seed


def describe_launch(args: TrainingArguments) -> dict:
    """How the work of a run is divided and computed, which changes no more than the order of rounding."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "torch_compile")
    return {name: getattr(args, name) for name in names} | {"device": args.device.type}


def describe_target(classifier: ZeroShotClassifier, vanilla_weights: str) -> dict:
    """The target as training begins with it, with classes, prompts and pixel statistics; also an adapter's base.

    `vanilla_weights` is the hash of its weights then: a checkpoint brings weights of its own.
    """
    model = classifier.model
    described = {
        "classes": _hash([classifier.class_names, classifier.templates]),
        "target": _describe_shape(classifier),
        "target_weights": vanilla_weights,
        "target_configuration": hash_configuration(classifier, training=True),
        "target_tokens": hash_prompts(classifier) if classifier.class_names else None,
    }
    if normalizers(model):
        described["batch_norm"] = "by its pretrained statistics"
    if hasattr(model, "peft_config"):
        described["adapter_base"] = _hash_frozen(model)
        adapter = model.peft_config[model.active_adapter].to_dict()
        given = {name: value for name, value in adapter.items() if value and name not in NOT_OF_AN_ADAPTER}
        described |= {f"adapter.{name}": value for name, value in given.items()}
    return described


def describe_proxy(proxy: nn.Module) -> str:
    """Family, shape and weights of a frozen proxy, or of several in order."""
    return " + ".join(map(_describe_part, parts_of(proxy)))


def _describe_part(part: nn.Module) -> str:
    if isinstance(part, FunctionProxy):
        weights = part.state_dict()
        return f"{part.name}{f', weights {hash_weights(weights)[:12]}' if weights else ''}"
    return f"{_describe_shape(part)}, weights {_hash_frozen(part.model)}"


def identify_proxy(proxy: nn.Module) -> str:
    """What stands for all that a proxy computes with: its models, and those of classifiers that they are made of.

    Of a function without weights that is only its name: a warning says so.
    """
    described = [_identify_part(part) for part in zero_shot_parts(proxy)]
    for part in parts_of(proxy):
        if isinstance(part, FunctionProxy):
            if not part.state_dict():
                logger.warning(
                    f"Whether a run that goes on has the same proxy {part.name} as before can't be checked."
                )
            described.append([part.name, hash_weights(part.state_dict())])
    return digest(described)


def _identify_part(part: ZeroShotClassifier) -> list[str | None]:
    tokens = hash_prompts(part) if part.class_names else None
    return [type(part).__qualname__, hash_weights(part.state_dict()), hash_configuration(part), tokens]


def describe_given_optimizer(arguments: dict) -> dict:
    """Classes and settings of an optimizer and a scheduler that a trainer is given, as far as they are plain values.

    Args:
        arguments (`dict`): Of the trainer, among which these are `optimizers` or `optimizer_cls_and_kwargs`.
    """
    optimizer, scheduler = arguments.get("optimizers", (None, None))
    kind, settings = arguments.get("optimizer_cls_and_kwargs") or (None, {})
    described = {}
    if optimizer is not None:
        described["optimizer"] = _describe_object(
            type(optimizer), groups=list(map(_that_are_on, optimizer.param_groups))
        )
    if kind is not None:
        described["optimizer"] = _describe_object(kind, **settings)
    if scheduler is not None:
        described["lr_scheduler"] = _describe_object(type(scheduler), **scheduler.state_dict())
    return described


def _describe_object(kind: type, **settings) -> dict:
    described = {"class": f"{kind.__module__}.{kind.__qualname__}"} | _that_are_on(settings)
    return json.loads(json.dumps(described, default=_describe_value))


def _that_are_on(settings: dict) -> dict:
    """Settings without weights, private ones, and those that are off, such as another version of torch may add."""
    shown = {name: value for name, value in settings.items() if name != "params" and name[0] != "_"}
    return {name: value for name, value in shown.items() if value is not None and value is not False}


def _describe_value(value) -> float | str:
    """A rate that is a tensor as its number; of all else that JSON hasn't, only the class."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else type(value).__qualname__


def images_per_epoch(args: TrainingArguments, images: int) -> int:
    """How many images an epoch takes; several processes fill up its last batches from its beginning."""
    batch_size = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last:
        return images // batch_size * batch_size
    return images if args.world_size == 1 else -(-images // batch_size) * batch_size


def _describe_set(train: Benchmark | EpochStream) -> dict:
    """What a training set is: in words, what stands for its samples, and how they come to the target."""
    samples = hash_benchmark(train) if isinstance(train, Benchmark) else _identify_stream(train)
    return {"train_dataset": _describe_data(train), "samples": samples, "geometry": _describe_geometry(train)}


def _describe_mixture(train: EpochMixture) -> dict:
    """The same of all sets of a mixture, in their order, with how they are mixed."""
    sets = [_describe_set(part) | {"template": part.template} for part in train.sets.values()]
    shares = dict(zip(train.sets, train.shares, strict=True))
    named = zip(train.sets, sets, strict=True)
    return {
        "train_dataset": "; ".join(f"{name}: {described['train_dataset']}" for name, described in named),
        "samples": digest([[described["samples"], described["template"]] for described in sets]),
        "geometry": ", ".join(described["geometry"] for described in sets),
        "images of each set": shares,
        "batches": train.batches,
    }


def _describe_geometry(train: Benchmark | EpochStream) -> str:
    """That of the target's processor, or else what earlier checkpoints had: the data's description tells which."""
    return str(train.transform) if isinstance(train.transform, ProcessorTransform) else ADDED_SETTINGS["geometry"]


def _identify_stream(train: EpochStream) -> str:
    """What stands for a stream; a warning names what nothing can stand for."""
    identified, unknown = identify_stream(train.stream)
    if unknown:
        logger.warning(
            f"Whether a run that goes on sees the same rows of {train.name} as before can't be checked, for they come "
            f"by {', '.join(unknown)}: only the name is compared."
        )
    return identified


def _describe_data(train: Benchmark | EpochStream) -> str:
    """What is read by people, with what checkpoints of 0.1.0 to 0.3.0 have: of a benchmark, only some images."""
    kinds = f"{len(train.class_names)} classes{'' if train.has_labels else ', without labels'}"
    if isinstance(train, EpochStream):
        files = train.stream.dataset.num_shards
        return f"{train.name} ({train.split}) streamed from {files} files, {kinds}, {_hash(repr(train.transform))}"
    labels = read_labels(train.dataset).astype(np.int64).tolist() if train.has_labels else None
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
