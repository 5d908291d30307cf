"""Each objective against an independent implementation in a few lines: value, attack and gradients, in float64."""

from typing import NamedTuple

import pytest
import torch
from helpers import CLASSES, make_step

from hpt import OBJECTIVES
from hpt.training.objectives import kl_divergence
from hpt.training.sums import make_objective


def softmax(logits):
    return logits.exp() / logits.exp().sum(1, keepdim=True)


def kl(p_logits, q_logits):
    p, q = softmax(p_logits), softmax(q_logits)
    return (p * (p / q).log()).sum(1)


def cross_entropy(logits, labels):
    return -torch.stack([row[label].log() for row, label in zip(softmax(logits), labels, strict=True)])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["proxy_to_target", "target_to_proxy"])
def test_divergence_equals_its_definition(logits, direction, temperature):
    target, proxy = logits
    pair = (proxy, target) if direction == "proxy_to_target" else (target, proxy)
    expected = kl(pair[0] / temperature, pair[1] / temperature) * temperature**2
    torch.testing.assert_close(kl_divergence(target, proxy, direction, temperature), expected, rtol=1e-12, atol=0)


def test_directions_differ_and_default_is_proxy_to_target(logits):
    target, proxy = logits
    default = kl_divergence(target, proxy)
    assert torch.equal(default, kl_divergence(target, proxy, "proxy_to_target", 1.0))
    assert ((default - kl_divergence(target, proxy, "target_to_proxy")).abs() > 0.1).all()


def test_no_loss_between_equals(logits):
    torch.testing.assert_close(kl_divergence(logits[0], logits[0]), torch.zeros(5, dtype=torch.float64))


# On models


class Plain:
    """A CLIP by its definition: embeddings `f`, logits, and the attention `A` of patches to a text."""

    def __init__(self, classifier):
        self.model, processor = classifier.model, classifier.processor
        self.mean, self.std = (
            torch.tensor(values).double().view(3, 1, 1)
            for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
        )
        tokens = processor.tokenizer(
            [f"This is a photo of a {name}" for name in CLASSES], return_tensors="pt", padding=True
        )
        texts = self.model.get_text_features(**tokens).pooler_output.detach()
        self.texts = texts / texts.norm(dim=1, keepdim=True)

    def pixels(self, x):
        return (x - self.mean) / self.std

    def f(self, x):
        return self.model.get_image_features(pixel_values=self.pixels(x)).pooler_output

    def __call__(self, x):
        f = self.f(x)
        return self.model.logit_scale.exp() * f @ self.texts.T / f.norm(dim=1, keepdim=True)

    def attention(self, x, y, axis=2):
        tokens = self.model.vision_model(pixel_values=self.pixels(x)).last_hidden_state[:, 1:]
        patches = self.model.vision_model.post_layernorm(tokens) @ self.model.visual_projection.weight.T
        scores = torch.einsum("bpd,bd->bp", patches / patches.norm(dim=axis, keepdim=True), self.texts[y])
        scores = scores - scores.min(1, keepdim=True).values
        scores = scores / scores.max(1, keepdim=True).values
        side = int(scores.shape[1] ** 0.5)
        to_pixels = bilinear(side, x.shape[-1])
        return (to_pixels @ scores.view(-1, side, side) @ to_pixels.T).flatten(1)


def bilinear(size, new):
    """The matrix that resizes a side of `size` points to `new`, each between the two nearest; the rim goes on."""
    places = ((torch.arange(new, dtype=torch.float64) + 0.5) * size / new - 0.5).clamp(0, size - 1)
    return (1 - (places[:, None] - torch.arange(size)).abs()).clamp(min=0)


class Seen(NamedTuple):
    """What an equation is made of: target, proxy, original; clean and adversarial images, labels, an attack's try."""

    T: Plain
    P: Plain
    O: Plain  # noqa: E741
    x: torch.Tensor
    x_a: torch.Tensor | None
    y: torch.Tensor
    tried: torch.Tensor | None = None

    @property
    def ce(self):
        return cross_entropy(self.T(self.x_a), self.y)

    def tga(self, images, axis=2):
        difference = self.T.attention(images, self.y, axis) - self.O.attention(self.x, self.y, axis)
        return difference.square().sum(1).sqrt()


def attacked_by_ce(s):
    return cross_entropy(s.T(s.tried), s.y)


# What each minimises, and what its attack maximises
EQUATIONS = {
    "hpt": (lambda s: kl(s.P(s.x_a), s.T(s.x_a)), attacked_by_ce),
    "anchor": (lambda s: kl(s.P(s.x), s.T(s.x_a)), attacked_by_ce),
    "tecoa": (lambda s: s.ce, attacked_by_ce),
    "pmg_aft": (lambda s: s.ce + kl(s.O(s.x_a), s.T(s.x_a)) + kl(s.T(s.x), s.T(s.x_a)), attacked_by_ce),
    "fare": (
        lambda s: (s.T.f(s.x_a) - s.O.f(s.x)).square().sum(1),
        lambda s: (s.T.f(s.tried) - s.O.f(s.x)).square().sum(1),
    ),
    "agft": (
        lambda s: -(softmax(s.O(s.x)) * softmax(s.T(s.x_a)).log()).sum(1),
        lambda s: -(softmax(s.O(s.x)) * softmax(s.T(s.tried)).log()).sum(1),
    ),
    "tga_zsr": (lambda s: s.ce + 0.08 * s.tga(s.x_a) + 0.05 * s.tga(s.x), attacked_by_ce),
    "clean_distillation": (lambda s: kl(s.P(s.x), s.T(s.x)), None),
}
# With other settings than its authors'
WITH_SETTINGS = {
    ("pmg_aft", "a=1/2,b=2"): lambda s: s.ce + 0.5 * kl(s.O(s.x_a), s.T(s.x_a)) + 2 * kl(s.T(s.x), s.T(s.x_a)),
    ("pmg_aft", "a=0,b=0"): lambda s: s.ce,
    ("agft", "r=1/2"): lambda s: -(softmax(0.5 * s.O(s.x)) * softmax(s.T(s.x_a)).log()).sum(1),
    ("tga_zsr", "a=0,b=0"): lambda s: s.ce,
    ("tga_zsr", "normalised_over=patches"): lambda s: s.ce + 0.08 * s.tga(s.x_a, 1) + 0.05 * s.tga(s.x, 1),
    ("clean_distillation", "kl_direction=target_to_proxy"): lambda s: kl(s.T(s.x), s.P(s.x)),
}
CASES = {(name, ""): loss for name, (loss, _) in EQUATIONS.items()} | WITH_SETTINGS


def seen_by(step, tried=None):
    models = map(Plain, (step._target, step._proxy, step._original))
    return Seen(*models, step.images, step.attacked and step.attacked.images, step.labels, tried)


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_loss_and_weight_gradient_equal_those_of_the_equation(name, settings):
    objective = make_objective(name, settings=settings)
    step = make_step(objective)
    losses, expected = objective(step), CASES[name, settings](seen_by(step))
    assert losses.shape == (4,) and losses.min() > 0
    assert_equal(losses, expected)
    parts = step._target.family.vision_modules(step._target.model)
    trained = [weight for part in parts for weight in part.parameters()]
    ours, theirs = (flat(torch.autograd.grad(loss.mean(), trained)) for loss in (losses, expected))
    assert ours.norm() > 1e-6
    assert_equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if OBJECTIVES[name].needs_attack])
def test_attack_loss_and_image_gradient_equal_those_of_the_equation(name):
    objective = OBJECTIVES[name]()
    step = make_step(objective)
    tried = step.adversarial.clone().requires_grad_()
    step.attacked = None  # the attack still runs
    ours, theirs = objective.attack_loss(step, tried), EQUATIONS[name][1](seen_by(step, tried))
    assert_equal(ours, theirs)
    ours, theirs = (torch.autograd.grad(loss.sum(), tried)[0] for loss in (ours, theirs))
    assert ours.flatten(1).norm(dim=1).min() > 1e-6
    assert_equal(ours, theirs)


def test_each_objective_has_its_equation():
    assert EQUATIONS.keys() == OBJECTIVES.keys()
    assert all((attack is None) == (not OBJECTIVES[name].needs_attack) for name, (_, attack) in EQUATIONS.items())
