"""Bagging of small nets against Ensemble-Pytorch's, and what the two engines take.

Twenty MLPs (64→128→128→10, Adam, batch 64) on bootstrap samples of the digits, the same epochs:

- *dlblocks*: `Bagging` with ``engine="vectorized"``, all it does by default but figures: each
  member validated every epoch, its best weights kept, out-of-bag predictions, files written. The
  same with ``engine="sequential"``, fewer turns.
- *Ensemble-Pytorch* (package torchensemble): `BaggingClassifier` with its defaults, each epoch the
  ensemble validated on the same validation part; nothing saved, its prints swallowed. Once more
  without validation, which is all that can be left out.

In turn, in one process, on one thread. torchensemble 0.2.0 still trains on current torch.

Measured (2-core x86 VM, no GPU, one thread, torch 2.14, lightning 2.6.6, three turns, median and
range): Ensemble-Pytorch takes 3.4 times as long as ``engine="vectorized"`` (3.4 to 4.2; wanted: 4,
missed), 3.3 times (2.9 to 3.9) unvalidated; ``engine="sequential"``, one turn, 6.5 times. Of 1.3 s,
0.8 are steps, 0.1 validation; the rest is what it does around them, files most of all.

Run: pip install 'dlblocks[bench]', then python benchmarks/bagging.py
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchensemble import BaggingClassifier

from dlblocks._quiet import quiet
from dlblocks.data import DigitsDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier

MEMBERS, EPOCHS, BATCH = 20, 10, 64
TURNS = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def net() -> torch.nn.Module:
    return MLPClassifier(64, 10, hidden=[128, 128]).net


def ours(engine: str) -> Callable[[], float]:
    def run() -> float:
        data = DigitsDataModule(batch_size=BATCH)
        chosen: dict = {"engine": engine}
        result = Bagging(
            lambda: MLPClassifier(64, 10, hidden=[128, 128]),
            data,
            num_members=MEMBERS,
            trainer={"max_epochs": EPOCHS, "accelerator": "cpu"},
            progress_bar=False,
            figures=False,
            run_dir=tempfile.mkdtemp(),
            **chosen,
        ).fit()
        inputs, targets, _ = data.arrays("test")
        with torch.no_grad():
            return (result.model(inputs).argmax(1) == targets).float().mean().item()

    return run


def theirs(*, validate: bool) -> Callable[[], float]:
    data = DigitsDataModule(batch_size=BATCH)
    loaders = {}
    for part in ("train", "val", "test"):
        inputs, targets, _ = data.arrays(part)
        pair = TensorDataset(data.transform(inputs), targets)
        loaders[part] = DataLoader(pair, batch_size=BATCH, shuffle=part == "train")

    def run() -> float:
        model = BaggingClassifier(net, MEMBERS, cuda=False)
        # A function that makes the net: an instance would start all members with the same weights.
        model._make_estimator = net
        model.set_optimizer("Adam", lr=1e-3)
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(
                loaders["train"],
                epochs=EPOCHS,
                test_loader=loaders["val"] if validate else None,
                save_model=False,
            )
        return model.evaluate(loaders["test"]) / 100

    return run


def main() -> None:
    """Prints the seconds of each run, and their ratios turn by turn."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, lightning {pl.__version__}, {MEMBERS} members, {EPOCHS} "
          f"epochs, {TURNS} turns")  # fmt: skip
    vectorized, sequential = "dlblocks, vectorized", "dlblocks, sequential"
    peer, bare = "Ensemble-Pytorch", "Ensemble-Pytorch without validation"
    runs = {vectorized: ours("vectorized"), peer: theirs(validate=True),
            bare: theirs(validate=False), sequential: ours("sequential")}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    accuracy: dict[str, float] = {}
    with quiet():
        ours("vectorized")()  # the first warms up
        for turn in range(TURNS):
            for name, run in runs.items():
                if name == sequential and turn:
                    continue
                start = time.perf_counter()
                accuracy[name] = run()
                seconds[name].append(time.perf_counter() - start)
    print(f"{'':<48}{'median':>9}{'min':>9}{'max':>9}  test accuracy")
    for name, values in seconds.items():
        _row(f"{name} (s)", values, f"{accuracy[name]:11.3f}")
    for name in (peer, bare, sequential):
        pairs = zip(seconds[name], seconds[vectorized], strict=False)
        _row(f"{name} / {vectorized}", [a / b for a, b in pairs])


def _row(name: str, values: list[float], more: str = "") -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"{name:<48}" + "".join(f"{value:9.2f}" for value in shown) + more)


if __name__ == "__main__":
    main()
