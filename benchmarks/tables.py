"""Compare the time and memory that a table takes to load with `pandas.read_csv`.

The file has 1,000,000 rows and 30 columns: 25 of numbers, 3 of categories, a date and the target.
Each turn is a new process, by turns the peer and ours, twice. "Loaded" is the source of a
`TabularDataModule`: read, checked, and encoded as a tensor. "Set up" is also split, with its
statistics fitted, so that batches can be made. The peer is ``pandas.read_csv(file)``. Imports are
made before. Before each turn 2 GB of memory are touched and freed: a virtual machine hands freed
memory back, and the next process would pay for getting it again. The CPU time is that of all
threads; torch has one, since its threads wait by computing. The memory is the process's peak, less
that after the imports.

Run: python benchmarks/tables.py [--rows 1000000]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from _memory import in_process, time_of
from _timing import Bench, Run, arguments, start

LOADED = 'TabularDataModule(path, "y", dates=["when"]).source'
SET_UP = 'TabularDataModule(path, "y", dates=["when"]); kept.setup()'
PEER = "pandas.read_csv(path)"
TOUCH = "import numpy; numpy.ones(2 * 10**9, dtype=numpy.uint8)"


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


def turn(what: str, path: Path, memory: dict[str, list[float]], name: str) -> Run:
    """Return a run in a new process, which also adds its memory to `memory`."""

    def run() -> object:
        subprocess.run([sys.executable, "-c", TOUCH], check=True)
        found = in_process(__file__, "--what", what, "--file", str(path))
        memory.setdefault(name, []).append(found["megabytes"])
        return time_of(found)

    return run


def inside(what: str, path: Path) -> None:
    """Do it, and print time and memory."""
    import json

    import pandas
    import sklearn.model_selection  # noqa: F401
    import torch
    from _memory import measured

    from dlblocks.data import TabularDataModule

    torch.set_num_threads(1)
    names = {"pandas": pandas, "TabularDataModule": TabularDataModule, "path": path}
    print(json.dumps(measured(lambda: exec(f"kept = {what}", names))))


def tables(bench: Bench, rows: int) -> None:
    if not bench.wants("table of"):
        return
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, rows)
        of = {"loaded": LOADED, "set up": SET_UP, "pandas.read_csv": PEER}
        runs = {name: partial(turn, what, path, memory, name) for name, what in of.items()}
        for name, least in (("loaded", 1 / 1.6), ("set up", 1 / 1.8)):
            pair = {name: runs[name], "pandas.read_csv": runs["pandas.read_csv"]}
            title = f"Table of {rows:,} rows and 30 columns, {name}"
            bench.compare(title, pair, unit="s", goals={"pandas.read_csv": least})
            bench.add(f"{title}: memory", {key: memory[key][1:] for key in pair}, "MB")
            memory.clear()


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--what", help="what a new process does")
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.what:
        inside(given.what, given.file)
    else:
        start(partial(tables, rows=given.rows), parser)
