import pytest
import torch
from helpers import make_clip, make_trainer

from hpt.models.attention import choose_attention
from hpt.models.lora import add_lora


@pytest.mark.parametrize(
    "dtype, mixed_precision, expected",
    [
        (torch.float32, "no", "sdpa"),
        (torch.float32, "bf16", "eager"),
        (torch.float32, "fp16", "eager"),
        (torch.bfloat16, "no", "eager"),
    ],
)
def test_products_of_matrices_take_the_place_of_the_fused_kernel_in_16_bits(dtype, mixed_precision, expected):
    model, _ = make_clip(0)
    choose_attention(model.to(dtype), mixed_precision)
    configs = (model.config, model.config.vision_config, model.config.text_config)
    assert {config._attn_implementation for config in configs} == {expected}


def test_elsewhere_the_fused_kernel_stays():
    model, _ = make_clip(0)
    choose_attention(model.to("meta"), "bf16")
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_an_adapters_model_attends_so_too():
    model, _ = make_clip(0)
    choose_attention(add_lora(model, rank=2), "bf16")
    assert model.config.vision_config._attn_implementation == "eager"


@pytest.mark.parametrize("settings, expected", [({}, "sdpa"), ({"bf16": True}, "eager")])
def test_a_run_chooses_for_its_target_and_leaves_a_proxy_in_float32(tmp_path, settings, expected):
    trainer = make_trainer(tmp_path, make_clip(0)[0], **settings)
    assert trainer.classifier.model.config.vision_config._attn_implementation == expected
    assert trainer.proxy.model.config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_features_and_gradients_are_the_same_but_rounding(dtype, tolerance):
    features, gradients = [], []
    for mixed_precision in ("no", "bf16"):
        model, _ = make_clip(0)
        choose_attention(model, mixed_precision)
        side = model.config.vision_config.image_size
        pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features.append(model.get_image_features(pixel_values=pixels).pooler_output.float())
        gradients.append(torch.autograd.grad(features[-1].square().sum(), pixels)[0])
    for fused, products in (features, gradients):
        assert (fused - products).abs().max() <= tolerance * fused.abs().max()
