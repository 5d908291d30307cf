"""A robust vision tower in a LLaVA: what doesn't fit is refused, and what fits computes as it did; answers' losses."""

import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, make_clip, weights
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    GPT2Tokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

from hpt import PGD, InputError, ZeroShotClassifier
from hpt.models.lora import add_lora
from hpt.models.vlm import NO_TOKEN, PromptedVLM, swap_vision_tower
from hpt.training.pretraining import PretrainingConfig, build_siglip


PROMPT = "USER: <image>\nWhat? ASSISTANT:"
NEXT = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}
# Kind of host -> class, its configuration's, the tower's model_type, features of an image, further settings
HOSTS = {
    "llava": (LlavaForConditionalGeneration, LlavaConfig, "clip_vision_model", 4, {}),
    "llava, two layers": (
        LlavaForConditionalGeneration,
        LlavaConfig,
        "clip_vision_model",
        5,
        {"vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full"},
    ),
    "llava-next": (LlavaNextForConditionalGeneration, LlavaNextConfig, "clip_vision_model", 4, NEXT),
    "llava with siglip": (
        LlavaForConditionalGeneration,
        LlavaConfig,
        "siglip_vision_model",
        4,
        {"vision_feature_select_strategy": "full"},
    ),
    "llava-next with siglip": (
        LlavaNextForConditionalGeneration,
        LlavaNextConfig,
        "siglip_vision_model",
        4,
        {"vision_feature_select_strategy": "full"} | NEXT,
    ),
}
EACH_HOST = pytest.mark.parametrize("kind", HOSTS)


def make_host(kind: str = "llava", vision=None, **settings):
    """A tiny LLaVA of random weights whose tower has the shape of [`make_robust`]'s, and its processor."""
    model_class, config_class, tower, features, own = HOSTS[kind]
    entries = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<image>"]
    vocab = {entry: index for index, entry in enumerate(entries)}
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=[], extra_special_tokens={"image_token": "<image>"})
    shape = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": len(vocab), "initializer_range": 0.25}
    text |= shape | {"eos_token_id": 256, "bos_token_id": 256, "pad_token_id": 256}
    vision = {"model_type": tower, "image_size": 16, "patch_size": 8} | shape | (vision or {})
    own = {"image_seq_length": features, "image_token_index": 257} | own | settings
    torch.manual_seed(1)
    model = model_class(config_class(vision_config=vision, text_config=text, **own)).eval()
    return model, make_processor(kind, model.config, tokenizer)


def make_processor(kind: str, config, tokenizer, **settings):
    side = {"height": 16, "width": 16}
    if "next" in kind:
        images = LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size=side, **NEXT)
    elif "siglip" in kind:
        images = SiglipImageProcessorPil(size=side)
    else:
        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side)
    if "siglip" in kind:
        images.image_mean = images.image_std = [0.5] * 3
    tokens = {"patch_size": 8, "num_additional_image_tokens": 0 if "siglip" in kind else 1}
    tokens |= {"vision_feature_select_strategy": config.vision_feature_select_strategy} | settings
    return (LlavaNextProcessor if "next" in kind else LlavaProcessor)(images, tokenizer, **tokens)


def make_robust(kind: str = "llava", **shape) -> ZeroShotClassifier:
    """What stands for a robust model: one of random weights of the tower's family."""
    if "siglip" not in kind:
        return ZeroShotClassifier(*make_clip(**shape))
    torch.manual_seed(0)
    shape = {"image_size": 16, "vision_hidden_size": 16, "vision_layers": 2, "text_hidden_size": 16} | shape
    return ZeroShotClassifier(*build_siglip(PretrainingConfig(output_dir="unused", use_cpu=True, **shape)))


def features_of(host, pixel_values: torch.Tensor) -> torch.Tensor:
    """What a host's language model is given of images, one after the other; of a LLaVA-NeXT, of square ones."""
    if isinstance(host, LlavaNextForConditionalGeneration):
        sizes = torch.tensor([[32, 32]] * len(pixel_values))
        tiles = pixel_values[:, None].expand(-1, 5, -1, -1, -1)  # the image, and four tiles of it
        return torch.stack(list(host.get_image_features(tiles, image_sizes=sizes).pooler_output))
    return torch.stack(list(host.get_image_features(pixel_values).pooler_output))


def test_features_may_be_of_any_layer_that_the_tower_has():
    """Of two layers, their states are numbered 0 to 2, or from the end -3 to -1."""
    host, processor = make_host("llava, two layers", vision_feature_layer=[-3, 2])
    assert swap_vision_tower(host, make_robust(), processor=processor) is host
    assert features_of(host, torch.randn(1, 3, 16, 16)).shape == (1, 5, 16)


@EACH_HOST
@torch.no_grad()
def test_features_are_the_robust_towers_own(kind):
    (host, processor), robust = make_host(kind), make_robust(kind)
    pixel_values = torch.randn(2, 3, 16, 16)
    before, rest = features_of(host, pixel_values), {n: w for n, w in weights(host).items() if "vision_tower" not in n}
    assert swap_vision_tower(host, robust, processor=processor) is host
    states = robust.model.vision_model(pixel_values, output_hidden_states=True).hidden_states
    layers, strategy = host.config.vision_feature_layer, host.config.vision_feature_select_strategy
    chosen = torch.cat([states[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1)
    expected = host.model.multi_modal_projector(chosen[:, 1:] if strategy == "default" else chosen)
    after = features_of(host, pixel_values)
    torch.testing.assert_close(after[:, : expected.shape[1]], expected, rtol=0, atol=0)
    assert not torch.allclose(after, before, atol=1e-3)
    assert_same({n: w for n, w in weights(host).items() if "vision_tower" not in n}, rest)


@EACH_HOST
@torch.no_grad()
def test_a_saved_host_keeps_the_swapped_tower(kind, tmp_path):
    (host, _), robust, pixel_values = make_host(kind), make_robust(kind), torch.randn(2, 3, 16, 16)
    swap_vision_tower(host, robust).save_pretrained(tmp_path)
    loaded = type(host).from_pretrained(tmp_path)
    assert_same(weights(loaded.model.vision_tower), weights(robust.model.vision_model))
    torch.testing.assert_close(features_of(loaded, pixel_values), features_of(host, pixel_values), rtol=0, atol=0)


def test_it_keeps_dtype_and_gradients_and_shares_nothing():
    host, robust = make_host()[0].to(torch.bfloat16).requires_grad_(False), make_robust()
    swap_vision_tower(host, robust)
    tower = weights(host.model.vision_tower)
    assert {weight.dtype for weight in tower.values()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in host.parameters())
    assert_same(tower, {n: w.to(torch.bfloat16) for n, w in weights(robust.model.vision_model).items()})
    for weight in robust.model.parameters():
        weight.data.zero_()
    assert_same(weights(host.model.vision_tower), tower)


def test_the_robust_model_may_be_plain_or_a_tower_alone(tmp_path):
    robust = make_robust().model
    robust.save_pretrained(tmp_path)
    for given in (robust, CLIPVisionModel.from_pretrained(tmp_path)):
        host = swap_vision_tower(make_host()[0], given)
        assert_same(weights(host.model.vision_tower), weights(robust.vision_model))


def test_a_siglip_host_may_lack_the_pooling_head():
    host, robust = make_host("llava with siglip", vision={"vision_use_head": False})[0], make_robust("siglip")
    tower = weights(swap_vision_tower(host, robust).model.vision_tower)
    assert_same(tower, {name: weights(robust.model.vision_model)[name] for name in tower})
    assert not any("head" in name for name in tower)


def changed(kind="llava", **settings):
    """A host of other settings, without a look at its processor."""
    return lambda: (make_host(kind, **settings)[0], make_robust(kind), None)


def processor_with(**settings):
    """A host whose processor has other settings, of its own or of its images'."""

    def make():
        host, processor = make_host()
        for name, value in settings.items():
            setattr(processor if hasattr(processor, name) else processor.image_processor, name, value)
        return host, make_robust(), processor

    return make


def with_meta_weights():
    host = make_host()[0]
    host.model.vision_tower.to("meta")
    return host, make_robust(), None


def with_packed_weights():
    host = make_host()[0]
    layer = host.model.vision_tower.encoder.layers[0].mlp.fc1
    layer.weight = torch.nn.Parameter(layer.weight.data.to(torch.uint8), requires_grad=False)
    return host, make_robust(), None


def with_adapters():
    robust = make_robust().model
    return make_host()[0], add_lora(robust, rank=2), None


DOES_NOT_FIT = "The vision tower of CLIPModel doesn't fit LlavaForConditionalGeneration:\n- "
OTHER_SIZE = {"height": 24, "width": 24}
# What is wrong -> what makes host, robust model and the host's processor, and the lines that name it
MISMATCHES = {
    "another host": (
        lambda: (make_robust().model, make_robust(), None),
        "The host is a CLIPModel, but must be a LlavaForConditionalGeneration or a LlavaNextForConditionalGeneration; "
        "merge its adapters, if it has.",
    ),
    "another kind of tower": (
        lambda: (make_host("llava with siglip")[0], make_robust(), None),
        "CLIPModel has no SiglipVisionModel, which is the vision tower of LlavaForConditionalGeneration.",
    ),
    "a host's tower of no known kind": (
        changed(vision={"model_type": "vit"}),
        "The vision tower of LlavaForConditionalGeneration is of the model_type 'vit', but must be of "
        "clip_vision_model or siglip_vision_model.",
    ),
    "width": (
        lambda: (make_host()[0], make_robust(vision_hidden_size=24), None),
        DOES_NOT_FIT + "its hidden_size is 24, but the host's 16.\n- its intermediate_size is 96, but the host's 64.",
    ),
    "depth": (
        lambda: (make_host()[0], make_robust(vision_layers=3), None),
        DOES_NOT_FIT + "its num_hidden_layers is 3, but the host's 2.",
    ),
    "heads": (
        changed(vision={"num_attention_heads": 4}),
        DOES_NOT_FIT + "its num_attention_heads is 2, but the host's 4.",
    ),
    "activation": (
        changed(vision={"hidden_act": "gelu"}),
        DOES_NOT_FIT + "its hidden_act is 'quick_gelu', but the host's 'gelu'.",
    ),
    "norms": (
        changed(vision={"layer_norm_eps": 1e-6}),
        DOES_NOT_FIT + "its layer_norm_eps is 1e-05, but the host's 1e-06.",
    ),
    "patch size": (
        lambda: (make_host()[0], make_robust(patch_size=4), None),
        DOES_NOT_FIT + "its patch_size is 4, but the host's 8.",
    ),
    "image size": (
        lambda: (make_host()[0], make_robust(image_size=32), None),
        DOES_NOT_FIT + "its image_size is 32, but the host's 16: load_proxy(name, image_size=16) resizes its position "
        "embeddings.",
    ),
    "number of features": (
        changed(image_seq_length=576),
        DOES_NOT_FIT + "the host's image_seq_length is 576, but the tower makes 4.",
    ),
    "feature layer": (
        changed(vision_feature_layer=-4),
        DOES_NOT_FIT + "the host's vision_feature_layer is -4, but the tower has 2 layers.",
    ),
    "one of several feature layers": (
        changed(vision_feature_layer=[-2, 3]),
        DOES_NOT_FIT + "the host's vision_feature_layer is 3, but the tower has 2 layers.",
    ),
    "no class token to drop": (
        changed("llava with siglip", vision_feature_select_strategy="default"),
        DOES_NOT_FIT.replace("CLIP", "Siglip") + "the host's vision_feature_select_strategy is 'default', which drops "
        "the class token, but the tower has none, and would lose a patch: 'full' keeps all.",
    ),
    "offloaded": (
        with_meta_weights,
        DOES_NOT_FIT + "39 of the host's 39 weights are offloaded or quantised (embeddings.class_embedding, "
        "embeddings.patch_embedding.weight, embeddings.position_embedding.weight, ...): load them in a floating-point "
        "dtype, onto a device.",
    ),
    "quantised": (
        with_packed_weights,
        DOES_NOT_FIT + "1 of the host's 39 weights are offloaded or quantised (encoder.layers.0.mlp.fc1.weight): load "
        "them in a floating-point dtype, onto a device.",
    ),
    "adapters": (
        with_adapters,
        "The vision tower of PeftModel doesn't fit LlavaForConditionalGeneration:\n- it lacks 24 of 39 weights "
        "(encoder.layers.0.mlp.fc1.bias, encoder.layers.0.mlp.fc1.weight, encoder.layers.0.mlp.fc2.bias, ...): if it "
        "has adapters, merge them by merge_and_unload().",
    ),
    "images of the processor": (
        processor_with(crop_size=OTHER_SIZE),
        DOES_NOT_FIT + "the processor makes images of 24 pixels, but the tower takes 16.",
    ),
    "mean": (
        processor_with(image_mean=[0.5, 0.5, 0.5]),
        DOES_NOT_FIT + "the processor normalises pixels by a mean of (0.5, 0.5, 0.5), but the robust model by "
        "(0.4815, 0.4578, 0.4082).",
    ),
    "deviation": (
        processor_with(image_std=[1.0, 1.0, 1.0]),
        DOES_NOT_FIT + "the processor normalises pixels by a deviation of (1, 1, 1), but the robust model by (0.2686, "
        "0.2613, 0.2758).",
    ),
    "scale": (
        processor_with(do_rescale=False),
        DOES_NOT_FIT + "the processor normalises pixels by a mean of (0.001888, 0.001795, 0.001601), but the robust "
        "model by (0.4815, 0.4578, 0.4082).\n- the processor normalises pixels by a deviation of (0.001053, 0.001025, "
        "0.001081), but the robust model by (0.2686, 0.2613, 0.2758).",
    ),
    "patches of the placeholders": (
        processor_with(patch_size=None),
        DOES_NOT_FIT + "the processor's patch_size is None, but the host needs 8.",
    ),
    "strategy of the placeholders": (
        processor_with(vision_feature_select_strategy="full"),
        DOES_NOT_FIT + "the processor's vision_feature_select_strategy is 'full', but the host needs 'default'.",
    ),
    "class tokens of the placeholders": (
        processor_with(num_additional_image_tokens=0),
        DOES_NOT_FIT + "the processor's num_additional_image_tokens is 0, but the host needs 1.",
    ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_what_does_not_fit_is_named_and_the_host_left_as_it_was(what):
    make, message = MISMATCHES[what]
    host, robust, processor = make()
    before, config = copy.deepcopy(host.state_dict()), host.config.to_dict()
    with pytest.raises(InputError) as refused:
        swap_vision_tower(host, robust, processor=processor)
    assert str(refused.value) == message
    assert host.config.to_dict() == config
    if what != "offloaded":
        assert_same(dict(host.state_dict()), before)


# The LLaVA as a function of images


@pytest.fixture
def prompted() -> PromptedVLM:
    host, processor = make_host()
    return PromptedVLM(host.requires_grad_(False), processor, PROMPT)


@pytest.fixture
def answers() -> torch.Tensor:
    """One for each of the four images, of several lengths."""
    ids = torch.randint(256, (4, 5), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate([5, 3, 1, 5]):
        ids[row, length:] = NO_TOKEN
    return ids


def test_pixels_become_what_the_processor_makes_of_them(prompted):
    """So attacks in [0, 1] are attacks on what the model sees: placeholders too are those of the processor."""
    pixels = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    numbers = [image.permute(1, 2, 0).numpy().astype("uint8") for image in pixels]
    expected = prompted.processor(images=numbers, text=[PROMPT] * 2, return_tensors="pt")
    seen = prompted._see(lambda **inputs: inputs, pixels / 255, prompted._prompts(pixels))
    assert seen.keys() == {"input_ids", "attention_mask", "pixel_values"}
    for name in seen:
        torch.testing.assert_close(seen[name], expected[name], rtol=0, atol=1e-5)


def test_losses_are_the_models_own(prompted, images, answers):
    """Of each image alone, with its answer as labels, as transformers calculates it."""
    losses = prompted.losses(images, answers)
    for image, answer, loss in zip(images, answers, losses, strict=True):
        answer = answer[answer != NO_TOKEN][None]
        ids = torch.cat([prompted.prompt_ids, answer], dim=1)
        labels = torch.cat([torch.full_like(prompted.prompt_ids, -100), answer], dim=1)
        pixel_values = (image[None] - prompted.image_mean) / prompted.image_std
        expected = prompted.vlm(input_ids=ids, pixel_values=pixel_values, labels=labels).loss
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert len(set(losses.tolist())) == 4


def test_decoding_is_greedy(prompted, images):
    """Each token is the likeliest after those before it, the image's placeholder left out."""
    answers = prompted.decode(images, 6)
    assert answers.shape == (4, 6)
    pixel_values = (images - prompted.image_mean) / prompted.image_std
    for length in range(6):
        going = (answers[:, length] != NO_TOKEN).nonzero().squeeze(1)
        ids = torch.cat([prompted._prompts(going), answers[going, :length]], dim=1)
        logits = prompted.vlm(input_ids=ids, pixel_values=pixel_values[going]).logits[:, -1]
        logits[:, prompted.vlm.config.image_token_id] = -torch.inf
        torch.testing.assert_close(answers[going, length], logits.argmax(-1), rtol=0, atol=0)


def test_nothing_stands_behind_the_end(prompted, images):
    """An answer ends with the end's token, whichever of the model's own it is."""
    whole = prompted.decode(images, 6)
    end = whole[0, 2].item()
    prompted.vlm.generation_config.eos_token_id = [end, 999]
    for answer, cut in zip(whole.tolist(), prompted.decode(images, 6).tolist(), strict=True):
        length = answer.index(end) + 1 if end in answer else 6
        assert cut == answer[:length] + [NO_TOKEN] * (6 - length)


def test_features_are_what_the_language_model_is_given(prompted, images):
    given = []
    prompted.vlm.model.language_model.register_forward_pre_hook(
        lambda module, args, inputs: given.append(inputs["inputs_embeds"]), with_kwargs=True
    )
    prompted.decode(images, 1)
    placeholders = (prompted.prompt_ids[0] == prompted.vlm.config.image_token_id).nonzero().squeeze(1)
    torch.testing.assert_close(prompted.features(images), given[0][:, placeholders], rtol=0, atol=0)


def test_images_of_another_size_are_resized(prompted, answers):
    large = torch.rand(4, 3, 24, 24)
    small = F.interpolate(large, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(prompted.losses(large, answers), prompted.losses(small, answers))


@pytest.mark.parametrize("sign", [1, -1], ids=["untargeted", "targeted"])
def test_pgd_follows_the_language_loss(prompted, images, answers, sign):
    """As the textbook's loop does, from the same loss; up where an answer is to go, down where one is to come."""
    attack = PGD(eps=8 / 255, steps=3, random_start=False, loss=lambda losses, labels: sign * losses)
    attacked = attack(partial(prompted.losses, answers=answers), images, torch.zeros(4, dtype=torch.long))
    expected = images
    for _ in range(3):
        expected = expected.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(sign * prompted.losses(expected, answers).sum(), expected)
        expected = (expected + 2 / 255 * gradient.sign()).clamp(images - 8 / 255, images + 8 / 255).clamp(0, 1)
    torch.testing.assert_close(attacked, expected.detach(), rtol=0, atol=1e-6)
    moved = sign * (prompted.losses(attacked, answers) - prompted.losses(images, answers))
    assert (moved > 0).all()


def test_it_takes_a_llava_and_a_prompt_with_an_image():
    host, processor = make_host()
    with pytest.raises(InputError, match="is a LlavaNextForConditionalGeneration, but must be a LlavaForCond"):
        PromptedVLM(*make_host("llava-next"), PROMPT)
    for prompt in ("What?", "<image> and <image>"):
        with pytest.raises(InputError, match=re.escape(f"The prompt is {prompt!r}, but must have <image>")):
            PromptedVLM(host, processor, prompt)
