"""One way to attack a batch and score it."""

import pytest
import torch
from helpers import make_benchmark

from hpt import PGD
from hpt.data.images import collate
from hpt.evaluation.scoring import score_batch


@pytest.fixture
def batch():
    benchmark = make_benchmark(8)
    return collate([benchmark[number] for number in range(8)])


def test_without_an_attack_images_stay_clean(classifier, batch):
    scores = score_batch(classifier, None, batch)
    assert torch.equal(scores.images, batch["pixel_values"] / 255) and scores.result is None
    assert torch.equal(scores.logits, classifier(scores.images)) and not scores.logits.requires_grad


def test_all_images_are_attacked_or_those_alone_that_are_chosen(classifier, batch):
    attack = PGD(eps=8 / 255, steps=2)
    every = score_batch(classifier, attack, batch)
    expected = attack(classifier, batch["pixel_values"] / 255, batch["labels"], batch["sample_ids"])
    assert torch.equal(every.images, expected) and torch.equal(every.logits, classifier(expected))
    only = torch.arange(8) % 3 == 1
    some = score_batch(classifier, attack, batch, only=only)
    assert len(some.images) == len(some.logits) == len(some.result.zero_gradient) == 3
    torch.testing.assert_close(some.images, expected[only])  # noise follows from the sample's id


def test_logits_are_in_float32(batch):
    scores = score_batch(lambda images: images.flatten(1)[:, :3].bfloat16(), None, batch)
    assert scores.logits.dtype == torch.float32
