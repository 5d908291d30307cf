"""The images that a trainer is given, checked before any long work, and as the target sees them."""

from dataclasses import replace

import numpy as np
from datasets import ClassLabel, IterableDataset
from transformers import TrainingArguments

from hpt.data.augmentation import CropFlip
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import match_classes, readable_names, renumber
from hpt.data.epochs import join_classes
from hpt.data.given import (
    as_benchmarks,
    as_dataset,
    as_images,
    lacks_labels,
    own_class_names,
    refuse_stream,
    refuse_unlabelled,
)
from hpt.data.images import check_columns, check_images, check_labels
from hpt.data.mixtures import Mixture
from hpt.data.streams import EpochStream, check_workers
from hpt.errors import InputError
from hpt.references import check_names
from hpt.training.config import ALWAYS, HPTConfig
from hpt.training.identity import data_seed
from hpt.training.keeping import refuse_keeping, why_not_kept
from hpt.training.mixed_sets import check_mixture, class_names_of_set, template_of_set


RENAME = "Leave class_names out, or rename the dataset's classes first."


# Classes


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


# Sets


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


# Checks


def check_sets(
    train: Benchmark | StreamingBenchmark | Mixture, validation, tests: list[Benchmark], args: HPTConfig
) -> None:
    """Refuse images that can't be used, tests on training images, and evaluations in training without images.

    Raises:
        InputError: naming the set; for a mixture of which `cache_clean` is to keep features.
    """
    if isinstance(train, Mixture):
        check_mixture(train, args, args.prompt_template)
        if args.cache_clean == ALWAYS:
            refuse_keeping(why_not_kept(args, is_mixture=True))
    sets = list(train.sets.values()) if isinstance(train, Mixture) else [train]
    check_names(test.name for test in tests)
    for test in tests:
        if any(may_share_images(test, part) for part in sets):
            raise InputError(
                f"{test.name} would be tested on its training images ({test.split}): give a folder with train/ and "
                "test/, or test on other images."
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


def may_share_images(test: Benchmark, train: Benchmark | StreamingBenchmark) -> bool:
    """Whether they are of one split, and of classes and chosen samples that both have, as far as these are known."""
    of_one_split = (test.part_of or test.name, test.split) == (train.part_of or train.name, train.split)
    of_one_class = not train.has_labels or bool(set(test.class_names) & set(train.class_names))
    if isinstance(train, StreamingBenchmark) or train.chosen is None or test.chosen is None:
        return of_one_split and of_one_class
    return of_one_split and of_one_class and bool(np.isin(test.chosen, train.chosen).any())


def check_batches(images: int, args: TrainingArguments) -> None:
    """Refuse a training set of which `dataloader_drop_last` leaves nothing."""
    batch_size = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and images < batch_size:
        raise InputError(
            f"The training set has {images} images, of which dataloader_drop_last leaves none: a batch has "
            f"{batch_size}, over all processes."
        )
