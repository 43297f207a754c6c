"""Fit one model in a run folder and keep its best weights."""

from __future__ import annotations

import contextlib
import math
import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy

from dlblocks import tracking
from dlblocks._files import atomic_write, write_rows
from dlblocks._lightning import intercept_metrics, keep_callbacks, quick_gpu_check
from dlblocks._plain import plain_checkpoints
from dlblocks.callbacks import ExactResume
from dlblocks.data import SplitDataModule
from dlblocks.runs._history import (
    History,
    KeepHistory,
    ValidationMemory,
    name_of_selection,
    record,
    stop_recording,
)
from dlblocks.runs._monitor import checking_mode, saying_what_was_logged
from dlblocks.runs._trainer import (
    NeedsNoValidation,
    NoLogger,
    leaving_out,
    saying_that_nothing_is_validated,
    without_bars,
)

RESUME_SECONDS = 10.0  # between checkpoints: the most work that a killed fit loses
Select = Literal["inner", "last", "fold"]
CHECKPOINTS = {True: "best", False: "last-epoch"}  # by whether the fit is validated
# Entries of a checkpoint.
OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "MixedPrecision")
OF_AVERAGING = ("current_model_state", "averaging_state")


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


def fit(
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    folder: Path,
    *,
    callbacks: Sequence[Callback],
    trainer: Mapping[str, Any],
    monitor: str,
    mode: str,
    logger: Logger | None,
    bar: Callback | bool,
    resume: bool = False,
    name: str | None = None,
) -> Fit:
    """Fit `model` and score the weights of the selected epoch.

    The epoch is selected on the part that `datamodule.validate_on` names. Where that is None,
    nothing is validated during the fit, and the weights of the last epoch are scored. The score is
    of the part ``"val"``.

    Args:
        model: A new LightningModule.
        datamodule: Its data; `validate_on` is ``"val"`` afterwards.
        folder: Gets ``checkpoints/best.ckpt`` (or ``last-epoch.ckpt``) and ``history.csv``.
        callbacks: New callbacks, without a ModelCheckpoint; an `ExactResume` may be among them, and
            writes into ``checkpoints`` too.
        trainer: Checked arguments of the Trainer.
        monitor: The logged metric that chooses the best epoch.
        mode: ``"min"`` or ``"max"``.
        logger: A new logger, or None. It is left open for what follows; see `finish_logger`.
        bar: A progress bar; True for Lightning's, False for none. One among the callbacks takes
            its place.
        resume: Resume a killed fit of the same folder, and write the checkpoints for it.
        name: Which fit of the run it is; a ``last.ckpt`` of another is not resumed.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and not isinstance(callback, ExactResume):
            raise ValueError(
                "callbacks hold a ModelCheckpoint, but the best weights are kept anyway; "
                "leave it out and set monitor= and mode=."
            )
    if not is_overridden("validation_step", model):
        what = "a metric" if monitor.startswith("train") else f"monitor={monitor!r}"
        raise ValueError(
            f"{type(model).__name__} has no validation_step, by which each fit is scored; write "
            f"def validation_step(self, batch, batch_idx), which logs {what} by self.log."
        )
    shown = without_bars(callbacks)
    if len(shown) < len(callbacks):
        shown, bar = (list(callbacks), True) if bar else (shown, False)
    started = time.monotonic()
    history, validated_on = History(), datamodule.validate_on
    of_training = monitor.startswith("train")
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        filename=CHECKPOINTS[validated_on is not None],
        # At a validation that is not every epoch's, a metric of training is that of the epoch
        # before.
        save_on_train_epoch_end=True if of_training or not validated_on else None,
        monitor=monitor if validated_on else None,
        mode=mode,
        enable_version_counter=False,
    )
    memory = ValidationMemory()
    own: list[Callback] = [
        checkpoint,
        memory,
        tracking.LogTrainerSettings(),
        tracking.LogFirstBatch(),
    ]
    arguments = dict(trainer)
    if not validated_on:
        # Early stopping looks at the end of every epoch then.
        arguments |= {"limit_val_batches": 0, "check_val_every_n_epoch": 1}
        arguments.pop("val_check_interval", None)
        own.append(NeedsNoValidation())
    elif validated_on == "selection":
        arguments |= _limit_of_selection(trainer, datamodule)
    resume = resume and not trainer.get("fast_dev_run")
    if resume:
        own.append(KeepHistory(history))
        if not any(isinstance(callback, ExactResume) for callback in callbacks):
            # First, to look for last.ckpt before `checkpoint` does.
            own.insert(0, ExactResume(min_seconds=RESUME_SECONDS))
        for callback in [*callbacks, *own]:
            if isinstance(callback, ExactResume):
                callback._fit_name = name
    fitter = pl.Trainer(
        **arguments,
        callbacks=[*shown, *own, *([bar] if isinstance(bar, Callback) else [])],
        logger=logger or NoLogger(folder),
        default_root_dir=folder,
        enable_progress_bar=bool(bar),
    )
    record(fitter, history, validated_on=validated_on)
    with (
        warnings.catch_warnings(),
        quick_gpu_check(),
        saying_what_was_logged(fitter, monitor),
        contextlib.nullcontext() if validated_on else saying_that_nothing_is_validated(),
        checking_mode(model, monitor, mode),
        plain_checkpoints(fitter),
        leaving_out(model, (ModelCheckpoint,)),
    ):
        warnings.filterwarnings("ignore", r"\.fit\(ckpt_path=.last.\) is set, but there is no")
        last = "last" if resume else None
        fitter.fit(model, datamodule=datamodule, ckpt_path=last, weights_only=True)
    if fitter.is_global_zero:
        # Written at SLURM's signal before a requeue; predict would load it, not the best.
        for requeued in folder.glob("hpc_ckpt_*.ckpt"):
            requeued.unlink()
    seconds = time.monotonic() - started
    stop_recording(fitter)  # what follows is not an epoch of the fit
    if not trainer.get("fast_dev_run"):
        limit = trainer.get("limit_val_batches")
        fitter.limit_val_batches = 1.0 if limit is None else limit
    # The checkpoint's `state_dict` are the averaged weights. Left in place, the callback would swap
    # them in for validation alone, and test and predict would use the others. And the history is
    # that of the whole fit, not of the best epoch's checkpoint.
    attached: list[Callback] = vars(fitter)["callbacks"]  # an attribute without an annotation
    # A `BatchSizeFinder` would search again at every validation and prediction.
    ended = (WeightAveraging, KeepHistory, BatchSizeFinder)
    attached[:] = [c for c in attached if not isinstance(c, ended)]
    # The module's own are attached already; Lightning would make and attach them again.
    keep_callbacks(fitter)
    # fast_dev_run keeps no checkpoints: its last weights stand for the best.
    best = checkpoint.best_model_path or None
    if best is None and not trainer.get("fast_dev_run"):
        how = f"the fit ended after {fitter.global_step} steps, {fitter.current_epoch} epochs"
        if not validated_on:
            raise ValueError(f"{how}, and has no weights to keep; train at least one epoch.")
        raise ValueError(
            f"{how}, without a validation that logs monitor={monitor!r}. Train longer, validate "
            "more often (val_check_interval, check_val_every_n_epoch), or use smaller batches "
            "where drop_last leaves none."
        )
    memory.forget(model)
    metrics = _score(fitter, model, datamodule, best, log=validated_on != "val")
    _check_weights(model)
    if fitter.is_global_zero:
        write_rows(folder / "history.csv", history.rows)
    best_epoch = fitter.current_epoch
    if validated_on:
        key = name_of_selection(monitor) if validated_on == "selection" else monitor
        if not any(key in row for row in history.rows):
            key = monitor  # a metric of training
        best_epoch = _best_epoch(history.rows, key, mode) or best_epoch
    return Fit(
        trainer=fitter,
        history=history.rows,
        checkpoint=Path(best) if best else None,
        best_epoch=best_epoch,
        epochs=fitter.current_epoch,
        metrics=metrics,
        seconds=seconds,
    )


def drop_training_state(path: Path | None) -> None:
    """Rewrite the checkpoint of a finished fit without what only training needs.

    Optimizers, schedules, loops and callbacks go; with Adam that is two thirds of the file. Weights
    and hyperparameters stay, averaged weights among them, of which a `WeightAveraging` also keeps
    those that were not averaged. A checkpoint that is more than weights and plain values stays
    as it is.

    Args:
        path: The checkpoint; None for a fit that has kept none.
    """
    if path is None or not path.is_file():  # a folder, where the strategy has split it
        return
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return
    dropped = (*OF_TRAINING, *OF_AVERAGING)
    kept = {name: value for name, value in checkpoint.items() if name not in dropped}
    with atomic_write(path) as part:
        torch.save({**kept, "callbacks": {}}, part)


def _limit_of_selection(trainer: Mapping[str, Any], datamodule: SplitDataModule) -> dict[str, Any]:
    """Return a ``limit_val_batches`` of at least one batch of the selection part."""
    limit, size = trainer.get("limit_val_batches"), len(datamodule.indices("selection"))
    batch = size if datamodule.batch_size == "full" else datamodule.batch_size
    if isinstance(limit, float) and limit < 1 and int(-(-size // batch) * limit) < 1:
        return {"limit_val_batches": 1}
    return {}


def _check_weights(model: pl.LightningModule) -> None:
    """Raise a `FloatingPointError` if weights are NaN.

    Our models end at the first loss that is not finite. Others train on, and would predict class 0.
    """
    for name, weight in model.named_parameters():
        if not is_lazy(weight) and weight.is_floating_point() and weight.isnan().any():
            raise FloatingPointError(
                f"{type(model).__name__} has NaN in {name} after the fit: its training diverged. "
                "Lower the learning rate, clip gradients (trainer: gradient_clip_val), or look for "
                "infinite or missing values in the data."
            )


def _score(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    checkpoint: str | Path | None,
    *,
    log: bool,
) -> dict[str, float]:
    """Return the validation metrics of the part ``"val"``.

    Args:
        trainer: A Trainer.
        model: The model.
        datamodule: The data; `validate_on` is ``"val"`` afterwards.
        checkpoint: Weights to load first, or None.
        log: Send the metrics to the Trainer's loggers too.
    """
    datamodule.validate_on = "val"
    if not log:  # the module keeps its `self.logger`
        intercept_metrics(trainer, lambda *args, **kwargs: None)
    try:
        found = trainer.validate(
            model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False
        )
    finally:
        intercept_metrics(trainer, None)
    scores = {name: float(value) for metrics in found for name, value in metrics.items()}
    tracking.log_scores(trainer.loggers, scores)
    return scores


def _best_epoch(rows: Sequence[Mapping[str, float]], key: str, mode: str) -> int:
    """Return the epoch of the best value, or 0."""
    worst, pick = (math.inf, min) if mode == "min" else (-math.inf, max)
    monitored = [
        # NaN is the worst, as in ModelCheckpoint; `min` might return it.
        (worst if math.isnan(row[key]) else row[key], row["epoch"])
        for row in rows
        if key in row
    ]
    return int(pick(monitored, key=lambda pair: pair[0])[1]) + 1 if monitored else 0
