import warnings

import pytest
import torch
import transformers
from helpers import CLASSES, FAMILIES, TEXT, VISION, make_clip, make_family
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from hpt import InputError, ZeroShotClassifier, load_proxy
from hpt.models.classifier import frozen_copy
from hpt.models.families import check_patches
from hpt.models.loading import load_dual_encoder, save_finished
from hpt.models.processors import input_size, pixel_statistics
from hpt.models.weights import forward_redirected


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_family_forward(family):
    model, processor = make_family(family)
    side = model.config.vision_config.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    prompts = [f"This is a photo of a {name}" for name in CLASSES]
    padding = "max_length" if family == "Siglip" else "longest"
    tokens = processor.tokenizer(prompts, padding=padding, max_length=77, return_tensors="pt")
    mean, std = (
        torch.tensor(getattr(processor.image_processor, key)).view(3, 1, 1) for key in ("image_mean", "image_std")
    )
    with torch.no_grad():
        expected = model(pixel_values=(images - mean) / std, **tokens).logits_per_image
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=1).min() > 0


def test_pixels_equal_the_processors(classifier):
    """On images of the model's size, what the processor does to uint8 is what the classifier does to [0, 1]."""
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processed = classifier.processor.image_processor(list(pixels), return_tensors="pt")["pixel_values"]
    embeds = classifier.model.get_image_features(pixel_values=processed).pooler_output
    expected = embeds / embeds.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(classifier.image_embeds(pixels / 255), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("CLIP", {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}),
        ("Siglip", {"size": {"height": 24, "width": 24}}),
        ("Blip", {"size": {"height": 24, "width": 24}}),
        # ALIGN's: to [-1, 1] without normalising, and the same with EfficientNet's own defaults
        (
            "EfficientNet",
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}
            | {"do_center_crop": True, "crop_size": {"height": 24, "width": 24}, "size": {"height": 24, "width": 24}},
        ),
        ("EfficientNet", {"size": {"height": 24, "width": 24}}),
        ("CLIP", {"do_rescale": False, "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}),
    ],
)
def test_every_familys_statistics_are_its_processors(kind, settings):
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in pixel_statistics(processor))
    processed = processor(list(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close((pixels / 255 - mean) / std, processed.float(), rtol=1e-4, atol=1e-4)
    assert input_size(processor) == 24


def test_patches_of_varying_number_are_refused(classifier):
    model = transformers.Siglip2Model(
        transformers.Siglip2Config(
            vision_config=VISION | {"num_patches": 4}, text_config=TEXT | {"projection_size": 16}
        )
    )
    with pytest.raises(InputError, match="Siglip2Model takes images cut into patches.*use a SigLIP 2 of fixed size"):
        ZeroShotClassifier(model, classifier.processor, CLASSES)


def square(side):
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("Align", "CLIPSeg")])
def test_a_processor_of_another_size_is_refused(family):
    """Where position embeddings are of one size, as a 224 pixels' processor with a model of 336 pixels."""
    model, processor = make_family(family)
    model.train()
    line = f"makes images of 24 x 24 pixels, but {family}Model takes 16 x 16: give the model's own"
    with pytest.raises(InputError, match=line):
        ZeroShotClassifier(model, CLIPProcessor(square(24), processor.tokenizer), CLASSES)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("family", ["Align", "CLIPSeg"])
def test_families_that_take_any_size_take_the_processors(family):
    model, processor = make_family(family)
    classifier = ZeroShotClassifier(model, CLIPProcessor(square(32), processor.tokenizer), CLASSES)
    assert classifier(torch.rand(2, 3, 40, 40)).shape == (2, 3)


@pytest.mark.parametrize("part", ["image_processor", "tokenizer", None], ids=str)
def test_half_a_processor_is_refused(classifier, part):
    half = part and getattr(classifier.processor, part)
    line = f"The processor is a {type(half).__name__}, which has no image_processor and no tokenizer: give all of the"
    with pytest.raises(InputError, match=line):
        ZeroShotClassifier(classifier.model, half, CLASSES)


def test_the_tokenizer_of_another_model_is_refused(classifier):
    classifier.model.config.text_config.vocab_size = 300
    with pytest.raises(InputError, match="The tokenizer gives tokens that CLIPModel doesn't have, as for 'This is a"):
        classifier.text_embeds()


def test_resizes_only_when_needed(classifier, images):
    assert classifier(images).shape == (4, 3)
    larger = torch.nn.functional.interpolate(images, (24, 24), mode="bicubic", antialias=True)
    smaller_again = torch.nn.functional.interpolate(larger, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(classifier(larger), classifier(smaller_again))
    larger.requires_grad_()
    assert torch.autograd.grad(classifier(larger).sum(), larger)[0].abs().sum() > 0


def test_several_templates_average_on_the_sphere(classifier):
    model, processor = classifier.model, classifier.processor
    templates = ["a {}", "one more {} there"]
    parts = [ZeroShotClassifier(model, processor, CLASSES, template).text_embeds() for template in templates]
    mean = (parts[0] + parts[1]) / 2
    both = ZeroShotClassifier(model, processor, CLASSES, templates).text_embeds()
    torch.testing.assert_close(both, mean / mean.norm(dim=-1, keepdim=True))


def test_given_normalisation_replaces_the_processors(classifier, images):
    other = ZeroShotClassifier(
        classifier.model, classifier.processor, CLASSES, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    with torch.no_grad():
        normalised = (images - classifier.image_mean) / classifier.image_std
        torch.testing.assert_close(other(normalised), classifier(images))
        kept = other.with_classes(CLASSES)
        torch.testing.assert_close(kept(images), other(images))


@pytest.fixture
def encodings(classifier, monkeypatch):
    """Shapes of the token batches that the text tower is given."""
    shapes = []
    encode = classifier.model.get_text_features
    monkeypatch.setattr(
        classifier.model,
        "get_text_features",
        lambda **tokens: (shapes.append(tokens["input_ids"].shape), encode(**tokens))[1],
    )
    return shapes


def test_prompts_are_encoded_once_and_padded_to_the_longest(classifier, images, encodings):
    for _ in range(3):
        classifier(images)
    longest = max(len(classifier.processor.tokenizer(f"This is a photo of a {name}")["input_ids"]) for name in CLASSES)
    assert encodings == [(3, longest)] and longest < 77


def test_cache_notices_changed_text_weights_only(classifier, images, encodings):
    before = classifier(images)
    with torch.no_grad():
        classifier.model.visual_projection.weight.mul_(1.5)
        classifier(images)
        assert len(encodings) == 1
        classifier.model.text_projection.weight.add_(torch.randn(8, 16))
    assert not torch.allclose(classifier(images), before)
    assert len(encodings) == 2


def test_text_gradients(classifier, images):
    classifier(images).sum().backward()
    assert classifier.model.text_projection.weight.grad is None
    embeds = classifier.encode_prompts()
    classifier(images, embeds).sum().backward()
    assert classifier.model.text_projection.weight.grad.abs().sum() > 0
    assert not classifier.text_embeds().requires_grad
    torch.testing.assert_close(classifier.text_embeds(), embeds)


def test_cached_prompts_do_not_depend_on_autocast(classifier, images):
    with torch.autocast("cpu", torch.bfloat16):
        classifier(images)
    torch.testing.assert_close(classifier.text_embeds(), classifier.encode_prompts(), rtol=0, atol=0)


@pytest.mark.parametrize("done", ["classify", "make a view", "make a copy", "load"])
def test_what_was_done_under_inference_mode_can_be_differentiated_through(classifier, images, tmp_path, done):
    save_finished(classifier.model, classifier.processor, tmp_path)
    (expected,) = torch.autograd.grad(classifier(images.requires_grad_()).sum(), images)
    classifier.forget_text_embeds()
    with torch.inference_mode():
        view = {
            "classify": lambda: classifier,
            "make a view": lambda: classifier.with_classes(CLASSES),
            "make a copy": lambda: frozen_copy(classifier),
            "load": lambda: load_proxy(str(tmp_path)).with_classes(CLASSES),
        }[done]()
        view(images.detach())
    assert torch.equal(torch.autograd.grad(view(images).sum(), images)[0], expected)


def test_a_model_made_under_inference_mode_is_refused():
    with torch.inference_mode():
        model, processor = make_clip(0)
    with pytest.raises(
        InputError, match="made under torch.inference_mode, which rules out gradients: load it outside"
    ):
        ZeroShotClassifier(model, processor)


def test_bfloat16_model_gives_float32_logits(images):
    model, processor = make_clip(0)
    assert ZeroShotClassifier(model.bfloat16(), processor, CLASSES)(images).dtype == torch.float32


def test_float64_stays_float64(images):
    model, processor = make_clip(0)
    assert ZeroShotClassifier(model.double(), processor, CLASSES)(images.double()).dtype == torch.float64


def test_redirection_calls_instead_and_restores(classifier):
    model = classifier.model
    with forward_redirected(model, lambda x: x + 1):
        assert model(1) == 2
    assert "forward" not in vars(model)
    model.forward = patched = lambda x: x
    with pytest.raises(ZeroDivisionError), forward_redirected(model, lambda x: x / 0):
        model(1)
    assert model.forward is patched


def test_loads_what_was_saved(tmp_path, images):
    model, processor = make_clip(3)
    save_finished(model, processor, tmp_path / "clip")
    assert not (tmp_path / "clip" / "incomplete").exists()
    assert isinstance(CLIPModel.from_pretrained(tmp_path / "clip"), CLIPModel)
    assert len(CLIPProcessor.from_pretrained(tmp_path / "clip").tokenizer) == 514
    proxy = load_proxy(str(tmp_path / "clip"))
    assert not any(weight.requires_grad for weight in proxy.parameters()) and not proxy.model.training
    expected = ZeroShotClassifier(model, processor, CLASSES)(images)
    torch.testing.assert_close(proxy.with_classes(CLASSES)(images), expected)


def test_bfloat16_checkpoint_loads_as_float32(tmp_path):
    model, processor = make_clip(0)
    save_finished(model.bfloat16(), processor, tmp_path)
    assert load_dual_encoder(str(tmp_path))[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["ViTModel", "CLIPVisionModel"])
def test_refuses_what_is_no_dual_encoder(tmp_path, kind):
    config = getattr(transformers, kind.replace("Model", "Config"))(**VISION)
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{kind} isn't a dual encoder"):
        load_proxy(str(tmp_path))


def test_refuses_a_damaged_folder(tmp_path):
    with pytest.raises(InputError, match="Can't load the model"):
        load_proxy(str(tmp_path))  # empty
    model, processor = make_clip(0)
    save_finished(model, processor, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="Can't load the model"):
        load_proxy(str(tmp_path))


def test_refuses_bad_prompts(classifier):
    with pytest.raises(InputError, match="no class names"):
        classifier.with_classes([])
    with pytest.raises(InputError, match="the text 'cat', but must be a list"):
        classifier.with_classes("cat")
    with pytest.raises(InputError, match="the dict {'c1': 'cat'}, but must be a list"):
        classifier.with_classes({"c1": "cat"})
    with pytest.raises(InputError, match="class name of label 1 is ''"):
        classifier.with_classes(["cat", ""])
    with pytest.raises(InputError, match="no classes yet"):
        ZeroShotClassifier(classifier.model, classifier.processor)(torch.rand(1, 3, 16, 16))


def test_warns_of_duplicates_and_of_prompts_that_are_cut(classifier, images):
    with pytest.warns(UserWarning, match=r"more than once.*\['crane'\]"):
        classifier.with_classes(["crane", "dog", "crane"])
    with pytest.warns(UserWarning, match="1 of 2 class prompts are longer than the text tower's 77 tokens"):
        classifier.with_classes(["x" * 90, "dog"])(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.with_classes(CLASSES)(images)


def test_input_size():
    assert input_size(CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16})) == 16
    assert input_size(CLIPImageProcessorPil(size={"height": 20, "width": 20}, do_center_crop=False)) == 20
    assert input_size(CLIPImageProcessorPil(size={"shortest_edge": 18}, do_center_crop=False)) == 18


def test_missing_model_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="Can't load the model 'no/such-model': .*"):
        load_proxy("no/such-model")


# Patches

WITH_PATCHES = {"CLIP", "MetaClip2", "AltCLIP", "ChineseCLIP", "Blip", "CLIPSeg", "OwlViT"}


@pytest.mark.parametrize("family", sorted(WITH_PATCHES))
def test_patches_go_the_way_of_the_class_token(family):
    model, processor = make_family(family)
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    check_patches(model)
    with torch.no_grad():
        outputs = classifier.outputs(images, patches=True)
        tokens = model.get_image_features(pixel_values=(images - classifier.image_mean) / classifier.image_std)
        embeds = model.visual_projection(model.vision_model.post_layernorm(tokens.last_hidden_state))
    torch.testing.assert_close(embeds[:, 0], outputs.image_features)  # so that this is the class token's way
    assert outputs.patch_embeds.shape == (2, 4, 8)
    torch.testing.assert_close(outputs.patch_embeds, embeds[:, 1:] / embeds[:, 1:].norm(dim=-1, keepdim=True))
    without = classifier.outputs(images)
    assert without.patch_embeds is None
    torch.testing.assert_close(without.logits, outputs.logits)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITH_PATCHES))
def test_patches_that_are_not_projected_are_refused(family):
    with pytest.raises(InputError, match=f"needs patch tokens, which {family}Model doesn't project"):
        check_patches(make_family(family)[0])


def test_a_classifier_without_classes_embeds_images(classifier, images):
    outputs = ZeroShotClassifier(classifier.model, classifier.processor).outputs(images)
    assert outputs.logits is None
    assert torch.equal(outputs.image_features, classifier.outputs(images).image_features)
