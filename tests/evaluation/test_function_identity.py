"""What stands for a function: whatever changes what it computes, as far as it can be found, and nothing else."""

from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CLASSES, make_clip
from torch import nn

from hpt import PGD, ZeroShotClassifier
from hpt.evaluation.identity import identify


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


class Held:
    steps = 2

    def __init__(self, network, **settings):
        self.network = network
        vars(self).update(settings)

    def __call__(self, images):
        return self.network(images.flatten(1))


class HeldTwice(Held):
    steps = 3


class Module(nn.Module):
    def __init__(self, inner, scale=1.0):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, images):
        return self.scale * self.inner(images)


def closure(network, scale=1.0):
    def classify(images, power=2):
        return scale * network(images) ** power

    return classify


class Slots:
    __slots__ = ("network", "unset")

    def __init__(self, network):
        self.network = network

    def __call__(self, images):
        return self.network(images)


@dataclass
class Settings:
    scale: float


class Mode(Enum):
    FAST = 1
    SLOW = 2


NETWORK = linear(5)


def nested(images):
    def classify(images):
        return NETWORK(images)

    return torch.stack([classify(images) for _ in range(2)]).mean(0)


class ByGlobal:
    def __call__(self, images):
        return NETWORK(images)


FUNCTIONS = {
    "module": lambda: linear(),
    "other weights": lambda: linear(1),
    "held": lambda: Held(linear()),
    "held, other weights": lambda: Held(linear(1)),
    "a number": lambda: Held(linear(), eps=0.1),
    "another number": lambda: Held(linear(), eps=0.2),
    "a text": lambda: Held(linear(), mode="x"),
    "a dtype": lambda: Held(linear(), dtype=torch.bfloat16),
    "a tensor": lambda: Held(linear(), mean=torch.zeros(3)),
    "another tensor": lambda: Held(linear(), mean=torch.ones(3)),
    "of the class": lambda: HeldTwice(linear()),
    "an attack": lambda: Held(linear(), attack=PGD(eps=0.1)),
    "another attack": lambda: Held(linear(), attack=PGD(eps=0.1, steps=3)),
    "in a module": lambda: Module(linear()),
    "in a module, another number": lambda: Module(linear(), 2.0),
    "in another in a module": lambda: Module(Module(linear(), 2.0)),
    "around it": lambda: closure(linear()),
    "around it, other weights": lambda: closure(linear(1)),
    "around it, another number": lambda: closure(linear(), 2.0),
    "partial": lambda: partial(closure(linear()), power=3),
    "another partial": lambda: partial(closure(linear()), power=4),
    "bound": lambda: Held(linear()).__call__,
    "bound, other weights": lambda: Held(linear(1)).__call__,
    "bound of a module": lambda: linear().forward,
    "bound of a module, other weights": lambda: linear(1).forward,
    "private": lambda: Held(None, _network=linear()),
    "private, other weights": lambda: Held(None, _network=linear(1)),
    "several": lambda: Held([linear(), linear(1)]),
    "several, other weights": lambda: Held([linear(), linear(2)]),
    "several around it": lambda: closure((linear(), linear(1))),
    "by name": lambda: Held({"a": linear(), 2: [linear(1)]}),
    "by name, other weights": lambda: Held({"a": linear(), 2: [linear(2)]}),
    "several in a module": lambda: Module([linear()]),
    "several in a module, other weights": lambda: Module([linear(1)]),
    "an array": lambda: Held(linear(), mean=np.zeros(3)[::-1]),
    "another array": lambda: Held(linear(), mean=np.ones(3)[::-1]),
    "a number of numpy": lambda: Held(linear(), eps=np.float32(0.1)),
    "another number of numpy": lambda: Held(linear(), eps=np.float32(0.2)),
    "settings": lambda: Held(linear(), settings=Settings(0.1)),
    "other settings": lambda: Held(linear(), settings=Settings(0.2)),
    "settings in a namespace": lambda: Held(linear(), settings=SimpleNamespace(scale=0.1)),
    "a mode": lambda: Held(linear(), mode=Mode.FAST),
    "another mode": lambda: Held(linear(), mode=Mode.SLOW),
    "slots": lambda: Slots(linear()),
    "slots, other weights": lambda: Slots(linear(1)),
    "without gradients": lambda: torch.no_grad()(closure(linear())),
    "without gradients, other weights": lambda: torch.no_grad()(closure(linear(1))),
    "compiled": lambda: torch.compile(linear()),
    "compiled, other weights": lambda: torch.compile(linear(1)),
    "global": lambda: ByGlobal(),
    "global, in a function inside": lambda: nested,
    "dual encoder": lambda: Held(ZeroShotClassifier(*make_clip(), CLASSES)),
    "dual encoder, other prompts": lambda: Held(ZeroShotClassifier(*make_clip(), CLASSES, "a {}")),
    "dual encoder, other weights": lambda: Held(ZeroShotClassifier(*make_clip(1), CLASSES)),
    "dual encoder, other statistics": lambda: Held(ZeroShotClassifier(*make_clip(), CLASSES, image_mean=[0.1] * 3)),
}


def test_all_that_is_found_counts_and_is_found_again():
    found = {name: identify(make()) for name, make in FUNCTIONS.items()}
    assert found == {name: identify(make()) for name, make in FUNCTIONS.items()}
    kept = {name: (identity.configuration, identity.weights) for name, identity in found.items()}
    assert len(set(kept.values())) == len(kept)
    assert all(identity.weights for identity in found.values())


@pytest.mark.parametrize(
    "changed",
    [
        lambda: Held(linear(), _calls=3),
        lambda: Held(linear().requires_grad_(False)),
        lambda: Held(linear().train()),
    ],
    ids=["private", "frozen", "training"],
)
def test_what_changes_no_number_does_not_count(changed):
    assert identify(changed()) == identify(Held(linear().eval()))


class Defended(ZeroShotClassifier):
    """A dual encoder and more."""


@pytest.mark.parametrize("kind", [ZeroShotClassifier, Defended])
def test_use_changes_nothing(kind):
    classifier = kind(*make_clip(), CLASSES)
    before = identify(Held(classifier))
    classifier(torch.rand(2, 3, 16, 16))
    assert identify(Held(classifier)) == before


def test_every_module_is_found():
    inner, listed, private = linear(), linear(1), linear(2)
    found = identify(Held(inner, more=[listed], _private=private)).modules
    assert {id(module) for module in (inner, listed, private)} <= {id(module) for module in found}


def test_dtype_and_device_are_those_of_the_tensors():
    both = identify(Held(linear().bfloat16(), mean=torch.zeros(3), count=torch.tensor(3)))
    assert both.dtype == "bfloat16 and float32" and both.device == torch.device("cpu")
    nothing = identify(lambda images: images.flatten(1)[:, :3])
    assert (nothing.weights, nothing.dtype, nothing.device) == (None, "unknown", None)
