"""All folds as one fit: what it saves, and how it grows with the number of models.

- *MLP*: 10-fold cross-validation of 64 → 128 → 128 → 10 on the digits, batches of 64: the
  vectorized engine against the sequential one, against one Lightning fit of one fold, and against
  skorch's `cross_val_score` with the same net, data, folds, batches and epochs. In turn, in one
  process.
- *CNN*: the same folds by ``engine="auto"`` and by the sequential engine.
- *Growth*: K models of that MLP in one fit, K = 1 … 50, each K in a process of its own: seconds,
  and the memory that the process has taken at most. Also drawn, into ``--figure``.

Measured (2-core x86 VM, no GPU, one thread, torch 2.14, lightning 2.6.6, three turns, median and
range). MLP, 10 epochs: 0.81 s for all folds (0.80 to 0.81). The sequential engine takes 6.4 times
as long (6.3 to 6.7; wanted: 5), one fit of one fold 0.63 (0.60 to 0.76; wanted: 0.5 or more),
skorch 4.0 (3.8 to 4.0; wanted: 8, missed: gradients alone take more than half of the time). CNN, 3
epochs: ``"auto"`` takes 2.4 s (2.2 to 2.8), its measuring included, the sequential engine 1.8 times
as long (1.5 to 1.9). Growth, one run each, K = 1, 2, 5, 10, 20, 50: 0.20, 0.24, 0.38, 0.68, 1.2,
3.0 s, and 846, 848, 854, 867, 889, 956 MB, nearly all of it what the imports take
(docs/vectorized.png).

Run: pip install 'dlblocks[bench]', then python benchmarks/vectorized.py [--threads 2]
[--only mlp | cnn | growth]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

FOLDS, SIZES = 10, (1, 2, 5, 10, 20, 50)
Run = Callable[[], None]
Engine = Literal["sequential", "vectorized", "auto"]


def mlp() -> Any:
    from dlblocks.models import MLPClassifier

    return MLPClassifier(64, 10, hidden=[128, 128])


def cnn() -> Any:
    from dlblocks.models import CNNClassifier

    return CNNClassifier(1, 10, channels=[16, 32])


def folds(make_model: Callable[[], Any], engine: Engine, epochs: int) -> Run:
    from dlblocks.crossval import cross_validate
    from dlblocks.data import DigitsDataModule

    def run() -> None:
        cross_validate(
            make_model,
            DigitsDataModule(test_fraction=0.0),
            num_folds=FOLDS,
            trainer={"max_epochs": epochs, "accelerator": "cpu"},
            engine=engine,
            progress_bar=False,
            figures=False,
            run_dir=tempfile.mkdtemp(),
        )

    return run


def one_fit(epochs: int) -> Run:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from dlblocks.data import DigitsDataModule

    def run() -> None:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[ModelCheckpoint(tempfile.mkdtemp(), monitor="val/loss")],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(mlp(), datamodule=DigitsDataModule(test_fraction=0.0, num_folds=FOLDS))

    return run


def skorch(epochs: int) -> Run:
    import numpy as np
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from skorch import NeuralNetClassifier

    images, targets = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), targets.astype(np.int64)

    def run() -> None:
        net = NeuralNetClassifier(
            lambda: mlp().net,
            criterion=torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=1e-3,
            max_epochs=epochs,
            batch_size=64,
            iterator_train__shuffle=True,
            verbose=0,
        )
        cv = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        cross_val_score(net, x, y, cv=cv, scoring="accuracy")

    return run


def compare(title: str, runs: dict[str, Run], turns: int) -> None:
    """Prints the seconds of each run, and how often the first one's they are, turn by turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first warms up
                found[name].append(time.perf_counter() - start)
    print(f"\n{title:<46}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in found.items():
        _row(f"{name} (s)", values)
    first, *others = found
    for other in others:
        ratios = [b / a for a, b in zip(found[first], found[other], strict=True)]
        _row(f"{other} / {first}", ratios)


def _row(name: str, values: list[float]) -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"  {name:<44}" + "".join(f"{value:9.3f}" for value in shown), flush=True)


def grown(count: int, epochs: int) -> tuple[float, float]:
    """Seconds of one fit of `count` models, and the process's memory at most, in MB."""
    from dlblocks.data import DigitsDataModule
    from dlblocks.engine import Member, StackedFit

    data = DigitsDataModule(num_folds=FOLDS)
    seconds = []
    for _ in range(2):  # the first warms up
        members = [Member(str(k), mlp(), data.for_fold(k % FOLDS, FOLDS)) for k in range(count)]
        trainer = {"max_epochs": epochs, "accelerator": "cpu"}
        start = time.perf_counter()
        StackedFit(members, trainer=trainer, monitor="val/loss", mode="min").fit()
        seconds.append(time.perf_counter() - start)
    # Of this program alone; what getrusage says, the process that started it has set.
    status = Path("/proc/self/status").read_text().split()
    return seconds[-1], int(status[status.index("VmHWM:") + 1]) / 1024


def draw(rows: list[tuple[int, float, float]], path: Path) -> None:
    from dlblocks.plots._style import new_figure, style_axis

    figure = new_figure(8, 3)
    counts = [row[0] for row in rows]
    for i, (axis, label) in enumerate(
        zip(figure.subplots(1, 2), ("seconds", "memory, MB"), strict=True), start=1
    ):
        axis.plot(counts, [row[i] for row in rows], marker="o")
        if i == 1:
            axis.plot(counts, [rows[0][1] * k for k in counts], linestyle="--", color="0.6")
            place = {"xytext": (8, -4), "textcoords": "offset points", "color": "0.4"}
            axis.annotate("K × the first", (counts[3], rows[0][1] * counts[3]), **place)
        axis.set_ylim(bottom=0, top=1.25 * max(row[i] for row in rows))
        style_axis(axis, "models in one fit, K", label)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=("mlp", "cnn", "growth"))
    parser.add_argument("--figure", type=Path, default=Path("vectorized.png"))
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    warnings.filterwarnings("ignore")

    import lightning.pytorch as pl
    import torch

    from dlblocks._quiet import quiet

    torch.set_num_threads(given.threads)
    if given.grow:
        with quiet():
            print(*grown(given.grow, given.epochs))
        return
    print(f"torch {torch.__version__}, lightning {pl.__version__}, {given.threads} thread(s)")
    with quiet():
        runs: dict[str, Run] = {
            "vectorized": folds(mlp, "vectorized", given.epochs),
            "sequential": folds(mlp, "sequential", given.epochs),
            "one fit of one fold": one_fit(given.epochs),
            "skorch": skorch(given.epochs),
        }
        if given.only in (None, "mlp"):
            compare(f"MLP, {FOLDS} folds, {given.epochs} epochs", runs, given.turns)
        runs = {
            "auto": folds(cnn, "auto", 3),
            "sequential": folds(cnn, "sequential", 3),
        }
        if given.only in (None, "cnn"):
            compare(f"CNN, {FOLDS} folds, 3 epochs", runs, given.turns)
    if given.only in (None, "growth"):
        grow(given)


def grow(given: argparse.Namespace) -> None:
    """Prints and draws what one fit of K models takes."""
    rows = []
    print(f"\n{'K':>4}{'seconds':>10}{'MB':>8}")
    for count in SIZES:
        command = [sys.executable, __file__, "--grow", str(count), "--threads", str(given.threads)]
        command += ["--epochs", str(given.epochs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, memory = map(float, done.stdout.split()[-2:])
        rows.append((count, seconds, memory))
        print(f"{count:>4}{seconds:>10.2f}{memory:>8.0f}", flush=True)
    draw(rows, given.figure)


if __name__ == "__main__":
    main()
