"""Run what concerns a GPU, in at most eight minutes: the tests marked `gpu`, and a few tables.

- The tests: mixing, augmentation and metrics never wait for the GPU, runs with
  ``deterministic=True`` resume to the last bit, projected steps and folds as one fit are as on the
  CPU, bf16 learns.
- *Engine*: ten folds of an MLP and of a CNN as one fit, against one after another; a step of them
  by vmap and compiled.
- *Resident data*: at most 5 % of a step of ResNet-18.
- *AdamP* against the authors' code and torch's fused Adam; bf16 and channels-last; mixing.

Without a GPU, ``--device cpu`` runs the same at small sizes, so that only the device is untried.

Run: pip install 'dlblocks[bench,dev]', then
python benchmarks/gpu.py --device cuda --out benchmarks/results/NAME.json
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import data_path
import mixing
import optimizers
import run
import vectorized
import vision
from _timing import Bench, arguments, hardware

LIMIT = 420  # seconds, after which no further part begins


def engine(bench: Bench) -> None:
    """Compare the engines."""
    nets = {"MLP": (vectorized.mlp, 10), "CNN": (partial(vectorized.cnn, 16, 32), 3)}
    for name, (make, epochs) in nets.items():
        epochs = epochs if bench.device == "cuda" else 1
        bench.compare(
            f"GPU: {vectorized.FOLDS} folds, {name}",
            {
                way: partial(vectorized.folds, make, way, epochs, bench.device)
                for way in ("vectorized", "sequential")
            },
            unit="s",
            goals={"sequential": 8},
            turns=min(3, bench.turns),
        )
    vectorized.steps(bench)


def projected(bench: Bench) -> None:
    """Compare AdamP."""
    tensors = optimizers.resnet if bench.device == "cuda" else optimizers.small
    for all_of in (False, True):
        optimizers.compare(bench, "AdamP", "GPU", tensors, projected=all_of, steps=10)


def formats(bench: Bench) -> None:
    """Compare bf16 and channels-last."""
    size, side = (256, 64) if bench.device == "cuda" else (2, 32)
    data = vision.class_batches(6, size, 3, side, side, device=bench.device)
    vision.formats(bench, f"Formats, ResNet-18, {size}×3×{side}×{side}", vision.wrapped, data)


def main() -> int:
    """Run the tests and the tables; return the status of the tests."""
    given = arguments(__doc__).parse_args()
    started = time.monotonic()
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "tests/test_gpu.py"]
    command += ["tests/callbacks/test_mixing.py", "tests/data/test_loading.py"]
    tests = subprocess.run(command, cwd=root).returncode
    bench = Bench(given.turns, given.device, given.only)
    parts = {
        "gpu": engine, "data_path": data_path.resident, "optimizers": projected,
        "vision": formats, "mixing": mixing.tables,
    }  # fmt: skip
    rows = []
    for name, part in parts.items():
        taken = time.monotonic() - started
        if taken > LIMIT:
            print(f"{name}: left out after {taken:.0f} s", flush=True)
            continue
        first = len(bench.rows)
        part(bench)
        rows += [{"script": name, **row} for row in bench.rows[first:]]
    if given.out:
        settings = {"turns": given.turns, "threads": given.threads, "tests_passed": tests == 0}
        run.write(given.out, {"hardware": hardware(given.device), **settings}, rows)
    print(f"{time.monotonic() - started:.0f} s; the tests {'failed' if tests else 'passed'}")
    return tests


if __name__ == "__main__":
    sys.exit(main())
