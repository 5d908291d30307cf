"""The protocol check on models trained on digits: each mistake is found, and sound models are never called wrong."""

import copy
import json
import re
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import make_benchmark, make_clip, refusal_of, run_recipe
from PIL import Image
from torch import nn

from hpt import ATTACKS, FGSM, PGD, InputError, ZeroShotClassifier, load_benchmark
from hpt.attacks import Suite
from hpt.attacks.losses import margin
from hpt.classifiers import draw_uniform
from hpt.data.benchmark import Benchmark
from hpt.data.classes import wordnet_names
from hpt.data.geometry import ImageTransform
from hpt.data.images import collate, to_unit_range
from hpt.evaluation.functions import FunctionSubject
from hpt.evaluation.protocol.attack_checks import ForeignAttack, check_attack, check_number
from hpt.evaluation.protocol.check import check_protocol
from hpt.evaluation.protocol.data_checks import check_class_order, check_layout
from hpt.evaluation.protocol.findings import better_by_chance, sees_something, skill
from hpt.evaluation.protocol.masking_checks import check_robustness
from hpt.evaluation.protocol.model_checks import (
    STATISTICS,
    check_batch_size,
    check_determinism,
    check_normalisation,
    check_precision,
)
from hpt.evaluation.protocol.probe import Probe
from hpt.models.loading import save_finished
from hpt.radius import Radius


EPS = Radius("16/255")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS["CLIP's"])
ONE_FURTHER = [*range(1, 10), 0]


def normalise(images):
    return (images - MEAN.to(images)) / STD.to(images)


class Network(nn.Module):
    """A small convolutional network over [0, 1] pixels, which it normalises as CLIP does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, 16, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(16 * 8 * 8, 10),
        )

    def forward(self, images):
        return self.layers(normalise(images).to(self.layers[0].weight.dtype))


def train(attack: PGD | None = None, epochs: int = 8) -> Network:
    """A network trained on the digits, on adversarial images if an attack is given."""
    torch.manual_seed(0)
    model, digits = Network(), load_benchmark("digits", "train")
    batch = collate(digits.__getitems__(list(range(len(digits)))))
    images, labels = to_unit_range(batch["pixel_values"]), batch["labels"]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            shown = images[rows]
            if attack is not None:
                shown = attack(model.eval(), shown, labels[rows])
            loss = F.cross_entropy(model.train()(shown), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vanilla():
    return train()


@pytest.fixture(scope="module")
def robust():
    return train(PGD(eps=32 / 255, steps=2, step_size=16 / 255), epochs=4)


@pytest.fixture(scope="module")
def digits():
    return load_benchmark("digits")


@pytest.fixture
def probe_of(digits):
    """What makes a probe of a classifier over the digits."""
    return lambda classifier, number=128: Probe(classifier, digits, number, 64, 0, None)


def verdicts(findings):
    return {finding.check: finding.verdict for finding in findings}


# Sound models and attacks


@pytest.mark.parametrize("name", ["vanilla", "robust"])
def test_nothing_of_a_sound_model_is_wrong(name, digits, request):
    model = request.getfixturevalue(name)
    state = {key: weight.clone() for key, weight in model.state_dict().items()}
    findings = check_protocol(model, digits, "pgd", EPS, name=name)
    expected = dict.fromkeys(("determinism", "batch size", "normalisation", "precision", "layout"), "fine")
    expected |= {"class order": "fine", "vanilla sanity": "can't tell", "gradient masking": "fine", "eps": "fine"}
    expected |= {f"{what} of PGD-10": "fine" for what in ("eps units", "ball", "batches")}
    assert verdicts(findings) == expected
    assert {(finding.model, finding.benchmark) for finding in findings} == {(name, "digits")}
    assert not model.training and all(torch.equal(weight, state[key]) for key, weight in model.state_dict().items())


def test_a_vanilla_model_that_falls_is_fine(vanilla, probe_of):
    sanity, _ = check_robustness(probe_of(vanilla), Radius("48/255"))
    assert sanity.verdict == "fine" and "as it does of an undefended model" in sanity.message


def test_a_dual_encoder_that_guesses_is_not_judged():
    findings = check_protocol(ZeroShotClassifier(*make_clip(0)).eval(), make_benchmark(40))
    undecided = ("normalisation", "class order", "vanilla sanity", "gradient masking")
    assert "wrong" not in verdicts(findings).values()
    assert {name for name, verdict in verdicts(findings).items() if verdict == "can't tell"} == {*undecided}


def test_sixteen_bits_that_change_nothing_are_fine(vanilla, probe_of):
    probe = probe_of(copy.deepcopy(vanilla).bfloat16())
    findings = [check_determinism(probe), check_batch_size(probe), check_precision(probe, EPS)]
    assert {*verdicts(findings).values()} == {"fine"} and "in bfloat16, PGD-10 at 16/255" in findings[-1].message


FEW = {"apgd-t": {"steps": 3}, "fab-t": {"steps": 3}, "square": {"queries": 50}, "cw": {"steps": 5}}
FEW |= {"apgd-ce": {"steps": 10}, "apgd-dlr": {"steps": 10}}


ALONE = {name: kind for name, kind in ATTACKS.items() if not issubclass(kind, Suite)}  # and not several in turn


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, kind in ALONE.items() for norm in kind.norms])
def test_no_attack_of_hpt_is_wrong(name, norm, vanilla, robust, probe_of):
    radius = EPS if norm == "linf" else Radius(1, "l2")
    proxy = {"proxy": robust} if ATTACKS[name].needs_proxy else {}
    attack = ATTACKS[name](eps=radius, norm=norm, **FEW.get(name, {}), **proxy)
    units, ball, batches = check_attack(probe_of(vanilla), attack, radius)
    if norm == "linf" and name != "fab-t":  # which seeks small changes; in l_2, [0, 1] shortens them
        assert units.verdict == "fine"
    assert units.verdict != "wrong" and ball.verdict == batches.verdict == "fine"


# Mistakes of models


class Wrapper(nn.Module):
    """A model whose images and logits are changed."""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model, self.before, self.after = model, before or nn.Identity(), after or nn.Identity()

    def forward(self, images):
        return self.after(self.model(self.before(images)))


@pytest.mark.parametrize("name", ["vanilla", "robust"])
@pytest.mark.parametrize(
    ("before", "line"),
    [
        (normalise, "it normalises twice"),
        (lambda images: 2 * images - 1, r"SigLIP's \(0.5\) normalisation undone beforehand, .*: it normalises twice"),
        (lambda images: images * STD + MEAN, "its network wants normalised pixels"),
        (lambda images: images / 255, "it wants pixels of 0 to 255"),
    ],
    ids=["twice", "twice, by 0.5", "not at all", "0 to 255"],
)
def test_a_wrong_normalisation_is_found(before, line, name, probe_of, request):
    found = check_normalisation(probe_of(Wrapper(request.getfixturevalue(name), before)))
    assert found.verdict == "wrong" and found.published
    assert re.search(line, found.message)


def test_blue_first_is_found_where_colours_matter():
    """By a model that names the brightest channel."""
    pixels = np.zeros((60, 8, 8, 3), np.uint8)
    labels = [row % 3 for row in range(60)]
    for row, label in enumerate(labels):
        pixels[row, :, :, label] = 100 + row
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["r", "g", "b"])})
    dataset = datasets.Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)
    colours = Benchmark("colours", "test", dataset, ["r", "g", "b"], "{}", ImageTransform())
    found = check_normalisation(Probe(lambda images: images.flip(1).mean((2, 3)), colours, 60, 16, 0, None))
    assert found.verdict == "wrong" and "red and blue exchanged" in found.message
    assert check_normalisation(Probe(lambda images: images.mean((2, 3)), colours, 60, 16, 0, None)).verdict == "fine"


def test_where_contrast_helps_any_model_it_is_a_question(robust, vanilla, digits, probe_of):
    """In fog, and in a model's own noise, sound models do better on pixels that normalisation stretches."""
    fog = [Image.fromarray(96 + np.asarray(image.convert("RGB")) // 4) for image in digits.dataset["image"]]
    features = datasets.Features({"image": datasets.Image(), "label": digits.dataset.features["label"]})
    foggy = datasets.Dataset.from_dict({"image": fog, "label": digits.dataset["label"]}, features=features)
    found = check_normalisation(Probe(robust, replace(digits, dataset=foggy), 128, 64, 0, None))
    assert found.verdict == "can't tell" and "unless contrast is what helps: these images have little" in found.message
    found = check_normalisation(probe_of(Noisy(vanilla, 2)))
    assert found.verdict == "can't tell" and "it draws noise" in found.message


@pytest.mark.parametrize("kind", ["BatchNorm in training mode", "logits of the whole batch", "no batch of one"])
def test_a_classifier_that_depends_on_the_batch_is_found(kind, vanilla, probe_of):
    model = {
        "BatchNorm in training mode": copy.deepcopy(vanilla).train(),
        "logits of the whole batch": lambda images: vanilla(images) - 0.5 * vanilla(images).mean(0),
        "no batch of one": nn.Sequential(vanilla, nn.BatchNorm1d(10).train()),
    }[kind]
    found = check_batch_size(probe_of(model))
    assert found.verdict == "wrong" and "TRADES" in found.published
    assert ("fails on a batch of one" if kind == "no batch of one" else "of their spread") in found.message


@pytest.mark.parametrize(("dtype", "verdict"), [(torch.float32, "wrong"), (torch.bfloat16, "can't tell")])
def test_rounding_in_16_bits_is_not_taken_for_the_batch(dtype, verdict, vanilla, probe_of):
    """A fifth of the logits' spread, by the size of the batch."""
    model = copy.deepcopy(vanilla).to(dtype)
    spread = probe_of(model).logits.std(1).mean()
    found = check_batch_size(
        probe_of(lambda images: model(images) + 0.2 * spread * (len(images) < 30) * torch.eye(10)[0])
    )
    assert found.verdict == verdict


def test_rounding_of_large_logits_is_not_taken_for_the_batch(vanilla, probe_of):
    """Of bfloat16 near 25, where it has steps of 0.125: the classes lie within a few, as of a collapsed model."""
    spread = probe_of(vanilla).logits.std(1).mean()

    def collapsed(images):
        logits = 25 + 0.2 * vanilla(images) / spread
        return (logits + 0.125 * (len(images) < 30) * torch.eye(10)[0]).bfloat16()

    assert check_batch_size(probe_of(collapsed)).verdict == "fine"


def test_statistics_of_batch_norm_in_training_mode_stay(vanilla, digits):
    model = copy.deepcopy(vanilla).train()
    check_protocol(model, digits, ForeignAttack(signed_gradient, eps=EPS), max_samples=32)
    assert model.training and torch.equal(model.layers[1].running_mean, vanilla.layers[1].running_mean)


@pytest.mark.parametrize("kind", ["dropout", "state"])
def test_a_classifier_that_does_not_repeat_itself_is_found(kind, vanilla, probe_of):
    calls = []

    def adapting(images):
        calls.append(images)
        return vanilla(images) * (1 + len(calls))

    model = nn.Sequential(copy.deepcopy(vanilla), nn.Dropout(0.3)).train() if kind == "dropout" else adapting
    probe = probe_of(model)
    found = check_determinism(probe)
    assert found.verdict == "wrong" and "1802.00420" in found.published
    assert check_batch_size(probe).verdict == "can't tell"


class Noisy:
    """A model on images with noise, which it takes from seeds."""

    randomised = True

    def __init__(self, model, noise=0.2):
        self.model, self.noise = model, noise

    def __call__(self, images, seeds):
        return self.model(images + self.noise * (draw_uniform(seeds, *images.shape[1:]) - 0.5))


def test_a_classifier_that_takes_its_draws_from_seeds_is_fine(vanilla, probe_of):
    probe = probe_of(Noisy(vanilla))
    assert check_determinism(probe).verdict == check_batch_size(probe).verdict == "fine"
    for attack in (PGD(eps=EPS, eot=2), ForeignAttack(signed_gradient, eps=EPS)):
        assert {*verdicts(check_attack(probe, attack, EPS)).values()} == {"fine"}


class Saturating(nn.Module):
    """Logits in 16 bits that are so large that the softmax saturates."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, images):
        return 4 * self.model(images)


def test_gradients_that_underflow_in_16_bits_are_found(vanilla, probe_of):
    found = check_precision(probe_of(Saturating(vanilla)), EPS)
    assert found.verdict == "wrong" and "float16" in found.message


def test_autocast_inside_is_said(vanilla, probe_of):
    def in_16_bits(images):
        with torch.autocast("cpu", torch.bfloat16):
            return vanilla(images)

    found = check_precision(probe_of(in_16_bits), EPS)
    assert found.verdict == "can't tell" and "it computes in bfloat16" in found.message


def _rounded(values):
    return values.round() + 0 * values


@pytest.mark.parametrize(
    ("mask", "clue"),
    [
        ({"after": _rounded}, "gradient of exactly zero"),
        ({"after": lambda logits: 10_000 * logits}, "on the margin"),
        ({"after": lambda logits: 30 * logits}, "on the margin"),
        ({"before": lambda images: _rounded(8 * images) / 8}, "Square, without gradients, breaks"),
        ({"after": lambda logits: logits.detach()}, "no attack can follow its gradients"),
    ],
    ids=["rounded logits", "logits x 10,000", "logits x 30", "rounded pixels", "detached"],
)
def test_masked_gradients_are_found(mask, clue, vanilla, probe_of):
    sanity, masking = check_robustness(probe_of(Wrapper(vanilla, **mask), 64), EPS)
    assert masking.verdict == "wrong" and clue in masking.message and "1802.00420" in masking.published
    assert sanity.verdict == "can't tell"


def test_a_robust_model_whose_softmax_saturates_is_a_question(robust, probe_of):
    """Gradients of cross-entropy are zero, those of the margin break no more: nothing is overstated at this eps."""
    _, masking = check_robustness(probe_of(lambda images: 30 * robust(images)), EPS)
    assert masking.verdict == "can't tell" and "attack by CW too" in masking.message


# Mistakes of attacks


def gradient_of(classifier, images, labels):
    images = images.requires_grad_()
    return torch.autograd.grad(F.cross_entropy(classifier(images), labels, reduction="sum"), images)[0].sign()


def signed_gradient(classifier, images, labels, eps=float(EPS)):
    """FGSM, as anyone would write it."""
    return (images + eps * gradient_of(classifier, images, labels)).clamp(0, 1).detach()


def in_channels(factor):
    """FGSM whose eps is multiplied by a factor in each channel."""
    return lambda classifier, images, labels: signed_gradient(classifier, images, labels, float(EPS) * factor)


def from_noise(classifier, images, labels):
    """A full step from a random point of the ball, which nothing projects."""
    noise = (torch.rand_like(images) * 2 - 1) * EPS
    return signed_gradient(classifier, (images + noise).clamp(0, 1), labels)


def truncated(classifier, images, labels):
    """8-bit images, of pixels that are rounded down where they should be rounded."""
    return ((signed_gradient(classifier, images, labels) * 255 - 0.5).clamp(min=0)).floor() / 255


ATTACKS_WITH_MISTAKES = {
    "eps / 256": (PGD(eps=16 / 256), "units", "16/256, for eps is divided by 256 instead of 255"),
    "a function, eps / 256": (in_channels(255 / 256), "units", "divided by 256 instead of 255"),
    "eps / 255 twice": (in_channels(1 / 255), "units", "divided by 255 twice"),
    "eps of 0 to 255": (in_channels(255.0), "units", "in units of pixels of 0 to 255"),
    "in normalised pixels": (in_channels(STD), "units", "in each channel by CLIP's standard deviation"),
    "divided by the deviation": (in_channels(1 / STD), "units", "divided by CLIP's standard deviations"),
    "a random start unprojected": (from_noise, "ball", "beyond 16/255"),
    "truncated": (truncated, "ball", "8-bit already, and have to be rounded, not truncated"),
    "not clipped": (lambda c, x, y: x + EPS * gradient_of(c, x, y), "ball", "outside of [0, 1]"),
    "not finite": (lambda c, x, y: x / 0, "ball", "aren't finite"),
}


@pytest.mark.parametrize("mistake", ATTACKS_WITH_MISTAKES)
def test_a_mistake_of_an_attack_is_found(mistake, vanilla, probe_of):
    attack, where, line = ATTACKS_WITH_MISTAKES[mistake]
    attack = attack if isinstance(attack, PGD) else ForeignAttack(attack, eps=EPS)
    found = {found.check.partition(" of ")[0]: found for found in check_attack(probe_of(vanilla), attack, EPS)}
    problem = found["eps units" if where == "units" else where]
    assert problem.verdict == "wrong" and line in problem.message


def test_an_attack_written_by_anyone_is_fine(vanilla, digits):
    findings = check_protocol(vanilla, digits, signed_gradient, EPS, max_samples=64)
    assert [finding.check for finding in findings[-3:]] == [
        f"{what} of signed_gradient" for what in ("eps units", "ball", "batches")
    ]
    assert "wrong" not in verdicts(findings).values()


def test_a_mean_loss_that_underflows_in_large_batches_is_found(vanilla, probe_of):
    """In float16, where the gradient of the mean over 32 images is zero, and over 4 images isn't."""
    probe, eps = probe_of(vanilla), 96 / 255

    def mean_margin(classifier, images, labels):
        return torch.autograd.grad(margin(classifier(images), labels).mean(), images)[0]

    largest = 32 * mean_margin(vanilla, probe.images[:32].clone().requires_grad_(), probe.labels[:32]).abs().max()
    scale = 32 * 2.0**-25 / largest  # half of the least number of float16 is rounded to zero

    def underflowing(classifier, images, labels):
        gradient = (scale * mean_margin(classifier, images.requires_grad_(), labels)).half()
        return (images + eps * gradient.sign()).clamp(0, 1).detach()

    *_, batches = check_attack(probe, ForeignAttack(underflowing, eps=eps), Radius(eps))
    assert batches.verdict == "wrong" and "averaged over the batch underflows" in batches.message


@pytest.mark.parametrize(
    ("eps", "verdict"),
    [("4/255", "fine"), ("4/256", "wrong"), ("1/256", "wrong"), (0.5, "fine"), (0.03, "fine"), (0.031, "fine")],
)
def test_an_eps_of_256ths_is_found(eps, verdict):
    assert check_number(Radius(eps)).verdict == verdict


def test_what_an_attack_gives_is_looked_at(vanilla, probe_of):
    found = check_attack(probe_of(vanilla), ForeignAttack(lambda c, x, y: x[:1], eps=EPS, norm="linf"), EPS)
    assert (
        verdicts(found) == {"eps units of <lambda>": "can't tell"} and "must give images (32, 3, " in found[0].message
    )
    found = check_attack(probe_of(vanilla), ForeignAttack(lambda c, x, y: x, eps=EPS), EPS)
    assert "leaves all images as they are" in found[0].message


# Mistakes of a benchmark


@pytest.mark.parametrize("number", [2, 5, 10])
def test_of_very_few_images_nothing_is_wrong(number, vanilla, digits):
    findings = check_protocol(lambda images: vanilla(images)[:, ONE_FURTHER], digits, "fgsm", max_samples=number)
    assert "wrong" not in verdicts(findings).values()


def two_classes(digits, numbers):
    """So many images of two digits each, under names of their own."""
    labels = np.array(digits.dataset["label"])
    rows = np.concatenate([np.flatnonzero(labels == label)[:number] for label, number in enumerate(numbers)])
    return replace(digits.rows(rows), class_names=["nil", "one"])


@pytest.mark.parametrize("numbers", [(10, 37), (36, 36)], ids=["imbalanced", "balanced"])
@pytest.mark.parametrize(
    "guess",
    [
        lambda logits: torch.eye(2)[0] + 0 * logits,
        lambda logits: torch.eye(2)[0] + 0.01 * logits,
        lambda logits: logits.flip(1),
    ],
    ids=["one class", "nearly one class", "exchanged"],
)
def test_of_two_classes_no_guess_and_no_exchange_is_wrong(guess, numbers, vanilla, digits):
    """Any model may call most images by one name, or confuse two: that is no mistake of who measures it."""
    probe = Probe(lambda images: guess(vanilla(images)[:, :2]), two_classes(digits, numbers), 128, 64, 0, None)
    assert "wrong" not in verdicts([check_class_order(probe), check_normalisation(probe)]).values()


def test_shuffled_classes_are_found(vanilla, probe_of):
    found = check_class_order(probe_of(lambda images: vanilla(images)[:, ONE_FURTHER]))
    assert found.verdict == "wrong" and "images of 'zero' are called 'nine'" in found.message
    assert "TPT" in found.published


def test_two_exchanged_names_are_a_question(vanilla, probe_of):
    found = check_class_order(probe_of(lambda images: vanilla(images)[:, [1, 0, *range(2, 10)]]))
    assert found.verdict == "can't tell" and "'zero' are called 'one', and 13 of 13 the reverse" in found.message


@pytest.fixture
def colours():
    """Forty classes of one colour each, with noise, and what names the nearest colour."""
    generator = np.random.default_rng(0)
    means = generator.integers(0, 256, (40, 3))
    labels = [row % 40 for row in range(480)]
    pixels = [(means[label] + generator.normal(0, 8, (4, 4, 3))).clip(0, 255).astype(np.uint8) for label in labels]
    names = [f"colour {number}" for number in range(40)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    dataset = datasets.Dataset.from_dict({"image": pixels, "label": labels}, features=features)
    centres = torch.tensor(means) / 255
    benchmark = Benchmark("colours", "test", dataset, names, "{}", ImageTransform())
    return benchmark, lambda images: -100 * torch.cdist(images.mean((2, 3)), centres.to(images))


def test_of_many_classes_a_few_are_looked_at_and_all_for_their_order(colours):
    benchmark, nearest = colours
    probe = Probe(nearest, benchmark, 128, 64, 0, None)
    assert len(probe) == 128 and len(probe.labels.unique()) == 16
    assert check_class_order(probe).verdict == "fine"
    order = list(range(40))
    order[7], order[31] = 31, 7
    found = check_class_order(Probe(lambda images: nearest(images)[:, order], benchmark, 128, 64, 0, None))
    assert found.verdict == "can't tell" and "'colour 7' are called 'colour 31'" in found.message
    found = check_class_order(Probe(lambda images: nearest(images)[:, order[::-1]], benchmark, 128, 64, 0, None))
    assert found.verdict == "wrong"


def test_one_image_of_each_class_is_enough_to_look_at_their_order(vanilla, probe_of):
    probe = probe_of(vanilla, 3)
    assert len(probe) == len(probe.labels.unique()) == 10
    assert check_class_order(probe).verdict != "wrong"


def test_a_folder_without_classes_is_found(benchmark):
    flat = benchmark.dataset.map(lambda row: {"label": 1})
    found = check_layout(replace(benchmark, dataset=flat))
    assert found.verdict == "wrong" and "val_annotations.txt" in found.message and "0.23 %" in found.published
    assert check_layout(benchmark).verdict == "fine"
    one_class = benchmark.dataset.map(lambda row: {"label": 0})
    assert check_layout(replace(benchmark, dataset=one_class, class_names=["cat"])).verdict == "fine"


def test_the_order_of_tiny_imagenets_classes_is_known(benchmark):
    names = [name for _, name in sorted(wordnet_names("tiny_imagenet").items())]
    tiny = replace(benchmark, name="tiny_imagenet", class_names=names)
    assert check_layout(tiny).verdict == "can't tell"  # 3 of 200 classes have images
    found = check_layout(replace(tiny, class_names=sorted(names)))
    assert found.verdict == "wrong" and "follow their WordNet ids" in found.message


# What it is given


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_samples": 1}, "max_samples is 1, but must be a whole number of at least 2"),
        ({"attack": "pdg"}, "Unknown attack 'pdg'.*Did you mean pgd"),
        ({"attack": "adaptive"}, "needs a proxy"),
        ({"eps": 4}, "did you mean 4/255"),
        ({"subject": lambda images: images.mean((2, 3))}, r"shape \(.*, 3\), but digits has 10 classes"),
        ({"subject": lambda images: images.flatten(1)[:, :10] / 0}, "aren't finite"),
        ({"benchmark": "unlabelled"}, "digits has no labels"),
    ],
    ids=["samples", "attack", "proxy", "eps", "classes", "finite", "labels"],
)
def test_what_cannot_be_checked_is_refused(changes, line, vanilla, digits):
    given = {"subject": vanilla, "benchmark": digits} | changes
    if given["benchmark"] == "unlabelled":
        given["benchmark"] = replace(digits, dataset=digits.dataset.remove_columns("label"))
    with pytest.raises(InputError, match=line):
        check_protocol(**given)


def test_what_has_a_text_side_and_functions_are_checked_as_they_are_evaluated(vanilla, digits):
    class Open:
        def with_classes(self, names, template=None):
            assert names == digits.class_names
            return vanilla

    for subject in (Open(), FunctionSubject(Open(), "mine"), FunctionSubject(Noisy(vanilla), "mine")):
        findings = check_protocol(subject, digits, "fgsm", EPS, name="mine", max_samples=32)
        assert "wrong" not in verdicts(findings).values() and {finding.model for finding in findings} == {"mine"}


def test_what_code_of_others_raises_is_a_line(vanilla, digits):
    def through_numpy(images):
        return vanilla(torch.from_numpy(images.numpy()))

    def broken(classifier, images, labels):
        raise KeyError("eps")

    findings = check_protocol(through_numpy, digits, broken, EPS, max_samples=32)
    masking, units = (next(f for f in findings if f.check.startswith(name)) for name in ("gradient", "eps units"))
    assert masking.verdict == "can't tell" and "PGD-10 fails: RuntimeError: Can't call numpy()" in masking.message
    assert units.verdict == "can't tell" and "broken fails: KeyError: 'eps'" in units.message


def test_verdicts_are_compared_as_the_sign_test_does():
    first, second = np.array([True] * 9 + [False]), np.array([False] * 8 + [True, True])
    assert better_by_chance(first, second) == pytest.approx(10 / 2**9)  # 8 or 9 of 9
    assert better_by_chance(first, first) == 1
    labels = np.arange(100) % 4
    assert not sees_something(np.zeros(100, int), labels) and sees_something(labels, labels)
    assert skill(np.zeros(100, int), labels) == 0 and skill(labels, labels) == 0.75


# The command


def test_the_command_checks_and_measures_nothing(tmp_path, capsys):
    save_finished(*make_clip(0), tmp_path / "model")
    output = tmp_path / "results"
    arguments = ["--models", f"mine={tmp_path / 'model'}", "--benchmarks", "digits", "--output_dir", output]
    arguments += ["--attacks", "pgd:steps=2", "transfer-to-proxy", "--proxy", f"proxy={tmp_path / 'model'}"]
    arguments += ["--max_samples", 40, "--use_cpu", "--check"]
    run_recipe("evaluate.py", *arguments, "--eps", "4/255", "16/255")
    printed = capsys.readouterr().out
    assert "\nmine on digits\n" in printed and "fine        eps units of PGD-2: its changes go up to 16/255" in printed
    assert {file.name for file in output.iterdir()} == {"protocol_check.md", "protocol_check.jsonl"}
    findings = [json.loads(line) for line in (output / "protocol_check.jsonl").read_text().splitlines()]
    assert {line["verdict"] for line in findings} == {"fine", "can't tell"}
    assert sum(line["check"] == "eps" for line in findings) == 2
    assert f"0 wrong, {sum(line['verdict'] != 'fine' for line in findings)} can't tell" in printed
    table = (output / "protocol_check.md").read_text()
    assert all(f"| mine  | digits    | {line['check']} " in table for line in findings)

    with pytest.raises(SystemExit, match="1"):
        run_recipe("evaluate.py", *arguments, "--eps", "4/256")
    assert "wrong       eps: it is 4/256, which is 3.9844/255" in capsys.readouterr().out
    assert "AdvFLYP" in (output / "protocol_check.md").read_text()


def test_a_plan_and_a_check_contradict_each_other(tmp_path):
    refused = refusal_of("evaluate.py", "--check", "--plan", "--output_dir", tmp_path / "out")
    assert "--plan and --check can't go together" in refused and not list(tmp_path.iterdir())


def test_the_command_names_what_it_cannot_check(tmp_path, capsys):
    save_finished(*make_clip(0), tmp_path / "model")
    arguments = ["--models", tmp_path / "model", "--benchmarks", "digits", "cifar10=no/where", "--use_cpu", "--check"]
    arguments += ["--attacks", "fgsm"]
    with pytest.raises(SystemExit, match="1"):
        run_recipe("evaluate.py", *arguments, "--max_samples", 40, "--output_dir", tmp_path / "results")
    assert "Missing: cifar10: Can't load the dataset 'no/where'" in capsys.readouterr().out
    assert "Missing: cifar10: Can't load" in (tmp_path / "results" / "protocol_check.md").read_text()


def test_fgsm_by_name_and_by_hand_give_the_same_units(vanilla, probe_of):
    probe = probe_of(vanilla)
    by_hand, by_name = (
        check_attack(probe, one, EPS)[0] for one in (ForeignAttack(signed_gradient, eps=EPS), FGSM(eps=EPS))
    )
    assert by_hand.message == by_name.message
