import math

import pytest
import torch

from hpt import OBJECTIVES, GeneralizationAnchor, InputError, RobustTransfer
from hpt.training.objectives import check_objective, kl_divergence


def reference_kl(p_logits, q_logits):
    """KL(softmax p || softmax q) per row, by its definition, in Python's floats."""
    rows = []
    for p_row, q_row in zip(p_logits.tolist(), q_logits.tolist(), strict=True):
        p = [math.exp(one) / sum(map(math.exp, p_row)) for one in p_row]
        q = [math.exp(one) / sum(map(math.exp, q_row)) for one in q_row]
        rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return rows


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) * 3


@pytest.mark.parametrize("objective", [RobustTransfer, GeneralizationAnchor])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("direction", ["proxy_to_target", "target_to_proxy"])
def test_equals_definition(logits, objective, direction, reduction, temperature):
    target, proxy = logits
    pair = (proxy, target) if direction == "proxy_to_target" else (target, proxy)
    rows = reference_kl(pair[0] / temperature, pair[1] / temperature)
    expected = sum(rows) * temperature**2 / (len(rows) if reduction == "mean" else 1)
    assert objective(direction, reduction, temperature)(target, proxy).item() == pytest.approx(expected, rel=1e-12)


def test_directions_differ_and_default_is_proxy_to_target_with_mean(logits):
    target, proxy = logits
    default = RobustTransfer()(target, proxy)
    assert default == kl_divergence(target, proxy, "proxy_to_target", "mean")
    assert abs(default - kl_divergence(target, proxy, "target_to_proxy")) > 0.1


def test_no_loss_between_equals(logits):
    assert kl_divergence(logits[0], logits[0]).item() == pytest.approx(0, abs=1e-12)


def test_what_the_proxy_sees():
    assert (RobustTransfer.proxy_sees, GeneralizationAnchor.proxy_sees) == ("adversarial", "clean")
    assert OBJECTIVES["hpt"] is RobustTransfer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("trades", "proxy_to_target", "mean", 1), "Unknown objective 'trades'; known: hpt, anchor"),
        (("hpt", "forward", "mean", 1), "Unknown kl_direction 'forward'; known: proxy_to_target, target_to_proxy"),
        (("hpt", "proxy_to_target", "batchmean", 1), "Unknown kl_reduction 'batchmean'; known: mean, sum"),
        (("hpt", "proxy_to_target", "mean", 0), "temperature is 0"),
    ],
)
def test_unknown_names_list_the_known(values, message):
    with pytest.raises(InputError, match=message):
        check_objective(*values)
