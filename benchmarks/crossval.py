"""What a cross-validation costs beside its fits, and what folds side by side gain.

- *Overhead*: `cross_validate` of a CNN on the digits (figures apart), against the same fits made by
  hand: K times a new datamodule, model and Trainer with a ModelCheckpoint of the best epoch, which
  is restored and validated. In turn, in one process.
- *Side by side*: ``n_jobs=2`` against ``n_jobs=1`` for an MLP, one thread a process, in turn.
- *skorch*: `cross_val_score` of the same MLP, data, folds, batches and epochs, one thread, against
  both engines of `cross_validate`.

Measured (two-core AMD EPYC virtual machine, torch 2.14, lightning 2.6.6, medians of five turns):
overhead 1.01 (0.90 to 1.15); ``n_jobs=2`` 1.58× (1.51 to 1.91) as fast; skorch takes 0.48× as long
as `cross_validate`, whose Trainer costs a step of so small a net about as much again.

Run: pip install 'dlblocks[bench]', then python benchmarks/crossval.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

os.environ["OMP_NUM_THREADS"] = "1"

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dlblocks._quiet import quiet
from dlblocks.crossval import cross_validate
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier, MLPClassifier

FOLDS, TURNS = 5, 5


def ours(
    make_model: Callable[[], pl.LightningModule],
    epochs: int,
    *,
    n_jobs: int = 1,
    engine: Literal["sequential", "auto"] = "sequential",
) -> Callable[[], None]:
    def run() -> None:
        cross_validate(
            make_model,
            DigitsDataModule(),
            num_folds=FOLDS,
            trainer={"max_epochs": epochs, "accelerator": "cpu"},
            n_jobs=n_jobs,
            engine=engine,
            progress_bar=False,
            figures=False,
            run_dir=tempfile.mkdtemp(),
        )

    return run


def by_hand(make_model: Callable[[], pl.LightningModule], epochs: int) -> Callable[[], None]:
    def run() -> None:
        for fold in range(FOLDS):
            pl.seed_everything(fold, verbose=False)
            folder = Path(tempfile.mkdtemp())
            best = ModelCheckpoint(folder, monitor="val/loss")
            trainer = pl.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=[best],
                default_root_dir=folder,
                logger=pl.loggers.CSVLogger(folder),
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            data = DigitsDataModule(num_folds=FOLDS, fold=fold)
            model = make_model()
            trainer.fit(model, datamodule=data)
            trainer.validate(model, datamodule=data, ckpt_path="best", verbose=False)

    return run


def skorch(epochs: int) -> Callable[[], None]:
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from skorch import NeuralNetClassifier

    data = DigitsDataModule()
    inputs, targets, _ = data.arrays("train")
    more, more_targets, _ = data.arrays("val")
    x = torch.cat([inputs, more]).flatten(1).float().numpy() / 255
    y = torch.cat([targets, more_targets]).numpy().astype(np.int64)

    def run() -> None:
        net = NeuralNetClassifier(
            lambda: MLPClassifier(64, 10, hidden=[128]).net,
            criterion=torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=1e-3,
            max_epochs=epochs,
            batch_size=64,
            iterator_train__shuffle=True,
            verbose=0,
        )
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        cross_val_score(net, x, y, cv=folds, scoring="accuracy")

    return run


def compare(title: str, runs: dict[str, Callable[[], None]], one: str, other: str) -> None:
    """Prints the seconds of each run, and the ratios of two of them turn by turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(TURNS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first warms up
                found[name].append(time.perf_counter() - start)
    print(f"\n{title:<46}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in found.items():
        _row(f"{name} (s)", values)
    _row(f"{one} / {other}", [a / b for a, b in zip(found[one], found[other], strict=True)])


def _row(name: str, values: list[float]) -> None:
    shown = [statistics.median(values), min(values), max(values)]
    print(f"  {name:<44}" + "".join(f"{value:9.3f}" for value in shown))


def main() -> None:
    """Prints the tables."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, lightning {pl.__version__}, {FOLDS} folds, {TURNS} turns")

    def cnn() -> pl.LightningModule:
        return CNNClassifier(1, 10, channels=[32, 64], convs_per_block=2)

    def mlp() -> pl.LightningModule:
        return MLPClassifier(64, 10, hidden=[128])

    with quiet():
        runs = {"cross_validate": ours(cnn, 8), "by hand": by_hand(cnn, 8)}
        compare("CNN, 8 epochs a fold", runs, "cross_validate", "by hand")
        runs = {"n_jobs=1": ours(mlp, 40), "n_jobs=2": ours(mlp, 40, n_jobs=2)}
        compare("MLP, 40 epochs a fold", runs, "n_jobs=1", "n_jobs=2")
        runs = {
            "engine='auto'": ours(mlp, 20, engine="auto"),
            "engine='sequential'": ours(mlp, 20),
            "skorch": skorch(20),
        }
        compare("MLP, 20 epochs a fold", runs, "skorch", "engine='auto'")


if __name__ == "__main__":
    main()
