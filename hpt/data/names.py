"""How a command line names benchmarks: `cifar10`, `cifar10=PATH`, `owner/birds:label_column=species`."""

import re
from pathlib import Path

from hpt.data.records import (
    BENCHMARKS,
    SIXTEEN,
)
from hpt.errors import InputError


# What can stand behind the colon in "birds=PATH:label_column=species,class_names=birds.txt"
SETTINGS = ("split", "config", "image_column", "label_column", "class_names", "template", "native_resolution")


def parse_benchmark(text: str) -> tuple[str, str | None, dict]:
    """A benchmark as recipes name it, `NAME`, `NAME=PATH` or `PATH`, with settings behind a colon or without.

    Returns:
        `tuple`: the name, where to read it if that is said, and the settings.

    Raises:
        InputError: for a name that is neither a record's nor a place to read from, or an unknown setting.
    """
    source, listed = (text, None) if Path(text).exists() else re.fullmatch(r"(.*?)(?::(\w+=.*))?", text).groups()
    settings = dict(item.split("=", 1) for item in re.split(r",(?=\w+=)", listed or "") if item)
    for key in settings:
        if key not in SETTINGS:
            raise InputError(f"{text!r} sets {key!r}; known: {', '.join(SETTINGS)}.")
    if "native_resolution" in settings:
        if settings["native_resolution"] not in ("true", "false"):
            raise InputError(f"{text!r} sets native_resolution, which must be true or false.")
        settings["native_resolution"] = settings["native_resolution"] == "true"
    name, equals, path = source.partition("=")
    if name == "all":
        raise InputError(f"all is sixteen benchmarks, where one is needed: {', '.join(SIXTEEN)}.")
    if equals and not Path(source).exists():
        if not path or not name or "/" in name:
            raise InputError(f"{text!r} must be NAME=PATH, with a name without /.")
        return name, path, settings
    if source in BENCHMARKS:
        return source, None, settings
    if "/" not in source and not Path(source).exists():
        raise InputError(
            f"Unknown benchmark {source!r}; known: {', '.join(BENCHMARKS)}, all; or any other dataset by its Hub id "
            "OWNER/NAME, its folder or its .parquet file."
        )
    hub_id = source if Path(source).exists() else source.partition("@")[0]
    name = Path(hub_id).resolve().name.removesuffix(".parquet")
    of_record = {record.hub_id: known for known, record in BENCHMARKS.items()}.get(hub_id, name)
    if of_record in BENCHMARKS:
        raise InputError(
            f"{source!r} may be the benchmark {of_record} or another dataset: write {of_record}={source}, or "
            f"NAME={source} with a name of your own."
        )
    return name, source, settings


def expand_all(texts: list[str]) -> list[str]:
    """Benchmarks as recipes name them, with the names of the sixteen in place of `all`, and `all=PATH` likewise."""
    expanded = []
    for text in texts:
        name, equals, path = text.partition("=")
        expanded += [f"{one}={path}/{one}" if equals else one for one in SIXTEEN] if name == "all" else [text]
    return expanded
