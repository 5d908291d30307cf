"""How far an attack may change an image: norms, radii and steps written as fractions, and their checks."""

import math
from collections.abc import Iterable

from hpt.errors import InputError, check_known


NORMS = ("linf", "l2")


class Fraction(float):
    """A float that can be written as a fraction in text: `"1/255"`, `"0.5"`, `"5e-2"`."""

    def __new__(cls, value):
        if isinstance(value, float):
            return super().__new__(cls, value)
        numerator, _, denominator = str(value).partition("/")
        if denominator and float(denominator) == 0:
            raise ValueError(f"{value} divides by zero")
        return super().__new__(cls, float(numerator) / float(denominator or 1))


def read_number(text: str | float, what: str, *, whole: bool) -> int | float:
    """The number that a text, or a number, sets something to: a whole one, or any, which may be a fraction.

    Raises:
        InputError: for any other text; it begins with `what`, such as `"objective_args sets temperature"`.
    """
    try:
        number = Fraction(text)
    except ValueError:
        raise InputError(f"{what} to {text!r}, which isn't a number.") from None
    if whole and not number.is_integer():
        raise InputError(f"{what} to {text}, but it must be a whole number.")
    return int(number) if whole else float(number)


class Radius(Fraction):
    """How far an attack may change an image, in the norm that it is measured in: a float that prints itself.

    `str(Radius("4/255"))` is `4/255`, `str(Radius(0.5, "l2"))` is `0.5`. Radii are equal if number and norm are; in
    JSON, a radius is its number.

    Args:
        eps (`float` or `str`): In [0, 1] pixels, such as 8/255 or `"8/255"`.
        norm (`str`, *optional*, defaults to `"linf"`): `"linf"` or `"l2"`.

    Raises:
        InputError: for an unknown norm, or a radius that can't be meant: one that isn't a number, above 0 and finite,
            or, in l_inf, below 1.
    """

    norm: str

    def __new__(cls, eps: float | str, norm: str = "linf"):
        check_known("norm", norm, NORMS)
        try:
            radius = super().__new__(cls, eps)
        except ValueError:
            raise InputError(f"eps is {eps!r}, but must be a number or a fraction, such as 1/255.") from None
        number = float(radius)
        if not 0 < number < math.inf:
            raise InputError(f"eps is {number:g}, but must be above 0 and finite, such as 1/255.")
        if norm == "linf" and number >= 1:
            hint = f": did you mean {number:g}/255?" if number.is_integer() and number < 255 else "."
            given = eps if isinstance(eps, str) else f"{number:g}"
            raise InputError(f"eps is {given}, but pixels are in [0, 1] and l_inf eps below 1{hint}")
        radius.norm = norm
        return radius

    def __str__(self) -> str:
        return describe_length(self, self.norm)

    def __eq__(self, other) -> bool:
        return float(self) == other and (not isinstance(other, Radius) or self.norm == other.norm)

    def __ne__(self, other) -> bool:
        return not self == other

    __hash__ = float.__hash__

    def __getnewargs__(self) -> tuple[float, str]:
        return float(self), self.norm  # a copy of a radius in l_2 is checked as one

    @property
    def title(self) -> str:
        """With its norm: `l_inf eps 4/255`, `l_2 eps 0.5`."""
        return f"{describe_norm(self.norm)} eps {self}"


def as_radii(eps: float | str | Iterable[float | str], norm: str = "linf") -> list[Radius]:
    """The radii that one or several numbers or texts say, ascending, each once."""
    several = eps if isinstance(eps, Iterable) and not isinstance(eps, str) else [eps]
    return sorted({Radius(value, norm) for value in several})


def describe_norm(norm: str) -> str:
    """`l_inf` or `l_2`."""
    return "l_inf" if norm == "linf" else "l_2"


def describe_length(length: float, norm: str = "linf") -> str:
    """A change of an image, such as an attack's step, as it is written in a norm: `4/255` in l_inf, `0.5` in l_2."""
    return f"{round(255 * length, 4):g}/255" if norm == "linf" else f"{float(length):g}"


def check_step_size(step_size: float, eps: float) -> None:
    """Refuse a step that isn't positive or leaves the eps-ball from any point in it."""
    if not 0 < step_size <= 2 * eps:
        raise InputError(
            f"The attack's step size is {step_size:g}, but must be above 0 and at most 2 * eps = {2 * eps:g}, the "
            "diameter of the eps-ball."
        )
