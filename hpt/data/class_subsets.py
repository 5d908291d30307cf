"""Some of a dataset's classes, by name or number: `cifar10:classes=cat|dog|3`, `cifar10=PATH:without_classes=FILE`.

six = load_benchmark("cifar10", classes="six.txt")  # a name or a number a line; lines that begin with # are comments
unseen = load_benchmark("cifar10", without_classes=["cat", "dog", 3])

Labels are numbered anew in the dataset's own order of classes, and samples keep their ids of the whole split, so that
an attack's noise stays theirs. The name says that it is a part: `cifar10 (6 of 10 classes, 3f2a)`, where the digits
stand for which.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral

import numpy as np

from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.classes import places_of, read_names, renumber, show_names
from hpt.data.images import read_labels
from hpt.data.subsets import name_part, only_one
from hpt.errors import InputError, did_you_mean
from hpt.references import Reference


CLASS_SETTINGS = ("classes", "without_classes")

Classes = str | Iterable[str | int]  # a file, a text with `|` between classes, or a list of them


def take_classes(
    benchmark: Benchmark | StreamingBenchmark, classes: Classes | None = None, without_classes: Classes | None = None
) -> Benchmark | StreamingBenchmark:
    """The samples of some classes, with labels that number these alone; a benchmark with all of its classes stays so.

    Args:
        benchmark ([`Benchmark`] or [`StreamingBenchmark`]): The whole.
        classes (`list` or `str`, *optional*): Names, matched as [`match_classes`] does, or numbers from 0 in the order
            of the benchmark's labels; as text a file with one a line, or with a `|` between them.
        without_classes (`list` or `str`, *optional*): Those to leave out, likewise.

    Raises:
        InputError: for classes that it hasn't, that are named twice, or of which fewer than two are left; if both are
            given.
    """
    given = only_one({"classes": classes, "without_classes": without_classes}, benchmark.name)
    if not benchmark.has_labels:
        refuse_classes(given, benchmark.name)
    if not given:
        return benchmark
    kept = _find_kept(*next(iter(given.items())), benchmark)
    return benchmark if len(kept) == len(benchmark.class_names) else _keep(benchmark, kept)


def check_class_settings(reference: Reference) -> None:
    """Refuse, before anything is read, settings that contradict each other, and files that name no class."""
    given = {setting: reference.settings.get(setting) for setting in CLASS_SETTINGS}
    for setting, value in only_one(given, reference.name).items():
        read_classes(setting, value, reference.name)


def write_out_classes(text: str) -> str:
    """The text that names a benchmark with the content of a file of classes in its place, as records keep it.

    Raises:
        InputError: for a name in the file that can't stand in such a text.
    """
    reference = Reference.parse(text)
    listed = {
        setting: "|".join(read_classes(setting, file, reference.name))
        for setting, file in reference.settings.items()
        if setting in CLASS_SETTINGS and os.path.isfile(file)
    }
    if not listed:
        return text
    written = replace(reference, settings=reference.settings | listed)
    for setting, names in listed.items():
        lines = read_classes(setting, reference.settings[setting], reference.name)
        if names.split("|") != lines or Reference.parse(str(written)).settings.get(setting) != names:
            raise InputError(
                f"{reference.settings[setting]} has a class name that can't stand in a text of settings, with a | or "
                "a comma and an = in it: give the numbers of the classes."
            )
    return str(written)


def refuse_classes(given: dict[str, Classes | None], what: str) -> None:
    """Refuse to choose classes among images that have none."""
    for setting, value in given.items():
        if value is not None:
            raise InputError(f"{setting} of {what} is given, but without labels it has no classes to choose from.")


def read_classes(setting: str, given: Classes, what: str) -> list[str | int]:
    """The classes that a setting names, as they are written.

    Raises:
        InputError: where it names none, or is of another kind.
    """
    given = os.path.expanduser(given) if isinstance(given, str) else given
    if isinstance(given, str) and os.path.isfile(given):
        classes = list(read_names(given, comments=True))
    elif isinstance(given, str):
        classes = [part.strip() for part in given.split("|")] if given.strip() else []
    elif isinstance(given, Iterable) and not isinstance(given, Mapping):
        classes = list(given)
    else:
        raise InputError(f"{setting} of {what} is {given!r}, but must be a list of names or numbers.")
    if not classes:
        raise InputError(f"{setting} of {what} names no class: give names or numbers, one a line or with | between.")
    return classes


def _find_kept(setting: str, given: Classes, benchmark: Benchmark | StreamingBenchmark) -> list[int]:
    """Numbers of the classes that stay, in order."""
    listed = read_classes(setting, given, benchmark.name)
    alone = isinstance(given, str) and listed == [given.strip()]
    found = [_find_class(setting, item, benchmark, alone) for item in listed]
    if twice := [number for number, times in Counter(found).items() if times > 1]:
        names = [listed[place] for place, number in enumerate(found) if number == twice[0]]
        raise InputError(f"{setting} of {benchmark.name} names a class twice: {', '.join(map(repr, names))}.")
    everything = range(len(benchmark.class_names))
    kept = sorted(found) if setting == "classes" else [number for number in everything if number not in set(found)]
    if len(kept) < 2:
        left = f"one class, {benchmark.class_names[kept[0]]!r}" if kept else "no class"
        raise InputError(f"{setting} leaves {left} of {benchmark.name}: keep at least two, to tell them apart.")
    return kept


def _find_class(setting: str, given: str | int, benchmark: Benchmark | StreamingBenchmark, alone: bool) -> int:
    """The number of a class by its name or, where none is called so, by the number itself."""
    names, what = benchmark.class_names, benchmark.name
    places = places_of(given, names) if isinstance(given, str) else []
    if len(places) > 1:
        raise InputError(
            f"{setting} of {what} names {given!r}, as its classes {' and '.join(map(str, places))} are called: give "
            "their numbers."
        )
    if places:
        return places[0]
    is_number = given.isdecimal() if isinstance(given, str) else isinstance(given, Integral)
    if not is_number or isinstance(given, bool):
        neither = "which is neither a file nor a class of it" if alone else "but it has no such class"
        raise InputError(
            f"{setting} of {what} names {given!r}, {neither}{did_you_mean(str(given), names)} Its classes are "
            f"{show_names(names)}, numbered from 0 to {len(names) - 1}."
        )
    if not 0 <= int(given) < len(names):
        raise InputError(f"{setting} of {what} names class {given}, but they are numbered from 0 to {len(names) - 1}.")
    return int(given)


def _keep(whole: Benchmark | StreamingBenchmark, kept: list[int]) -> Benchmark | StreamingBenchmark:
    """The samples of these classes of a benchmark."""
    names = [whole.class_names[number] for number in kept]
    total = len(whole.class_names)
    called = name_part(whole.name, len(kept), total, "classes", [kept, names, total])
    part = {"name": called, "class_names": names, "part_of": whole.part_of or whole.name}
    numbers = {old: new for new, old in enumerate(kept)}
    numbers = [numbers.get(old, -1) for old in range(len(whole.class_names))]
    if isinstance(whole, StreamingBenchmark):
        return replace(whole, dataset=renumber(_filter(whole.dataset, numbers), numbers), **part)
    rows = np.flatnonzero(np.isin(read_labels(whole.dataset), kept))
    if len(rows) == 0:
        raise InputError(f"{whole.name} ({whole.split}) has no images of the classes {show_names(names)}.")
    # Renumbered first: where rows are chosen already, another column would make a copy of all images
    return replace(whole, dataset=renumber(whole.dataset, numbers), **part).rows(rows)


def _filter(dataset, numbers: list[int]):
    """The rows of a stream that stay, undecoded, and those with an odd label, which is refused where it is read."""
    encoded = dataset.decode(False).filter(_stays, input_columns="label", fn_kwargs={"numbers": numbers})
    return encoded.cast_column("image", dataset.features["image"])


def _stays(label, numbers: list[int]) -> bool:
    is_label = isinstance(label, int) and 0 <= label < len(numbers)
    return not is_label or numbers[label] >= 0
