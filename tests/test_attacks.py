import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hpt import ATTACKS, FGSM, PGD, InputError
from hpt.attacks import get_attack


class BatchNormClassifier(nn.Sequential):
    """A convolution, BatchNorm, dropout and a linear layer: everything an attack could disturb."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def reference_pgd(classifier, images, labels, eps, steps, step_size):
    """PGD without random start, in the fewest lines: Madry et al., section 2.1."""
    adversarial = images.clone()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(classifier(adversarial), labels), adversarial)[0]
        adversarial = adversarial.detach() + step_size * gradient.sign()
        adversarial = torch.max(torch.min(adversarial, images + eps), images - eps)
        adversarial = torch.clip(adversarial, 0, 1)
    return adversarial


@pytest.mark.parametrize("steps", range(1, 6))
def test_pgd_equals_reference_after_every_step(classifier, images, labels, steps):
    expected = reference_pgd(classifier, images, labels, 8 / 255, steps, 3 / 255)
    attack = PGD(eps=8 / 255, steps=steps, step_size=3 / 255, random_start=False)
    torch.testing.assert_close(attack(classifier, images, labels), expected, rtol=0, atol=1e-7)


def test_fgsm_is_one_signed_step(classifier, images, labels):
    expected = reference_pgd(classifier, images, labels, 8 / 255, 1, 8 / 255)
    torch.testing.assert_close(FGSM(eps=8 / 255)(classifier, images, labels), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("eps", [1 / 255, 0.5])
def test_stays_in_ball_and_pixel_range(classifier, images, labels, name, eps):
    adversarial = get_attack(name)(eps=eps)(classifier, images, labels)
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert not adversarial.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_raises_the_loss(classifier, images, labels, name):
    adversarial = get_attack(name)(eps=8 / 255)(classifier, images, labels)
    before, after = (F.cross_entropy(classifier(x), labels) for x in (images, adversarial))
    assert after > before


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("training", [True, False])
def test_touches_nothing_but_the_image(images, labels, name, training):
    model = BatchNormClassifier().train(training)
    model[1].eval()  # one module in another mode than its parent
    model[0].weight.grad = torch.ones_like(model[0].weight)
    original = images.clone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for norm_mode in (False, True):
        model[1].train(norm_mode)
        modes[2] = norm_mode
        with torch.no_grad():
            get_attack(name)(eps=8 / 255)(model, images, labels)
        assert [module.training for module in model.modules()] == modes
    assert model[1].track_running_stats
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[5].weight.grad is None
    assert torch.equal(images, original) and images.grad is None


def test_noise_depends_on_seed_and_sample_alone(classifier, images, labels):
    ids = torch.tensor([10, 11, 12, 13])
    attack = PGD(eps=8 / 255, steps=1, seed=3)
    together = attack(classifier, images, labels, ids)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = attack(classifier, images[order], labels[order], ids[order])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-6)
    alone = attack(classifier, images[1:2], labels[1:2], ids[1:2])
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-6)
    other = PGD(eps=8 / 255, steps=1, seed=4)(classifier, images, labels, ids)
    assert not torch.allclose(other, together)


def test_random_start_without_ids_follows_torch(classifier, images, labels):
    attack = PGD(eps=8 / 255, steps=1)
    first, second = attack(classifier, images, labels), attack(classifier, images, labels)
    assert not torch.equal(first, second)


def test_any_inner_loss(classifier, images, labels):
    def margin(logits, labels):
        true = logits.gather(1, labels[:, None]).squeeze(1)
        return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - true

    adversarial = PGD(eps=8 / 255, loss=margin, random_start=False)(classifier, images, labels)
    assert (margin(classifier(adversarial), labels) > margin(classifier(images), labels)).all()


def test_counts_zero_gradients(images, labels):
    weight = torch.tensor([[1.0, 2, 3]]) * torch.tensor([[1.0], [0], [1], [0]])

    def classifier(x):  # the second and fourth image don't matter
        return x.mean((1, 2, 3))[:, None] * weight

    result = PGD(eps=8 / 255, steps=2).perturb(classifier, images, labels)
    assert result.zero_gradient.tolist() == [False, True, False, True]


def test_logits_in_bfloat16_are_compared_in_float32(images, labels):
    seen = []

    def loss(logits, labels):
        seen.append(logits.dtype)
        return F.cross_entropy(logits, labels, reduction="none")

    PGD(eps=8 / 255, steps=1, loss=loss)(lambda x: x.mean((2, 3)).bfloat16(), images, labels)
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "must be above 0, such as 1/255"),
        ({"eps": -1}, "must be above 0"),
        ({"eps": 8}, "did you mean 8/255?"),
        ({"eps": 1}, "did you mean 1/255?"),
        ({"eps": 0.1, "step_size": 0.3}, r"at most 2 \* eps = 0.2"),
        ({"eps": 0.1, "step_size": 0}, "must be above 0"),
        ({"eps": 0.1, "steps": 0}, "at least 1"),
        ({"eps": 0.1, "norm": "l7"}, "known: linf"),
    ],
)
def test_refuses_what_cannot_be_meant(settings, message):
    with pytest.raises(InputError, match=message):
        PGD(**settings)


def test_unknown_attack_lists_the_known():
    with pytest.raises(InputError, match="Unknown attack 'pdg'; known: fgsm, pgd"):
        get_attack("pdg")
