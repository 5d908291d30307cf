"""What of a model's folder may be published: whole models, and nothing private."""

import pytest
from stand_in_hub import TOKEN

from hpt import InputError
from hpt.hub.contents import published_files
from hpt.hub.folder import ModelFolder
from hpt.hub.push import publish


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("run.yaml", "token: hf_" + "a" * 34, "run.yaml holds a token of the Hub"),
        ("run.yaml", f"token: {TOKEN}", "run.yaml holds a token of the Hub"),
        ("run.yaml", "target: /home/me/clip", "run.yaml names the local path /home/me"),
        ("run.yaml", "target: /usr/lib/clip", "run.yaml names the local path /usr/lib"),
        ("tokenizer_config.json", "/usr/lib/clip", "tokenizer_config.json names the local path /usr/lib"),
        ("run.yaml", "target: file:///opt/clip", "run.yaml names the local path file:///opt/clip"),
        ("run.yaml", "target: C:\\Users\\me\\b32", "run.yaml names the local path C:"),
        ("run.yaml", "path:/usr/lib/clip", "run.yaml names the local path /usr/lib"),
        ("README.md", "<!-- hpt:use -->\n/usr/lib/clip\n<!-- /hpt:use -->", "README.md names the local path /usr/lib"),
    ],
    ids=["any token", "own token", "home", "folder that is there", "tokenizer", "url", "windows", "colon", "card"],
)
def test_private_texts_are_not_pushed(hub, folder, name, text, line):
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=line):
        published_files(ModelFolder(folder))
    with pytest.raises(InputError, match=line):
        publish(ModelFolder(folder), "me/robust")
    assert not hub.requests


def test_texts_that_only_look_private_are_pushed(folder):
    with (folder / "README.md").open("a") as card:
        card.write("\nPut your images into /usr/lib/images, or see https://example.org/home/me/clips.\n")
    (folder / "run.yaml").write_text("eps: 1/255 # and/or https://huggingface.co/org/clip, /no-such/folder, Q:\\nA")
    assert {"README.md", "run.yaml"} <= set(published_files(ModelFolder(folder)))


def test_a_token_of_the_call_is_not_pushed(hub, folder):
    (folder / "run.yaml").write_text("note: my_secret")
    with pytest.raises(InputError, match="run.yaml holds a token of the Hub"):
        publish(ModelFolder(folder), "me/robust", token="my_secret")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("config.json", None, "isn't a finished run: it has no config.json or adapter_config.json"),
        ("processor_config.json", None, "isn't a finished run: it has no processor_config.json"),
        ("tokenizer_config.json", None, "isn't a finished run: it has no tokenizer_config.json"),
        ("model.safetensors", b"cut off", "aren't those that its training.json is of: the save was cut off"),
        ("training.json", b"{", "training.json isn't as this version of hpt writes it: save the model again"),
        ("training.json", b"{}", "training.json isn't as this version of hpt writes it: save the model again"),
        ("README.md", b"\xff\xfe", "README.md isn't UTF-8"),
    ],
    ids=["config", "processor", "tokenizer", "weights", "cut off", "empty", "encoding"],
)
def test_what_is_not_whole_is_not_pushed(hub, folder, name, content, line):
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        publish(ModelFolder(folder), "me/robust")
    assert not hub.requests
