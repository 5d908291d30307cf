"""What an attack does in each step, against its definition, bit for bit."""

import pytest
import torch

from hpt import PGD
from hpt.attacks import APGDCE
from hpt.attacks.apgd import checkpoint_steps
from hpt.attacks.base import is_zero, project
from hpt.attacks.batch import make_batch
from hpt.radius import Radius


INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize("eps", [1e-6, 1 / 255, 0.3])
def test_points_are_projected_onto_the_ball_and_then_onto_the_unit_range(eps):
    """Also of images that rounding has put slightly outside it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=generator) * (1 + 2e-5) - 1e-5
    images[0, 0, 0] = torch.linspace(-1e-5, 1e-5, 16)
    images[0, 0, 1] = 1 + torch.linspace(-1e-5, 1e-5, 16)
    batch = make_batch(images, torch.zeros(8, dtype=torch.long), None, None, Radius(eps))
    points = images + 3 * eps * torch.randn(images.shape, generator=generator)
    points[1, 0, 0, :4] = torch.tensor([INF, -INF, NAN, 2.0])
    onto_ball = torch.minimum(torch.maximum(points, images - batch.eps), images + batch.eps)
    assert torch.equal(project(points, batch, "linf").nan_to_num(-1), onto_ball.clamp(0, 1).nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_say_nothing(dtype):
    values = [[0, 0], [-0.0, 0], [0, 1e-45], [0, -3], [NAN, 0], [NAN, 1], [0, INF], [-INF, NAN], [-1e30, 1e30]]
    gradient = torch.tensor(values, dtype=dtype).view(-1, 1, 1, 2)
    assert is_zero(gradient).tolist() == [True, True, False, False, True, True, True, True, False]


def test_images_that_are_known_to_be_sound_are_attacked_likewise(classifier, images, labels):
    attack, ids = PGD(eps=8 / 255, steps=2), torch.arange(4)
    found, expected = (attack.perturb(classifier, images, labels, ids, checked=checked) for checked in (True, False))
    assert torch.equal(found.images, expected.images)


@pytest.mark.parametrize("steps", [10, 20])
def test_what_was_broken_once_comes_back_broken(steps):
    """Also at a step where the search would go back to an earlier point, whose loss was larger and which wasn't."""
    found = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        slope, slabs = torch.randn(12, generator=generator) * 30, torch.randn(12, generator=generator) * 25
        broken = []

        def logits(images, slope=slope, slabs=slabs, broken=broken):
            images = images.flatten(1)
            wrong = (torch.sin(images @ slabs) > 0.9)[:, None]
            sure = torch.sin(images @ slope)[:, None] * 0.05
            right = torch.cat([0.4 + sure, 0.3 - sure / 2, 0.3 - sure / 2], 1)
            confused = torch.cat([torch.full_like(sure, 0.47), 0.52 - sure / 2, 0.01 + sure / 2], 1)  # of lower loss
            broken.append(bool(wrong.any()))
            return torch.where(wrong, confused, right).log()

        image = torch.rand(1, 3, 2, 2, generator=generator)
        adversarial = APGDCE(eps=0.05, steps=steps)(logits, image, torch.tensor([0]), torch.tensor([seed]))
        if any(broken):
            found.add(broken.index(True))
            assert logits(adversarial).argmax() != 0, f"seed {seed}"
    assert found & set(checkpoint_steps(steps))
