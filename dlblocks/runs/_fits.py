"""Run, write and load the fits of one run folder.

A fit is finished when its JSON file is there, such as ``fold-0/fold.json``. It is written last.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from dlblocks import tracking
from dlblocks._files import (
    OtherRunError,
    check_files,
    is_rank_zero,
    read_record,
    read_rows,
    reading,
    write_record,
)
from dlblocks.callbacks._side_effects import paused
from dlblocks.data import SplitDataModule
from dlblocks.models._checkpoints import is_ours
from dlblocks.models._earlier import plain_statistics
from dlblocks.models._predict_batches import NoPredictions
from dlblocks.nets import Preprocess
from dlblocks.runs._plan import run_id_of
from dlblocks.runs._run_config import FitSpec, RunConfig, Spec
from dlblocks.runs.fit import drop_training_state, fit
from dlblocks.runs.predict_part import try_prediction
from dlblocks.tasks import PredictionTable


@dataclass
class FitResult:
    """The result of one fit.

    Attributes:
        row: Its row in the table of all fits.
        predicted: Predictions of the samples it was scored on, or None.
        history: One row an epoch.
        preprocess: Statistics of its inputs, as plain values, or None.
        reason: Why there are no predictions, if there are none.
        warned: Whether a warning was given for this reason.
    """

    row: dict[str, Any]
    predicted: PredictionTable | None
    history: list[dict[str, float]]
    preprocess: Any = None
    reason: NoPredictions | None = None
    warned: bool = False


def run_fit(
    config: RunConfig, datamodule: SplitDataModule, spec: FitSpec, bar: Callback | None
) -> FitResult:
    """Fit, validate and predict, and write the result.

    A killed fit is resumed.

    Args:
        config: Configuration of the run.
        datamodule: A new one, set to this fit.
        spec: Which fit it is.
        bar: Its progress bar.
    """
    started = time.monotonic()
    pl.seed_everything(config.seed_of(spec), workers=True, verbose=False)
    model, callbacks = config.new_model(), config.new_callbacks()
    if config.check is not None:
        config.check(model, callbacks)
    if not config.tried and not is_ours(type(model)):  # ours are known to predict
        callbacks.append(_TryPrediction(config))
    warned = config.warned
    logger = config.new_logger(spec)
    with tracking.finishing(logger):
        done = fit(
            model,
            datamodule,
            config.folder(spec),
            callbacks=callbacks,
            trainer=config.trainer,
            monitor=config.monitor,
            mode=config.mode,
            logger=logger,
            bar=bar or False,
            resume=config.resume,
            name=spec.name,
        )
        predicted = config.predict(done.trainer, model, datamodule)
    if done.trainer.is_global_zero:
        drop_training_state(done.checkpoint)
    result = finish_fit(
        config,
        spec,
        datamodule,
        epochs=done.epochs,
        best_epoch=done.best_epoch,
        metrics=done.metrics,
        seconds=time.monotonic() - started,
        checkpoint=f"checkpoints/{done.checkpoint.name}" if done.checkpoint else "",
        predicted=predicted,
        history=done.history,
    )
    result.warned = config.warned and not warned
    return result


def finish_fit(
    config: RunConfig,
    spec: FitSpec,
    datamodule: SplitDataModule,
    *,
    epochs: int,
    best_epoch: int,
    metrics: Mapping[str, float],
    seconds: float,
    checkpoint: str,
    predicted: PredictionTable | None,
    history: list[dict[str, float]],
) -> FitResult:
    """Write the result of a fit, the JSON file last.

    Args:
        config: Configuration of the run.
        spec: Which fit it is.
        datamodule: Its data.
        epochs: Epochs run.
        best_epoch: The best, from 1.
        metrics: Validation metrics of the best epoch.
        seconds: Duration of the fit.
        checkpoint: The best epoch's checkpoint, within the folder of the fit; empty for none.
        predicted: Predictions of the predicted part.
        history: One row an epoch.

    Raises:
        FileExistsError: The run folder has become that of another run.
    """
    row: dict[str, Any] = {
        **spec.place,
        "epochs": epochs,
        "best_epoch": best_epoch,
        **config.sizes(datamodule),
        **metrics,
        "seconds": round(seconds, 3),
        "checkpoint": f"{spec.folder}/{checkpoint}" if checkpoint else "",
    }
    preprocess = getattr(datamodule, "preprocess", None)
    plain = preprocess.to_plain() if isinstance(preprocess, Preprocess) else None
    result = FitResult(row, predicted, history, plain, config.reason)
    if is_rank_zero():
        _write(config, spec, result)
    return result


def read_fits(config: RunConfig, specs: Sequence[Spec]) -> dict[Spec, FitResult]:
    """Load the finished fits of the run in the folder."""
    run_id = run_id_of(config.run_dir) if config.resume else ""
    read = [(s, read_fit(type(config), config.run_dir, s, run_id)) for s in specs if run_id]
    return {spec: result for spec, result in read if result is not None}


def read_fit(kind: type[RunConfig], run_dir: Path, spec: FitSpec, run_id: str) -> FitResult | None:
    """Load the result of a fit, or None if it is not finished.

    Args:
        kind: The class of the run's configuration.
        run_dir: The run folder.
        spec: Which fit it is.
        run_id: The run's id.

    Raises:
        ValueError: A file is damaged.
    """
    folder = run_dir / spec.folder
    path = folder / f"{kind.kind}.json"
    if not path.exists():
        return None
    cure = f"delete {path}, and the same call runs {folder.name} again"
    found = read_record(path, cure)
    with reading(path, cure):
        if found.get("run_id", run_id) != run_id:
            return None  # of a run that was here before
        if any(found["row"][key] != value for key, value in spec.place.items()):
            raise ValueError(f"it is of another {kind.kind}")
        row = {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in found["row"].items()}
    check_files(path, found, cure)
    if is_rank_zero():
        with contextlib.suppress(OSError):  # a finished run may be read-only
            _last_checkpoint(folder).unlink()  # if a kill has left it
    predicted = None
    if found.get("has_predictions"):
        predicted = PredictionTable.read(folder / kind.predictions_file, cure)
    text = found.get("no_predictions")
    reason = None if text is None else NoPredictions(text)
    with reading(folder / "history.csv", cure):
        history = read_rows(folder / "history.csv")
    return FitResult(row, predicted, history, plain_statistics(found), reason)


class _TryPrediction(Callback):
    """Try the prediction of one batch before the fit.

    The fit does not change by it. Only the fit's own model has the device, the precision and what
    ``setup("fit")`` makes.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        modes = {part: part.training for part in pl_module.modules()}
        pl_module.eval()
        try:
            with isolate_rng(), paused(pl_module), torch.no_grad():
                try_prediction(trainer, pl_module, datamodule, "train")
        except NoPredictions as reason:
            # The weights of an untrained model may be the cause: tried again after the fit.
            if not isinstance(reason.__cause__, torch.linalg.LinAlgError):
                self.config.warn(reason)
        finally:
            self.config.tried = True
            for part, training in modes.items():
                part.training = training


def _write(config: RunConfig, spec: FitSpec, result: FitResult) -> None:
    folder = config.folder(spec)
    if run_id_of(config.run_dir) != config.run_id:
        raise OtherRunError(
            f"run_dir='{config.run_dir}' holds another run by now, so {folder.name} of this one is "
            "not written into it; stop one of the two calls, or give them different run_dir."
        )
    if result.predicted is not None:
        result.predicted = result.predicted.write(folder / config.predictions_file)
    # JSON has no numbers that are not finite.
    row = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in result.row.items()
    }
    written = {
        "run_id": config.run_id,
        "row": row,
        "has_predictions": result.predicted is not None,
        "preprocess": result.preprocess,
    }
    if result.reason is not None:
        written["no_predictions"] = str(result.reason)
    files = [folder / config.predictions_file, folder / "history.csv"]
    if row["checkpoint"]:
        files.append(config.run_dir / row["checkpoint"])
    write_record(folder / f"{config.kind}.json", written, files)
    _last_checkpoint(folder).unlink(missing_ok=True)  # nothing resumes from it


def _last_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"
