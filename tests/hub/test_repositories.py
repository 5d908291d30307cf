"""What is on the Hub already when a model is pushed: kept, replaced, deleted or refused."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import make_clip
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from stand_in_hub import messages, pushed

from hpt import InputError
from hpt.errors import PushFailed
from hpt.hub import push as publishing
from hpt.hub.contents import published_files
from hpt.hub.folder import ModelFolder
from hpt.hub.push import prepare_repository, publish
from hpt.models.loading import save_finished


def repository(hub, name="robust") -> Path:
    return hub.root / "models" / "me" / name


def write_by_hand(card: Path, text: str) -> None:
    card.write_text(f"{card.read_text()}\n{text}\n")


def test_what_hpt_pushed_before_and_the_folder_lacks_is_deleted(hub, folder):
    (folder / "processor_check.json").write_text("{}")
    for name in ("robustness_digits_linf.png", "mine.png"):
        shutil.copy(folder / "figures" / "training_curves.png", folder / "figures" / name)
    publish(ModelFolder(folder), "me/robust")
    assert "processor_check.json" in pushed(hub, "me/robust")
    for name in ("processor_check.json", "figures/robustness_digits_linf.png", "figures/mine.png"):
        (folder / name).unlink()
    theirs = {"notes.txt", "model.fp16.safetensors", "onnx/model.safetensors", "figures/robustness_mine.png"}
    for name in theirs:
        (repository(hub) / name).parent.mkdir(exist_ok=True)
        (repository(hub) / name).write_text("by hand")
    (repository(hub) / "model-00001-of-00002.safetensors").write_text("a shard of the weights before")
    publish(ModelFolder(folder), "me/robust")
    assert pushed(hub, "me/robust") == set(published_files(ModelFolder(folder))) | theirs | {"figures/mine.png"}


def test_a_public_repository_is_refused_where_a_private_one_was_asked_for(hub, folder):
    prepare_repository("me/robust")
    with pytest.raises(InputError, match="me/robust is there already and public: make it private in its settings"):
        publish(ModelFolder(folder), "me/robust", private=True)
    assert messages(hub, "me/robust") == []


def test_weights_of_others_are_not_written_over(hub, folder):
    prepare_repository("me/robust")
    (repository(hub) / "model-q4.gguf").write_bytes(b"theirs")
    with pytest.raises(InputError, match="me/robust holds a model that hpt didn't push"):
        publish(ModelFolder(folder), "me/robust")


def test_a_card_that_cannot_be_read_right_now_is_not_overwritten(hub, folder, monkeypatch):
    def time_out(*arguments, **options):
        raise LocalEntryNotFoundError("timed out")

    publish(ModelFolder(folder), "me/robust")
    write_by_hand(repository(hub) / "README.md", "By hand.")
    with monkeypatch.context() as patch, pytest.raises(PushFailed, match="it can't be reached"):
        patch.setattr(HfApi, "hf_hub_download", time_out)
        publish(ModelFolder(folder), "me/robust")
    publish(ModelFolder(folder), "me/robust")
    for card in (repository(hub) / "README.md", folder / "README.md"):
        assert "By hand." in card.read_text()


def test_what_changes_during_a_push_is_not_overwritten(hub, folder, monkeypatch):
    def write_meanwhile(folder, remote):
        HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id="me/robust")
        return remote

    publish(ModelFolder(folder), "me/robust")
    monkeypatch.setattr(publishing, "choose_card", write_meanwhile)
    with pytest.raises(PushFailed, match="somebody else has changed it meanwhile"):
        publish(ModelFolder(folder), "me/robust", license="mit")


def test_different_parts_by_hand_are_refused(hub, folder):
    publish(ModelFolder(folder), "me/robust")
    write_by_hand(folder / "README.md", "By hand here.")
    write_by_hand(repository(hub) / "README.md", "By hand there.")
    with pytest.raises(InputError, match="have different parts written by hand: bring them together"):
        publish(ModelFolder(folder), "me/robust")
    assert messages(hub, "me/robust") == ["Upload by hpt"]


def test_parts_by_hand_are_those_of_the_branch(hub, folder):
    publish(ModelFolder(folder), "me/robust", revision="v2")
    card = repository(hub, "robust@v2") / "README.md"
    write_by_hand(card, "Of the branch.")
    publish(ModelFolder(folder), "me/robust", revision="v2")
    assert "Of the branch." in card.read_text()


@pytest.mark.parametrize(
    ("recipe", "by_hand", "expected"),
    [(None, None, "mit"), (None, "cc0-1.0", "cc0-1.0"), ("gpl", "cc0-1.0", "gpl")],
    ids=["target", "by hand", "recipe"],
)
def test_the_license_is_the_recipes_or_the_cards_or_the_targets(hub, folder, recipe, by_hand, expected):
    vanilla = hub.root / "models" / "org" / "vanilla"
    save_finished(*make_clip(0), vanilla)
    (vanilla / "README.md").write_text("---\nlicense: mit\n---\n")
    record = ModelFolder(folder).run
    record["target"] |= {"hub_id": "org/vanilla", "name": "org/vanilla"}
    (folder / "training.json").write_text(json.dumps(record | {"license": recipe}))
    if by_hand:
        prepare_repository("me/robust")
        (repository(hub) / "README.md").write_text(f"---\nlicense: {by_hand}\n---\n\n# Mine\n")
    publish(ModelFolder(folder), "me/robust")
    data = ModelCard((repository(hub) / "README.md").read_text()).data
    assert (data.license, data.base_model) == (expected, "org/vanilla")
