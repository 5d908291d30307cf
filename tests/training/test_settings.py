"""Every setting of transformers' TrainingArguments and Trainer, and what becomes of it in HPTTrainer.

A setting is honoured: the weights depend on it. Or it is refused, in a line that names it. Or it is without effect on
the numbers: it says where a run lies, how it is watched, or how fast it goes. A version of transformers that adds a
setting fails here: see what its Trainer does with it, whether HPTTrainer, which has a loss, a schedule and an
evaluation of its own, does so too, and write the setting into its table.
"""

import inspect
from dataclasses import fields

import pytest
import torch
import transformers
from helpers import assert_same, make_clip, make_dataset, make_trainer, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from hpt import HPTConfig, HPTTrainer, InputError
from hpt.training.pretraining import PretrainingConfig
from hpt.training.unsupported import TRAINING


BEST = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
BEST |= {
    "transfer_epochs": 4,
    "learning_rate": 0.02,
    "pull_ratio": 1,
}  # after epoch 1, the most clean, the least robust
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "anchor_learning_rate": 1e-3}

# Field -> settings that change it, and with them the weights; and the settings of the run that they are compared with
HONOURED = {
    "per_device_train_batch_size": ({"per_device_train_batch_size": 2}, {}),
    "max_steps": ({"max_steps": 5}, {}),
    "learning_rate": ({"learning_rate": 0.3}, {}),
    "warmup_steps": ({"warmup_steps": 0.5}, {}),
    "optim": ({"optim": "adagrad"}, {}),
    "optim_args": ({"optim_args": "momentum=0.5"}, {}),
    "weight_decay": ({"weight_decay": 0.1}, {}),
    "adam_beta1": ({"adam_beta1": 0.5}, ADAM),
    "adam_beta2": ({"adam_beta2": 0.5}, ADAM),
    "adam_epsilon": ({"adam_epsilon": 0.1}, ADAM),
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 2}, {}),
    "max_grad_norm": ({"max_grad_norm": 0.1}, {}),
    "bf16": ({"bf16": True}, {}),
    "fp16": ({"fp16": True}, {}),
    "seed": ({"seed": 1}, {}),
    "data_seed": ({"data_seed": 1}, {}),
    "accelerator_config": ({"accelerator_config": {"use_seedable_sampler": False}}, {}),
    "dataloader_drop_last": ({"dataloader_drop_last": True}, {"per_device_train_batch_size": 5}),
    "train_sampling_strategy": ({"train_sampling_strategy": "sequential"}, {}),
    "load_best_model_at_end": ({"load_best_model_at_end": True}, BEST | {"load_best_model_at_end": False}),
    "greater_is_better": ({"greater_is_better": False}, BEST),
    "metric_for_best_model": ({"metric_for_best_model": "clean_accuracy"}, BEST),
}
# Fields that change numbers too, and where a test shows it; or what it would take to show it
HONOURED_ELSEWHERE = {
    "torch_compile": "test_precision.py",
    "torch_compile_backend": "test_precision.py",
    "torch_compile_mode": "handed to torch with the backend",
    "tf32": "a GPU; a part of the run's identity",
    "use_cpu": "a GPU",
    "full_determinism": "a GPU",
    "optim_target_modules": "an optimizer of another package",
    "restore_callback_states_from_checkpoint": "a callback with a state",
    "resume_from_checkpoint": "read by recipes: test_recipes.py",
}
# Field -> a value that is refused
REFUSED = {
    "num_train_epochs": 3,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "label_smoothing_factor": 0.1,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "auto_find_batch_size": True,
    "logging_nan_inf_filter": True,
    "include_num_input_tokens_seen": "all",
    "prediction_loss_only": True,
    "include_for_metrics": ["inputs"],
    "enable_jit_checkpoint": True,
    "ignore_data_skip": True,
    "parallelism_config": "tp",
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2},
    "deepspeed": "zero.json",
    "dataloader_in_order": False,
    "remove_unused_columns": True,
    "label_names": ["class"],
    "length_column_name": "size",
}
# Fields of which only some values are refused
PARTLY_REFUSED = {
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "activation_checkpointing_kwargs": {"preserve_rng_state": False},  # the default is reentrant
    "train_sampling_strategy": "group_by_length",
    "accelerator_config": {"split_batches": True},
    "hub_strategy": "checkpoint",
    "adam_beta1": 0.5,  # with SGD
    "optim_target_modules": "all-linear",
}
# Fields that are refused unless a compute_metrics of the user's own reads them
FOR_OWN_METRICS = {"batch_eval_metrics": True, "eval_do_concat_batches": False}
# Field -> another value, with which the run is the same bit for bit
WITHOUT_EFFECT = {
    "average_tokens_across_devices": False,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False, "preserve_rng_state": False},
    "use_cache": True,
    "torch_empty_cache_steps": 1,
    "logging_strategy": "epoch",
    "logging_steps": 2,
    "logging_first_step": True,
    "log_on_each_node": False,
    "log_level": "error",
    "log_level_replica": "error",
    "disable_tqdm": False,
    "report_to": "none",
    "run_name": "another",
    "project": "another",
    "trackio_space_id": "org/space",
    "trackio_bucket_id": "org/bucket",
    "trackio_static_space_id": "org/static",
    "eval_strategy": "steps",
    "eval_steps": 4,
    "eval_delay": 1,
    "eval_on_start": True,
    "eval_accumulation_steps": 1,
    "per_device_eval_batch_size": 5,
    "save_strategy": "steps",
    "save_steps": 5,
    "save_total_limit": 1,
    "save_on_each_node": True,
    "save_only_model": True,
    "hub_token": "secret",
    "hub_private_repo": True,
    "hub_model_id": "org/model",
    "hub_strategy": "end",
    "hub_always_push": True,
    "hub_revision": "v2",
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": 3,
    "dataloader_multiprocessing_context": "fork",
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 1,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": False,
    "ddp_timeout": 60,
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
}
# The same of fields that this test can't change, and why, or where they are tested
WITHOUT_EFFECT_ELSEWHERE = {
    "output_dir": "every test",
    "activation_checkpointing": "the newer name of gradient_checkpointing",
    "push_to_hub": "tests/hub",
    "dataloader_persistent_workers": "test_trainer.py",
    "debug": "a TPU; of a model that transformers can look into, which CLIP with its boolean masks isn't",
    "ddp_backend": "several processes",
    "eval_use_gather_object": "several processes",
    "skip_memory_metrics": "a thread that watches the memory, and slows other tests",
    "local_rank": "set by the launcher",
}

# Argument of Trainer.__init__ -> what becomes of it
ARGUMENTS = {
    "model": "honoured",
    "args": "honoured",
    "train_dataset": "honoured",
    "eval_dataset": "honoured",
    "processing_class": "honoured",
    "callbacks": "honoured",
    "optimizers": "honoured",
    "optimizer_cls_and_kwargs": "honoured",
    "compute_metrics": "honoured",
    "preprocess_logits_for_metrics": "honoured",
    "data_collator": "refused",
    "compute_loss_func": "refused",
    "model_init": "honoured",
}

TABLES = [HONOURED, HONOURED_ELSEWHERE, REFUSED, PARTLY_REFUSED, FOR_OWN_METRICS]
TABLES += [WITHOUT_EFFECT, WITHOUT_EFFECT_ELSEWHERE]
FIELDS = {field.name for field in fields(TrainingArguments)}  # those of the installed version


def installed(table: dict) -> list[str]:
    return [name for name in table if name in FIELDS]


def config(**settings) -> HPTConfig:
    return HPTConfig(**{"output_dir": "unused", "use_cpu": True} | settings)


def explain(kind: str, known: set[str], listed: set[str]) -> str:
    """In words, what a version of transformers has that no table lists; empty if there is nothing."""
    new = sorted(known - listed)
    return new and (
        f"transformers {transformers.__version__} has {kind} that no table of test_settings.py lists: "
        f"{', '.join(new)}. Find out what its Trainer does with each, and whether HPTTrainer does so too."
    )


def test_every_field_is_in_a_table():
    explanation = explain("fields of TrainingArguments", FIELDS, set().union(*TABLES))
    assert not explanation, explanation


def test_every_argument_is_in_the_table():
    arguments = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert arguments == ARGUMENTS.keys(), explain("arguments of Trainer", arguments, ARGUMENTS.keys())


def test_a_field_that_is_new_is_named():
    assert "fields that no table of test_settings.py lists: newer. Find out" in explain("fields", {"newer"}, {"older"})


# Fields


@pytest.mark.parametrize("name", installed(REFUSED | PARTLY_REFUSED))
def test_refused(name):
    value = (REFUSED | PARTLY_REFUSED)[name]
    in_words = name.replace("activation", "gradient").removesuffix("_config")  # the older name, and FSDP itself
    with pytest.raises(InputError, match=f"(?i){in_words}"):
        config(**{name: value})


@pytest.mark.parametrize("name", installed(TRAINING))
def test_pretraining_refuses_what_no_trainer_of_ours_reads(name):
    with pytest.raises(InputError, match=f"{name} is .*: leave it out"):
        PretrainingConfig(output_dir="unused", use_cpu=True, **{name: REFUSED[name]})


@pytest.mark.parametrize("kind", [HPTConfig, PretrainingConfig])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_dir": ""}, "output_dir is empty: give a folder"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0, but must be at least 1"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size is -1, but"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, but"),
    ],
    ids=["output_dir", "batch", "eval", "accumulation"],
)
def test_a_run_has_a_folder_and_images_in_its_batches(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**{"output_dir": "unused", "use_cpu": True} | settings)


@pytest.mark.parametrize("name", FOR_OWN_METRICS)
def test_refused_without_metrics_of_the_users_own(name, tmp_path):
    with pytest.raises(InputError, match=f"{name} is for a compute_metrics of your own"):
        make_trainer(tmp_path, eval_dataset=make_dataset(6), **{name: FOR_OWN_METRICS[name]})


def train(folder, **settings) -> dict[str, torch.Tensor]:
    """The weights and the accuracies after a short run."""
    settings = {"anchor_epochs": 1, "transfer_epochs": 1} | settings
    trainer = make_trainer(folder, eval_dataset=make_dataset(7, seed=3), **settings)
    trainer.train()
    accuracies = trainer.evaluate()
    known = {name: torch.tensor(value) for name, value in accuracies.items() if name.endswith("_accuracy")}
    assert len(known) == 2
    return weights(trainer.model) | known


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by their settings, each trained once."""
    known = {}

    def run(**settings):
        key = repr(sorted(settings.items()))
        known[key] = known.get(key) or train(tmp_path_factory.mktemp("run"), **settings)
        return known[key]

    return run


@pytest.mark.parametrize("name", installed(HONOURED))
def test_honoured(runs, name):
    change, compared = HONOURED[name]
    changed, unchanged = runs(**compared | change), runs(**compared)
    assert any(not torch.equal(weight, unchanged[name]) for name, weight in changed.items())


def test_without_effect(runs, tmp_path):
    together = {name: WITHOUT_EFFECT[name] for name in installed(WITHOUT_EFFECT)}
    assert_same(train(tmp_path, **together), runs())


# Arguments


def make(folder, **arguments) -> HPTTrainer:
    base = make_trainer(folder)
    given = {"model": make_clip(0)[0], "args": base.args, "proxy": base.proxy, "train_dataset": make_dataset()}
    given |= {"processing_class": base.processing_class, "eval_dataset": make_dataset(6)} | arguments
    return HPTTrainer(**given)


@pytest.mark.parametrize("name", [name for name, fate in ARGUMENTS.items() if fate == "refused"])
def test_arguments_that_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} isn't taken, for "):
        make(tmp_path, **{name: lambda *given, **settings: None})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (None, "args is missing: give an HPTConfig"),
        (TrainingArguments(output_dir="unused", use_cpu=True), "args is a TrainingArguments: give an HPTConfig"),
    ],
    ids=["none", "transformers'"],
)
def test_only_our_settings_are_taken(tmp_path, args, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, args=args)


class Count(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_optimizer_and_callbacks_of_the_user_are_used(tmp_path):
    model, count = make_clip(0)[0], Count()
    optimizer = torch.optim.AdamW(model.vision_model.parameters(), lr=1e-3)
    trainer = make(tmp_path, model=model, optimizers=(optimizer, None), callbacks=[count])
    start = weights(model)
    trainer.train()
    assert count.steps == 12 and trainer.optimizer.optimizer is optimizer
    projection = {name: weight for name, weight in start.items() if name == "visual_projection.weight"}
    assert_same({name: weights(model)[name] for name in projection}, projection, atol=1e-6)  # not the optimizer's
    assert trainer.state.log_history[6]["learning_rate"] <= 1e-3

    trainer = make(tmp_path, optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": 1e-3}))
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)


def test_metrics_of_the_user_are_used(tmp_path):
    def count(prediction):
        return {"images": len(prediction.label_ids), "kinds": len(prediction.predictions)}

    metrics = make(tmp_path, compute_metrics=count).evaluate()
    assert (metrics["eval_images"], metrics["eval_kinds"]) == (6, 2)  # clean and adversarial classes
    trainer = make(
        tmp_path,
        compute_metrics=lambda prediction: {"shape": prediction.predictions.shape[1]},
        preprocess_logits_for_metrics=lambda logits, labels: logits[0],
    )
    assert trainer.evaluate()["eval_shape"] == 3  # logits of three classes
