"""A model of open_clip as it is, as a classifier and as a proxy."""

import pytest
import torch
import torch.nn.functional as F
from conversion_sources import MEAN, SIDE, STD, OpenAIClip

from hpt import PGD, InputError
from hpt.classifiers import Classifier, OpenClassifier
from hpt.models.open_clip import OpenClipClassifier
from hpt.models.proxies import over_classes, try_out
from hpt.training.pretraining import byte_tokenizer


CLASSES = ["cat", "dog", "grey heron"]


class Model(OpenAIClip):
    """As far as the classifier goes, what `open_clip.create_model` gives."""

    def __init__(self):
        super().__init__()
        self.visual.image_size, self.visual.image_mean, self.visual.image_std = (SIDE, SIDE), MEAN, STD

    def encode_image(self, images, normalize):
        return F.normalize(self.visual(images), dim=-1)

    def encode_text(self, input_ids, normalize=False):
        features = super().encode_text(input_ids)
        return F.normalize(features, dim=-1) if normalize else features


def tokenize(prompts):
    return byte_tokenizer()(prompts, padding="max_length", return_tensors="pt")["input_ids"]


@pytest.fixture
def classifier():
    return OpenClipClassifier(Model(), tokenize)


@pytest.fixture
def images():
    return torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_logits_are_scaled_cosines(classifier, images):
    """In a few lines of their own, with two templates averaged on the unit sphere."""
    templates = ["a photo of a {}", "{}"]
    model, over = classifier.model, classifier.with_classes(CLASSES, templates)
    texts = [[model.encode_text(tokenize([text.format(name)]), True) for text in templates] for name in CLASSES]
    texts = F.normalize(torch.cat([sum(of_class) / 2 for of_class in texts]), dim=-1)
    pixels = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = model.logit_scale.exp() * F.normalize(model.visual(pixels), dim=-1) @ texts.T
    torch.testing.assert_close(over(images), expected)
    model.logit_bias = torch.tensor(-3.0)
    torch.testing.assert_close(over(images), expected - 3)


def test_images_of_another_size_are_resized(classifier, images):
    over = classifier.with_classes(CLASSES)
    larger = F.interpolate(images, (24, 20))
    resized = F.interpolate(larger, (SIDE, SIDE), mode="bicubic", antialias=True)
    torch.testing.assert_close(over(larger), over(resized))


def test_it_is_attacked_and_learned_from_as_any(classifier, images):
    assert isinstance(classifier, OpenClassifier) and isinstance(classifier, Classifier)
    proxy = over_classes(classifier, CLASSES, "a photo of a {}")
    try_out(proxy, images, len(CLASSES))
    over = classifier.with_classes(CLASSES)
    labels = over(images).argmax(1)
    adversarial = PGD(eps=16 / 255, steps=5)(over, images, labels)
    assert not torch.equal(adversarial, images) and (adversarial - images).abs().max() <= 16 / 255 + 1e-6
    before, after = (F.cross_entropy(over(batch), labels) for batch in (images, adversarial))
    assert after > before


def test_without_classes_it_says_so(classifier, images):
    with pytest.raises(InputError, match=r"no classes yet: use with_classes\(\[...\]\)"):
        classifier(images)
    with pytest.raises(InputError, match="must have one {}"):
        classifier.with_classes(CLASSES, "a photo")


def test_views_do_not_change_each_other(classifier, images):
    one = classifier.with_classes(CLASSES)
    before = one(images)
    one.with_classes(["x", "y"])
    assert torch.equal(one(images), before) and classifier.text_embeds is None
