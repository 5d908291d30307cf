"""What a run keeps of its stages' ends: the very weights, with adapters merged, also of a run that was cut off."""

import json
import os
import shutil
import signal

import pytest
import torch
from helpers import TerminateAt, assert_same, make_clip, make_family, make_trainer, with_other_weights
from safetensors.torch import load_file
from transformers import CLIPModel, TrainerCallback

from hpt import InputError
from hpt.json_files import sealed
from hpt.models.endpoints import INDEX, collect_endpoint, read_endpoints, read_index
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.lora import add_lora, merged
from hpt.models.weights import freeze_untrained, hash_weights
from hpt.training import saving
from hpt.training.gpd import trained_weights
from hpt.training.resumable import NonFiniteError


NAMES = ("anchor", "average", "final")
BOUNDARY = 6  # of 12 steps


def read_files(run) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(run / "endpoints" / f"{name}.safetensors") for name in NAMES}


class Record(TrainerCallback):
    """The trained weights as they are after each step, and the average of Eq. 9 over the anchor stage's epochs."""

    def __init__(self, model):
        self.average = {name: weight.detach().clone() for name, weight in trained_weights(model).items()}
        self.after = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        step = state.global_step
        self.after[step] = {name: weight.detach().clone() for name, weight in trained_weights(model).items()}
        if step in (3, BOUNDARY):
            self.average = {name: 0.9 * self.average[name] + 0.1 * self.after[step][name] for name in self.average}


def test_endpoints_are_the_weights_at_the_ends_of_the_stages(tmp_path):
    trainer = make_trainer(tmp_path, save_endpoints=True)
    vanilla = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    record = Record(trainer.model)
    trainer.add_callback(record)
    trainer.train()
    endpoints = read_files(tmp_path)
    assert_same(endpoints["anchor"], record.after[BOUNDARY])
    assert_same(endpoints["final"], record.after[12])
    assert_same(endpoints["average"], record.average, atol=1e-6)
    assert not any(name.startswith("text_model") for name in endpoints["final"])
    assert_same(read_endpoints(tmp_path, vanilla).at(1), dict(trainer.model.state_dict()))
    assert_same(read_endpoints(tmp_path, vanilla).at(0, 1), vanilla | endpoints["average"])
    index = read_index(tmp_path)
    assert index["vanilla_weights"] == hash_weights(vanilla)
    assert (index["objective"], index["anchor_objective"], index["schedule"]["anchor_epochs"]) == ("hpt", "anchor", 2)
    assert index["names"] == sorted(endpoints["final"])


def test_a_run_without_an_anchor_stage_has_only_the_final_weights(tmp_path, caplog):
    trainer = make_trainer(tmp_path, save_endpoints=True, anchor_epochs=0)
    trainer.train()
    assert sorted(os.listdir(tmp_path / "endpoints")) == [INDEX, "final.safetensors"]
    assert "only the final weights" not in caplog.text
    with pytest.raises(InputError, match="there is no average"):
        read_endpoints(tmp_path, make_clip(0)[0].state_dict()).at(0.5, 0.5)


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path):
    make_trainer(tmp_path, anchor_epochs=1, transfer_epochs=1).train()
    assert not (tmp_path / "endpoints").exists()


def test_adapters_are_merged(tmp_path):
    """Endpoints are `W + B A` with the adapters at each stage's end, and the average's are those of A and of B."""
    base = make_clip(0)[0]
    vanilla = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = add_lora(base, rank=2)
    trainer, record = make_trainer(tmp_path, model=model, save_endpoints=True), Record(model)
    trainer.add_callback(record)
    trainer.train()
    endpoints = read_files(tmp_path)
    layer = "vision_model.encoder.layers.1.mlp.fc1"
    for name, adapters in (
        ("anchor", record.after[BOUNDARY]),
        ("average", record.average),
        ("final", record.after[12]),
    ):
        a, b = (adapters[f"base_model.model.{layer}.lora_{part}.default.weight"] for part in "AB")
        torch.testing.assert_close(endpoints[name][f"{layer}.weight"], vanilla[f"{layer}.weight"] + b @ a)
        assert_same({"bias": endpoints[name][f"{layer}.bias"]}, {"bias": vanilla[f"{layer}.bias"]})
    assert not any("lora" in name or "base_layer" in name for name in endpoints["final"])
    assert_same(read_endpoints(tmp_path, vanilla).at(1), dict(merged(model).state_dict()))


def test_whole_modules_that_adapters_replace_are_kept_too():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["fc1"], modules_to_save=["visual_projection"], bias="all")
    model = get_peft_model(make_clip(0)[0], config)
    expected = dict(merged(model).state_dict())
    for name, weight in trained_weights(model).items():
        weight.data += 1 if "lora" not in name else 0.1
    changed = dict(merged(model).state_dict())
    endpoint = collect_endpoint(model)
    assert_same(endpoint, {name: changed[name] for name in endpoint})
    assert {name for name in changed if not torch.equal(changed[name], expected[name])} <= endpoint.keys()
    assert "visual_projection.weight" in endpoint


def test_buffers_are_kept_too():
    model = make_family("Align")[0]
    freeze_untrained(model, "vision")
    endpoint = collect_endpoint(model)
    assert any(name.endswith("running_mean") for name in endpoint)
    assert any(name.endswith("num_batches_tracked") for name in endpoint)
    assert not any(name.startswith("text_model") for name in endpoint)


# Runs that were cut off


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that wasn't cut off."""
    folder = tmp_path_factory.mktemp("whole")
    make_trainer(folder, save_endpoints=True).train()
    return folder


def contents(run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "endpoints").iterdir()}


@pytest.mark.parametrize("step", [BOUNDARY, BOUNDARY + 1, 12])
def test_a_run_that_goes_on_ends_with_the_same_endpoints(whole, tmp_path, step):
    """It is stopped after a step: before and after the boundary, and at its end."""
    trainer = make_trainer(tmp_path, save_endpoints=True)
    trainer.add_callback(TerminateAt(step, signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.train()
    assert (tmp_path / "endpoints").exists() == (step > BOUNDARY)
    assert not (tmp_path / "endpoints" / "final.safetensors").exists()
    with_other_weights(make_trainer(tmp_path, save_endpoints=True)).train(resume_from_checkpoint="last")
    assert contents(tmp_path) == contents(whole)


def test_endpoints_that_were_being_written_are_written_again(whole, tmp_path, monkeypatch):
    """A kill between two files leaves no index, and the boundary is passed again."""
    settings = {"save_endpoints": True, "save_strategy": "epoch"}

    def kill(*arguments):
        (tmp_path / "endpoints").mkdir()
        (tmp_path / "endpoints" / "average.safetensors").write_bytes(b"other")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_endpoints", kill)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path, **settings).train()
    make_trainer(tmp_path, **settings).train(resume_from_checkpoint="last")
    assert {name: hash_weights(weights) for name, weights in read_files(tmp_path).items()} == read_index(whole)[
        "weights"
    ]


def test_a_finished_run_that_is_started_again_has_them(whole, tmp_path):
    settings = {"save_endpoints": True, "save_strategy": "epoch"}
    make_trainer(tmp_path, **settings).train()
    (tmp_path / "endpoints" / "final.safetensors").unlink()
    make_trainer(tmp_path, **settings).train(resume_from_checkpoint="last")
    assert contents(tmp_path)["final.safetensors"] == contents(whole)["final.safetensors"]


def test_a_run_that_asks_for_them_after_the_boundary_says_what_it_lacks(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    trainer.add_callback(TerminateAt(9))
    with pytest.raises(SystemExit):
        trainer.train()
    make_trainer(tmp_path, save_endpoints=True).train(resume_from_checkpoint="last")
    assert list(read_index(tmp_path)["weights"]) == ["final"]
    assert f"{tmp_path}/endpoints has only the final weights: the anchor stage ended without" in caplog.text


def test_endpoints_of_another_run_do_not_mix(tmp_path):
    make_trainer(tmp_path, save_endpoints=True).train()
    make_trainer(tmp_path, save_endpoints=True, anchor_epochs=0).train()
    assert list(read_index(tmp_path)["weights"]) == ["final"]


def test_a_run_that_ends_in_the_anchor_stage_has_no_final_weights(tmp_path):
    make_trainer(tmp_path, save_endpoints=True, max_steps=BOUNDARY).train()
    with pytest.raises(InputError, match="has no endpoints"):
        read_index(tmp_path)


def test_what_is_not_finite_is_not_kept(tmp_path):
    trainer = make_trainer(tmp_path, save_endpoints=True)
    trainer.train()
    before = contents(tmp_path)
    trainer.gpd.ema = {name: weight / 0 for name, weight in trainer.gpd.ema.items()}
    with pytest.raises(NonFiniteError, match="endpoints in .* aren't written: weights are NaN or infinite, .* of"):
        trainer.gpd.at_anchor_end()
    assert contents(tmp_path) == before


# Reading


def test_the_vanilla_model_is_known_by_its_path_and_by_its_hash(tmp_path):
    save_finished(*make_clip(0), tmp_path / "target")
    model, processor = load_dual_encoder(str(tmp_path / "target"))
    settings = {"anchor_epochs": 1, "transfer_epochs": 1, "save_endpoints": True}
    make_trainer(tmp_path / "run", model=model, processor=processor, **settings).train()
    assert (tmp_path / "run" / "endpoints" / "base_path.txt").read_text() == str(tmp_path / "target")
    assert str(tmp_path) not in (tmp_path / "run" / "endpoints" / INDEX).read_text()
    with pytest.raises(InputError, match=r"began with other weights \(hash \w+\) than those.*as --vanilla"):
        read_endpoints(tmp_path / "run", make_clip(1)[0].state_dict())


def test_a_model_beside_its_endpoints_loads_as_ever(whole, tmp_path):
    shutil.copytree(whole / "endpoints", tmp_path / "endpoints")
    model, processor = make_clip(3)
    save_finished(model, processor, tmp_path)
    assert_same(dict(CLIPModel.from_pretrained(tmp_path).state_dict()), dict(model.state_dict()))


DAMAGE = {
    "no folder": (
        lambda folder: shutil.rmtree(folder),
        "has no endpoints .endpoints/endpoints.json.: train again with",
    ),
    "no index": (lambda folder: (folder / INDEX).unlink(), "has no endpoints"),
    "no file": (lambda folder: (folder / "final.safetensors").unlink(), "final.safetensors is missing: train again"),
    "cut": (lambda folder: os.truncate(folder / "final.safetensors", 1000), "final.safetensors is damaged .*: train"),
    "empty": (lambda folder: os.truncate(folder / "average.safetensors", 0), "average.safetensors is damaged"),
    "other run": (
        lambda folder: shutil.copy(folder / "anchor.safetensors", folder / "final.safetensors"),
        "final.safetensors isn't what endpoints.json is of: it was altered, or is of another run",
    ),
    "no JSON": (lambda folder: (folder / INDEX).write_text("{"), "endpoints.json is damaged .it isn't JSON"),
    "list": (lambda folder: (folder / INDEX).write_text("[]"), "endpoints.json is damaged .it isn't a dictionary"),
    "lacking": (
        lambda folder: (folder / INDEX).write_text("{}"),
        "endpoints.json is damaged .it lacks vanilla_weights",
    ),
    "altered": (
        lambda folder: alter(folder, vanilla_weights="0" * 16, seal=False),
        "endpoints.json is damaged .it isn't what its digest is of",
    ),
    "unfinished": (lambda folder: alter(folder, weights={}), "has no final weights yet: let it come to its end"),
    "other kind": (lambda folder: alter(folder, names=[1]), "endpoints.json is damaged .names is"),
}


def alter(folder, seal=True, **changes) -> None:
    index = json.loads((folder / INDEX).read_text())
    changed = {name: value for name, value in index.items() if name != "digest"} | changes
    (folder / INDEX).write_text(json.dumps(sealed(changed) if seal else index | changes))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(whole, tmp_path, kind):
    shutil.copytree(whole / "endpoints", tmp_path / "endpoints")
    damage, line = DAMAGE[kind]
    damage(tmp_path / "endpoints")
    with pytest.raises(InputError, match=line) as refused:
        read_endpoints(tmp_path, make_clip(0)[0].state_dict())
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "robust").mkdir()
    with pytest.raises(InputError, match="There is no folder .*robsut.*: did you mean .*robust"):
        read_index(tmp_path / "robsut")
