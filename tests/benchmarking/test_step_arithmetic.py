"""FLOPs as they are counted, and the fewest that a step takes."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig

from hpt.benchmarking.arithmetic import Matmul, count_flops, fewest_flops, spared_by_class_token
from hpt.benchmarking.models import make_pair
from hpt.benchmarking.settings import Settings


TINY = Settings(models="quickstart", images=4, classes=3, use_cpu=True)


def attend(length: int = 5, width: int = 8):
    queries = torch.randn(2, 3, length, width, requires_grad=True)
    return F.scaled_dot_product_attention(queries, queries, queries)


@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda: torch.randn(3, 4) @ torch.randn(4, 5), 2 * 3 * 4 * 5),
        (lambda: torch.nn.Linear(4, 5)(torch.randn(3, 4)).sum().backward(), 2 * 2 * 3 * 4 * 5),  # no input's gradient
        (attend, 2 * 3 * 2 * 2 * 5 * 5 * 8),
        (lambda: attend().sum().backward(), 3 * 2 * 3 * 2 * 2 * 5 * 5 * 8),
        (lambda: torch.randn(9).exp(), 0),
    ],
    ids=["product", "layer, there and back", "attention", "attention, there and back", "no product"],
)
def test_products_are_counted(run, flops):
    assert count_flops(run) == flops


def test_matrices_are_multiplied_as_often_as_is_said():
    matmul = Matmul(torch.float32, torch.device("cpu"))
    matmul.left, matmul.right, matmul.side = matmul.left[:64, :64], matmul.right[:64, :64], 64
    assert count_flops(matmul) == matmul.flops == 10 * 2 * 64**3


def test_the_last_block_needs_less_for_the_class_token_alone():
    """Held against a block that is computed so, by its own layers."""
    vision = make_pair(TINY).target.model.vision_model
    block, config = vision.encoder.layers[-1], vision.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    states = torch.randn(1, tokens, config.hidden_size)

    def for_class_token():
        attention, own = block.self_attn, states[:, :1]
        parts = attention.q_proj(own), attention.k_proj(states), attention.v_proj(states)
        heads = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        block.mlp(attention.out_proj(attended))

    with torch.no_grad():
        spared = count_flops(lambda: block(states, attention_mask=None)) - count_flops(for_class_token)
    assert spared == spared_by_class_token(config) > 0


@pytest.mark.parametrize(("patch", "forward", "spared"), [(32, 8.82e9, 0.586e9), (16, 35.1e9, 2.43e9)])
def test_of_a_vit_b_it_is_a_fifteenth(patch, forward, spared):
    assert spared_by_class_token(CLIPVisionConfig(patch_size=patch)) == pytest.approx(spared, rel=0.01)
    assert spared / forward == pytest.approx(1 / 15, rel=0.05)


@pytest.mark.parametrize("attack_steps", [1, 2, 10])
def test_a_step_takes_two_passes_a_step_of_the_attack_three_to_train_and_one_of_the_proxy(attack_steps):
    pair = make_pair(TINY)
    forward = [
        count_flops(lambda c=c: c.model.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32))) for c in pair
    ]
    spared = [spared_by_class_token(c.model.config.vision_config) for c in pair]
    whole, read = fewest_flops(pair, attack_steps).values()
    passes = 2 * attack_steps + 3
    assert whole == passes * forward[0] + forward[1]
    assert read == whole - passes * spared[0] - spared[1]
