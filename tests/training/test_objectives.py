"""Each objective against an independent few-line implementation in float64, and how runs take objectives."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, assert_same, make_clip, make_trainer, weights

from hpt import OBJECTIVES, PGD, HPTConfig, InputError, Objective, RobustTransfer, ZeroShotClassifier
from hpt.attacks import AttackResult
from hpt.training.objectives import kl_divergence
from hpt.training.step import TrainingStep


def reference_kl(p_logits, q_logits):
    """KL(softmax p || softmax q) per row, by its definition, in Python's floats."""
    rows = []
    for p_row, q_row in zip(p_logits.tolist(), q_logits.tolist(), strict=True):
        p = [math.exp(logit) / sum(map(math.exp, p_row)) for logit in p_row]
        q = [math.exp(logit) / sum(map(math.exp, q_row)) for logit in q_row]
        rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return torch.tensor(rows, dtype=torch.float64)


def reference_cross_entropy(logits, labels):
    return torch.tensor(
        [math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(logits.tolist(), labels.tolist(), strict=True)],
        dtype=torch.float64,
    )


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["proxy_to_target", "target_to_proxy"])
def test_divergence_equals_its_definition(logits, direction, temperature):
    target, proxy = logits
    pair = (proxy, target) if direction == "proxy_to_target" else (target, proxy)
    expected = reference_kl(pair[0] / temperature, pair[1] / temperature) * temperature**2
    torch.testing.assert_close(kl_divergence(target, proxy, direction, temperature), expected, rtol=1e-12, atol=0)


def test_directions_differ_and_default_is_proxy_to_target(logits):
    target, proxy = logits
    default = kl_divergence(target, proxy)
    assert torch.equal(default, kl_divergence(target, proxy, "proxy_to_target", 1.0))
    assert ((default - kl_divergence(target, proxy, "target_to_proxy")).abs() > 0.1).all()


def test_no_loss_between_equals(logits):
    torch.testing.assert_close(kl_divergence(logits[0], logits[0]), torch.zeros(5, dtype=torch.float64))


# On models


@pytest.fixture
def step():
    """Four images of a step in float64, attacked, with target, proxy and original."""
    (target, processor), (proxy, _), (original, _) = make_clip(0), make_clip(1, patch_size=4), make_clip(2)
    models = (ZeroShotClassifier(model.double(), processor, CLASSES) for model in (target, proxy, original))
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 4, 3, 16, 16, generator=generator, dtype=torch.float64)
    models = dict(zip(("target", "proxy", "original"), models, strict=True))
    step = TrainingStep(images, torch.tensor([0, 1, 2, 0]), **models)
    adversarial = (images + 0.1 * (noise - 0.5)).clamp(0, 1)
    step.attacked = AttackResult(adversarial, torch.zeros(4, dtype=torch.bool))
    return step


def cross_entropy_attack(T, x, y):
    return reference_cross_entropy(T(x), y)


# What each minimises and its attack maximises, from the models as plain functions of images to logits
REFERENCES = {
    "hpt": (lambda T, P, x, x_a, y: reference_kl(P(x_a), T(x_a)), cross_entropy_attack),
    "anchor": (lambda T, P, x, x_a, y: reference_kl(P(x), T(x_a)), cross_entropy_attack),
    "tecoa": (
        lambda T, P, x, x_a, y: reference_cross_entropy(T(x_a), y),
        lambda T, x, y: reference_cross_entropy(T(x), y),
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_attack_loss_equal_their_equations(step, name):
    objective, (loss, attack_loss) = OBJECTIVES[name](), REFERENCES[name]
    T, P = (lambda images, model=model: model(images).detach() for model in (step._target, step._proxy))
    expected = loss(T, P, step.images, step.adversarial, step.labels)
    torch.testing.assert_close(objective(step).detach(), expected, rtol=1e-10, atol=0)
    value = objective.attack_loss(step, step.adversarial).detach()
    torch.testing.assert_close(value, attack_loss(T, step.adversarial, step.labels), rtol=1e-10, atol=0)


# The same with gradients, in torch
DIFFERENTIABLE = {
    "hpt": lambda T, P, x, x_a, y: (P(x_a).softmax(1) * (P(x_a).log_softmax(1) - T(x_a).log_softmax(1))).sum(1),
    "anchor": lambda T, P, x, x_a, y: (P(x).softmax(1) * (P(x).log_softmax(1) - T(x_a).log_softmax(1))).sum(1),
    "tecoa": lambda T, P, x, x_a, y: -T(x_a).log_softmax(1)[torch.arange(len(y)), y],
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_those_of_the_equations(step, name):
    objective, target, proxy = OBJECTIVES[name](), step._target, step._proxy
    trained = [weight for part, weight in target.model.named_parameters() if part.startswith("vision_model")]
    gradients = torch.autograd.grad(objective(step).mean(), trained, allow_unused=True)
    loss = DIFFERENTIABLE[name](target, lambda x: proxy(x).detach(), step.images, step.adversarial, step.labels).mean()
    expected = torch.autograd.grad(loss, trained, allow_unused=True)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
    images = step.adversarial.clone().requires_grad_()
    ours = torch.autograd.grad(objective.attack_loss(step, images).sum(), images)
    theirs = torch.autograd.grad(F.cross_entropy(target(images), step.labels, reduction="sum"), images)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


# A step


def count_calls(classifier):
    calls, outputs = [], classifier.outputs
    classifier.outputs = lambda images, *rest: (calls.append(images), outputs(images, *rest))[1]
    return calls


@pytest.mark.parametrize("model", ["target", "proxy", "original"])
def test_a_step_computes_each_output_once_and_those_of_an_attack_anew(step, model):
    calls, outputs = count_calls(getattr(step, f"_{model}")), getattr(step, model)
    for images in (step.images, step.adversarial, step.images, step.adversarial):
        outputs(images)
    assert len(calls) == 2
    for _ in range(2):
        outputs(step.images.clone())
    assert len(calls) == 4


def test_what_a_step_keeps_has_gradients_where_they_are_enabled(step):
    with torch.no_grad():
        assert not step.target(step.images).logits.requires_grad
    outputs = step.target(step.images)
    assert outputs.logits.requires_grad
    with torch.no_grad():
        assert step.target(step.images) is outputs


@pytest.mark.parametrize("model", ["target", "proxy"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_a_step_keeps_can_enter_a_loss_whatever_asked_first(step, model, mode):
    with mode():
        first = getattr(step, model)(step.adversarial).logits
        assert not first.requires_grad
    with torch.no_grad():
        assert getattr(step, model)(step.adversarial).logits is first
    (step.target(step.adversarial).logits * first).sum().backward()


def test_while_the_attack_runs_nothing_of_the_target_is_kept(step):
    attacked, step.attacked = step.attacked, None
    with pytest.raises(RuntimeError, match="There are no adversarial images yet"):
        step.adversarial  # noqa: B018
    first, proxy = step.target(step.images), step.proxy(step.images)
    step.attacked = attacked
    assert step.target(step.images) is not first and step.proxy(step.images) is proxy


def test_frozen_models_give_no_gradients_and_embeddings_are_those_of_the_logits(step):
    assert step.target(step.images).logits.requires_grad
    for outputs in (step.proxy(step.images), step.original(step.images)):
        assert not any(part.requires_grad for part in outputs[:3])
    logits, embeds, features, _ = step.original(step.images)
    torch.testing.assert_close(embeds, F.normalize(features, dim=-1))
    assert logits.shape == (4, 3) and (features.norm(dim=1) - 1).abs().min() > 1e-3


# Objectives of a run


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


@pytest.mark.parametrize("stages", [("hpt", "anchor"), ("tecoa", "hpt"), ("anchor", "tecoa"), ("tecoa", "tecoa")])
def test_gpd_goes_around_any_pair(tmp_path, stages):
    objective, anchor = stages
    trainer = make_trainer(tmp_path, objective=objective, anchor_objective=anchor)
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


def test_a_loss_that_is_no_loss_per_image_is_refused(tmp_path):
    class Averaged(RobustTransfer):
        def __call__(self, step):
            return super().__call__(step).mean()

    trainer = make_trainer(tmp_path)
    trainer.objectives["anchor"] = Averaged()
    with pytest.raises(InputError, match=r"Averaged gives losses of shape \(\) for 4 images: it must give one"):
        trainer.train()


def test_an_objective_that_learns_from_a_proxy_needs_one(tmp_path):
    with pytest.raises(InputError, match="There is no proxy, but the objective learns from one: load it"):
        make_trainer(tmp_path, proxy=None)


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
