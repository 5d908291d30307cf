"""What an attack climbs where a defence has no useful gradient: the backward pass of something else.

round_through = straight_through(lambda images: (images * 15).round() / 15)  # gradients pass as if it weren't there
logits = network(round_through(images))
"""

from collections.abc import Callable

import torch

from hpt.errors import InputError


def straight_through(function: Callable, surrogate: Callable | None = None) -> Callable:
    """A function whose backward pass is another's: backward pass differentiable approximation, BPDA.

    Forward, it gives what `function` gives, bit for bit. Backward, gradients pass as through `surrogate`, or as if
    nothing had been done: the straight-through estimator (Athalye et al., 2018, arXiv 1802.00420, section 4.1). It is
    for the steps of a classifier that round, take a sign, compress or call a program, and can stand inside a defence
    that takes gradients itself: its backward pass can be differentiated again.

    Args:
        function (`Callable`): From a tensor, and whatever else it takes, such as seeds, to a tensor of floating point
            values. It runs without gradients and leaves what it is given as it is.
        surrogate (`Callable`, *optional*): What it is nearly, with gradients; given the same, it gives the same shape.
            By default the tensor itself.

    Returns:
        A function of the same arguments.

    Raises:
        InputError: when called, if `function` gives no floating point values, or another shape than its surrogate.
    """

    def substituted(values: torch.Tensor, *others, **settings) -> torch.Tensor:
        with torch.no_grad():
            exact = function(values, *others, **settings)
        smooth = values if surrogate is None else surrogate(values, *others, **settings)
        _check(exact, smooth)
        return _StraightThrough.apply(smooth, exact)

    return substituted


class _StraightThrough(torch.autograd.Function):
    """Forward the exact values, backward into the smooth ones."""

    @staticmethod
    def forward(ctx, smooth: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _check(exact: torch.Tensor, smooth: torch.Tensor) -> None:
    if not (isinstance(exact, torch.Tensor) and exact.is_floating_point()):
        kind = str(exact.dtype).removeprefix("torch.") if isinstance(exact, torch.Tensor) else type(exact).__name__
        raise InputError(f"The function of straight_through gives {kind}, but must give a tensor of float32 or so.")
    if exact.shape != smooth.shape:
        raise InputError(
            f"The function of straight_through gives the shape {tuple(exact.shape)}, but gradients pass through "
            f"{tuple(smooth.shape)}: give a surrogate whose shape is the function's."
        )
