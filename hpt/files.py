"""Files that are whole or as they were before, JSON lines that survive a kill, YAML within bounds, digests of JSON.

write_file(folder / "table.md", text)       # replaces the file in one step
append_line(folder / "results.jsonl", row)  # a line cut off by a kill is dropped by read_lines
"""

import hashlib
import json
import os
import re
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from hpt.errors import InputError, WriteFailed


LONGEST_TEXT = 16_000_000  # bytes of a card, or of a list of names
LONGEST_METADATA = 1_000_000  # characters of YAML in a card, which a thousand results have
METADATA = re.compile(r"\s*---\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)  # of a card, as huggingface_hub finds them
LONGEST_YAML = 100_000  # characters; the longest of hpt's own has a fiftieth, and PyYAML takes a second for these


def digest(value) -> str:
    """16 hexadecimal digits that stand for a value that JSON has."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def named_if_it_fails(path: Path, *errors: type[Exception]):
    """Within, what keeps a file from being written is raised as a line that names the file and the cause.

    Args:
        path (`Path`): The file, or the folder that files are written into.
        errors (`type[Exception]`): What a library raises for it instead of `OSError`.

    Raises:
        WriteFailed: such as `outputs/table.md can't be written: No space left on device.`
    """
    try:
        yield
    except (OSError, *errors) as error:
        cause = (isinstance(error, OSError) and error.strerror) or str(error)
        raise WriteFailed(f"{path} can't be written: {cause.rstrip('.')}.") from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file in one step: whatever happens, the file is as it was before, or holds all of its content.

    Args:
        path (`Path`): The file, in a folder that is made if it isn't there. Of a link, the link is replaced, and not
            what it leads to.
        content (`str` or `bytes`): Text is written as UTF-8.

    Raises:
        WriteFailed: if it can't be written, with the file's name and the cause; nothing is left of what was begun.
    """
    incomplete = path.with_name(f"{path.name}.incomplete")
    with named_if_it_fails(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            incomplete.unlink(missing_ok=True)  # a link would lead elsewhere
            incomplete.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(incomplete, path)
        except BaseException:
            with suppress(OSError):
                incomplete.unlink()
            raise


def read_text(path: Path) -> str:
    """What a file of text holds, without the mark that some editors put before it.

    Raises:
        InputError: if it isn't UTF-8, or too large to be read by anyone.
    """
    refuse_large(path.stat().st_size, path)
    return as_text(path.read_bytes(), path)


def as_text(content: bytes, path: Path) -> str:
    """The text that the bytes of the file at `path` are; see [`read_text`]."""
    refuse_large(len(content), path)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
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
    """Add a line of JSON to a file, which is made if it isn't there.

    Raises:
        WriteFailed: if it can't be added; the file is as it was before.
    """
    left = json.dumps(line).encode() + b"\n"
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
                raise


def refuse_large(size: int, where: str | Path) -> None:
    """Refuse a text of so many bytes that nobody has written it."""
    if size > LONGEST_TEXT:
        raise InputError(f"{where} has {size:,} bytes, but a text may have {LONGEST_TEXT:,} at most.")


def read_yaml(path: Path, longest: int = LONGEST_YAML):
    """What a YAML file says, which can be as long as of [`parse_yaml`].

    Raises:
        InputError: if it can't be read or isn't UTF-8, or as of [`parse_yaml`].
    """
    try:
        if path.stat().st_size > 4 * longest:  # as many bytes as a character can have
            raise InputError(f"{path} is too long for YAML: {path.stat().st_size:,} bytes.")
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    return parse_yaml(text, path, longest)


def parse_yaml(text: str, where: str | Path, longest: int = LONGEST_YAML):
    """What a text in YAML says. Aliases are refused: a few lines of them can stand for more than any memory holds.

    Args:
        text (`str`): The YAML.
        where (`str` or `Path`): What messages call it.
        longest (`int`, *optional*, defaults to 100,000): Characters that it may have.

    Raises:
        InputError: for a text that is too long, isn't YAML, is nested too deep, or has an alias or a key twice.
    """
    if len(text) > longest:
        raise InputError(f"{where} is too long for YAML: {len(text):,} characters of {longest:,}.")
    try:
        loader = _PlainLoader(text)
        loader.name = str(where)
        return loader.get_single_data()
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(f"{where} isn't valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{where} is nested too deep.") from error
    except (ValueError, LookupError, AttributeError) as error:  # which PyYAML lets pass
        raise InputError(f"{where} has a value that isn't what it looks like, or is tagged as: {error}.") from error


def split_card(card: str, where: str) -> tuple[dict, str]:
    """The metadata that a card of the Hub begins with, none if it has none, and the text behind them.

    Raises:
        InputError: for metadata that [`parse_yaml`] refuses; `where` is what the message calls them.
    """
    block = METADATA.match(card)
    metadata = parse_yaml(block[1], where, LONGEST_METADATA) if block else None
    if not isinstance(metadata, dict | None):
        raise InputError(f"{where} must hold `field: value` lines.")
    return metadata or {}, card[block.end() :] if block else card


class _PlainLoader(yaml.SafeLoader):
    """Of YAML what stands for itself: plain values, and each key once."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            line = alias.start_mark.line + 1
            raise InputError(f"{self.name}, line {line}: write out what the alias *{alias.anchor} stands for.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, _ in node.value:
            if keys[key.value if isinstance(key, yaml.ScalarNode) else None] > 1:
                raise InputError(f"{self.name} gives {key.value} more than once: give it once.")
        return super().construct_mapping(node, deep)
