"""Backward passes that stand in for others, and attacks through defences that optimise at test time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hpt import PGD, InputError
from hpt.attacks import straight_through
from hpt.evaluation.scoring import score_images


def quantise(images):
    return (images * 3).round() / 3


@pytest.fixture
def network() -> nn.Module:
    """A smooth network in float64 over images of 3 x 4 x 4 pixels."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 5)).double().requires_grad_(False)
    net[1].weight.mul_(4)
    return net


@pytest.fixture
def small() -> torch.Tensor:
    return 0.1 + 0.8 * torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2])


def test_forward_is_the_function_and_backward_the_identity(images):
    weight = torch.randn(images.shape)
    x = images.clone().requires_grad_()
    output = straight_through(quantise)(x)
    assert torch.equal(output, quantise(images))
    assert torch.equal(torch.autograd.grad((output * weight).sum(), x)[0], weight)


def test_the_function_runs_without_gradients_and_what_it_gives_is_a_copy(images):
    seen = []

    def unchanged(values):
        seen.append(torch.is_grad_enabled())
        return values

    x = images.clone().requires_grad_()
    output = straight_through(unchanged)(x)
    output += 1
    assert seen == [False] and torch.equal(x, images) and torch.equal(output, images + 1)


def test_backward_is_the_surrogates(images):
    weight = torch.randn(images.shape)

    def smooth(x, factor, power):
        return torch.sigmoid(factor * x) ** power

    x = images.clone().requires_grad_()
    output = straight_through(lambda x, factor, power: (factor * x > power).float(), smooth)(x, 3, power=2)
    assert torch.equal(output, (3 * images > 2).float())
    (expected,) = torch.autograd.grad((smooth(x, 3, 2) * weight).sum(), x)
    assert torch.equal(torch.autograd.grad((output * weight).sum(), x)[0], expected)


def test_backward_can_be_differentiated_again(small):
    """Of `sum(s(x)^2)` with `s` the sign and tanh its surrogate, the gradient is `2 sign(x) (1 - tanh(x)^2)`."""
    x = (small - 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(straight_through(torch.sign, torch.tanh)(x).square().sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, 2 * x.sign() * (1 - x.tanh() ** 2))
    (second,) = torch.autograd.grad(gradient.sum(), x)  # through tanh twice, and once more through the sign's stand-in
    slope = 1 - x.tanh() ** 2
    torch.testing.assert_close(second, 2 * slope**2 + 2 * x.sign() * -2 * x.tanh() * slope)


def test_pgd_passes_a_step_without_gradients_as_an_independent_loop_does(network, small):
    attack = PGD(eps=0.1, steps=3, step_size=0.05, random_start=False)
    stuck = attack.perturb(lambda images: network(quantise(images)), small, LABELS)
    assert stuck.zero_gradient.all() and torch.equal(stuck.images, small)
    x = small
    for _ in range(3):
        seen = quantise(x).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(seen), LABELS, reduction="sum"), seen)
        x = torch.max(torch.min(x + 0.05 * gradient.sign(), small + 0.1), small - 0.1).clamp(0, 1)
    rounding = straight_through(quantise)
    result = attack.perturb(lambda images: network(rounding(images)), small, LABELS)
    assert not result.zero_gradient.any()
    torch.testing.assert_close(result.images, x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda images: images[..., ::2],
            r"gives the shape .*2\), but gradients pass through .*4\): give a surrogate",
        ),
        (lambda images: (255 * images).byte(), "gives uint8, but must give a tensor of float32"),
        (lambda images: images.numpy(), "gives ndarray, but must give a tensor"),
    ],
    ids=["shape", "dtype", "array"],
)
def test_what_no_gradient_can_pass_is_refused(small, function, message):
    with pytest.raises(InputError, match=message):
        straight_through(function)(small)


# Defences that optimise at test time


def unrolled(network, inner=2, step=0.3, sign=False):
    """A classifier that first moves each image to where the network is surer, by gradients of its own."""
    towards = straight_through(torch.sign, torch.tanh) if sign else lambda gradient: gradient

    def defended(images):
        moved = images
        with torch.enable_grad():
            moved = moved if moved.requires_grad else moved.detach().requires_grad_()
            for _ in range(inner):
                surest = network(moved).logsumexp(1).sum()
                (gradient,) = torch.autograd.grad(surest, moved, create_graph=images.requires_grad)
                moved = moved + step * towards(gradient)
        return network(moved)

    return defended


def by_differences(classifier, images, width=1e-6):
    """The gradient of the summed cross-entropy by central differences, a pixel at a time."""
    gradient = torch.zeros_like(images)
    with torch.no_grad():
        for place in range(images[0].numel()):
            shift = torch.zeros_like(images).flatten(1)
            shift[:, place] = width
            ahead, behind = (
                F.cross_entropy(classifier(images + sign * shift.view_as(images)), LABELS, reduction="none")
                for sign in (1, -1)
            )
            gradient.flatten(1)[:, place] = (ahead - behind) / (2 * width)
    return gradient


def test_pgd_through_an_unrolled_defence_follows_its_true_gradient(network, small):
    defended = unrolled(network)
    x = small
    for _ in range(3):
        x = torch.max(torch.min(x + 0.02 * by_differences(defended, x).sign(), small + 0.05), small - 0.05)
    attack = PGD(eps=0.05, steps=3, step_size=0.02, random_start=False)
    torch.testing.assert_close(attack(defended, small, LABELS), x)
    assert not torch.equal(attack(network, small, LABELS), x)  # the undefended network's gradient is another


def test_signs_inside_a_defence_have_the_gradient_of_what_stands_in_for_them(network, small):
    """With `s` for the sign, `x + a s(g(x))` has the Jacobian `I + a s'(g) H`, with the objective's Hessian `H`."""
    x = small[:1].clone().requires_grad_()
    (found,) = torch.autograd.grad(unrolled(network, inner=1, sign=True)(x)[0, 2], x)

    def surest(pixels):
        return network(pixels.view_as(x)).logsumexp(1).sum()

    pixels = small[0].flatten()
    hessian = torch.autograd.functional.hessian(surest, pixels)
    gradient = torch.autograd.functional.jacobian(surest, pixels)
    outer = torch.autograd.functional.jacobian(
        lambda pixels: network(pixels.view_as(x))[0, 2], pixels + 0.3 * gradient.sign()
    )
    expected = outer + 0.3 * hessian @ ((1 - gradient.tanh() ** 2) * outer)
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_defence_that_enables_gradients_itself_is_attacked_judged_and_scored(network, small, mode):
    defended = unrolled(network)
    attack = PGD(eps=0.05, steps=2, restarts=2)  # which judges without gradients between its restarts
    ids = torch.arange(3)
    expected = attack(defended, small, LABELS, ids)
    with mode():
        found = attack(defended, small, LABELS, ids)
    assert torch.equal(found, expected)
    logits = score_images(defended, found)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, defended(found).detach())


def test_a_clip_can_be_unrolled_with_the_attention_that_can(classifier, images, labels):
    """What the documents say: fused attention has no second derivative, the one made of matrix products has."""

    def defended(x, backend):
        with torch.enable_grad(), sdpa_kernel(backend):
            seen = x if x.requires_grad else x.detach().requires_grad_()
            movement = classifier.image_embeds(seen)[:, 0].sum()
            (gradient,) = torch.autograd.grad(movement, seen, create_graph=x.requires_grad)
        return classifier(x + 0.1 * gradient)

    attack = PGD(eps=8 / 255, steps=1)
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product.* is not implemented"):
        attack(lambda x: defended(x, SDPBackend.FLASH_ATTENTION), images, labels)
    assert not attack.perturb(lambda x: defended(x, SDPBackend.MATH), images, labels).zero_gradient.any()
