"""A radius is a number that knows its norm and prints itself."""

import copy
import json
import pickle

import pytest

from hpt import InputError
from hpt.radius import Fraction, Radius


@pytest.mark.parametrize(
    ("eps", "norm", "text", "title"),
    [
        ("4/255", "linf", "4/255", "l_inf eps 4/255"),
        (4 / 255, "linf", "4/255", "l_inf eps 4/255"),
        (0.5, "linf", "127.5/255", "l_inf eps 127.5/255"),
        ("0.5", "l2", "0.5", "l_2 eps 0.5"),
        (3, "l2", "3", "l_2 eps 3"),
    ],
)
def test_a_radius_prints_itself(eps, norm, text, title):
    radius = Radius(eps, norm)
    assert (str(radius), radius.title, radius.norm) == (text, title, norm)
    assert radius == Fraction(eps) and isinstance(radius, float)


@pytest.mark.parametrize("radius", [Radius("1/255"), Radius(3.0, "l2")], ids=["l_inf", "l_2"])
def test_a_radius_survives_copies_and_becomes_a_number_in_json(radius):
    for again in (copy.copy(radius), copy.deepcopy(radius), pickle.loads(pickle.dumps(radius))):
        assert type(again) is Radius and again == radius and again.norm == radius.norm
    for indent in (None, 1):
        assert json.dumps({"eps": radius}, indent=indent) == json.dumps({"eps": float(radius)}, indent=indent)
    assert float(Fraction(radius)) == float(Radius(radius, radius.norm)) == float(radius)


def test_radii_are_the_same_in_the_same_norm_alone():
    linf, l2 = Radius(0.5), Radius(0.5, "l2")
    assert linf == Radius(0.5) == 0.5 == l2 and linf != l2
    assert len({linf, l2, Radius(0.5)}) == 2 and {linf: "kept"}[0.5] == "kept"


@pytest.mark.parametrize(
    ("eps", "norm", "message"),
    [
        (0.1, "l7", "Unknown norm 'l7'; known: linf, l2"),
        (0, "linf", "eps is 0, but must be above 0 and finite"),
        (float("nan"), "l2", "eps is nan, but must be above 0"),
        ("16", "linf", "did you mean 16/255?"),
        ("300/255", "linf", r"eps is 300/255, but pixels are in \[0, 1\] and l_inf eps below 1\.$"),
        ("4/255/2", "linf", "eps is '4/255/2', but must be a number or a fraction, such as 1/255"),
        (None, "linf", "eps is None, but must be a number"),
    ],
)
def test_radii_that_cannot_be_meant_are_refused(eps, norm, message):
    with pytest.raises(InputError, match=message):
        Radius(eps, norm)
