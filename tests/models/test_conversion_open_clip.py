"""Conversions against the library open_clip itself, where it is installed, with a stand-in for its torchvision.

open_clip resizes and normalises images by torchvision, and computes nothing with it that is compared here.
"""

import importlib.util
import json
import sys
from unittest.mock import MagicMock

import pytest
import torch
from conversion_sources import OpenAIClip, below_text, config_of, save_open_clip
from helpers import make_clip

from hpt import InputError
from hpt.models.conversion import Stated, convert, read_checkpoint, write_open_clip
from hpt.models.conversion.layouts import find_weights
from hpt.models.open_clip import OpenClipClassifier
from hpt.training.pretraining import byte_tokenizer


TORCHVISION = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
TORCHVISION += ["torchvision.ops", "torchvision.ops.misc"]


@pytest.fixture(scope="module")
def open_clip():
    """The library, with a stand-in for torchvision while it is imported, unless torchvision is there."""
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip isn't installed: pip install open_clip_torch")
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for name in TORCHVISION:
                patch.setitem(sys.modules, name, MagicMock())
            patch.setitem(sys.modules, "timm", None)  # which needs more of it, and is optional
        import open_clip
    yield open_clip
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
        del sys.modules[name]


def assert_computes_as_open_clip(open_clip, folder, model) -> None:
    """open_clip's own reading of a folder gives the model's embeddings."""
    theirs = open_clip.create_model(f"local-dir:{folder}")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 16, 16, generator=generator)
    tokens = torch.randint(512, (3, 77), generator=generator)
    tokens[:, 40] = 513
    with torch.no_grad():
        ours = model.get_image_features(pixel_values=images).pooler_output
        texts = model.get_text_features(input_ids=tokens).pooler_output
        torch.testing.assert_close(ours, theirs.encode_image(images), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(texts, theirs.encode_text(tokens), atol=1e-5, rtol=1e-4)
    assert theirs.logit_scale.item() == model.logit_scale.item()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("custom", [False, True], ids=["OpenAI's names", "text. before them"])
def test_folders_compute_as_in_open_clip(open_clip, tmp_path, custom, activation):
    weights = OpenAIClip(activation).state_dict()
    config = config_of(activation, custom_text=custom)
    folder = save_open_clip(tmp_path / "clip", below_text(weights) if custom else weights, config)
    made = convert(read_checkpoint(str(folder)))
    assert [parity.against for parity in made.parity][1:] == [f"open_clip {open_clip.__version__}"]
    assert made.parity[1].cosine <= 1e-5
    assert_computes_as_open_clip(open_clip, folder, made.model)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_open_clip_computes_as_what_was_written_for_it(open_clip, tmp_path, activation):
    model, processor = make_clip(0, patch_size=4)
    for tower in (model.config.vision_config, model.config.text_config):
        tower.hidden_act = activation
    model = type(model)(model.config).eval()
    parity = write_open_clip(model, processor, tmp_path / "clip")
    assert len(parity) == 2
    assert_computes_as_open_clip(open_clip, tmp_path / "clip", model)


def test_open_clips_own_words_for_what_is_left_out_are_the_defaults_here(open_clip, tmp_path):
    """`head_width` 64 and 8 heads, among others."""
    content = config_of()
    content["model_cfg"] = {"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"layers": 1, "vocab_size": 514}}
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "me/clip"
    model = open_clip.CLIP(**content["model_cfg"])
    folder = save_open_clip(tmp_path / "clip", model.state_dict(), content)
    made = convert(read_checkpoint(str(folder)))
    assert len(made.parity) == 2
    assert made.model.config.vision_config.num_attention_heads == model.visual.transformer.resblocks[0].attn.num_heads
    assert json.loads((folder / "open_clip_config.json").read_text()) == content


def test_what_an_option_changes_is_compared_as_changed(open_clip, tmp_path):
    folder = save_open_clip(tmp_path / "clip", OpenAIClip("gelu").state_dict(), config_of("quick_gelu"))
    made = convert(read_checkpoint(str(folder)), stated=Stated(activation="gelu"))
    assert len(made.parity) == 2 and made.model.config.vision_config.hidden_act == "gelu"


def test_a_resnet_of_open_clip_is_a_classifier_as_it_is(open_clip):
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    model = open_clip.CLIP(8, vision, {"layers": 1, "vocab_size": 514}).eval()
    model.visual.image_mean, model.visual.image_std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]

    def tokenize(prompts):
        return byte_tokenizer()(prompts, padding="max_length", return_tensors="pt")["input_ids"]

    classifier = OpenClipClassifier(model, tokenize).with_classes(["cat", "dog"], "{}")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalised = (images - classifier.image_mean) / classifier.image_std
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), model.get_logits(normalised, tokenize(["cat", "dog"]))[0])
    with pytest.raises(InputError, match="it is a CLIP with a ResNet, .* hpt.models.open_clip.OpenClipClassifier"):
        find_weights("RN50.pt", model.state_dict())
