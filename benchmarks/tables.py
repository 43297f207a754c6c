"""Measure how long a table takes to load, and how much memory, beside `pandas.read_csv` alone.

The file has 1,000,000 rows and 30 columns: 25 of numbers, 3 of categories, a date and the target.
Each turn is a new process, by turns the peer and ours, twice. "Loaded" is the source of a
`TabularDataModule`: read, checked, and encoded as a tensor. "Set up" is also split, with its
statistics fitted, so that batches can be made. The peer is ``pandas.read_csv(file)``. Imports are
made before. Before each turn 2 GB of memory are touched and freed: a virtual machine hands freed
memory back, and the next process would pay for getting it again. The CPU time is that of all
threads; torch has one, since its threads wait by computing. The memory is the process's peak, less
that after the imports.

Measured (two CPU cores; pandas 3.1; seven turns): loaded, time 1.52 (1.41 to 1.77) times that of
pandas, CPU time 1.39 (1.38 to 1.60), memory 1.00; set up, time 1.74 (1.65 to 1.95), CPU time 1.66
(1.54 to 1.74), memory 1.00.

Run: python benchmarks/tables.py [--turns 5] [--rows 1000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LOADED = 'TabularDataModule(path, "y", dates=["when"]).source'
SET_UP = 'TabularDataModule(path, "y", dates=["when"]); kept.setup()'
PEER = "pandas.read_csv(path)"
TOUCH = "import numpy; numpy.ones(2 * 10**9, dtype=numpy.uint8)"
TURN = """
import json, resource, sys, time
import numpy, pandas, sklearn.model_selection, torch
from dlblocks.data import TabularDataModule
path, torch_threads = sys.argv[1], torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, cpu, start = peak(), time.process_time(), time.perf_counter()
kept = {what}
seconds = time.perf_counter() - start
print(json.dumps([seconds, time.process_time() - cpu, peak() - before]))
"""


def write(path: Path, rows: int) -> None:
    """Writes the file."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    table = {f"x{i}": rng.normal(100, 15, rows).round(3) for i in range(20)}
    table |= {f"n{i}": rng.integers(0, 1000, rows) for i in range(5)}
    table |= {f"kind{i}": rng.choice(list("abcdefgh"), rows) for i in range(3)}
    table["when"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 2000, rows), "D")
    table["y"] = rng.choice(["no", "yes"], rows)
    pd.DataFrame(table).to_csv(path, index=False)


def turn(what: str, path: Path) -> list[float]:
    """Seconds, seconds of CPU time, and MiB of one process."""
    code = TURN.replace("{what}", what)
    subprocess.run([sys.executable, "-c", TOUCH], check=True)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    measured: list[float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, args.rows)
        print(f"{args.rows:,} rows × 30 columns, {path.stat().st_size / 2**20:.0f} MiB")
        turns = [[turn(what, path) for what in (PEER, LOADED, SET_UP)] for _ in range(args.turns)]
    for side, name in enumerate(["loaded", "set up"], start=1):
        for i, (what, unit) in enumerate([("time", "s"), ("CPU time", "s"), ("memory", "MiB")]):
            ratios = [one[side][i] / one[0][i] for one in turns]
            peers, own = (statistics.median(one[of][i] for one in turns) for of in (0, side))
            print(
                f"{name}, {what}: ours / pandas.read_csv {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} … {max(ratios):.2f}); medians {own:.1f} and {peers:.1f} {unit}"
            )


if __name__ == "__main__":
    main()
