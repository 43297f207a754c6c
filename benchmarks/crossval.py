"""Compare cross-validation with what others write or use for it.

- *Whole call*: five folds of an MLP on the digits, ten epochs, `cross_validate` with all its files
  and figures. The peers are a loop that is written by hand (Lightning, `StratifiedKFold`, a
  ModelCheckpoint of the best epoch, which is restored and validated, a CSV logger) and
  lightning-kfold. All take equal steps, and select by the fold (``select="fold"``). The peers draw
  no figures.
- *Figures and report* of that call alone.
- *CNN*: `cross_validate` without figures, ``engine="auto"``, against the same by hand.
- *skorch*: `cross_val_score` of an MLP, ten folds and ten epochs, against the whole call without
  figures, and against its fits alone.
- *Two processes*: ``n_jobs=2`` against one, by the clock.

Run: pip install 'dlblocks[bench]', then python benchmarks/crossval.py
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from _timing import Bench, Run, run_of, start
from _trainer import HandWritten
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from dlblocks.crossval import cross_validate
from dlblocks.crossval._outcome import result_figures
from dlblocks.data import DigitsDataModule
from dlblocks.engine import Member, StackedFit
from dlblocks.models import CNNClassifier, MLPClassifier
from dlblocks.plots._style import new_figure, save
from dlblocks.runs._figures import save_figures

FOLDS, EPOCHS, BATCH = 5, 10, 64
Make = Callable[[], pl.LightningModule]


def mlp(hidden: list[int]) -> MLPClassifier:
    return MLPClassifier(64, 10, hidden=hidden)


def cnn() -> pl.LightningModule:
    return CNNClassifier(1, 10, channels=[32, 64], convs_per_block=2)


def ours(
    make: Make, engine: Any, *, epochs: int = EPOCHS, folds: int = FOLDS, device: str = "cpu",
    **kwargs: Any,
) -> Run:  # fmt: skip
    return lambda: cross_validate(
        make,
        DigitsDataModule(test_fraction=0.0),
        num_folds=folds,
        select="fold",
        trainer={"max_epochs": epochs, "accelerator": device},
        engine=engine,
        progress_bar=False,
        run_dir=tempfile.mkdtemp(),
        **kwargs,
    )


class Usual(HandWritten):
    """A LightningModule as it is usually written."""

    def __init__(self) -> None:
        super().__init__(mlp([128]).net)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        outputs = self.net(batch[0])
        self.accuracy(outputs, batch[1])
        self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]))
        self.log("val_accuracy", self.accuracy)

    test_step = validation_step


def digits() -> tuple[np.ndarray, np.ndarray]:
    images, targets = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), targets.astype(np.int64)


def by_hand(device: str) -> Run:
    x, y = digits()
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))

    def run() -> None:
        for train, val in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(x, y):
            folder = Path(tempfile.mkdtemp())
            trainer = pl.Trainer(
                accelerator=device,
                max_epochs=EPOCHS,
                callbacks=[ModelCheckpoint(folder, monitor="val_loss")],
                logger=pl.loggers.CSVLogger(folder),
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            loader = DataLoader(Subset(data, val), BATCH)
            trainer.fit(Usual(), DataLoader(Subset(data, train), BATCH, shuffle=True), loader)
            trainer.validate(dataloaders=loader, ckpt_path="best", verbose=False)

    return run


def lightning_kfold(device: str) -> Run:
    from lightning_kfold import KFoldDataModule, KFoldTrainer

    x, y = digits()
    whole = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))

    class Data(KFoldDataModule):  # type: ignore[misc, unused-ignore]
        def setup_datasets(self) -> tuple[Any, Any, np.ndarray]:
            return whole, whole, y

    def run() -> None:
        data = Data(num_folds=FOLDS, batch_size=BATCH)
        data.setup()
        folder = tempfile.mkdtemp()
        trainer = KFoldTrainer(
            num_folds=FOLDS,
            export_path=folder,
            max_epochs=EPOCHS,
            accelerator=device,
            default_root_dir=folder,
            logger=pl.loggers.CSVLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(Usual(), data, test_ensemble=False)

    return run


def cnn_by_hand(epochs: int) -> Run:
    def run() -> None:
        for fold in range(FOLDS):
            folder = Path(tempfile.mkdtemp())
            trainer = pl.Trainer(
                accelerator="cpu",
                max_epochs=epochs,
                callbacks=[ModelCheckpoint(folder, monitor="val/loss")],
                logger=pl.loggers.CSVLogger(folder),
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            data = DigitsDataModule(test_fraction=0.0, num_folds=FOLDS, fold=fold)
            trainer.fit(cnn(), datamodule=data)
            trainer.validate(datamodule=data, ckpt_path="best", verbose=False)

    return run


def drawing() -> Run:
    result = ours(partial(mlp, [128]), "vectorized", figures=False)()
    data = DigitsDataModule(test_fraction=0.0).for_fold(0, FOLDS)

    def run() -> None:
        save_figures(result.run_dir / "figures", result_figures(result, data))
        result.report()

    return run


def empty_figures() -> None:
    for _ in range(5):
        figure = new_figure(6, 4)
        figure.subplots()
        save(figure, Path(tempfile.mkdtemp()) / "empty.png")


def skorch() -> Run:
    from skorch import NeuralNetClassifier

    x, y = digits()

    def run() -> None:
        net = NeuralNetClassifier(
            lambda: mlp([128, 128]).net,
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=1e-3,
            max_epochs=EPOCHS,
            batch_size=BATCH,
            iterator_train__shuffle=True,
            verbose=0,
        )
        folds = StratifiedKFold(10, shuffle=True, random_state=0)
        cross_val_score(net, x, y, cv=folds, scoring="accuracy")

    return run


def fits_alone(device: str) -> Run:
    data = DigitsDataModule(test_fraction=0.0)

    def run() -> None:
        members = [Member(str(k), mlp([128, 128]), data.for_fold(k, 10)) for k in range(10)]
        trainer = {"max_epochs": EPOCHS, "accelerator": device}
        StackedFit(members, trainer=trainer, monitor="val/loss", mode="min").fit()

    return run


def tables(bench: Bench) -> None:
    on, small, large = bench.device, partial(mlp, [128]), partial(mlp, [128, 128])
    peers = {
        "hand-written loop": partial(by_hand, on),
        "lightning-kfold": partial(lightning_kfold, on),
    }
    title = "Whole cross-validation, MLP, 5 folds"
    found = bench.compare(
        f"{title}, vectorized",
        {
            "ours, vectorized": partial(ours, small, "vectorized", device=on),
            **peers,
            "ours, sequential": partial(ours, small, "sequential", device=on),
            **{
                f"{engine}, no figures": partial(ours, small, engine, figures=False, device=on)
                for engine in ("vectorized", "sequential")
            },
        },
        unit="s",
        goals=dict.fromkeys(peers, 5.0),
    )
    # The peers draw no figures.
    others = {
        "ours, sequential": ("one fit after another", 1.0),
        "vectorized, no figures": ("vectorized, without figures", 5.0),
        "sequential, no figures": ("one fit after another, without figures", 1.0),
    }
    for name, (what, goal) in others.items():
        if found:
            values = {name: found[name], **{peer: found[peer] for peer in peers if peer in found}}
            bench.add(f"{title}, {what}", values, "s", dict.fromkeys(peers, goal))
    bench.compare(
        "Figures and report of a cross-validation",
        {"ours": drawing},
        unit="s",
        limit=0.2,
        floor=lambda: run_of(empty_figures).cpu,
        floor_is="five empty figures of matplotlib with one axis",
    )
    alone = partial(ours, large, "vectorized", folds=10, figures=False, device=on)
    one_by_one = partial(ours, large, "sequential", folds=10, figures=False, device=on)
    bench.compare(
        "Cross-validation without figures, MLP, 10 folds",
        {"ours, vectorized": alone, "ours, sequential": one_by_one, "skorch": skorch},
        unit="s",
        goals={"ours, sequential": 5},
    )
    bench.compare(
        "Fits of 10 folds of an MLP",
        {"ours, vectorized": partial(fits_alone, on), "skorch": skorch},
        unit="s",
        goals={"skorch": 8},
    )
    bench.compare(
        "Cross-validation without figures, CNN, 5 folds",
        {
            "ours, auto": partial(ours, cnn, "auto", epochs=2, figures=False),
            "hand-written loop": partial(cnn_by_hand, 2),
            "ours, sequential": partial(ours, cnn, "sequential", epochs=2, figures=False),
        },
        unit="s",
        goals={"hand-written loop": 1.0},
        turns=min(3, bench.turns),
    )
    bench.compare(
        "Two processes, MLP, 15 epochs",
        {
            "n_jobs=2": partial(ours, small, "sequential", epochs=15, figures=False, n_jobs=2),
            "n_jobs=1": partial(ours, small, "sequential", epochs=15, figures=False),
        },
        unit="s",
        wall=True,
        turns=min(3, bench.turns),
    )


if __name__ == "__main__":
    start(tables, __doc__)
