"""How runs take objectives: by name, with settings, from others, around GPD, onto cards; and what is refused."""

import re

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, make_clip, make_family, make_step, make_trainer, weights

from hpt import OBJECTIVES, PGD, HPTConfig, InputError, Objective, ZeroShotClassifier
from hpt.attacks.losses import cross_entropy
from hpt.training.objectives import kl_divergence
from hpt.training.step import TrainingStep


class ToOriginal(Objective):
    """`weight * KL(O(x) || T(x_a))`, of which the attack maximises the negative cross-entropy."""

    needs_original = needs_labels = True

    def __init__(self, *, weight: "float | None" = 1.0, clean: bool = True):
        self.weight, self.clean = weight, clean

    def attack_loss(self, step, images):
        return -super().attack_loss(step, images)

    def __call__(self, step):
        taught_by = step.original(step.images if self.clean else step.adversarial)
        return self.weight * kl_divergence(step.target(step.adversarial).logits, taught_by.logits)


@pytest.fixture
def own_objective(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "to_original", ToOriginal)


def test_an_objective_of_ones_own_trains_without_a_proxy(tmp_path, own_objective):
    settings = {"objective": "to_original", "objective_args": "weight = 1/2, clean=false", "anchor_epochs": 0}
    vanilla = weights(make_clip(0)[0])
    trainer = make_trainer(tmp_path, proxy=None, save_strategy="epoch", **settings)
    trainer.train()
    assert (trainer.objectives["transfer"].weight, trainer.objectives["transfer"].clean) == (0.5, False)
    assert_same(weights(trainer.original.model), vanilla)  # while the target moved away
    assert any(not torch.equal(weight, vanilla[name]) for name, weight in weights(trainer.model).items())
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert "train_robust_accuracy" in entry and "proxy_robust_accuracy" not in entry
    resumed = make_trainer(tmp_path, proxy=None, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights(resumed.model), weights(trainer.model))
    with pytest.raises(InputError, match="original [0-9a-f]+ there, [0-9a-f]+ here"):
        make_trainer(tmp_path, make_clip(5)[0], proxy=None, **settings).train(resume_from_checkpoint=True)


def test_the_attack_maximises_what_the_objective_says(tmp_path, own_objective):
    trainer = make_trainer(tmp_path, objective="to_original", attack_random_start=False)
    objective = trainer.objectives["transfer"]
    step = trainer._make_step(next(iter(trainer.get_train_dataloader())), objective)
    adversarial = trainer._attack(objective, step).images
    pgd = PGD(eps=8 / 255, step_size=4 / 255, steps=2, random_start=False, loss=lambda z, y: -F.cross_entropy(z, y))
    expected = pgd(trainer.classifier, step.images, step.labels)
    assert torch.equal(adversarial, expected)


@pytest.mark.parametrize(
    "stages",
    [
        ("hpt", "anchor"),
        ("tecoa", "hpt"),
        ("anchor", "tecoa"),
        ("tecoa", "tecoa"),
        ("tga_zsr", "clean_distillation"),
        ("fare", "pmg_aft"),
        ("clean_distillation", "fare"),
    ],
)
def test_gpd_goes_around_any_pair(tmp_path, stages):
    objective, anchor = stages
    trainer = make_trainer(tmp_path, objective=objective, anchor_objective=anchor, learning_rate=0.05)
    trainer.train()
    assert {stage: type(instance) for stage, instance in trainer.objectives.items()} == {
        "anchor": OBJECTIVES[anchor],
        "transfer": OBJECTIVES[objective],
    }
    assert trainer.state.global_step == 12 and trainer.gpd.ema


@pytest.mark.parametrize(
    ("settings", "method", "papers"),
    [
        ({"objective": "tecoa", "anchor_epochs": 0}, "the objective `tecoa` without GPD", ["2212.07016"]),
        ({"objective": "tecoa"}, "the objective `tecoa` with GPD", ["2601.12865", "2212.07016"]),
        ({"anchor_objective": "tecoa"}, "HPT with GPD, anchored by `tecoa`", ["2212.07016", "2601.12865"]),
        ({"objective": "to_original", "anchor_epochs": 0}, "the objective `to_original` without GPD", []),
    ],
    ids=str,
)
def test_a_card_says_and_cites_what_trained_the_model(tmp_path, own_objective, settings, method, papers):
    trainer = make_trainer(tmp_path, max_steps=1, **settings)
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    links = ", ".join(f"[arXiv {number}](https://arxiv.org/abs/{number})" for number in papers)
    assert f"fine-tuned by {method}{f' ({links})' if papers else ''} to withstand" in card
    assert ("learning from a frozen model" in card) == trainer.args.needs_proxy == ("| proxy" in card)
    assert ("fu2026proxy" in card) == ("2601.12865" in papers)
    assert ("objective of the anchor stage" in card) == ("anchor_objective" in settings)
    assert f"- {trainer.args.objective}\n- robust\n" in card and "HPT-GPD" not in card


@pytest.mark.parametrize(
    ("method", "computes", "message"),
    [
        ("__call__", lambda step, losses: losses.mean(), r"Mine gives losses of shape \(\) for 4 images"),
        ("__call__", lambda step, losses: 3.0, "Mine gives a float, but must give a tensor of a loss for each image"),
        ("__call__", lambda step, losses: losses.detach(), "Mine gives losses without a gradient: it mustn't detach"),
        ("__call__", lambda step, losses: step.proxy(step.images).logits, "asks for the proxy, but has needs_proxy"),
        ("__call__", lambda step, losses: step.original(step.images), "the vanilla target, but has needs_original"),
        ("attack_loss", lambda step, losses: losses.mean(), r"Mine.attack_loss gives losses of shape \(\) for 4"),
        ("attack_loss", lambda step, losses: losses.detach(), "Mine.attack_loss gives losses without a gradient"),
    ],
)
def test_what_an_objective_of_ones_own_gets_wrong_is_said(tmp_path, monkeypatch, method, computes, message):
    class Mine(OBJECTIVES["tecoa"]):
        pass

    def mistaken(self, step, images=None):
        images = step.adversarial if images is None else images
        return computes(step, cross_entropy(step.target(images).logits, step.labels))

    setattr(Mine, method, mistaken)
    monkeypatch.setitem(OBJECTIVES, "mine", Mine)
    trainer = make_trainer(tmp_path, proxy=None, objective="mine", anchor_epochs=0)
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_a_setting_that_an_objective_does_not_keep_is_refused(monkeypatch):
    class Forgetful(OBJECTIVES["tecoa"]):
        def __init__(self, *, weight: float = 1.0):
            self.scale = weight

    monkeypatch.setitem(OBJECTIVES, "mine", Forgetful)
    with pytest.raises(InputError, match="Forgetful takes weight, but doesn't keep it: set self.weight to it"):
        make_objectives(objective="mine", anchor_epochs=0)


def test_an_objective_that_learns_from_a_proxy_needs_one(tmp_path):
    with pytest.raises(InputError, match="but one is needed by the anchor stage's objective, anchor .* leaves that"):
        make_trainer(tmp_path, proxy=None, objective="tecoa")
    with pytest.raises(InputError, match="There is no proxy, but one is needed by the objective hpt: load it"):
        make_trainer(tmp_path, proxy=None, anchor_epochs=0)


def make_objectives(**settings):
    return HPTConfig(output_dir="unused", use_cpu=True, **settings).make_objectives()


def test_fields_are_the_defaults_of_hpt_and_anchor_and_arguments_win():
    objectives = make_objectives(temperature=2, objective_args="kl_direction=target_to_proxy")
    assert (objectives["anchor"].temperature, objectives["anchor"].kl_direction) == (2, "proxy_to_target")
    assert (objectives["transfer"].temperature, objectives["transfer"].kl_direction) == (2, "target_to_proxy")
    assert make_objectives(objective_args="temperature=2", anchor_epochs=0)["transfer"].temperature == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "trades"}, "Unknown objective 'trades'; known: hpt, anchor"),
        ({"anchor_objective": "trades"}, "Unknown anchor_objective 'trades'; known: hpt, anchor"),
        ({"kl_direction": "forward"}, "Unknown kl_direction 'forward'; known: proxy_to_target, target_to_proxy"),
        ({"kl_reduction": "batchmean"}, "Unknown kl_reduction 'batchmean'; known: mean, sum"),
        ({"temperature": 0}, "temperature is 0"),
        ({"objective_args": "temperature=0"}, "temperature is 0"),
        ({"objective_args": "weight=1"}, "objective_args sets 'weight'; known of hpt: kl_direction, temperature"),
        ({"objective": "tecoa", "objective_args": "a=1"}, "objective_args sets 'a'; known of tecoa: no settings"),
        (
            {"anchor_objective_args": "temperature=warm"},
            "anchor_objective_args sets temperature to 'warm', which isn't",
        ),
        (
            {"temperature": 3, "objective_args": "temperature=2"},
            "temperature is 3.0, but objective_args sets it to 2.0",
        ),
        ({"objective": "tecoa", "anchor_epochs": 0, "temperature": 2}, "temperature is 2.0, but no objective of this"),
        (
            {"objective": "to_original", "objective_args": "clean=no"},
            "sets clean to 'no', which must be true or false",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(own_objective, settings, message):
    with pytest.raises(InputError, match=message):
        make_objectives(**settings)


# What objectives do without


def test_fare_trains_the_vision_tower_alone(tmp_path):
    trainer = make_trainer(tmp_path, proxy=None, objective="fare", anchor_epochs=0, learning_rate=0.05)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name.partition(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {"vision_model", "visual_projection"}


def test_fare_needs_no_labels_and_no_classes(tmp_path):
    objective, step = OBJECTIVES["fare"](), make_step()
    losses = objective(step)
    target, original = (ZeroShotClassifier(seen.model, seen.processor) for seen in (step._target, step._original))
    bare = TrainingStep(step.images, None, target=target, original=original)
    bare.attacked = step.attacked
    assert torch.equal(objective(bare), losses)
    step = TrainingStep(step.images, None, target=target, original=original)
    trainer = make_trainer(tmp_path, proxy=None, objective="fare", anchor_epochs=0, attack_steps=10)
    step.attacked = trainer._attack(objective, step)
    assert (objective(step) > objective.attack_loss(step, step.images)).all()


def test_a_run_without_an_attack_does_not_speak_of_one(tmp_path):
    trainer = make_trainer(tmp_path, objective="clean_distillation", anchor_epochs=0)
    trainer._attack = None  # which isn't called
    trainer.train()
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        assert 0 <= entry["train_clean_accuracy"] <= 1
        assert not {"train_robust_accuracy", "proxy_robust_accuracy", "zero_gradient_share"} & set(entry)
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "fine-tuned by the objective `clean_distillation` without GPD" in card
    assert "on clean images alone, without any attack, by learning from a frozen model" in card
    assert re.search(r"\| attack in training +\| none: clean images alone +\|", card)
    assert "withstand" not in card and "- robust\n" not in card
    trainer.draw_figures(tmp_path)
    assert (tmp_path / "training_curves.png").is_file()


def test_a_stage_without_an_attack_is_named(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, anchor_objective="clean_distillation")
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "PGD-2 at l_inf eps 8/255 in steps of 4/255 from a random start, in the transfer stage alone" in card
    assert "withstand" in card and "- robust\n" in card


def test_a_card_names_the_terms_of_a_sum(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, objective="0.5*hpt + tecoa", restart=False)
    trainer.train()
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "the objective `0.5*hpt + 1*tecoa` with GPD without its restart" in card
    assert "- hpt\n- tecoa\n- robust\n" in card
    assert all(f"arXiv {number}" in card for number in ("2601.12865", "2212.07016"))
    assert re.search(r"\| restart +\| none: the second stage goes on from the first +\|", card)


@pytest.mark.parametrize("family", ["Siglip", "VisionTextDualEncoder", "Aimv2"])
def test_an_objective_on_patches_needs_a_tower_that_has_them(tmp_path, family):
    for objective in ("tga_zsr", "tecoa + 2*tga_zsr"):
        with pytest.raises(InputError, match=f"needs patch tokens, which {family}Model doesn't project"):
            model, processor = make_family(family)
            make_trainer(tmp_path, model, processor=processor, proxy=None, anchor_epochs=0, objective=objective)
