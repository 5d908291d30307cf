"""More samples than go through a model at once: they find the same, in batches that stay full."""

import pytest
import torch
from torch import nn

from hpt import ATTACKS
from hpt.attacks import APGDCE, APGDT, FABT, Cascade, Square, get_attack
from hpt.attacks.batch import Batch
from hpt.attacks.passes import watch_passes
from hpt.classifiers import draw_uniform


NUMBER, SIZE = 11, 4
FEW = {"steps": 8, "queries": 30, "restarts": 3}
RESTARTED = ["pgd", "cw", "adaptive", "transfer"]
EVERY = [*((name, False) for name in ATTACKS), *((name, True) for name in RESTARTED)]


class Network:
    """A smooth network over five classes in float64, whose rounding hides nothing, and the sizes of its batches."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 5)).double()
        self.layers.requires_grad_(False)
        self.sizes = []

    def __call__(self, images):
        self.sizes.append(len(images))
        return 4 * self.layers(images)


class Shaken(Network):
    """The same behind noise."""

    randomised = True

    def __call__(self, images, seeds):
        return super().__call__(images + 0.1 * draw_uniform(seeds, *images.shape[1:]))


def make_samples(network):
    """Images, what is predicted for them, but for the last, which is wrong, and their ids."""
    images = torch.rand(NUMBER, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = network.layers(images).argmax(1)
    labels[-1] = (labels[-1] + 1) % 5
    return images, labels, torch.arange(20, 20 + NUMBER)


def make_attack(name, restarted=False, eps=0.03, **settings):
    """Cut down to a few steps."""
    kind = get_attack(name)
    attack = kind(eps=eps, **({"proxy": Network(1)} if kind.needs_proxy else {}), **settings)
    for part in (attack, *getattr(attack, "attacks", {}).values()):
        for setting, few in FEW.items():
            if hasattr(part, setting) and (setting != "restarts" or restarted):
                setattr(part, setting, few)
    return attack


def assert_same_result(first, second):
    torch.testing.assert_close(first.images, second.images, rtol=0, atol=1e-9)
    assert torch.equal(first.zero_gradient, second.zero_gradient)
    assert (first.broken_by is None) == (second.broken_by is None)
    assert first.broken_by is None or torch.equal(first.broken_by, second.broken_by)


@pytest.mark.parametrize(("name", "restarted"), EVERY)
def test_each_sample_gets_what_it_gets_alone(name, restarted):
    network, attack = Network(), make_attack(name, restarted)
    samples = make_samples(network)
    alone = [attack.perturb(network, *(part[row : row + 1] for part in samples)) for row in range(NUMBER)]
    network.sizes.clear()
    pooled = attack.perturb(network, *samples, batch_size=SIZE)
    assert_same_result(pooled, attack.perturb(network, *samples))
    for row, single in enumerate(alone):
        torch.testing.assert_close(single.images, pooled.images[row : row + 1], rtol=0, atol=1e-9)
        assert single.broken_by is None or single.broken_by == pooled.broken_by[row]
    broken = network(pooled.images).argmax(1) != samples[1]
    assert broken.sum() < NUMBER and (broken.sum() > 1 or name == "transfer")  # some leave and some don't


@pytest.mark.parametrize(("name", "restarted"), EVERY)
def test_no_batch_is_larger_than_asked_for(name, restarted):
    network = Network()
    samples, attack = make_samples(network), make_attack(name, restarted)
    passes = []
    with watch_passes(passes.append):
        attack.perturb(network, *samples, batch_size=SIZE)
    assert max(network.sizes, default=0) <= SIZE and max(passes) <= 2 * SIZE  # the latter of a proxy too


@pytest.mark.parametrize("name", ["pgd", "apgd", "apgd-t"])
def test_of_a_randomised_classifier_every_image_keeps_its_draws(name):
    network, attack = Shaken(), make_attack(name, eot=2)
    samples = make_samples(network)
    assert_same_result(attack.perturb(network, *samples, batch_size=SIZE), attack.perturb(network, *samples))
    assert max(network.sizes[: len(network.sizes) // 2]) <= SIZE


@pytest.mark.parametrize("kind", [APGDCE, Square])
def test_samples_that_are_left_share_full_batches(kind):
    """Images above a half can't be broken; one of each evaluator's batch of four is left, and all four go together."""

    class Threshold:
        sizes = []

        def __call__(self, images):
            self.sizes.append(len(images))
            brightness = 10 * (images.mean((1, 2, 3)) - 0.5)
            return torch.stack([brightness, -brightness], 1)

    bright = torch.tensor([0.9, 0.501, 0.501, 0.501] * 4)
    images = bright[:, None, None, None].expand(16, 3, 8, 8).contiguous()
    attack = kind(eps=0.1, **({"steps": 20} if kind is APGDCE else {"queries": 200}))
    attack.perturb(Threshold(), images, torch.zeros(16).long(), torch.arange(16), batch_size=4)
    sizes = Threshold.sizes
    assert set(sizes[:4]) == {4} and set(sizes[-10:]) == {4}
    steps = 20 if kind is APGDCE else 199
    assert len(sizes) < 1.5 * steps  # one call a step when four are left, instead of one for each batch


@pytest.mark.parametrize("kind", [APGDT, FABT])
def test_targets_of_few_samples_go_side_by_side_after_the_first(kind):
    network, attack = Network(), kind(eps=1e-6, steps=5, num_targets=4)  # at which nothing breaks
    images, labels, ids = (values[:2] for values in make_samples(network))
    in_turn = attack.perturb(network, images, labels, ids)
    calls = {APGDT: 1 + 5 + 1, FABT: 2 * 5 + 1}[kind]
    assert len(network.sizes) == 2 + 4 * calls
    every_image = sum(network.sizes)
    for batch_size, rounds in ((2, 4), (4, 1 + 2), (6, 1 + 1), (7, 1 + 1), (8, 1 + 1), (64, 1 + 1)):
        network.sizes.clear()
        assert_same_result(attack.perturb(network, images, labels, ids, batch_size=batch_size), in_turn)
        assert len(network.sizes) == 2 + rounds * calls
        assert sum(network.sizes) == every_image


@pytest.mark.parametrize("kind", [APGDT, FABT])
def test_samples_that_the_first_target_breaks_are_shown_no_other(kind):
    network, attack = Network(), kind(eps=0.5, steps=5, num_targets=4)  # at which everything breaks
    images, labels, ids = (values[:2] for values in make_samples(network))
    in_turn = attack.perturb(network, images, labels, ids)
    one_after_the_other = list(network.sizes)
    network.sizes.clear()
    assert_same_result(attack.perturb(network, images, labels, ids, batch_size=64), in_turn)
    assert network.sizes == one_after_the_other
    assert (network(in_turn.images).argmax(1) != labels).all()


def test_a_cascade_takes_the_cheapest_first_and_breaks_what_each_breaks():
    network = Network()
    samples = make_samples(network)
    attacks = {name: make_attack(name, eps=0.03) for name in ("autoattack", "square", "pgd", "apgd-ce")}
    cascade = Cascade(attacks, num_classes=5)
    assert list(cascade.attacks) == ["pgd", "apgd-ce", "square", "autoattack"]
    assert cascade.parameters["attacks"] == list(cascade.attacks)
    assert cascade.parameters["settings"]["square"] == {"queries": 30}
    result = cascade.perturb(network, *samples, batch_size=SIZE)
    labels = samples[1]
    each = {name: network(attacks[name](network, *samples)).argmax(1) != labels for name in cascade.attacks}
    clean = network(samples[0]).argmax(1) != labels
    broken = network(result.images).argmax(1) != labels
    assert torch.equal(broken, torch.stack([clean, *each.values()]).any(0))
    for row in range(NUMBER):
        first = next((place for place, name in enumerate(each) if each[name][row]), -1)
        assert result.broken_by[row] == (-1 if clean[row] else first)


def test_a_batch_splits_into_views():
    ids = torch.arange(5)
    batch = Batch(torch.rand(5, 1, 2, 2), ids, None, torch.rand(5, 1, 1, 1), draw_ids=ids)
    parts = batch.split(2)
    assert [part.labels.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert all(part.sample_ids is None and part.targets is None for part in parts)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.draw_ids for part in parts]), ids)
