"""The dial between clean and robust accuracy: points between a vanilla checkpoint and what it was trained to.

endpoints = Endpoints(vanilla.state_dict(), robust.state_dict())
model.load_state_dict(endpoints.at(0.6))

A point is `vanilla + t (final - vanilla)`, or with the anchor stage's average, in a plane,
`vanilla + t (final - vanilla) + u (average - vanilla)`. For CLIP this is WiSE-FT (Wortsman et al., 2022, arXiv
2109.01903), there between zero-shot and fine-tuned weights for the sake of other distributions.
"""

import torch

from hpt.errors import InputError
from hpt.models.weights import describe_names


class Endpoints:
    """Checkpoints of one architecture, and the points between them.

    It holds copies on the CPU, whatever becomes of the models that they come from.

    Args:
        vanilla (`dict[str, torch.Tensor]`): All weights before training, as `model.state_dict()` has them.
        final (`dict[str, torch.Tensor]`): Those after it, or the part of them that training changes.
        average (`dict[str, torch.Tensor]`, *optional*): The same of the anchor stage's average.

    Raises:
        InputError: for names that the vanilla weights don't have, or shapes that differ from theirs.
    """

    def __init__(
        self,
        vanilla: dict[str, torch.Tensor],
        final: dict[str, torch.Tensor],
        average: dict[str, torch.Tensor] | None = None,
    ):
        for other in (final, average or {}):
            check_same_architecture(vanilla, other)
        self.vanilla, self.final = _copied(vanilla), _copied(final)
        self.average = average and _copied(average)

    def at(self, t: float, u: float = 0.0) -> dict[str, torch.Tensor]:
        """All weights at a point, on the CPU; see [`interpolate`]."""
        return interpolate(self.vanilla, self.final, t, self.average, u)


def _copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}


def interpolate(
    vanilla: dict[str, torch.Tensor],
    final: dict[str, torch.Tensor],
    t: float,
    average: dict[str, torch.Tensor] | None = None,
    u: float = 0.0,
) -> dict[str, torch.Tensor]:
    """The weights `vanilla + t (final - vanilla) + u (average - vanilla)`, calculated in float64 on the CPU.

    At `(t, u) = (0, 0)`, `(1, 0)` and `(0, 1)` they are those of `vanilla`, `final` and `average`, bit for bit. What
    isn't a floating-point number, such as BatchNorm's count of batches, has no values between: it is `vanilla`'s at
    (0, 0), `average`'s at `t = 0` elsewhere, and `final`'s at all other points. BatchNorm's running statistics are
    interpolated like weights.

    Args:
        vanilla, final, average: As of [`Endpoints`]; weights that the latter two leave out stay vanilla.
        t (`float`): Share of the way to the final weights, in [0, 1].
        u (`float`, *optional*, defaults to 0): Share of the way to the average, in [0, 1], added to the former. Where
            `t + u` is above 1, the point lies beyond the triangle of the three.

    Returns:
        `dict[str, torch.Tensor]`: all of `vanilla`'s weights by name, in float32 or wider.

    Raises:
        InputError: for `t` or `u` out of range, or a `u` without an average.
    """
    check_point(t, u)
    if u and average is None:
        raise InputError(f"u is {u:g}, but there is no average to go to: leave the points of the average out.")
    ends = [(share, end) for share, end in ((t, final), (u, average)) if share]
    return {
        name: _between(weight, [(share, end[name]) for share, end in ends if name in end])
        for name, weight in vanilla.items()
    }


def _between(start: torch.Tensor, ends: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """`start` with so much of the way to each end added; one end itself if it is the only one, and all of the way."""
    if not ends:
        return _widened(start)
    if not start.is_floating_point() or (len(ends) == 1 and ends[0][0] == 1):
        return _widened(ends[0][1])
    origin = start.detach().cpu().double()
    point = origin.clone()
    for share, end in ends:
        point += share * (end.detach().cpu().double() - origin)
    return point.to(_widened(start).dtype)


def _widened(weight: torch.Tensor) -> torch.Tensor:
    """A weight on the CPU, in float32 if it was in less."""
    weight = weight.detach().cpu()
    return weight.to(torch.promote_types(weight.dtype, torch.float32)) if weight.is_floating_point() else weight


def check_same_architecture(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Refuse other weights that a model doesn't have, or in other shapes."""
    if unknown := others.keys() - weights.keys():
        raise InputError(f"The checkpoints are of different architectures: one has no {describe_names(unknown)}.")
    for name, weight in others.items():
        if weight.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} in one and {tuple(weight.shape)} in the other"
            raise InputError(f"The checkpoints are of different architectures: {name} is {shapes}.")


# Points


def check_point(t: float, u: float) -> None:
    """Refuse a point that isn't between the checkpoints."""
    for name, share in (("t", t), ("u", u)):
        if not 0 <= share <= 1:
            raise InputError(f"{name} is {share:g}, but must be between 0, vanilla, and 1.")


def make_grid(ts: list[float], us: tuple[float, ...] | list[float] = (0.0,)) -> list[tuple[float, float]]:
    """Points `(t, u)` of a line, or of a plane if there are several `us`, each `u` with every `t`.

    Raises:
        InputError: if there are none, or one is out of range or there twice.
    """
    points = [(float(t), float(u)) for u in us for t in ts]
    if not points:
        raise InputError("There are no points: give one or several, such as 0.4 0.6 0.8 1.")
    for point in points:
        check_point(*point)
    names = [name_point(*point) for point in points]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"The point {name} is given twice: give each once.")
    return points


def name_point(t: float, u: float = 0.0) -> str:
    """What tables and pictures call a point: `t=0.6`, or `t=0.6,u=0.2` beside the line."""
    return f"t={t:g},u={u:g}" if u else f"t={t:g}"
