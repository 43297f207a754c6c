"""One fit of a cross-validation: run, written into its folder, and read back.

A fold is finished when its ``fold.json`` is there, which is written last.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from dlblocks import tracking
from dlblocks.callbacks.untouched import paused
from dlblocks.crossval.notes import count_scored
from dlblocks.crossval.out_of_fold import OutOfFold
from dlblocks.crossval.result import fold_dir
from dlblocks.data import SplitDataModule
from dlblocks.files import (
    OtherRunError,
    check_files,
    is_rank_zero,
    read_arrays,
    read_record,
    read_rows,
    reading,
    whole_file,
    write_record,
)
from dlblocks.fitting import Select, drop_training_state, fit, new_callbacks, new_module
from dlblocks.metrics import Range
from dlblocks.models.checkpoints import is_ours
from dlblocks.plan import run_id_of
from dlblocks.predictions import NoPredictions, predict_part, try_prediction

FINISHED = "fold.json"
# What was made in this process, by the key of the plan that it belongs to.
_seen: dict[str, dict[int, weakref.ref]] = {}


@dataclass(frozen=True)
class Job:
    """Which fit it is."""

    number: int
    repeat: int
    fold: int

    @property
    def name(self) -> str:
        """``"fold 2"``, or ``"repeat 1, fold 2"`` after the first repeat."""
        return f"repeat {self.repeat}, fold {self.fold}" if self.repeat else f"fold {self.fold}"


@dataclass
class Fold:
    """What one fit leaves.

    Attributes:
        row: The row of ``folds.csv``.
        oof: Its out-of-fold predictions, or None.
        history: One row an epoch.
        reason: Why there are no predictions, if there are none.
        warned: Whether a warning was given for this reason.
    """

    row: dict[str, Any]
    oof: OutOfFold | None
    history: list[dict[str, float]]
    reason: NoPredictions | None = None
    warned: bool = False


@dataclass
class Plan:
    """What is the same for every fit; see `cross_validate`.

    `check` is called with each fit's model and callbacks before they are used.
    """

    make_model: Callable[[], pl.LightningModule]
    make_callbacks: Callable[[], Sequence[Callback]]
    trainer: dict[str, Any]
    monitor: str
    mode: str
    logger: str | None
    run_dir: Path
    seed: int
    resume: bool
    select: Select = "inner"
    selection_fraction: float = 0.15
    check: Callable[[pl.LightningModule, Sequence[Callback]], None] | None = None
    num_folds: int = 0
    run_id: str = ""
    loss_range: Range = (None, None)  # of the models
    tried: bool = False  # whether prediction was tried before a fit
    reason: NoPredictions | None = None  # why it does not work
    warned: bool = False
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    def settings(self) -> dict[str, Any]:
        """Arguments that decide what the fits are, as plain values."""
        names = ["trainer", "monitor", "mode", "seed", "select"]
        if self.select == "inner":
            names.append("selection_fraction")
        return {name: getattr(self, name) for name in names}

    def data_of(self, data: SplitDataModule, job: Job) -> SplitDataModule:
        """Return new data for a fit, with the part that selects its epoch."""
        new = data.for_fold(job.fold, self.num_folds, repeat=job.repeat)
        if self.select == "inner":
            return new.with_selection(self.selection_fraction)
        new.validate_on = "val" if self.select == "fold" else None
        return new

    def new_model(self) -> pl.LightningModule:
        model = new_module(self.make_model)
        self._check_new(model, "make_model", "model")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._check_new(parameter, "make_model", f"parameter {name}")
        return model

    def new_callbacks(self) -> list[Callback]:
        callbacks = new_callbacks(self.make_callbacks)
        for callback in callbacks:
            self._check_new(callback, "make_callbacks", type(callback).__name__)
        return callbacks

    def _check_new(self, thing: Any, argument: str, what: str) -> None:
        # By identity: callbacks may have an equality of their own.
        seen = _seen.setdefault(self.key, {})
        if id(thing) in seen and seen[id(thing)]() is thing:
            raise ValueError(
                f"{argument} returned the same {what} for two folds, which would carry one fold's "
                "training into the next; make it inside the function."
            )
        seen[id(thing)] = weakref.ref(thing)

    def warn(self, reason: NoPredictions) -> None:
        """Warn once that a failing prediction leaves the result without `oof`."""
        if reason.failed and not self.warned:
            self.warned = True
            rank_zero_warn(f"result.oof will be None, and the fits go on: {reason}")

    def folder(self, job: Job) -> Path:
        """Where the fit leaves its files."""
        return fold_dir(self.run_dir, {"repeat": job.repeat, "fold": job.fold})

    def new_logger(self, job: Job) -> Logger | None:
        """The logger of a fit, its W&B run one of the group that is named after the run folder."""
        folder = self.folder(job)
        return tracking.make_logger(
            self.logger,
            folder,
            run_name=f"{self.run_dir.name}-{folder.relative_to(self.run_dir)}".replace("/", "-"),
            group=self.run_dir.name,
            job_type="fold",
            run_id=f"{self.run_id}-{job.repeat}-{job.fold}",
            is_part=True,
            config={
                "fold": job.fold,
                "repeat": job.repeat,
                "num_folds": self.num_folds,
                "seed": self.seed + job.number,
            },
        )

    def forget(self) -> None:
        """Lets go of what was made for this run."""
        _seen.pop(self.key, None)


def run_fold(plan: Plan, datamodule: SplitDataModule, job: Job, bar: Callback | None) -> Fold:
    """Fits, validates and predicts one fold, and writes what it found.

    A fit that was killed goes on where it was.

    Args:
        plan: What is the same for every fit.
        datamodule: A new one, set to the fold.
        job: Which fit it is.
        bar: Its progress bar.
    """
    started = time.monotonic()
    pl.seed_everything(plan.seed + job.number, workers=True, verbose=False)
    folder = plan.folder(job)
    model, callbacks = plan.new_model(), plan.new_callbacks()
    if plan.check is not None:
        plan.check(model, callbacks)
    if not plan.tried and not is_ours(type(model)):  # ours are known to predict
        callbacks.append(_TryPrediction(plan))
    warned = plan.warned
    logger = plan.new_logger(job)
    with tracking.finishing(logger):
        done = fit(
            model,
            datamodule,
            folder,
            callbacks=callbacks,
            trainer=plan.trainer,
            monitor=plan.monitor,
            mode=plan.mode,
            logger=logger,
            bar=bar or False,
            resume=plan.resume,
            name=job.name,
        )
        predicted, reason = None, plan.reason
        if reason is None:
            try:
                predicted = predict_part(done.trainer, model, datamodule, "val")
            except NoPredictions as error:
                reason = plan.reason = error
                plan.warn(reason)
    if done.trainer.is_global_zero:
        drop_training_state(done.checkpoint)
    fold = finish_fold(
        plan,
        job,
        datamodule,
        epochs=done.epochs,
        best_epoch=done.best_epoch,
        metrics=done.metrics,
        seconds=time.monotonic() - started,
        checkpoint=done.checkpoint,
        predicted=predicted,
        reason=reason,
        history=done.history,
        write=done.trainer.is_global_zero,
    )
    fold.warned = plan.warned and not warned
    return fold


class _TryPrediction(Callback):
    """Try the prediction of one batch before the fit.

    The fit stays what it would have been. It is tried on the fold's own model: only there are the
    device, the precision and what ``setup("fit")`` has made as they will be.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        modes = {part: part.training for part in pl_module.modules()}
        pl_module.eval()
        try:
            with isolate_rng(), paused(pl_module), torch.no_grad():
                try_prediction(trainer, pl_module, datamodule, "train")
        except NoPredictions as reason:
            # Numbers of a model that has not learned may be at fault: after the fit it is seen.
            if not isinstance(reason.__cause__, torch.linalg.LinAlgError):
                self.plan.warn(reason)
        finally:
            self.plan.tried = True
            for part, training in modes.items():
                part.training = training


def finish_fold(
    plan: Plan,
    job: Job,
    datamodule: SplitDataModule,
    *,
    epochs: int,
    best_epoch: int,
    metrics: Mapping[str, float],
    seconds: float,
    checkpoint: Path | None,
    predicted: Mapping[str, np.ndarray] | None,
    reason: NoPredictions | None = None,
    history: list[dict[str, float]],
    write: bool = True,
) -> Fold:
    """What a fit leaves, written into its folder too; ``fold.json`` comes last.

    Args:
        plan: What is the same for every fit.
        job: Which fit it is.
        datamodule: Its data.
        epochs: Epochs run.
        best_epoch: The best, from 1.
        metrics: Validation metrics of the best epoch.
        seconds: Duration of the fit.
        checkpoint: The best epoch's checkpoint.
        predicted: ``index``, ``target`` and ``prediction`` of the validation part.
        reason: Why there are no predictions, if there are none.
        history: One row an epoch.
        write: Whether this process writes.
    """
    folder = plan.folder(job)
    place = {"fold": job.fold, "repeat": job.repeat}
    row: dict[str, Any] = {
        "repeat": job.repeat,
        "fold": job.fold,
        **group_of(datamodule),
        "epochs": epochs,
        "best_epoch": best_epoch,
        "num_train": len(datamodule.indices("train")),
        "num_selection": len(datamodule.indices("selection")) if plan.select == "inner" else 0,
        "num_val": count_scored(datamodule, plan.trainer),
        **metrics,
        "seconds": round(seconds, 3),
        # Lightning has resolved links in its own path.
        "checkpoint": str(folder.relative_to(plan.run_dir) / "checkpoints" / checkpoint.name)
        if checkpoint
        else "",
    }
    oof = None
    if predicted is not None:
        size = len(predicted["index"])
        oof = OutOfFold(**predicted, **{key: np.full(size, n) for key, n in place.items()})
    if write:
        pair = getattr(datamodule, "normalisation", None)
        write_fold(folder, row, oof, pair, reason, plan=plan)
    return Fold(row, oof, history, reason)


def group_of(datamodule: SplitDataModule) -> dict[str, str]:
    """Name of the fold, if it has one, as an entry of its row."""
    name = datamodule.fold_name()
    return {} if name is None else {"group": name}


def write_fold(
    folder: Path,
    row: dict[str, Any],
    oof: OutOfFold | None,
    normalisation: Any,
    reason: NoPredictions | None = None,
    *,
    plan: Plan,
) -> None:
    """Writes what a fit has found; ``history.csv`` is there already.

    Raises:
        FileExistsError: The run folder has become that of another run.
    """
    if run_id_of(plan.run_dir) != plan.run_id:
        raise OtherRunError(
            f"run_dir='{plan.run_dir}' holds another run by now, so {folder.name} of this one is "
            "not written into it; stop one of the two calls, or give them different run_dir."
        )
    if oof is not None:
        with whole_file(folder / "oof.npz") as part:
            np.savez_compressed(part, **vars(oof))
    plain = None if normalisation is None else [tensor.tolist() for tensor in normalisation]
    # JSON has no numbers that are not finite.
    row = {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    written = {
        "run_id": plan.run_id,
        "row": row,
        "has_predictions": oof is not None,
        "normalisation": plain,
    }
    if reason is not None:
        written["no_predictions"] = str(reason)
    files = [folder / "oof.npz", folder / "history.csv"]
    if row["checkpoint"]:
        files.append(plan.run_dir / row["checkpoint"])
    write_record(folder / FINISHED, written, files)
    # Nothing has to go on from here.
    _last_checkpoint(folder).unlink(missing_ok=True)


def _last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def read_fold(folder: Path, run_id: str) -> Fold | None:
    """What a finished fit of a run has left, or None if it is not finished.

    Raises:
        ValueError: A file is damaged.
    """
    path = folder / FINISHED
    if not path.exists():
        return None
    cure = f"delete {path}, and the same call runs {folder.name} again"
    found = read_record(path, cure)
    with reading(path, cure):
        if found["run_id"] != run_id:
            return None  # of a run that was here before
        if folder.name != fold_dir(Path(), found["row"]).name:
            raise ValueError(f"it is of fold {found['row']['fold']}")
        row = {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in found["row"].items()}
    check_files(path, found, cure)
    if is_rank_zero():
        with contextlib.suppress(OSError):  # a finished run may be read-only
            _last_checkpoint(folder).unlink()  # as `write_fold` did, if it came to it
    oof = None
    if found["has_predictions"]:
        oof = OutOfFold(**read_arrays(folder / "oof.npz", cure))
    text = found.get("no_predictions")
    reason = None if text is None else NoPredictions(text)
    with reading(folder / "history.csv", cure):
        return Fold(row, oof, read_rows(folder / "history.csv"), reason)


def join(parts: Sequence[OutOfFold | None]) -> OutOfFold | None:
    """The predictions of all folds, sorted by (repeat, index); None if a fold has none."""
    found = [part for part in parts if part is not None]
    shapes = {(part.target.shape[1:], part.prediction.shape[1:]) for part in found}
    if not found or len(found) < len(parts) or len(shapes) > 1:
        return None
    columns = {name: np.concatenate([getattr(p, name) for p in found]) for name in vars(found[0])}
    order = np.lexsort((columns["index"], columns["repeat"]))
    return OutOfFold(**{name: values[order] for name, values in columns.items()})
