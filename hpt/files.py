"""Files of JSON lines that survive a kill, folders that can be written, and digests of what JSON has."""

import hashlib
import json
import os
from pathlib import Path

from hpt.errors import InputError


def digest(value) -> str:
    """16 hexadecimal digits that stand for a value that JSON has."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_text(path: Path) -> str:
    """What a file of text holds, without the mark that some editors put before it.

    Raises:
        InputError: if it isn't UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8: {error}.") from error


def read_lines(path: Path) -> list:
    """The file's lines, after cutting off a last one that a kill left incomplete."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines, size = parse_lines(content, path)
    if size < len(content):
        with path.open("rb+") as file:
            file.truncate(size)
    return lines


def parse_lines(content: bytes, path: Path) -> tuple[list, int]:
    """The lines of JSON that a file has, and how many bytes they take: all, unless the last one was cut off.

    Raises:
        InputError: for another damaged line, naming the file at `path`.
    """
    lines, size = [], 0
    texts = content.splitlines(keepends=True)
    for number, text in enumerate(texts, start=1):
        try:
            if not text.endswith(b"\n"):
                raise ValueError("it has no end")
            lines.append(json.loads(text))
            size += len(text)
        except ValueError as error:
            if number < len(texts):
                raise InputError(
                    f"Line {number} of {path} is damaged ({error}): remove it, or give another output_dir."
                ) from error
    return lines, size


def check_folder(folder: Path) -> Path:
    """The folder, which needn't be there yet; [`InputError`] if it can't be made or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"The results can't be written to {folder}: {there} isn't a folder that can be written.")
    return folder


def append_line(path: Path, line: dict) -> None:
    """Add a line of JSON to a file, which is made if it isn't there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
