import inspect
import math

import pytest
import torch
import yaml
from helpers import ROOT

from hpt import GPDSchedule, HPTConfig, InputError, get_gpd_schedule
from hpt.cli import parse_config
from hpt.radius import Fraction


def hpt_config(**settings):
    return HPTConfig(**({"output_dir": "unused", "use_cpu": True} | settings))


def test_defaults_are_the_papers():
    args = hpt_config()
    assert (args.anchor_epochs, args.transfer_epochs, args.num_train_epochs) == (5, 5, 10)
    assert (args.anchor_learning_rate, args.learning_rate, args.warmup_steps) == (5e-5, 5e-2, 0.1)
    assert (args.ema_decay, args.pull_ratio) == (0.9, 0.5)
    assert args.attack_eps == args.attack_step_size == 1 / 255
    assert (args.attack_steps, args.eval_attack_steps, args.attack_random_start) == (2, 10, True)
    assert (args.optim, args.optim_args, args.weight_decay, args.max_grad_norm) == ("sgd", "momentum=0.9", 0, 0)
    assert args.per_device_train_batch_size == 64
    assert (args.kl_direction, args.kl_reduction, args.temperature) == ("proxy_to_target", "mean", 1)


@pytest.mark.parametrize(
    ("device", "settings", "non_blocking"),
    [
        ("cpu", {}, False),
        ("cuda", {}, True),
        ("cuda", {"dataloader_pin_memory": False}, False),
        ("cuda", {"accelerator_config": {"non_blocking": False}}, False),
        ("mps", {}, False),
    ],
)
def test_batches_are_copied_to_a_gpu_without_waiting(monkeypatch, device, settings, non_blocking):
    """Where they are pinned, unless it is given otherwise."""
    own = HPTConfig.device.fget
    monkeypatch.setattr(HPTConfig, "device", property(lambda args: own(args) and torch.device(device)))
    args = HPTConfig(output_dir="unused", **settings)
    assert args.accelerator_config.non_blocking == non_blocking


@pytest.mark.parametrize("text", ["1/255", "0.5", "5e-2", 0.25, "8 / 255"])
def test_fractions(text):
    expected = {"1/255": 1 / 255, "0.5": 0.5, "5e-2": 0.05, 0.25: 0.25, "8 / 255": 8 / 255}[text]
    assert Fraction(text) == pytest.approx(expected)
    assert hpt_config(attack_eps=text, attack_step_size="1/255").attack_eps == pytest.approx(expected)
    args, _ = parse_config((HPTConfig,), None, ["--output_dir", "unused", "--pull_ratio", str(text).replace(" ", "")])
    assert args.pull_ratio == pytest.approx(expected)


def test_optimizer_arguments_are_sgds_alone():
    assert hpt_config(optim="adamw_torch").optim_args is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack_eps": 1}, "did you mean 1/255?"),
        ({"attack_eps": 0}, "must be above 0"),
        ({"attack_eps": "one"}, "attack_eps is 'one', but must be a number or a fraction"),
        ({"attack_eps": "1/0"}, "attack_eps is '1/0'"),
        ({"attack_step_size": "3/255"}, "at most 2 . eps"),
        ({"num_train_epochs": 3}, r"num_train_epochs is 3, but the stages have 5 \+ 5 = 10 epochs"),
        ({"output_dir": f"{__file__}/run"}, "can't be written to .*: .*test_config.py isn't a folder"),
        ({"objective": "trades"}, "Unknown objective 'trades'; known: hpt, anchor, tecoa"),
        ({"kl_direction": "both"}, "Unknown kl_direction 'both'"),
        ({"trainable": "text"}, "Unknown trainable 'text'; known: vision, all"),
        ({"restart": "no"}, "restart is 'no', but must be True or False"),
        ({"only_where_right": 1}, "only_where_right is 1, but must be"),
        ({"save_endpoints": "False"}, "save_endpoints is 'False', but must be"),
        ({"attack_random_start": None}, "attack_random_start is None, but must be"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5, but must be between 0 and 1"),
        ({"attack_steps": 0}, "attack_steps is 0"),
        ({"anchor_epochs": -1}, "anchor_epochs is -1"),
        ({"lr_scheduler_type": "linear"}, "GPD's stages are cosine"),
        ({"warmup_steps": -3}, "warmup_steps is -3, but must be at least 0"),
        ({"attack_eps": float("nan")}, "eps is nan"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"attack_dtype": "int8"}, "Unknown attack_dtype 'int8'; known: float32, bfloat16, float16"),
        ({"fsdp": "full_shard"}, "FSDP isn't supported.*plain DDP, as `accelerate launch --config_file recipes/"),
        ({"deepspeed": "zero.json"}, "DEEPSPEED isn't supported"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        hpt_config(**settings)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharding_asked_for_by_the_launcher_is_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"{name} isn't supported"):
        hpt_config()
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    hpt_config()


@pytest.mark.parametrize("given", [["a {}"], ["a {}", "the {}, here"], []], ids=["one", "several", "none"])
def test_prompt_templates_from_a_command_line_and_a_file(tmp_path, given):
    """A single one is text, as in the checkpoints of earlier versions."""
    expected = {0: "This is a photo of a {}", 1: "a {}"}.get(len(given), given)
    argv = ["--output_dir", "unused", "--use_cpu", *(["--prompt_template", *given] if given else [])]
    assert parse_config((HPTConfig,), None, argv)[0].prompt_template == expected
    fields = {"output_dir": "unused", "use_cpu": True} | ({"prompt_template": given} if given else {})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields))
    assert parse_config((HPTConfig,), tmp_path / "run.yaml", [])[0].prompt_template == expected
    assert hpt_config(**({"prompt_template": given} if given else {})).prompt_template == expected
    assert hpt_config(prompt_template="a {} | b").prompt_template == "a {} | b"


def test_num_train_epochs_may_be_given_if_right():
    assert hpt_config(num_train_epochs=10).num_train_epochs == 10


def test_schedule_is_checked_before_anything_is_loaded():
    with pytest.raises(InputError, match="warmup_steps is 1000, but the anchor stage has only 80 steps"):
        hpt_config(warmup_steps=1000).schedule(1000)


@pytest.mark.parametrize("images", [1, 60, 450, 100_000])
def test_defaults_fit_sets_of_any_size(images):
    args = hpt_config()
    schedule = args.schedule(images)
    steps = schedule.num_epochs * schedule.steps_per_epoch
    assert schedule.warmup("anchor") == schedule.warmup("transfer") < steps / 2
    logs_per_epoch = schedule.steps_per_epoch / math.ceil(args.logging_steps * steps)
    assert min(3, schedule.steps_per_epoch) <= logs_per_epoch <= 5


def test_defaults_agree():
    schedule, scheduler = GPDSchedule(7), inspect.signature(get_gpd_schedule).parameters
    for name in ("anchor_epochs", "transfer_epochs", "anchor_learning_rate", "warmup_steps"):
        assert getattr(hpt_config(), name) == getattr(schedule, name) == scheduler[name].default
    assert hpt_config().learning_rate == schedule.learning_rate


def test_the_papers_numbers_stand_in_its_file():
    written = yaml.safe_load((ROOT / "recipes" / "vit_b32_eps1.yaml").read_text())
    assert written["warmup_steps"] == 1000 and written["logging_steps"] == 50


def test_output_dir_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_dir is '.*file', which is a file: give a folder"):
        hpt_config(output_dir=str(tmp_path / "file"))


def test_workers_of_a_stream_persist():
    assert hpt_config(steps_per_epoch=5, dataloader_num_workers=2).dataloader_persistent_workers
    assert not hpt_config(dataloader_num_workers=2).dataloader_persistent_workers
    assert not hpt_config(steps_per_epoch=5).dataloader_persistent_workers
