"""What can be loaded as a model, whole, and what is refused in a line that says why."""

import shutil
import warnings

import pytest
import torch
import transformers
from helpers import CLASSES, FAMILIES, make_clip, make_family
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.sources import check_source


@pytest.fixture
def change(saved, tmp_path):
    """Copies the tiny CLIP with its weights changed by a function of their dictionary."""

    def change(function):
        folder = shutil.copytree(saved, tmp_path / "changed")
        save_file(function(load_file(saved / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return change


def without(prefix):
    return lambda weights: {name: weight for name, weight in weights.items() if not name.startswith(prefix)}


def renamed(prefix):
    return lambda weights: {prefix + name: weight for name, weight in weights.items()}


def with_more(**more):
    return lambda weights: weights | {name.replace("__", "."): weight for name, weight in more.items()}


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (without("text_"), r"of 62 weights, 21 missing \(text_model.embeddings.position_embedding.weight, text_\S+, "),
        (without("logit_scale"), r"1 missing \(logit_scale\)\. Save it again, or take a complete copy"),
        (renamed("base_model.model."), r"62 missing \(logit_scale, .*\); 62 unexpected \(base_model.model.logit_sc"),
        (
            with_more(visual_projection__weight=torch.zeros(8, 17)),
            r"1 of another shape \(visual_projection.weight \(8, 17\), not \(8, 16\)\)",
        ),
        (
            with_more(vision_model__encoder__layers__2__layer_norm1__bias=torch.zeros(16)),
            r"1 unexpected \(vision_model.encoder.layers.2.layer_norm1.bias\)",
        ),
    ],
    ids=["no text tower", "no scale", "other names", "another shape", "a layer too many"],
)
def test_weights_that_are_not_all_the_models_are_refused(change, function, line):
    with pytest.raises(InputError, match=line) as error:
        load_proxy(change(function))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_left_out(change, images, prefix, classifier):
    with pytest.warns(UserWarning, match="The names of weights in .* begin with module. or _orig_mod., which is left"):
        proxy = load_proxy(change(renamed(prefix)))
    torch.testing.assert_close(proxy.with_classes(CLASSES)(images), classifier(images))


def test_old_checkpoints_have_position_ids_too(change, images, classifier):
    """Those that transformers 4.30 and before saved, such as OpenAI's and LAION's on the Hub."""
    positions = {"text_model__embeddings__position_ids": torch.arange(77)[None]}
    positions |= {"vision_model__embeddings__position_ids": torch.arange(5)[None]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proxy = load_proxy(change(with_more(**positions)))
    torch.testing.assert_close(proxy.with_classes(CLASSES)(images), classifier(images))


def test_another_head_is_left_out_with_a_line(change, images, classifier, caplog):
    head = {"decoder__layers__0__weight": torch.zeros(3, 8)}
    with pytest.warns(UserWarning, match="of parts that the model lacks, left out: decoder.layers.0.weight"):
        proxy = load_proxy(change(with_more(**head)))
    torch.testing.assert_close(proxy.with_classes(CLASSES)(images), classifier(images))
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_whole(tmp_path, family):
    model, processor = make_family(family)
    save_finished(model, processor, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, _ = load_dual_encoder(str(tmp_path))
    state = loaded.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_a_classifier_that_was_made_of_clip_is_refused(tmp_path):
    _, processor = make_clip(0)
    config = make_clip(0)[0].config
    save_finished(transformers.CLIPForImageClassification(config), processor, tmp_path)
    with pytest.raises(InputError, match=r"\d+ missing \(logit_scale, text_model"):
        load_proxy(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("run/targt", "'run/targt': no such folder; did you mean run/target"),
        ("./run/targt", "'./run/targt': there is no such folder, .* did you mean run/target"),
        ("run/tar/get", "there is no such folder, and it is no Hub id, which is OWNER/NAME: did you mean run/target"),
        ("nowhere/at/all", "there is no such folder, and it is no Hub id, which is OWNER/NAME.$"),
        ("/nowhere/clip", "there is no such folder"),
        ("https://huggingface.co/openai/clip", "there is no such folder, and it is no Hub id, which is OWNER/NAME.$"),
        ("run", "there is no config.json in that folder: did you mean run/robust, run/target"),
        ("run/empty", "there is no config.json in that folder. Give a folder or Hub id in the format of transformers"),
        (
            "run/notes.txt",
            "it is a file. Give a folder or Hub id in the format of transformers, with config.json and .*",
        ),
        ("run/vti.pt", "there is no such file or folder: did you mean run/vit.pt"),
        ("local-dir:run/of_open_clp", "there is no such file or folder: did you mean run/of_open_clip"),
        (
            "run/target/model.safetensors",
            "it is a file. Give the folder that it is in, run/target.",
        ),
        ("hf-hub:CLIP-ViT-B-32", "hf-hub: must be followed by OWNER/NAME"),
    ],
)
def test_what_is_no_model_says_what_would_be(saved, tmp_path, monkeypatch, source, line):
    monkeypatch.chdir(tmp_path)
    for name in ("target", "robust", "checkpoint-4"):
        shutil.copytree(saved, tmp_path / "run" / name)
    for name in ("empty", "of_open_clip"):
        (tmp_path / "run" / name).mkdir()
    (tmp_path / "run" / "of_open_clip" / "open_clip_config.json").write_text("{}")
    (tmp_path / "run" / "vit.pt").touch()
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(InputError, match=f"Can't load the model .*{line}"):
        load_proxy(source)


def test_an_empty_path_is_no_model():
    with pytest.raises(InputError, match="Can't load the model '': its path is empty"):
        check_source("")


def test_what_can_be_a_model_is_let_through(saved):
    for source in ("openai/clip-vit-base-patch32", "clip", str(saved)):
        check_source(source)


def test_a_tilde_is_the_home_folder(saved, monkeypatch, images, classifier):
    monkeypatch.setenv("HOME", str(saved.parent))
    loaded = ZeroShotClassifier(*load_dual_encoder("~/target"), CLASSES)
    assert loaded.model.name_or_path == str(saved)
    torch.testing.assert_close(loaded(images), classifier(images))


def test_a_hub_that_cannot_be_reached_is_asked_for_no_more_than_two_files(monkeypatch):
    asked = []

    def unreachable(repo, filename, **_):
        asked.append(filename)  # which takes half a minute, by huggingface_hub's retries
        raise LocalEntryNotFoundError("no route to the Hub")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", unreachable)
    with pytest.raises(InputError, match="'me/none': it is no local folder, .* the Hub can't be reached"):
        load_proxy("me/none")
    assert asked == ["adapter_config.json", "config.json"]
