"""What a part of a dataset is called: `cifar10 (6 of 10 classes, 3f2a)`, `caltech101 (1010 of 2020 samples, 9c1d)`.

A part is another dataset with a name that says so, where the digits stand for which. `hpt/data/class_subsets.py` takes
classes, `hpt/data/sample_subsets.py` samples; a part by both has both in its name, classes first.
"""

import re

from hpt.data.records import BENCHMARKS
from hpt.errors import InputError
from hpt.json_files import digest


SUBSET_NAME = re.compile(r"(.+) \(\d+ of \d+ (classes|samples), [0-9a-f]{4}\)")
SHOWN = 20  # class names on a card


def name_part(whole: str, kept: int, total: int, kind: str, which: list) -> str:
    """What so many of the classes or samples of a dataset are called; `which` is all that tells them from others."""
    return f"{whole} ({kept} of {total} {kind}, {digest(which)[:4]})"


def refuse_name_of_part(name: str) -> None:
    """Refuse to call a whole dataset as a part of one is called."""
    if SUBSET_NAME.fullmatch(name):
        raise InputError(f"{name!r} is what a part of a dataset is called: give another name.")


def only_one(settings: dict, what: str) -> dict:
    """What isn't `None` of two settings, which keep some alone or leave some out; [`InputError`] if that is both."""
    given = {name: value for name, value in settings.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{what} is given {' and '.join(given)}: give one of them.")
    return given


def name_for_command(name: str) -> str:
    """What a command line calls the samples that rows call `name`, with `PATH` and `FILE` for what isn't in them."""
    whole, kinds = _split_name(name)
    files = ",".join(f"{kind}=FILE" for kind in dict.fromkeys(kinds))
    return (whole if whole in BENCHMARKS else f"{whole}=PATH") + (files and f":{files}")


def list_part(name: str, class_names: list[str]) -> str:
    """The classes of samples that have a part of a dataset's, for a card; nothing where they have all."""
    if "classes" not in _split_name(name)[1]:
        return ""
    more = f" and {len(class_names) - SHOWN} more" if len(class_names) > SHOWN else ""
    return f"the classes {', '.join(class_names[:SHOWN])}{more}"


def _split_name(name: str) -> tuple[str, list[str]]:
    """What the whole is called, and of what the name says that it has a part."""
    kinds = []
    while part := SUBSET_NAME.fullmatch(name):
        name, kind = part.groups()
        kinds.insert(0, kind)
    return name, kinds
