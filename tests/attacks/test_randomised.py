"""Attacks on classifiers that draw random numbers: means over draws, seeds, and the same images in any batch."""

import pytest
import torch
import torch.nn.functional as F
from helpers import reference_apgd
from torch import nn

from hpt import ATTACKS, PGD, InputError
from hpt.attacks import APGDCE, CW, NamedAttack, get_attack
from hpt.attacks.base import random_start
from hpt.attacks.batch import Batch
from hpt.attacks.passes import watch_passes
from hpt.attacks.queries import float_logits, judge, mean_over
from hpt.classifiers import VERDICTS, draw_seeds, draw_uniform
from hpt.radius import Radius


EPS = 8 / 255
IDS = torch.tensor([10, 11, 12, 13])
LABELS = torch.tensor([0, 1, 2, 3])
TAKE_DRAWS = ["pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "apgd", "adaptive", "transfer"]
FEW_STEPS = {"apgd-ce": 6, "apgd-dlr": 6, "apgd-t": 3, "fab-t": 3, "cw": 3, "pgd": 3, "adaptive": 3, "transfer": 3}


class Shaken:
    """A smooth network behind pixels that are scaled by chance, between a half and three halves, and noted seeds."""

    randomised = True

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Tanh(), nn.Linear(16, 5))
        self.network.requires_grad_(False)
        self.seeds = []

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        self.seeds.append(seeds.tolist())
        return self.network(images * (0.5 + draw_uniform(seeds, *images.shape[1:])))


class Steadfast(Shaken):
    """With gradients, and class 0 whatever happens."""

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return super().__call__(images, seeds) / 1000 + 1000 * torch.eye(5)[0]


def make_attack(name, eps=EPS, eot=1, proxy=None, **settings):
    """The attack, cut down to a few steps, with draws if it takes them."""
    kind = get_attack(name)
    settings |= {"proxy": Shaken(1) if proxy is None else proxy} if kind.needs_proxy else {}
    settings |= {"eot": eot} if name in TAKE_DRAWS else {}
    attack = kind(eps=eps, **settings)
    for part in (attack, *getattr(attack, "attacks", {}).values()):
        if hasattr(part, "steps"):
            part.steps = FEW_STEPS.get(part.name, part.steps)
        if hasattr(part, "queries"):
            part.queries = 40
    return attack


def by_hand(models, loss, images, steps, size, eot):
    """PGD without random start on the mean loss over draws, in the fewest lines."""
    x = images
    for step in range(steps):
        x = x.detach().requires_grad_()
        drawn = [draw_seeds(0, IDS, step, draw) for draw in range(eot)]
        mean = sum(loss(model(x, seeds), LABELS).sum() for model in models for seeds in drawn) / eot
        sign = torch.autograd.grad(mean, x)[0].sign()
        x = torch.max(torch.min(x.detach() + size * sign, images + EPS), images - EPS).clamp(0, 1)
    return x


def margin(logits, labels):
    others = logits.masked_fill(F.one_hot(labels, 5).bool(), -torch.inf)
    return others.amax(1) - logits[range(len(labels)), labels]


@pytest.mark.parametrize(
    ("name", "seen", "loss"),
    [
        ("pgd", ["target"], F.cross_entropy),
        ("cw", ["target"], margin),
        ("transfer", ["proxy"], F.cross_entropy),
        ("adaptive", ["target", "proxy"], F.cross_entropy),
    ],
)
@pytest.mark.parametrize("eot", [1, 4])
def test_steps_follow_the_mean_gradient_over_draws(images, name, seen, loss, eot):
    models = {"target": Shaken(), "proxy": Shaken(1)}
    settings = {"steps": 3, "step_size": 3 / 255, "random_start": False, "eot": eot}
    settings |= {"proxy": models["proxy"]} if "proxy" in seen else {}
    found = get_attack(name)(eps=EPS, **settings)(models["target"], images, LABELS, IDS)

    def summed(logits, labels):
        return loss(logits, labels, reduction="none") if loss is F.cross_entropy else loss(logits, labels)

    expected = by_hand([models[model] for model in seen], summed, images, 3, 3 / 255, eot)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found != images).float().mean() > 0.9


@pytest.mark.parametrize("steps", [5, 23])
def test_apgd_goes_by_the_mean_loss_over_draws(steps):
    """Three draws that are three networks: their mean loss is the same function at every step."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5)).double() for _ in range(3)]
    images, labels, ids = torch.rand(6, 3, 4, 4).double(), torch.arange(6) % 5, torch.arange(6)
    numbers = {
        seed: draw for step in range(24) for draw in range(3) for seed in draw_seeds(0, ids, step, draw).tolist()
    }

    class OneOfThree:
        randomised = True

        def __call__(self, images, seeds):
            (draw,) = {numbers[seed] for seed in seeds.tolist()}
            return networks[draw](images)

    class Unbreakable(APGDCE):
        def _evaluate(self, *given):
            loss, gradient, right = super()._evaluate(*given)
            return loss, gradient, torch.ones_like(right)

    adversarial = Unbreakable(eps=0.1, steps=steps, eot=3)(OneOfThree(), images, labels, ids)
    batch = Batch(images, labels, ids, torch.full((6, 1, 1, 1), 0.1).double())
    for x, y, start, x_adv in zip(images, labels, random_start(batch, "linf", 0), adversarial, strict=True):

        def loss(z, y=y):
            return sum(F.cross_entropy(network(z[None]), y[None]) for network in networks) / 3

        best = reference_apgd(loss, x, start, 0.1, steps, "linf")
        torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-9)


def test_gradients_over_seeds_are_unbiased():
    """Of `sum_i w_i t_i x_i` with `E t = 1` the mean gradient is `w`; over n draws its error falls as 1 / sqrt(n)."""
    weight = torch.randn(3 * 4 * 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Scaled:
        randomised = True

        def __call__(self, images, seeds):
            scale = 0.5 + draw_uniform(seeds, 48).double()  # of variance 1/12
            return torch.stack([images.flatten(1) * scale @ weight, images.flatten(1)[:, 0] * 0], 1)

    images = torch.full((50, 3, 4, 4), 0.5, dtype=torch.float64)
    classifier, ids = float_logits(Scaled()), torch.arange(50)
    for eot in (1, 16):
        errors = []
        for seed in range(8):
            attack = CW(eps=0.1, eot=eot, seed=seed)
            batch = Batch(images, torch.ones(50).long(), ids, torch.full((50, 1, 1, 1), 0.1), draw_ids=ids)
            for step in range(4):
                errors.append(attack._gradient(classifier, batch, images, step).flatten(1) / weight - 1)
        errors = torch.cat(errors)  # of 50 samples, 8 seeds and 4 steps
        spread = (1 / 12 / eot) ** 0.5
        assert errors.mean().abs() < 5 * spread / errors.numel() ** 0.5
        assert (errors.mean(0).abs() < 5 * spread / len(errors) ** 0.5).all()
        assert errors.std().item() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_draw_from_their_seed_sample_step_and_draw_alone(images, name):
    classifier = Shaken()
    labels = _predicted(classifier, images)
    make_attack(name, 0.5 / 255, eot=2, seed=3)(classifier, images, labels, IDS)
    steps = [*range(45), *range(-1, -45, -1)]
    allowed = {seed for step in steps for draw in range(2) for seed in draw_seeds(3, IDS, step, draw).tolist()}
    drawn = {seed for seeds in classifier.seeds for seed in seeds}
    assert drawn <= allowed
    assert not drawn & set(draw_seeds(3, IDS, VERDICTS, 0).tolist())


def test_each_step_of_each_restart_draws_anew(images):
    classifier = Steadfast()
    PGD(eps=EPS, steps=3, eot=2, restarts=2)(classifier, images, torch.zeros(4).long(), IDS)
    seeds = [seed for seeds in classifier.seeds for seed in seeds]
    # The start is judged, and each restart after its steps
    assert len(classifier.seeds) == 2 * (1 + 3 + 1 + 3 + 1) and len(set(seeds)) == len(seeds) == 4 * 18


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms])
@pytest.mark.parametrize("eot", [1, 3])
def test_no_batch_changes_what_an_attack_finds(images, name, norm, eot):
    classifier = Shaken()
    labels = _predicted(classifier, images)
    labels[-1] = (labels[-1] + 1) % 5
    attack = make_attack(name, 0.05 if norm == "linf" else 1.0, eot=eot, norm=norm, seed=3)
    together = attack.perturb(classifier, images, labels, IDS)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = attack.perturb(classifier, images[order], labels[order], IDS[order])
    torch.testing.assert_close(shuffled.images, together.images[order], rtol=0, atol=1e-5)
    for place in range(4):
        alone = attack.perturb(classifier, *(values[place : place + 1] for values in (images, labels, IDS)))
        torch.testing.assert_close(alone.images, together.images[place : place + 1], rtol=0, atol=1e-5)
        if together.broken_by is not None:
            assert alone.broken_by == together.broken_by[place]


def test_without_ids_draws_follow_torch(images):
    attack = PGD(eps=EPS, steps=2, random_start=False, eot=2)
    classifier = Shaken()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(attack(classifier, images, LABELS))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", [*ATTACKS, "pgd with restarts"])
@pytest.mark.parametrize("eot", [1, 3])
def test_most_passes_count_every_draw(images, name, eot):
    passes = []
    name, _, restarts = name.partition(" with ")
    attack = make_attack(name, eot=eot, proxy=Steadfast(), **({"restarts": 2} if restarts else {}))
    for part in (attack, *getattr(attack, "attacks", {}).values()):
        if hasattr(part, "num_targets"):
            part.num_targets = 4
    with watch_passes(passes.append):
        attack(Steadfast(), images[:1], torch.tensor([0]), IDS[:1])
    assert sum(passes) == attack.most_passes(5)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_draw_that_is_wrong_by_chance_ends_no_attack(images, name):
    """Clean, each image is wrong in about half of the draws; attacked to the end, it is wrong in all."""
    passes = []

    class Hesitant:
        randomised = True

        def __call__(self, images, seeds):
            darkness = 1 - 2 * images.mean((1, 2, 3))  # 0 of grey images, and an eps of 0.4 moves it by 0.8
            chance = 0.6 * draw_uniform(seeds, 1).squeeze(1) - 0.3
            logits = torch.stack([darkness + chance, -darkness - chance], 1)
            return torch.cat([logits, logits.new_full((len(images), 3), -4) + darkness[:, None] / 10], 1)

    grey, labels = torch.full((8, 3, 8, 8), 0.5), torch.tensor([0, 1] * 4)
    attack = make_attack(name, 0.4, proxy=Hesitant())
    with watch_passes(passes.append):
        found = attack.perturb(Hesitant(), grey, labels, torch.arange(8))
    if name not in ("fab-t", "square"):  # which go by single draws, and aren't made for chance
        right = [Hesitant()(found.images, draw_seeds(0, torch.arange(8), VERDICTS, draw)) for draw in range(20)]
        assert not any((logits.argmax(1) == labels).any() for logits in right)
    assert sum(passes) >= 8 * (attack.most_passes(5) - 1)  # a suite asks one image for the number of classes
    assert found.broken_by is None or (found.broken_by == -1).all()


def test_what_is_judged_of_draws_is_their_mean_margin():
    drawn = [torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])]  # of three images in two draws, the class

    def classifier(images, seeds):
        return 2.0 * F.one_hot(seeds, 2) * torch.tensor([[1.0], [1.0], [3.0]])

    labels = torch.zeros(3).long()
    margins, right = judge(classifier, torch.zeros(3, 3, 2, 2), labels, drawn)
    assert margins.tolist() == [-2, 0, 6] and right.tolist() == [True, True, False]
    classifier.randomised = True
    assert judge(classifier, torch.zeros(3, 3, 2, 2), labels, drawn)[1].all()


def test_the_mean_of_one_draw_is_that_draw():
    values = torch.tensor([0.1, -0.0, torch.inf])
    (mean,) = mean_over(iter([(values,)]))
    assert torch.equal(mean, values) and mean.signbit().tolist() == values.signbit().tolist()


# Settings


@pytest.mark.parametrize("name", TAKE_DRAWS)
def test_draws_are_a_setting_that_rows_name(name):
    named = NamedAttack.parse(f"{name}:eot=20")
    attack = named.make(Radius("4/255"), proxy=Shaken())
    assert str(named) == f"{name}:eot=20"
    assert named.label == attack.label and attack.label.endswith(" (eot=20)")
    parameters = attack.parameters.values() if name == "apgd" else [attack.parameters]
    assert all(values["eot"] == 20 for values in parameters)
    usual = NamedAttack.parse(name).make(Radius("4/255"), proxy=Shaken())
    assert "eot" not in str(usual.parameters) and "eot" not in usual.label


@pytest.mark.parametrize("name", TAKE_DRAWS)
@pytest.mark.parametrize(
    ("eot", "message"),
    [
        ("0", r"The attack has 0 draws at each step \(eot\), but needs at least 1"),
        ("-2", r"The attack has -2 draws at each step \(eot\)"),
        ("1.5", "sets eot"),
        ("many", "sets eot"),
    ],
)
def test_draws_that_cannot_be_meant_are_refused(name, eot, message):
    with pytest.raises(InputError, match=message):
        NamedAttack.parse(f"{name}:eot={eot}").make(Radius("4/255"), proxy=Shaken())


@pytest.mark.parametrize("name", TAKE_DRAWS)
def test_draws_of_what_draws_nothing_are_refused_before_it_is_asked(images, name):
    asked = []

    def deterministic(images):
        asked.append(images)
        return Shaken().network(images)

    label = make_attack(name, eot=2).label.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(InputError, match=rf"^{label} averages gradients over 2 draws .*: leave eot out, or let a"):
        make_attack(name, eot=2, proxy=deterministic)(deterministic, images, LABELS, IDS)
    assert not asked


def test_a_transfer_attack_draws_of_its_proxy_alone(images):
    """The proxy is what it climbs: that the model scored is randomised is no reason for draws."""
    with pytest.raises(InputError, match="all draws would be the same"):
        make_attack("transfer", eot=2, proxy=Shaken().network)(Shaken(), images, LABELS, IDS)
    make_attack("transfer", eot=2, proxy=Shaken())(Shaken().network, images, LABELS, IDS)
    make_attack("transfer", proxy=Shaken().network)(Shaken(), images, LABELS, IDS)


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - set(TAKE_DRAWS)))
def test_attacks_without_draws_have_no_such_setting(name):
    with pytest.raises(InputError, match=f"{name} has no setting 'eot'"):
        NamedAttack.parse(f"{name}:eot=2").make(Radius("4/255"))


def _predicted(classifier: Shaken, images: torch.Tensor) -> torch.Tensor:
    return classifier.network(images).argmax(-1)
