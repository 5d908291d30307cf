"""What attacks are given: taken where it can be meant, and refused in one line otherwise."""

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from hpt import ATTACKS, PGD, InputError
from hpt.attacks import get_attack


IDS = torch.arange(4)
ATTACK = PGD(eps=8 / 255, steps=2)


def make_attack(name, proxy):
    kind = get_attack(name)
    settings = {"proxy": proxy} if kind.needs_proxy else {"queries": 20} if name == "square" else {}
    return kind(eps=8 / 255, **settings)


@pytest.mark.parametrize("name", [*ATTACKS, "transfer-to-proxy"])
@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), (0, 1 / 255)], ids=["normalised", "0..255"])
def test_every_attack_refuses_pixels_out_of_range(classifier, images, labels, name, mean, std):
    with pytest.raises(InputError, match=r"pixels go from .* to .*, but an attack needs them in \[0, 1\]"):
        make_attack(name, classifier)(classifier, (images - mean) / std, labels)


def with_nan(images):
    images = images.clone()
    images[3, 0, 0, 0] = torch.nan
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_nan, "pixels that are NaN"),
        (lambda images: (255 * images).byte(), "are uint8, but must be float32 or float64.*: give images / 255"),
        (lambda images: images.half(), "are float16, but must be float32 or float64.*: give images.float()"),
        (lambda images: images.bfloat16(), "are bfloat16, but must be float32 or float64"),
        (lambda images: images[0], r"shape \(3, 16, 16\), but must be \(batch, 3, height, width\)"),
        (lambda images: images.movedim(1, -1), r"shape \(4, 16, 16, 3\), but must be \(batch, 3"),
        (lambda images: images.numpy(), "are a ndarray, but must be a tensor"),
    ],
    ids=["nan", "uint8", "float16", "bfloat16", "no batch", "channels last", "numpy"],
)
def test_images_that_cannot_be_meant_are_refused(classifier, images, labels, change, message):
    with pytest.raises(InputError, match=message):
        ATTACK(classifier, change(images), labels)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [0, 1, 2]}, r"The labels have shape \(3,\), but there are 4 images"),
        ({"labels": torch.eye(4)}, r"The labels have shape \(4, 4\).*as labels.argmax\(1\) does"),
        ({"labels": torch.rand(4)}, "The labels are float32, but must be integers"),
        ({"labels": [0, 1, 2, -1]}, "A label is -1, but classes are numbered from 0"),
        ({"labels": [0, 1, 2, 3]}, "A label is 3, but the classifier's classes go to 2"),
        ({"sample_ids": IDS[:3]}, r"The sample_ids have shape \(3,\), but there are 4 images"),
        ({"sample_ids": IDS.float()}, "The sample_ids are float32, but must be integers"),
        ({"eps": 0.1}, r"a radius for each image, of shape \(4,\)"),
        ({"eps": torch.full((3,), 0.1)}, r"a radius for each image, of shape \(4,\)"),
        ({"eps": torch.tensor([0.1, 0.1, 0.1, 4])}, "eps is 4, but .*: did you mean 4/255"),
        ({"eps": torch.tensor([0.1, 0.1, 0.1, torch.nan])}, "eps is nan, but must be above 0"),
    ],
)
def test_what_comes_with_the_images_is_checked(classifier, images, labels, given, message):
    with pytest.raises(InputError, match=message):
        ATTACK(classifier, images, **({"labels": labels} | given))


@pytest.mark.parametrize(
    ("classify", "message"),
    [
        (lambda logits: ImageClassifierOutput(logits=logits), "gives a ImageClassifierOutput, but must give logits"),
        (lambda logits: (logits,), "gives a tuple, but must give logits as a tensor"),
        (lambda logits: logits[:2], r"logits of shape \(2, 3\) for 4 images"),
        (lambda logits: logits[:, 0], r"logits have shape \(4,\), but must be \(batch, classes\)"),
        (lambda logits: logits.mean(), r"logits of shape \(\) for 4 images"),
        (lambda logits: logits.detach(), "logits have no gradient"),
    ],
    ids=["output", "tuple", "other batch", "one logit", "scalar", "detached"],
)
@pytest.mark.parametrize("name", ["pgd", "cw", "apgd-ce", "transfer"])
def test_what_is_no_logits_is_refused(classifier, images, labels, name, classify, message):
    def odd(images):
        return classify(classifier(images))

    with pytest.raises(InputError, match=message):
        make_attack(name, odd)(odd, images, labels)


@pytest.mark.parametrize(
    "convert",
    [lambda values: values.int(), lambda values: values.byte(), lambda values: values.tolist(), np.asarray],
    ids=["int32", "uint8", "list", "numpy"],
)
@pytest.mark.parametrize("name", ["pgd", "square"])
def test_integers_of_any_type_are_labels_and_ids(classifier, images, labels, name, convert):
    attack = make_attack(name, None)
    expected = attack(classifier, images, labels, IDS)
    assert torch.equal(attack(classifier, images, convert(labels), convert(IDS)), expected)


def test_undoing_normalisation_may_round(classifier, images, labels):
    images[0, 0, 0, :2] = torch.tensor([-1e-6, 1 + 1e-6])
    adversarial = ATTACK(classifier, images, labels)
    assert adversarial.min() >= 0 and adversarial.max() <= 1


@pytest.mark.parametrize("name", [*ATTACKS, "transfer-to-proxy"])
def test_no_images_give_no_images(classifier, images, labels, name):
    result = make_attack(name, classifier).perturb(classifier, images[:0], labels[:0], IDS[:0])
    assert [len(values) for values in result] == [0, 0, 0] and result.images.shape == (0, 3, 16, 16)
