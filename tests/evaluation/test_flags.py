import math
import random
from dataclasses import replace

import pytest
import torch
from helpers import SOUND, make_benchmark, make_clip, make_row, of_model
from torch import nn

from hpt import ATTACKS, RobustnessEvaluator
from hpt.evaluation.flags import find_flags
from hpt.evaluation.report import format_flags
from hpt.evaluation.rows import LARGE_EPS


def test_a_sound_evaluation_raises_no_flag():
    assert find_flags(SOUND) == [] and format_flags([]) == "- none"


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "apgd"])
def test_a_randomised_classifier_is_flagged_unless_its_attack_or_a_part_of_it_averages(attack):
    def names(**settings):
        row = make_row(attack, 0.5, evaluations=2, parameters=ATTACKS[attack](eps=0.1, **settings).parameters)
        return [flag.name for flag in find_flags([row])]

    assert names() == ["stochastic-model"] and names(eot=20) == []


@pytest.mark.parametrize(
    ("changed", "name", "message"),
    [
        (make_row("clean", 0.9, n=999, max_samples=999), "few-samples", "999 samples were taken: +-3.0 points"),
        (
            make_row("clean", 0.33, most_predicted=1.0, chance=0.33),
            "collapsed",
            "1000 of 1000 images get the same class",
        ),
        (make_row("clean", 0.9, most_predicted=0.9991, chance=0.9), "collapsed", "999 of 1000 images"),
        (make_row("clean", 0.36, most_predicted=0.5, chance=0.33), "at-chance", "isn't above the 33.0 % of naming"),
        (make_row("clean", 0.02, most_predicted=0.5, chance=0.33), "at-chance", "2.0 % [-1.0, 5.0] without an attack"),
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
    others = [of_model(row, "other") for row in SOUND]
    assert find_flags(others + rows) == [flag]


@pytest.mark.parametrize(
    "clean",
    [
        make_row("clean", 0.9, n=360),  # a whole split
        make_row("clean", 0.9, n=360, max_samples=1000),
        make_row("clean", 0.37, most_predicted=0.5, chance=0.33),
        make_row("clean", 0.94, most_predicted=0.98, chance=0.9),
        make_row("clean", 0.3),  # of an earlier version, which doesn't say it
    ],
)
def test_no_model_is_doubted_for_its_benchmark(clean):
    assert find_flags([clean]) == []


def test_flags_of_many_rows_are_those_of_each_model_and_samples_in_order():
    draw = random.Random(0)
    rows = [
        of_model(row, draw.choice("xyz"), benchmark=draw.choice("ab"), accuracy=draw.random(), n=draw.choice([9, 10]))
        for row in draw.choices(SOUND, k=400)
    ]
    rows = [
        replace(row, eps=draw.choice([0.1, 0.2]), zero_gradient=draw.randrange(2)) if row.eps else row for row in rows
    ]
    rows = [row for row in rows if not row.named_attack.scored_on_proxy]
    groups = dict.fromkeys((row.model, row.sample_set) for row in rows)
    apart = [find_flags([row for row in rows if (row.model, row.sample_set) == group]) for group in groups]
    assert find_flags(rows) == sum(apart, []) and len(find_flags(rows)) > 20


def test_on_images_of_one_class_no_model_has_collapsed():
    (flag,) = find_flags([make_row("clean", 1.0, most_predicted=1.0, chance=1.0)])
    assert flag.name == "at-chance" and "isn't above the 100.0 %" in flag.message


@pytest.mark.parametrize(
    "row",
    [
        replace(make_row("transfer", 0.85), attacked="p"),
        replace(make_row("pgd", 0.85), attacked="bare"),
        replace(make_row("pgd:steps=50", 0.85, steps=50), attacked="bare"),
    ],
    ids=["transfer", "another function", "another attack"],
)
def test_what_was_attacked_without_the_defence_is_flagged_once_for_all_radii(row):
    rows = [*SOUND, row, replace(row, eps=0.2)]
    (flag,) = find_flags(rows)
    assert (flag.name, flag.model, flag.benchmark, flag.radius) == ("attack-did-not-see-defence", "m", "b", None)
    assert flag.message.startswith(f"{row.whole_label} at 25.5/255, {row.whole_label} at 51/255: the attack has seen")
    assert not flag.masking and row.attacked in flag.message


def test_no_flag_of_a_model_comes_from_attacks_on_another_function():
    naive = [replace(row, attacked="bare", zero_gradient=900) for row in SOUND if row.attacked]
    assert {flag.name for flag in find_flags([*SOUND, *naive])} == {"attack-did-not-see-defence"}


def test_a_collapsed_model_is_flagged(benchmark):
    model, processor = make_clip(0)
    model.visual_projection.register_forward_hook(lambda module, inputs, output: 0.05 * output + 1)
    rows = RobustnessEvaluator(attacks=["pgd:steps=2", "apgd-ce:steps=5"], eps=8 / 255)(
        model.eval(), processor, benchmark
    )
    assert {row.accuracy for row in rows} == {1 / 3}  # it withstands all
    assert (rows[0].most_predicted, rows[0].chance) == (1, 1 / 3)
    flags = find_flags(rows)
    assert "collapsed" in {flag.name for flag in flags}
    assert format_flags(flags[::-1]).startswith(f"- collapsed: {rows[0].model} on random. 60 of 60 images")


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
