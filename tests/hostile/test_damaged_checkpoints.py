"""Whatever was done to them: the newest whole checkpoint is resumed from, and each newer one is named and why."""

import json
import os
import random
import shutil

import pytest
from helpers import make_trainer

from hpt import InputError
from hpt.training.checkpoints import MANIFEST, check_same_settings, last_checkpoint, read_manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run's checkpoints after steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, save_strategy="steps", save_steps=2, logging_steps=20, max_steps=6).train()
    return folder


@pytest.fixture
def run(whole, tmp_path):
    for step in (2, 4, 6):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def assert_taken(run, step: int, caplog, ailment: str) -> None:
    """The checkpoint that is taken, and the one line that names the newest one's ailment."""
    caplog.clear()
    assert last_checkpoint(run) == str(run / f"checkpoint-{step}")
    lines = [record.getMessage() for record in caplog.records]
    assert ailment in lines[0] and lines[0].startswith("Ignored: ") and "\n" not in lines[0], lines


def test_no_flipped_bit_of_a_manifest_is_taken_for_a_setting(run, caplog):
    path = run / "checkpoint-6" / MANIFEST
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 400):
        path.write_bytes(content)
        flip(path, bit)
        assert_taken(run, 4, caplog, "checkpoint-6 is damaged: its manifest.json can't be read")


FILES = (
    "config.json gpd_state.safetensors loss_window.json model.safetensors optimizer.pt rng_state.pth scheduler.pt "
    "trainer_state.json training.json training_args.json run.yaml tokenizer.json"
).split()
DAMAGE = {
    "emptied": lambda path: os.truncate(path, 0),
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "flipped": lambda path: flip(path, random.Random(path.name).randrange(8 * path.stat().st_size)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(run, name, caplog):
    path = run / "checkpoint-6" / name
    content = path.read_bytes()
    for damage in DAMAGE.values():
        damage(path)
        assert_taken(run, 4, caplog, f"{run / 'checkpoint-6'} is damaged: ")
        assert name in caplog.text
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert last_checkpoint(run) == str(run / "checkpoint-6")


def files_of(**files) -> bytes:
    return json.dumps({"files": files, "settings": {}, "launch": {}}).encode()


MANIFESTS = {
    "deep": b"[" * 100_000,
    "deep dictionary": b'{"files": ' * 100_000 + b"1" + b"}" * 100_000,
    "huge number": b'{"files": {"x": {"size": ' + b"9" * 5000 + b"}}}",
    "null": b"null",
    "latin-1": '{"é": 1}'.encode("latin-1"),
    "zeros": bytes(1000),
    "size in words": files_of(**{"config.json": {"size": "9"}}),
    "infinite size": b'{"files": {"x": {"size": Infinity}}, "settings": {}, "launch": {}}',
    "list of files": b'{"files": ["ab"], "settings": {}, "launch": {}}',
    "settings in words": b'{"files": {}, "settings": "ab", "launch": {}}',
    "name of two lines": files_of(**{"a\nb": {"size": 1}}),
    "empty digest": b'{"files": {}, "settings": {}, "launch": {}, "digest": null}',
    "another digest": b'{"files": {}, "settings": {}, "launch": {}, "digest": "0123456789abcdef"}',
    "a part more": b'{"files": {}, "settings": {}, "launch": {}, "digesd": "0123456789abcdef"}',
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_says_nothing_is_named(run, kind, caplog):
    (run / "checkpoint-6" / MANIFEST).write_bytes(MANIFESTS[kind])
    assert_taken(run, 4, caplog, "checkpoint-6 is damaged: its manifest.json can't be read")


@pytest.mark.parametrize("name", ["x" * 300, "/dev/zero", "a\0b"], ids=["long", "endless", "zero"])
def test_a_manifest_of_impossible_files_is_named(run, name, caplog):
    (run / "checkpoint-6" / MANIFEST).write_bytes(files_of(**{name: {"size": 1}}))
    assert_taken(run, 4, caplog, f"{run / 'checkpoint-6'} ")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["settings"].update(seed=7),
        lambda manifest: manifest["launch"].update(world_size=7),
        lambda manifest: manifest["files"].pop("optimizer.pt"),
        lambda manifest: manifest.pop("digest"),
    ],
    ids=["setting", "launch", "file left out", "digest left out"],
)
def test_a_manifest_that_was_altered_is_named(run, change, caplog):
    path = run / "checkpoint-6" / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert_taken(run, 4, caplog, "checkpoint-6 is damaged: its manifest.json can't be read")


def test_a_manifest_of_an_earlier_version_is_read_and_its_settings_compared(run):
    path = run / "checkpoint-6" / MANIFEST
    written = json.loads(path.read_text())
    path.write_text(json.dumps({part: written[part] for part in ("files", "settings", "launch")}))
    assert last_checkpoint(run) == str(run / "checkpoint-6")
    manifest = read_manifest(run / "checkpoint-6")
    check_same_settings("it", manifest, written["settings"], written["launch"])
    with pytest.raises(InputError, match="it was trained with other settings"):
        check_same_settings("it", manifest, written["settings"] | {"seed": 7}, written["launch"])


PLACES = {
    "empty": (lambda run, place: place.mkdir(), "is incomplete: it has no manifest.json"),
    "file": (lambda run, place: place.write_text("x"), "isn't a folder"),
    "pipe": (lambda run, place: os.mkfifo(place), "isn't a folder"),
    "link to nothing": (lambda run, place: place.symlink_to("nowhere"), "isn't a folder"),
    "link to itself": (lambda run, place: place.symlink_to(place.name), "isn't a folder"),
    "link to all": (lambda run, place: place.symlink_to("/"), "is incomplete"),
    "link to another": (lambda run, place: place.symlink_to("checkpoint-2"), "it was written as checkpoint-2"),
    "copy of another": (lambda run, place: shutil.copytree(run / "checkpoint-4", place), "written as checkpoint-4"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_checkpoint_of_its_step_is_named(run, kind, caplog):
    make, ailment = PLACES[kind]
    make(run, run / "checkpoint-99999")
    assert_taken(run, 6, caplog, ailment)


@pytest.mark.parametrize("name", ["007", "\u0667", "7e5", "7\n", "-7", "7.0", "+7", "7-backup"], ids=repr)
def test_other_names_are_no_checkpoints(run, name, caplog):
    shutil.copytree(run / "checkpoint-2", run / f"checkpoint-{name}")
    assert last_checkpoint(run) == str(run / "checkpoint-6") and not caplog.records


def test_checkpoints_that_changed_places_are_named(run, caplog):
    (run / "checkpoint-6").rename(run / "aside")
    (run / "checkpoint-4").rename(run / "checkpoint-6")
    (run / "aside").rename(run / "checkpoint-4")
    assert_taken(run, 2, caplog, "checkpoint-6 isn't of its step: it was written as checkpoint-4")


def test_files_that_changed_places_are_named(run, caplog):
    first, second = (run / f"checkpoint-{step}" / "model.safetensors" for step in (4, 6))
    first.rename(run / "aside")
    second.rename(first)
    (run / "aside").rename(second)
    assert_taken(run, 2, caplog, "the content of model.safetensors isn't what was written (SHA-256)")


@pytest.mark.parametrize("name", [".", MANIFEST, "model.safetensors"])
def test_what_may_not_be_read_is_named(run, name, caplog, monkeypatch):
    forbidden = run / "checkpoint-6" / name
    opened = type(run).open

    def refuse(self, *args, **kwargs):
        if self == forbidden or forbidden in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(type(run), "open", refuse)  # as root may read all
    assert_taken(run, 4, caplog, "checkpoint-6 can't be read: [Errno 13] Permission denied")


def test_a_card_may_be_changed_and_notes_added(run, caplog):
    (run / "checkpoint-6" / "README.md").write_text("mine")
    (run / "checkpoint-6" / "notes.txt").write_text("mine too")
    assert last_checkpoint(run) == str(run / "checkpoint-6") and not caplog.records


def test_a_run_goes_on_from_the_newest_whole_one_to_the_same_end(whole, run, caplog):
    for step, name in ((6, "optimizer.pt"), (4, "trainer_state.json")):
        flip(run / f"checkpoint-{step}" / name, 1000)
    trainer = make_trainer(run, save_strategy="steps", save_steps=2, logging_steps=20, max_steps=6)
    trainer.train(resume_from_checkpoint="last")
    said = [line for line in caplog.messages if "Ignored" in line or "goes on" in line]
    assert [line.split("/")[-1].split(":")[0] for line in said[:2]] == [
        "checkpoint-6 is damaged",
        "checkpoint-4 is damaged",
    ]
    assert said[2].endswith("goes on with step 3 of 6: it was found in checkpoint-2.")
    first, second = (read_manifest(folder / "checkpoint-6")["files"]["model.safetensors"] for folder in (whole, run))
    assert first == second
