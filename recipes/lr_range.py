"""The learning-rate finder: what it draws, what it suggests, and whether that is right.

Lightning's finder (`lightning.pytorch.tuner.Tuner.lr_find`) trains a model on the digits while the
rate rises from step to step, exponentially, and draws the loss over it (Smith 2017). Two rates are
read from it: Lightning's suggestion, where the loss falls steepest per unit of rate, and the rate
where it falls steepest per unit of its logarithm, as the figure shows it. Both are checked: short
trainings at a tenth of each, at the rate itself, and at ten times as much.

Result: Lightning's suggestion, 5.4e-6, is a slip of noise: per unit of rate, what is steep lies
where rates are small. Five epochs with it end at 0.049 validation accuracy (0.54 at ten times it).
The steepest rate of the figure, 0.0017, ends at 0.955, and at 0.906 and 0.948 with a tenth and ten
times of it. MLP of 256-256 with Adam, seed 0, one run each; 24 s (two CPU cores in other use, torch
2.14, lightning 2.6.6). CNN (--net=cnn): suggestion 1.6e-4, 0.62; steepest 0.026, 0.958.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch import seed_everything
from lightning.pytorch.tuner import Tuner

from dlblocks import plots, tracking
from dlblocks._errors import check_range
from dlblocks._files import is_rank_zero, write_json, write_rows
from dlblocks._quiet import quiet
from dlblocks.cli import run_recipe
from dlblocks.data import DigitsDataModule
from dlblocks.models import CNNClassifier, MLPClassifier
from dlblocks.plots._style import new_figure, style_axis
from dlblocks.runs.fit import fit
from dlblocks.runs.folder import check_new_run_dir, next_run_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = (0.1, 1.0, 10.0)
READINGS = {"suggestion": ("Lightning's suggestion", plots.ORANGE), "log": ("steepest", plots.BLUE)}
SKIPPED = 10  # as many of the first points as Lightning's suggestion leaves out


def main(
    net: Literal["mlp", "cnn"] = "mlp",
    optimizer: str = "adam",
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    num_training: int = 200,
    max_epochs: int = 5,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """The learning-rate finder: what it draws, what it suggests, and whether that is right.

    Args:
        net: Which model.
        optimizer: Name of the optimizer.
        min_lr: Rate of the first step.
        max_lr: Rate of the last step.
        num_training: Steps of the finder; it stops earlier if the loss becomes four times its best.
        max_epochs: Epochs of each short training.
        run_dir: Where everything goes; by default runs/lr_range, or runs/lr_range-2 and so on.
        logger: Where each short training logs.
        fast_dev_run: Few steps, and one batch a training, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of split, initialisation and order.
    """
    check_range("min_lr", min_lr, 0, low_open=True)
    check_range("max_lr", max_lr, min_lr, low_open=True)
    check_range("num_training", num_training, SKIPPED + 4)
    limits: dict[str, Any] = {}
    if fast_dev_run:
        num_training, max_epochs, limits = SKIPPED + 5, 1, {"limit_train_batches": 1}
    folder = Path(run_dir or next_run_dir("runs/lr_range"))
    if is_rank_zero():
        check_new_run_dir(folder)
    hardware: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "precision": precision,
    }
    datamodule = DigitsDataModule(split_seed=seed, shuffle_seed=seed)

    def make_model(lr: float | None = None) -> MLPClassifier | CNNClassifier:
        seed_everything(seed, workers=True, verbose=False)
        if net == "mlp":
            return MLPClassifier(64, 10, hidden=[256, 256], optimizer=optimizer, lr=lr)
        return CNNClassifier(1, 10, channels=[32, 64], optimizer=optimizer, lr=lr)

    with quiet():
        trainer = pl.Trainer(
            **hardware,
            max_epochs=num_training,  # the finder's steps end it, and no epoch before them
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        finder = Tuner(trainer).lr_find(
            make_model(),
            datamodule=datamodule,
            min_lr=min_lr,
            max_lr=max_lr,
            num_training=num_training,
            update_attr=False,  # each training below has a new model, made with its rate
        )
    assert finder is not None  # it is None under fast_dev_run=True of the Trainer alone
    rates, losses = np.array(finder.results["lr"]), np.array(finder.results["loss"])
    suggestion = finder.suggestion(skip_begin=SKIPPED)
    readings = {"suggestion": suggestion, "log": steepest(rates, losses)}
    trained: list[dict[str, Any]] = []
    for name, lr in readings.items():
        if lr is None:
            continue
        for factor in FACTORS:
            trained.append({"reading": name, "factor": factor, "lr": lr * factor})
            try:
                with quiet():
                    path = folder / name / f"x{factor:g}"
                    done = fit(
                        make_model(lr * factor),
                        DigitsDataModule(split_seed=seed, shuffle_seed=seed),
                        path,
                        callbacks=[],
                        trainer={
                            **hardware,
                            **limits,
                            "max_epochs": max_epochs,
                            "enable_model_summary": False,
                        },
                        monitor="val/loss",
                        mode="min",
                        logger=tracking.make_logger(
                            logger, path, run_name=f"{name} x{factor:g}", group=folder.name
                        ),
                        bar=False,
                    )
            except FloatingPointError as error:  # a rate that is too high: a result, too
                print(f"{READINGS[name][0]} × {factor:g}: {error}")
                trained[-1] |= {"val/accuracy": math.nan, "val/loss": math.inf}
            else:
                trained[-1] |= {key: done.metrics[key] for key in ("val/accuracy", "val/loss")}
    if not is_rank_zero():
        return
    print(f"{'rate':<24}{'':>6}{'lr':>12}{'val/accuracy':>16}{'val/loss':>12}")
    for row in trained:
        print(
            f"{READINGS[row['reading']][0]:<24}{'× ' + format(row['factor'], 'g'):>6}"
            f"{row['lr']:>12.3g}{row['val/accuracy']:>16.4f}{row['val/loss']:>12.4f}"
        )
    write_rows(
        folder / "range.csv",
        [{"lr": lr, "loss": loss} for lr, loss in zip(rates, losses, strict=True)],
    )
    write_json(
        folder / "summary.json",
        {
            "metrics": {
                f"{row['reading']} x{row['factor']:g}": {"mean": row["val/accuracy"], **row}
                for row in trained
            },
            "readings": readings,
            "config": {
                "net": net,
                "optimizer": optimizer,
                "min_lr": min_lr,
                "max_lr": max_lr,
                "num_training": num_training,
                "max_epochs": max_epochs,
                "seed": seed,
            },
            "versions": tracking.versions(),
        },
    )
    figure = draw(rates, losses, readings, trained, max_epochs)
    plots.save(figure, folder / "figures" / "lr_range.png")
    print(f"Everything is in {folder}: summary.json, range.csv, suggestion/, log/, figures/.")


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate where the loss falls most per unit of log rate, before its lowest point."""
    end = max(int(np.nanargmin(losses[SKIPPED:])) + SKIPPED + 1, SKIPPED + 2)
    slopes = np.gradient(losses, np.log(rates))[SKIPPED:end]
    return float(rates[SKIPPED + int(np.nanargmin(slopes))])


def draw(
    rates: np.ndarray,
    losses: np.ndarray,
    readings: Mapping[str, float | None],
    trained: Sequence[Mapping[str, Any]],
    max_epochs: int,
) -> Figure:
    """The finder's curve with the rates read from it, and what short trainings reach with them."""
    figure = new_figure(10, 3.9)
    left, right = figure.subplots(1, 2)
    # Lightning's mean begins at half of the loss; its suggestion leaves those steps out, too.
    left.plot(rates[SKIPPED:], losses[SKIPPED:], color=plots.GREY, linewidth=2)
    for name, lr in readings.items():
        if lr is None:
            continue
        label, colour = READINGS[name]
        at = int(np.argmin(np.abs(rates - lr)))
        left.plot(lr, losses[at], "o", color=colour, markersize=9, label=f"{label}: {lr:.2g}")
        rows = [row for row in trained if row["reading"] == name]
        x, y = ([row[key] for row in rows] for key in ("lr", "val/accuracy"))
        right.plot(x, y, "o-", color=colour, label=f"{label} × 0.1, 1, 10")
    low = float(np.nanmin(losses[SKIPPED:]))
    left.set_ylim(0.9 * low, min(float(np.nanmax(losses)), 2 * float(losses[SKIPPED])) * 1.05)
    style_axis(left, "learning rate", "training loss, smoothed")
    style_axis(right, "learning rate", f"validation accuracy after {max_epochs} epochs")
    right.set_ylim(0, 1.02)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.legend(frameon=False, fontsize=10)
    return figure


if __name__ == "__main__":
    run_recipe(main)
