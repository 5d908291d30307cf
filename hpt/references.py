"""How a command line names models and benchmarks: `NAME=PATH`, a path, or a Hub id."""

from collections.abc import Iterable
from pathlib import Path

from hpt.errors import InputError


def name_and_source(text: str) -> tuple[str, str]:
    """`NAME=PATH` apart; a path or Hub id alone is its own name."""
    name, equals, source = text.partition("=")
    return (name, source) if equals and not Path(text).exists() else (text, text)


def refuse_same_names(names: Iterable[str]) -> None:
    """Refuse two things under one name, which rows couldn't tell apart."""
    names = list(names)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name!r} is given twice: rows of the two couldn't be told apart.")


def without_local_folder(part: str) -> str:
    name, equals, path = part.partition("=") if not Path(part).exists() else ("", "", part)
    name, path = (name, path) if equals else ("", part)
    local = Path(path).is_absolute() or path.startswith(("./", "../", "~")) or (path and Path(path).exists())
    return f"{name}{equals}PATH/{Path(path).name}" if local else part
