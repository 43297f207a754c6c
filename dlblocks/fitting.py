"""One fit done right: the best weights kept, everything in one run folder, figures drawn."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import Logger

from dlblocks import report, tracking
from dlblocks.callbacks import ExactResume
from dlblocks.data import DataModule
from dlblocks.errors import check_choice, did_you_mean
from dlblocks.files import check_new_run_dir, is_rank_zero, know_rank, write_json, write_rows
from dlblocks.history import History, KeepHistory
from dlblocks.no_gpu import quick_gpu_check
from dlblocks.predictions import gather, stack
from dlblocks.quiet import quiet

# What a killed fit may lose; writing a checkpoint at every short epoch would cost more.
RESUME_SECONDS = 10.0
CALLBACKS = "lambda: [EarlyStopping('val/loss')]"  # what make_callbacks may be
HIGHER_IS_BETTER = ("acc", "accuracy", "f1", "r2", "auc", "auroc", "precision", "recall")
OWN_ARGUMENTS = {
    "logger": "pass logger='csv', 'wandb', 'tensorboard' or None",
    "default_root_dir": "pass run_dir=",
    "callbacks": "pass them apart from trainer=",
    "enable_progress_bar": "pass progress_bar=",
}


@dataclass
class Fit:
    """A finished fit, its model holding the weights of the best epoch.

    Attributes:
        trainer: The Trainer, for what follows.
        history: One row an epoch of all that was logged.
        checkpoint: The best epoch's checkpoint; None under ``fast_dev_run``.
        best_epoch: The best epoch, from 1.
        epochs: Epochs run.
        metrics: Validation metrics of the best weights.
        seconds: Duration of the fit.
    """

    trainer: pl.Trainer
    history: list[dict[str, float]]
    checkpoint: Path | None
    best_epoch: int
    epochs: int
    metrics: dict[str, float]
    seconds: float


def check_trainer_arguments(
    trainer: Mapping[str, Any] | None, monitor: str | None = None
) -> dict[str, Any]:
    """A copy of Trainer arguments, checked.

    Args:
        trainer: The arguments.
        monitor: A metric that the fit needs; None if it needs none. A validation that never runs
            is refused if the metric is one of validation.

    Raises:
        ValueError: An argument is wrong, or leaves nothing to train or to validate; the message
            names it.
    """
    if trainer is not None and not isinstance(trainer, Mapping):
        raise TypeError(
            f"trainer is a {type(trainer).__name__}; give the arguments of a Trainer, which is "
            "made anew for each fit, such as {'max_epochs': 30}."
        )
    arguments = dict(trainer or {})
    for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch"):
        if isinstance(arguments.get(name), str):
            raise TypeError(f"trainer={{{name!r}: {arguments[name]!r}}} must be a number.")
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    for name, value in arguments.items():
        if name in OWN_ARGUMENTS:
            raise ValueError(
                f"trainer={{{name!r}: …}} has a place of its own; {OWN_ARGUMENTS[name]}."
            )
        if name not in known:
            hint = did_you_mean(name, known) or "; see lightning.pytorch.Trainer"
            raise ValueError(f"trainer={{{name!r}: {value!r}}} is no argument of Trainer{hint}")
    if arguments.get("strategy") in ("ddp_spawn", "ddp_fork", "ddp_notebook"):
        raise ValueError(
            f"trainer={{'strategy': {arguments['strategy']!r}}} fits in processes whose metrics "
            "and callbacks do not come back; use strategy='ddp'."
        )
    _check_amounts(arguments)
    every, epochs = arguments.get("check_val_every_n_epoch"), arguments.get("max_epochs")
    rarely = every is not None and epochs is not None and 0 < epochs < every
    if rarely and monitor and not monitor.startswith("train") and not arguments.get("fast_dev_run"):
        raise ValueError(
            f"trainer={{'check_val_every_n_epoch': {every}, 'max_epochs': {epochs}}} never "
            f"validates, but monitor={monitor!r} needs it; use check_val_every_n_epoch <= {epochs}."
        )
    arguments.setdefault("enable_model_summary", False)
    return arguments


def _check_amounts(arguments: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for numbers that leave nothing to train or validate."""
    for name in ("max_epochs", "max_steps"):
        value = arguments.get(name)
        if value is not None and value < 1 and value != -1:
            raise ValueError(f"trainer={{{name!r}: {value!r}}} trains nothing; give 1 or more.")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        value = arguments.get(name)
        if value is not None and not value > 0:
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} leaves no batch; give a number of batches, such "
                "as 10, or a share, such as 0.5."
            )
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value = arguments.get(name)
        if value is not None and (value < 1 or value != int(value)):
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} must be a whole number of at least 1."
            )
    for name in ("gradient_clip_val", "val_check_interval"):
        value = arguments.get(name)
        off = name == "gradient_clip_val" and value == 0
        if isinstance(value, (int, float)) and not (value > 0 or off):
            raise ValueError(f"trainer={{{name!r}: {value!r}}} must be a positive number.")
    if arguments.get("overfit_batches"):
        raise ValueError(
            f"trainer={{'overfit_batches': {arguments['overfit_batches']!r}}} validates on "
            "training samples; for a short trial use fast_dev_run=True, or limit_train_batches."
        )


def new_callbacks(make_callbacks: Callable[[], Sequence[Callback]]) -> list[Callback]:
    """What `make_callbacks` returns, or a `TypeError` if it is not a list of callbacks."""
    made = make_callbacks()
    if not isinstance(made, (list, tuple)) or not all(isinstance(c, Callback) for c in made):
        raise TypeError(f"make_callbacks returned {made!r}; expected a list, as of {CALLBACKS}.")
    return list(made)


def check_mode(monitor: str, mode: str) -> None:
    """Raises a `ValueError` unless `mode` is known and may be meant for `monitor`."""
    check_choice("mode", mode, ["min", "max"])
    if mode == "min" and re.split(r"[/_]", monitor)[-1].lower() in HIGHER_IS_BETTER:
        raise ValueError(
            f"monitor={monitor!r} is best where it is highest, but mode='min'; set mode='max'."
        )


@contextlib.contextmanager
def saying_what_was_logged(trainer: pl.Trainer, monitor: str) -> Iterator[None]:
    """Says what there is where a fit inside ends because `monitor` was not logged."""
    try:
        yield
    except MisconfigurationException as error:
        logged = sorted(trainer.callback_metrics)
        # Said by ModelCheckpoint after the first validation.
        if monitor in logged or f"monitor={monitor!r}" not in str(error):
            raise
        hint = did_you_mean(monitor, logged) or "."
        raise ValueError(
            f"monitor={monitor!r} was not logged by {type(trainer.lightning_module).__name__}"
            f"{hint} There are: "
            f"{', '.join(logged) or 'none; log it in validation_step by self.log'}."
        ) from error


def fit(
    model: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    folder: Path,
    *,
    callbacks: Sequence[Callback],
    trainer: Mapping[str, Any],
    monitor: str,
    mode: str,
    logger: Logger | None,
    bar: Callback | bool,
    resume: bool = False,
) -> Fit:
    """Fits `model`, ends its logger, restores the best epoch's weights and validates them.

    Args:
        model: A new LightningModule.
        datamodule: Its data, with a validation part.
        folder: Gets ``checkpoints/best.ckpt`` and ``history.csv``.
        callbacks: New callbacks, without a ModelCheckpoint; an `ExactResume` may be among them, and
            writes into ``checkpoints`` too.
        trainer: Checked arguments of the Trainer.
        monitor: The logged metric that chooses the best epoch.
        mode: ``"min"`` or ``"max"``.
        logger: A new logger, or None.
        bar: A progress bar; True for Lightning's, False for none.
        resume: Go on where a killed fit of the same folder was, and keep what that needs.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and not isinstance(callback, ExactResume):
            raise ValueError(
                "callbacks hold a ModelCheckpoint, but the best weights are kept anyway; "
                "leave it out and set monitor= and mode=."
            )
    started = time.monotonic()
    history = History()
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        filename="best",
        # At a validation that is not every epoch's, a metric of training is that of the epoch
        # before.
        save_on_train_epoch_end=True if monitor.startswith("train") else None,
        monitor=monitor,
        mode=mode,
        enable_version_counter=False,
    )
    own: list[Callback] = [checkpoint, tracking.LogTrainerSettings(), tracking.LogFirstBatch()]
    resume = resume and not trainer.get("fast_dev_run")
    if resume:
        own.append(KeepHistory(history))
        if not any(isinstance(callback, ExactResume) for callback in callbacks):
            own.append(ExactResume(min_seconds=RESUME_SECONDS))
    try:
        fitter = pl.Trainer(
            **trainer,
            callbacks=[*callbacks, *own, *([bar] if isinstance(bar, Callback) else [])],
            logger=[history] if logger is None else [history, logger],
            default_root_dir=folder,
            enable_progress_bar=bool(bar),
        )
        with warnings.catch_warnings(), quick_gpu_check(), saying_what_was_logged(fitter, monitor):
            warnings.filterwarnings("ignore", r"\.fit\(ckpt_path=.last.\) is set, but there is no")
            fitter.fit(model, datamodule=datamodule, ckpt_path="last" if resume else None)
    finally:
        tracking.finish_logger(logger)
    if fitter.is_global_zero:
        # What SLURM's signal before a requeue has left: predict would load it in place of the best.
        for requeued in folder.glob("hpc_ckpt_*.ckpt"):
            requeued.unlink()
    seconds = time.monotonic() - started
    # What follows is no epoch of the fit and must not be logged as one.
    fitter.loggers = []
    # The checkpoint's `state_dict` are the averaged weights. Left in place, the callback would swap
    # them in for validation alone, and test and predict would use the others. And the history is
    # that of the whole fit, not of the best epoch's checkpoint.
    attached: list[Callback] = vars(fitter)["callbacks"]  # an attribute without an annotation
    attached[:] = [c for c in attached if not isinstance(c, (WeightAveraging, KeepHistory))]
    # fast_dev_run keeps no checkpoints: its last weights stand for the best.
    best = checkpoint.best_model_path or None
    if best is None and not trainer.get("fast_dev_run"):
        raise ValueError(
            f"monitor={monitor!r} was never logged: the fit ended after {fitter.global_step} "
            f"steps and {fitter.current_epoch} epochs without a validation that logs it. Train "
            "longer, validate more often (val_check_interval, check_val_every_n_epoch), or use "
            "smaller batches where drop_last leaves none."
        )
    (metrics,) = fitter.validate(model, datamodule=datamodule, ckpt_path=best, verbose=False)
    if fitter.is_global_zero:
        write_rows(folder / "history.csv", history.rows)
    worst, pick = (math.inf, min) if mode == "min" else (-math.inf, max)
    monitored = [
        # As ModelCheckpoint takes a value that is none; `min` would take it for the best.
        (worst if math.isnan(row[monitor]) else row[monitor], row["epoch"])
        for row in history.rows
        if monitor in row
    ]
    best_epoch = int(pick(monitored, key=lambda pair: pair[0])[1]) + 1 if monitored else 0
    return Fit(
        trainer=fitter,
        history=history.rows,
        checkpoint=Path(best) if best else None,
        best_epoch=best_epoch or fitter.current_epoch,
        epochs=fitter.current_epoch,
        metrics={name: float(value) for name, value in metrics.items()},
        seconds=seconds,
    )


def fit_and_test(
    model: pl.LightningModule,
    datamodule: DataModule,
    *,
    callbacks: Sequence[Callback] = (),
    trainer: Mapping[str, Any] | None = None,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    run_dir: str | PathLike[str] = "runs/fit",
    progress_bar: bool = True,
) -> dict[str, float]:
    """Fits a model, restores its best epoch and tests it, once; returns the metrics of both.

    The run folder holds ``summary.json``, ``history.csv``, ``checkpoints/best.ckpt``, the logger's
    files and ``figures/*.png``: learning curves, and for the test set the confusion matrix and the
    hardest images, or predicted over true values.

    Args:
        model: A new LightningModule.
        datamodule: Its data, with a test set.
        callbacks: Callbacks, such as ``[Augment(rotation=10)]``.
        trainer: Arguments of the Lightning `Trainer`, such as ``{"max_epochs": 30}``.
        monitor: The logged metric that chooses the best epoch.
        mode: Whether ``"min"`` or ``"max"`` of it is best.
        logger: Where to log.
        run_dir: A folder that is empty or does not exist.
        progress_bar: Show Lightning's progress bar.

    Raises:
        ValueError: An argument is wrong.
        FileExistsError: `run_dir` holds something already.
    """
    check_mode(monitor, mode)
    arguments = check_trainer_arguments(trainer)
    know_rank(arguments.get("num_nodes", 1))
    path = check_new_run_dir(run_dir) if is_rank_zero() else Path(run_dir)
    with quiet():
        done = fit(
            model,
            datamodule,
            path,
            callbacks=callbacks,
            trainer=arguments,
            monitor=monitor,
            mode=mode,
            logger=tracking.make_logger(logger, path, run_name=path.name, job_type="fit"),
            bar=progress_bar,
        )
        (tested,) = done.trainer.test(model, datamodule=datamodule, verbose=False)
        datamodule.predict_on = "test"
        arrays = stack(gather(done.trainer.predict(model, datamodule=datamodule) or []))
    metrics = {**done.metrics, **{name: float(value) for name, value in tested.items()}}
    if done.trainer.is_global_zero:
        write_json(
            path / "summary.json",
            {
                "metrics": metrics,
                "epochs": done.epochs,
                "best_epoch": done.best_epoch,
                "seconds": done.seconds,
                "config": {"trainer": arguments, **configuration(model, datamodule)},
                "versions": tracking.versions(),
            },
        )
        figures = report.curve_figures(
            [done.history], [done.best_epoch], is_classification=datamodule.is_classification
        )
        if {"index", "target", "prediction"} <= arrays.keys():
            figures |= report.prediction_figures(datamodule, "test", arrays, title="Test set")
        report.save_figures(path / "figures", figures)
    return metrics


def configuration(
    model: pl.LightningModule, datamodule: pl.LightningDataModule
) -> dict[str, dict[str, Any]]:
    """The hyperparameters of a model and its data, with their classes."""
    return {
        "model": {"class": type(model).__name__, **dict(model.hparams_initial)},
        "data": {"class": type(datamodule).__name__, **dict(datamodule.hparams_initial)},
    }
