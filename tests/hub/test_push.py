"""What is pushed, kept and refused, against a stand-in for the Hub; and what others can load of it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import ALWAYS, assert_same, make_clip, make_dataset, make_trainer, run_recipe, with_accuracy
from huggingface_hub import HfApi, constants
from peft import PeftModel
from safetensors.torch import load_file
from stand_in_hub import COMMIT, READ_TOKEN, TOKEN, messages, pushed, stand_in_hub
from transformers import CLIPModel

from hpt import HPTConfig, InputError, ZeroShotClassifier
from hpt.errors import PushFailed
from hpt.evaluation.rows import Row
from hpt.hub.contents import published_files
from hpt.hub.folder import ModelFolder
from hpt.hub.push import prepare_repository, publish
from hpt.json_files import sealed, unsealed
from hpt.models.loading import save_finished
from hpt.models.lora import add_lora, merged
from hpt.models.weights import hash_weights


# What goes


def test_every_save_and_the_end_are_pushed_and_nothing_else(hub, tmp_path):
    trainer = make_trainer(
        tmp_path / "run", push_to_hub=True, hub_model_id="org/robust", save_strategy="epoch", hub_always_push=True
    )
    trainer.train()
    trainer.push_to_hub()
    steps = [f"Training in progress, step {step}" for step in (3, 6, 9, 12)]
    assert messages(hub, "org/robust") == [*steps, "End of training"]
    assert pushed(hub, "org/robust") == ALWAYS | {"figures/training_curves.png"}
    assert not (tmp_path / "run" / ".push").exists()
    for file in (hub.root / "models" / "org" / "robust").rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes(), file
    weights = load_file(hub.root / "models" / "org" / "robust" / "model.safetensors")
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weights[name], weight)


def test_a_card_in_training_says_that_it_is_a_checkpoint(hub, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 5, "max_steps": 8, "hub_always_push": True}
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/run", **saving)
    trainer.train()
    card = (hub.root / "models" / "me" / "run" / "README.md").read_text()
    assert messages(hub, "me/run")[0] == "Training in progress, step 5"
    checkpoint = (tmp_path / "run" / "checkpoint-5" / "README.md").read_text()
    assert "It is a checkpoint after step 5 of 8, in the anchor stage." in checkpoint
    assert "checkpoint after step" not in card  # the last save is the finished model


def test_private_branch_and_token_of_the_call(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    info = publish(ModelFolder(folder), "robust", private=True, revision="v2", token=TOKEN)
    assert info.repo_url.repo_id == "me/robust"
    assert (hub.root / "models" / "me" / "robust" / ".private").exists()
    assert pushed(hub, "me/robust") == set() and pushed(hub, "me/robust@v2") >= ALWAYS


@pytest.mark.parametrize("answered", [0, 1])
def test_a_push_that_was_cut_off_goes_on(hub, folder, tmp_path, answered):
    """The server dies in the middle of an upload; the folder is complete, and what had arrived isn't sent again."""
    hub.uploads_left = answered
    before = {
        name: (folder / name).read_bytes() for name in published_files(ModelFolder(folder)) if name != "README.md"
    }
    with pytest.raises(PushFailed, match="Nothing was pushed to me/robust on http"):
        publish(ModelFolder(folder), "me/robust")
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    with stand_in_hub(hub.root, port=hub.server_port) as again:
        publish(ModelFolder(folder), "me/robust")
        assert pushed(again, "me/robust") == set(published_files(ModelFolder(folder)))
        uploads = [path for kind, path in again.requests if kind == "PUT"]
        assert len(uploads) == 2 - answered


NO_STORAGE = ConnectionError("Network error: Request error, domain: cas-server.xethub.hf.co")
OFFLINE = ConnectionError("no route to host")


@pytest.mark.parametrize(
    ("method", "error", "line", "left"),
    [
        ("create_repo", OFFLINE, "making the repository failed (it can't be reached, or HF_HUB_OFFLINE is set; ", ""),
        (
            "auth_check",
            OFFLINE,
            "reading what it has failed (it can't be reached, or HF_HUB_OFFLINE is set; ConnectionError: no route to",
            " The repository is there, and empty if this push has made it.",
        ),
        (
            "preupload_lfs_files",
            NO_STORAGE,
            f"uploading large files failed (ConnectionError: {NO_STORAGE}; HF_HUB_DISABLE_XET=1 uploads without Xet)",
            " The repository is there, and empty.",
        ),
        (
            "create_commit",
            RuntimeError("the disk is full"),
            "committing failed (RuntimeError: the disk is full).",
            " The repository is there, and empty.",
        ),
    ],
    ids=["making", "reading", "uploading", "committing"],
)
def test_a_push_that_fails_names_the_step_the_cause_and_what_is_left(
    hub, folder, monkeypatch, method, error, line, left
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", method != "preupload_lfs_files")  # the stand-in has no Xet
    with monkeypatch.context() as patch, pytest.raises(PushFailed) as failure:
        patch.setattr(HfApi, method, fail)
        publish(ModelFolder(folder), "me/robust")
    text = str(failure.value)
    assert text.startswith(f"Nothing was pushed to me/robust on {hub.url}: {line}") and text.endswith(f").{left}")
    assert (hub.root / "models" / "me" / "robust").is_dir() == bool(left)


def test_a_push_that_fails_into_a_repository_with_a_model_does_not_call_it_empty(hub, folder, monkeypatch):
    publish(ModelFolder(folder), "me/robust")
    monkeypatch.setattr(HfApi, "create_commit", lambda *_, **__: 1 / 0)
    with pytest.raises(PushFailed, match=r"committing failed \(ZeroDivisionError: division by zero\)\.$"):
        publish(ModelFolder(folder), "me/robust")


def test_training_survives_a_hub_that_dies_and_comes_back(hub, tmp_path, caplog):
    settings = {"push_to_hub": True, "hub_model_id": "me/run", "save_strategy": "epoch", "hub_always_push": True}
    trainer = make_trainer(tmp_path / "run", **settings)
    hub.uploads_left = 2
    trainer.train()
    assert trainer.state.global_step == 12 and "Nothing was pushed to me/run" in caplog.text
    assert "Training goes on, and the next save is pushed again." in caplog.text
    with pytest.raises(PushFailed) as error:
        trainer.push_to_hub()
    command = str(error.value).partition("Push later: ")[2]
    assert command == f"hpt publish --run {tmp_path / 'run'} --hub_model_id me/run"
    with stand_in_hub(hub.root, port=hub.server_port):
        run_recipe("publish.py", *command.split()[2:])
    assert pushed(hub, "me/run") >= ALWAYS


def test_offline_from_the_start_trains_and_says_how_to_push_later(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/run", max_steps=1)
    assert "Training goes on, and the next save is tried again." in caplog.text
    trainer.train()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    trainer.push_to_hub()
    assert pushed(hub, "me/run") >= ALWAYS


# What is refused


@pytest.mark.parametrize(
    ("settings", "token", "line"),
    [
        ({}, None, "There is no token for the Hub: run `hf auth login` or set HF_TOKEN"),
        ({}, "hf_wrong", "The Hub doesn't take the token: run `hf auth login` or set HF_TOKEN to push to me/run"),
        ({}, READ_TOKEN, "The token may not write to me/run: give a hub_model_id under your name"),
        ({"hub_model_id": "openai/clip"}, TOKEN, "The token may not write to openai/clip"),
        (
            {"hub_model_id": "a/b/c"},
            TOKEN,
            "hub_model_id is 'a/b/c', but must be NAME, USER/NAME or ORGANISATION/NAME",
        ),
        (
            {"hub_model_id": "me/taken"},
            TOKEN,
            "me/taken holds a model that hpt didn't push: give another hub_model_id",
        ),
    ],
    ids=["no token", "wrong token", "read token", "namespace", "name", "taken"],
)
def test_what_cannot_be_pushed_is_refused_before_training(hub, tmp_path, monkeypatch, settings, token, line):
    save_finished(*make_clip(), hub.root / "models" / "me" / "taken")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=line.split("(")[0]) as error:
        make_trainer(tmp_path / "run", **{"push_to_hub": True, "hub_model_id": "me/run"} | settings)
    assert str(token) not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoint_strategies_are_refused(tmp_path, strategy):
    with pytest.raises(InputError, match=f"hub_strategy is '{strategy}', which would push optimizer states"):
        HPTConfig(str(tmp_path), hub_strategy=strategy, use_cpu=True)


def test_a_repository_with_only_a_card_is_written_to(hub, folder):
    prepare_repository("me/robust")
    (hub.root / "models" / "me" / "robust" / "README.md").write_text("---\nlanguage: en\n---\n\n# Mine\n\nBy hand.\n")
    publish(ModelFolder(folder), "me/robust")
    card = (hub.root / "models" / "me" / "robust" / "README.md").read_text()
    assert "language: en" in card and "By hand." in card and "## Limits" in card


# What others load


WITHOUT_HPT = """
import json, sys
sys.modules["hpt"] = None  # importing it fails
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPVisionModelWithProjection, pipeline
name = sys.argv[1]
state = torch.load(sys.argv[2], weights_only=True)
model, processor = CLIPModel.from_pretrained(name), CLIPProcessor.from_pretrained(name)
inputs = processor.tokenizer(state["texts"], return_tensors="pt", padding=True)
logits = model.eval()(**inputs, pixel_values=state["pixel_values"]).logits_per_image
torch.testing.assert_close(logits, state["logits"], rtol=1e-5, atol=1e-5)
vision = CLIPVisionModelWithProjection.from_pretrained(name).eval()
embeds = vision(pixel_values=state["pixel_values"]).image_embeds
torch.testing.assert_close(embeds, model.get_image_features(pixel_values=state["pixel_values"]).pooler_output)
classify = pipeline("zero-shot-image-classification", model=name)
image = Image.new("RGB", (40, 30), (200, 30, 90))
scores = classify(image, candidate_labels=["cat", "dog"], hypothesis_template="This is a photo of a {}")
print(json.dumps({"scores": sum(entry["score"] for entry in scores), **processor.image_processor.to_dict()}))
"""


def test_others_load_it_without_hpt(hub, tmp_path):
    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    trainer.push_to_hub(folder=None)
    name = "me/run"
    classifier = ZeroShotClassifier(trainer.model.eval(), trainer.processing_class, ["cat", "dog"])
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    state = {
        "texts": [f"This is a photo of a {animal}" for animal in ("cat", "dog")],
        "pixel_values": (images - classifier.image_mean) / classifier.image_std,
        "logits": classifier(images).detach(),
    }
    torch.save(state, tmp_path / "state.pt")
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_HPT, name, str(tmp_path / "state.pt")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    output = json.loads(run.stdout.splitlines()[-1])
    assert output["scores"] == pytest.approx(1, abs=1e-5)
    given = trainer.processing_class.image_processor
    for key in ("image_mean", "image_std", "resample"):
        assert output[key] == (list(value) if isinstance(value := getattr(given, key), tuple) else value), key
    assert (output["size"], output["crop_size"]) == (dict(given.size), dict(given.crop_size))


def test_an_adapter_is_pushed_and_its_card_names_its_base(hub, tmp_path):
    base = hub.root / "models" / "org" / "vanilla"
    save_finished(*make_clip(0), base)
    path = Path(huggingface_hub.HfApi().snapshot_download("org/vanilla"))
    model = CLIPModel.from_pretrained(path)
    model.name_or_path = model.config._name_or_path = "org/vanilla"
    model.config._commit_hash = COMMIT
    trainer = make_trainer(tmp_path / "run", add_lora(model, rank=2), make_dataset())
    trainer.train()
    trainer.push_to_hub()
    assert pushed(hub, "me/run") == ALWAYS - {"config.json", "model.safetensors"} | {
        "adapter_config.json",
        "adapter_model.safetensors",
        "figures/training_curves.png",
    }
    card = huggingface_hub.ModelCard((hub.root / "models" / "me" / "run" / "README.md").read_text())
    assert card.data.base_model == "org/vanilla" and card.data.library_name == "peft"
    base = f'CLIPModel.from_pretrained("org/vanilla", revision="{COMMIT}")'
    assert f'PeftModel.from_pretrained({base}, "me/run")' in card.text
    config = json.loads((hub.root / "models" / "me" / "run" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/vanilla", COMMIT)
    adapter = huggingface_hub.HfApi().snapshot_download("me/run")
    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(path), adapter).merge_and_unload()
    pixels = torch.rand(2, 3, 16, 16)
    expected = trainer.model.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(loaded.get_image_features(pixel_values=pixels).pooler_output, expected)


# The recipe


def test_a_dry_run_lists_what_would_go(hub, folder, capsys):
    run_recipe("publish.py", "--run", folder.parent, "--hub_model_id", "me/robust", "--dry_run")
    listed = {line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith(" ")}
    assert listed == set(published_files(ModelFolder(folder))) == ALWAYS | {"figures/training_curves.png"}
    assert 'from_pretrained("me/robust")' in (folder / "README.md").read_text() and not hub.requests


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (
            lambda folder: shutil.rmtree(folder / "robust"),
            "isn't a finished run: neither it nor its robust/ has a training.json",
        ),
        (lambda folder: (folder / "robust" / "model.safetensors").unlink(), "isn't a finished run: it has no model"),
        (
            lambda folder: stop_at(folder / "robust", 5),
            "isn't a finished run: it stopped after step 5 of 12. With --unfinished True",
        ),
    ],
    ids=["empty", "no weights", "checkpoint"],
)
def test_what_is_no_finished_run_is_refused(hub, folder, prepare, line):
    prepare(folder.parent)
    with pytest.raises(InputError, match=line):
        run_recipe("publish.py", "--run", folder.parent, "--hub_model_id", "me/robust")
    assert not hub.requests


@pytest.mark.parametrize(
    ("run", "repo_id", "line"),
    [
        ("run", "me/my robust clip", "hub_model_id is 'me/my robust clip', but must be NAME, USER/NAME or ORGANI"),
        ("rnu", "me/robust", "There is no folder '.*/rnu': did you mean .*/run?"),
    ],
)
def test_a_mistyped_name_is_refused_before_a_card_is_written(folder, run, repo_id, line):
    card = folder / "README.md"
    before = card.read_text()
    with pytest.raises(InputError, match=line):
        run_recipe("publish.py", "--run", folder.parent.parent / run, "--hub_model_id", repo_id, "--dry_run")
    assert card.read_text() == before


def stop_at(folder, step):
    record = ModelFolder(folder).run
    (folder / "training.json").write_text(json.dumps(record | {"step": step}))


def test_an_evaluation_of_another_model_is_refused(hub, folder, tmp_path, capsys):
    row = Row("other", None, 0, 0, 0, 100, "digits", "test", "native", weights="0123456789abcdef")
    row = with_accuracy(row, 0.5)
    (tmp_path / "results.jsonl").write_text(json.dumps(asdict(row)) + "\n")
    arguments = ["--run", folder.parent, "--hub_model_id", "me/robust", "--evaluations", tmp_path]
    with pytest.raises(InputError, match="has no results of the weights in .*robust: evaluate this model"):
        run_recipe("publish.py", *arguments)
    assert not (folder / "evaluation.jsonl").exists() and not hub.requests
    (folder.parent / "evaluation").mkdir()
    shutil.move(tmp_path / "results.jsonl", folder.parent / "evaluation")
    run_recipe("publish.py", *arguments[:4], "--dry_run")  # one that lies there isn't asked for
    assert "Left out: " in capsys.readouterr().out and not (folder / "evaluation.jsonl").exists()


def test_an_adapter_or_its_merged_model_is_published(hub, tmp_path, capsys):
    """With an evaluation of the merged model on either card."""
    run = tmp_path / "run"
    trainer = make_trainer(run, add_lora(make_clip(0)[0], rank=2))
    trainer.train()
    for name, model in (("adapter", trainer.model), ("robust", merged(trainer.model))):
        save_finished(model, trainer.processing_class, run / name)
        trainer.describe(run / name)
    weights = hash_weights(CLIPModel.from_pretrained(run / "robust").state_dict())
    row = with_accuracy(Row("mine", None, 0, 0, 0, 100, "digits", "test", "native", weights=weights), 0.5)
    (tmp_path / "results.jsonl").write_text(json.dumps(asdict(row)) + "\n")
    for name, more in (("adapter", ()), ("robust", ("--merged", "True"))):
        run_recipe("publish.py", "--run", run, "--evaluations", tmp_path, "--hub_model_id", f"me/{name}", *more)
        assert f"{run / name} -> me/{name}" in capsys.readouterr().out
        card = huggingface_hub.ModelCard((hub.root / "models" / "me" / name / "README.md").read_text())
        assert [result.metric_value for result in card.data.eval_results] == [0.5]
        assert card.data.library_name == {"adapter": "peft", "robust": "transformers"}[name]


ENDPOINTS = {f"endpoints/{name}" for name in ("anchor.safetensors", "average.safetensors", "final.safetensors")}


def test_endpoints_are_pushed_only_if_they_are_asked_for(hub, tmp_path):
    run = tmp_path / "run"
    trainer = make_trainer(run, save_endpoints=True, anchor_epochs=1, transfer_epochs=1)
    trainer.train()
    trainer.save_model()  # beside its endpoints
    model = ModelFolder(run)
    publish(model, "me/robust")
    assert not any(name.startswith("endpoints") for name in pushed(hub, "me/robust"))
    publish(model, "me/robust", endpoints=run)
    assert pushed(hub, "me/robust") >= ENDPOINTS | {"endpoints/endpoints.json"}
    assert_same(
        load_file(hub.root / "models" / "me" / "robust" / "endpoints" / "final.safetensors"),
        load_file(run / "endpoints" / "final.safetensors"),
    )
    publish(model, "me/robust")
    assert not any(name.startswith("endpoints") for name in pushed(hub, "me/robust"))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: shutil.rmtree(run / "endpoints"), "has no endpoints"),
        (lambda run: (run / "endpoints" / "final.safetensors").unlink(), "final.safetensors is a link or missing"),
        (lambda run: link(run / "endpoints" / "final.safetensors"), "final.safetensors is a link or missing"),
        (lambda run: link(run / "endpoints"), "endpoints is a link or missing"),
        (lambda run: say(run, target={"name": "/usr/lib/clip"}), "endpoints.json names the local path /usr/lib"),
        (lambda run: say(run, target={"name": TOKEN}), "endpoints.json holds a token"),
        (lambda run: say(run, vanilla_weights="0" * 16), "The endpoints in .* aren't of the run that .* is of"),
    ],
    ids=["none", "missing", "link", "folder is a link", "path", "token", "other run"],
)
def test_endpoints_with_something_private_or_of_another_run_are_not_pushed(
    hub, with_endpoints, tmp_path, damage, line
):
    run = Path(shutil.copytree(with_endpoints, tmp_path / "run"))
    damage(run)
    with pytest.raises(InputError, match=line):
        publish(ModelFolder(run), "me/robust", endpoints=run)
    assert not hub.requests


@pytest.fixture(scope="module")
def with_endpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(folder, save_endpoints=True, anchor_epochs=1, transfer_epochs=1)
    trainer.train()
    trainer.save_model()
    return folder


def link(path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def say(run, **changes) -> None:
    index = unsealed(json.loads((run / "endpoints" / "endpoints.json").read_text()))
    (run / "endpoints" / "endpoints.json").write_text(json.dumps(sealed(index | changes)))
