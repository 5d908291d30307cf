"""JSON whose damage is noticed: read strictly, and written with a digest of itself.

append_line(folder / "results.jsonl", row)  # {"n": 3, "digest": "0123456789abcdef"}
rows = repair_lines(folder / "results.jsonl", parse_row)  # a line that a kill cut off goes, damaged ones are set aside

Earlier versions wrote no digests: what has none is taken as it is.
"""

import hashlib
import json
import logging
import reprlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TypeVar, get_args, get_origin

from hpt.errors import InputError
from hpt.files import named_if_it_fails, write_file


DIGEST = "digest"  # what a dictionary calls the digest of all else that it says
KINDS = {
    bool: "true or false",
    dict: "a dictionary",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
    NoneType: "null",
}
DEEPEST = 50  # lists and dictionaries within each other; nothing that hpt writes has more than six
NAMED = 5  # so many damaged lines are named at most
Value = TypeVar("Value")
logger = logging.getLogger(__name__)


def digest(value) -> str:
    """16 hexadecimal digits that stand for a value that JSON has."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def sealed(value: dict) -> dict:
    """A dictionary with the digest of itself, by which [`unsealed`] notices what was altered since."""
    return value | {DIGEST: digest(value)}


def unsealed(value) -> dict:
    """What was [`sealed`], without the digest. What has none is taken as it is.

    Raises:
        ValueError: if it isn't a dictionary, or was altered.
    """
    if not isinstance(value, dict):
        raise ValueError("it isn't a dictionary")
    content = {name: part for name, part in value.items() if name != DIGEST}
    if DIGEST in value and value[DIGEST] != digest(content):
        raise ValueError("it isn't what its digest is of: it was altered")
    return content


# Values


def parse_json(text: str | bytes):
    """The value that a text stands for.

    Raises:
        ValueError: saying what is wrong: the text isn't UTF-8 or JSON, says something twice, is nested too deeply, or
            has NaN or an infinite number.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
        if text.count("[") + text.count("{") > DEEPEST:
            _refuse_depth(value)
        return value
    except json.JSONDecodeError as error:
        raise ValueError(f"it isn't JSON: {error.msg}, at character {error.pos + 1}") from error
    except UnicodeError as error:
        raise ValueError(f"it isn't UTF-8: {error.reason}, at byte {error.start + 1}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_repetition(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("it says something twice")
    return value


def _refuse_constant(name: str):
    raise ValueError(f"it has {name}, which is no number")


def _refuse_depth(value) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [part for parts in inner for part in parts]
    if level:
        raise RecursionError


def check_kinds(values: dict, kinds: dict) -> None:
    """Refuse values that aren't of their kinds.

    Args:
        values (`dict`): As JSON has them.
        kinds (`dict`): For each name a type, such as `int`, `dict[str, float]` or `list[str] | None`.

    Raises:
        ValueError: naming the first.
    """
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise ValueError(f"{name} is {reprlib.repr(value)}, but must be {_describe(kinds[name])}")


def check_whole(values: dict, kinds: dict, of: str = "") -> None:
    """Refuse a dictionary that lacks values, or has some of another kind; what it has beside these isn't looked at.

    Args:
        values (`dict`): As JSON has them.
        kinds (`dict`): As of [`check_kinds`].
        of (`str`, *optional*): What messages put before the names.

    Raises:
        ValueError: naming what is missing, or the first of another kind.
    """
    if missing := [name for name in kinds if name not in values]:
        raise ValueError(f"it lacks {of}{', '.join(missing)}")
    check_kinds({f"{of}{name}": values[name] for name in kinds}, {f"{of}{name}": kind for name, kind in kinds.items()})


def _fits(value, kind) -> bool:
    for own, part in _alternatives(kind):
        if own is float and type(value) in (int, float):
            return abs(value) <= sys.float_info.max  # and so not NaN
        if own is type(value):
            if part is not None:
                return all(_fits(inner, part) for inner in (value.values() if own is dict else value))
            return own is not int or abs(value) < 2**64
    return False


@cache
def _alternatives(kind) -> list[tuple]:
    """For each of the kinds that a kind allows, the type, and the kind of its parts if that is said."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else [kind]
    return [(get_origin(own) or own, get_args(own)[-1] if get_args(own) else None) for own in kinds]


def _describe(kind) -> str:
    return " or ".join(
        KINDS[own] + (f", each part {_describe(part)}" if part is not None else "")
        for own, part in _alternatives(kind)
    )


# Files


def parse_file(content: str | bytes, path: Path, parse: Callable[[object], Value], remedy: str) -> Value:
    """What a file of JSON stands for.

    Args:
        content (`str` or `bytes`): What the file holds.
        path (`Path`): Of the file, which errors name.
        parse (`Callable`): Gives what the file's value stands for. A `ValueError` says why it is damaged, and an
            [`InputError`] why it can't be read although it isn't.
        remedy (`str`): What to do if it is damaged.

    Raises:
        InputError: naming the file.
    """
    try:
        return parse(parse_json(content))
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {remedy}.") from error


def parse_lines(content: bytes, path: Path, parse: Callable[[object], Value]) -> list[Value]:
    """What the lines of JSON stand for that a file has, but for blank ones; arguments as of [`parse_file`].

    Raises:
        InputError: for the first damaged line, naming it.
    """
    values = []
    for number, _, value, error in _scan(content, path, parse):
        if error is not None:
            raise InputError(
                f"Line {number} of {path} is damaged ({error}): remove it, and measure again what it said."
            ) from error
        values.append(value)
    return values


def _scan(content: bytes, path: Path, parse: Callable[[object], Value]) -> Iterator[tuple]:
    """Of each line its number, its text, and what it stands for, or else the error that says why it is damaged."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, line, parse(parse_json(line)), None
            except InputError as error:
                raise InputError(f"Line {number} of {path} {error}") from error
            except ValueError as error:
                yield number, line, None, error


def read_lines(path: Path, parse: Callable[[object], Value]) -> list[Value]:
    """[`parse_lines`] of a file that is appended to, without a last line that a kill cut off."""
    return parse_lines(path.read_bytes().rpartition(b"\n")[0], path, parse)


def repair_lines(path: Path, parse: Callable[[object], Value]) -> list[Value]:
    """[`read_lines`] of a file, if it is there, before it is appended to again.

    A last line that a kill cut off is dropped from the file. Damaged lines are moved to another one beside it, and a
    warning names them.
    """
    if not path.exists():
        return []
    content, _, cut_off = path.read_bytes().rpartition(b"\n")
    lines = list(_scan(content, path, parse))
    damaged = [(number, line, error) for number, line, _, error in lines if error is not None]
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        with named_if_it_fails(aside), aside.open("ab") as file:
            file.writelines(line + b"\n" for _, line, _ in damaged)
        numbers = [str(number) for number, _, _ in damaged[:NAMED]] + ["..."] * (len(damaged) > NAMED)
        which = f"Line {numbers[0]}" if len(damaged) == 1 else f"{len(damaged)} lines ({', '.join(numbers)})"
        logger.warning(
            f"{which} of {path} can't be used ({damaged[0][2]}): what was there is measured again, and {aside.name} "
            "keeps it."
        )
    if damaged or cut_off:
        write_file(path, b"".join(line + b"\n" for _, line, _, error in lines if error is None))
    return [value for _, _, value, error in lines if error is None]


def as_line(value: dict) -> str:
    """A line of JSON for a dictionary, [`sealed`]."""
    return json.dumps(sealed(value)) + "\n"


def append_line(path: Path, line: dict) -> None:
    """Add [`as_line`] to a file, which is made if it isn't there.

    Raises:
        WriteFailed: if it can't be added; the file is as it was before, and an empty one is deleted.
    """
    left = as_line(line).encode()
    with named_if_it_fails(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while left:  # a disk that is getting full takes a part before it fails
                    left = left[file.write(left) :]
            except BaseException:
                with suppress(OSError):
                    file.truncate(size)
                    if size == 0:
                        path.unlink()
                raise
