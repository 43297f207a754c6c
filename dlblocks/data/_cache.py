"""Decode images once into an array file, and memory-map it.

The file is a ``.npy`` of uint8 (N, C, H, W). A ``.json`` file beside it describes its sources.
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
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from dlblocks._files import PART, atomic_write, is_rank_zero

VERSION = 4  # of the files and of the decoding; files of another version are rebuilt
ROUNDED = 2.0  # seconds by which a file system may round the time of a file
AT_ONCE = 10_000  # images that wait for a thread

Decode = Callable[[str], np.ndarray]


def cached_images(
    path: Path,
    root: Path,
    files: Sequence[str],
    shape: tuple[int, ...],
    decode: Decode,
    settings: str = "",
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Return decoded images, mapped from an array file.

    The file is built if it does not exist. It belongs to a fingerprint of `shape`, `settings` and
    the names, sizes and times of `files`. If the fingerprint differs, the file is rebuilt with a
    warning. It and the JSON file beside it are written completely or not at all. If several
    processes need it at the same time, one builds it and the others wait.

    Args:
        path: The array file.
        root: Folder of `files`. Their names are relative to it.
        files: Images to decode, in this order.
        shape: Shape (C, H, W) of a decoded image.
        decode: Decodes a file into a uint8 array of this shape.
        settings: Other settings of the decoding, such as ``"background=255"``.
        counts: Number of images that each file holds, such as tiles. `decode` then returns them as
            one array, with one more axis. None: one image.

    Returns:
        uint8 images (N, C, H, W). Do not write to them: their memory is read-only.

    Raises:
        FileExistsError: `path` is another program's file, or truncated. It is left as it is.
        OSError: The folder cannot be written to or is full. No part of the file is left.
    """
    about = {
        "version": VERSION,
        "shape": [len(files) if counts is None else sum(counts), *shape],
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
                rank_zero_warn(f"{path} is rebuilt: {why}.")
            if is_held:
                _remove_parts(path)
            _build(path, files, about, decode, first_rows(len(files), counts))
        images = _open(path, about)
    if images is None:
        raise RuntimeError(f"{path} was replaced as soon as it was built; start again.")
    return read_only_tensor(images)


def read_only_tensor(array: np.ndarray) -> Tensor:
    """Share a read-only array with torch.

    Torch has no read-only tensors, so writing to the tensor crashes. An array with another byte
    order or negative strides, which torch cannot share, is copied.
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
    """Call ``put(i, decode(files[i]))`` for all files.

    Decoding runs on all cores, `put` in one thread at a time. Each thread holds one image, so that
    memory does not grow with the number of files.
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
            # After an error or Ctrl-C, `map` cancels the files that wait.
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
    """Map the images in the file.

    Returns:
        None if the file does not exist or has another fingerprint.
    """
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
        return "it was built by another version of dlblocks"
    if old["settings"] != new["settings"]:
        return f"it was built with {old['settings']}, and now it is {new['settings']}"
    if old["shape"] == new["shape"]:
        return "images have changed since"
    return f"its images have shape {tuple(old['shape'])}, and now it is {tuple(new['shape'])}"


def _read_about(path: Path) -> dict[str, Any]:
    """Read the description beside an array file.

    Raises:
        FileExistsError: The file is another program's, or truncated.
    """
    name = _beside(path).name
    try:
        found: dict[str, Any] = json.loads(_beside(path).read_bytes())
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
        cut = f"it is truncated from {found['bytes']:,} bytes, or " if size < found["bytes"] else ""
        raise _refusal(path, f"{cut}another program wrote it")
    return found


def _refusal(path: Path, why: str) -> FileExistsError:
    return FileExistsError(
        f"{path} ({path.stat().st_size:,} bytes) is not a complete image cache of dlblocks: {why}. "
        "If you do not need it, delete it to have it rebuilt, or choose another folder with "
        "cache='/another/folder'."
    )


def _remove_parts(path: Path) -> None:
    """Remove unfinished files that killed builds of `path` have left.

    Call it while no build is running.
    """
    name = re.compile(rf"\.{re.escape(path.stem)}-\w{{8}}{re.escape(PART)}\.(npy|json)")
    for part in path.parent.iterdir():
        if name.fullmatch(part.name):
            with contextlib.suppress(OSError):  # it is another user's
                part.unlink()


def first_rows(num_files: int, counts: Sequence[int] | None) -> list[int]:
    """Return the row of the first image of each file.

    Example:
        >>> first_rows(3, [2, 1, 4])
        [0, 2, 3]
    """
    if counts is None:
        return list(range(num_files))
    return [0, *accumulate(counts)][:-1]


def _build(
    path: Path,
    files: Sequence[str],
    about: dict[str, Any],
    decode: Decode,
    first: Sequence[int],
) -> None:
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
        size = start + about["shape"][0] * image_size
        _reserve(file.fileno(), size)

        # Written, not mapped: on a full disk a write raises an error, but a mapped page kills the
        # process.
        def put(i: int, image: np.ndarray) -> None:
            file.seek(start + first[i] * image_size)
            file.write(image.tobytes())

        decode_all(files, decode, put, f"decoding into {path.name}")
        file.flush()
        os.fsync(file.fileno())
        written = os.fstat(file.fileno()).st_mtime
        description.write_text(json.dumps({**about, "bytes": size, "written": written}))
        # The array is renamed first. If the process is killed before the description is, the old
        # description must not be there, or the new array would be mistaken for the old one.
        _beside(path).unlink(missing_ok=True)


def _reserve(handle: int, size: int) -> None:
    """Reserve disk space, so that a full disk fails before decoding."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows: the writes will fail
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # unsupported by the file system
            raise


@contextlib.contextmanager
def _explained(path: Path, about: dict[str, Any]) -> Iterator[None]:
    """Add folder and cure to the message of an `OSError`."""
    try:
        yield
    except OSError as error:
        cure = "choose another folder with cache='/another/folder'"
        message = f"{path.parent} cannot hold the image cache ({error}); {cure}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free
            limit = f"{free:,} are free"
            if error.errno == errno.EFBIG:
                limit = "but files may not be so large here (see ulimit -f)"
            message = (
                f"{path.parent} has no room for the image cache: {math.prod(about['shape']):,} "
                f"bytes are needed, {limit}; {cure}, or a smaller size."
            )
        raise OSError(error.errno, message) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock on the folder, and yield whether it is held.

    Without support for locks, several processes may do the work. The library `filelock` would leave
    a file among the images that other users cannot lock, and fail without support.
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
