"""Choose the folder of a run, and lock it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from dlblocks._files import LOCK, PLAN, SUMMARY, OtherRunError, is_part, is_rank_zero

# The variable by which rank 0 tells other ranks the run folders of all calls.
RUN_DIR = "DLBLOCKS_RUN_DIR"
RETRY_SECONDS = 1.0
# Errors of file systems without locks, and of folders that cannot be written.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS}
T = TypeVar("T")
_chosen: list[str] = []
# Files that the next run writes beside its plan: name → function of the path.
_beside: ContextVar[Mapping[str, Callable[[Path], None]]] = ContextVar(
    "beside", default=MappingProxyType({})
)


def in_run_dir(
    run_dir: str | os.PathLike[str] | None,
    base: str,
    run: Callable[[Path], T],
    *,
    resume: bool,
) -> T:
    """Run in a run folder, and hold its lock.

    Args:
        run_dir: The folder; None for ``base``, ``base-2``, …, as `numbered` chooses.
        base: The folder where none is given.
        run: Called with the folder.
        resume: Try folders of unfinished runs too.

    Raises:
        BlockingIOError: Another process works in `run_dir`.
    """

    def hold(path: Path) -> T:
        with locked(path) if is_rank_zero() else contextlib.nullcontext():
            return run(path)

    return hold(Path(run_dir)) if run_dir else numbered(base, hold, resume=resume)


def numbered(base: str | os.PathLike[str], run: Callable[[Path], T], *, resume: bool) -> T:
    """Run in the first free folder of ``base``, ``base-2``, ….

    Free is a folder that is empty, or can be resumed.

    Args:
        base: The folder.
        run: Called with a folder; raises an `OtherRunError` if that holds another run.
        resume: Try folders of unfinished runs too. A finished run is never taken.
    """
    for path in _run_dirs(base, resume=resume, in_use=_in_use):
        was_empty = not holds_something(path)
        try:
            return run(path)
        except OtherRunError:
            if was_empty or not is_rank_zero():
                raise
    raise AssertionError  # for the type checker: there is always another number


@contextlib.contextmanager
def writing_beside_plan(name: str, write: Callable[[Path], None]) -> Iterator[None]:
    """Write one more file into the folder of the run that begins inside this context.

    Only the first run gets it, not those within it, such as inner cross-validations. It is written
    after the plan and before the first fit, and added to a resumed run that lacks it.

    Args:
        name: Name of the file.
        write: Called with its path.
    """
    token = _beside.set({name: write})
    try:
        yield
    finally:
        _beside.reset(token)


def write_beside_plan(run_dir: Path) -> None:
    """Write the file of `writing_beside_plan`, unless it is there or was written already."""
    for name, write in _beside.get().items():
        if not (run_dir / name).exists():
            write(run_dir / name)
    _beside.set({})


def next_run_dir(base: str | os.PathLike[str], *, resume: bool = False) -> Path:
    """Return the first empty folder of ``base``, ``base-2``, ….

    With `resume` the folder of an unfinished run counts as empty.

    Raises:
        ValueError: A launcher such as torchrun has started the processes, which cannot be told.
    """
    return next(_run_dirs(base, resume=resume))


def check_new_run_dir(run_dir: str | os.PathLike[str], *, but: Collection[str] = ()) -> Path:
    """Return `run_dir` as a path, or raise a `FileExistsError`."""
    path = Path(run_dir)
    if holds_something(path, but=but):
        raise OtherRunError(
            f"run_dir='{run_dir}' already holds a run; choose another run_dir, or delete it first."
        )
    return path


def holds_something(path: Path, *, but: Collection[str] = ()) -> bool:
    """Return True unless `path` is free for a new run.

    The lock, half-written files and those named in `but` do not count.
    """
    if not path.is_dir():
        return path.exists()
    names = (entry.name for entry in path.iterdir())
    return any(name not in (LOCK, *but) and not is_part(name) for name in names)


@contextlib.contextmanager
def locked(folder: Path, *, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder, and create the folder.

    The lock is the operating system's, on the file ``.lock``, which names its holder and is removed
    at the end. It ends with its process, even by ``kill -9``; a file that such a process leaves
    behind locks nothing. Processes that were forked from the holder do not share it.

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
    lock = _acquire(folder, waiting)
    try:
        yield
    finally:
        if lock is not None:
            # While it is held: who has opened the file before sees that it is gone.
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing came of it


def know_rank(num_nodes: int) -> None:
    """Tell Lightning the rank of a node that was started by hand.

    ``NODE_RANK`` is set there, and otherwise only the Trainer reads it, too late.
    """
    from lightning.pytorch.utilities import rank_zero_only

    launched = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    if num_nodes > 1 and not any(name in os.environ for name in launched):
        said: Any = rank_zero_only
        said.rank = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))


def say(*texts: str | None) -> None:
    """Print texts on stderr, on rank 0."""
    for text in texts:
        if text and is_rank_zero():
            print(text, file=sys.stderr, flush=True)


def say_resumed(run_dir: Path, done: int, total: int, what: str) -> None:
    """Print that a run is resumed or loaded, with its date.

    Args:
        run_dir: Its folder, with a ``plan.json``.
        done: How many fits are finished.
        total: How many there are.
        what: Name of the fits, such as ``"folds"``.
    """
    if any((parent / PLAN).is_file() for parent in run_dir.absolute().parents):
        return  # an inner run; the outer one has printed it
    is_finished = done == total and (run_dir / SUMMARY).is_file()
    date = time.localtime((run_dir / (SUMMARY if is_finished else PLAN)).stat().st_mtime)
    when = time.strftime("%Y-%m-%d %H:%M", date)
    if is_finished:
        say(f"{run_dir}: finished {when}, loaded; pass another run_dir for a new run.")
    else:
        say(f"{run_dir}: resuming a run of {when}, {done} of {total} {what} done.")


def _run_dirs(
    base: str | os.PathLike[str],
    *,
    resume: bool,
    in_use: Callable[[Path], bool] = lambda path: False,
) -> Iterator[Path]:
    """Yield the folders that a run may use, of ``base``, ``base-2``, ….

    They hold nothing, or with `resume` an unfinished run that is not `in_use`. The processes that
    Lightning starts for the other ranks run the same script a little later, when rank 0 has begun
    to write. They learn through the environment which folder each call has chosen. Once they are
    connected, rank 0 sends them the first that holds nothing.

    Raises:
        ValueError: A launcher such as torchrun has started the processes, which cannot be told.
    """
    base = Path(base)
    call = len(_chosen)
    if not is_rank_zero():
        told = os.environ.get(RUN_DIR, "").split(os.pathsep)
        _chosen.append(told[call] if call < len(told) else from_rank_zero(None))
        yield Path(_chosen[call])
        return
    if not _connected():
        _check_one_process(base)
    number, path = 1, base
    while True:
        unfinished = (path / PLAN).is_file() and not (path / SUMMARY).is_file()
        resumes = resume and unfinished and not _connected() and not in_use(path)
        if resumes or not holds_something(path):
            _chosen[call:] = [str(path)]
            os.environ[RUN_DIR] = os.pathsep.join(_chosen)
            from_rank_zero(str(path))
            yield path
        number += 1
        path = base.with_name(f"{base.name}-{number}")


def _connected() -> bool:
    """Return True if the ranks of this run are connected."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def from_rank_zero(value: Any) -> Any:
    """Return the value of rank 0 on every connected rank."""
    import torch

    if not _connected():
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held)
    return held[0]


def _check_one_process(base: Path) -> None:
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for launcher, size in (
        ("torchrun", TorchElasticEnvironment.detect() and os.environ.get("WORLD_SIZE")),
        ("srun", SLURMEnvironment.detect() and os.environ.get("SLURM_NTASKS")),
    ):
        if size and int(size) > 1:
            raise ValueError(
                f"{launcher} has started {size} processes, each of which would choose a run folder "
                f"by itself; give run_dir, such as run_dir='{base}'."
            )


def _in_use(folder: Path) -> bool:
    try:
        with locked(folder):
            return False
    except BlockingIOError:
        return True


def _acquire(folder: Path, waiting: str | None) -> FileLock | None:
    path, seconds = folder / LOCK, 0.0
    lock = FileLock(path, thread_local=False)
    try:
        while not lock.is_locked:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=seconds)
            except Timeout:
                holder = "another process"
                with contextlib.suppress(OSError):  # it may have ended by now
                    holder = path.read_text(errors="replace") or holder
                if waiting is None:
                    raise BlockingIOError(
                        f"run_dir='{folder}' is in use by {holder}: two at once would spoil each "
                        "other's files. Wait until it has ended or stop it, and call again; or "
                        "choose another run_dir.",
                    ) from None
                if waiting:
                    print(f"{waiting} ({holder})", file=sys.stderr, flush=True)
                waiting, seconds = "", RETRY_SECONDS
            except FileNotFoundError:
                continue  # its last holder has removed the folder
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    except OSError as error:
        if error.errno in NO_WRITING:
            return None
        if error.errno == errno.ELOOP:
            raise OSError(
                f"{path} is a symbolic link, which is not followed: another file would be "
                "overwritten. Delete the link."
            ) from error
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"The file system of run_dir='{folder}' has no locks ({error}): see to it that "
            "no other process works there.",
            stacklevel=4,
        )
        path.unlink(missing_ok=True)
        return None
    return lock
