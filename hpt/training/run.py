"""A run of `hpt train` in parts, for it and for what trains many: its data, its trainer, its training.

train, validation = load_data(recipe, args)
trainer = make_trainer(recipe, args, train, validation)
folders = train_and_save(trainer)  # goes on where it was cut off

`recipe` has the fields of `Recipe` in `recipes/hpt_gpd.py`, and `args` is the run's [`HPTConfig`].
"""

from pathlib import Path

import torch

from hpt.data.benchmark import Benchmark
from hpt.data.loading import load_training_data
from hpt.data.mixtures import load_mixture
from hpt.errors import InputError
from hpt.files import named_if_it_fails
from hpt.hub.folder import ModelFolder
from hpt.models.loading import load_reference, load_teacher, save_finished
from hpt.models.lora import add_lora, merged
from hpt.models.proxies import ORIGINAL
from hpt.models.sources import is_checkpoint
from hpt.references import Reference
from hpt.training.config import HPTConfig
from hpt.training.mixed_sets import images_of_an_epoch
from hpt.training.needs import who_needs_labels
from hpt.training.trainer import HPTTrainer


def load_data(recipe, args: HPTConfig) -> tuple:
    """The training set of a run, and images to choose by, if it has some; of several sets, those of each by its name.

    Raises:
        InputError: for a set that can't be had, or that the run's stages don't fit.
    """
    train, validation = _load_sets(recipe, args)
    args.schedule(images_of_an_epoch(train, args))  # refuses what doesn't fit, before anything takes long
    return train, validation


def _load_sets(recipe, args: HPTConfig) -> tuple:
    held_out, protocol = recipe.validation_size, recipe.protocol
    if recipe.train_datasets:
        sets = (recipe.train_datasets, recipe.dataset_weights, recipe.batches)
        return load_mixture(*sets, held_out, protocol, rows=recipe.max_train_samples)
    needs = who_needs_labels(args)
    train, validation = load_training_data(recipe.train_dataset, held_out, protocol, recipe.streaming, needs)
    if not train.has_labels and recipe.eval_datasets == [recipe.train_dataset]:
        raise InputError(f"{train.name} has no labels to test by: name sets with labels by --eval_datasets.")
    return train if recipe.streaming else train.subset(recipe.max_train_samples), validation


def refer_to(text: str, revision: str | None, name: str, **settings: str) -> Reference:
    """A model that a field of a recipe names: a path or Hub id as it stands, or one to convert and what is said of it.

    Args:
        text (`str`): What the field holds, such as `openai/clip-vit-base-patch32` or `fare.pt:base=ID`.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        name (`str`): What messages call the model.
        settings (`str`): Further settings of the reference.
    """
    stated = Reference.parse(text)
    if not is_checkpoint(stated.source):
        return Reference(name, text, revision, settings)
    return Reference(name, stated.source, revision or stated.revision, stated.settings | settings)


def named_models(recipe, args: HPTConfig) -> dict[str, list[Reference]]:
    """The models that a run loads, by the fields of the recipe that name them."""
    proxies = recipe.proxy_references() if args.needs_proxy else []
    return {"target": [recipe.target_reference()], "proxy": without_original(proxies)}


def without_original(proxies: list[Reference]) -> list[Reference]:
    """Proxies but for the target's own copy."""
    return [reference for reference in proxies if reference.place != ORIGINAL]


def load_target(recipe):
    """The vanilla target of a run, and its processor."""
    return load_reference(recipe.target_reference())


def advise_on_precision(recipe, args: HPTConfig) -> str | None:
    """What to say before a GPU trains in 16 bits with a proxy in float32, which autocast doesn't reach; or `None`."""
    proxies = without_original(recipe.proxy_references()) if args.needs_proxy else []
    lower = {"bf16": "bfloat16", "fp16": "float16"}.get(args.mixed_precision)
    if not proxies or recipe.proxy_dtype != "float32" or args.device.type == "cpu" or lower is None:
        return None
    return (
        f"The target trains in {args.mixed_precision}, but the proxy stays in float32, which may take most of a step "
        f"on a GPU: --proxy_dtype {lower} is faster."
    )


def make_trainer(recipe, args: HPTConfig, train, validation) -> HPTTrainer:
    """The trainer of a run over its data, with its models loaded.

    Raises:
        InputError: for a model that can't be loaded, or isn't meant for such a run.
    """
    target, processor = load_target(recipe)
    if recipe.lora_rank is not None:
        target = add_lora(target, recipe.lora_rank, recipe.lora_alpha, args.trainable, args.seed)
    dtype = getattr(torch, recipe.proxy_dtype)
    proxies = recipe.proxy_references() if args.needs_proxy else []
    trainer = HPTTrainer(
        model=target,
        args=args,
        proxy=[load_teacher(reference, dtype) for reference in proxies],
        processing_class=processor,
        train_dataset=train,
        eval_dataset=None if isinstance(validation, Benchmark) and not validation.has_labels else validation,
    )
    trainer.recipe = dict(vars(recipe))
    return trainer


def train_and_save(trainer: HPTTrainer) -> list[ModelFolder]:
    """Train, from the last checkpoint in `output_dir` if there is one, and save what came out, on the main process.

    Returns:
        `list[ModelFolder]`: `output_dir/robust`; after it, of adapters, `output_dir/adapter`. None on the other
        processes.

    Raises:
        NonFiniteError: when loss, gradients or weights become NaN or infinite.
    """
    args, output = trainer.args, Path(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or "last")
    if not trainer.is_world_process_zero():
        return []
    target, has_adapters = trainer.model, trainer.recipe["lora_rank"] is not None
    robust = {"robust": merged(target) if has_adapters else target}  # of adapters, the merged model too
    adapter = {"adapter": target} if has_adapters else {}
    for name, model in (robust | adapter).items():
        save_finished(model, trainer.processing_class, output / name)
    folders = [trainer.describe(output / name) for name in robust | adapter]
    with named_if_it_fails(output / "trainer_state.json"):
        trainer.state.save_to_json(output / "trainer_state.json")
    trainer.draw_figures(output)
    return folders
