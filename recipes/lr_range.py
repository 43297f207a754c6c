"""Is the learning rate right that Lightning's finder suggests?

Lightning's finder (`lightning.pytorch.tuner.Tuner.lr_find`) trains an MLP on the digits while the
rate rises exponentially from step to step (Smith 2017). Two rates are read from its losses:
Lightning's suggestion, where the loss falls steepest per unit of rate, and the rate where it falls
steepest per unit of its logarithm, as the figure shows it. Both are checked by short trainings at a
tenth of each, at the rate itself, and at ten times as much.

Result: no. Lightning's suggestion, 5.4e-6, is a slip of noise: per unit of rate, what is steep lies
where rates are small. Five epochs with it end at 0.049 validation accuracy (0.54 at ten times it).
The steepest rate of the figure, 0.0017, ends at 0.955, and at 0.906 and 0.948 with a tenth and ten
times of it. MLP of 256-256 with Adam, seed 0, one run each; under a minute (two CPU cores in other
use, torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch import seed_everything
from lightning.pytorch.tuner import Tuner

from dlblocks import plots
from dlblocks.cli import RecipeArguments, run_recipe
from dlblocks.data import DataModule, DigitsDataModule
from dlblocks.engine import fit_variants
from dlblocks.models import MLPClassifier, Model
from dlblocks.runs import check_new_run_dir, table, write_results

SKIPPED = 10  # as many of the first points as Lightning's suggestion leaves out


def main(
    args: RecipeArguments,
    optimizer: str = "adam",
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    num_training: int = 200,
    max_epochs: int = 5,
) -> None:
    """Is the learning rate right that Lightning's finder suggests?

    Args:
        args: Those of all recipes.
        optimizer: Name of the optimizer.
        min_lr: Rate of the first step.
        max_lr: Rate of the last step.
        num_training: Steps of the finder; it stops earlier if the loss becomes four times its best.
        max_epochs: Epochs of each short training.
    """
    trainer = args.trainer
    if trainer.pop("fast_dev_run"):
        num_training = SKIPPED + 5
        trainer |= {"max_epochs": 1, "limit_train_batches": 1}
    check_new_run_dir(args.run_dir)

    def variant(lr: float | None) -> Callable[[int], tuple[Model, DataModule]]:
        return lambda s: (
            MLPClassifier(64, 10, hidden=[256, 256], optimizer=optimizer, lr=lr),
            DigitsDataModule(split_seed=s, shuffle_seed=s),
        )

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    seed_everything(args.seed, workers=True, verbose=False)
    model, data = variant(None)(args.seed)
    finder = Tuner(
        pl.Trainer(
            # The finder's steps end it, and no epoch before them.
            **{**trainer, "max_epochs": num_training, "limit_train_batches": None, "devices": 1},
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=args.run_dir,
        )
    ).lr_find(
        model,
        datamodule=data,
        min_lr=min_lr,
        max_lr=max_lr,
        num_training=num_training,
        update_attr=False,  # each training below has a new model, made with its rate
    )
    assert finder is not None  # it is None under fast_dev_run=True of the Trainer alone
    rates, losses = np.array(finder.results["lr"]), np.array(finder.results["loss"])
    readings = {
        "suggestion": finder.suggestion(skip_begin=SKIPPED),
        "steepest": steepest(rates, losses),
    }
    tried = {
        f"{name} × {factor:g}": lr * factor
        for name, lr in readings.items()
        if lr is not None
        for factor in (0.1, 1, 10)
    }
    found = fit_variants(
        {name: variant(lr) for name, lr in tried.items()},
        [args.seed],
        args.run_dir,
        trainer=trainer,
        logger=args.logger,
    )
    metrics = {}
    for name, (member,) in found.items():
        best = None if member.error else member.best  # a fit that diverges is a result, too
        accuracy = best.metrics["val/accuracy"] if best else math.nan
        metrics[name] = {"mean": accuracy, "lr": f"{tried[name]:.3g}"}
    print(table([
        {"rate": name, "val/accuracy": row["mean"], "lr": row["lr"]}
        for name, row in metrics.items()
    ]))  # fmt: skip
    # Lightning's mean begins at half of the loss; its suggestion leaves those steps out, too.
    figure = plots.lines(
        {"loss": losses[SKIPPED:]},
        rates[SKIPPED:],
        xlabel="learning rate",
        ylabel="training loss, smoothed",
        log="xy",
    )
    (axis,) = figure.axes
    for (name, lr), colour in zip(readings.items(), (plots.ORANGE, plots.GREEN), strict=True):
        if lr is not None:
            axis.axvline(lr, color=colour, label=f"{name}: {lr:.2g}")
    axis.legend(frameon=False)
    rows = [{"lr": lr, "loss": loss} for lr, loss in zip(rates, losses, strict=True)]
    write_results(args.run_dir, metrics, rows=rows, figures={"lr_range": figure}, readings=readings)


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate where the loss falls most per unit of log rate.

    Only what comes before the lowest loss counts.
    """
    end = max(int(np.nanargmin(losses[SKIPPED:])) + SKIPPED + 1, SKIPPED + 2)
    slopes = np.gradient(losses, np.log(rates))[SKIPPED:end]
    return float(rates[SKIPPED + int(np.nanargmin(slopes))])


if __name__ == "__main__":
    run_recipe(main)
