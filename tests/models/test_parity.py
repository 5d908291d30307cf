"""When two models count as the same: by cosines within 1e-5, whatever their scale."""

import math

import pytest
import torch

from hpt import InputError
from hpt.models.conversion.parity import Embeddings, Parity, compare


def with_cosine(cosine: float, scale: float = 10.0) -> Embeddings:
    """An image and a prompt with that cosine, of another length each."""
    text = 3 * torch.tensor([[cosine, math.sqrt(1 - cosine**2)]])
    return Embeddings(torch.tensor([[2.0, 0.0]]), text, torch.tensor(scale))


def test_differences_of_cosines_and_logits_are_told():
    parity = compare("a.pt", "open_clip", with_cosine(0.5), with_cosine(0.500008))
    assert parity == Parity("open_clip", 1, 1, pytest.approx(8e-6, rel=0.05), pytest.approx(8e-5, rel=0.05))


def test_another_scale_is_told_and_no_other_model():
    assert compare("a.pt", "open_clip", with_cosine(0.5), with_cosine(0.5, scale=12)).logit == pytest.approx(1)


@pytest.mark.parametrize("cosine", [0.500012, 0.499988, math.nan])
def test_cosines_that_differ_by_more_or_are_no_numbers_are_refused(cosine):
    with pytest.raises(
        InputError, match="^Can't convert 'a.pt': cosines of the same .* from open_clip, .*1e-05 at most"
    ):
        compare("a.pt", "open_clip", with_cosine(0.5), with_cosine(cosine))
