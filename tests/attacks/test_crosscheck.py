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


@pytest.fixture(scope="module")
def digits():
    """500 digits that the network wasn't trained on, and the network, adversarially trained for seconds."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(labels))
    held_out, train = order[:500], order[500:]
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU())
    model.extend([nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10)])
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
    """The mean over three seeds: one alone is +-1 point."""
    model, images, labels = digits
    ids = torch.arange(len(labels))
    attacks = [get_attack(name)(eps=EPS, seed=seed, **settings) for seed in range(3)]
    return np.mean([robust_accuracy(model, attack(model, images, labels, ids), images, labels) for attack in attacks])


def agree(own: float, theirs: float) -> None:
    assert 5 < theirs < 95  # neither hopeless nor untouched, where every attack would agree
    assert abs(own - theirs) <= 2 and own <= theirs + 1, (own, theirs)


class Crop(nn.Module):
    """Leaves out the last row and column."""

    def forward(self, images):
        return images[:, :, :-1, :-1]


def toolbox_accuracy(digits, make_attack, seeds: int) -> float:
    """Robust accuracy under an attack of the adversarial-robustness-toolbox, the mean over seeds.

    Its Square never reaches the last row and column, so all images get one more of each, which the network leaves out.
    """
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = digits
    model, images = nn.Sequential(Crop(), model), F.pad(images, (0, 1, 0, 1))
    settings = {"clip_values": (0.0, 1.0), "device_type": "cpu"}
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 9, 9), 10, **settings)
    accuracies = []
    for seed in range(seeds):
        np.random.seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adversarial = torch.tensor(make_attack(classifier).generate(images.numpy(), labels.numpy()))
        accuracies.append(robust_accuracy(model, adversarial, images, labels))
    return np.mean(accuracies)


@pytest.mark.parametrize(
    ("name", "loss"), [("apgd-ce", "cross_entropy"), ("apgd-dlr", "difference_logits_ratio")], ids=["ce", "dlr"]
)
def test_apgd_is_as_strong_as_the_adversarial_robustness_toolboxs(digits, name, loss):
    evasion = pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox isn't installed")

    def make_theirs(classifier):
        settings = {"eps_step": 2 * EPS, "max_iter": 40, "nb_random_init": 1, "batch_size": 500, "verbose": False}
        return evasion.AutoProjectedGradientDescent(classifier, eps=EPS, loss_type=loss, **settings)

    agree(ours(digits, name, steps=40), toolbox_accuracy(digits, make_theirs, seeds=3))


def test_square_is_as_strong_as_the_adversarial_robustness_toolboxs(digits):
    evasion = pytest.importorskip("art.attacks.evasion", reason="adversarial-robustness-toolbox isn't installed")

    def make_theirs(classifier):
        return evasion.SquareAttack(classifier, eps=EPS, max_iter=500, nb_restarts=1, batch_size=500, verbose=False)

    agree(ours(digits, "square", queries=500), toolbox_accuracy(digits, make_theirs, seeds=2))


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
