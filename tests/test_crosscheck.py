"""Robust accuracies beside those of other attack libraries, on a small robust network and 500 digits."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from hpt import PGD
from hpt.attacks import get_attack


EPS = 0.2


class Crop(nn.Module):
    """Leaves out the last row and column, which the toolbox's Square never reaches."""

    def forward(self, images):
        return images[:, :, :-1, :-1]


@pytest.fixture(scope="module")
def digits():
    """500 digits that the network wasn't trained on, and the network, adversarially trained for seconds."""
    data = load_digits()
    images = F.pad(torch.tensor(data.images / 16, dtype=torch.float32)[:, None], (0, 1, 0, 1))
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(labels))
    held_out, train = order[:500], order[500:]
    model = nn.Sequential(Crop(), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2))
    model.extend([nn.ReLU(), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10)])
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    attack = PGD(eps=EPS, steps=4, step_size=0.1)
    for _ in range(20):
        for rows in train.split(64):
            loss = F.cross_entropy(model(attack(model, images[rows], labels[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False), images[held_out], labels[held_out]


def robust_accuracy(model, adversarial, images, labels):
    assert (adversarial - images).abs().max() <= EPS + 1e-5
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    right = (model(images).argmax(1) == labels) & (model(adversarial).argmax(1) == labels)
    return 100 * right.float().mean().item()


def ours(digits, name, **settings):
    model, images, labels = digits
    adversarial = get_attack(name)(eps=EPS, **settings)(model, images, labels, torch.arange(len(labels)))
    return robust_accuracy(model, adversarial, images, labels)


def agree(own: float, theirs: float) -> None:
    assert 5 < theirs < 95  # neither hopeless nor untouched, where every attack would agree
    assert abs(own - theirs) <= 2 and own <= theirs + 1, (own, theirs)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "square"])
def test_as_strong_as_the_adversarial_robustness_toolbox(digits, name):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox isn't installed")
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = digits
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 9, 9), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    np.random.seed(0)
    if name == "square":
        settings = {"queries": 500}
        attack = SquareAttack(classifier, eps=EPS, max_iter=500, nb_restarts=1, batch_size=500, verbose=False)
    else:
        settings = {"steps": 40}
        loss = {"apgd-ce": "cross_entropy", "apgd-dlr": "difference_logits_ratio"}[name]
        common = {"eps_step": 2 * EPS, "max_iter": 40, "nb_random_init": 1, "batch_size": 500, "verbose": False}
        attack = AutoProjectedGradientDescent(classifier, eps=EPS, loss_type=loss, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.tensor(attack.generate(images.numpy(), labels.numpy()))
    agree(ours(digits, name, **settings), robust_accuracy(model, theirs, images, labels))


@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_as_strong_as_torchattacks(digits, name):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks isn't installed")
    model, images, labels = digits
    if name == "apgd-t":
        attack = torchattacks.APGDT(model, eps=EPS, steps=25, n_classes=10)
    else:
        attack = torchattacks.FAB(model, eps=EPS, steps=25, n_restarts=1, multi_targeted=True, n_classes=10)
    theirs = robust_accuracy(model, attack(images, labels), images, labels)
    agree(ours(digits, name, steps=25), theirs)
