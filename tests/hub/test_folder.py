"""A model's folder: each file is read once, what is written replaces what was read; and which one a run has."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import run_recipe, with_accuracy
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from hpt import InputError
from hpt.evaluation.processor_check import DIFFERENCES, SHARES
from hpt.evaluation.rows import Row
from hpt.hub import push
from hpt.hub.card import write_card
from hpt.hub.contents import published_files
from hpt.hub.folder import ModelFolder
from hpt.json_files import unsealed
from hpt.models.files import SETTINGS
from hpt.models.weights import hash_weights


@pytest.fixture
def reads(monkeypatch):
    """How often each file has been opened for reading, by its path; what is pushed isn't sent."""
    counts, open_file = Counter(), Path.open
    sent = SimpleNamespace(repo_url="https://hub/me/robust")
    monkeypatch.setattr(push, "_upload", lambda *_: [])
    monkeypatch.setattr(push, "_commit", lambda *_: sent)

    def count_and_open(path, mode="r", *arguments, **options):
        if "r" in mode:
            counts[path] += 1
        return open_file(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", count_and_open)
    return counts


def evaluation_of(folder: Path, accuracy: float = 0.5) -> list[Row]:
    weights = hash_weights(CLIPModel.from_pretrained(folder).state_dict())
    return [with_accuracy(Row("mine", None, 0, 0, 0, 100, "digits", "test", "native", weights=weights), accuracy)]


# Read once


@pytest.mark.parametrize("evaluated", [False, True], ids=["as it is", "with an evaluation"])
def test_publishing_reads_each_file_once_but_the_weights(hub, folder, reads, evaluated):
    if evaluated:
        (folder.parent / "evaluation").mkdir()
        lines = "".join(f"{json.dumps(asdict(row))}\n" for row in evaluation_of(folder))
        (folder.parent / "evaluation" / "results.jsonl").write_text(lines)
    reads.clear()
    run_recipe("publish.py", "--run", folder.parent, "--hub_model_id", "me/robust")
    own = {path.name: count for path, count in reads.items() if folder in path.parents}
    # For what they are; for tokens, before they are listed and pushed; and their beginning, by huggingface_hub
    assert own.pop("model.safetensors") <= 4
    own |= {name: own[name] - evaluated for name in SETTINGS if name in own}  # also when results are of this model
    assert {"training.json", "run.yaml", "README.md", "tokenizer_config.json"} <= set(own)
    assert set(own.values()) == {1}, own
    assert ("evaluation.jsonl" in ModelFolder(folder).names()) == evaluated


def test_what_is_written_replaces_what_was_read(folder, reads):
    model = ModelFolder(folder)
    assert (model.rows, model.agreement) == ([], None)
    record = model.run
    rows = evaluation_of(folder)
    agreement = {"benchmark": "digits", "split": "test", "n": 1} | dict.fromkeys(SHARES + DIFFERENCES, 1.0)
    model.add_rows(rows, {rows[0].weights})
    model.write_agreement(agreement)
    model.replace_card("A card")
    model.write_run(record | {"seconds": 7})
    assert (model.rows, model.agreement, model.card) == (rows, agreement, "A card")
    assert model.run == record | {"seconds": 7} == unsealed(json.loads((folder / "training.json").read_text()))
    written = ModelFolder(folder)
    assert (written.rows, written.agreement, written.card) == (rows, agreement, "A card")
    assert not list(folder.glob("*.incomplete"))


def test_other_weights_take_the_measurements_along(folder):
    before = ModelFolder(folder)
    rows = evaluation_of(folder)
    before.add_rows(rows, {rows[0].weights})
    before.make_figures()
    before.robustness_picture("digits", "linf").touch()
    (folder / "model.safetensors").write_bytes(b"others")
    after = ModelFolder(folder)
    assert not after.has_weights_of_run and after.rows and after.robustness_pictures
    after.write_run(after.run)
    assert after.has_weights_of_run and not after.rows and not after.robustness_pictures
    assert not (folder / "evaluation.jsonl").exists()


def test_a_damaged_run_is_of_no_weights(folder):
    (folder / "training.json").write_text("{")
    model = ModelFolder(folder)
    assert not model.has_weights_of_run
    with pytest.raises(InputError, match="isn't as this version of hpt writes it"):
        model.run  # noqa: B018


# Of a run


@pytest.mark.parametrize(
    ("saved", "options", "expected"),
    [
        (["robust"], {}, "robust"),
        (["robust", "adapter"], {}, "adapter"),
        (["robust", "adapter"], {"merged": True}, "robust"),
        ([".", "robust"], {}, "."),
    ],
    ids=["model", "adapter", "merged", "itself"],
)
def test_of_a_run_its_adapter_or_its_model_is_published(folder, tmp_path, saved, options, expected):
    for name in saved:
        (tmp_path / "outputs" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "outputs" / name / "training.json").write_bytes((folder / "training.json").read_bytes())
    assert ModelFolder.of_run(tmp_path / "outputs", **options).path == tmp_path / "outputs" / expected


def test_a_model_that_hpt_did_not_train_is_taken_with_an_evaluation(folder):
    (folder / "training.json").unlink()
    assert ModelFolder.of_run(folder, evaluated=True).path == folder
    with pytest.raises(InputError, match="A model that hpt only measured needs --evaluations"):
        ModelFolder.of_run(folder)


def make_choice() -> dict:
    point = {"t": 0.5, "u": 0.0, "clean": 0.75, "robust": 0.25, "num_samples": 4, "weights": "0" * 16}
    texts = {"attack": "PGD-10 at l_inf eps 4/255", "benchmark": "birds", "split": "validation", "attack_space": "224"}
    numbers = {"t": 0.5, "u": 0.0, "samples": 4, "seed": 0}
    hashes = {"vanilla_weights": "1" * 16, "final_weights": "2" * 16}
    attacked = {"attacks": ["pgd:steps=10"], "eps": "4/255"}
    return texts | numbers | hashes | attacked | {"rule": "sum", "points": [point], "source": None}


def test_the_choice_of_a_point_goes_with_its_weights(folder):
    model = ModelFolder(folder)
    model.write_choice(make_choice())
    assert ModelFolder(folder).has_weights_of_choice
    assert "interpolation.json" in published_files(ModelFolder(folder))
    # Other weights that are saved over it
    change_weights(folder)
    assert not ModelFolder(folder).has_weights_of_choice
    with pytest.raises(InputError, match="aren't those that its (training|interpolation).json is of"):
        published_files(ModelFolder(folder))
    model = ModelFolder(folder)
    model.write_run({name: value for name, value in model.run.items() if name != "weights"})
    assert ModelFolder(folder).choice is None and not (folder / "interpolation.json").exists()


def test_a_damaged_choice_is_named_and_replaced(folder):
    ModelFolder(folder).write_choice(make_choice())
    text = (folder / "interpolation.json").read_text()
    (folder / "interpolation.json").write_text(text.replace('"rule": "sum"', '"rule": "clean>=0.9"'))
    with pytest.raises(InputError, match="interpolation.json is damaged .*it was altered.: choose and save the point"):
        write_card(ModelFolder(folder))
    ModelFolder(folder).write_choice(make_choice())
    write_card(ModelFolder(folder))
    assert "at t=0.5**, a point chosen by" in (folder / "README.md").read_text()


def change_weights(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
