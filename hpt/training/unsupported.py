"""Settings that transformers' Trainer has and ours don't read, or can't: each is refused in a line that says why.

`tests/training/test_settings.py` has a table of all settings, and what becomes of each.
"""

import os
from dataclasses import MISSING, Field, fields

from transformers import TrainingArguments

from hpt.errors import InputError


# Of any training: field of TrainingArguments -> what speaks against it
TRAINING = {
    "label_smoothing_factor": "is read by losses of Trainer's, which aren't used here",
    "neftune_noise_alpha": "is noise for the tokens of language models",
    "use_liger_kernel": "is for language models",
    "liger_kernel_config": "is for language models",
    "include_num_input_tokens_seen": "counts tokens, but the inputs are images",
    "auto_find_batch_size": "would change the mathematics of a run halfway",
    "ignore_data_skip": "would make a resumed run another run",
    "enable_jit_checkpoint": "would take SIGTERM away from what saves the run already",
    "remove_unused_columns": "would drop what a batch is made of",
    "length_column_name": "is for sorting by length, but images have none",
    "label_names": "would rename the labels, which each batch has as labels",
}
# Of HPTTrainer, beside these
ROBUST_TRAINING = {
    "lr_scheduler_kwargs": "is for Trainer's schedulers, but GPD has its own",
    "logging_nan_inf_filter": "would hide a loss that isn't finite, which stops the run here",
    "bf16_full_eval": "would weaken the attack in evaluate()",
    "fp16_full_eval": "would weaken the attack in evaluate()",
    "prediction_loss_only": "is for evaluations of a loss, but evaluate() measures accuracies",
    "include_for_metrics": "would add inputs or losses, but compute_metrics is given classes and labels alone",
}
# Arguments of Trainer.__init__
ARGUMENTS = {
    "data_collator": "batches are made of uint8 images, their labels and ids",
    "compute_loss_func": "an Objective says what a step minimises: see hpt.OBJECTIVES",
}
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")  # what accelerate can be told to launch with
SAMPLING = ("random", "sequential")
WITHOUT_ADAM = ("sgd", "adagrad", "rmsprop", "adafactor")  # optimizers that read no field named adam_*
AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
WITH_TARGET_MODULES = ("galore", "apollo")  # begin the names of those that read optim_target_modules


def check_run(args: TrainingArguments) -> None:
    """Refuse a run without a folder, or with batches without images, which transformers takes.

    Raises:
        InputError: naming the setting.
    """
    if args.output_dir == "":
        raise InputError("output_dir is empty: give a folder.")
    for name in AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise InputError(f"{name} is {getattr(args, name)}, but must be at least 1.")


def refuse_unsupported(args: TrainingArguments, more: dict[str, str] | None = None) -> None:
    """Refuse what no trainer of ours reads, and `more`, wherever it isn't at its default.

    Raises:
        InputError: naming the setting, and what speaks against it.
    """
    given = {field.name: getattr(args, field.name) for field in fields(args) if _is_given(args, field)}
    for name, reason in (TRAINING | (more or {})).items():
        if name in given:
            raise InputError(f"{name} is {given[name]!r}, but it {reason}: leave it out.")
    if args.train_sampling_strategy not in SAMPLING:
        raise InputError(
            f"train_sampling_strategy is {args.train_sampling_strategy!r}, but images have no lengths to sort by: "
            f"give {' or '.join(SAMPLING)}."
        )
    if args.accelerator_config.split_batches or not args.accelerator_config.even_batches:
        raise InputError(
            "accelerator_config would give batches of other sizes: leave split_batches and even_batches out."
        )
    if not args.dataloader_in_order:
        raise InputError("dataloader_in_order is False, but then no run could be resumed: leave it out.")
    if args.gradient_checkpointing_kwargs and args.gradient_checkpointing_kwargs.get("use_reentrant") is not False:
        raise InputError(
            "gradient_checkpointing_kwargs is without use_reentrant=False, but attacks ask for the gradient of images "
            "alone, which reentrant checkpoints can't give: add it, or leave the setting out."
        )
    _refuse_what_the_optimizer_ignores(args.optim.value, given)


def refuse_sharding(args: TrainingArguments) -> None:
    """Refuse to share out a model: attacks run on it past its wrapper, which needs all weights on each process.

    Raises:
        InputError: naming the setting, or what accelerate was launched with.
    """
    launched = {name: os.environ.get(f"ACCELERATE_USE_{name}", "false") for name in SHARDING}
    given = [name for name, value in launched.items() if value.lower() in ("1", "true", "yes", "on")]
    fields_given = (
        ("FSDP", args.fsdp or args.fsdp_config),
        ("DEEPSPEED", args.deepspeed),
        ("parallelism_config", args.parallelism_config),
    )
    given += [name for name, value in fields_given if value]
    if given:
        raise InputError(
            f"{given[0]} isn't supported: dual encoders fit one GPU, so use plain DDP, as "
            "`accelerate launch --config_file recipes/accelerate/ddp.yaml SCRIPT` does."
        )


def refuse_arguments(arguments: dict) -> None:
    """Refuse arguments of `Trainer.__init__` that ours doesn't take; `None` stands for none.

    Raises:
        InputError: naming the argument, and what there is instead.
    """
    for name, reason in ARGUMENTS.items():
        if arguments.get(name) is not None:
            raise InputError(f"{name} isn't taken, for {reason}.")


def _is_given(args: TrainingArguments, field: Field) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return getattr(args, field.name) not in (default, None)


def _refuse_what_the_optimizer_ignores(optimizer: str, given: dict) -> None:
    ignored = [name for name in given if name.startswith("adam_")] if optimizer in WITHOUT_ADAM else []
    if "optim_target_modules" in given and not optimizer.startswith(WITH_TARGET_MODULES):
        ignored.append("optim_target_modules")
    if ignored:
        raise InputError(f"{ignored[0]} is given, but the optimizer, {optimizer}, doesn't read it: leave it out.")
