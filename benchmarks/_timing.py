"""Take turns with peers, and keep what was measured. All scripts of this folder use it.

A script defines ``tables(bench)``, which calls `Bench.compare` for each table, and ends with
``start(tables, __doc__)``. All share the arguments ``--turns``, ``--device``, ``--only``,
``--threads`` and ``--out``.

The ratio is peer / ours within a turn: 2 means that the peer takes twice as long. Times are CPU
time of the process unless a table says "wall", because other programs may use the machine.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

UNITS = {"s": 1.0, "ms": 1e3, "µs": 1e6}


class Time(NamedTuple):
    """Seconds by the processor and by the clock."""

    cpu: float
    wall: float


Run = Callable[[], Any]


class Stopwatch:
    """Measure a block: ``with Stopwatch() as watch: …``, then ``watch.time``."""

    time = Time(0.0, 0.0)

    def __enter__(self) -> Stopwatch:
        self._start = Time(time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *args: object) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.time = Time(cpu - self._start.cpu, wall - self._start.wall)


def run_of(run: Run, *, repeats: int = 1, wait: Callable[[], None] = lambda: None) -> Any:
    """Run once or `repeats` times; return its own number, or else the mean time of a call."""
    wait()
    with Stopwatch() as watch:
        for _ in range(repeats):
            found = run()
        wait()
    if isinstance(found, float | Time):
        return found
    return Time(*(seconds / repeats for seconds in watch.time))


class Bench:
    """Compare ours with its peers, and collect the rows.

    Args:
        turns: Turns of each comparison; one more warms up.
        device: ``"cpu"`` or ``"cuda"``.
        only: Part of the titles that are wanted.
        out: File of the rows, written after each table.
    """

    def __init__(
        self, turns: int = 5, device: str = "cpu", only: str = "", out: Path | None = None
    ) -> None:
        self.turns, self.device, self.only, self.out = turns, device, only.lower(), out
        self.rows: list[dict[str, Any]] = []

    def wants(self, title: str) -> bool:
        """Return True if a table is asked for."""
        return self.only in title.lower()

    def compare(
        self,
        title: str,
        runs: Mapping[str, Callable[[], Run]],
        *,
        unit: str = "ms",
        per: float = 1.0,
        repeats: int = 1,
        wall: bool = False,
        goals: Mapping[str, float] | None = None,
        limit: float | None = None,
        floor: Callable[[], float] | None = None,
        floor_is: str = "",
        turns: int | None = None,
    ) -> dict[str, list[float]]:
        """Measure all in turn, print a table, and keep a row for each peer.

        Args:
            title: What is measured.
            runs: For each name a function that makes what is run. The first is ours. One that needs
                a package which is not installed is left out. A run that returns a float or a `Time`
                has measured itself.
            unit: Of a time ``"s"``, ``"ms"`` or ``"µs"``, else any.
            per: Steps or samples of a run; the time is divided by it.
            repeats: Calls of a run in each turn.
            wall: Compare by the clock, for runs in several processes and on a GPU.
            goals: The ratio wanted, by the peer's name.
            limit: The most that ours may take, in `unit`.
            floor: Measures what the machine needs at least, in `unit`, in each turn. The least
                counts, because other programs only make it longer.
            floor_is: What the floor is.
            turns: Instead of the usual number.

        Returns:
            The values of all, by name; empty if the table is not wanted.
        """
        if not self.wants(title):
            return {}
        from dlblocks._quiet import quiet

        wall = wall or self.device == "cuda"
        floors: list[float] = []
        made, found, walls = {}, dict[str, list[float]](), dict[str, list[float]]()
        print(f"\n{title}, {unit}{' by the clock' if wall else ''}", flush=True)
        for name, make in runs.items():
            try:
                made[name] = make()
            except ModuleNotFoundError as error:
                print(f"  {name}: left out, because {error.name} is not installed", flush=True)
        with quiet():
            for turn in range((turns or self.turns) + 1):
                floors += [floor()] if floor else []
                for name, run in made.items():
                    gc.collect()
                    value = run_of(run, repeats=repeats, wait=self.wait)
                    if not turn:  # the first warms up
                        continue
                    if isinstance(value, Time):
                        cpu, clock = (seconds * UNITS[unit] / per for seconds in value)
                        walls.setdefault(name, []).append(clock)
                        value = clock if wall else cpu
                    found.setdefault(name, []).append(value)
        least = min(floors, default=None)
        self._keep(title, found, walls, dict(goals or {}), unit, limit, least, floor_is)
        return found

    def add(
        self,
        title: str,
        values: dict[str, list[float]],
        unit: str,
        goals: Mapping[str, float] | None = None,
    ) -> None:
        """Print and keep a table of values that were measured before, ours first."""
        print(f"\n{title}, {unit}", flush=True)
        self._keep(title, values, {}, dict(goals or {}), unit, None, None, "")

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _keep(
        self, title: str, found: dict[str, list[float]], walls: dict[str, list[float]],
        goals: dict[str, float], unit: str, limit: float | None, floor: float | None,
        floor_is: str,
    ) -> None:  # fmt: skip
        ours, *peers = found
        common = {"table": title, "unit": unit, "name": ours, "ours": found[ours]}
        if floor is not None:
            common |= {"floor": floor, "floor_is": floor_is}
        _say(ours, found[ours])
        if floor is not None:
            shown = statistics.median(found[ours]) / floor
            print(f"  {'floor: ' + floor_is:<40}{floor:10.3f}   ours takes {shown:.1f} times that")
        if limit is not None or not peers:
            row: dict[str, Any] = {**common, "limit": limit}
            if limit is not None:
                row["met"] = statistics.median(found[ours]) <= limit
                print(f"    wanted at most {limit:g}: {_yes(row['met'])}", flush=True)
            self.rows.append(row)
        for peer in peers:
            _say(peer, found[peer])
            row = {**common, "peer": peer, "theirs": found[peer], "goal": goals.get(peer)}
            row["ratio"] = spread(_ratios(found[peer], found[ours]))
            text = "    ratio {median:.2f} ({min:.2f} to {max:.2f})".format(**row["ratio"])
            if peer in walls and ours in walls:
                row["wall_ratio"] = spread(_ratios(walls[peer], walls[ours]))
                text += f", by the clock {row['wall_ratio']['median']:.2f}"
            if row["goal"] is not None:
                row["met"] = row["ratio"]["median"] >= row["goal"]
                text += f"; wanted {row['goal']:g}: {_yes(row['met'])}"
            print(text, flush=True)
            self.rows.append(row)
        if self.out:
            write_rows(self.out, self.rows)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def _say(name: str, values: Sequence[float]) -> None:
    shown = "".join(f"{value:10.3f}" for value in spread(values).values())
    print(f"  {name:<40}{shown}", flush=True)


def _yes(met: bool) -> str:
    return "reached" if met else "missed"


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Return the machine, the versions and the day."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "lightning", "torchvision", "numpy")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "date": date.today().isoformat(),
    }


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return the arguments that all scripts share."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="turns of each comparison")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="part of the titles of the tables wanted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the rows into this JSON file")
    return parser


def start(tables: Callable[[Bench], None], parser: argparse.ArgumentParser | str | None) -> None:
    """Run a script: read its arguments, measure, write the rows.

    Args:
        tables: Measures all.
        parser: The docstring, or the parser of a script with arguments of its own.
    """
    parser = parser if isinstance(parser, argparse.ArgumentParser) else arguments(parser)
    given = parser.parse_args()
    # Torch reads them when it is imported, and so do processes that this one starts.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(given.threads)
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(given.threads)
    machine = hardware(given.device)
    shown = ("cpu", "cores", "gpu", "torch", "lightning")
    print(", ".join(f"{k} {machine[k]}" for k in shown if machine[k]), f"{given.turns} turns")
    bench = Bench(given.turns, given.device, given.only, given.out)
    tables(bench)
    if given.out:  # also if no table was wanted
        write_rows(given.out, bench.rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON."""
    path.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1), encoding="utf-8")
