"""What a run was, as far as others may know it: models, data, settings, hardware, time and versions; no local path.

training.json  all of it, from which the model card is written
run.yaml       fields of the recipe and settings that differ from the defaults, for `recipes/hpt_gpd.py --config`
"""

import math
import re
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path

import torch
from torch import nn

from hpt.data.benchmark import Benchmark
from hpt.data.epochs import EpochMixture
from hpt.data.records import BENCHMARKS
from hpt.data.streams import EpochStream
from hpt.environment import cpu_name, describe_versions
from hpt.errors import InputError
from hpt.hub.folder import CONFIG_FILE, MAY_BE_LOCAL, MODELS, ModelFolder
from hpt.hub.run_check import NO_ATTACK
from hpt.models.classifier import ZeroShotClassifier
from hpt.models.families import plain_model
from hpt.models.lora import describe_adapter
from hpt.models.origin import name_source
from hpt.models.proxies import MOST_CONFIDENT, CombinedProxy, FunctionProxy, parts_of, zero_shot_parts
from hpt.models.weights import hash_weights, without_adapters
from hpt.radius import Fraction, Radius, describe_length
from hpt.references import Reference
from hpt.training.checkpoints import IN_PIXELS, differences
from hpt.training.config import MATHEMATICS, HPTConfig
from hpt.training.gpd import ANCHOR, GPD_PAPER, TRANSFER, GPDSchedule
from hpt.training.objectives import OF_HPT, Objective
from hpt.training.sums import name_objective, name_terms


# Fields of HPTConfig that say where a run lies and how it is watched, but nothing of what it computes
NOT_OF_THE_RUN = (
    "output_dir run_name report_to do_eval project resume_from_checkpoint num_train_epochs disable_tqdm debug "
    "dataloader_pin_memory accelerator_config"
).split()
# What the weights depend on: of HPTConfig beside its mathematics, and of a recipe
OF_THE_WEIGHTS = (
    MATHEMATICS
    + (
        "bf16 fp16 per_device_train_batch_size gradient_accumulation_steps max_steps data_seed dataloader_drop_last "
        "load_best_model_at_end metric_for_best_model greater_is_better target target_revision image_size proxy "
        "proxy_revision proxies proxy_dtype lora_rank lora_alpha train_dataset train_datasets dataset_weights batches "
        "validation_size protocol streaming max_train_samples"
    ).split()
)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def describe_run(
    args: HPTConfig,
    recipe: dict,
    classifier: ZeroShotClassifier,
    train: Benchmark | EpochStream | EpochMixture,
    schedule: GPDSchedule,
    vanilla_weights: str,
) -> dict:
    """All that stays the same over a run, but for its method; see [`HPTTrainer`] for the arguments.

    `recipe` has the recipe's fields, and `vanilla_weights` is the hash of what training began with.
    """
    adapter = getattr(classifier.model, "peft_config", {}).get("default")
    optimizer = " ".join(str(getattr(part, "value", part)) for part in (args.optim, args.optim_args) if part)
    batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "target": describe_model(classifier),
        "vanilla_weights": vanilla_weights,
        "data": describe_data(train),
        "prompt_template": describe_prompts(args, train),
        "trainable": args.trainable,
        "adapter": adapter and describe_adapter(adapter),
        "schedule": asdict(schedule)
        | {"ema_decay": args.ema_decay, "pull_ratio": args.pull_ratio, "restart": args.restart},
        "batch_size": batch_size,
        "processes": args.world_size,
        "optimizer": f"{optimizer}, weight decay {args.weight_decay:g}",
        "precision": {"no": "float32"}.get(args.mixed_precision, f"{args.mixed_precision} mixed"),
        "hardware": describe_hardware(args),
        "seed": args.seed,
        "license": recipe.get("license"),
        "settings": describe_settings(args, recipe),
        "pretrained_by": {name: Path(file).name for name in MODELS if (file := recipe.get(f"pretrain_{name}"))},
        "versions": describe_versions(),
    }


def describe_method(
    args: HPTConfig,
    trainer: str,
    objectives: dict[str, Objective] | None,
    proxy: nn.Module | None,
    original: ZeroShotClassifier | None = None,
) -> dict:
    """What the target learned by: objectives, attack and proxies.

    Args:
        args ([`HPTConfig`]): Settings.
        trainer (`str`): Name of its class.
        objectives (`dict[str, Objective]`, *optional*): Of each stage; `None` where the trainer's step is its own, so
            that neither objective nor attack nor what the proxy is for are known.
        proxy (`nn.Module`, *optional*): What the trainer's objectives ask.
        original ([`ZeroShotClassifier`], *optional*): The target's vanilla copy, which may be a proxy too.
    """
    steps = objectives or {}
    names = {stage: name_objective(objective) for stage, objective in steps.items()}
    terms = {stage: name_terms(objective) for stage, objective in steps.items()}
    papers = [paper for objective in steps.values() for paper in objective.papers]
    uses_proxy = objectives is None or any(objective.needs_proxy for objective in steps.values())
    return {
        "trainer": trainer,
        "proxies": describe_proxies(proxy, original) if proxy and uses_proxy else [],
        "proxy_combination": describe_combination(proxy) if uses_proxy else None,
        "attack": objectives and describe_attack(args, objectives),
        "objective": names.get(TRANSFER),
        "anchor_objective": names.get(ANCHOR),
        "terms": terms.get(TRANSFER, []),
        "own_objectives": sorted({name for named in terms.values() for name in named} - {*OF_HPT}),
        "divergence": objectives and objectives[TRANSFER].describe(args.kl_reduction),
        "papers": list(dict.fromkeys(papers + [GPD_PAPER] * (args.anchor_epochs > 0))),
    }


def describe_attack(args: HPTConfig, objectives: dict[str, Objective]) -> str:
    """The attack on the target in training, and in which stage there is one, if not in every."""
    attacked = [stage for stage, objective in objectives.items() if objective.needs_attack]
    if not attacked:
        return NO_ATTACK
    start = " from a random start" if args.attack_random_start else ""
    steps = f"in steps of {describe_length(args.attack_step_size)}"
    stage = "" if len(attacked) == len(objectives) else f", in the {attacked[0]} stage alone"
    return f"PGD-{args.attack_steps} at {Radius(args.attack_eps).title} {steps}{start}{stage}"


def describe_proxies(proxy: nn.Module, original: nn.Module | None = None) -> list[dict]:
    """The frozen models that a proxy asks, in order; `original` is the target's vanilla copy, if there is one."""
    return [model | {"original": part is original} for part in parts_of(proxy) for model in _describe_part(part)]


def _describe_part(part: nn.Module) -> list[dict]:
    """A function, of which little is known, or a dual encoder, and those that it is made of."""
    if isinstance(part, FunctionProxy):
        weights = hash_weights(part.state_dict()) if part.state_dict() else None
        return [{"function": part.name, "parameters": sum(map(torch.numel, part.parameters())), "weights": weights}]
    classifiers = zero_shot_parts(part)
    kinds = {id(one.model): type(one).__name__ for one in classifiers}
    own = {id(one.model): {"templates": one.templates if one.keeps_template else None} for one in classifiers}
    models = {id(one.model): describe_model(one) | own[id(one.model)] for one in classifiers}
    plain = ZeroShotClassifier.__name__
    return [models[key] | {"wrapper": None if kinds[key] == plain else kinds[key]} for key in models]


def describe_combination(proxy: nn.Module | None) -> str | None:
    """How several proxies teach together, in words; `None` for one or none."""
    if not isinstance(proxy, CombinedProxy):
        return None
    if proxy.combination == MOST_CONFIDENT:
        return "for each image, the answer of the most confident"
    return f"{proxy.combination} averaged with weights {', '.join(f'{weight:.4g}' for weight in proxy.weights)}"


def describe_model(classifier: ZeroShotClassifier) -> dict:
    """Where a target or proxy came from, and its shape; `hub_id` is `None` for a local one, which has only a name."""
    model = plain_model(classifier.model)
    name, vision = str(model.name_or_path), model.config.vision_config
    on_hub = _is_hub_id(name)
    conversion = None if on_hub or not name else ModelFolder(name).conversion
    return {
        "name": name if on_hub else Path(name).name,
        "hub_id": name if on_hub else None,
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "vision_tower": vision.model_type,
        "image_size": classifier.image_size,
        "patch_size": getattr(vision, "patch_size", None),
        "parameters": sum(weight.numel() for weight in without_adapters(dict(model.named_parameters())).values()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_mean": classifier.image_mean.flatten().tolist(),
        "image_std": classifier.image_std.flatten().tolist(),
    } | ({"converted_from": name_source(conversion)} if conversion else {})


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def describe_prompts(args: HPTConfig, train: Benchmark | EpochStream | EpochMixture) -> str | list[str]:
    """The prompt template of the training classes, or several; of a mixture those of its first set.

    A card shows how to classify by it over the first of the training classes, which are that set's.
    """
    return next(iter(train.sets.values())).template if isinstance(train, EpochMixture) else args.prompt_template


def describe_data(train: Benchmark | EpochStream | EpochMixture) -> dict:
    """What was trained on; `source` is `ID@COMMIT` for what was read from the Hub.

    Of images without labels, captions or not, it says so.
    """
    if isinstance(train, EpochMixture):
        return _describe_mixture(train)
    streamed = isinstance(train, EpochStream)
    return {
        "name": train.name,
        "split": train.split,
        "source": train.stream.source if streamed else train.source,
        "images_per_epoch": len(train),
        "geometry": train.transform.attack_space,
        "streamed": streamed,
        "class_names": list(train.class_names),
    } | ({} if train.has_labels else {"labelled": False})


def _describe_mixture(train: EpochMixture) -> dict:
    """The same of several sets: of all together, and in `sets` of each."""
    sets = [
        describe_data(part) | {"name": name, "images": len(part), "images_per_epoch": share, "template": part.template}
        for (name, part), share in zip(train.sets.items(), train.shares, strict=True)
    ]
    return {
        "name": ", ".join(f"{part['name']} ({100 * part['images_per_epoch'] / len(train):.3g} %)" for part in sets),
        "split": "+".join(dict.fromkeys(part["split"] for part in sets)),
        "source": None,
        "images_per_epoch": len(train),
        "geometry": "+".join(dict.fromkeys(part["geometry"] for part in sets)),
        "streamed": False,
        "class_names": list(train.class_names),
        "batches": train.batches,
        "sets": sets,
    }


def describe_settings(args: HPTConfig, recipe: dict) -> dict:
    """Fields of a recipe, and settings that differ from the defaults, as YAML has them."""
    settings = [field for field in fields(HPTConfig) if field.init and field.name not in NOT_OF_THE_RUN]
    values = {
        field.name: (getattr(args, field.name), _default(field)) for field in settings if "hub" not in field.name
    }
    changed = {name: value for name, (value, default) in values.items() if _changed(value, default)}
    changed |= {"seed": args.seed, "anchor_epochs": args.anchor_epochs, "transfer_epochs": args.transfer_epochs}
    given = {name: value for name, value in recipe.items() if value not in (None, []) and "pretrain_" not in name}
    return {name: _as_yaml(name, value) for name, value in (given | changed).items()}


def refuse_other_run(folder: Path, args: HPTConfig, recipe: dict) -> None:
    """Refuse to write over a model that isn't of a run with these settings.

    Raises:
        InputError: listing what differs.
    """
    if not (folder / CONFIG_FILE).is_file():
        return
    hint = "give another output_dir, or --overwrite, which deletes what is there"
    run = ModelFolder(folder).run
    if run is None:
        raise InputError(f"{folder} has a model that no run of hpt left there: {hint}.")
    there, here = (_of_the_weights(settings) for settings in (run["settings"], describe_settings(args, recipe)))
    if differing := differences(there, here):
        raise InputError(f"{folder} was trained with other settings ({differing}): {hint}.")


def _of_the_weights(settings: dict) -> dict:
    """What the weights depend on among described settings, which leave out most defaults."""
    defaults = {
        field.name: _as_yaml(field.name, default) for field in fields(HPTConfig) if (default := _default(field))
    }
    return {name: (defaults | settings)[name] for name in OF_THE_WEIGHTS if name in defaults | settings}


def _default(field: Field):
    return field.default if field.default_factory is MISSING else field.default_factory()


def _changed(value, default) -> bool:
    """Whether a setting differs from its default, which `TrainingArguments` may have put into another type."""
    if default is None:
        return bool(value)
    return getattr(value, "value", value) != getattr(default, "value", default)


def _as_yaml(name: str, value):
    """A setting as it would be written by hand: radii as fractions, no local path, nothing but plain types."""
    if isinstance(value, list | tuple):
        return [_as_yaml(name, item) for item in value]
    if isinstance(value, dict | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):  # such as max_grad_norm=inf, which logs norms alone, and which JSON hasn't
            return str(value)
        text = describe_length(value)
        return text if name in (*IN_PIXELS, "proxy_eps") and Fraction(text) == value else float(value)
    text = str(getattr(value, "value", value))
    if name in MAY_BE_LOCAL and text not in BENCHMARKS:  # a record goes by its name, whatever folders there are
        return Reference.parse(text).without_local_paths()
    return text


def describe_hardware(args: HPTConfig) -> str:
    """`2 x NVIDIA H200`, or the CPU and its threads."""
    if args.device.type == "cpu":
        threads = args.world_size * torch.get_num_threads()
        return f"{threads} CPU thread{'s' * (threads > 1)} ({cpu_name()})"
    name = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type
    return f"{args.world_size} x {name}"
