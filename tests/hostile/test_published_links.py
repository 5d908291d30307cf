"""Folders that would publish what isn't the model's: links, tokens, paths; and what is swapped while it is pushed."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from helpers import make_trainer, run_recipe
from huggingface_hub import constants
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from stand_in_hub import TOKEN, Handler, pushed

from hpt import InputError, load_proxy
from hpt.errors import PushFailed
from hpt.hub import contents, push
from hpt.hub.contents import published_files
from hpt.hub.folder import ModelFolder
from hpt.hub.push import publish


SECRET = "hf_" + "S3cr3t" * 6
PRIVATE = "a private text of another folder"


@pytest.fixture
def private(tmp_path) -> Path:
    """A file that isn't the model's."""
    (tmp_path / "private.txt").write_text(PRIVATE)
    return tmp_path / "private.txt"


def link(path: Path, to: str | Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(to)


def refused(folder: Path, hub, line: str) -> None:
    """The recipe refuses a folder by a line, before the Hub is asked."""
    with pytest.raises(InputError, match=line):
        run_recipe("publish.py", "--run", folder, "--hub_model_id", "me/robust")
    assert not hub.requests


# Links


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize(
    "name",
    [
        *("figures/x.png", "README.md", "run.yaml", "evaluation.jsonl", "processor_check.json", "model.safetensors"),
        *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "merges.txt", "spiece.model"),
    ],
)
def test_a_link_is_not_published(hub, folder, private, name, relative):
    target = private
    if (folder / name).exists():  # so that the link leads to what could be published
        target = Path(shutil.move(folder / name, folder.parent))
    link(folder / name, os.path.relpath(target, (folder / name).parent) if relative else target)
    refused(folder, hub, f"{name} is a link, to .*{target.name}, and links aren't published: put what is meant there")


@pytest.mark.parametrize(
    "target",
    ["/dev/zero", "/dev/full", "/proc/self/environ", "/proc/self/mem", "x.png", "../notes.txt", "nothing", "../hop"],
    ids=["endless", "device", "environment", "memory", "loop", "file of the folder", "dangling", "chain"],
)
@pytest.mark.parametrize("name", ["figures/x.png", "vocab.txt"])
def test_wherever_a_link_leads_it_is_not_published(hub, folder, private, name, target):
    (folder / "hop").symlink_to(private)
    link(folder / name, target)
    refused(folder, hub, f"{name} is a link")


def test_a_link_to_a_pipe_and_a_linked_folder_are_not_published(hub, folder):
    os.mkfifo(folder.parent / "pipe")
    link(folder / "spiece.model", folder.parent / "pipe")
    refused(folder, hub, "spiece.model is a link")
    (folder / "spiece.model").unlink()
    shutil.move(folder / "figures", folder.parent / "pictures")
    link(folder / "figures", "../pictures")
    refused(folder, hub, "figures is a link, to ../pictures")


def test_a_snapshot_in_the_cache_is_not_published(hub, folder):
    (folder.parent / "blobs").mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        shutil.move(file, folder.parent / "blobs")
        link(file, f"../blobs/{file.name}")
    refused(folder, hub, "is a link.* or give a copy of the folder, as `cp -rL` makes it")
    shutil.copytree(folder, folder.parent / "copy")  # which follows links too
    assert "model.safetensors" in published_files(ModelFolder(folder.parent / "copy"))


def test_a_card_that_links_elsewhere_is_not_copied_into_a_new_one(hub, folder, private):
    """Which would hold the private text as written by hand."""
    link(folder / "README.md", private)
    refused(folder, hub, "README.md is a link")
    assert (folder / "README.md").is_symlink()
    with pytest.raises(InputError, match="README.md is a link"):
        publish(ModelFolder(folder), "me/robust")
    assert (folder / "README.md").is_symlink() and not hub.requests


def test_a_folder_that_is_reached_by_links_and_links_that_stay_here_are_no_matter(hub, folder, private):
    link(folder.parent / "real", folder)
    link(folder.parent / "reached", "real")
    (folder / "wandb").mkdir()
    for name in ("log.txt", "wandb/latest-run", "optimizer.bin"):
        link(folder / name, private)
    for name in ("scheduler.fifo", "vocab.txt"):  # what can't be read isn't waited for
        os.mkfifo(folder / name)
    publish(ModelFolder(folder.parent / "reached"), "me/robust")
    assert not pushed(hub, "me/robust") & {"log.txt", "wandb/latest-run", "optimizer.bin", "vocab.txt"}


# Tokens


def picture(file: Path, how: str, text: str) -> None:
    """A PNG that has a text in one of the places where a PNG may have it."""
    file.parent.mkdir(exist_ok=True)
    information, exif = PngInfo(), Image.Exif()
    if how == "in EXIF":
        exif[0x010E] = text
    elif how in ("plain", "compressed"):
        information.add_text("Comment", text + 99 * " ", zip=how == "compressed")
    elif how in ("international", "international compressed"):
        information.add_itxt("XML:com.adobe.xmp", text + 99 * " ", zip=how == "international compressed")
    profile = text.encode() if how == "colour profile" else None  # which PNG compresses
    Image.new("RGB", (4, 4)).save(file, pnginfo=information, exif=exif, icc_profile=profile)
    if how == "behind the end":
        file.write_bytes(file.read_bytes() + text.encode())
    elif how in ("compressed behind the pixels", "unknown part"):
        kind, data = b"zTXt", b"key\0\0" + zlib.compress(text.encode())
        kind, data = (b"quIt", text.encode()) if how == "unknown part" else (kind, data)
        part = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        content = file.read_bytes()
        file.write_bytes(content[:-12] + part + content[-12:])


PLACES = ["plain", "compressed", "international", "international compressed", "compressed behind the pixels"]
PLACES += ["colour profile"]
BYTES = ["in EXIF", "unknown part", "behind the end"]


def change_weights(folder: Path, more: bytes = b"", **metadata: str) -> None:
    """Weights with further bytes or metadata, as if the run had saved them so."""
    file = folder / "model.safetensors"
    weights = load_file(file) | ({"more": torch.frombuffer(bytearray(more), dtype=torch.uint8)} if more else {})
    save_file(weights, file, {"format": "pt"} | metadata)
    run = ModelFolder(folder).run | {"weights": ModelFolder(folder).saved_weights}
    (folder / "training.json").write_text(json.dumps(run))


@pytest.mark.parametrize("secret", [SECRET, TOKEN], ids=["any token", "own token"])
@pytest.mark.parametrize("how", [*PLACES, *BYTES])
def test_a_token_in_a_picture_is_found(hub, folder, how, secret):
    picture(folder / "figures" / "mine.png", how, secret)
    refused(folder, hub, "mine.png holds a token of the Hub: remove it")


@pytest.mark.parametrize("secret", [SECRET, TOKEN], ids=["any token", "own token"])
@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "vocab.txt", "merges.txt", "vocab.json"])
def test_a_token_in_the_files_of_a_tokenizer_is_found(hub, folder, name, secret):
    (folder / name).write_bytes(b"\x00\x0b" + secret.encode() + b"\x12" + (b"\xff" if name.endswith("model") else b""))
    refused(folder, hub, f"{name} holds a token of the Hub: remove it")


@pytest.mark.parametrize("secret", [SECRET, TOKEN, "hf_oauth_" + "eyJh.bGc-" * 5], ids=["any", "own", "of OAuth"])
def test_a_token_in_weights_and_their_metadata_is_found_wherever_it_lies(hub, folder, monkeypatch, secret):
    change_weights(folder, note=secret)
    refused(folder, hub, "model.safetensors holds a token of the Hub: remove it")
    monkeypatch.setattr(contents, "BLOCK", 64)
    for place in range(0, 64, 13):
        change_weights(folder, place * b"\0" + secret.encode())
        refused(folder, hub, "model.safetensors holds a token of the Hub: remove it")


@pytest.mark.parametrize("secret", [SECRET, TOKEN], ids=["any token", "own token"])
def test_a_token_in_what_a_push_is_called_is_found(hub, folder, secret):
    calls = {
        "The message of the commit holds a token": {"message": f"see {secret}"},
        "hub_revision, holds a token": {"revision": secret},
        "The repository's name, or .* holds a token": {"repo_id": secret},
    }
    for line, call in calls.items():
        with pytest.raises(InputError, match=line):
            publish(ModelFolder(folder), **{"repo_id": "me/robust"} | call)
    with pytest.raises(InputError, match="The message of the commit holds a token"):
        run_recipe("publish.py", "--run", folder, "--hub_model_id", "me/robust", "--message", secret, "--dry_run")
    (folder / "figures" / "training_curves.png").rename(folder / "figures" / f"{secret}.png")
    refused(folder, hub, "The name of a picture holds a token")


# Paths, and files that aren't what they are called


@pytest.mark.parametrize("how", PLACES)
def test_a_path_in_a_picture_is_found(hub, folder, how):
    picture(folder / "figures" / "mine.png", how, "drawn from /home/me/clip/results.json")
    refused(folder, hub, "mine.png names the local path /home/me")


def test_a_path_in_the_metadata_of_weights_is_found(hub, folder):
    change_weights(folder, output_dir="/home/me/clip")
    refused(folder, hub, "model.safetensors names the local path /home/me")


@pytest.mark.parametrize("content", [b"", b"text", 3000], ids=["empty", "text", "cut off"])
def test_what_is_no_picture_is_not_published(hub, folder, content):
    file = folder / "figures" / "training_curves.png"
    file.write_bytes(file.read_bytes()[:content] if isinstance(content, int) else content)
    refused(folder, hub, "training_curves.png isn't a PNG that can be read: remove it")


@pytest.mark.parametrize("name", [b"\xff.png", b"a\nb.png"], ids=["no UTF-8", "two lines"])
def test_a_name_that_is_no_text_is_not_published(hub, folder, name):
    os.rename(folder / "figures" / "training_curves.png", os.path.join(os.fsencode(folder / "figures"), name))
    refused(folder, hub, "The name of '.*' can't be published: give it another one")


# What is swapped between the search and the upload


@pytest.fixture
def swap(monkeypatch):
    """Swaps files once they are searched, while the repository is made."""

    def when_searched(change):
        prepare = push.prepare_repository
        monkeypatch.setattr(
            push, "prepare_repository", lambda *args, **options: (change(), prepare(*args, **options))[1]
        )

    return when_searched


def test_what_was_searched_is_pushed(hub, folder, private, swap):
    names = ["run.yaml", "tokenizer.json", "figures/training_curves.png"]
    searched = {name: (folder / name).read_bytes() for name in names}
    swap(lambda: [link(folder / name, private) for name in names])
    publish(ModelFolder(folder), "me/robust")
    assert searched == {name: (hub.root / "models" / "me" / "robust" / name).read_bytes() for name in names}


@pytest.mark.parametrize("how", ["link", "another file", "written over", "gone"])
def test_other_weights_than_were_searched_are_not_pushed(hub, folder, private, swap, how):
    file, size = folder / "model.safetensors", (folder / "model.safetensors").stat().st_size
    changes = {
        "link": lambda: link(file, private),
        "another file": lambda: (file.unlink(), file.write_bytes(size * b"x")),
        "written over": lambda: file.write_bytes(size * b"x"),
        "gone": file.unlink,
    }
    swap(changes[how])
    line = "The weights in .* were changed while they were pushed: push them again|uploading large files failed"
    with pytest.raises((InputError, PushFailed), match=line):
        publish(ModelFolder(folder), "me/robust")
    assert pushed(hub, "me/robust") == set()


# What is said


@pytest.mark.parametrize("end", ["\n", "\r\nX-Other: y", "\x00", ""], ids=["newline", "header", "zero", "echoed"])
def test_no_error_says_the_token(hub, folder, monkeypatch, end):
    """httpx quotes a header that it can't send, and a server may quote one that it got."""
    echo = Handler.refuse
    monkeypatch.setattr(Handler, "create", lambda self, _: echo(self, 500, "", f"no: {self.headers['Authorization']}"))
    with pytest.raises(PushFailed, match=r"making the repository failed .*Bearer \*\*\*") as error:
        publish(ModelFolder(folder), "me/robust", token=SECRET + end)
    assert SECRET not in str(error.value)


def test_no_error_says_the_password_of_an_endpoint(hub, folder, monkeypatch):
    endpoint = "http://me:passw0rd@127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(PushFailed, match=r"on http://\*\*\*@127.0.0.1:9: making the repository failed"):
        publish(ModelFolder(folder), "me/robust")
    with pytest.raises(InputError, match=r"can't be reached at http://\*\*\*@127.0.0.1:9"):
        load_proxy("me/none")


def test_a_run_leaves_no_token_in_what_it_writes_and_says(hub, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("HF_TOKEN", SECRET)  # of another user, which the Hub refuses
    settings = {"save_strategy": "epoch", "hub_token": TOKEN, "push_to_hub": True, "hub_model_id": "me/robust"}
    settings |= {"max_steps": 3}
    trainer = make_trainer(tmp_path / "run", **settings)
    trainer.train()
    said = "".join(capfd.readouterr()) + caplog.text + str(trainer.args) + str(trainer.args.to_sanitized_dict())
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    for secret in (SECRET, TOKEN):
        assert secret not in said and secret.encode() not in written
