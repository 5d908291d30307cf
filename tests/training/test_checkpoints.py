"""Checkpoints are complete or don't count, and a run goes on from them as if it had never stopped."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from fault_injection import STEPS, VARIANTS, assert_same_run, finish, kill_in_step
from helpers import (
    CLASSES,
    TerminateAt,
    assert_same,
    make_clip,
    make_dataset,
    make_trainer,
    weights,
    with_other_weights,
)
from packaging import version
from safetensors.torch import load_file
from transformers import TrainerCallback

from hpt import InputError, ZeroShotClassifier
from hpt.data.benchmark import Benchmark
from hpt.data.geometry import ImageTransform
from hpt.training.checkpoints import MANIFEST, delete_older, last_checkpoint, read_manifest, write_manifest
from hpt.training.resumable import TERMINATED, CheckpointError
from hpt.training.trainer import NonFiniteLossError


def make_checkpoint(output_dir: Path, step: int) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub" / "state.json").write_text("{}")
    write_manifest(folder, {"seed": 1}, {})
    return folder


def write_as_earlier(folder: Path, *missing: str) -> dict:
    """Make a checkpoint's manifest one of an earlier version, without its name and digest, and without settings."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["name"], manifest["digest"]
    values = {name: manifest["settings"].pop(name) for name in missing}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return values


DAMAGE = {
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "is incomplete: it has no manifest.json"),
    "broken manifest": (
        lambda folder: (folder / MANIFEST).write_text('{"files": '),
        "its manifest.json can't be read",
    ),
    "no settings": (lambda folder: (folder / MANIFEST).write_text('{"files": {}}'), "its manifest.json can't be read"),
    "no size": (
        lambda folder: (folder / MANIFEST).write_text('{"files": {"x": null}, "settings": {}, "launch": {}}'),
        "its manifest.json can't be read",
    ),
    "list": (lambda folder: (folder / MANIFEST).write_text("[]"), "its manifest.json can't be read"),
    "missing": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "cut": (lambda folder: os.truncate(folder / "model.safetensors", 3), "model.safetensors has 3 of 7 bytes"),
    "changed": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"Weights"),
        "the content of model.safetensors isn't what was written",
    ),
    "subfolder": (lambda folder: shutil.rmtree(folder / "sub"), "sub/state.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_an_older_checkpoint_taken(tmp_path, kind, caplog):
    older, newer = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    assert last_checkpoint(tmp_path) == str(newer)
    damage, line = DAMAGE[kind]
    damage(newer)
    with pytest.raises(InputError) as error:
        read_manifest(newer)
    assert line in str(error.value) and str(newer) in str(error.value)
    assert last_checkpoint(tmp_path) == str(older)
    assert f"Ignored: {error.value}" in caplog.text
    damage(older)
    assert last_checkpoint(tmp_path) is None


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-3x").mkdir()
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "missing") is None


def test_a_process_of_several_loads_tensors_to_its_cpu(tmp_path):
    torch.save(torch.arange(3), tmp_path / "tensor.pt")
    assert torch.load(tmp_path / "tensor.pt", map_location=torch.device("cpu:0")).tolist() == [0, 1, 2]


SAVING = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 5}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """12 steps, saved after each second, with an evaluation after each epoch of 3."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, eval_dataset=make_dataset(6), eval_strategy="epoch", **SAVING).train()
    return folder


def resume(folder, wanted="last", **settings):
    trainer = make_trainer(folder, eval_dataset=make_dataset(6), eval_strategy="epoch", **SAVING | settings)
    with_other_weights(trainer).train(resume_from_checkpoint=wanted)
    return trainer


def said_by_hpt(caplog):
    """What hpt itself logged; some versions of transformers say more."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("hpt.")]


def log_of(folder, step=12):
    log = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [{key: value for key, value in entry.items() if "time" not in key and "second" not in key} for entry in log]


def test_the_manifest_lists_everything_but_the_card_and_the_settings(whole_run):
    folder = whole_run / "checkpoint-4"
    manifest = read_manifest(folder)
    assert set(manifest["files"]) == {file.name for file in folder.iterdir()} - {MANIFEST, "README.md"}
    assert manifest["settings"]["attack_eps"] == pytest.approx(8 / 255)
    assert manifest["settings"]["train_dataset"].startswith("12 images, 3 classes, ")
    assert manifest["launch"]["world_size"] == 1


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(whole_run, tmp_path, caplog):
    folder = tmp_path / "run"
    for step in (6, 8):
        shutil.copytree(whole_run / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    os.truncate(folder / "checkpoint-8" / "optimizer.pt", 100)
    with pytest.raises(InputError, match="optimizer.pt has 100 of"):
        resume(folder, folder / "checkpoint-8")
    trainer = resume(folder)
    assert "checkpoint-8 is damaged: optimizer.pt has 100 of" in caplog.text
    assert trainer.state.global_step == 12
    assert_same_files(folder, whole_run)


def assert_same_files(folder, other, step=12):
    """The last checkpoints agree in weights, optimizer, EMA and log."""
    for name in ("model.safetensors", "optimizer.pt", "gpd_state.safetensors"):
        first, second = (read_manifest(run / f"checkpoint-{step}")["files"][name] for run in (folder, other))
        assert first == second, name
    assert log_of(folder) == log_of(other)


@pytest.mark.parametrize("step", [2, 4, 6, 8, 10])
def test_the_log_goes_on_too(whole_run, tmp_path, step, caplog):
    """Losses are means since the last entry, and an epoch's evaluation isn't lost with a save at its last step."""
    shutil.copytree(whole_run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    resume(tmp_path)
    line = f"The run in {tmp_path} goes on with step {step + 1} of 12: it was found in checkpoint-{step}."
    assert said_by_hpt(caplog) == [line]
    assert_same_files(tmp_path, whole_run)
    assert len([entry for entry in log_of(tmp_path) if "eval_clean_accuracy" in entry]) == 4


def test_a_finished_run_says_so(whole_run, caplog):
    before = (whole_run / "checkpoint-12" / MANIFEST).stat().st_mtime_ns
    resume(whole_run)
    assert said_by_hpt(caplog) == [f"The run in {whole_run} is finished: it was found in checkpoint-12."]
    assert (whole_run / "checkpoint-12" / MANIFEST).stat().st_mtime_ns == before


def test_intervals_that_are_shares_of_the_run_are_those_of_its_checkpoints(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 0.3, "logging_steps": 0.25, "max_steps": 8}
    make_trainer(tmp_path, **settings).train()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in (3, 6, 8)]
    caplog.clear()
    trainer = make_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert "do not match" not in caplog.text and trainer.args.save_steps == 0.3
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 4, 6, 8]


def test_without_a_complete_checkpoint(tmp_path, whole_run):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(InputError, match="has no complete checkpoint: leave resume_from_checkpoint out"):
        resume(tmp_path, True)
    with pytest.raises(InputError, match="There is no checkpoint 'nowhere'"):
        resume(tmp_path, "nowhere")
    trainer = make_trainer(tmp_path, eval_dataset=make_dataset(6), eval_strategy="epoch", **SAVING)
    trainer.train(resume_from_checkpoint="last")  # from the start
    assert_same_files(tmp_path, whole_run)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"pull_ratio": 0.9}, "pull_ratio 0.5 there, 0.9 here"),
        ({"attack_eps": 16 / 255}, "attack_eps 8/255 there, 16/255 here"),
        ({"attack_dtype": "bfloat16"}, "attack_dtype None there, bfloat16 here"),
        ({"augmentation": "crop_flip"}, "augmentation none there, crop_flip here"),
        ({"geometry": ImageTransform(18, 16)}, "geometry 16-16 there, native or 256-224 here"),
        ({"bf16": True}, "mixed_precision no there, bf16 here"),
        ({"seed": 1, "pull_ratio": 0.9}, "pull_ratio 0.5 there, 0.9 here; seed 42 there, 1 here"),
        ({"per_device_train_batch_size": 2}, "global_batch_size 4 there, 2 here"),
        ({"dataset": make_dataset(12, seed=1)}, r"train_dataset 12 images, 3 classes, \w+ there, 12 images"),
        ({"proxy": 3}, r"proxy clip of shape \w+, weights \w+ there, clip of shape"),
        ({"class_names": ["a", "b", "c"]}, r"classes \w+ there, \w+ here"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "use_seedable_sampler True there, False here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_mathematics_is_refused(whole_run, change, line):
    change = dict(change)
    if "proxy" in change:
        change["proxy"] = ZeroShotClassifier(*make_clip(change["proxy"], patch_size=4))
    if "class_names" in change:
        change = {"dataset": Benchmark("mine", "train", make_dataset(), change["class_names"], None)}
    if "geometry" in change:
        change = {"dataset": Benchmark("mine", "train", make_dataset(), CLASSES, None, change["geometry"])}
    trainer = make_trainer(whole_run, **SAVING | change)
    with pytest.raises(InputError, match=line + ".*use the same, or give another output_dir"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_hpt_0_1_has_the_geometry_of_a_record_or_the_one_of_plain_datasets_then(tmp_path):
    before = {"dataset": Benchmark("the training set", "given", make_dataset(), CLASSES, None, ImageTransform(18, 16))}
    settings = {"anchor_epochs": 0, "transfer_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, **before, **settings, max_steps=2).train()
    write_as_earlier(tmp_path / "checkpoint-2", "geometry", "augmentation")
    with pytest.raises(InputError, match=r"other settings \(geometry native or 256-224 there, 16-16 here"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint="last")
    with pytest.raises(InputError, match=r"\(augmentation none there, crop_flip here\): use the same"):
        make_trainer(tmp_path, augmentation="crop_flip", **before, **settings).train(resume_from_checkpoint="last")
    trainer = make_trainer(tmp_path, **before, **settings)
    trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 6


def test_a_checkpoint_of_hpt_0_4_restarts_and_is_attacked_by_all_of_its_objective(tmp_path):
    settings = {"anchor_epochs": 1, "transfer_epochs": 1, "save_strategy": "epoch", "objective": "0.5*hpt + tecoa"}
    make_trainer(tmp_path, **settings, max_steps=3).train()
    write_as_earlier(tmp_path / "checkpoint-3", "attack_loss", "restart")
    for change, line in (
        ({"restart": False}, "restart True there"),
        ({"attack_loss": "hpt"}, "attack_loss None there"),
    ):
        with pytest.raises(InputError, match=line):
            make_trainer(tmp_path, **settings | change).train(resume_from_checkpoint="last")
    trainer = make_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 6


@pytest.mark.parametrize(
    ("transform", "data"),
    [(ImageTransform(), "fa1da7359106"), (ImageTransform(resize=256, crop=224), "715527a35123")],
    ids=str,
)
def test_a_records_data_are_described_as_in_hpt_0_1(tmp_path, transform, data):
    trainer = make_trainer(tmp_path, dataset=Benchmark("random", "train", make_dataset(), CLASSES, None, transform))
    assert trainer.mathematics()["train_dataset"] == f"12 images, 3 classes, {data}"


@pytest.mark.parametrize("data", ["downloaded", "streamed"])
def test_a_resumed_run_sees_the_augmented_images_of_an_uninterrupted_one(tmp_path, data):
    def train(folder):
        dataset = make_dataset() if data == "downloaded" else make_dataset().to_iterable_dataset(num_shards=2)
        settings = {"augmentation": "crop_flip", "anchor_epochs": 1, "transfer_epochs": 2, "dataloader_num_workers": 1}
        settings |= {} if data == "downloaded" else {"steps_per_epoch": 3, "shuffle_buffer_size": 5}
        trainer = make_trainer(folder, dataset=dataset, **SAVING | settings)
        trainer.train(resume_from_checkpoint="last")
        return weights(trainer.model)

    whole = train(tmp_path / "whole")
    for step in (4, 6):  # within an epoch, and between epochs
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / f"from-{step}" / f"checkpoint-{step}")
        assert_same(train(tmp_path / f"from-{step}"), whole)


def test_another_division_of_the_same_batch_is_said_and_allowed(whole_run, tmp_path, caplog):
    shutil.copytree(whole_run / "checkpoint-4", tmp_path / "checkpoint-4")
    trainer = resume(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert "per_device_train_batch_size 4 there, 2 here" in caplog.text and "not bit for bit" in caplog.text
    whole = make_clip(0)[0].from_pretrained(whole_run / "checkpoint-12")
    assert_same(weights(trainer.model), weights(whole), atol=1e-4)


def test_a_label_that_changes_anywhere_is_noticed(tmp_path):
    rows = make_dataset(40)
    make_trainer(tmp_path, dataset=rows, save_strategy="steps", save_steps=2, max_steps=2).train()
    labels = rows["label"][:]
    labels[1] = (labels[1] + 1) % 3  # of an image that isn't looked at
    other = rows.remove_columns("label").add_column("label", labels).cast_column("label", rows.features["label"])
    with pytest.raises(InputError, match=r"train_dataset 40 images, 3 classes, \w+ there, 40 images"):
        make_trainer(tmp_path, dataset=other, max_steps=2).train(resume_from_checkpoint=True)


def test_the_same_mathematics_said_otherwise_is_the_same(whole_run, tmp_path):
    shutil.copytree(whole_run / "checkpoint-4", tmp_path / "checkpoint-4")
    resume(tmp_path, "True", data_seed=42, shuffle_buffer_size=5)
    assert_same_files(tmp_path, whole_run)


def test_a_checkpoint_whose_short_micro_batches_weighed_too_much_is_refused(tmp_path):
    settings = {"dataset": make_dataset(11), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, **settings).train()
    without = write_as_earlier(tmp_path / "checkpoint-2", "micro-batches weigh")
    assert without == {"micro-batches weigh": "by their images"}
    with pytest.raises(InputError, match="micro-batches weigh alike, whatever their size there, by their images here"):
        make_trainer(tmp_path, max_steps=4, **settings).train(resume_from_checkpoint=True)


def test_another_division_of_an_unequal_last_batch_is_refused(tmp_path):
    rows = make_dataset(14)
    make_trainer(tmp_path, dataset=rows, save_strategy="steps", save_steps=2, max_steps=2).train()
    again = make_trainer(tmp_path, dataset=rows, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="division of the last batch"):
        again.train(resume_from_checkpoint=True)


def test_a_run_cut_by_max_steps_stays_at_its_end(tmp_path):
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 5}
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    again = with_other_weights(make_trainer(tmp_path, **settings))
    again.train(resume_from_checkpoint="last")
    assert again.state.global_step == 5
    assert_same(weights(again.model), weights(trainer.model))


@pytest.mark.parametrize("left_over", [100, 1])
def test_what_is_incomplete_takes_no_place_among_the_checkpoints_kept(tmp_path, left_over):
    (tmp_path / f"checkpoint-{left_over}").mkdir()
    os.utime(tmp_path / f"checkpoint-{left_over}", (4e9, 4e9))  # by a clock that was ahead
    (tmp_path / "checkpoint-6-backup").mkdir()
    make_trainer(tmp_path, **SAVING | {"save_total_limit": 1}).train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    names = {folder.name for folder in tmp_path.iterdir()}
    assert names == {"checkpoint-12", f"checkpoint-{left_over}", "checkpoint-6-backup"}


@pytest.mark.parametrize("limit", [None, 0, -1])
def test_without_a_limit_above_0_all_checkpoints_are_kept(tmp_path, limit):
    for step in (2, 4, 6):
        newest = make_checkpoint(tmp_path, step)
    delete_older(tmp_path, limit, newest, best=None)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("clock", [1, -1], ids=["as it should", "backwards"])
@pytest.mark.parametrize(
    ("limit", "newest", "best", "kept"),
    [
        (1, 12, None, [12]),
        (2, 12, None, [9, 12]),
        (3, 12, 4, [4, 9, 12]),
        (2, 12, 4, [4, 12]),
        (1, 12, 4, [4, 12]),
        (9, 12, None, [2, 4, 9, 12]),
        (2, 4, None, [2, 4]),  # of a run that was begun anew, or from an older checkpoint
        (3, 4, None, [2, 4, 12]),
        (1, 2, 4, [2, 4]),
    ],
)
def test_the_latest_steps_are_kept_whatever_the_clock_said(tmp_path, limit, newest, best, kept, clock):
    for step in (2, 4, 9, 12):
        written = 1e9 + clock * 100 * step
        os.utime(make_checkpoint(tmp_path, step) / MANIFEST, (written, written))
    folders = {step: tmp_path / f"checkpoint-{step}" for step in (2, 4, 9, 12)}
    delete_older(tmp_path, limit, folders[newest], best and str(folders[best]))
    assert set(tmp_path.iterdir()) == {folders[step] for step in kept}


def test_of_a_linked_checkpoint_only_the_link_is_deleted(tmp_path):
    elsewhere = make_checkpoint(tmp_path / "elsewhere", 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-2").symlink_to(elsewhere)
    delete_older(tmp_path / "run", 1, make_checkpoint(tmp_path / "run", 4), best=None)
    assert [folder.name for folder in (tmp_path / "run").iterdir()] == ["checkpoint-4"]
    read_manifest(elsewhere)


def test_a_run_is_not_begun_over_the_checkpoints_of_another(whole_run, tmp_path, caplog):
    shutil.copytree(whole_run / "checkpoint-8", tmp_path / "checkpoint-8")
    with pytest.raises(InputError, match=r"checkpoint-8 was trained with other settings \(seed 42 there, 1 here"):
        make_trainer(tmp_path, seed=1).train()
    caplog.clear()
    trainer = make_trainer(tmp_path, max_steps=2, **SAVING)
    trainer.train()
    line = f"The run starts anew over the one that came to {tmp_path / 'checkpoint-8'}, from which "
    assert said_by_hpt(caplog) == [line + "resume_from_checkpoint='last' goes on."]
    assert [entry["step"] for entry in trainer.state.log_history] == [2]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-8"]


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing", "link to itself"])
def test_what_lies_in_the_place_of_a_checkpoint_is_replaced(tmp_path, kind):
    place, elsewhere = tmp_path / "run" / "checkpoint-2", tmp_path / "elsewhere"
    elsewhere.mkdir()
    place.parent.mkdir()
    targets = {"link": elsewhere, "link to nothing": tmp_path / "nothing", "link to itself": place}
    place.symlink_to(targets[kind]) if kind in targets else place.write_text("a file")
    make_trainer(tmp_path / "run", max_steps=2, **SAVING).train(resume_from_checkpoint="last")
    assert last_checkpoint(tmp_path / "run") == str(place)
    assert not place.is_symlink() and not list(elsewhere.iterdir())


def best_run(folder, scores, **settings):
    trainer = make_trainer(
        folder,
        eval_dataset=make_dataset(6),
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="clean_accuracy",
        **settings,
    )
    scores = iter(scores)
    trainer.compute_metrics = lambda prediction: {"clean_accuracy": next(scores)}
    return trainer


def test_best_model_comes_from_the_transfer_stage(tmp_path):
    trainer = best_run(tmp_path, [0.9, 0.8, 0.3, 0.2])
    trainer.train()
    assert trainer.state.best_metric == 0.3
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-9"
    assert_same(weights(trainer.model), load_file(tmp_path / "checkpoint-9" / "model.safetensors"))


def test_the_newest_and_what_is_no_checkpoint_stay_beside_the_best(tmp_path):
    """Trainer deletes both at the end of a run."""
    (tmp_path / "checkpoint-6-backup").mkdir()
    best_run(tmp_path, [0.1, 0.1, 0.9, 0.2], save_total_limit=1).train()
    assert {folder.name for folder in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-12", "checkpoint-6-backup"}


def test_the_best_checkpoint_is_kept_and_found_again(tmp_path):
    trainer = best_run(tmp_path / "run", [0.1, 0.1, 0.9, 0.2], save_total_limit=1)
    trainer.train()
    best = weights(trainer.model)
    assert {folder.name for folder in (tmp_path / "run").iterdir()} >= {"checkpoint-9"}
    shutil.move(tmp_path / "run", tmp_path / "moved")
    again = best_run(tmp_path / "moved", [0.2] * 4, save_total_limit=2)
    again.train(resume_from_checkpoint="last")
    assert_same(weights(again.model), best)
    os.truncate(tmp_path / "moved" / "checkpoint-9" / "optimizer.pt", 10)
    with pytest.raises(InputError, match="checkpoint-9 is damaged: optimizer.pt has 10 of"):
        third = best_run(tmp_path / "moved", [0.2] * 4, save_total_limit=2)
        third.train(resume_from_checkpoint="last")


def test_the_checkpoint_resumed_from_is_not_written_again(whole_run, tmp_path, monkeypatch):
    """However its path is written."""
    shutil.copytree(whole_run / "checkpoint-4", tmp_path / "checkpoint-4")
    stamp = (tmp_path / "checkpoint-4" / MANIFEST).stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(tmp_path, **SAVING)
    trainer.add_callback(TerminateAt(5))
    monkeypatch.setattr(
        trainer, "compute_loss", lambda *batch, **settings: trainer.model.visual_projection.weight.sum() * NAN
    )
    with pytest.raises(NonFiniteLossError, match="The loss of step 5"):
        trainer.train(resume_from_checkpoint="checkpoint-4")
    assert (tmp_path / "checkpoint-4" / MANIFEST).stat().st_mtime_ns == stamp


NAN = float("nan")


def test_a_model_that_cannot_be_saved_by_hand_leaves_its_folder_alone(tmp_path):
    trainer = make_trainer(tmp_path / "run", save_total_limit=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="mine can't be written"):
            trainer.save_model(str(tmp_path / "mine"))
        with pytest.raises(CheckpointError):
            trainer.args.save_strategy = "epoch"
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"
    assert trainer.args.save_total_limit == 3


@pytest.mark.parametrize("limit", [1, 2])
def test_older_checkpoints_are_deleted_only_once_the_new_one_is_complete(tmp_path, monkeypatch, limit):
    settings = SAVING | {"save_total_limit": limit}
    trainer, kept = make_trainer(tmp_path, **settings), []

    def complete(folder, *args):
        kept.append(last_checkpoint(tmp_path))
        write_manifest(folder, *args)

    monkeypatch.setattr("hpt.training.resumable.write_manifest", complete)
    trainer.train()
    assert kept == [None, *(str(tmp_path / f"checkpoint-{step}") for step in (2, 4, 6, 8, 10))]
    assert len(list(tmp_path.glob("checkpoint-*"))) == limit
    saved = json.loads((tmp_path / "checkpoint-12" / "training_args.json").read_text())
    assert saved["save_total_limit"] == limit


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_full_disk_ends_with_a_line_and_the_last_checkpoint_intact(whole_run, tmp_path, share):
    """Files can't grow beyond a size here, which fails as a full disk does, in one of the checkpoint's files."""
    shutil.copytree(whole_run / "checkpoint-4", tmp_path / "checkpoint-4")
    sizes = [described["size"] for described in read_manifest(tmp_path / "checkpoint-4")["files"].values()]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * max(sizes)), before[1]))
    try:
        with pytest.raises(CheckpointError) as error:
            resume(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = str(error.value)
    assert "checkpoint-6 can't be written" in line and "MB are free there" in line
    assert f"Make room and resume from {tmp_path / 'checkpoint-4'}, which is intact." in line
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-4"]
    resume(tmp_path)
    assert_same_files(tmp_path, whole_run)


class TerminateAtTheEnd(TrainerCallback):
    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 12  # as the last event before the run is finished

    def on_log(self, args, state, control, logs, **kwargs):
        if "train_loss" in logs:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_behind_the_last_step_ends_the_process_with_the_run_saved(tmp_path):
    """While Trainer logs its last entry: too late to save, so the signal does what it does without training."""
    received, trainer = [], make_trainer(tmp_path, save_strategy="epoch")
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        trainer.add_callback(TerminateAtTheEnd())
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [True] and last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")


def test_sigterm_between_the_last_step_and_the_end_saves(tmp_path):
    trainer = make_trainer(tmp_path)
    finalize = trainer.callback_handler.on_epoch_end

    def on_epoch_end(args, state, control):
        control = finalize(args, state, control)
        if state.global_step == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return control

    trainer.callback_handler.on_epoch_end = on_epoch_end
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == TERMINATED and last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_leaves_the_loaders_workers_alive(tmp_path, number):
    trainer = make_trainer(tmp_path, dataloader_num_workers=2)
    trainer.add_callback(TerminateChildrenToo(4, number))
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


class TerminateChildrenToo(TerminateAt):
    def __init__(self, step, number):
        super().__init__(step, number)
        self.before = psutil.Process().children()

    def on_step_begin(self, args, state, control, **kwargs):
        super().on_step_begin(args, state, control, **kwargs)
        if state.global_step + 1 == self.step:
            children = [child for child in psutil.Process().children() if child not in self.before]
            assert len(children) == 2
            for child in children:
                child.send_signal(self.number)
            time.sleep(0.3)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 9, 12])
def test_sigterm_saves_and_exits_with_its_own_code(whole_run, tmp_path, step, caplog):
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path, eval_dataset=make_dataset(6), eval_strategy="epoch", **SAVING)
    trainer.add_callback(TerminateAt(step))
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == TERMINATED == 75
    assert signal.getsignal(signal.SIGTERM) is before
    folder = tmp_path / f"checkpoint-{step}"
    assert f"Stopped by SIGTERM after step {step}, which is saved in {folder}." in caplog.text
    assert last_checkpoint(tmp_path) == str(folder)
    resume(tmp_path)
    assert_same_files(tmp_path, whole_run)


def test_ctrl_c_saves_and_is_then_a_keyboard_interrupt(whole_run, tmp_path, caplog):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, eval_dataset=make_dataset(6), eval_strategy="epoch", **SAVING)
    trainer.add_callback(TerminateAt(5, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C: the step under way will be saved. Once more ends the run at once" in caplog.text
    assert f"Stopped by Ctrl-C after step 5, which is saved in {tmp_path / 'checkpoint-5'}." in caplog.text
    resume(tmp_path)
    assert_same_files(tmp_path, whole_run)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    trainer = make_trainer(tmp_path)
    for _ in range(2):
        trainer.add_callback(TerminateAt(2, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 1 and last_checkpoint(tmp_path) is None


def test_what_a_killed_run_left_is_replaced(whole_run, tmp_path):
    shutil.copytree(whole_run / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "rng_state_7.pth").write_bytes(b"of another launch")
    resume(tmp_path)
    assert "rng_state_7.pth" not in read_manifest(tmp_path / "checkpoint-6")["files"]
    assert_same_files(tmp_path, whole_run)


@pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.23"), reason="Trainer counted otherwise"
)
def test_final_loss_is_over_the_steps_of_the_call(whole_run, tmp_path):
    """Although the first logged loss after resuming is a mean that goes back beyond it."""
    single = make_trainer(tmp_path / "single", **SAVING | {"logging_steps": 1})
    single.train()
    losses = [entry["loss"] for entry in single.state.log_history if "loss" in entry]
    shutil.copytree(whole_run / "checkpoint-6", tmp_path / "checkpoint-6")
    caught = resume(tmp_path).state.log_history[-1]
    assert caught["train_loss"] == pytest.approx(sum(losses[6:]) / 6, rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "processes", "step", "delay"),
    [("plain", 1, 13, 0.03), ("accumulation, bf16, workers", 2, 7, 0.1)],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, variant, processes, step, delay):
    """Two of the kills that `fault_injection.py` makes by the dozen."""
    assert variant in VARIANTS and step <= STEPS
    kill_in_step(tmp_path / "killed", variant, processes, step, delay)
    for name in ("whole", "killed"):
        finish(tmp_path / name, variant, processes)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
