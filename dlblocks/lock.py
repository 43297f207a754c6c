"""Only one process at a time works in a run folder, and only one at a time on a fold."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from dlblocks.files import LOCK, OtherRunError, holds_something, is_rank_zero, run_dirs

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

RETRY_SECONDS = 0.2
# How file systems say that they have no locks, or that this user may not write here.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS}
_held: set[int] = set()
T = TypeVar("T")


def numbered(base: str | os.PathLike[str], run: Callable[[Path], T], *, resume: bool) -> T:
    """Run in ``base``, ``base-2``, …: the first folder that is empty, or can be resumed.

    Args:
        base: The folder.
        run: Called with a folder; raises an `OtherRunError` if that holds another run.
        resume: Try folders of unfinished runs too. A finished run is never taken.
    """
    for path in run_dirs(base, resume=resume, in_use=_in_use):
        was_empty = not holds_something(path)
        try:
            return run(path)
        except OtherRunError:
            if was_empty or not is_rank_zero():
                raise
    raise AssertionError  # for the type checker: there is always another number


def _in_use(folder: Path) -> bool:
    try:
        with locked(folder):
            return False
    except BlockingIOError:
        return True


@contextlib.contextmanager
def locked(folder: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Holds the lock of a folder, which is made if need be.

    The lock is the operating system's (`flock`) on the file ``.lock``, which names its holder and
    is removed at the end. It ends with its process, even by ``kill -9``; a file that such a process
    leaves behind locks nothing. Processes that were forked from the holder do not share it.

    It holds between machines wherever the file system has such locks: NFS since Linux 2.6.12 (all
    machines must mount it without ``local_lock`` or ``nolock``), Lustre mounted with ``flock``,
    BeeGFS with ``tuneUseGlobalFileLocks``, GPFS; an NFS server releases the locks of a machine
    that has died after its lease, about 90 seconds. Where there are no locks, a warning says so
    and nothing is locked. A folder that cannot be written is not locked either.

    Args:
        folder: The folder.
        waiting: What to say, once, while another process holds it; None for an error instead.

    Raises:
        BlockingIOError: Another process holds it.
    """
    is_new = not folder.exists()
    handle = _acquire(folder, waiting)
    try:
        yield
    finally:
        if handle is not None:
            # While it is held: who has opened the file before sees that it is gone.
            (folder / LOCK).unlink(missing_ok=True)
            _held.discard(handle)
            os.close(handle)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing came of it


def _acquire(folder: Path, waiting: str | None) -> int | None:
    path = folder / LOCK
    while fcntl is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno in NO_WRITING:
                return None
            if error.errno == errno.ELOOP:
                raise OSError(
                    f"{path} is a symbolic link, which is not followed: another file would be "
                    "overwritten. Delete the link."
                ) from error
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, handle):
                _held.add(handle)
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
            os.close(handle)
        except BlockingIOError:
            holder = os.read(handle, 1000).decode(errors="replace") or "another process"
            os.close(handle)
            if waiting is None:
                raise BlockingIOError(
                    f"run_dir='{folder}' is in use by {holder}: two at once would spoil each "
                    "other's files. Wait until it has ended or stop it, and call again; or choose "
                    "another run_dir.",
                ) from None
            if waiting:
                print(f"{waiting} ({holder})", file=sys.stderr, flush=True)
                waiting = ""
            time.sleep(RETRY_SECONDS)
        except OSError as error:
            os.close(handle)
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"The file system of run_dir='{folder}' has no locks ({error}): see to it that "
                "no other process works there.",
                stacklevel=3,
            )
            path.unlink(missing_ok=True)
            return None
    return None


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one of that name, not one that its last holder has removed."""
    try:
        mine, there = os.fstat(handle), path.lstat()
    except OSError:
        return False
    return mine.st_nlink > 0 and os.path.samestat(mine, there)


def _let_go() -> None:
    """In a forked process: the lock is the parent's, and must end with it."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
