"""Compare the time of an import with that of what it stands on; and ``dlblocks --help``.

Each import runs in a new interpreter; the bytecode is compiled before. For ``--help`` the whole
process is timed, against one that imports torch.

Run: python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from _timing import Bench, Run, Time, start

PAIRS = {
    "dlblocks": "torch",
    "dlblocks.nets": "torch",
    "dlblocks.optim": "torch",
    "dlblocks.models": "lightning.pytorch",
    "dlblocks.data": "lightning.pytorch",
    "dlblocks.callbacks": "lightning.pytorch",
    "dlblocks.crossval": "lightning.pytorch",
}


def importing(module: str) -> Run:
    clocks = "(time.process_time(), time.perf_counter())"
    code = f"import time; a = {clocks}; import {module}; b = {clocks}; print(b[0]-a[0], b[1]-a[1])"

    def run() -> Time:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Time(*map(float, done.stdout.split()))

    return run


def process(*arguments: str) -> Run:
    return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)


def tables(bench: Bench) -> None:
    for ours, peer in PAIRS.items():
        runs = {f"import {name}": partial(importing, name) for name in (ours, peer)}
        bench.compare(f"import {ours}", runs, unit="s")
    runs = {
        "dlblocks --help": partial(process, "-m", "dlblocks", "--help"),
        "import torch": partial(process, "-c", "import torch"),
    }
    bench.compare("dlblocks --help", runs, unit="s", wall=True, goals={"import torch": 1 / 0.8})


if __name__ == "__main__":
    start(tables, __doc__)
