"""An array on disk with a row for each of many things, computed once by all processes and runs that want it.

    rows = keep_rows(folder, len(images), compute, "Features")  # (number, ...), mapped into memory

`rows.npy` in the folder is whole, or not there. Until then the folder has chunks of it, in `parts/`, which stay
whatever ends a process. Who wants a chunk that another process computes waits for that, wherever both run.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from tqdm.auto import tqdm

from hpt.files import named_if_it_fails
from hpt.locks import hold_folder


ARRAY, PARTS = "rows.npy", "parts"
CHUNK = 1024  # rows, of which a kill loses less than that for each process


def keep_rows(
    folder: Path,
    number: int,
    compute: Callable[[range], np.ndarray],
    title: str,
    *,
    share: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> np.ndarray:
    """The array of a folder, mapped into memory; what isn't there of it is computed now.

    Args:
        folder (`Path`): Where it is kept, by a name that stands for all that it depends on.
        number (`int`): Rows of the array.
        compute (`Callable`): Of the numbers of some rows to these, `(len(numbers), ...)`; it is given the same numbers
            together in every run, from a multiple of [`CHUNK`] on.
        title (`str`): What the progress bar says.
        share (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): Number of this process among so many that begin
            together: each begins elsewhere.
        quiet (`bool`, *optional*, defaults to `False`): Whether there is no progress bar.

    Raises:
        InputError: if the folder can't be locked.
        WriteFailed: if it can't be written, such as on a full disk; what was computed before that is kept.
    """
    chunks = [range(first, min(first + CHUNK, number)) for first in range(0, number, CHUNK)]
    begin = share[0] * len(chunks) // share[1]
    if find_rows(folder, number) is None:
        with tqdm(total=number, desc=title, unit=" images", disable=quiet, leave=False) as bar:
            for chunk in chunks[begin:] + chunks[:begin]:
                _keep_chunk(folder, number, chunk, compute)
                bar.update(len(chunk))
        with hold_folder(folder, wait=True):
            if find_rows(folder, number) is None:
                _join(folder, number, chunks)
    return find_rows(folder, number)


def find_rows(folder: Path, number: int) -> np.ndarray | None:
    """The array of a folder, mapped into memory, if all of it is there."""
    with suppress(OSError, ValueError, EOFError):  # what numpy raises for a file that is missing or cut off
        rows = np.load(folder / ARRAY, mmap_mode="r")
        return rows if len(rows) == number else None


def _keep_chunk(folder: Path, number: int, chunk: range, compute: Callable[[range], np.ndarray]) -> None:
    part = _part(folder, chunk)

    def is_kept() -> bool:  # in this order: parts go once the whole is there
        return find_rows(part, len(chunk)) is not None or find_rows(folder, number) is not None

    if not is_kept():
        with hold_folder(part, wait=True):
            if not is_kept():
                _write(part / ARRAY, len(chunk), [compute(chunk)])


def _part(folder: Path, chunk: range) -> Path:
    return folder / PARTS / f"{chunk.start:09}"


def _join(folder: Path, number: int, chunks: list[range]) -> None:
    """Make the whole of its parts, and delete these."""
    _write(folder / ARRAY, number, (np.load(_part(folder, chunk) / ARRAY) for chunk in chunks))
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def _write(file: Path, number: int, pieces: Iterable[np.ndarray]) -> None:
    """Write an array of so many rows, piece by piece; the file is there once all of it is on the disk."""
    incomplete = file.with_name(f"{file.name}.incomplete")
    with named_if_it_fails(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with incomplete.open("wb") as opened:
                for place, piece in enumerate(pieces):
                    if place == 0:
                        header = {"descr": dtype_to_descr(piece.dtype), "fortran_order": False}
                        write_array_header_1_0(opened, header | {"shape": (number, *piece.shape[1:])})
                    opened.write(np.ascontiguousarray(piece))
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(incomplete, file)
        except BaseException:
            with suppress(OSError):
                incomplete.unlink()
            raise
