"""Whatever a user trains and evaluates on, as the trainer takes it: a benchmark, or epochs cut from a stream."""

import datasets

from hpt.benchmarks import Benchmark, StreamingBenchmark
from hpt.config import HPTConfig
from hpt.data import ImageTransform, check_images, check_labels
from hpt.errors import InputError
from hpt.streams import EpochStream


def own_class_names(train_dataset, eval_dataset) -> list[str]:
    """The class names of the training set, or of the first evaluation set where there is none; else [`InputError`]."""
    dataset = train_dataset
    if dataset is None:
        dataset = next(iter(eval_dataset.values()), None) if isinstance(eval_dataset, dict) else eval_dataset
    if isinstance(dataset, (Benchmark, StreamingBenchmark)):
        return dataset.class_names
    features = None if dataset is None else dataset.features
    if features is None or not isinstance(features.get("label"), datasets.ClassLabel):
        raise InputError("Class names are missing: give class_names, or a dataset whose labels are a ClassLabel.")
    return features["label"].names


def as_benchmark(dataset, name: str, class_names: list[str], transform: ImageTransform) -> Benchmark:
    """A benchmark as it is, a plain dataset with the training classes and the target's input size.

    Raises:
        InputError: for a stream, images that can't be read, or labels that don't fit the classes.
    """
    if isinstance(dataset, (datasets.IterableDataset, StreamingBenchmark)):
        raise InputError(f"{name} is a stream: give a part of it, load_benchmark(..., streaming=True).take(rows).")
    if not isinstance(dataset, Benchmark):
        check_labels(dataset, class_names, name)
        dataset = Benchmark(name, "given", dataset, class_names, None, transform)
    check_images(dataset.dataset, name)
    return dataset


def as_training_set(dataset, args: HPTConfig, class_names: list[str], transform: ImageTransform):
    """A [`Benchmark`], or of a stream an [`EpochStream`] with as many images as the processes take in an epoch.

    Raises:
        InputError: for a dataset that doesn't fit the classes, or a stream without `steps_per_epoch`.
    """
    name = "the training set"
    if isinstance(dataset, datasets.IterableDataset):
        if dataset.features is None:
            raise InputError(f"{name} doesn't say its features: give them to from_generator or map as features=.")
        if missing := {"image", "label"} - set(dataset.features):
            raise InputError(f"{name} has columns {list(dataset.features)}, but needs {sorted(missing)}: rename them.")
        dataset = StreamingBenchmark(name, "given", dataset, class_names, None, transform)
    if not isinstance(dataset, StreamingBenchmark):
        dataset = as_benchmark(dataset, name, class_names, transform)
        check_labels(dataset.dataset, class_names, name)
        return dataset
    if len(dataset.class_names) != len(class_names):
        raise InputError(f"{name} has {len(dataset.class_names)} classes, but there are {len(class_names)} names.")
    kind = dataset.dataset.features["label"]
    if not isinstance(kind, datasets.ClassLabel) and not str(getattr(kind, "dtype", kind)).startswith(("int", "uint")):
        raise InputError(f"The labels of {name} are {kind}, but must be integers from 0.")
    if args.accelerator_config.dispatch_batches is False or args.accelerator_config.split_batches:
        raise InputError("A stream is read by one process for all: leave dispatch_batches and split_batches alone.")
    batches = args.schedule(None).steps_per_epoch * args.gradient_accumulation_steps * args.world_size
    return EpochStream(
        dataset,
        num_batches=batches,
        batch_size=args.per_device_train_batch_size,
        buffer_size=args.shuffle_buffer_size,
        seed=args.seed if args.data_seed is None else args.data_seed,
        num_workers=args.dataloader_num_workers,
    )
