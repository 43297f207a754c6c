"""Fit and test one model in a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from dlblocks import tracking
from dlblocks._errors import checked
from dlblocks._files import SUMMARY, is_rank_zero, write_record
from dlblocks._quiet import isolated
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.runs._figures import curve_figures, prediction_figures, save_figures
from dlblocks.runs._monitor import resolve_mode
from dlblocks.runs._plan import configuration
from dlblocks.runs._trainer import check_trainer_arguments, shows_bar
from dlblocks.runs.fit import fit
from dlblocks.runs.folder import check_new_run_dir, in_run_dir, know_rank
from dlblocks.runs.intervals import HeldOutScores, count_tested, predict_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Results that are added to a run folder: returns its metrics, and its figures by name.
Addition = Callable[[Path, HeldOutScores], tuple[Mapping[str, float], "Mapping[str, Figure]"]]


@checked
def fit_and_test(
    model: pl.LightningModule,
    datamodule: DataModule,
    *,
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    run_dir: str | PathLike[str] | None = None,
    progress_bar: bool = True,
) -> HeldOutScores:
    """Fit a model, restore its best epoch, and test it once.

    The metrics of validation and test are returned; ``print`` them for 95 % intervals of the test.
    The run folder holds ``summary.json``, ``history.csv``, ``checkpoints/best.ckpt``, the logger's
    files and ``figures/*.png``: learning curves, and for the test set the confusion matrix and the
    hardest images, or predicted over true values.

    Args:
        model: A new LightningModule.
        datamodule: Its data, with a test set.
        callbacks: Callbacks, such as ``[Augment(rotation=10)]``.
        trainer: Arguments of the Lightning `Trainer`, such as ``{"max_epochs": 30}``.
        monitor: The logged metric that chooses the best epoch.
        mode: Whether ``"min"`` or ``"max"`` of it is best; None for the metric's own direction.
        logger: Where to log.
        run_dir: A folder that is empty or does not exist. None: ``runs/fit``, or with ``-2``, ….
        progress_bar: Show Lightning's progress bar, or the one among the callbacks.

    Raises:
        ValueError: An argument is wrong, or there is no test set.
        FileExistsError: `run_dir` holds something already.
        BlockingIOError: Another process works in `run_dir`.
    """
    return fit_in_folder(
        model,
        datamodule,
        callbacks=callbacks,
        trainer=trainer,
        monitor=monitor,
        mode=mode,
        logger=logger,
        run_dir=run_dir,
        progress_bar=progress_bar,
    )


def fit_in_folder(
    model: pl.LightningModule,
    datamodule: DataModule,
    *,
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    run_dir: str | PathLike[str] | None = None,
    progress_bar: bool = True,
    also: Addition | None = None,
) -> HeldOutScores:
    """Fit, test, and add results to the run folder.

    Args:
        also: Called on the first rank with the finished run folder and its scores. What it returns
            is logged, too.
    """
    if not isinstance(datamodule, SplitDataModule):
        raise TypeError(
            f"datamodule is a {type(datamodule).__name__}; pass a datamodule of dlblocks.data, "
            "such as FoldedDataModule(…) around it."
        )
    mode = resolve_mode(monitor, mode, lambda: model)
    arguments = check_trainer_arguments(trainer)
    know_rank(arguments.get("num_nodes", 1))

    def run(path: Path) -> HeldOutScores:
        if is_rank_zero():
            check_new_run_dir(path)
        with isolated():
            used = tracking.make_logger(logger, path, run_name=path.name, job_type="fit")
        with tracking.finishing(used):
            with isolated():
                done = fit(
                    model,
                    datamodule,
                    path,
                    callbacks=[_NeedsTestSet(), *callbacks],
                    trainer=arguments,
                    monitor=monitor,
                    mode=mode,
                    logger=used,
                    bar=shows_bar(progress_bar, trainer),
                )
                tested = done.trainer.test(model, datamodule=datamodule, verbose=False)
                table, groups = predict_test(done.trainer, model, datamodule, len(tested))
                count = count_tested(datamodule, done.trainer, len(tested))
            # One dictionary a loader; Lightning tells their names apart.
            found = {name: float(value) for one in tested for name, value in one.items()}
            task = getattr(getattr(model, "task", None), "name", None)
            metrics = HeldOutScores(
                {**done.metrics, **found}, table, groups,
                num_samples=count, task=task, tested=found,
            )  # fmt: skip
            if not is_rank_zero():
                return metrics
            figures: dict[str, Figure] = {}
            if table is not None:
                figures |= prediction_figures(datamodule, "test", table, title="Test set")
            curves = curve_figures([done.history], [done.best_epoch], monitor=monitor)
            save_figures(path / "figures", {**curves, **figures})
            summary = {
                "metrics": {name: {"mean": value} for name, value in metrics.items()},
                "epochs": done.epochs,
                "best_epoch": done.best_epoch,
                "seconds": done.seconds,
                "config": {"trainer": arguments, **configuration(model, datamodule)},
                "versions": tracking.versions(),
            }
            write_record(path / SUMMARY, summary, [path / "history.csv"])
            if also is not None:
                more, drawn = also(path, metrics)
                metrics |= more
                figures |= drawn
            loggers = [] if used is None else [used]
            tracking.log_figures(loggers, figures)  # they draw curves themselves
            tracking.log_scores(loggers, metrics)
        return metrics

    return in_run_dir(run_dir, "runs/fit", run, resume=False)


class _NeedsTestSet(Callback):
    """Refuse data without a test set before the training.

    A `test_dataloader` of the user is not called, because it may need ``setup("test")``.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if type(data).test_dataloader.__module__.startswith("dlblocks."):
            data.check_test_set()
