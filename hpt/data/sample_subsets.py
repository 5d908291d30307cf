"""Some of a dataset's samples, by a list, or all others: `caltech101:samples=FILE`, `caltech101:without_samples=FILE`.

half = load_benchmark("caltech101", samples="half.txt")  # a number a line; lines that begin with # are comments
others = load_benchmark("caltech101", without_samples="half.txt")

A sample's number is its row in the whole split, counted from 0. It stays its id, so that an attack's noise stays its
own. The name says that it is a part: `caltech101 (1010 of 2020 samples, 9c1d)`, where the digits stand for which.
Behind a file can stand what its numbers must come to, `FILE@DIGITS`, as records have it: see [`pin_samples`].
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path

import numpy as np

from hpt.data.benchmark import Benchmark, StreamingBenchmark
from hpt.data.subsets import name_part, only_one
from hpt.errors import InputError
from hpt.files import read_text
from hpt.json_files import digest
from hpt.references import Reference


SAMPLE_SETTINGS = ("samples", "without_samples")
PINNED = re.compile(r"(.+)@([0-9a-f]{8})", re.DOTALL)

Samples = str | Iterable[int]  # a file, or a list of numbers


def take_samples(
    benchmark: Benchmark,
    samples: Samples | None = None,
    without_samples: Samples | None = None,
    *,
    split: Benchmark | None = None,
) -> Benchmark:
    """Some of the samples of a benchmark; one of which all are kept stays as it is.

    Args:
        benchmark ([`Benchmark`]): What they are taken from.
        samples (`list` or `str`, *optional*): Those to keep, by [`Benchmark.ids`]; as text, a file with one a line.
        without_samples (`list` or `str`, *optional*): Those to leave out, likewise.
        split ([`Benchmark`], *optional*): What the numbers are of, where `benchmark` is but some of its classes.

    Raises:
        InputError: for numbers that the split hasn't, or that are given twice; a file that can't be read, or has other
            lines; if nothing is left, both are given, or the benchmark is a stream.
    """
    given = only_one({"samples": samples, "without_samples": without_samples}, benchmark.name)
    if not given:
        return benchmark
    ((setting, value),) = given.items()
    if isinstance(benchmark, StreamingBenchmark):
        raise InputError(
            f"{setting} of {benchmark.name} is given, but the rows of a stream have no numbers: load it without "
            "streaming."
        )
    split = split or benchmark
    listed, known = read_samples(setting, value, split.name), split.ids()
    if unknown := sorted(set(listed) - set(known.tolist())):
        raise InputError(
            f"{setting} of {split.name} names sample {unknown[0]}, which {split.name} ({split.split}) hasn't: its "
            f"{len(split)} samples are numbered from {known.min()} to {known.max()}."
        )
    is_listed = np.isin(benchmark.ids(), listed)
    rows = np.flatnonzero(is_listed if setting == "samples" else ~is_listed)
    if len(rows) == 0:
        raise InputError(f"{setting} leaves no sample of {benchmark.name} ({benchmark.split}).")
    if len(rows) == len(benchmark):
        return benchmark
    part = benchmark.rows(rows)
    which = [part.ids().tolist(), len(benchmark)]
    called = name_part(benchmark.name, len(part), len(benchmark), "samples", which)
    return replace(part, name=called, part_of=benchmark.part_of or benchmark.name, chosen=part.ids())


def check_sample_settings(reference: Reference) -> None:
    """Refuse, before anything is read, settings that contradict each other, and files that list no samples."""
    given = {setting: reference.settings.get(setting) for setting in SAMPLE_SETTINGS}
    for setting, value in only_one(given, reference.name).items():
        read_samples(setting, value, reference.name)


def read_samples(setting: str, given: Samples, what: str) -> list[int]:
    """The numbers that a setting lists, in ascending order.

    Raises:
        InputError: for what is no number from 0, a number that is there twice, and none at all; for a file that isn't
            there, or whose numbers don't come to what stands behind it.
    """
    if isinstance(given, str):
        file, pinned = _split_pinned(os.path.expanduser(given))
        listed, where = _read_lines(file, f"{setting} of {what}"), file
    elif isinstance(given, Iterable) and not isinstance(given, Mapping):
        listed, where, pinned = list(given), f"{setting} of {what}", None
    else:
        raise InputError(f"{setting} of {what} is {given!r}, but must be a file or a list of numbers.")
    numbers = sorted(_as_number(item, where) for item in listed)
    if not numbers:
        raise InputError(f"{where} names no sample: give the numbers of samples, from 0, in a file one a line.")
    if twice := [number for number, times in Counter(numbers).items() if times > 1]:
        raise InputError(f"{where} names sample {twice[0]} twice.")
    if pinned not in (None, _digits_of(numbers)):
        raise InputError(
            f"{file} has other samples, {_digits_of(numbers)}, than those that {given} stands for: give the file that "
            "was meant, or leave the digits out."
        )
    return numbers


def pin_samples(text: str) -> str:
    """The text that names a benchmark with what the numbers in a file of samples come to, as records keep it.

    `samples=FILE` becomes `samples=FILE@DIGITS`, which another list under the file's name no longer goes by.

    Raises:
        InputError: as [`read_samples`].
    """
    reference = Reference.parse(text)
    pinned = {
        setting: f"{_split_pinned(value)[0]}@{_digits_of(read_samples(setting, value, reference.name))}"
        for setting, value in reference.settings.items()
        if setting in SAMPLE_SETTINGS
    }
    return str(replace(reference, settings=reference.settings | pinned)) if pinned else text


def of_all_samples(reference: Reference) -> Reference:
    """The same dataset without a choice of samples, whose numbers are those of one split, for its other splits."""
    settings = {name: value for name, value in reference.settings.items() if name not in SAMPLE_SETTINGS}
    return replace(reference, settings=settings)


def with_all_samples(text: str) -> str:
    """The same of a text that names a dataset."""
    reference = Reference.parse(text)
    return str(of_all_samples(reference)) if {*SAMPLE_SETTINGS} & reference.settings.keys() else text


def _read_lines(file: str, what: str) -> list[str]:
    if not Path(file).is_file():
        raise InputError(f"There is no file {file!r}, which {what} names.")
    lines = [line.strip() for line in read_text(Path(file)).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _split_pinned(text: str) -> tuple[str, str | None]:
    """A file, and the digits that stand behind it, if there are some."""
    match = None if os.path.isfile(text) else PINNED.fullmatch(text)
    return match.groups() if match else (text, None)


def _digits_of(numbers: list[int]) -> str:
    return digest(numbers)[:8]


def _as_number(item: str | int, where: str) -> int:
    is_number = item.isdecimal() if isinstance(item, str) else isinstance(item, Integral) and item >= 0
    if not is_number or isinstance(item, bool):
        raise InputError(f"{where} names {item!r} where the number of a sample must stand, counted from 0.")
    return int(item)
