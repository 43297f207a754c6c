"""How long an import takes, against that of what it stands on.

Each import runs in a new interpreter, ours and the peer's in turn; the bytecode is compiled before.

Run: python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys

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


def main() -> None:
    """Prints seconds and the ratios of each turn."""
    print(f"{TURNS} turns{'':<26}{'ours':>8}{'peer':>8}{'ratio':>8}{'min':>8}{'max':>8}")
    for ours, peer in PAIRS:
        seconds(ours), seconds(peer)
        pairs = [(seconds(ours), seconds(peer)) for _ in range(TURNS)]
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
