"""What can't be converted is refused in a line: it says what is wrong, and what would be right."""

import argparse
import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from conversion_sources import SAID, OpenAIClip, below_text, config_of, save_open_clip
from safetensors.torch import save_file

from hpt import InputError
from hpt.models.conversion import Base, Stated, convert, read_checkpoint
from hpt.models.sources import check_source, is_checkpoint
from hpt.training.pretraining import byte_tokenizer


WEIGHTS = OpenAIClip().state_dict()
VISION = OpenAIClip().vision_weights()
RESNET = {"visual.conv1.weight": torch.zeros(8, 3, 3, 3), "visual.attnpool.positional_embedding": torch.zeros(50, 8)}
TIMM = {"visual.trunk.stem.0.weight": torch.zeros(8, 3, 4, 4), "text.positional_embedding": torch.zeros(77, 8)}
TRANSFORMERS = {"vision_model.embeddings.patch_embedding.weight": torch.zeros(8, 3, 4, 4)}


def without(name, weights=WEIGHTS):
    return {own: weight for own, weight in weights.items() if not own.startswith(name)}


def given(**changes):
    return Stated(**SAID | {"tokenizer": byte_tokenizer()} | changes)


# Files


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"a.weight": torch.zeros(2)},
            r"expected the names of OpenAI's .* visual.conv1.weight and .*, but it has a\.w",
        ),
        ({"epoch": 3}, r"expected the names of OpenAI's .*, but it has no tensors by name"),
        ([torch.zeros(2)], r"expected the names of OpenAI's .*, but it has no tensors by name"),
        (RESNET, "it is a CLIP with a ResNet, which transformers has no class for"),
        (TIMM, "its vision tower is one of timm"),
        (TRANSFORMERS, "its weights have the names of transformers, which needs no conversion"),
        ({"ema": WEIGHTS, "state_dict": WEIGHTS}, "it holds several models, ema, state_dict"),
        (without("ln_final"), r"of the 62 weights .* 2 missing \(ln_final.bias, ln_final.weight\)\.$"),
        (without("logit_scale"), r"1 missing \(logit_scale\)"),
        (without("visual.proj"), r"it lacks visual.proj, which every CLIP has"),
        (without("transformer.resblocks.0."), r"it lacks transformer.resblocks.0.mlp.c_fc.weight, which"),
        (without("visual.transformer.resblocks.1.ln_2"), r"2 missing \(visual.transformer.resblocks.1.ln_2.bias"),
        (WEIGHTS | {"logit_bias": torch.zeros(())}, r"1 too many \(logit_bias\)"),
        (WEIGHTS | {"visual.ls_1.gamma": torch.zeros(2)}, r"1 too many \(visual.ls_1.gamma\)"),
        (WEIGHTS | {"text.ln_final.bias": torch.zeros(16)}, r"1 weights are there twice, with text\. before them and"),
        (VISION | {"head.weight": torch.zeros(10, 8)}, r"1 too many \(visual.head.weight\)"),
        (
            WEIGHTS | {"visual.ln_pre.bias": torch.zeros(23)},
            r"1 of another shape \(visual.ln_pre.bias \(23,\), not \(24,\)\)",
        ),
        (
            WEIGHTS | {"visual.positional_embedding": torch.zeros(18, 24)},
            r"visual.positional_embedding \(18, 24\), not \(17, 24\)",
        ),
        (WEIGHTS | {"visual.proj": torch.zeros(24)}, r"no CLIP has weights of these shapes: visual.proj \(24,\)"),
        (WEIGHTS | {"ln_final.bias": torch.zeros(16, dtype=torch.int8)}, "ln_final.bias is kept as torch.int8"),
        (
            WEIGHTS | {"ln_final.bias": torch.zeros(16).to_sparse()},
            "ln_final.bias is kept as torch.float32 of torch.spa",
        ),
        (
            WEIGHTS | {"ln_final.bias": torch.zeros(1).expand(16)},
            "ln_final.bias is kept .* or not in full, but weights",
        ),
        (WEIGHTS | {"ln_final.bias": torch.zeros(16, device="meta")}, "ln_final.bias is kept .* or not in full"),
    ],
)
def test_weights_of_no_clip_are_refused(tmp_path, content, line):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=rf"Can't convert '.*x.pt': .*{line}") as error:
        read_checkpoint(str(tmp_path / "x.pt"))
    assert "\n" not in str(error.value)


class Program:
    """What a pickle can run when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "needed"),
    [
        (lambda path: {"state_dict": WEIGHTS, "x": Program(path)}, "io.open"),
        (lambda path: {"state_dict": WEIGHTS, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (lambda path: {"state_dict": WEIGHTS, "best": np.float64(3)}, "numpy"),
        (lambda path: OpenAIClip(), "conversion_sources.OpenAIClip"),
    ],
    ids=["a program", "arguments", "a number of numpy", "a module"],
)
def test_pickles_that_need_more_than_tensors_are_not_opened(tmp_path, content, needed, zipped):
    torch.save(content(tmp_path / "owned"), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=rf"x.pt isn't opened: it needs more than tensors, {needed}.*torch.save\(state"
    ):
        read_checkpoint(str(tmp_path / "x.pt"))
    assert not (tmp_path / "owned").exists()


def test_torchscript_is_refused_with_what_to_do(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(
        InputError, match=r"is a TorchScript archive, .*torch.jit.load\('ViT-B-32.pt', .*state_dict\(\)"
    ):
        read_checkpoint(str(tmp_path / "ViT-B-32.pt"))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"<html>", lambda data: b""])
def test_damaged_files_are_refused(tmp_path, name, damage):
    torch.save(WEIGHTS, tmp_path / "x.pt")
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(
        InputError,
        match=rf"{name} (\([\d,]+ bytes\) is damaged|isn't opened: it is no pickle of tensors alone)",
    ) as error:
        read_checkpoint(str(tmp_path / name))
    assert "\n" not in str(error.value) and ".safetensors" in str(error.value)


@pytest.mark.filterwarnings("error")
def test_a_pickle_that_torch_did_not_make_is_refused_without_a_warning(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="x.pt isn't opened: it is no pickle of tensors alone"):
        read_checkpoint(str(tmp_path / "x.pt"))


def test_a_link_to_nothing_is_not_what_is_meant(tmp_path):
    (tmp_path / "x.pt").symlink_to("nowhere.pt")
    with pytest.raises(InputError, match=r"no such file or folder\.$"):
        check_source(str(tmp_path / "x.pt"))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    torch.save(WEIGHTS, tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError, match="x.pt can't be read: Permission denied.$"):
        read_checkpoint(str(tmp_path / "x.pt"))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    torch.save(WEIGHTS | {"ln_final.bias": torch.full((16,), torch.nan)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="weights are NaN or infinite, 1 of 62 .ln_final.bias"):
        convert(read_checkpoint(str(tmp_path / "x.pt")), stated=given())


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "fare.pt").touch()
    with pytest.raises(InputError, match=r"fare2.pt': no such file or folder: did you mean .*fare.pt\?"):
        read_checkpoint(str(tmp_path / "fare2.pt"))


# Configurations


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"vision_cfg.width": 32},
            r"of another architecture than its open_clip_config.json says. The vision tower has ",
        ),
        ({"vision_cfg.layers": 3}, r"The vision tower has layers 2, not 3\."),
        ({"text_cfg.vocab_size": 49408}, r"The text tower has vocab_size 514, not 49408\."),
        ({"vision_cfg.image_size": 32}, r"The vision tower has grid 4, not 8\."),
        ({"vision_cfg.mlp_ratio": 4.0}, r"mlp_width 72, not 96"),
        (
            {"vision_cfg.pool_type": "avg"},
            r"vision_cfg.pool_type is 'avg', but transformers' CLIP computes with 'tok'",
        ),
        (
            {"text_cfg.no_causal_mask": True},
            r"text_cfg.no_causal_mask is True, but transformers' CLIP computes with Fal",
        ),
        ({"text_cfg.hf_model_name": "roberta-base"}, r"text_cfg.hf_model_name is 'roberta-base'"),
        ({"vision_cfg.act_kwargs": {"approximate": "tanh"}}, r"vision_cfg.act_kwargs.approximate isn't known here"),
        ({"init_logit_bias": -10}, r"init_logit_bias is -10"),
        (
            {"text_cfg.tokenizer_kwargs": {"clean": "canonicalize"}},
            r"text_cfg.tokenizer_kwargs.clean isn't known here",
        ),
        ({"vision_cfg.rope": True}, r"vision_cfg.rope isn't known here, and may change what is computed"),
        ({"vision_cfg.head_width": "64"}, r"vision_cfg.head_width is '64', but must be a whole number"),
        ({"vision_cfg.head_width": 0}, r"vision_cfg.head_width is 0, but must be above 0"),
        ({"quick_gelu": 1}, r"quick_gelu is 1, but must be true or false"),
        ({"text_cfg.pool_type": "eos"}, r"text_cfg.eos_id is 2, by which transformers' CLIP means"),
        ({"text_cfg.pool_type": "last"}, r"text_cfg.pool_type is 'last', but can be argmax or eos here"),
        ({"embed_dim": None}, r"embed_dim is missing"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, change, line):
    content = config_of()
    for name, value in change.items():
        *sections, setting = ["model_cfg", *name.split(".")]
        section = content
        for part in sections:
            section = section[part]
        section[setting] = value
    folder = save_open_clip(tmp_path / "clip", WEIGHTS, content)
    with pytest.raises(InputError, match=line):
        read_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("preprocessing", "line"),
    [
        ({"resize_mode": "longest"}, "preprocess_cfg.resize_mode is 'longest', but can be shortest or squash here"),
        ({"interpolation": "random"}, "preprocess_cfg.interpolation is 'random', but can be bicubic or bilinear here"),
        ({"mean": "0.5"}, "preprocess_cfg.mean is '0.5', but must be a list, each part a number"),
        (3, "its open_clip_config.json must hold model_cfg, and preprocess_cfg if it has any"),
    ],
)
def test_images_that_would_be_prepared_otherwise_are_refused(tmp_path, preprocessing, line):
    folder = save_open_clip(tmp_path / "clip", WEIGHTS, config_of() | {"preprocess_cfg": preprocessing})
    with pytest.raises(InputError, match=line):
        read_checkpoint(str(folder))


def test_folders_that_lack_something_are_refused(tmp_path):
    folder = save_open_clip(tmp_path / "clip", WEIGHTS, config_of())
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="it has none of open_clip_model.safetensors, open_clip_pytorch_model"):
        read_checkpoint(str(folder))
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match="open_clip_config.json is damaged .it isn't JSON"):
        read_checkpoint(str(folder))
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(InputError, match="there is no open_clip_config.json. Give a model of open_clip"):
        read_checkpoint(str(folder))


# What isn't said


def test_all_that_nothing_says_is_named_at_once(tmp_path):
    torch.save(WEIGHTS, tmp_path / "x.pt")
    names = "activation, heads, image_mean, image_std, text_heads, tokenizer"
    with pytest.raises(InputError, match=rf"x.pt' doesn't say its {names}, nor do .* base=ID, .* activation=\.\.\. "):
        convert(read_checkpoint(str(tmp_path / "x.pt")))


@pytest.mark.parametrize("name", ["activation", "heads", "image_mean", "image_std", "text_heads", "tokenizer"])
def test_nothing_is_guessed(tmp_path, name):
    torch.save(WEIGHTS, tmp_path / "x.pt")
    with pytest.raises(InputError, match=rf"x.pt' doesn't say its {name}, nor do the shapes"):
        convert(read_checkpoint(str(tmp_path / "x.pt")), stated=given(**{name: None}))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"heads": 5}, r"heads is 5 \(given\), but must divide the width 24"),
        ({"text_heads": 0}, r"text_heads is 0, but must be a whole number of at least 1"),
        ({"activation": "relu"}, r"Unknown activation 'relu'; known: gelu, quick_gelu"),
        (
            {"image_std": (0.1, 0.1, 0.0)},
            r"image_std is \[0.1, 0.1, 0.0\], but must have a number for each .*, above 0",
        ),
        ({"image_mean": (0.1,)}, r"image_mean is \[0.1\], but must have a number for each of three channels"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path, change, line):
    torch.save(WEIGHTS, tmp_path / "x.pt")
    with pytest.raises(InputError, match=line):
        convert(read_checkpoint(str(tmp_path / "x.pt")), stated=given(**change))


def test_a_tokenizer_that_is_too_large_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["hello"])
    torch.save(WEIGHTS, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"The tokenizer \(given\) has 515 tokens, but the text tower knows 514"):
        convert(read_checkpoint(str(tmp_path / "x.pt")), stated=given(tokenizer=tokenizer))


# Vision towers and bases


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "clip.pt"
    torch.save(WEIGHTS, path)
    made = convert(read_checkpoint(str(path)), stated=given())
    return Base("me/base", made.model, made.processor)


def test_a_vision_tower_alone_needs_a_base(tmp_path):
    torch.save(VISION, tmp_path / "fare.pt")
    with pytest.raises(
        InputError, match="fare.pt' holds a vision tower alone: give the model that it was made from, .* base="
    ):
        convert(read_checkpoint(str(tmp_path / "fare.pt")), stated=given())


def test_the_text_tower_of_a_base_keeps_its_heads(tmp_path, base):
    torch.save(VISION, tmp_path / "fare.pt")
    with pytest.raises(
        InputError, match="text_heads is given, but .* holds a vision tower alone: its text tower is the b"
    ):
        convert(read_checkpoint(str(tmp_path / "fare.pt")), base, Stated(text_heads=4))


def test_a_base_of_another_architecture_is_refused(tmp_path, base):
    larger = VISION | {"positional_embedding": torch.zeros(26, 24)}
    torch.save(larger, tmp_path / "fare.pt")
    with pytest.raises(InputError, match="The base 'me/base' is of another .*: its vision tower has grid 4, not 5"):
        convert(read_checkpoint(str(tmp_path / "fare.pt")), base)
    torch.save(WEIGHTS | {"positional_embedding": torch.zeros(64, 16)}, tmp_path / "clip.pt")
    with pytest.raises(InputError, match="The base .*: its text tower has context_length 77, not 64"):
        convert(read_checkpoint(str(tmp_path / "clip.pt")), base)


# The Hub


def _repository(hub, name, config=None, weights=WEIGHTS):
    folder = hub.root / "models" / "me" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_open_clip(folder, weights, config or config_of())
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA robust CLIP.\n")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
    (folder / "optimizer.pt").write_bytes(b"large")
    return folder


def test_of_a_repository_only_what_is_needed_is_downloaded(hub):
    folder = _repository(hub, "fare")
    checkpoint = read_checkpoint("hf-hub:me/fare")
    assert checkpoint.license == "mit" and len(checkpoint.commit) == 40
    assert next(iter(checkpoint.sha256)) == "open_clip_model.safetensors"
    assert {"open_clip_config.json", "tokenizer.json"} <= checkpoint.sha256.keys()
    assert not [path for _, path in hub.requests if path.endswith((".bin", "optimizer.pt"))]
    made = convert(checkpoint)
    assert torch.equal(made.model.text_projection.weight, WEIGHTS["text_projection"].T)
    local = read_checkpoint(f"local-dir:{folder}")
    assert local.sha256 == checkpoint.sha256 and local.commit is None


def test_no_pickle_is_downloaded_but_that_of_a_folder_is_opened(hub, tmp_path):
    folder = _repository(hub, "fare")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(
        InputError, match="No pickle is downloaded, .* hf download me/fare --local-dir FOLDER, and con"
    ):
        read_checkpoint("hf-hub:me/fare")
    assert not [path for _, path in hub.requests if path.endswith(".bin")]
    torch.save(WEIGHTS, folder / "open_clip_pytorch_model.bin")
    assert read_checkpoint(str(folder)).weights.keys() == WEIGHTS.keys()


def test_another_revision_is_another_checkpoint(hub):
    _repository(hub, "fare")
    folder = hub.root / "models" / "me" / "fare"
    shutil.copytree(folder, folder.with_name("fare@old"))
    save_file(
        WEIGHTS | {"ln_final.bias": torch.ones(16)}, folder.with_name("fare@old") / "open_clip_model.safetensors"
    )
    (folder.with_name("fare@old") / ".history.json").write_text(json.dumps([{"id": "f" * 40, "message": "old"}]))
    old, new = read_checkpoint("hf-hub:me/fare", "old"), read_checkpoint("hf-hub:me/fare")
    assert torch.equal(old.weights["ln_final.bias"], torch.ones(16)) and old.commit == "f" * 40
    assert torch.equal(new.weights["ln_final.bias"], WEIGHTS["ln_final.bias"])


def test_a_repository_that_is_not_there_is_said_so(hub):
    with pytest.raises(InputError, match="Can't load the model 'me/none': no such Hub id or local folder"):
        read_checkpoint("hf-hub:me/none")


def test_a_hub_that_is_gone_is_said_so(hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(InputError, match="Can't load the model 'me/fare': .* the Hub can't be reached at"):
        read_checkpoint("hf-hub:me/fare")


def test_sources_are_known_by_their_names(tmp_path):
    folder = save_open_clip(tmp_path / "clip", below_text(WEIGHTS), config_of(custom_text=True))
    for text in (
        "hf-hub:me/fare",
        f"local-dir:{folder}",
        str(folder),
        "fare_eps_4.pt",
        "tecoa.pth.tar",
        "x.safetensors",
    ):
        assert is_checkpoint(text)
    (folder / "config.json").touch()  # which transformers can load as it is
    for text in (str(folder), str(tmp_path), "openai/clip-vit-base-patch32", "fare"):
        assert not is_checkpoint(text)
