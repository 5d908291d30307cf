"""Points between checkpoints: exact at the ends, the formula between them, and only where there is a line."""

import pytest
import torch
from helpers import assert_same, make_clip

from hpt import InputError
from hpt.models.interpolation import Endpoints, interpolate, make_grid, name_point


def make_weights(seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Numbers of all sizes and both zeros, whose differences aren't exact, and a count of batches."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-20, 10, (50,), generator=generator)
    weight = torch.randn(50, generator=generator) * scale
    weight[:2] = torch.tensor([0.0, -0.0])
    return {
        "weight": weight.to(dtype),
        "bias": torch.randn(3, generator=generator).to(dtype),
        "count": torch.tensor(seed),
    }


VANILLA, FINAL, AVERAGE = map(make_weights, (1, 2, 3))


def bits(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.reshape(-1).view(torch.uint8) for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("point", "end"), [((0, 0), VANILLA), ((1, 0), FINAL), ((0, 1), AVERAGE)], ids=["vanilla", "final", "average"]
)
def test_ends_are_exact(point, end):
    t, u = point
    assert_same(bits(interpolate(VANILLA, FINAL, t, AVERAGE, u)), bits(end))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("u", [0.0, 0.25, 1.0])
def test_points_are_those_of_the_formula(t, u):
    point = interpolate(VANILLA, FINAL, t, AVERAGE, u)
    for name in ("weight", "bias"):
        vanilla, final, average = (weights[name].double() for weights in (VANILLA, FINAL, AVERAGE))
        expected = (1 - t - u) * vanilla + t * final + u * average
        size = vanilla.abs() + final.abs() + average.abs()
        assert point[name].dtype == torch.float32
        assert ((point[name].double() - expected).abs() <= 1e-7 * size).all()


@pytest.mark.parametrize(
    ("t", "u", "count"), [(0, 0, 1), (0.5, 0, 2), (1, 0, 2), (0.5, 0.5, 2), (0, 0.5, 3), (0, 1, 3)], ids=str
)
def test_whole_numbers_are_those_of_an_end(t, u, count):
    assert interpolate(VANILLA, FINAL, t, AVERAGE, u)["count"].item() == count


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_points_are_in_float32_or_wider(dtype, wider):
    vanilla, final = make_weights(1, dtype), make_weights(2, dtype)
    for t in (0, 0.5, 1):
        assert interpolate(vanilla, final, t)["bias"].dtype == wider
    assert torch.equal(interpolate(vanilla, final, 1)["bias"], final["bias"].to(wider))


def test_what_training_leaves_alone_stays_vanilla():
    point = Endpoints(VANILLA, {"bias": FINAL["bias"]}).at(0.5)
    assert_same(bits({"weight": point["weight"]}), bits({"weight": VANILLA["weight"]}))
    torch.testing.assert_close(point["bias"], (VANILLA["bias"] + FINAL["bias"]) / 2)


def test_a_model_can_be_moved_along_its_own_line():
    """Endpoints keep copies: what becomes of the model that they come from doesn't move them."""
    model, trained = make_clip(0)[0], make_clip(1)[0]
    vanilla = {name: weight.clone() for name, weight in model.state_dict().items()}
    endpoints = Endpoints(model.state_dict(), trained.state_dict())
    for t in (1, 0.3, 0.7, 0):
        model.load_state_dict(endpoints.at(t))
        trained.load_state_dict(endpoints.at(t))
    assert_same(dict(model.state_dict()), vanilla)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"weight": torch.zeros(51)}, r"different architectures: weight is \(50,\) in one and \(51,\) in the other"),
        ({"other": torch.zeros(1)}, "different architectures: one has no other"),
    ],
    ids=["shape", "name"],
)
def test_other_architectures_are_refused(changed, line):
    with pytest.raises(InputError, match=line):
        Endpoints(VANILLA, FINAL | changed)
    with pytest.raises(InputError, match=line):
        Endpoints(VANILLA, FINAL, AVERAGE | changed)


@pytest.mark.parametrize(
    ("t", "u", "line"),
    [
        (1.1, 0, "t is 1.1, but must be between 0, vanilla, and 1"),
        (-0.1, 0, "t is -0.1, but"),
        (float("nan"), 0, "t is nan, but"),
        (float("inf"), 0, "t is inf, but"),
        (0.5, 1.5, "u is 1.5, but must be between 0"),
        (0.5, -0.5, "u is -0.5, but"),
    ],
    ids=str,
)
def test_points_elsewhere_are_refused(t, u, line):
    with pytest.raises(InputError, match=line):
        interpolate(VANILLA, FINAL, t, AVERAGE, u)
    with pytest.raises(InputError, match=line):
        make_grid([0.5, t], [u])


def test_the_plane_needs_an_average():
    with pytest.raises(InputError, match="u is 0.5, but there is no average"):
        Endpoints(VANILLA, FINAL).at(0.5, 0.5)


def test_a_grid_has_each_point_once():
    assert make_grid([0.4, 1]) == [(0.4, 0), (1, 0)]
    assert make_grid([0, 1], [0, 0.5]) == [(0, 0), (1, 0), (0, 0.5), (1, 0.5)]
    assert [name_point(*point) for point in make_grid([0.4, 1], [0.25])] == ["t=0.4,u=0.25", "t=1,u=0.25"]
    for points in ([0.5, 0.5], [0.1 + 0.2, 0.3]):
        with pytest.raises(InputError, match="is given twice"):
            make_grid(points)
    for empty in (([], [0]), ([0.5], [])):
        with pytest.raises(InputError, match="There are no points"):
            make_grid(*empty)
