"""Weighted sums of objectives: their loss, attack, needs and log, and the texts that call them."""

import pytest
import torch
from helpers import assert_same, make_clip, make_dataset, make_step, make_trainer, weights

from hpt import OBJECTIVES, HPTConfig, InputError, Objective, ZeroShotClassifier
from hpt.training.sums import make_objective, name_objective


class Distance(Objective):
    """`scale * ||f_T(x_a) - f_T(x)||^2`, an objective of one's own."""

    def __init__(self, *, scale: float = 1.0):
        self.scale = scale

    def attack_loss(self, step, images):
        return self.scale * step.target(images).logits.square().sum(1)

    def __call__(self, step):
        features = (step.target(images).image_features for images in (step.adversarial, step.images))
        return self.scale * torch.sub(*features).square().sum(1)


@pytest.fixture
def own_objective(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "distance", Distance)


def gradients(loss, of):
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss.sum(), of, retain_graph=True)])


SUMS = {
    "0.5*hpt + 1.0*tecoa": {"hpt": 0.5, "tecoa": 1},
    "tecoa+fare": {"tecoa": 1, "fare": 1},
    "1/4 * distance + 3*pmg_aft+ tga_zsr": {"distance": 0.25, "pmg_aft": 3, "tga_zsr": 1},
    "2e+0*clean_distillation + 1e-1*fare": {"clean_distillation": 2, "fare": 0.1},
    "3*tecoa": {"tecoa": 3},
}


@pytest.mark.parametrize("text", SUMS)
def test_a_sum_is_the_weighted_sum_of_its_terms(own_objective, text):
    total, terms = make_objective(text), {OBJECTIVES[name](): weight for name, weight in SUMS[text].items()}
    step = make_step(total)
    losses = [weight * term(step) for term, weight in terms.items()]
    torch.testing.assert_close(total(step), sum(losses), rtol=1e-12, atol=0)
    vision = list(step._target.model.visual_projection.parameters())
    expected = sum(gradients(loss, vision) for loss in losses)
    torch.testing.assert_close(gradients(total(step), vision), expected, rtol=1e-9, atol=1e-12)

    tried = step.adversarial.clone().requires_grad_()
    step.attacked = None  # the attack still runs
    attacks = [weight * term.attack_loss(step, tried) for term, weight in terms.items() if term.needs_attack]
    torch.testing.assert_close(total.attack_loss(step, tried), sum(attacks), rtol=1e-12, atol=0)
    expected = sum(gradients(loss, tried) for loss in attacks)
    torch.testing.assert_close(gradients(total.attack_loss(step, tried), tried), expected, rtol=1e-9, atol=1e-12)


def test_the_attack_may_be_that_of_one_term():
    total = make_objective("0.5*fare + 2*tecoa", attack_loss="tecoa")
    step = make_step(total)
    tried, step.attacked = step.adversarial, None
    assert torch.equal(total.attack_loss(step, tried), OBJECTIVES["tecoa"]().attack_loss(step, tried))
    assert not total.needs_random_start


def test_an_attack_sees_its_images_once_whatever_the_number_of_terms():
    total = make_objective("hpt + tecoa + pmg_aft")
    step = make_step(total)
    seen, outputs = [], step._target.outputs
    step._target.outputs = lambda images, *rest: (seen.append(images), outputs(images, *rest))[1]
    tried, step.attacked = step.adversarial, None
    total.attack_loss(step, tried)
    assert len(seen) == 1


NEEDS = ("proxy", "original", "labels", "classes", "patches", "attack", "random_start")


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("hpt + tecoa", {"proxy", "labels", "classes", "attack"}),
        ("fare + tecoa", {"original", "labels", "classes", "attack"}),
        ("2*fare", {"original", "attack", "random_start"}),
        ("fare + clean_distillation", {"proxy", "original", "classes", "attack", "random_start"}),
        ("tga_zsr + tecoa", {"original", "labels", "classes", "patches", "attack"}),
        ("0.1*clean_distillation", {"proxy", "classes"}),
    ],
)
def test_a_sum_needs_what_any_term_needs(text, needs):
    total = make_objective(text)
    assert {need for need in NEEDS if getattr(total, f"needs_{need}")} == needs


def test_settings_carry_the_name_of_their_term():
    total = make_objective(
        "hpt + 2*pmg_aft", {"temperature": 3.0}, settings="pmg_aft.a=1/2, hpt.kl_direction=target_to_proxy"
    )
    assert (total.terms["hpt"].temperature, total.terms["hpt"].kl_direction) == (3, "target_to_proxy")
    assert (total.terms["pmg_aft"].a, total.terms["pmg_aft"].b) == (0.5, 1)
    assert make_objective("2*hpt", settings="temperature=2").terms["hpt"].temperature == 2
    assert make_objective("hpt", settings="hpt.temperature=2").temperature == 2


def test_a_sum_says_what_it_is():
    total = make_objective("1/2*pmg_aft + tecoa", settings="pmg_aft.a=2")
    assert name_objective(total) == "0.5*pmg_aft + 1*tecoa" and total.papers == ["2401.04350", "2212.07016"]
    assert total.describe("mean") == (
        "pmg_aft: mean over the batch, a 2.0, b 1.0; tecoa: mean over the batch; "
        "the attack maximises the attack loss of 0.5*pmg_aft + 1*tecoa"
    )
    assert "the attack loss of tecoa" in make_objective("pmg_aft + tecoa", attack_loss="tecoa").describe("mean")


def config(**settings):
    return HPTConfig(output_dir="unused", use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "hpt + tecao"}, "Unknown objective 'tecao'; known: hpt, .* Did you mean tecoa"),
        ({"objective": "TeCoA"}, "Unknown objective 'TeCoA'; known: .* Did you mean tecoa"),
        ({"objective": "hpt tecoa"}, "Unknown objective 'hpt tecoa'; known"),
        ({"objective": "0.5*hpt - tecoa"}, r"but a sum is of WEIGHT\*NAME with \+ between, as '0.5\*hpt \+ tecoa'"),
        ({"objective": "hpt*0.5"}, r"objective is 'hpt\*0.5', but a sum is of WEIGHT\*NAME"),
        ({"objective": "2*(hpt + tecoa)"}, "objective is '2.*', but a sum is of"),
        (
            {"objective": "hpt +"},
            r"objective is 'hpt \+', which lacks a term: write a sum as '0.5\*hpt \+ 1.0\*tecoa'",
        ),
        ({"objective": "0.5*"}, "which lacks a term"),
        ({"objective": "*hpt"}, "which lacks a term"),
        ({"objective": ""}, "objective is '', which lacks a term"),
        ({"anchor_objective": "anchor + 2*anchor"}, "anchor_objective is .*, which has anchor twice: give it once"),
        ({"objective": "0*hpt + tecoa"}, "objective weighs hpt by 0, but a weight must be a number above 0"),
        ({"objective": "0*hpt"}, "objective weighs hpt by 0,"),
        ({"objective": "-1*hpt + tecoa"}, "objective weighs hpt by -1, but a weight must be"),
        ({"objective": "nan*hpt"}, "objective weighs hpt by nan, but"),
        ({"objective": "inf*hpt"}, "objective weighs hpt by inf, but"),
        ({"objective": "half*hpt"}, "objective weighs hpt to 'half', which isn't a number"),
        ({"objective": "1/0*hpt"}, "objective weighs hpt"),
        ({"objective": "hpt + tecoa", "objective_args": "temperature=2"}, "sets 'temperature', but of which term of"),
        ({"objective": "hpt + tecoa", "objective_args": "fare.a=2"}, "has no term 'fare'; known: hpt, tecoa"),
        ({"objective": "hpt", "objective_args": "tecoa.a=2"}, "'hpt' has no term 'tecoa'; known: hpt"),
        (
            {"objective": "hpt + tecoa", "objective_args": "hpt.temprature=2"},
            "known of hpt: .*did you mean temperature",
        ),
        ({"objective_args": "temperature"}, "objective_args has 'temperature', which sets nothing: write NAME=VALUE"),
        ({"objective": "pmg_aft", "objective_args": "a=1,a=2"}, "objective_args sets 'a' twice: give it once"),
        ({"objective": "pmg_aft", "objective_args": "a=-1"}, "a is -1, but must be a number of at least 0"),
        ({"objective": "pmg_aft", "objective_args": "b=nan"}, "b is nan, but must be"),
        (
            {"objective": "tga_zsr", "objective_args": "normalised_over=tokens"},
            "Unknown normalised_over 'tokens'; known",
        ),
        ({"objective": "fare", "objective_args": "a=1"}, "known of fare: no settings"),
        ({"objective_args": "temperature=inf"}, "temperature is inf, but must be above 0 and finite"),
        (
            {"attack_loss": "tecoa"},
            "attack_loss is 'tecoa', but chooses a term of a sum, and no objective is one: leave",
        ),
        ({"objective": "hpt + fare", "attack_loss": "tecoa"}, "is no term of a sum; known: hpt, fare"),
        ({"attack_loss": ["tecoa"]}, r"attack_loss is \['tecoa'\], but chooses a term of a sum"),
        ({"objective": None}, "objective is None, but must be a text, such as 'hpt'"),
        ({"objective_args": {"temperature": 2}}, "objective_args is {'temperature': 2}, but must be a text, such as"),
        ({"objective": "agft", "objective_args": "r=0"}, "r is 0, but must be above 0 and finite"),
        ({"objective": "agft + fare", "attack_random_start": False}, r"the attack of 1\*agft \+ 1\*fare has no"),
        (
            {"objective": "tecoa + clean_distillation", "attack_loss": "clean_distillation"},
            "attack_loss is 'clean_distillation', which runs no attack; known: tecoa",
        ),
        ({"objective": "fare", "attack_random_start": False}, "the attack of fare has no gradient at a clean image"),
        ({"objective": "2*fare", "attack_random_start": False}, r"the attack of 2\*fare has no gradient"),
        ({"objective": "fare", "trainable": "all"}, "trainable is 'all', but fare trains the vision tower alone"),
        ({"anchor_objective": "needy"}, "needy has no weight by default: give it in anchor_objective_args"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(monkeypatch, settings, message):
    class Needy(Distance):
        def __init__(self, *, weight: float):
            super().__init__(scale=weight)

    monkeypatch.setitem(OBJECTIVES, "needy", Needy)
    with pytest.raises(InputError, match=message) as raised:
        config(**settings)
    assert "\n" not in str(raised.value)


# Runs

SUM = {"objective": "0.5*hpt + 1.0*tecoa", "anchor_objective": "anchor + 0.1*fare"}


def test_a_run_logs_the_loss_of_each_term(tmp_path, own_objective):
    trainer = make_trainer(tmp_path, objective="0.5*hpt + 2*distance", objective_args="distance.scale=3")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all("loss_hpt" not in entry for entry in entries[:6])  # the anchor stage's is no sum
    for entry in entries[6:]:
        assert entry["loss"] == pytest.approx(0.5 * entry["loss_hpt"] + 2 * entry["loss_distance"], rel=1e-4)
        assert 0 <= entry["train_robust_accuracy"] <= 1


def test_a_sum_resumes_bit_for_bit(tmp_path):
    whole = make_trainer(tmp_path, save_strategy="epoch", **SUM)
    whole.train()
    resumed = make_trainer(tmp_path, **SUM)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights(resumed.model), weights(whole.model))
    for changed, message in (
        ({"objective": "0.6*hpt + 1.0*tecoa"}, r"objective 0.5\*hpt \+ 1.0\*tecoa there, 0.6"),
        ({"attack_loss": "tecoa"}, "attack_loss None there, tecoa here"),
        ({"restart": False}, "restart True there, False here"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(tmp_path, **SUM | changed).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("objective", ["0.5*hpt + 1.0*tecoa", "fare + tga_zsr"])
def test_accumulation_gives_the_weights_of_one_large_batch(tmp_path, objective):
    runs = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = make_trainer(
            tmp_path / str(batch),
            make_clip(0)[0].double(),
            make_dataset(11),
            proxy=ZeroShotClassifier(make_clip(1, patch_size=4)[0].double(), make_clip()[1]),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            objective=objective,
            anchor_epochs=0,
            learning_rate=0.05,
        )
        trainer.train()
        entries = trainer.state.log_history[:-1]
        logged = [[entry[name] for name in sorted(entry) if name != "epoch"] for entry in entries]
        runs.append((weights(trainer.model), torch.tensor(logged)))
    (first, first_log), (second, second_log) = runs
    assert_same(first, second, atol=1e-6)
    assert first_log.shape == (4, 11)
    torch.testing.assert_close(first_log, second_log, rtol=1e-5, atol=1e-6)
