"""What several proxies say together, each kind of proxy, and what can't be one."""

import math

import pytest
import torch
from helpers import CLASSES, make_clip, make_family
from torch import nn

from hpt import PGD, Classifier, InputError, ZeroShotClassifier
from hpt.classifiers import OpenClassifier
from hpt.models.proxies import (
    COMBINATIONS,
    CombinedProxy,
    FunctionProxy,
    ProxyOutputs,
    ask,
    combine,
    normalise_weights,
    over_classes,
    parse_proxies,
    try_out,
)


def softmax(row, temperature):
    """In Python's floats, by its definition."""
    powers = [math.exp(logit / temperature) for logit in row]
    return [power / sum(powers) for power in powers]


def reference(combination, rows, weights, temperature):
    """What proxies with these logits say together of one image."""
    each = [softmax(row, temperature) for row in rows]
    if combination == "probabilities":
        return [sum(w * p for w, p in zip(weights, column, strict=True)) for column in zip(*each, strict=True)]
    if combination == "logits":
        means = [sum(w * z for w, z in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)]
        return softmax(means, temperature)
    return max(each, key=max)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(4 * torch.randn(3, 6, 5, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("weights", [None, [1, 3, 4], [0, 1, 1]], ids=str)
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_several_say_together_what_the_definition_says(logits, combination, weights, temperature):
    shares = [weight / sum(weights) for weight in weights] if weights else [1 / 3] * 3
    outputs = ProxyOutputs(logits, combination, normalise_weights(weights, 3))
    expected = torch.tensor(
        [
            reference(combination, image, shares, temperature)
            for image in zip(*(part.tolist() for part in logits), strict=True)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(outputs.log_probabilities(temperature).exp(), expected, rtol=1e-12, atol=1e-15)
    if temperature == 1:
        torch.testing.assert_close(outputs.logits.softmax(-1), expected, rtol=1e-12, atol=1e-15)


def test_who_is_surest_depends_on_the_temperature():
    """The gap to the second class counts where it is low, how far the last ones are where it is high."""
    outputs = ProxyOutputs((torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[9.5, 10.0, -100.0]])), "most_confident")
    assert [outputs.log_probabilities(temperature).argmax(-1).item() for temperature in (0.2, 10.0)] == [0, 1]


def test_who_is_surest_is_known_where_probabilities_round_to_one():
    first, second = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[0.0, 40.0, 0.0]])
    assert first.softmax(1).max() == second.softmax(1).max() == 1
    for pair, surest in (((first, second), 1), ((second, first), 1), ((first, first), 0)):
        assert ProxyOutputs(pair, "most_confident").log_probabilities().argmax(-1).item() == surest


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_one_proxy_says_what_it_says_alone(logits, combination, temperature):
    alone = logits[0].float()
    outputs = ProxyOutputs((alone,), combination)
    assert outputs.logits is alone
    assert torch.equal(outputs.log_probabilities(temperature), (alone / temperature).log_softmax(-1))


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_logits_of_any_size_are_combined_without_overflow(combination):
    far = torch.tensor([[3e4, 0.0, -3e4]])
    together = ProxyOutputs((far, far.flip(1)), combination, (0.5, 0.5)).log_probabilities(0.5)
    assert together.isfinite().all()
    torch.testing.assert_close(together.exp().sum(-1), torch.ones(1))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "proxy_weights is 1, but of proxies the run has 2: give as many weights"),
        ([1, 1, 1], "proxy_weights is 1, 1, 1, but of proxies the run has 2"),
        ([0, 0], "proxy_weights is 0, 0, but must be finite numbers of at least 0, one of them above 0"),
        ([2, -1], "proxy_weights is 2, -1, but"),
        ([1, math.nan], "proxy_weights is 1, nan, but"),
        ([1, math.inf], "proxy_weights is 1, inf, but"),
        ([1e308, 1e308], "but must be finite"),
    ],
    ids=str,
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        normalise_weights(weights, 2)


# Kinds of proxies


class Linear(nn.Module):
    """Three classes from the mean colour; in training it would drop most of that. It keeps how it is asked."""

    def __init__(self, classes=3, dtype=torch.float32):
        super().__init__()
        self.layer, self.drop, self.seen = nn.Linear(3, classes, dtype=dtype), nn.Dropout(0.9), []

    def forward(self, images):
        autocast = torch.is_autocast_enabled(images.device.type)
        self.seen.append((images.dtype, torch.is_grad_enabled(), autocast, self.training))
        return self.layer(self.drop(images.mean((2, 3))))


def three_colours(images):
    return 10 * images.mean((2, 3))


class TextSide:
    """Anything that gives a classifier over class names; here, how long they are."""

    def with_classes(self, class_names, template=None):
        lengths = torch.tensor([len(name) for name in class_names], dtype=torch.float32)
        return lambda images: images.mean((1, 2, 3))[:, None] * lengths


@pytest.mark.parametrize("proxy", [Linear(), three_colours, TextSide()], ids=lambda proxy: type(proxy).__name__)
def test_functions_and_models_with_a_text_side_are_proxies(images, proxy):
    made = over_classes(proxy, CLASSES, "{}")
    try_out(made, images[:1], 3)
    logits = ask(made, images).logits
    function = proxy.with_classes(CLASSES) if isinstance(proxy, TextSide) else proxy
    torch.testing.assert_close(logits, function(images), rtol=0, atol=0)
    assert made.name == {Linear: "Linear", TextSide: "TextSide"}.get(type(proxy), "three_colours")


def test_the_protocol_is_what_attacks_take_too(images, labels):
    assert isinstance(Linear(), Classifier) and isinstance(three_colours, Classifier)
    assert not isinstance("original", Classifier) and isinstance(TextSide(), OpenClassifier)
    for classifier in (Linear().eval(), three_colours, TextSide().with_classes(CLASSES)):
        assert PGD(eps=0.1)(classifier, images, labels).shape == images.shape


def test_a_module_is_asked_frozen_in_float32_without_gradients_and_autocast(images):
    module = Linear()
    proxy = over_classes(module, CLASSES, "{}")
    with torch.autocast("cpu", torch.bfloat16):
        logits = ask(proxy, images.double().requires_grad_()).logits
    assert module.seen == [(torch.float32, False, False, False)] and logits.dtype == torch.float32
    assert not any(weight.requires_grad for weight in module.parameters())


def test_logits_in_half_precision_become_float32(images):
    proxy = FunctionProxy(lambda images: three_colours(images).bfloat16(), "half")
    assert ask(proxy, images).logits.dtype == torch.float32


def test_a_function_may_write_into_its_images(images):
    before = images.clone()
    proxy = FunctionProxy(lambda images: images.mul_(2).mean((2, 3)), "in place")
    torch.testing.assert_close(ask(proxy, images).logits, 2 * before.mean((2, 3)))
    assert torch.equal(images, before)


class WithoutTemplate:
    def with_classes(self, class_names):
        return three_colours


def test_a_text_side_that_fails_is_refused_in_a_line():
    with pytest.raises(InputError, match="The proxy WithoutTemplate gives no classifier by with_classes.*: TypeError"):
        over_classes(WithoutTemplate(), CLASSES, "{}")


def test_a_template_of_its_own_stays(images):
    model, processor = make_clip(1)
    own = ZeroShotClassifier(model, processor).with_template("a {} in the rain")
    proxy = over_classes(own, CLASSES, "{}")
    expected = ZeroShotClassifier(model, processor, CLASSES, "a {} in the rain")
    assert proxy.templates == ["a {} in the rain"] and torch.equal(ask(proxy, images).logits, expected(images))
    with pytest.raises(InputError, match="must have one {} where the class name goes"):
        own.with_template("a photo")
    assert proxy.with_classes(["ox", "hen"], "{}").templates == ["a {} in the rain"]


class Louder(ZeroShotClassifier):
    """One with a forward and an attribute of its own, made in its own way."""

    def __init__(self, pair, factor):
        super().__init__(*pair)
        self.factor = factor

    def forward(self, images, text_embeds=None):
        return self.factor * super().forward(images, text_embeds)


def test_a_subclass_stays_itself_over_other_classes(images):
    pair = make_clip(1, patch_size=4)
    louder = Louder(pair, 3.0)
    expected = 3 * ZeroShotClassifier(*pair, CLASSES, "{}")(images)
    view = louder.with_classes(CLASSES, "{}")
    assert isinstance(view, Louder) and louder.class_names is None
    torch.testing.assert_close(view(images), expected)
    torch.testing.assert_close(ask(over_classes(louder, CLASSES, "{}"), images).logits, expected)


def test_views_share_weights_and_nothing_else(classifier, images):
    before = classifier(images)
    view = classifier.with_classes(["ox", "hen"], "a {}")
    assert view(images).shape == (len(images), 2) and view.model is classifier.model
    view.image_mean = view.image_mean + 1
    assert torch.equal(classifier(images), before) and classifier.class_names == CLASSES


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_families_of_other_sizes_and_tokenizers_are_combined(images, combination):
    models = [make_family("Align"), make_family("Siglip"), make_clip(3, image_size=24, patch_size=4)]
    parts = [over_classes(ZeroShotClassifier(*model), CLASSES, "a {}") for model in models]
    weights = None if combination == "most_confident" else [1, 2, 3]
    proxy = combine(parts, combination, weights)
    with torch.no_grad():
        logits = [part(images) for part in parts]
    expected = ProxyOutputs(tuple(logits), combination, normalise_weights(weights, 3))
    assert torch.equal(ask(proxy, images).log_probabilities(2), expected.log_probabilities(2))
    assert torch.equal(proxy(images), expected.logits)


def test_one_proxy_is_not_wrapped():
    part = FunctionProxy(three_colours, "colours")
    assert combine([part], "logits") is part and isinstance(combine([part, part], "logits"), CombinedProxy)
    with pytest.raises(InputError, match="proxy_weights is 1, 1, but of proxies the run has 1"):
        combine([part], "probabilities", [1, 1])


def test_several_are_asked_about_other_classes(images):
    model, names = ZeroShotClassifier(*make_clip(1)), ["ox", "grey heron"]
    proxy = combine([over_classes(part, CLASSES, "{}") for part in (model, TextSide())], "logits", [1, 3])
    expected = [part(images) for part in (model.with_classes(names, "a {}"), TextSide().with_classes(names))]
    together = ask(proxy.with_classes(names, "a {}"), images).log_probabilities(2)
    torch.testing.assert_close(together, ((0.25 * expected[0] + 0.75 * expected[1]) / 2).log_softmax(1))
    with pytest.raises(InputError, match="The proxy Linear is a function over classes of its own"):
        over_classes(Linear(), CLASSES, "{}").with_classes(names)


def fails(images):
    raise KeyError("pixel_values")


class Output:
    logits = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            Linear(classes=5),
            r"The proxy Linear gives logits of shape \(5,\) for an image, but there are 3",
        ),
        (lambda images: images.mean((2, 3))[..., None], r"gives logits of shape \(3, 1\) for an image"),
        (lambda images: images.mean(), r"gives logits of shape \(\) for 1 images"),
        (lambda images: images.new_zeros(2, 3), r"gives logits of shape \(2, 3\) for 1 images"),
        (lambda images: Output(), "gives a Output, but must give logits as a tensor"),
        (lambda images: images.log().mean((2, 3)) / 0, "gives NaN or infinite logits for an image: give a sound"),
        (lambda images: images.mean((2, 3)).to(torch.complex64), "gives logits of torch.complex64 on cpu"),
        (lambda images: torch.zeros(1, 3, device="meta"), "gives logits of torch.float32 on meta for images on cpu"),
        (fails, r"The proxy fails can't take an image of shape \(1, 3, 16, 16\) in .*: KeyError: 'pixel_values'"),
        (Linear(dtype=torch.float64), "can't take an image .*: RuntimeError: mat1 and mat2 must have the same dtype"),
        (lambda: None, "can't take an image .*: TypeError: .* takes 0 positional arguments"),
    ],
)
def test_what_gives_no_logits_over_the_classes_is_refused(function, message, images):
    proxy = over_classes(function, CLASSES, "{}")
    with pytest.raises(InputError, match=message) as refused:
        try_out(proxy, images[:1], 3)
    assert "\n" not in str(refused.value)
    several = combine([over_classes(three_colours, CLASSES, "{}"), proxy], "probabilities")
    with pytest.raises(InputError, match=f"Proxy 2, {proxy.name},|The proxy {proxy.name}"):
        try_out(several, images[:1], 3)


# Named in recipes


def test_proxies_are_named_with_revisions_and_templates():
    texts = ["me/clip@v2", "mine=org/big:template=a {}, big", "original", "frozen=original"]
    first, second, *originals = parse_proxies(texts)
    assert (first.source, first.revision, first.settings) == ("me/clip", "v2", {})
    assert (second.name, second.source, second.settings) == ("mine", "org/big", {"template": "a {}, big"})
    assert [one.place for one in originals] == ["original", "original"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["me/clip:split=val"], "'me/clip:split=val' sets 'split', but of a proxy only template can be set"),
        (["me/clip:template=a photo"], "The prompt template 'a photo' must have one {}"),
        (["me/clip", "me/clip"], "'me/clip' is given twice"),
        (["original:template=a {}"], "has a template, but original has that of the training"),
        (
            ["original@v2"],
            "'original@v2' has a revision, but original is a copy of the target, which has target_revision",
        ),
        ([""], "The name '' is blank"),
    ],
)
def test_proxies_that_can_not_be_meant_are_refused(texts, message):
    with pytest.raises(InputError, match=message):
        parse_proxies(texts)
