"""CLIPs of open_clip and OpenAI, and robust vision towers, as models of transformers, and back."""

import json
import sys
from dataclasses import fields
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conversion_sources import (
    HEADS,
    MEAN,
    SAID,
    SIDE,
    STD,
    VOCABULARY,
    OpenAIClip,
    below_text,
    config_of,
    save_open_clip,
)
from helpers import make_clip, make_family
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from hpt import InputError
from hpt.errors import WriteFailed
from hpt.models.conversion import Base, Stated, convert, names, open_clip_folder, read_checkpoint, write_open_clip
from hpt.models.conversion.open_clip_config import OpenClipConfig, model_config
from hpt.models.conversion.parity import Arithmetic, Examples, embed_by_own_arithmetic
from hpt.models.conversion.shapes import TextShape, VisionShape
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.lora import add_lora
from hpt.training.pretraining import byte_tokenizer


TOKENIZER = byte_tokenizer()
LAYOUTS = {"OpenAI's": lambda weights: weights, "below text.": below_text}


def stated(**changes):
    return Stated(**SAID | {"tokenizer": TOKENIZER} | changes)


def converted(path, base=None, **changes):
    return convert(read_checkpoint(str(path)), base, stated(**changes))


def saved(path, content):
    torch.save(content, path)
    return path


def assert_computes_as(made, reference: OpenAIClip) -> None:
    """Embeddings of images and prompts as the independent implementation gives them."""
    examples = Examples.of(made.model, made.processor)
    with torch.no_grad():
        images = made.model.get_image_features(pixel_values=examples.pixel_values).pooler_output
        texts = made.model.get_text_features(input_ids=examples.input_ids).pooler_output
    torch.testing.assert_close(images, reference.visual(examples.pixel_values), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(texts, reference.encode_text(examples.input_ids), atol=1e-5, rtol=1e-5)
    assert made.model.logit_scale == reference.logit_scale


def facts_of(made) -> dict[str, tuple]:
    return {fact.name: (fact.value, fact.source) for fact in made.facts}


@pytest.fixture(scope="module")
def base():
    """A CLIP of transformers of the same shapes, with other weights and another activation."""
    reference = OpenAIClip("gelu", seed=1)
    return Base("me/base", *_made(reference, activation="gelu"))


def _made(reference: OpenAIClip, **changes):
    with TemporaryDirectory() as folder:
        made = converted(saved(f"{folder}/clip.pt", reference.state_dict()), **changes)
    return made.model, made.processor


# To transformers


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_open_clip_compute_as_their_source(tmp_path, layout, activation):
    reference = OpenAIClip(activation)
    custom = {"custom_text": True} if layout == "below text." else {}
    weights = LAYOUTS[layout](reference.state_dict())
    folder = save_open_clip(tmp_path / "clip", weights, config_of(activation, **custom))
    made = convert(read_checkpoint(str(folder)))
    assert_computes_as(made, reference)
    assert made.parity[0].cosine <= 1e-5 and made.parity[0].images == 4 and made.parity[0].prompts == 8
    assert [*made.processor.image_processor.image_mean] == MEAN and [*made.processor.image_processor.image_std] == STD
    facts = facts_of(made)
    assert facts["activation"] == (activation, "open_clip_config.json") and facts["heads"][0] == HEADS
    assert facts["tokenizer"] == (f"CLIPTokenizer, {VOCABULARY} tokens", "its tokenizer's files")
    assert facts["vision_width"] == (24, "shapes of the weights")
    assert "open_clip's default" in facts["resizing"][1] or facts["resizing"][1] == "open_clip_config.json"


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [".pt", ".safetensors", "training checkpoint", "fp16", "a scale with a dimension"])
def test_state_dicts_compute_as_their_source(tmp_path, kind, layout, activation):
    reference = OpenAIClip(activation)
    if kind == "fp16":
        reference.load_state_dict({name: weight.half() for name, weight in reference.state_dict().items()})
    weights, path = LAYOUTS[layout](reference.state_dict()), tmp_path / "clip.pt"
    if kind == ".safetensors":
        path = tmp_path / "clip.safetensors"
        save_file(weights, path)
    elif kind == "fp16":
        numbers = {name: torch.tensor(16) for name in ("input_resolution", "context_length", "vocab_size")}
        saved(path, {name: weight.half() for name, weight in weights.items()} | numbers)
    elif kind == "training checkpoint":
        state = {f"module.{name}": weight for name, weight in weights.items()}
        saved(path, {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}})
    elif kind == "a scale with a dimension":  # open_clip's nonscalar_logit_scale
        saved(path, weights | {"logit_scale": weights["logit_scale"][None]})
    else:
        saved(path, weights)
    made = converted(path, activation=activation)
    assert_computes_as(made, reference)
    assert all(weight.dtype == torch.float32 for weight in made.model.state_dict().values())
    assert facts_of(made)["heads"] == (HEADS, "given")


@pytest.mark.parametrize("prefix", ["", "visual.", "model.", "module.model.", "model.visual."])
def test_a_vision_tower_alone_takes_the_text_tower_of_its_base(tmp_path, base, prefix):
    robust = OpenAIClip("gelu", seed=2)
    weights = {prefix + name: weight for name, weight in robust.vision_weights().items()}
    made = convert(read_checkpoint(str(saved(tmp_path / "fare.pt", weights))), base)
    whole = OpenAIClip("gelu", seed=1)
    whole.visual.load_state_dict(robust.vision_weights())
    assert_computes_as(made, whole)
    facts = facts_of(made)
    assert {facts[name][1] for name in ("activation", "heads", "image_mean", "tokenizer", "text_tower")} == {"me/base"}
    assert facts["activation"][0] == "gelu" and facts["image_std"][0] == pytest.approx(STD)


def test_teco_as_checkpoints_hold_a_vision_tower_beside_a_prompt(tmp_path, base):
    robust = OpenAIClip("gelu", seed=2)
    content = {"epoch": 9, "best_acc1": torch.tensor(50.0), "state_dict": {"pad_up": torch.zeros(1, 3)}}
    checkpoint = read_checkpoint(
        str(saved(tmp_path / "best.pth.tar", content | {"vision_encoder_state_dict": robust.vision_weights()}))
    )
    assert checkpoint.is_vision_only
    assert checkpoint.layout == "of a vision tower alone, in the entry 'vision_encoder_state_dict'"
    model = convert(checkpoint, base).model
    assert torch.equal(model.vision_model.embeddings.class_embedding, robust.visual.class_embedding)


def test_an_option_goes_before_the_configuration_and_that_before_a_base(tmp_path, base):
    folder = save_open_clip(tmp_path / "clip", OpenAIClip().state_dict(), config_of("quick_gelu"))
    checkpoint = read_checkpoint(str(folder))
    facts = facts_of(convert(checkpoint, base))
    assert facts["activation"] == ("quick_gelu", "open_clip_config.json; me/base says gelu")
    made = convert(checkpoint, base, Stated(activation="gelu"))
    source = "given; open_clip_config.json says quick_gelu"
    assert facts_of(made)["activation"] == ("gelu", source)
    assert made.model.config.text_config.hidden_act == made.model.config.vision_config.hidden_act == "gelu"


def test_an_option_is_of_the_towers_that_the_checkpoint_has(tmp_path, base):
    path = saved(tmp_path / "fare.pt", OpenAIClip("quick_gelu").vision_weights())
    made = convert(read_checkpoint(str(path)), base, Stated(activation="quick_gelu"))
    config, facts = made.model.config, facts_of(made)
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == ("quick_gelu", "gelu")
    assert facts["text_activation"] == ("gelu", "me/base")


def test_what_norms_add_to_the_variance_goes_both_ways(tmp_path):
    content, epsilons = config_of(), {"vision_cfg": 0.1, "text_cfg": 0.2}
    for tower, eps in epsilons.items():
        content["model_cfg"][tower]["norm_kwargs"] = {"eps": eps}
    made = convert(read_checkpoint(str(save_open_clip(tmp_path / "clip", OpenAIClip().state_dict(), content))))
    config = made.model.config
    assert (config.vision_config.layer_norm_eps, config.text_config.layer_norm_eps) == (0.1, 0.2)
    write_open_clip(made.model, made.processor, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())["model_cfg"]
    assert {tower: written[tower]["norm_kwargs"]["eps"] for tower in epsilons} == epsilons


def test_a_clip_that_pools_elsewhere_than_at_its_highest_token_says_so(tmp_path):
    """Its own configuration in transformers may name any token, and open_clip's `pool_type` says the same."""
    model, processor = make_clip(0)
    for module in (model.config.text_config, model.text_model):
        module.eos_token_id = 512
    write_open_clip(model, processor, tmp_path / "clip")
    made = convert(read_checkpoint(str(tmp_path / "clip")))
    assert made.model.config.text_config.eos_token_id == 512
    assert facts_of(made)["end_token"] == (512, "open_clip_config.json")


def test_what_a_configuration_leaves_out_is_open_clips_default(tmp_path):
    content = config_of()
    del content["model_cfg"]["quick_gelu"], content["preprocess_cfg"]
    facts = facts_of(convert(read_checkpoint(str(save_open_clip(tmp_path / "x", OpenAIClip().state_dict(), content)))))
    default = "open_clip's default, as open_clip_config.json has no"
    assert facts["activation"] == ("gelu", f"{default} quick_gelu")
    assert facts["image_mean"] == ([0.48145466, 0.4578275, 0.40821073], f"{default} preprocess_cfg.mean")


def test_a_configuration_that_says_next_to_nothing_is_a_vit_b_16():
    """As open_clip's classes have it, with OpenAI's text tower."""
    config = OpenClipConfig({"model_cfg": {"embed_dim": 512}}, "a folder")
    assert config.vision_shape() == VisionShape(768, 12, 3072, 512, patch_size=16, grid=14)
    assert config.text_shape() == TextShape(512, 12, 2048, 512, vocab_size=49408, context_length=77)
    said = {name: fact.value for name, fact in config.said().items()}
    assert (said["heads"], said["text_heads"], said["activation"]) == (12, 8, "gelu")
    assert said["layer_norm_eps"] == said["text_layer_norm_eps"] == 1e-5 and said["image_size"] == 224


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("shortest", ({"shortest_edge": 16}, True)),
        ("squash", ({"height": 16, "width": 16}, False)),
    ],
)
def test_images_are_resized_as_the_configuration_says(tmp_path, mode, expected):
    content = config_of()
    content["preprocess_cfg"] |= {"resize_mode": mode, "interpolation": "bilinear"}
    made = convert(read_checkpoint(str(save_open_clip(tmp_path / "clip", OpenAIClip().state_dict(), content))))
    images = made.processor.image_processor
    size = {name: side for name, side in dict(images.size).items() if side is not None}
    assert (size, images.do_center_crop, images.resample) == (*expected, Image.Resampling.BILINEAR)
    write_open_clip(made.model, made.processor, tmp_path / "back")
    written = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert (written["resize_mode"], written["interpolation"]) == (mode, "bilinear")


def test_heads_are_none_of_the_shapes(tmp_path):
    """The same weights with another number of heads are another model: nothing but what is said tells which."""
    path = saved(tmp_path / "clip.pt", OpenAIClip().state_dict())
    one, other = (converted(path, heads=heads) for heads in (HEADS, 2 * HEADS))
    examples = Examples.of(one.model, one.processor)
    with torch.no_grad():
        pair = [
            made.model.get_image_features(pixel_values=examples.pixel_values).pooler_output for made in (one, other)
        ]
    assert (F.normalize(pair[0], dim=-1) - F.normalize(pair[1], dim=-1)).abs().max() > 1e-3
    assert max(made.parity[0].cosine for made in (one, other)) <= 1e-5  # which no comparison with itself finds


@pytest.mark.parametrize(
    ("pooling", "end"),
    [({}, VOCABULARY - 1), ({"pool_type": "eos", "eos_id": VOCABULARY - 1}, VOCABULARY - 1)],
    ids=["at the highest token", "at its end"],
)
def test_prompts_are_pooled_where_the_source_does(tmp_path, pooling, end):
    content = config_of()
    content["model_cfg"]["text_cfg"] |= pooling
    made = convert(read_checkpoint(str(save_open_clip(tmp_path / "clip", OpenAIClip().state_dict(), content))))
    assert made.model.config.text_config.eos_token_id == end
    assert_computes_as(made, OpenAIClip())


def test_where_the_tokenizers_end_is_not_its_highest_token_the_highest_is_pooled(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "!"
    made = converted(saved(tmp_path / "clip.pt", OpenAIClip().state_dict()), tokenizer=tokenizer)
    assert made.model.config.text_config.eos_token_id == 2  # transformers' word for it
    assert_computes_as(made, OpenAIClip())


def test_a_converted_model_is_saved_and_loaded_as_any(tmp_path):
    made = converted(saved(tmp_path / "clip.pt", OpenAIClip().state_dict()))
    save_finished(made.model, made.processor, tmp_path / "model")
    model, processor = load_dual_encoder(str(tmp_path / "model"))
    assert all(torch.equal(weight, made.model.state_dict()[name]) for name, weight in model.state_dict().items())
    assert processor.image_processor.image_mean == pytest.approx(MEAN)


# To open_clip


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_round_trips_keep_each_bit(tmp_path, activation):
    reference = OpenAIClip(activation)
    folder = save_open_clip(tmp_path / "clip", reference.state_dict(), config_of(activation))
    made = convert(read_checkpoint(str(folder)))
    parity = write_open_clip(made.model, made.processor, tmp_path / "back")
    assert parity[0].cosine <= 1e-5
    weights = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert weights.keys() == reference.state_dict().keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in reference.state_dict().items())
    again = convert(read_checkpoint(str(tmp_path / "back")))
    assert all(torch.equal(weight, again.model.state_dict()[name]) for name, weight in made.model.state_dict().items())
    assert again.model.config.to_dict() == made.model.config.to_dict()
    assert again.processor.image_processor.to_dict() == made.processor.image_processor.to_dict()


def test_a_clip_of_transformers_goes_to_open_clip_and_back(tmp_path):
    model, processor = make_clip(0, patch_size=4)
    write_open_clip(model, processor, tmp_path / "clip")
    content = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    assert content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "clip"  # OpenAI's vocabulary is another
    assert "pool_type" not in content["model_cfg"]["text_cfg"]  # for its end is its highest token
    made = convert(read_checkpoint(str(tmp_path / "clip")))
    assert all(torch.equal(weight, made.model.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(("width", "mlp_width"), [(1664, 8192), (1408, 6144), (1280, 5120), (56, 61)])
def test_hidden_units_come_back_from_their_ratio(width, mlp_width):
    """Of g and bigG they are no multiple; open_clip computes `int(width * ratio)`, and 56 * (61 / 56) is below 61."""
    vision, text = VisionShape(width, 2, mlp_width, 8, 14, 16), TextShape(width, 2, mlp_width, 8, 514, 77)
    how = Arithmetic(1, 1, "gelu", "gelu", 1e-5, 1e-5, None)
    towers = model_config("x", vision, 224, text, how, TOKENIZER)
    for tower in ("vision_cfg", "text_cfg"):
        assert int(width * json.loads(json.dumps(towers[tower]["mlp_ratio"]))) == mlp_width


def _with_activations(model):
    model.config.vision_config.hidden_act = "gelu"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_with_activations, "both quick_gelu, but it has gelu for images and quick_gelu for texts"),
        (lambda model: model.logit_scale.data.fill_(torch.nan), "weights are NaN or infinite, 1 of 62 .logit_scale"),
    ],
    ids=["two activations", "not finite"],
)
def test_what_open_clip_cannot_hold_is_refused(tmp_path, change, line):
    model, processor = make_clip(0)
    change(model)
    with pytest.raises(InputError, match=line):
        write_open_clip(model, processor, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_only_a_clip_in_float32_is_written(tmp_path):
    model, processor = make_family("Siglip")
    with pytest.raises(InputError, match="'SiglipModel', is a SiglipModel, but must be a CLIPModel"):
        write_open_clip(model, processor, tmp_path / "clip")
    model, processor = make_clip(0)
    with pytest.raises(InputError, match="is in torch.bfloat16, but must be in float32"):
        write_open_clip(model.bfloat16(), processor, tmp_path / "clip")
    with pytest.raises(InputError, match="is a PeftModel, but must be a CLIPModel, with its adapters merged"):
        write_open_clip(add_lora(make_clip(0)[0], rank=2), processor, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_a_processor_that_open_clip_has_no_words_for_is_refused(tmp_path):
    model, processor = make_clip(0)
    processor.image_processor.size = {"shortest_edge": 20}
    with pytest.raises(InputError, match="open_clip prepares images otherwise than 'CLIPModel'.*20"):
        write_open_clip(model, processor, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("kind", ["ViT", "Siglip"])
def test_images_squashed_by_any_processor_are_so_in_both_formats(tmp_path, base, kind):
    """Such processors have neither a crop nor its size."""
    image_processor = getattr(transformers, f"{kind}ImageProcessorPil")(size={"height": SIDE, "width": SIDE})
    squashing = CLIPProcessor(image_processor, TOKENIZER)
    tower = saved(tmp_path / "fare.pt", OpenAIClip(seed=2).vision_weights())
    made = convert(read_checkpoint(str(tower)), Base("me/base", base.model, squashing))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8))
    ours, theirs = (each(image, return_tensors="pt") for each in (made.processor.image_processor, image_processor))
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"])
    write_open_clip(made.model, squashing, tmp_path / "clip")
    preprocessing = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())["preprocess_cfg"]
    interpolation = {"ViT": "bilinear", "Siglip": "bicubic"}[kind]
    assert (preprocessing["resize_mode"], preprocessing["interpolation"]) == ("squash", interpolation)


@pytest.fixture(scope="module")
def openais_tokenizer():
    """OpenAI's numbers for `a`, `photo`, `of` and `cat`; the rest of its 49,408 tokens stand for nothing."""
    words = {"a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368}
    parts = ["ph", "pho", "phot", "ca"]
    letters = [letter + end for letter in "photfca" for end in ("", "</w>") if letter + end != "a</w>"]
    vocabulary = words | {part: 1 + place for place, part in enumerate(letters + parts)}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    others = sorted({*range(49408)} - {*vocabulary.values()})
    vocabulary |= {chr(0x10000 + number): number for number in others}
    merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"), ("o", "f</w>"), ("c", "a"), ("ca", "t</w>")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def test_openais_tokenizer_is_known_and_no_other_taken_for_it(tmp_path, openais_tokenizer):
    """open_clip has it built in, and takes it for every model whose configuration names no other."""
    config = make_clip(0)[0].config
    config.text_config.vocab_size, config.text_config.eos_token_id = 49408, 49407
    model, image_processor = CLIPModel(config).eval(), make_clip(0)[1].image_processor
    write_open_clip(model, CLIPProcessor(image_processor, openais_tokenizer), tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_config.json"
    assert "hf_tokenizer_name" not in json.loads(file.read_text())["model_cfg"]["text_cfg"]
    checkpoint = read_checkpoint(str(tmp_path / "clip"))
    assert facts_of(convert(checkpoint))["tokenizer"] == ("CLIPTokenizer, 49408 tokens", "its tokenizer's files")
    (tmp_path / "clip" / "tokenizer.json").unlink()
    TOKENIZER.save_pretrained(tmp_path / "clip")
    with pytest.raises(InputError, match="hf_tokenizer_name is missing, for which open_clip takes OpenAI's tokenizer"):
        convert(checkpoint)
    given = convert(checkpoint, stated=Stated(tokenizer=openais_tokenizer))
    assert facts_of(given)["tokenizer"] == ("CLIPTokenizer, 49408 tokens", "given")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_numbers_of_openais_state_dicts_are_no_weights(tmp_path, prefix):
    weights = below_text(OpenAIClip().state_dict()) | {"text.context_length": torch.tensor(77)}
    content = {prefix + name: weight for name, weight in weights.items()} | {"input_resolution": torch.tensor(16)}
    assert_computes_as(converted(saved(tmp_path / "clip.pt", content)), OpenAIClip())


def test_an_open_clip_that_cannot_be_imported_is_said_so_and_left_out(tmp_path, monkeypatch, caplog):
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    made = converted(saved(tmp_path / "clip.pt", OpenAIClip().state_dict()))
    assert [parity.against for parity in made.parity] == ["the source's own arithmetic"]
    assert "which can't be imported: RuntimeError: operator torchvision::nms does not exist" in caplog.text


def test_a_folder_with_a_model_of_open_clip_is_left_alone(tmp_path):
    folder = save_open_clip(tmp_path / "clip", OpenAIClip().state_dict(), config_of())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="holds a model of open_clip: give another folder"):
        write_open_clip(*make_clip(0), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_leaves_no_half_of_a_model(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(open_clip_folder, "save_file", full)
    with pytest.raises(WriteFailed, match="clip can't be written: No space left on device"):
        write_open_clip(*make_clip(0), tmp_path / "clip")
    assert list((tmp_path / "clip").iterdir()) == []


# The comparison


def _swapped(monkeypatch, table: str, one: str, other: str) -> None:
    own = getattr(names, table)
    monkeypatch.setattr(names, table, own | {one: own[other], other: own[one]})


WRONG = {
    "queries for keys": lambda patch: patch.setattr(names, "QUERY_KEY_VALUE", names.QUERY_KEY_VALUE[::-1]),
    "norms": lambda patch: _swapped(patch, "LAYERS", "ln_1", "ln_2"),
    "last norm": lambda patch: _swapped(patch, "WHOLE", "visual.ln_pre.bias", "visual.ln_post.bias"),
}


@pytest.mark.parametrize("wrong", ["queries for keys", "norms", "last norm"])
def test_a_wrong_conversion_is_refused(tmp_path, monkeypatch, wrong):
    path = saved(tmp_path / "clip.pt", OpenAIClip().state_dict())
    WRONG[wrong](monkeypatch)
    with pytest.raises(
        InputError, match="cosines of the same images and prompts differ by .* the source's own arithm"
    ):
        converted(path)


@pytest.mark.parametrize("wrong", ["queries for keys", "norms", "last norm"])
def test_a_wrong_way_back_writes_nothing(tmp_path, monkeypatch, wrong):
    model, processor = _made(OpenAIClip())
    WRONG[wrong](monkeypatch)
    with pytest.raises(InputError, match="cosines of the same images and prompts differ by"):
        write_open_clip(model, processor, tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("field", [field.name for field in fields(Arithmetic)])
def test_the_own_arithmetic_depends_on_each_fact(field):
    weights, how = OpenAIClip().state_dict(), Arithmetic(3, 2, "quick_gelu", "quick_gelu", 1e-5, 1e-5, None)
    others = {"heads": 6, "text_heads": 4, "activation": "gelu", "text_activation": "gelu"}
    others |= {"layer_norm_eps": 0.1, "text_layer_norm_eps": 0.1, "end_token": 7}
    examples = Examples.of(*_made(OpenAIClip()))
    examples.input_ids[:, 3] = 7
    changed = Arithmetic(**vars(how) | {field: others[field]})
    pair = [embed_by_own_arithmetic(weights, one, examples).cosines() for one in (how, changed)]
    assert (pair[0] - pair[1]).abs().max() > 1e-3
