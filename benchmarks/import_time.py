"""How long an import takes, against that of what it stands on; and ``dlblocks --help``.

Each import runs in a new interpreter, ours and the peer's in turn; the bytecode is compiled before.
For ``--help`` the whole process is timed, against one that imports torch.

Run: python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial

TURNS = 9
PAIRS = [
    ("dlblocks", "torch"),
    ("dlblocks.nets", "torch"),
    ("dlblocks.optim", "torch"),
    ("dlblocks.models", "lightning.pytorch"),
    ("dlblocks.data", "lightning.pytorch"),
    ("dlblocks.callbacks", "lightning.pytorch"),
    ("dlblocks.crossval", "lightning.pytorch"),
]


def seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def whole(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Prints seconds and the ratios of each turn."""
    print(f"{TURNS} turns{'':<26}{'ours':>8}{'peer':>8}{'ratio':>8}{'min':>8}{'max':>8}")
    timed = [(ours, peer, partial(seconds, ours), partial(seconds, peer)) for ours, peer in PAIRS]
    of_help = partial(whole, "-m", "dlblocks", "--help")
    timed.append(("dlblocks --help", "torch", of_help, partial(whole, "-c", "import torch")))
    for ours, peer, run_ours, run_peer in timed:
        run_ours(), run_peer()
        pairs = [(run_ours(), run_peer()) for _ in range(TURNS)]
        ratios = [a / b for a, b in pairs]
        shown = [
            statistics.median(a for a, _ in pairs),
            statistics.median(b for _, b in pairs),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
        ]
        print(f"{ours + ' / ' + peer:<33}" + "".join(f"{value:8.3f}" for value in shown))


if __name__ == "__main__":
    main()
