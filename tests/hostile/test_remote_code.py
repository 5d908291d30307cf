"""A model's own code never runs, whatever its files ask for and whoever answers `y` when transformers asks."""

import ast
import json
import re
import shutil

import pytest
import torch
import transformers
from helpers import CLASSES, ROOT, refusal_of
from transformers import dynamic_module_utils

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.models.loading import load_dual_encoder, save_finished


CODE = """
from pathlib import Path
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

Path({mark!r}).touch()

class Config(CLIPConfig):
    model_type = "mine"

class Model(CLIPModel):
    config_class = Config

class Processor(CLIPProcessor): ...
class Images(CLIPImageProcessorPil): ...
class Tokens(CLIPTokenizer): ...
"""
ASKED = {
    "AutoConfig": "own.Config",
    "AutoModel": "own.Model",
    "AutoProcessor": "own.Processor",
    "AutoImageProcessor": "own.Images",
    "AutoFeatureExtractor": "own.Images",
    "AutoTokenizer": [None, "own.Tokens"],
}
REFUSED = r"Can't load the {} '\S+': its {} \(auto_map .*own.* asks for Python code of its own, which hpt never runs"


def change(file, within=(), removed=(), **values):
    """Changes the settings in a file of a folder, or those within one of them."""

    def apply(folder):
        path = folder / file
        settings = json.loads(path.read_text())
        part = settings
        for name in within:
            part = part[name]
        part.update(values)
        for name in removed:
            del part[name]
        path.write_text(json.dumps(settings))

    return apply


def split_processor(folder):
    """The processor's settings as transformers 4 saved them."""
    path = folder / "processor_config.json"
    (folder / "preprocessor_config.json").write_text(json.dumps(json.loads(path.read_text())["image_processor"]))
    path.unlink()


CONFIG = "config.json"
PROCESSOR, OLD_PROCESSOR, TOKENIZER = "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"
# What a folder asks for: how it is changed, and the line, or None where transformers has the class as well
FOLDERS = {
    "model": ([change(CONFIG, model_type="mine", auto_map=ASKED)], REFUSED.format("model", CONFIG)),
    "model without type": (
        [change(CONFIG, removed=["model_type"], auto_map=ASKED)],
        REFUSED.format("model", CONFIG),
    ),
    "model from elsewhere": (
        [change(CONFIG, model_type="mine", auto_map={"AutoConfig": "me/own--own.Config"})],
        REFUSED.format("model", CONFIG),
    ),
    "tower": (
        [
            change(CONFIG, model_type="vision-text-dual-encoder"),
            change(CONFIG, within=["vision_config"], model_type="mine", auto_map=ASKED),
        ],
        REFUSED.format("model", CONFIG),
    ),
    "processor": (
        [change(PROCESSOR, processor_class="Own", auto_map=ASKED)],
        REFUSED.format("processor", PROCESSOR),
    ),
    "processor of the tokenizer": (
        [
            split_processor,
            change(TOKENIZER, processor_class="Own", auto_map=ASKED),
        ],
        REFUSED.format("processor", TOKENIZER),
    ),
    "old processor": (
        [split_processor, change(OLD_PROCESSOR, processor_class="Own", auto_map=ASKED)],
        REFUSED.format("processor", OLD_PROCESSOR),
    ),
    "image processor": (
        [change(PROCESSOR, within=["image_processor"], image_processor_type="Own", auto_map=ASKED)],
        REFUSED.format("processor", PROCESSOR),
    ),
    "old image processor": (
        [split_processor, change(OLD_PROCESSOR, image_processor_type="Own", auto_map=ASKED)],
        REFUSED.format("processor", OLD_PROCESSOR),
    ),
    "tokenizer": ([change(TOKENIZER, tokenizer_class="Own", auto_map=ASKED)], None),
    "tokenizer as a list": ([change(TOKENIZER, tokenizer_class="Own", auto_map=ASKED["AutoTokenizer"])], None),
    "known classes": (
        [
            change(CONFIG, auto_map=ASKED),
            change(PROCESSOR, auto_map=ASKED),
            change(TOKENIZER, auto_map=ASKED),
        ],
        None,
    ),
    "kernel": (
        [change(CONFIG, attn_implementation="me/own")],
        "asks for attn_implementation 'me/own', which can be code",
    ),
    "kernel of a tower": (
        [change(CONFIG, within=["vision_config"], _attn_implementation="flash_attention_2")],
        "asks for _attn_implementation 'flash_attention_2', which can be code",
    ),
    "all": (
        [
            change(CONFIG, model_type="mine", auto_map=ASKED),
            change(PROCESSOR, processor_class="Own", auto_map=ASKED),
            change(TOKENIZER, tokenizer_class="Own", auto_map=ASKED),
        ],
        REFUSED.format("model", CONFIG),
    ),
}


@pytest.fixture
def hostile(sound, tmp_path, monkeypatch):
    """Copies of both beside code that leaves a mark; who is asked says yes. Fails if there is a mark at the end."""
    mark = tmp_path / "mark"
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    for folder in (tmp_path, tmp_path / "base", tmp_path / "adapter"):
        (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    change("adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))(tmp_path / "adapter")
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert not mark.exists(), "the model's own code has run"


@pytest.mark.parametrize(
    ("asked", "source"),
    [(asked, "base") for asked in FOLDERS] + [(asked, "adapter") for asked in ("model", "processor", "known classes")],
)
def test_a_models_own_code_never_runs(hostile, images, classifier, asked, source):
    changes, line = FOLDERS[asked]
    for apply in changes:
        apply(hostile / "base")
    if line is None:
        loaded = ZeroShotClassifier(*load_dual_encoder(str(hostile / source)), CLASSES)
        torch.testing.assert_close(loaded(images), classifier(images))
        return
    if source == "adapter" and "processor" in line:
        (hostile / "adapter" / PROCESSOR).unlink()  # so that its base's is taken
    with pytest.raises(InputError, match=line) as error:
        load_proxy(str(hostile / source))
    assert "\n" not in str(error.value)


def test_transformers_would_run_it(hostile, monkeypatch):
    """So the others say something."""
    change(CONFIG, model_type="mine", auto_map=ASKED)(hostile / "base")
    transformers.AutoConfig.from_pretrained(str(hostile / "base"))
    mark = hostile / "mark"
    assert mark.exists()
    mark.unlink()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "own"}, "ask for the Python module 'own' .megatron_config."),
        ({"peft_type": "OWN", "auto_map": ASKED}, "Can't load the adapter"),
        ({"auto_mapping": {"base_model_class": "Model", "parent_library": "own"}}, None),
    ],
    ids=["megatron", "type", "auto_mapping"],
)
def test_an_adapters_code_never_runs(hostile, images, classifier, settings, line):
    change("adapter_config.json", **settings)(hostile / "adapter")
    if line is None:
        loaded = ZeroShotClassifier(*load_dual_encoder(str(hostile / "adapter")), CLASSES)
        torch.testing.assert_close(loaded(images), classifier(images))
    else:
        with pytest.raises(InputError, match=line):
            load_proxy(str(hostile / "adapter"))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("hpt_gpd.py", "--target {0} --train_dataset digits --objective tecoa --max_train_samples 32"),
        ("evaluate.py", "--models {0} --benchmarks digits"),
        ("rank_proxies.py", "--target {1} --proxies {0} --dataset digits --validation_size 64"),
    ],
    ids=["target", "evaluated", "candidate"],
)
def test_no_recipe_runs_it(hostile, sound, script, arguments):
    change(CONFIG, model_type="mine", auto_map=ASKED)(hostile / "base")
    given = arguments.format(hostile / "base", sound / "base").split()
    line = refusal_of(script, *given, "--output_dir", hostile / "out", "--use_cpu", "True")
    assert "asks for Python code of its own, which hpt never runs" in line


def test_what_is_saved_asks_for_no_code(hostile):
    """Or whoever loads a model that was made from one would be asked for leave to run code of someone else."""
    for apply in FOLDERS["known classes"][0]:
        apply(hostile / "base")
    change(CONFIG, within=["vision_config"], auto_map=ASKED)(hostile / "base")
    save_finished(*load_dual_encoder(str(hostile / "base")), hostile / "out")
    for file in (hostile / "out").glob("*.json"):
        assert "auto_map" not in file.read_text()


def test_every_call_of_an_auto_class_refuses_code():
    texts = {
        path: path.read_text() for part in ("hpt", "recipes", "examples") for path in ROOT.glob(f"{part}/**/*.py")
    }
    loads = []
    for path, text in texts.items():
        assert "trust_remote_code=True" not in text, path
        if "Auto" in text and "from_pretrained" in text:
            calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
            loads += [(path, call) for call in calls if re.match(r"Auto\w+\.from_", ast.unparse(call.func))]
    assert loads
    for path, call in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
