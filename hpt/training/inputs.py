"""What a user trains with and on, checked before any long work and in the form that the trainer takes it."""

from dataclasses import dataclass, replace

import torch
from datasets import ClassLabel, IterableDataset
from torch import nn
from transformers import TrainingArguments

from hpt.data.augmentation import AUGMENTATIONS, CropFlip
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import match_classes, readable_names, renumber
from hpt.data.epochs import MIXED, EpochMixture, join_classes
from hpt.data.geometry import resize_as_trained
from hpt.data.given import (
    SPLITS,
    as_benchmarks,
    as_dataset,
    as_images,
    lacks_labels,
    own_class_names,
    refuse_stream,
    refuse_unlabelled,
)
from hpt.data.images import check_columns, check_images, check_labels, collate, to_unit_range
from hpt.data.mixtures import Mixture
from hpt.data.streams import EpochStream, check_workers
from hpt.errors import InputError
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.families import check_dual_encoder, check_patches, check_towers
from hpt.models.lora import check_adapter
from hpt.models.weights import freeze_untrained, hash_weights, in_eval_mode, plain_weights
from hpt.references import check_names
from hpt.training.config import HPTConfig
from hpt.training.gpd import GPDSchedule, trained_weights
from hpt.training.identity import data_seed
from hpt.training.labels import check_unlabelled
from hpt.training.mixed_sets import as_epochs, check_mixture, class_names_of_set, template_of_set
from hpt.training.proxy_inputs import as_list, check_kinds_of_proxies, prepare_proxy


RENAME = "Leave class_names out, or rename the dataset's classes first."


@dataclass(frozen=True)
class TrainingInputs:
    """Models and data of a run, from [`prepare_inputs`].

    Args:
        classifier ([`ZeroShotClassifier`]): The target over the training classes.
        proxy ([`ZeroShotClassifier`], [`FunctionProxy`] or [`CombinedProxy`], *optional*): Frozen, likewise.
        original ([`ZeroShotClassifier`], *optional*): The target's frozen vanilla copy.
        train ([`Benchmark`], [`EpochStream`] or [`EpochMixture`], *optional*): The training set.
        evaluation ([`Benchmark`] or dict of them, *optional*): What `evaluate()` takes without an argument.
        schedule ([`GPDSchedule`], *optional*): The stages over the training set.
        augmentation ([`CropFlip`], *optional*): Of the training set's images.
        trained (`list[str]`): Names of the target's parameters that train.
        vanilla_weights (`str`): Hash of the target's weights as they are given.
    """

    classifier: ZeroShotClassifier
    proxy: nn.Module | None
    original: ZeroShotClassifier | None
    train: Benchmark | EpochStream | EpochMixture | None
    evaluation: Benchmark | dict[str, Benchmark] | None
    schedule: GPDSchedule | None
    augmentation: CropFlip | None
    trained: list[str]
    vanilla_weights: str

    def one_image(self) -> torch.Tensor:
        """An image `(1, 3, height, width)` in [0, 1] such as is trained on; grey for a stream, which isn't begun."""
        if isinstance(self.train, Benchmark):
            return to_unit_range(collate([self.train[0]])["pixel_values"])
        return torch.full((1, 3, self.classifier.image_size, self.classifier.image_size), 0.5)

    def as_benchmark(self, dataset, name: str) -> Benchmark:
        """A dataset to evaluate on; see [`as_benchmark`]."""
        return as_benchmark(dataset, name, self.classifier.class_names, self.classifier.processor.image_processor)


def prepare_inputs(
    model, args: HPTConfig, proxy, processing_class, train_dataset, eval_dataset, class_names
) -> TrainingInputs:
    """Check what [`HPTTrainer`] is given, and freeze what doesn't train; see there for the arguments.

    Raises:
        InputError: for a model, proxy, dataset or setting that can't be meant.
    """
    check_target(model)
    if args.needs_patches:
        check_patches(model)
    proxies = as_list(proxy)
    check_kinds_of_proxies(proxies, args)
    if isinstance(train_dataset, dict) and not isinstance(train_dataset, SPLITS):
        train_dataset = Mixture(train_dataset)
    class_names, template = training_classes(train_dataset, eval_dataset, class_names, args)
    if lacks_labels(train_dataset):
        check_unlabelled(args, train_dataset, class_names)
    classifier = ZeroShotClassifier(model, processing_class, class_names, template)
    class_names, image_processor = classifier.class_names, processing_class.image_processor
    train, schedule, augmentation = None, None, make_augmentation(args)
    if isinstance(train_dataset, Mixture):
        over_union = train_dataset.batches == MIXED
        train = as_epochs(train_dataset, args, image_processor, args.prompt_template, augmentation, over_union)
        check_batches(len(train), args)
    elif train_dataset is not None:
        train = as_training_set(train_dataset, args, class_names, image_processor, augmentation)
    evaluation = as_evaluation_sets(eval_dataset, class_names, image_processor)
    check_evaluation(args, evaluation)
    freeze_untrained(model, args.trainable)
    freeze_unused(classifier)
    trained = list(trained_weights(model))
    if class_names is None and any(weight.requires_grad for weight in classifier.text_parameters):
        raise InputError(
            "The text tower is to train, but without class names there are no prompts: train vision alone."
        )
    if train is not None:
        schedule = args.schedule(None if isinstance(train, EpochStream) else len(train))
        check_steps(schedule, args.max_steps)
    resize_as_trained(image_processor)
    proxy, original = prepare_proxy(proxies, classifier, template, args)
    vanilla_weights = hash_weights(plain_weights(model))
    models = (classifier, proxy, original)
    return TrainingInputs(*models, train, evaluation, schedule, augmentation, trained, vanilla_weights)


def make_augmentation(args: HPTConfig) -> CropFlip | None:
    """The augmentation of the training images by the name that the settings give; `None` for none."""
    kind = AUGMENTATIONS[args.augmentation]
    return kind and kind(data_seed(args))


def check_config(args) -> None:
    """Refuse what isn't an [`HPTConfig`], such as the `TrainingArguments` that other trainers take."""
    if not isinstance(args, HPTConfig):
        kind = "missing" if args is None else f"a {type(args).__name__}"
        raise InputError(f"args is {kind}: give an HPTConfig, which takes every field of TrainingArguments.")


def check_launch(args: TrainingArguments) -> None:
    """Raise [`InputError`] for several GPUs in one process, which Trainer would use through DataParallel."""
    if args.n_gpu > 1:
        raise InputError(
            f"One process sees {args.n_gpu} GPUs: start with `accelerate launch --num_processes {args.n_gpu} SCRIPT`, "
            "or set CUDA_VISIBLE_DEVICES=0."
        )


def check_target(target) -> None:
    """Refuse a target that isn't a float32 dual encoder, or whose adapters wouldn't all be saved.

    Raises:
        InputError: naming what is wrong with it.
    """
    check_dual_encoder(target)
    check_towers(target)
    if target.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"The target's weights are {target.dtype}: load it with dtype=torch.float32 and train with bf16=True."
        )
    adapters = getattr(target, "peft_config", {})
    if adapters and list(adapters) != ["default"]:
        raise InputError(
            f"The target has adapters named {', '.join(adapters)}, but only one named default is trained and saved: "
            "make it without an adapter_name."
        )
    for adapter in adapters.values():
        check_adapter(adapter)


def freeze_unused(classifier: ZeroShotClassifier) -> None:
    """Freeze what neither images nor texts pass through, such as DINOv2's mask token: it never has a gradient.

    DDP would wait for one, and adapters of it would be trained in vain. A grey image and a text show what has one.
    """
    model, side = classifier.model, classifier.image_size
    weights = list(trained_weights(model).values())
    image = torch.zeros(1, 3, side, side, device=model.device, dtype=model.dtype)
    tokens = classifier.processor.tokenizer("0", return_tensors="pt").to(model.device)
    with torch.inference_mode(False), torch.enable_grad(), in_eval_mode(list(model.modules())):
        logits = classifier(image, model.get_text_features(**tokens).pooler_output)
        gradients = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)


def check_steps(schedule: GPDSchedule, max_steps: int) -> None:
    """Refuse to train beyond the stages, where the learning rate is 0 and only the pull acts."""
    steps = schedule.num_epochs * schedule.steps_per_epoch
    if max_steps > steps:
        raise InputError(
            f"max_steps is {max_steps}, but the stages have {steps} steps: raise transfer_epochs instead."
        )


def check_batches(images: int, args: TrainingArguments) -> None:
    """Refuse a training set of which `dataloader_drop_last` leaves nothing."""
    batch_size = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and images < batch_size:
        raise InputError(
            f"The training set has {images} images, of which dataloader_drop_last leaves none: a batch has "
            f"{batch_size}, over all processes."
        )


def check_evaluation(args: TrainingArguments, evaluation) -> None:
    """Refuse evaluations in training without images for them."""
    if evaluation is None and args.eval_strategy != "no":
        raise InputError(
            f"eval_strategy is {args.eval_strategy.value!r}, but there is no eval_dataset to evaluate on in training: "
            "give one, or leave eval_strategy out."
        )


def check_metrics(args: HPTConfig, eval_dataset) -> None:
    """Refuse a metric for the best model that no evaluation set will report, and what our metrics don't do."""
    if args.batch_eval_metrics or not args.eval_do_concat_batches:
        name = "batch_eval_metrics" if args.batch_eval_metrics else "eval_do_concat_batches"
        raise InputError(f"{name} is for a compute_metrics of your own: give one, or leave it out.")
    prefixes = [f"eval_{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else ["eval_"]
    known = [f"{prefix}{kind}_accuracy" for prefix in prefixes for kind in ("clean", "robust")]
    metric = args.metric_for_best_model
    if metric is not None and f"eval_{metric.removeprefix('eval_')}" not in known:
        raise InputError(f"metric_for_best_model is {metric!r}; known: {', '.join(known)}.")


def check_sets(
    train: Benchmark | StreamingBenchmark | Mixture, validation, tests: list[Benchmark], args: HPTConfig
) -> None:
    """Refuse images that can't be used, tests on training images, and evaluations in training without images.

    Raises:
        InputError: naming the set.
    """
    if isinstance(train, Mixture):
        check_mixture(train, args, args.prompt_template)
    sets = list(train.sets.values()) if isinstance(train, Mixture) else [train]
    check_names(test.name for test in tests)
    for test in tests:
        if any(_may_share_images(test, part) for part in sets):
            raise InputError(
                f"{test.name} would be tested on its training images ({test.split}): give a folder with train/ and "
                "test/, or other images by --eval_datasets."
            )
        check_images(test.dataset, test.name, same_size=test.is_native)
    if isinstance(train, StreamingBenchmark):
        check_workers(train, args.dataloader_num_workers)
    if isinstance(validation, Benchmark) and not validation.has_labels and args.eval_strategy != "no":
        raise InputError(
            f"The validation images of {train.name} have no labels, which accuracy is measured by: give "
            "--eval_strategy no."
        )
    if validation is None and args.eval_strategy != "no":
        hint = "" if isinstance(train, StreamingBenchmark) else "--validation_size N, or "
        raise InputError(
            f"{' + '.join(part.name for part in sets)} has no validation images to evaluate on in training: give "
            f"{hint}--eval_strategy no."
        )


def _may_share_images(test: Benchmark, train: Benchmark | StreamingBenchmark) -> bool:
    """Whether they are of one split, and of classes that both have, as far as these are known."""
    of_one_split = (test.part_of or test.name, test.split) == (train.part_of or train.name, train.split)
    return of_one_split and (not train.has_labels or bool(set(test.class_names) & set(train.class_names)))


def training_classes(
    train_dataset, eval_dataset, class_names: list[str] | None, args: HPTConfig
) -> tuple[list[str] | None, str | list[str] | dict[str, list[str]]]:
    """Names of the training classes and their prompt templates; of a mixture, those of all of its sets.

    Raises:
        InputError: for names that are missing, and for names or a template that a mixture's sets have themselves.
    """
    if not isinstance(train_dataset, Mixture):
        return class_names or training_class_names(train_dataset, eval_dataset), args.prompt_template
    if class_names is not None:
        raise InputError("class_names is of one training set, but each set of a mixture has its own: leave it out.")
    sets = train_dataset.sets
    names = [class_names_of_set(part, name) for name, part in sets.items()]
    return join_classes(names, [template_of_set(part, args.prompt_template) for part in sets.values()])


def training_class_names(train_dataset, eval_dataset) -> list[str] | None:
    """The class names of the training set, or of the first evaluation set where there is none.

    A training set without labels may have none: `None`.

    Raises:
        InputError: when it has none, or has names that say nothing to a text tower.
    """
    if lacks_labels(train_dataset):
        return own_class_names(train_dataset, "the training set") or None
    dataset = train_dataset
    if dataset is None:
        dataset = next(iter(eval_dataset.values()), None) if isinstance(eval_dataset, dict) else eval_dataset
    name = "the evaluation set" if train_dataset is None else "the training set"
    names = None if dataset is None else own_class_names(dataset, name)
    if names is None:
        raise InputError(
            "Class names are missing: give class_names, or a dataset whose labels are text or a ClassLabel."
        )
    if isinstance(dataset, (Benchmark, StreamingBenchmark)):
        return names
    return readable_names(names, name.capitalize())


def number_as(class_names: list[str], dataset, name: str, hint: str):
    """A benchmark or a plain dataset with labels that number these classes; one without names has such labels already.

    Raises:
        InputError: as of [`match_classes`].
    """
    own = own_class_names(dataset, name)
    if own is None or own == class_names:
        return dataset
    numbers = match_classes(own, class_names, name, hint)
    same = numbers == list(range(len(class_names)))
    if not isinstance(dataset, (Benchmark, StreamingBenchmark)):
        return dataset if same else renumber(dataset, numbers)
    rows = dataset.dataset if same else renumber(dataset.dataset, numbers)
    return replace(dataset, dataset=rows, class_names=class_names)


def as_benchmark(dataset, name: str, class_names: list[str] | None, image_processor) -> Benchmark:
    """A benchmark as the target sees it, and any other set likewise, with the training classes, by name.

    Where there are no training classes, it has its own.

    Raises:
        InputError: for a stream, images that can't be read or have no labels, or classes or labels that don't fit.
    """
    refuse_stream(dataset, name)
    refuse_unlabelled(dataset, name)
    if class_names is None and not isinstance(dataset, Benchmark):
        (dataset,) = as_benchmarks([dataset], name)
    dataset = as_dataset(dataset, name, class_names)
    if not isinstance(dataset, Benchmark):
        hint = "Only a benchmark, from load_benchmark, is evaluated over classes of its own."
        dataset = number_as(class_names, dataset, name, hint)
        check_labels(dataset, class_names, name)
        dataset = Benchmark(name, "given", dataset, class_names, None)
    check_images(dataset.dataset, name, same_size=dataset.is_native)
    return dataset.for_model(image_processor)


def as_evaluation_sets(dataset, class_names: list[str], image_processor):
    """An evaluation set, or a dict of them, each by [`as_benchmark`]; `None` where there is none."""
    if isinstance(dataset, dict):
        return {name: as_benchmark(part, name, class_names, image_processor) for name, part in dataset.items()}
    return None if dataset is None else as_benchmark(dataset, "the evaluation set", class_names, image_processor)


def as_training_set(dataset, args: HPTConfig, class_names: list[str], image_processor, augmentation: CropFlip | None):
    """A [`Benchmark`], or of a stream an [`EpochStream`], both as the target sees them and augmented.

    Raises:
        InputError: for a dataset that doesn't fit the classes, or a stream without `steps_per_epoch`.
    """
    name = "the training set"
    if lacks_labels(dataset):
        dataset = as_images(dataset, name, class_names)
    else:
        dataset = number_as(class_names, as_dataset(dataset, name, class_names), name, RENAME)
    if isinstance(dataset, IterableDataset):
        dataset = _as_streaming_benchmark(dataset, name, class_names)
    if isinstance(dataset, StreamingBenchmark):
        return _cut_into_epochs(replace(dataset.for_model(image_processor), augmentation=augmentation), args)
    if lacks_labels(dataset):
        check_images(dataset.dataset, name, same_size=dataset.is_native)
        dataset = dataset.for_model(image_processor)
    else:
        dataset = as_benchmark(dataset, name, class_names, image_processor)
        check_labels(dataset.dataset, class_names, name)
    check_batches(len(dataset), args)
    return replace(dataset, augmentation=augmentation)


def _as_streaming_benchmark(dataset: IterableDataset, name: str, class_names: list[str]) -> StreamingBenchmark:
    if dataset.features is None:
        raise InputError(f"{name} doesn't say its features: give them to from_generator or map as features=.")
    check_columns(dataset, name)
    return StreamingBenchmark(name, "given", dataset, class_names, None)


def _cut_into_epochs(stream: StreamingBenchmark, args: HPTConfig) -> EpochStream:
    """A stream with as many images as the processes take in an epoch."""
    label = stream.dataset.features.get("label")
    dtype = str(getattr(label, "dtype", label))
    if stream.has_labels and not isinstance(label, ClassLabel) and not dtype.startswith(("int", "uint")):
        raise InputError(f"The labels of {stream.name} are {label}, but must be integers from 0.")
    if args.accelerator_config.dispatch_batches is False:
        raise InputError("A stream is read by one process for all: leave dispatch_batches alone.")
    return EpochStream(
        stream,
        num_batches=args.schedule(None).steps_per_epoch * args.gradient_accumulation_steps * args.world_size,
        batch_size=args.per_device_train_batch_size,
        buffer_size=args.shuffle_buffer_size,
        seed=data_seed(args),
        num_workers=args.dataloader_num_workers,
    )
