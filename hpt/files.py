"""Files that are whole or as they were before, and texts within bounds.

write_file(folder / "table.md", text)  # replaces the file in one step
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpt.errors import InputError, WriteFailed


LONGEST_TEXT = 16_000_000  # bytes of a card, or of a list of names
INCOMPLETE = "incomplete"  # the folder in which what is to be in another is prepared


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


@contextmanager
def filled_at_once(folder: Path, last: str) -> Iterator[Path]:
    """A folder within `folder` to write into: at the end, what is in it moves up, the file `last` after all others.

    So `folder` holds that file only once everything else is in it. Whoever fails before leaves nothing behind; what a
    kill has left is taken away by the next.
    """
    incomplete = folder / INCOMPLETE
    shutil.rmtree(incomplete, ignore_errors=True)
    with named_if_it_fails(folder):
        incomplete.mkdir(parents=True)
    try:
        yield incomplete
        with named_if_it_fails(folder):
            for file in sorted(incomplete.iterdir(), key=lambda file: file.name == last):
                os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def read_blocks(path: str | Path) -> Iterator[bytes]:
    """A file of any size in blocks of 1 MiB."""
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            yield block


def hash_file(path: str | Path) -> str:
    """The SHA-256 of a file of any size: 64 hexadecimal digits."""
    state = hashlib.sha256()
    for block in read_blocks(path):
        state.update(block)
    return state.hexdigest()


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


def refuse_large(size: int, where: str | Path) -> None:
    """Refuse a text of so many bytes that nobody has written it."""
    if size > LONGEST_TEXT:
        raise InputError(f"{where} has {size:,} bytes, but a text may have {LONGEST_TEXT:,} at most.")


def check_folder(folder: Path) -> Path:
    """The folder, which needn't be there yet; [`InputError`] if it can't be made or written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"The results can't be written to {folder}: {there} isn't a folder that can be written.")
    return folder
