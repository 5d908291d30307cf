import copy
import pickle

import pytest
import torch
from helpers import CLASSES, make_family
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.activations import QuickGELUActivation

from hpt import ZeroShotClassifier
from hpt.models.families import FAMILIES
from hpt.models.lean import NO_CHANGES, FusedQuickGELU, as_product, find_changes, view_with


CLIP_LIKE = {"clip": "CLIP", "metaclip_2": "MetaClip2", "altclip": "AltCLIP"}
CLIP_LIKE |= {"chinese_clip": "ChineseCLIP", "clipseg": "CLIPSeg"}


def quick(name, seed=0):
    """A tiny model of a family in float64, with QuickGELU as OpenAI's have it, and its processor."""
    model, processor = make_family(name)
    for module in model.modules():
        for child, activation in list(module.named_children()):
            if type(activation).__name__ == "GELUActivation":
                setattr(module, child, QuickGELUActivation())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.double(), processor


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def embed(classifier, images, patches=False):
    """What the classifier sees, and the gradients of it for images and weights."""
    images = images.clone().requires_grad_()
    seen = classifier._see(images, patches)
    features = seen.pooler_output.sin().sum() + (seen.last_hidden_state.cos().sum() if patches else 0)
    weights = [weight for weight in classifier.model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(features, [images, *weights], allow_unused=True)
    return [
        seen.pooler_output,
        *([seen.last_hidden_state] if patches else []),
        *filter(lambda g: g is not None, gradients),
    ]


def unchanged(classifier):
    """The same classifier, which sees by the model's own forward."""
    plain = copy.copy(classifier)
    plain.changes = NO_CHANGES
    return plain


def test_every_family_with_clip_layers_is_tried():
    assert set(CLIP_LIKE) == {name for name, family in FAMILIES.items() if family.has_clip_layers}


@pytest.mark.parametrize("patches", [False, True], ids=["pooled", "patches"])
@pytest.mark.parametrize("name", CLIP_LIKE.values())
def test_a_view_sees_what_the_model_sees(name, patches, images):
    classifier = ZeroShotClassifier(*quick(name), CLASSES)
    lean, whole = embed(classifier, images, patches), embed(unchanged(classifier), images, patches)
    assert len(lean) == len(whole)
    for ours, models in zip(lean, whole, strict=True):
        torch.testing.assert_close(ours, models, rtol=1e-9, atol=1e-11)


def tokens_of(classifier, images, patches=False):
    """Of each block's MLP, how many tokens it is shown."""
    layers, shown = classifier.model.vision_model.encoder.layers, []
    handles = [
        layer.mlp.fc1.register_forward_hook(lambda _, args, out: shown.append(out.shape[1])) for layer in layers
    ]
    classifier._see(images, patches)
    for handle in handles:
        handle.remove()
    return shown


def test_the_last_block_computes_the_class_token_alone(images):
    classifier = ZeroShotClassifier(*quick("CLIP"), CLASSES)
    *before, last = tokens_of(classifier, images)
    assert last == 1 and set(before) == set(tokens_of(classifier, images, patches=True)) and min(before) > 1


def test_the_model_stays_as_it_is(images):
    model, processor = quick("CLIP")
    model.config.output_hidden_states = model.vision_model.config.output_hidden_states = True
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    for _ in range(3):
        classifier._see(images)
    assert list(model.modules()) == modules and not any(module._forward_hooks for module in modules)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert (
        len(model.get_image_features(pixel_values=images).hidden_states) == len(model.vision_model.encoder.layers) + 1
    )


def test_a_view_has_the_modes_and_adapters_that_the_model_has_now(images):
    model, processor = quick("CLIP")
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    model.train()
    assert not torch.equal(*(classifier._see(images).pooler_output for _ in range(2)))
    model.eval()
    assert torch.equal(*(classifier._see(images).pooler_output for _ in range(2)))
    before = classifier._see(images).pooler_output
    adapted = get_peft_model(model, LoraConfig(target_modules=["out_proj", "fc2"], init_lora_weights=False))
    assert not torch.allclose(classifier._see(images).pooler_output, before)
    classifier = ZeroShotClassifier(adapted, processor, CLASSES)
    for ours, models in zip(embed(classifier, images), embed(unchanged(classifier), images), strict=True):
        torch.testing.assert_close(ours, models, rtol=1e-9, atol=1e-11)


WRAPPED = {"target_modules": ["text_projection"]}  # so that modules of the vision tower can be trained whole


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["patch_embedding", "fc2"], "init_lora_weights": False},
        *(WRAPPED | {"modules_to_save": [name]} for name in ("patch_embedding", "embeddings", "mlp", "vision_model")),
        {"target_modules": ["fc1"], "modules_to_save": ["self_attn"]},
    ],
    ids=str,
)
def test_what_peft_has_wrapped_is_computed_as_it_says(settings, images):
    model, processor = quick("CLIP")
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    before = classifier._see(images).pooler_output
    adapted = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for weight in adapted.parameters():
            weight += 0.1 * torch.randn(weight.shape) * weight.requires_grad
    assert not torch.allclose(classifier._see(images).pooler_output, before)
    for seen_by in (classifier, ZeroShotClassifier(adapted, processor, CLASSES)):
        for ours, models in zip(embed(seen_by, images), embed(unchanged(seen_by), images), strict=True):
            torch.testing.assert_close(ours, models, rtol=1e-9, atol=1e-11)


def test_a_classifier_can_be_pickled(images):
    classifier = ZeroShotClassifier(*quick("CLIP"), CLASSES)
    assert torch.equal(pickle.loads(pickle.dumps(classifier))(images), classifier(images))


def test_gradient_checkpointing_recomputes_the_same(images):
    model, processor = quick("CLIP")
    classifier = ZeroShotClassifier(model, processor, CLASSES)
    whole = embed(classifier, images)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    for ours, models in zip(embed(classifier, images), whole, strict=True):
        torch.testing.assert_close(ours, models, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 23)])
@pytest.mark.parametrize("bias", [False, True])
def test_patches_that_do_not_overlap_are_multiplied(height, width, bias):
    convolution = nn.Conv2d(3, 5, kernel_size=8, stride=8, bias=bias, dtype=torch.float64)
    images = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    ours, expected = as_product(convolution)(images), convolution(images)
    torch.testing.assert_close(ours, expected)
    weights = [images, *convolution.parameters()]
    for own, exact in zip(*(torch.autograd.grad(y.sin().sum(), weights) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(own, exact)


@pytest.mark.parametrize("settings", [{"stride": 4}, {"stride": 8, "padding": 4}], ids=str)
def test_patches_that_overlap_are_left_to_the_convolution(settings):
    convolution = nn.Conv2d(3, 5, kernel_size=8, **settings)
    assert as_product(convolution) is convolution


def test_other_families_are_left_alone():
    model, _ = make_family("Siglip")
    assert view_with(model, find_changes(model).pooled) is model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_transformers(dtype):
    values = torch.linspace(-20, 20, 4001).to(dtype).requires_grad_()
    expected, ours = QuickGELUActivation()(values), FusedQuickGELU()(values)
    torch.testing.assert_close(ours, expected)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    slopes = [torch.autograd.grad(output.sum(), values)[0] for output in (ours, expected)]
    torch.testing.assert_close(*slopes, rtol=tolerance, atol=tolerance)


def test_quick_gelu_has_gradients_of_gradients():
    values = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(FusedQuickGELU(), values)
    assert torch.autograd.gradgradcheck(FusedQuickGELU(), values)


def test_quick_gelu_keeps_its_input_alone():
    values = torch.randn(5, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        FusedQuickGELU()(values)
    assert len(kept) == 1 and kept[0] is values
