"""Pushes while a model trains: which saves go, where to, and what happens when one can't."""

import json
import threading
from concurrent.futures import Future

import pytest
from helpers import ALWAYS, make_clip, make_trainer
from huggingface_hub import constants
from stand_in_hub import TOKEN, messages, pushed

from hpt import HPTConfig, InputError
from hpt.errors import PushFailed
from hpt.hub import publisher
from hpt.hub.folder import ModelFolder
from hpt.models.lora import add_lora
from hpt.models.weights import hash_weights
from hpt.training.checkpoints import read_manifest


PUSHING = {"push_to_hub": True, "hub_model_id": "me/run", "save_strategy": "epoch"}
STEPS = [f"Training in progress, step {step}" for step in (3, 6, 9, 12)]


@pytest.fixture
def slow_hub(monkeypatch):
    """The first push waits until the event is set."""
    released, publish = threading.Event(), publisher.publish

    def wait_and_publish(*arguments, **options):
        released.wait(20)
        return publish(*arguments, **options)

    monkeypatch.setattr(publisher, "publish", wait_and_publish)
    yield released
    released.set()


def test_where_to_push_is_taken_from_the_settings(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    where = {"hub_private_repo": True, "hub_revision": "v2", "hub_token": TOKEN, "hub_always_push": True}
    trainer = make_trainer(tmp_path / "run", **PUSHING | where)
    trainer.train()
    trainer.push_to_hub()
    assert messages(hub, "me/run@v2") == [*STEPS, "End of training"] and messages(hub, "me/run") == []
    assert pushed(hub, "me/run") == set() and (hub.root / "models" / "me" / "run" / ".private").exists()


def test_a_save_during_a_push_is_not_pushed_unless_all_are(hub, tmp_path, slow_hub):
    trainer = make_trainer(tmp_path / "run", **PUSHING)
    finish = trainer._finish_current_push
    trainer._finish_current_push = lambda: (slow_hub.set(), finish())
    trainer.train()
    assert messages(hub, "me/run") == STEPS[:1]


def test_the_last_push_waits_for_the_one_before(hub, tmp_path, slow_hub):
    trainer = make_trainer(tmp_path / "run", **PUSHING)
    trainer.train_dataset, before = trainer.train_dataset, trainer._finish_current_push
    trainer._finish_current_push = lambda: None
    trainer.train()
    trainer._finish_current_push = before
    threading.Timer(0.3, slow_hub.set).start()
    trainer.push_to_hub()
    assert messages(hub, "me/run") == [STEPS[0], "End of training"]


def test_a_process_that_is_to_end_waits_for_no_push(tmp_path):
    args = HPTConfig(str(tmp_path), hub_always_push=True, use_cpu=True)
    ending = publisher.Publisher(args, describe_run=dict, draw_figures=print, interrupted=lambda: True)
    assert not ending.may_push_save()
    ending.in_progress.jobs = [Future()]  # which never ends
    assert not ending.may_push_save()


def test_saves_are_not_pushed_if_only_the_end_is(hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", hub_strategy="end", **PUSHING)
    trainer.train()
    assert messages(hub, "me/run") == []


def test_a_model_saved_by_its_user_is_pushed(hub, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run", **PUSHING | {"save_strategy": "no", "max_steps": 1})
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert messages(hub, "me/run") == ["Model save"] and pushed(hub, "me/run") >= ALWAYS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushFailed, match=f"Push later: hpt publish --run {tmp_path}/final --hub_model_id"):
        trainer.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "model.safetensors").is_file()


def test_a_push_that_is_not_waited_for_holds_what_was_there(hub, tmp_path, slow_hub):
    trainer = make_trainer(tmp_path / "run", **PUSHING | {"save_strategy": "no", "max_steps": 1})
    trainer.train()
    push = trainer.push_to_hub(blocking=False)
    weights = ModelFolder(tmp_path / "run").saved_weights
    trainer.model.visual_projection.weight.data.zero_()
    trainer.save_model(_internal_call=True)
    slow_hub.set()
    assert push.result(20).repo_url.repo_id == "me/run"
    assert ModelFolder(hub.root / "models" / "me" / "run").saved_weights == weights
    assert ModelFolder(tmp_path / "run").saved_weights != weights
    assert not (tmp_path / "run" / ".push").exists()


def test_offline_the_command_to_push_later_does_the_same(hub, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "my run", **PUSHING | {"save_strategy": "no", "max_steps": 1})
    trainer.train()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushFailed) as error:
        trainer.push_to_hub(private=True, revision="v2", license="mit")
    assert str(error.value).partition("Push later: ")[2] == (
        f"hpt publish --run '{tmp_path}/my run' --hub_model_id me/run --hub_private_repo True "
        "--hub_revision v2 --license mit"
    )


def test_copies_of_a_run_that_was_killed_are_removed(hub, tmp_path):
    (tmp_path / "run" / ".push" / "99").mkdir(parents=True)
    (tmp_path / "run" / ".push" / "99" / "model.safetensors").write_text("half")
    make_trainer(tmp_path / "run", **PUSHING)
    assert not (tmp_path / "run" / ".push").exists()


def test_a_checkpoint_is_pushed_as_what_it_is_and_stays_whole(hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", save_strategy="epoch", hub_model_id="me/run")
    trainer.train()
    trainer.push_to_hub(folder=tmp_path / "run" / "checkpoint-6")
    card = (hub.root / "models" / "me" / "run" / "README.md").read_text()
    assert "It is a checkpoint after step 6 of 12, in the anchor stage." in card
    read_manifest(tmp_path / "run" / "checkpoint-6")


# What can't be pushed


def test_what_would_tell_a_local_path_is_refused_before_training(hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", prompt_template=f"{tmp_path}/{{}}", **PUSHING)
    with pytest.raises(InputError, match="What the card says of this run names the local path /tmp/"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("error", [InputError("private"), OSError(28, "No space left on device")])
def test_a_save_that_cannot_be_pushed_is_complete(hub, tmp_path, monkeypatch, caplog, error):
    trainer = make_trainer(tmp_path / "run", **PUSHING)

    def refuse(folder):
        assert (folder.parent / "model.safetensors").is_file()  # the copy, all but the curves
        raise error

    monkeypatch.setattr(trainer.publisher, "draw_figures", refuse)
    trainer.train()
    assert trainer.state.global_step == 12 and f"Step 12 isn't pushed: {error}" in caplog.text
    assert not (tmp_path / "run" / ".push").exists()
    assert (tmp_path / "run" / "checkpoint-12" / "manifest.json").is_file() and messages(hub, "me/run") == []


def test_nothing_that_a_push_raises_is_lost(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(publisher, "publish", lambda *_, **__: 1 / 0)
    make_trainer(tmp_path / "run", **PUSHING).train()
    assert "division by zero Training goes on, and the next save is pushed again." in caplog.text


def test_a_second_adapter_is_refused(tmp_path):
    model = add_lora(make_clip(0)[0], rank=2)
    model.add_adapter("mine", model.peft_config["default"])
    with pytest.raises(InputError, match="adapters named default, mine, but only one named default is trained"):
        make_trainer(tmp_path / "run", model)


def test_settings_that_do_not_fit_are_refused_before_a_repository_is_made(hub, tmp_path):
    with pytest.raises(InputError, match="max_steps is 13, but the stages have 12 steps"):
        make_trainer(tmp_path / "run", **PUSHING, max_steps=13)
    assert not hub.requests


# What a folder says


def test_a_card_says_whose_weights_the_best_are(tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "clean_accuracy", "learning_rate": 1e-9}
    dataset = make_trainer(tmp_path / "unused").train_dataset.dataset
    trainer = make_trainer(tmp_path / "run", eval_dataset=dataset, **settings)
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "run" / "README.md").read_text()
    assert trainer.state.best_global_step == 9
    assert "Of the steps evaluated in training, its weights are those after the best, 9." in card
    best = json.loads((tmp_path / "run" / "checkpoint-9" / "training.json").read_text())
    assert ModelFolder(tmp_path / "run").saved_weights == best["weights"] and best["best_step"] is None


@pytest.mark.parametrize(("resample", "name"), [(2, "bilinear"), (None, "an unknown filter")])
def test_the_saved_processor_resizes_as_in_training(tmp_path, resample, name):
    model, processor = make_clip(0)
    processor.image_processor.resample = resample
    with pytest.warns(UserWarning, match=f"processor resizes by {name}, but images are resized bicubically here"):
        trainer = make_trainer(tmp_path / "run", model, processor=processor)
    trainer.save_model()
    saved = json.loads((tmp_path / "run" / "processor_config.json").read_text())
    assert saved["image_processor"]["resample"] == 3


def test_measurements_go_with_the_weights_they_are_of(tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.save_model()
    measured = [
        tmp_path / "run" / name for name in ("evaluation.jsonl", "processor_check.json", "figures/robustness_a.png")
    ]
    (tmp_path / "run" / "figures").mkdir()
    for file in measured:
        file.touch()
    trainer.save_model()
    assert all(file.exists() for file in measured)
    trainer.train()
    trainer.save_model()
    assert not any(file.exists() for file in measured)


def test_a_trainer_without_training_data_has_nothing_to_push(hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", **PUSHING | {"push_to_hub": False})
    trainer.train_dataset = None
    with pytest.raises(InputError, match="There is no run to describe on a card: the trainer has no train_dataset"):
        trainer.push_to_hub()
    with pytest.raises(InputError, match="There is no run to push: the trainer has no train_dataset"):
        trainer.init_hf_repo()
    assert not hub.requests


def test_the_vanilla_weights_are_those_before_training(tmp_path):
    vanilla = hash_weights(make_clip(0)[0].state_dict())
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    trainer.save_model()
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["vanilla_weights"] == vanilla != hash_weights(trainer.model.state_dict())
