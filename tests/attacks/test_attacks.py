import pytest
import torch
import torch.nn.functional as F
from helpers import reference_apgd, reference_pgd
from torch import nn

from hpt import ATTACKS, FGSM, PGD, InputError
from hpt.attacks import APGDCE, CW, FABT, AttackResult, Suite, get_attack
from hpt.attacks.apgd import checkpoint_steps
from hpt.attacks.base import attack_until_broken, l2_norm, random_start
from hpt.attacks.batch import Batch
from hpt.attacks.fab import project_onto_hyperplane
from hpt.attacks.losses import difference_of_logits_ratio, margin, targeted_difference_of_logits_ratio
from hpt.attacks.passes import watch_passes
from hpt.attacks.queries import float_logits
from hpt.attacks.square import square_side


FIVE = ["cat", "dog", "grey heron", "teapot", "bus"]
FEW_STEPS = {"apgd-ce": {"steps": 10}, "apgd-dlr": {"steps": 10}, "apgd-t": {"steps": 5}, "fab-t": {"steps": 5}}
FEW_STEPS |= {"square": {"queries": 60}, "cw": {"steps": 5}}
TWO_NORMS = [name for name, kind in ATTACKS.items() if "l2" in kind.norms]


def linear(images):
    """Another classifier over five classes, to be the proxy."""
    weight = torch.randn(5, images[0].numel(), generator=torch.Generator().manual_seed(0))
    return images.flatten(1) @ weight.T / 30


def make_attack(name, eps=8 / 255, **settings):
    """The attack, cut down to a few steps, with a proxy if it needs one."""
    kind = get_attack(name)
    settings = FEW_STEPS.get(name, {}) | ({"proxy": linear} if kind.needs_proxy else {}) | settings
    attack = kind(eps=eps, **settings)
    for part_name, part in getattr(attack, "attacks", {}).items():
        vars(part).update(FEW_STEPS[part_name])
    return attack


@pytest.fixture
def classifier(classifier):
    return classifier.with_classes(FIVE)


@pytest.fixture
def labels(classifier, images):
    """What is predicted, so that there is something to break, but for the last image, which is wrong."""
    predicted = classifier(images).argmax(-1)
    predicted[-1] = (predicted[-1] + 1) % 5
    return predicted


class BatchNormClassifier(nn.Sequential):
    """A convolution, BatchNorm, dropout and a linear layer: everything an attack could disturb."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        )


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
    adversarial = make_attack(name, eps)(classifier, images, labels)
    assert (adversarial - images).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert not adversarial.requires_grad


@pytest.mark.parametrize("name", TWO_NORMS)
@pytest.mark.parametrize("eps", [0.1, 3.0])
def test_stays_in_l2_ball_and_pixel_range(classifier, images, labels, name, eps):
    adversarial = make_attack(name, eps, norm="l2")(classifier, images, labels)
    length = (adversarial - images).flatten(1).norm(dim=1)
    assert length.max() <= eps * (1 + 1e-5) and length.max() > 0.5 * eps
    assert adversarial.min() >= 0 and adversarial.max() <= 1


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms])
def test_every_image_has_an_eps_of_its_own(classifier, images, labels, name, norm):
    eps = torch.tensor([1e-4, 0.02, 0.3, 0.3])
    adversarial = make_attack(name, 0.3, norm=norm)(classifier, images, labels, torch.arange(4), eps)
    change = (adversarial - images).flatten(1)
    length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (length <= eps + 1e-6).all()
    alone = make_attack(name, 0.02, norm=norm)(classifier, images[1:2], labels[1:2], torch.tensor([1]))
    same = (adversarial[1:2] - alone).abs() <= 1e-4  # steps scale with it
    assert same.float().mean() > 0.99  # some CPUs round otherwise in a batch, by which the sign of a gradient may flip


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("transfer", "fab-t")])
def test_raises_the_margin_of_what_is_right(classifier, images, labels, name):
    right = slice(0, 3)
    adversarial = make_attack(name, 0.5)(classifier, images, labels)
    before, after = (margin(classifier(x), labels)[right] for x in (images, adversarial))
    assert (after > before).all()


@pytest.mark.parametrize("name", [name for name in ATTACKS if issubclass(ATTACKS[name], Suite)] + ["apgd-t", "fab-t"])
def test_what_is_wrong_already_stays_as_it_is(classifier, images, labels, name):
    adversarial = make_attack(name, 0.1)(classifier, images, labels)
    assert torch.equal(adversarial[-1], images[-1])


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("training", [True, False])
def test_touches_nothing_but_the_image(images, name, training):
    labels = torch.tensor([0, 1, 2, 3])
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
            make_attack(name)(model, images, labels)
        assert [module.training for module in model.modules()] == modes
    assert model[1].track_running_stats
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[5].weight.grad is None
    assert torch.equal(images, original) and images.grad is None


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms])
def test_noise_depends_on_seed_and_sample_alone(classifier, images, labels, name, norm):
    ids = torch.tensor([10, 11, 12, 13])
    attack = make_attack(name, 0.1, norm=norm, seed=3)
    together = attack(classifier, images, labels, ids)
    torch.rand(3)  # the global generator doesn't matter
    order = torch.tensor([2, 0, 3, 1])
    shuffled = attack(classifier, images[order], labels[order], ids[order])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-4)
    alone = attack(classifier, images[1:2], labels[1:2], ids[1:2])
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-4)
    if name not in ("fgsm", "fab-t"):  # which have no noise
        other = make_attack(name, 0.1, norm=norm, seed=4)(classifier, images, labels, ids)
        assert not torch.allclose(other[:3], together[:3])


@pytest.mark.parametrize("name", [*ATTACKS, "transfer-to-proxy"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_autograd_modes_around_an_attack_change_nothing(classifier, images, labels, name, mode):
    ids = torch.arange(4)
    expected = make_attack(name)(classifier, images, labels, ids)
    with mode():
        fresh = classifier.with_classes(FIVE)
        fresh(images)
        inside = make_attack(name)(fresh, images.clone(), labels.clone(), ids.clone())
        given = images.clone(), labels.clone(), ids.clone()
    outside = make_attack(name)(fresh, *given)
    assert torch.equal(inside, expected) and torch.equal(outside, expected)
    assert not inside.is_inference() and not inside.requires_grad


def test_random_start_without_ids_follows_torch(classifier, images, labels):
    attack = PGD(eps=8 / 255, steps=1)
    first, second = attack(classifier, images, labels), attack(classifier, images, labels)
    assert not torch.equal(first, second)


def test_cw_is_pgd_on_the_margin(classifier, images, labels):
    def loss(logits, labels):
        others = logits.masked_fill(F.one_hot(labels, 5).bool(), -torch.inf)
        return others.amax(1) - logits[range(len(labels)), labels]

    settings = {"eps": 8 / 255, "steps": 4, "random_start": False}
    expected = PGD(**settings, loss=loss)(classifier, images, labels)
    torch.testing.assert_close(CW(**settings)(classifier, images, labels), expected, rtol=0, atol=1e-6)


def test_adaptive_and_transfer_are_pgd_through_the_proxy(classifier, images, labels):
    def step(*models):
        x = images.clone().requires_grad_()
        gradient = torch.autograd.grad(sum(F.cross_entropy(model(x), labels) for model in models), x)[0]
        return (images + 8 / 255 * gradient.sign()).clamp(0, 1)

    settings = {"steps": 1, "step_size": 8 / 255, "random_start": False}
    for name, models in (("adaptive", (classifier, linear)), ("transfer", (linear,))):
        adversarial = make_attack(name, **settings)(classifier, images, labels)
        torch.testing.assert_close(adversarial, step(*models), rtol=0, atol=1e-7)


def test_pgd_in_l2_equals_reference(classifier, images, labels):
    x = images.clone()
    for _ in range(3):
        x.requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(classifier(x), labels, reduction="sum"), x)[0]
        delta = x.detach() + 0.2 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None] - images
        delta *= (0.5 / delta.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        x = (images + delta).clamp(0, 1)
    adversarial = PGD(eps=0.5, steps=3, step_size=0.2, random_start=False, norm="l2")(classifier, images, labels)
    torch.testing.assert_close(adversarial, x, rtol=0, atol=1e-6)


def test_restarts_are_the_worst_case(classifier, images, labels):
    ids, settings = torch.arange(4), {"eps": 0.01, "steps": 2}
    result = PGD(**settings, restarts=4).perturb(classifier, images, labels, ids)
    starts = [random_start(Batch(images, labels, ids, torch.full((4, 1, 1, 1), 0.01)), "linf", 0, r) for r in range(4)]
    assert len({start.sum().item() for start in starts}) == 4
    single = PGD(**settings)(classifier, images, labels, ids)
    broken = classifier(result.images).argmax(-1) != labels
    assert (broken | (classifier(single).argmax(-1) == labels)).all()
    assert torch.equal(broken[:3], result.broken_by[:3] >= 0)


def test_each_restart_starts_elsewhere(classifier, images, labels, monkeypatch):
    restarts = []

    def start(batch, norm, seed, restart):
        restarts.append(restart)
        return batch.images

    monkeypatch.setattr("hpt.attacks.gradient.random_start", start)
    PGD(eps=1e-5, steps=1, restarts=3)(classifier, images, labels)
    assert restarts == [0, 1, 2]


def test_attempts_go_on_with_what_is_still_right():
    """Images of one pixel, classified by whether it is above a half; each attempt breaks one of them."""
    seen = []

    def attempt(breaks):
        def run(samples, left):
            seen.append(left.tolist())
            images = torch.where((left == breaks)[:, None, None, None], 1.0, samples.images + 0.01)
            return AttackResult(images, left == breaks)

        return run

    images, labels = torch.full((4, 1, 1, 1), 0.2), torch.tensor([0, 0, 0, 1])  # the last is wrong from the start
    batch = Batch(images, labels, None, torch.ones(4, 1, 1, 1))
    classifier = float_logits(lambda x: torch.cat([0.5 - x, x - 0.5], 1).flatten(1))
    attempts = [attempt(1), attempt(0), attempt(3)]
    result = attack_until_broken(classifier, batch, attempts, lambda samples, step: [None])
    assert seen == [[0, 1, 2], [0, 2], [2]]
    assert result.broken_by.tolist() == [1, 0, -1, -1]
    assert result.zero_gradient.tolist() == [True, True, False, False]
    assert result.images.flatten().tolist() == pytest.approx([1, 1, 0.21, 0.2])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
@pytest.mark.parametrize("steps", [5, 23, 60])
def test_apgd_equals_its_algorithm(norm, eps, steps):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    net[1].weight.data.mul_(4)
    images, labels = torch.rand(6, 3, 4, 4).double(), torch.arange(6) % 5

    class Unbreakable(APGDCE):
        def _evaluate(self, classifier, batch, point, step):
            loss, gradient, right = super()._evaluate(classifier, batch, point, step)
            return loss, gradient, torch.ones_like(right)

    adversarial = Unbreakable(eps=eps, steps=steps, norm=norm)(net, images, labels, torch.arange(6))
    batch = Batch(images, labels, torch.arange(6), torch.full((6, 1, 1, 1), eps).double())
    for x, y, start, x_adv in zip(images, labels, random_start(batch, norm, 0), adversarial, strict=True):
        best = reference_apgd(lambda z, y=y: F.cross_entropy(net(z[None]), y[None]), x, start, eps, steps, norm)
        torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-9)


def test_square_colours_every_channel_by_itself():
    calls = []

    def classifier(x):  # every query is an improvement
        calls.append(1)
        return torch.tensor([[10.0, len(calls) / 1000]]).expand(len(x), 2)

    images = torch.full((20, 3, 16, 16), 0.5)
    change = (
        make_attack("square", 0.1, queries=2)(classifier, images, torch.zeros(20).long(), torch.arange(20)) - images
    )
    centre = change[:, :, 8, 8].sign()
    assert centre.abs().min() == 1 and len({tuple(colour) for colour in centre.tolist()}) > 4


def test_square_goes_on_at_ties():
    calls = []

    def classifier(x):
        calls.append(len(x))
        return torch.zeros(len(x), 2)

    make_attack("square", 0.1, queries=7)(classifier, torch.full((2, 3, 8, 8), 0.5), torch.zeros(2).long())
    assert calls == [2] * 7


def test_proxy_logits_are_taken_to_float32(images):
    attack = get_attack("transfer")(eps=0.1, proxy=lambda x: linear(x).bfloat16())
    assert attack.proxy(images).dtype == torch.float32


def test_noise_fills_the_l2_ball():
    images = torch.full((500, 1, 1, 2), 0.5)
    batch = Batch(images, None, torch.arange(500), torch.full((500, 1, 1, 1), 0.4))
    length = l2_norm(random_start(batch, "l2", 0) - images).flatten() / 0.4
    assert length.max() <= 1 + 1e-6
    assert abs((length < 0.5).float().mean() - 0.25) < 0.06  # a quarter of a disc's area


def test_dlr_losses_equal_their_equations():
    logits, labels = torch.randn(6, 7), torch.randint(7, (6,))
    targets = (labels + 2) % 7
    for row, (z, y, t) in enumerate(zip(logits.tolist(), labels.tolist(), targets.tolist(), strict=True)):
        ordered = sorted(z, reverse=True)
        best_other = max(value for place, value in enumerate(z) if place != y)
        dlr = -(z[y] - best_other) / (ordered[0] - ordered[2])
        targeted = -(z[y] - z[t]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)
        assert difference_of_logits_ratio(logits, labels)[row].item() == pytest.approx(dlr, rel=1e-4)
        value = targeted_difference_of_logits_ratio(logits, labels, targets)[row].item()
        assert value == pytest.approx(targeted, rel=1e-4)


def test_apgd_checkpoints_are_the_papers():
    assert checkpoint_steps(100) == [22, 41, 57, 70, 80, 87, 93, 99, 105]


@pytest.mark.parametrize("seed", range(5))
def test_hyperplane_projection_is_exact(seed):
    """Against the linear programme that it solves: least l_inf change onto the hyperplane within [0, 1]."""
    from scipy.optimize import linprog

    random = torch.Generator().manual_seed(seed)
    points, gradient = torch.rand(3, 6, generator=random), torch.randn(3, 6, generator=random)
    gap = torch.randn(3, generator=random)
    change = project_onto_hyperplane(points, gradient, gap)
    assert ((points + change >= -1e-6) & (points + change <= 1 + 1e-6)).all()
    for x, g, f, d in zip(points, gradient, gap, change, strict=True):
        bounds = [(-value, 1 - value) for value in x.tolist()] + [(0, None)]
        limits = torch.cat([torch.cat([sign * torch.eye(6), -torch.ones(6, 1)], 1) for sign in (1, -1)])
        equal = torch.cat([g, torch.zeros(1)])[None]
        solved = linprog([0] * 6 + [1], limits, torch.zeros(12), equal, [-f.item()], bounds)
        if solved.success:
            assert (g @ d + f).abs() < 1e-5
            assert d.abs().max().item() == pytest.approx(solved.fun, abs=1e-5)
        else:  # out of reach: as far as every pixel can go
            assert torch.equal(d != 0, g != 0)
            assert ((g * -f.sign() * (d + x)) >= (g * -f.sign()).clamp(max=0) - 1e-6).all()


def test_fab_reaches_the_nearest_boundary_of_a_linear_classifier():
    """Its distance in l_inf is known: min over the targets of |f| / ||g||_1, away from the edges of [0, 1]."""
    random = torch.Generator().manual_seed(0)
    weight, images = torch.randn(5, 12, generator=random), torch.full((1, 3, 2, 2), 0.5)
    logits = weight @ images.flatten()
    label = logits.argmax()
    others = [other for other in range(5) if other != label]
    distance = min((logits[label] - logits[o]) / (weight[label] - weight[o]).abs().sum() for o in others).item()
    assert distance < 0.4
    for eps, reached in ((1.1 * distance, True), (0.95 * distance, False)):
        adversarial = make_attack("fab-t", eps)(lambda x: x.flatten(1) @ weight.T, images, label[None])
        assert ((weight @ adversarial.flatten()).argmax() != label) == reached


def test_square_sizes_follow_the_schedule():
    sides = [square_side(query, 10_000, 0.8, 224, 224) for query in (0, 10, 11, 51, 201, 501, 1001, 9999)]
    assert sides == [200, 200, 142, 100, 71, 50, 35, 9]
    assert square_side(51, 10_000, 0.8, 224, 224) == square_side(26, 5_000, 0.8, 224, 224)


@pytest.mark.parametrize(
    ("name", "classes", "running", "left_out"),
    [
        ("apgd", 2, ["apgd-ce"], ["apgd-dlr"]),
        ("apgd", 3, ["apgd-ce", "apgd-dlr"], []),
        ("autoattack", 2, ["apgd-ce", "fab-t", "square"], ["apgd-t"]),
        ("autoattack", 3, ["apgd-ce", "fab-t", "square"], ["apgd-t"]),
        ("autoattack", 4, ["apgd-ce", "apgd-t", "fab-t", "square"], []),
    ],
)
def test_suites_leave_out_what_is_undefined(classifier, images, name, classes, running, left_out):
    classifier = classifier.with_classes(FIVE[:classes])
    attack = make_attack(name, 0.2)
    result = attack.perturb(classifier, images, classifier(images).argmax(-1))
    assert (attack.running(classes), attack.left_out(classes)) == (running, left_out)
    assert result.broken_by.max() < len(running)


@pytest.mark.parametrize(("name", "least"), [("apgd-dlr", 3), ("apgd-t", 4)])
def test_undefined_losses_say_so(classifier, images, name, least):
    classifier = classifier.with_classes(FIVE[: least - 1])
    with pytest.raises(InputError, match=f"needs at least {least} classes, and there are {least - 1}"):
        make_attack(name)(classifier, images, classifier(images).argmax(-1))


def test_a_suite_hands_on_what_is_still_right(classifier, images, labels):
    seen = []

    class Spy(type(get_attack("square")(eps=0.1))):
        def _run(self, classifier, batch):
            seen.append(batch.sample_ids.tolist())
            return super()._run(classifier, batch)

    attack = make_attack("autoattack", 0.02)
    attack.attacks = {"square": Spy(eps=1e-6, queries=2), "apgd-ce": Spy(eps=1e-6, queries=2)}
    attack(classifier, images, labels, torch.tensor([5, 6, 7, 8]))
    assert seen == [[5, 6, 7], [5, 6, 7]]  # the last is wrong from the start


@pytest.mark.parametrize("name", [*ATTACKS, "transfer-to-proxy", "pgd with restarts"])
@pytest.mark.parametrize("classes", [4, 5])
def test_most_passes_are_those_on_a_model_that_never_gives_in(images, name, classes):
    passes = []

    def steadfast(images):  # with gradients, and label 0 whatever happens
        logits = linear(images)[:, :classes] / 1000
        return logits + 1000 * torch.eye(classes)[0]

    name, _, restarts = name.partition(" with ")
    settings = {"proxy": steadfast} if get_attack(name).needs_proxy else {}
    attack = make_attack(name, 0.1, **settings, **({"restarts": 3} if restarts else {}))
    for part in (attack, *getattr(attack, "attacks", {}).values()):
        if hasattr(part, "num_targets"):
            part.num_targets = 4
    with watch_passes(passes.append):
        attack(steadfast, images[:1], torch.tensor([0]))
    assert sum(passes) == attack.most_passes(classes)


def test_autoattack_is_its_papers_suite_and_nothing_less():
    expected = {
        "apgd-ce": {"steps": 100},
        "apgd-t": {"steps": 100, "num_targets": 9},
        "fab-t": {"steps": 100, "num_targets": 9},
        "square": {"queries": 5000},
    }
    parameters = get_attack("autoattack")(eps=0.1).parameters
    assert parameters == expected and list(parameters) == list(expected)


FLAT = ["pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "apgd", "autoattack", "adaptive"]


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_every_attack_counts_gradients_that_say_nothing(images, name, value):
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])

    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # of images whose first pixel is bright, the gradient is `value`
            ctx.save_for_backward(x[:, :1, :1, :1] > 0.5)
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return torch.where(*ctx.saved_tensors, value, gradient)

    def classifier(x):
        return linear(Flat.apply(x)) + 20 * torch.eye(5)[0]

    attack = make_attack(name, 0.01) if name != "adaptive" else get_attack(name)(eps=0.01, steps=2, proxy=classifier)
    for fab in (attack, getattr(attack, "attacks", {}).get("fab-t")):
        if isinstance(fab, FABT):
            fab.steps = 1  # later steps may change the first pixel
    result = attack.perturb(classifier, images, torch.zeros(4, dtype=torch.long))
    assert result.zero_gradient.tolist() == [False, True, False, True]


def test_counts_zero_gradients(images):
    weight = torch.tensor([[1.0, 2, 3]]) * torch.tensor([[1.0], [0], [1], [0]])

    def classifier(x):  # the second and fourth image don't matter
        return x.mean((1, 2, 3))[:, None] * weight

    labels = torch.tensor([0, 1, 2, 0])
    result = PGD(eps=8 / 255, steps=2).perturb(classifier, images, labels)
    assert result.zero_gradient.tolist() == [False, True, False, True]


def test_logits_in_bfloat16_are_compared_in_float32(images):
    seen = []

    def loss(logits, labels):
        seen.append(logits.dtype)
        return F.cross_entropy(logits, labels, reduction="none")

    labels = torch.tensor([0, 1, 2, 0])
    PGD(eps=8 / 255, steps=1, loss=loss)(lambda x: x.mean((2, 3)).bfloat16(), images, labels)
    assert seen == [torch.float32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "must be above 0 and finite, such as 1/255"),
        ({"eps": -1}, "must be above 0"),
        ({"eps": 8}, "did you mean 8/255?"),
        ({"eps": 1}, "did you mean 1/255?"),
        ({"eps": 0.1, "step_size": 0.3}, r"at most 2 \* eps = 0.2"),
        ({"eps": 0.1, "step_size": 0}, "must be above 0"),
        ({"eps": "1/255", "step_size": "a quarter"}, "step size is set to 'a quarter', which isn't a number"),
        ({"eps": 0.1, "steps": 0}, "at least 1"),
        ({"eps": 0.1, "restarts": 0}, "at least 1"),
        ({"eps": 0.1, "restarts": 2, "random_start": False}, "all the same run"),
        ({"eps": 0.1, "norm": "l7"}, "known: linf, l2"),
    ],
)
def test_refuses_what_cannot_be_meant(settings, message):
    with pytest.raises(InputError, match=message):
        PGD(**settings)


@pytest.mark.parametrize("name", ATTACKS)
def test_eps_may_be_a_text(classifier, images, labels, name):
    attacks = [make_attack(name, eps) for eps in ("8/255", 8 / 255)]
    from_text, from_number = (attack(classifier, images, labels, range(len(images))) for attack in attacks)
    assert torch.equal(from_text, from_number)


def test_step_size_may_be_a_text():
    assert PGD(eps="8/255", step_size="2/255").step_size == PGD(eps=8 / 255, step_size=2 / 255).step_size


def test_an_unknown_attack_lists_all_that_are_known_and_suggests_the_closest():
    names = ", ".join([*ATTACKS, "transfer-to-proxy"])
    with pytest.raises(InputError, match=f"^Unknown attack 'pdg'; known: {names}. Did you mean pgd\\?$"):
        get_attack("pdg")
    with pytest.raises(InputError, match="transfer-to-proxy.$"):  # nothing is close
        get_attack("unheard of")


def test_norms_that_an_attack_lacks_are_refused():
    with pytest.raises(InputError, match="Square isn't defined in l2; known: linf"):
        get_attack("square")(eps=0.1, norm="l2")
