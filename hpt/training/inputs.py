"""What a user trains with and on, checked before any long work and in the form that the trainer takes it."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import TrainingArguments

from hpt.data.augmentation import AUGMENTATIONS, CropFlip
from hpt.data.benchmark import Benchmark
from hpt.data.epochs import MIXED, EpochMixture
from hpt.data.geometry import resize_as_trained
from hpt.data.given import SPLITS, lacks_labels
from hpt.data.images import collate, to_unit_range
from hpt.data.mixtures import Mixture
from hpt.data.streams import EpochStream
from hpt.errors import InputError
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.families import check_patches
from hpt.models.weights import freeze_untrained, hash_weights, plain_weights
from hpt.training.config import HPTConfig
from hpt.training.data_inputs import (
    as_benchmark,
    as_evaluation_sets,
    as_training_set,
    check_batches,
    training_classes,
)
from hpt.training.gpd import GPDSchedule, trained_weights
from hpt.training.identity import data_seed
from hpt.training.mixed_sets import as_epochs
from hpt.training.needs import check_unlabelled
from hpt.training.proxy_inputs import as_list, check_kinds_of_proxies, prepare_proxy
from hpt.training.target_inputs import check_target, freeze_unused


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


def make_augmentation(args: TrainingArguments) -> CropFlip | None:
    """The augmentation of the training images that settings name as `augmentation`; `None` for none."""
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


def check_steps(schedule: GPDSchedule, max_steps: int) -> None:
    """Refuse to train beyond the stages, where the learning rate is 0 and only the pull acts."""
    steps = schedule.num_epochs * schedule.steps_per_epoch
    if max_steps > steps:
        raise InputError(
            f"max_steps is {max_steps}, but the stages have {steps} steps: raise transfer_epochs instead."
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
