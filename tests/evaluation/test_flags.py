import math
from dataclasses import replace

import pytest
import torch
from helpers import SOUND, make_benchmark, make_clip, make_row
from torch import nn

from hpt import RobustnessEvaluator
from hpt.evaluation.flags import find_flags
from hpt.evaluation.report import format_flags
from hpt.evaluation.rows import LARGE_EPS


def test_a_sound_evaluation_raises_no_flag():
    assert find_flags(SOUND) == [] and format_flags([]) == "- none"


@pytest.mark.parametrize(
    ("changed", "name", "message"),
    [
        (make_row("clean", 0.9, n=999), "few-samples", "999 samples: +-3.0 points"),
        (make_row("clean", 0.9, stochastic=True), "stochastic-model", "other logits the second time"),
        (make_row(LARGE_EPS, 0.06, eps=0.5), "large-eps-survivors", "6.0 % survive APGD at 127.5/255"),
        (
            make_row("apgd", 0.505, zero_gradient=11),
            "zero-gradients",
            "11 of 1000 samples had a gradient of exactly zero",
        ),
        (make_row("pgd", 0.521), "pgd-too-weak", "PGD-10 leaves 52.1 %, the worst case 50.0 %"),
        (make_row("square", 0.48), "square-beats-gradients", "leaves 48.0 %, autoattack 50.0 %"),
        (
            make_row("autoattack", 0.5, broken_by={"apgd-ce": 300, "square": 11}),
            "square-beats-gradients",
            "breaks 11 of",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_each_reason_for_doubt_raises_its_flag(changed, name, message):
    rows = [changed if row.attack == changed.attack else row for row in SOUND]
    (flag,) = find_flags(rows)
    assert flag.name == name and message in flag.message
    assert format_flags([flag]).startswith(f"- {name}: m on b")
    others = [replace(row, model="other") for row in SOUND]
    assert find_flags(others + rows) == [flag]


class Quantised(nn.Module):
    """Pixels in few steps, through which no gradient passes."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, pixel_values, **kwargs):
        return self.embeddings((pixel_values * 4).round() / 4, **kwargs)


@pytest.fixture
def benchmark():
    return make_benchmark(60)


def flags_of(model, processor, benchmark, **settings):
    settings = {"attacks": ["pgd", "square:queries=300"], "eps": 16 / 255} | settings
    return find_flags(RobustnessEvaluator(**settings)(model.eval(), processor, benchmark, name="m"))


def names(flags):
    return {flag.name for flag in flags if flag.masking}


def test_an_undefended_model_is_not_flagged_for_masking(benchmark):
    assert names(flags_of(*make_clip(0), benchmark)) == set()


def test_saturated_logits_are_flagged(benchmark):
    model, processor = make_clip(0)
    model.logit_scale.data += math.log(1e4)
    assert "zero-gradients" in names(flags_of(model, processor, benchmark))


def test_a_quantised_input_is_flagged(benchmark):
    model, processor = make_clip(0)
    model.vision_model.embeddings = Quantised(model.vision_model.embeddings)
    assert "zero-gradients" in names(flags_of(model, processor, benchmark))


def test_a_stochastic_model_is_flagged(benchmark):
    model, processor = make_clip(0)

    def noise(module, inputs, output):
        return output + torch.randn_like(output)

    model.visual_projection.register_forward_hook(noise)
    assert "stochastic-model" in names(flags_of(model, processor, benchmark, attacks=["pgd:steps=1"]))
