"""Peak memory of processes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from _timing import Time


def read(name: str) -> float:
    """Return memory of this process in MB: ``"VmRSS"`` is that of now, ``"VmHWM"`` the peak."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) / 1024 if found else float("nan")


def peak() -> float:
    """Return the peak of this process in MB, since its start or `forget`."""
    return read("VmHWM")


def forget() -> None:
    """Forget the peak so far, which is that of the imports."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def in_process(file: str, *arguments: str) -> dict[str, float]:
    """Run a script in a new process, and read the JSON in the last line that it prints."""
    command = [sys.executable, file, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(run: Callable[[], object]) -> dict[str, float]:
    """Return seconds of a run, and the memory that it needs beyond what was there."""
    from _timing import run_of

    forget()
    before = read("VmRSS")
    time = run_of(run)
    return {"cpu": time.cpu, "wall": time.wall, "megabytes": peak() - before}


def time_of(found: Mapping[str, float]) -> Time:
    """Return the times that `measured` has found."""
    return Time(found["cpu"], found["wall"])
