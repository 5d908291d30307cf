"""How far an attack may change an image: norms, radii written as fractions, and their checks."""

import math

from hpt.errors import InputError


class Fraction(float):
    """A float that can be written as a fraction in text: `"1/255"`, `"0.5"`, `"5e-2"`."""

    def __new__(cls, value):
        numerator, _, denominator = str(value).partition("/")
        if denominator and float(denominator) == 0:
            raise ValueError(f"{value} divides by zero")
        return super().__new__(cls, float(numerator) / float(denominator or 1))


NORMS = ("linf", "l2")


def check_eps(eps: float, norm: str = "linf") -> None:
    """Refuse a radius that can't be meant: eps is in [0, 1] pixels, such as 8/255."""
    if norm not in NORMS:
        raise InputError(f"Unknown norm {norm!r}; known: {', '.join(NORMS)}.")
    if not 0 < eps < math.inf:
        raise InputError(f"eps is {eps:g}, but must be above 0 and finite, such as 1/255.")
    if norm == "linf" and eps >= 1:
        raise InputError(f"eps is {eps:g}, but pixels are in [0, 1] and l_inf eps below 1: did you mean {eps:g}/255?")


def check_step_size(step_size: float, eps: float) -> None:
    """Refuse a step that isn't positive or leaves the eps-ball from any point in it."""
    if not 0 < step_size <= 2 * eps:
        raise InputError(
            f"The attack's step size is {step_size:g}, but must be above 0 and at most 2 * eps = {2 * eps:g}, the "
            "diameter of the eps-ball."
        )


def describe_norm(norm: str) -> str:
    """`l_inf` or `l_2`."""
    return "l_inf" if norm == "linf" else "l_2"


def describe_radius(eps: float, norm: str) -> str:
    """`l_inf eps 4/255`, `l_2 eps 0.5`."""
    return f"{describe_norm(norm)} eps {describe_eps(eps, norm)}"


def describe_eps(eps: float, norm: str = "linf") -> str:
    """`4/255` for l_inf, `0.5` for l_2."""
    return f"{round(255 * eps, 4):g}/255" if norm == "linf" else f"{eps:g}"
