"""A mixture of training sets, checked before any long work and in the form that a trainer takes it."""

from dataclasses import replace

from torch.utils.data import Subset
from transformers import TrainingArguments

from hpt.data.augmentation import CropFlip
from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import readable_names
from hpt.data.epochs import MIXED, EpochMixture, check_one_size
from hpt.data.given import as_dataset, own_class_names
from hpt.data.images import check_images, check_labels
from hpt.data.mixtures import Mixture
from hpt.errors import InputError
from hpt.prompts import DEFAULT_TEMPLATE
from hpt.training.identity import data_seed


def step_size(args: TrainingArguments) -> int:
    """Images of an optimizer step, over all micro-batches and processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def images_of_an_epoch(train: Benchmark | StreamingBenchmark | Mixture, args: TrainingArguments) -> int | None:
    """How many images an epoch has, `None` for a stream, whose `steps_per_epoch` says so."""
    if isinstance(train, StreamingBenchmark):
        return None
    return sum(train.shares(step_size(args))) if isinstance(train, Mixture) else len(train)


def check_mixture(mixture: Mixture, args: TrainingArguments, template: str | list[str]) -> None:
    """Refuse settings that don't go with a mixture, and mixed batches of images whose sizes are known to differ.

    Raises:
        InputError: naming the setting, or two sets.
    """
    benchmarks = {name: part for name, part in mixture.sets.items() if isinstance(part, Benchmark)}
    if template != DEFAULT_TEMPLATE and len(benchmarks) == len(mixture.sets):
        raise InputError(
            f"prompt_template is {template!r}, but each set of the mixture has its own: leave it out, or "
            "give each set its template, as in birds=PATH:template=a photo of a {}, a bird."
        )
    if args.train_sampling_strategy != "random":
        raise InputError("train_sampling_strategy is 'sequential', but a mixture comes in random order: leave it out.")
    if mixture.batches == MIXED:
        check_one_size({name: part for name, part in benchmarks.items() if part.transform is not None})


def class_names_of_set(dataset, name: str) -> list[str]:
    """The class names of a set of a mixture.

    Raises:
        InputError: when it has none, or has names that say nothing to a text tower.
    """
    names = own_class_names(dataset, name)
    if not names:
        raise InputError(
            f"{name} has no class names, which each set of a mixture needs: give a dataset whose labels are text or a "
            "ClassLabel, or a Benchmark."
        )
    return names if isinstance(dataset, Benchmark) else readable_names(names, name)


def template_of_set(dataset, default: str | list[str]) -> str | list[str]:
    """The prompt template of a benchmark or a part of one, and the default for a set that has none."""
    whole = dataset.dataset if isinstance(dataset, Subset) else dataset
    own = whole.template if isinstance(whole, Benchmark) else None
    return own or default


def as_epochs(
    mixture: Mixture,
    args: TrainingArguments,
    image_processor,
    template: str | list[str] = DEFAULT_TEMPLATE,
    augmentation: CropFlip | None = None,
    over_union: bool = False,
) -> EpochMixture:
    """A mixture as a model sees it, in epochs; see [`EpochMixture`].

    Raises:
        InputError: for a set that doesn't fit, or images that can't share a batch.
    """
    check_mixture(mixture, args, template)
    images = step_size(args)
    shares, sets = mixture.shares(images), {}
    for name, dataset in mixture.sets.items():
        class_names = class_names_of_set(dataset, name)
        part = as_dataset(dataset, name, class_names)
        if not isinstance(part, Benchmark):
            part = Benchmark(name, "given", part, class_names, template)
        check_labels(part.dataset, class_names, name)
        check_images(part.dataset, name, same_size=part.is_native)
        sets[name] = replace(part.for_model(image_processor), template=template_of_set(part, template))
    return EpochMixture(
        sets,
        shares,
        batches=mixture.batches,
        step_size=images,
        seed=data_seed(args),
        augmentation=augmentation,
        over_union=over_union,
    )
