"""One fit done right: the best weights kept, everything in one run folder, figures drawn."""

from __future__ import annotations

import contextlib
import inspect
import math
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    ProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.compile import from_compiled
from lightning.pytorch.utilities.model_helpers import is_overridden
from torchmetrics import Metric

from dlblocks import report, tracking
from dlblocks.arguments import checked, plain_numbers, whole
from dlblocks.callbacks import ExactResume
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.errors import check_choice, did_you_mean, other_lightning
from dlblocks.files import (
    check_new_run_dir,
    is_rank_zero,
    know_rank,
    next_run_dir,
    whole_file,
    write_json,
    write_rows,
)
from dlblocks.history import (
    VALIDATION,
    History,
    KeepHistory,
    ValidationMemory,
    name_of_selection,
    record,
    stop_recording,
)
from dlblocks.metrics import Mode, metric_mode, mode_of, mode_of_metric
from dlblocks.no_gpu import quick_gpu_check
from dlblocks.plain import plain_checkpoints
from dlblocks.predictions import gather, replaced, stack
from dlblocks.quiet import isolated

# What a killed fit may lose; writing a checkpoint at every short epoch would cost more.
RESUME_SECONDS = 10.0
Select = Literal["inner", "last", "fold"]
SELECT = ("inner", "last", "fold")
CHECKPOINTS = {True: "best", False: "last-epoch"}  # by whether the fit is validated
# Entries of a checkpoint.
OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "MixedPrecision")
OF_AVERAGING = ("current_model_state", "averaging_state")
CALLBACKS = "lambda: [EarlyStopping('val/loss')]"  # what make_callbacks may be
# Arguments of the Trainer that are whole numbers; a limit of 1.0 is all batches.
COUNTS: tuple[str, ...] = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "accumulate_grad_batches",
)
COUNTS += ("check_val_every_n_epoch", "log_every_n_steps", "num_nodes")
OWN_ARGUMENTS = {
    "logger": "pass logger='csv', 'wandb', 'tensorboard' or None",
    "default_root_dir": "pass run_dir=",
    "callbacks": "pass them apart from trainer=",
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
    """A copy of Trainer arguments, checked, without ``enable_progress_bar``; see `shows_bar`.

    Args:
        trainer: The arguments.
        monitor: A metric that the fit needs; None if it needs none. A validation that never runs
            is refused if the metric is one of validation.

    Raises:
        ValueError: An argument is wrong, or leaves nothing to train or to validate; the message
            names it.
    """
    arguments = plain_trainer(trainer)
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
    arguments.pop("enable_progress_bar", None)
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


def plain_trainer(trainer: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of Trainer arguments, with Python's numbers, and whole ones where they count."""
    if trainer is not None and not isinstance(trainer, Mapping):
        raise TypeError(
            f"trainer is a {type(trainer).__name__}; give the arguments of a Trainer, which is "
            "made anew for each fit, such as {'max_epochs': 30}."
        )
    return {
        name: whole(value) if name in COUNTS else plain_numbers(value)
        for name, value in (trainer or {}).items()
    }


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
    for name in COUNTS:
        value, low = arguments.get(name), -1 if name.startswith("max") else 0
        if name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            low = 1
        if value is not None and not (isinstance(value, int) and value >= low):
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} must be a whole number of at least {low}."
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


def shows_bar(progress_bar: bool, trainer: Mapping[str, Any] | None) -> bool:
    """Whether to show a progress bar: both `progress_bar` and the Trainer's argument allow it."""
    return progress_bar and (trainer or {}).get("enable_progress_bar") is not False


def without_bars(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks without progress bars, which do not change a fit."""
    return [callback for callback in callbacks if not isinstance(callback, ProgressBar)]


@contextlib.contextmanager
def leaving_out(model: pl.LightningModule, kinds: tuple[type[Callback], ...]) -> Iterator[None]:
    """Leave some callbacks out of those that a module configures itself.

    Args:
        model: The module.
        kinds: Classes of the callbacks to leave out; an `ExactResume` stays.
    """
    configure: Any = model.configure_callbacks

    def configure_callbacks() -> list[Callback]:
        made = configure()
        made = list(made) if isinstance(made, Sequence) else [made]
        return [c for c in made if isinstance(c, ExactResume) or not isinstance(c, kinds)]

    with replaced(model, "configure_callbacks", configure_callbacks):
        yield


class NoLogger(DummyLogger):
    """Drops everything: callbacks such as `LearningRateMonitor` refuse to have no logger.

    Args:
        folder: What ``trainer.log_dir`` is, as without a logger.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = str(folder)

    @property
    def save_dir(self) -> str:
        return self._folder


def new_module(
    make_model: Callable[..., pl.LightningModule], example: str = "lambda: MLPClassifier(64, 10)"
) -> pl.LightningModule:
    """Make a LightningModule, or raise a `TypeError` if it is not one.

    Of a compiled one, ``torch.compile(module)``, return the module itself, with its compiled steps.
    """
    model: Any = make_model()
    if isinstance(getattr(model, "_orig_mod", None), pl.LightningModule):
        model = from_compiled(model)
    if not isinstance(model, pl.LightningModule):
        raise TypeError(
            f"make_model must return a LightningModule, got {type(model).__name__}; pass a "
            f"function such as {example}.{other_lightning(model)}"
        )
    return model


def new_callbacks(make_callbacks: Callable[[], Sequence[Callback]]) -> list[Callback]:
    """What `make_callbacks` returns, or a `TypeError` if it is not a list of callbacks."""
    made = make_callbacks()
    if not isinstance(made, (list, tuple)) or not all(isinstance(c, Callback) for c in made):
        items = made if isinstance(made, (list, tuple)) else [made]
        raise TypeError(
            f"make_callbacks returned {made!r}; expected a list, as of {CALLBACKS}."
            f"{''.join(filter(None, map(other_lightning, items)))}"
        )
    return list(made)


def resolve_mode(
    monitor: str,
    mode: Mode | None,
    make_model: Callable[..., pl.LightningModule] | None = None,
) -> Mode:
    """Return `mode`, or for None the direction in which `monitor` is best.

    Args:
        monitor: Name of a metric.
        mode: ``"min"``, ``"max"`` or None.
        make_model: Called where the name does not say it: a torchmetrics object of the model may.

    Raises:
        ValueError: `mode` contradicts what is known of the metric, or nothing is known and `mode`
            is None.
    """
    if mode is not None:
        check_choice("mode", mode, ["min", "max"])
    known = metric_mode(monitor)
    if known is None and mode is None and make_model is not None:
        with isolated():
            known = mode_of_metric(new_module(make_model), monitor)
    if known is not None and mode not in (None, known):
        raise _contradiction(monitor, "", known, mode)
    found = known or mode
    if found is None:
        raise ValueError(
            f"monitor={monitor!r} does not say whether it is best low or high; set mode='min' or "
            "mode='max'."
        )
    return found


def _contradiction(monitor: str, what: str, known: str, mode: str | None) -> ValueError:
    best = {"min": "lowest", "max": "highest"}[known]
    return ValueError(
        f"monitor={monitor!r}{what} is best where it is {best}, but mode={mode!r}; set "
        f"mode={known!r} or leave mode out."
    )


@contextlib.contextmanager
def checking_mode(model: pl.LightningModule, monitor: str, mode: str) -> Iterator[None]:
    """Raise a `ValueError` if the metric logged as `monitor` contradicts `mode`.

    The first log of a fit is in Lightning's sanity validation, before anything is trained.
    """
    names = {monitor, *(monitor.removesuffix(end) for end in ("_epoch", "_step"))}
    log = model.log

    def check(known: str | None, what: str = "") -> None:
        # A name that says it counts for more than an object, and was checked by `resolve_mode`.
        if metric_mode(monitor) is None and known not in (None, mode):
            raise _contradiction(monitor, what, str(known), mode)

    def checked(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Metric) and name in names:
            check(mode_of(value), f", logged as a {type(value).__name__},")
        log(name, value, *args, **kwargs)

    check(mode_of_metric(model, monitor))
    # On the instance: `log_dict` calls it as well.
    vars(model)["log"] = checked
    try:
        yield
    finally:
        del vars(model)["log"]


def check_needs_no_validation(
    callbacks: Sequence[Callback],
    plateau_monitors: Sequence[str | None],
    *,
    who: str = "select='last'",
    cure: str = "leave it out, let it monitor a metric of training, or use select='inner'",
) -> None:
    """Raises a `ValueError` if a fit without validation waits for a validation metric.

    Args:
        callbacks: Callbacks of the fit.
        plateau_monitors: What its plateau schedules monitor.
        who: What has no validation, for the message.
        cure: What to do about it, for the message.
    """
    waiting = [(type(c).__name__, c.monitor) for c in callbacks if isinstance(c, EarlyStopping)] + [
        ("a plateau schedule", name) for name in plateau_monitors
    ]
    for what, name in waiting:
        if name and VALIDATION.match(name):
            raise ValueError(
                f"{who} has no validation during the fit, but {what} monitors {name!r}; {cure}."
            )


class NeedsNoValidation(Callback):
    """Looks before the first step, when the schedules of any module are known.

    Args:
        arguments: `who` and `cure` of `check_needs_no_validation`.
    """

    def __init__(self, **arguments: str) -> None:
        self.arguments = arguments

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        plateau = [c.monitor for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
        check_needs_no_validation(vars(trainer)["callbacks"], plateau, **self.arguments)


@contextlib.contextmanager
def saying_that_nothing_is_validated(
    who: str = "select='last'",
    cure: str = "monitor a metric of training, or use select='inner'",
) -> Iterator[None]:
    """Say where a metric is missing that the fit inside has no validation.

    Names such as ``"val/loss"`` are refused before; of others only Lightning finds out.

    Args:
        who: What has no validation, for the message.
        cure: What to do about it, for the message.
    """
    try:
        yield
    except (RuntimeError, MisconfigurationException) as error:
        missing = re.search(r"conditioned on metric `?(.+?)`? which is not available", str(error))
        if missing is None:
            raise
        raise ValueError(
            f"{who} has no validation during the fit, but {missing[1]!r} is monitored, "
            f"which training does not log; {cure}."
        ) from error


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
        resume: Go on where a killed fit of the same folder was, and keep what that needs.
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
        arguments |= limit_of_selection(trainer, datamodule)
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
        # What SLURM's signal before a requeue has left: predict would load it in place of the best.
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
    vars(fitter)["_callback_connector"]._attach_model_callbacks = lambda: None
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
    metrics = score(fitter, model, datamodule, best, log=validated_on != "val")
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


def limit_of_selection(trainer: Mapping[str, Any], datamodule: SplitDataModule) -> dict[str, Any]:
    """Return ``limit_val_batches`` for the selection part: at least one batch of it."""
    limit, size = trainer.get("limit_val_batches"), len(datamodule.indices("selection"))
    batch = size if datamodule.batch_size == "full" else datamodule.batch_size
    if isinstance(limit, float) and limit < 1 and int(-(-size // batch) * limit) < 1:
        return {"limit_val_batches": 1}
    return {}


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
    with whole_file(path) as part:
        torch.save({**kept, "callbacks": {}}, part)


def score(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    checkpoint: str | Path | None,
    *,
    log: bool,
) -> dict[str, float]:
    """Validation metrics of a model on the part ``"val"`` of the data.

    Args:
        trainer: A Trainer.
        model: The model.
        datamodule: The data; `validate_on` is ``"val"`` afterwards.
        checkpoint: Weights to load first, or None.
        log: Send the metrics to the Trainer's loggers too.
    """
    datamodule.validate_on = "val"
    sending: dict[str, Any] = vars(trainer._logger_connector)
    if not log:  # the module keeps its `self.logger`
        sending["log_metrics"] = lambda *args, **kwargs: None
    try:
        found = trainer.validate(
            model, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False
        )
    finally:
        sending.pop("log_metrics", None)
    scores = {name: float(value) for metrics in found for name, value in metrics.items()}
    tracking.log_scores(trainer.loggers, scores)
    return scores


def _best_epoch(rows: Sequence[Mapping[str, float]], key: str, mode: str) -> int:
    """The epoch of the best value, from 1; 0 if there is none."""
    worst, pick = (math.inf, min) if mode == "min" else (-math.inf, max)
    monitored = [
        # As ModelCheckpoint takes a value that is none; `min` would take it for the best.
        (worst if math.isnan(row[key]) else row[key], row["epoch"])
        for row in rows
        if key in row
    ]
    return int(pick(monitored, key=lambda pair: pair[0])[1]) + 1 if monitored else 0


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
        mode: Whether ``"min"`` or ``"max"`` of it is best; None for the metric's own direction.
        logger: Where to log.
        run_dir: A folder that is empty or does not exist. None: ``runs/fit``, or with ``-2``, ….
        progress_bar: Show Lightning's progress bar, or the one among the callbacks.

    Raises:
        ValueError: An argument is wrong.
        FileExistsError: `run_dir` holds something already.
    """
    mode = resolve_mode(monitor, mode, lambda: model)
    arguments = check_trainer_arguments(trainer)
    know_rank(arguments.get("num_nodes", 1))
    path = Path(run_dir or next_run_dir("runs/fit"))
    if is_rank_zero():
        check_new_run_dir(path)
    used = tracking.make_logger(logger, path, run_name=path.name, job_type="fit")
    with isolated(), tracking.finishing(used):
        done = fit(
            model,
            datamodule,
            path,
            callbacks=callbacks,
            trainer=arguments,
            monitor=monitor,
            mode=mode,
            logger=used,
            bar=shows_bar(progress_bar, trainer),
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
        figures = report.curve_figures([done.history], [done.best_epoch], monitor=monitor)
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
