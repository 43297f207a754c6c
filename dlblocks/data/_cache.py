"""Images decoded once into an array file, which is memory-mapped from then on.

The file is a ``.npy`` of uint8 (N, C, H, W). A ``.json`` file beside it says what it was made of.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from dlblocks._files import PART, atomic_write, is_rank_zero

VERSION = 4  # of the files and of how images are made; another one is built anew
ROUNDED = 2.0  # seconds by which a file system may change the time of a file
AT_ONCE = 10_000  # images that wait for a thread

Decode = Callable[[str], np.ndarray]


def cached_images(
    path: Path,
    root: Path,
    files: Sequence[str],
    shape: tuple[int, ...],
    decode: Decode,
    settings: str = "",
) -> Tensor:
    """Returns the decoded `files`, mapped from the array file `path`, which is built if need be.

    The file belongs to a fingerprint of `shape`, `settings` and the names, sizes and times of
    `files`; with another fingerprint it is built anew, which a warning says. It and the JSON file
    beside it appear whole or not at all. Processes that need it at the same time wait for the
    first one to build it.

    Args:
        path: The array file.
        root: The folder in which `files` are; their names count from here.
        files: Images to decode, in this order.
        shape: Shape (C, H, W) of a decoded image.
        decode: Makes such an array, uint8, of a file.
        settings: What else the decoded images depend on, such as ``"background=255"``.

    Returns:
        uint8 images (N, C, H, W) that must not be written to: their memory is read-only.

    Raises:
        FileExistsError: `path` is not a file of ours, or was cut off; it is left as it is.
        OSError: The folder cannot be written to or has no room; no part of the file is left.
    """
    about = {
        "version": VERSION,
        "shape": [len(files), *shape],
        "settings": settings,
        "fingerprint": _fingerprint(root, files, shape, settings),
    }
    images = _open(path, about)
    if images is not None:
        return read_only_tensor(images)
    with _explained(path, about):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as is_held:
        if _open(path, about) is None:  # else another process has built it
            if path.exists():
                why = _what_changed(_read_about(path), about)
                rank_zero_warn(f"{path} is built anew: {why}.")
            if is_held:
                _remove_parts(path)
            _build(path, files, about, decode)
        images = _open(path, about)
    if images is None:
        raise RuntimeError(f"{path} was replaced as soon as it was built; start again.")
    return read_only_tensor(images)


def read_only_tensor(array: np.ndarray) -> Tensor:
    """Shares a read-only array with torch, which has no such tensors; a write would be a crash.

    An array that torch cannot share, of other byte order or negative strides, is copied.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def decode_all(
    files: Sequence[str], decode: Decode, put: Callable[[int, np.ndarray], Any], title: str
) -> None:
    """Calls ``put(i, decode(files[i]))`` for all files, decoding on all cores; one `put` at a time.

    A thread holds one image, so that memory does not grow with the number of files.
    """
    import joblib
    from tqdm import tqdm

    lock = threading.Lock()

    def work(i: int) -> None:
        image = decode(files[i])
        with lock:
            put(i, image)
            bar.update()

    threads = min(joblib.cpu_count(), 16, len(files))
    bar = tqdm(total=len(files), desc=title, disable=not is_rank_zero(), delay=1.0)
    with bar, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), AT_ONCE):
            # After an error or Ctrl-C `map` cancels what has not begun.
            list(pool.map(work, range(start, min(start + AT_ONCE, len(files)))))


def _fingerprint(root: Path, files: Sequence[str], shape: tuple[int, ...], settings: str) -> str:
    digest = hashlib.sha256(f"{VERSION} {shape} {settings}".encode())
    for file in files:
        stat = os.stat(file)
        name = os.fsencode(os.path.relpath(file, root))
        digest.update(b"\0%s\0%d %d" % (name, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _open(path: Path, about: dict[str, Any]) -> np.ndarray | None:
    """Maps the images in the file; None if there is no file, or one of another fingerprint."""
    if not path.exists():
        return None
    found = _read_about(path)
    if found["fingerprint"] != about["fingerprint"]:
        return None
    if path.stat().st_mtime - found["written"] > ROUNDED:
        raise _refusal(path, "another program wrote it")
    shape = tuple(about["shape"])
    return np.memmap(
        path, np.uint8, mode="r", offset=found["bytes"] - math.prod(shape), shape=shape
    )


def _what_changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    if old["version"] != new["version"]:
        return "it was made by another version of dlblocks"
    if old["settings"] != new["settings"]:
        return f"it was made with {old['settings']}, and now {new['settings']}"
    if old["shape"] == new["shape"]:
        return "images have changed since"
    return f"its images are {tuple(old['shape'])}, and now {tuple(new['shape'])}"


def _read_about(path: Path) -> dict[str, Any]:
    """Read what an array file was made of.

    Raises:
        FileExistsError: It is not ours, or not whole.
    """
    name = _beside(path).name
    try:
        found = json.loads(_beside(path).read_bytes())
        kinds = {
            "version": int, "fingerprint": str, "settings": str, "shape": list, "bytes": int,
            "written": float,
        }  # fmt: skip
        if not all(isinstance(found[key], kind) for key, kind in kinds.items()):
            raise TypeError
    except FileNotFoundError as error:
        why = f"another program or an older version of dlblocks wrote it, {name} is missing"
        raise _refusal(path, why) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(path, f"{name} is damaged") from error
    size = path.stat().st_size
    if size != found["bytes"]:
        cut = f"it was cut off from {found['bytes']:,} bytes, or " if size < found["bytes"] else ""
        raise _refusal(path, f"{cut}another program wrote it")
    return found


def _refusal(path: Path, why: str) -> FileExistsError:
    return FileExistsError(
        f"{path} ({path.stat().st_size:,} bytes) is not a complete image cache of dlblocks: {why}. "
        "If you do not need it, delete it, and it is built anew; or choose another folder with "
        "cache='/another/folder'."
    )


def _remove_parts(path: Path) -> None:
    """Removes the unfinished files of builds of `path` that were killed; none is at work now."""
    name = re.compile(rf"\.{re.escape(path.stem)}-\w{{8}}{re.escape(PART)}\.(npy|json)")
    for part in path.parent.iterdir():
        if name.fullmatch(part.name):
            with contextlib.suppress(OSError):  # another user's
                part.unlink()


def _build(path: Path, files: Sequence[str], about: dict[str, Any], decode: Decode) -> None:
    image_size = math.prod(about["shape"][1:])
    form = {"descr": "|u1", "fortran_order": False, "shape": tuple(about["shape"])}
    with (
        _explained(path, about),
        atomic_write(_beside(path)) as description,
        atomic_write(path) as part,
        part.open("r+b") as file,
    ):
        np.lib.format.write_array_header_1_0(file, form)
        start = file.tell()
        size = start + len(files) * image_size
        _reserve(file.fileno(), size)

        # Written, not mapped: on a full disk a write is an error, a mapped page kills the process.
        def put(i: int, image: np.ndarray) -> None:
            file.seek(start + i * image_size)
            file.write(image.tobytes())

        decode_all(files, decode, put, f"decoding into {path.name}")
        file.flush()
        os.fsync(file.fileno())
        written = os.fstat(file.fileno()).st_mtime
        description.write_text(json.dumps({**about, "bytes": size, "written": written}))
        # The array gets its name first. After a kill right then it must not pass for the old one.
        _beside(path).unlink(missing_ok=True)


def _reserve(handle: int, size: int) -> None:
    """Takes the room on the disk, so that a full one is known before hours of decoding."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows: the writes will tell
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # this file system cannot
            raise


@contextlib.contextmanager
def _explained(path: Path, about: dict[str, Any]) -> Iterator[None]:
    """Says which folder an `OSError` is about, and the cure."""
    try:
        yield
    except OSError as error:
        cure = "choose another folder with cache='/another/folder'"
        message = f"{path.parent} cannot hold the image cache ({error}); {cure}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
            limit = f"{free:,} are free"
            if error.errno == errno.EFBIG:
                limit = "a file may not be so large here (see ulimit -f)"
            message = (
                f"{path.parent} has no room for the image cache: {math.prod(about['shape']):,} "
                f"bytes are needed, {limit}; {cure}, or a smaller size."
            )
        raise OSError(error.errno, message) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds a lock on the folder, where the system has such locks; without, work is done twice.

    Gives whether it is held. The library `filelock` would leave a file among the images, which
    other users cannot lock, and fail where the file system has no locks.
    """
    try:
        import fcntl

        handle = os.open(path.parent, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    is_held = False
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                rank_zero_info(f"Waiting for another process that builds {path}.")
                fcntl.flock(handle, fcntl.LOCK_EX)
            is_held = True
        yield is_held
    finally:
        os.close(handle)
