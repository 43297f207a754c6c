"""Write files atomically, and name damaged ones in errors."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# The first and the last file of a run, and the one that exists while it runs.
PLAN, SUMMARY, LOCK = "plan.json", "summary.json", ".lock"
# The cure of a damaged file of a finished run.
AGAIN = "delete summary.json and make the same call again, which writes both anew"
PART = ".part"  # in the name of a file that is being written


class DamagedFileError(ValueError):
    """A file of a run cannot be read."""


class OtherRunError(FileExistsError):
    """The run folder holds something else."""


def is_rank_zero() -> bool:
    """Return True on rank 0, also before there is a Trainer."""
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file by a temporary path beside it.

    At the end that is renamed to `path`; on an error it is removed. The temporary name keeps the
    ending, from which some writers choose their format. The content is on the disk before the file
    has its name, so that a power cut leaves the old or the new file.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "deep" / "note.txt"
    >>> with atomic_write(target) as part:
    ...     _ = part.write_text("done")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('done', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(f"{PART}{path.suffix}", f".{path.stem}-", path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        # mkstemp makes a private file; what is finished gets the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def put_in_place(part: Path, path: Path) -> None:
    """Flush a finished file to the disk, and rename it."""
    _sync(part)
    os.replace(part, path)
    with contextlib.suppress(OSError):  # not every system can do that with a folder
        _sync(path.parent, os.O_RDONLY)


def is_part(name: str) -> bool:
    """Return True for the name of a half-written file."""
    return re.fullmatch(r"\..*-\w{8}\.part(\.\w+)?|last\.ckpt\.part", name) is not None


def remove_parts(run_dir: Path) -> None:
    """Remove the files that a killed run has left half written."""
    for path in run_dir.rglob(f"*{PART}*"):
        if is_part(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON.

    Values that JSON lacks are written as text. A number that is not finite becomes null: JSON has
    no NaN, and other readers refuse it.
    """
    with atomic_write(path) as part:
        part.write_text(json.dumps(_finite(value), indent=2, default=str) + "\n")


def read_json(path: Path, cure: str) -> Any:
    """Read a JSON file of a run. Errors name file and `cure`."""
    with reading(path, cure):
        found = json.loads(path.read_text())
        if not found:
            raise ValueError(f"it holds {found!r}")
        return found


def is_json(path: Path) -> bool:
    """Return True for a JSON file that can be read."""
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with all their keys as columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path, *, texts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read the rows that `write_rows` wrote.

    Numbers come as numbers, and an empty cell as a missing key.

    Args:
        path: The file.
        texts: Columns that stay texts, also where they look like numbers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: text if key in texts else _parse(text) for key, text in row.items() if text}
            for row in csv.DictReader(file)
        ]


def is_whole(path: Path) -> bool:
    """Return True for a checkpoint or ``.npz`` whose checksums (CRC-32) are right."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except PermissionError:
        raise
    except Exception:  # zipfile has many
        return False


def write_record(path: Path, record: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write a JSON object with checksums of itself and of other files.

    Args:
        path: The file.
        record: The object.
        files: Files of the run beside or below it; those that do not exist are left out.
    """
    sums = {os.path.relpath(file, path.parent): _checksum(file) for file in files if file.is_file()}
    plain = json.loads(json.dumps(_finite({**record, "files": sums}), default=str))
    write_json(path, {**plain, "checksum": _digest(plain)})


def read_record(path: Path, cure: str) -> dict[str, Any]:
    """Read an object of `write_record`, and check its checksum."""
    with reading(path, cure):
        found: dict[str, Any] = json.loads(path.read_text())
        if found.pop("checksum", None) not in (None, _digest(found)):
            raise ValueError("its content does not fit its checksum")
        return found


def check_files(path: Path, record: Mapping[str, Any], cure: str) -> None:
    """Raise a `ValueError` if a file has changed since the record.

    Missing files are an error only where they are read.

    Args:
        path: Where the record is.
        record: The record, with ``files``.
        cure: The advice in the error.
    """
    for name, checksum in record.get("files", {}).items():
        file = path.parent / name
        with reading(file, cure):
            if file.is_file() and _checksum(file) != checksum:
                raise ValueError(f"it is not the file that {path.name} was written with")


@contextlib.contextmanager
def reading(path: Path, cure: str) -> Iterator[None]:
    """Name the damaged file and the cure in errors.

    Args:
        path: The file, read inside.
        cure: The advice in the error.
    """
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error!r})"
        raise DamagedFileError(f"{path} {what}; {cure}.") from error


def _sync(path: Path, how: int = os.O_RDWR) -> None:
    handle = os.open(path, how)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    """Return SHA-256, of large files that of the checksums within."""
    if path.suffix in (".ckpt", ".npz") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            return _digest([(entry.filename, entry.CRC) for entry in file.infolist()])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def _parse(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
