"""One run at a time in a folder: a lock that ends with the process that holds it, however that comes to its end.

with hold_folder("outputs/evaluation"):
    ...  # whoever else wants the folder meanwhile is refused, and told who has it

The kernel keeps the lock, on a file in the folder that says who has it. After a kill that file stays, but keeps nobody
out. Over NFS, Linux asks the server, so that all machines see the lock. Windows has no such lock: nobody is kept out.
"""

import errno
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpt.errors import InputError


try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".hpt.lock"
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what a file system says that has none

_held: dict[Path, tuple[int, int]] = {}  # of this process: the folder's lock file, opened, and the thread


@contextmanager
def hold_folder(folder: str | Path, wait: bool = False) -> Iterator[bool]:
    """Within, no other process works in a folder, and no other thread of this one.

    A folder that isn't there is made, and deleted again if nothing was written into it.

    Args:
        folder (`str` or `Path`): The folder.
        wait (`bool`, *optional*, defaults to `False`): Whether to wait until another lets go of it, as of a cache.

    Returns:
        `bool`: whether the folder is held from here on; not if the same thread holds it already, or on Windows.

    Raises:
        InputError: if another holds it, naming the process, its machine and since when; or if the folder can't be
            written.
    """
    folder = Path(folder).resolve()
    if fcntl is None or _held.get(folder, (None, None))[1] == threading.get_ident():
        yield False
        return
    is_new = not folder.exists()
    try:
        descriptor = _lock(folder / LOCK_FILE, wait)
    except OSError as error:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        where = "" if error.filename == str(folder) else f"{error.filename or LOCK_FILE}: "
        raise InputError(f"Can't work in {folder}: {where}{error.strerror}.") from error
    _held[folder] = descriptor, threading.get_ident()
    try:
        yield True
    finally:
        if _held.pop(folder, None) is not None:  # not in a forked process, which has let go of it
            with suppress(OSError):  # gone, not empty, or not to be written any more
                (folder / LOCK_FILE).unlink()
                if is_new:
                    folder.rmdir()
            os.close(descriptor)


def _lock(file: Path, wait: bool) -> int:
    """A folder's lock file, opened and locked, with this process's name in it."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # also of a folder that whoever made it deletes right then
            if _is_in_the_way(file.parent):
                raise
            continue
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # whoever made the folder has just deleted it
            continue
        try:
            has_locks = _try_lock(descriptor, file, wait)
            if _is_at(descriptor, file):
                try:
                    _write_holder(descriptor, file, has_locks)
                except OSError:  # a full disk
                    file.unlink()
                    raise
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it has just deleted it


def _is_in_the_way(path: Path) -> bool:
    """Whether something else than a folder lies at a path."""
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, file: Path, wait: bool) -> bool:
    """Lock an opened file, or refuse, naming who has it; whether its file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise InputError(
            f"{file.parent} is in use by {_read_holder(descriptor) or 'another process'}: wait until that ends, or "
            f"give another output_dir. If it has ended, and this doesn't, delete {file}."
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        logger.warning(f"Nothing keeps a second run out of {file.parent}: its file system has no locks.")
        return False
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether the opened file still lies at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, file: Path, has_locks: bool) -> None:
    """Write into a lock file who has it, and warn of another in it that may still work, unseen by this machine."""
    host = socket.gethostname()
    before = _read_holder(descriptor)
    if before and not (has_locks and f" on {host} " in before):
        logger.warning(
            f"{file.parent} was in use by {before}, which was killed, or still works there without being seen from "
            "here: make sure that it has ended."
        )
    os.ftruncate(descriptor, 0)
    holder = f"process {os.getpid()} on {host} since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    os.pwrite(descriptor, holder.encode(), 0)


def _read_holder(descriptor: int) -> str:
    """What [`_write_holder`] wrote into a lock file, or an empty text."""
    return " ".join(os.pread(descriptor, 200, 0).decode(errors="replace").split())


def _let_go() -> None:
    """Let a forked process, such as a data loader's worker, not keep its parent's locks when that is killed."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)
