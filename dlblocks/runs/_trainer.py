"""Check arguments of a Trainer, and make new models, callbacks and data."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.compile import from_compiled

from dlblocks._errors import did_you_mean, other_lightning, plain_numbers, whole
from dlblocks._files import is_rank_zero
from dlblocks.callbacks import ExactResume
from dlblocks.data import SplitDataModule
from dlblocks.runs._history import VALIDATION
from dlblocks.runs.predict_part import replaced

CALLBACKS = "lambda: [EarlyStopping('val/loss')]"  # an example of make_callbacks, for messages
# Arguments of the Trainer that are whole numbers, with the least; a limit of 1.0 is all batches.
COUNTS = {
    "max_epochs": -1, "min_epochs": 0, "max_steps": -1, "min_steps": 0,
    "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0,
    "num_nodes": 0,
}  # fmt: skip
OWN_ARGUMENTS = {
    "logger": "pass logger='csv', 'wandb', 'tensorboard' or None",
    "default_root_dir": "pass run_dir=",
    "callbacks": "pass them apart from trainer=",
}


def check_trainer_arguments(
    trainer: Mapping[str, Any] | None, monitor: str | None = None
) -> dict[str, Any]:
    """Copy and check Trainer arguments.

    The copy has no ``enable_progress_bar``; see `shows_bar`.

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
    arguments = {
        name: whole(value) if name in COUNTS else plain_numbers(value)
        for name, value in (trainer or {}).items()
    }
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


def _check_amounts(arguments: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for numbers that leave nothing to train or validate."""
    for name, low in COUNTS.items():
        value = arguments.get(name)
        if value is not None and not (isinstance(value, int) and value >= low):
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} must be a whole number of at least {low}."
            )
    for name in ("max_epochs", "max_steps"):
        if arguments.get(name) == 0:
            raise ValueError(f"trainer={{{name!r}: 0}} trains nothing; give 1 or more.")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        value = arguments.get(name)
        if value is not None and not value > 0:
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} leaves no batch; give a number of batches, such "
                "as 10, or a share, such as 0.5."
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
    """Return True if `progress_bar` and the Trainer's argument allow a bar."""
    return progress_bar and (trainer or {}).get("enable_progress_bar") is not False


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
    """Make callbacks, or raise a `TypeError` for anything else."""
    made = make_callbacks()
    if not isinstance(made, (list, tuple)) or not all(isinstance(c, Callback) for c in made):
        items = made if isinstance(made, (list, tuple)) else [made]
        raise TypeError(
            f"make_callbacks returned {made!r}; expected a list, as of {CALLBACKS}."
            f"{''.join(filter(None, map(other_lightning, items)))}"
        )
    return list(made)


def new_datamodule(
    given: SplitDataModule | Callable[[], SplitDataModule], seed: int
) -> SplitDataModule:
    """Return the given datamodule, or make one by the given function.

    Raises:
        TypeError: It is not a `SplitDataModule`.
    """
    # Somebody else's data may be drawn or split by the global seed: then the same in every fold.
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule: Any = given
    if callable(given) and not isinstance(given, pl.LightningDataModule):
        datamodule = given()
    if not isinstance(datamodule, SplitDataModule):
        raise TypeError(
            f"datamodule must be a dlblocks DataModule or a function that returns one, got "
            f"{type(datamodule).__name__}; ArrayDataModule makes one of your arrays, "
            f"FoldedDataModule of your LightningDataModule or Dataset.{other_lightning(datamodule)}"
        )
    if is_rank_zero():
        datamodule.prepare_data()
    return datamodule


def without_bars(callbacks: Sequence[Callback]) -> list[Callback]:
    """Leave out progress bars, which do not change a fit."""
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
    """Drop everything, for callbacks that refuse to have no logger.

    `LearningRateMonitor` is one.

    Args:
        folder: What ``trainer.log_dir`` is, as without a logger.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = str(folder)

    @property
    def save_dir(self) -> str:
        return self._folder


def quiet_trainer(folder: Path, arguments: Mapping[str, Any], **others: Any) -> pl.Trainer:
    """Make a Trainer that shows no bar and keeps no checkpoints.

    Args:
        folder: Its ``default_root_dir``.
        arguments: The user's.
        others: Further arguments, such as ``logger``.
    """
    others["logger"] = others.get("logger") or NoLogger(folder)
    return pl.Trainer(
        **{"enable_progress_bar": False, **arguments},
        **others,
        default_root_dir=folder,
        enable_checkpointing=False,
    )


def check_needs_no_validation(
    callbacks: Sequence[Callback],
    plateau_monitors: Sequence[str | None],
    *,
    who: str = "select='last'",
    cure: str = "leave it out, let it monitor a metric of training, or use select='inner'",
) -> None:
    """Raise a `ValueError` for validation metrics without validation.

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
    """Call `check_needs_no_validation` before the first step.

    The schedules of any module are known then.

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
    """Explain a missing metric by the missing validation.

    Names such as ``"val/loss"`` are refused earlier; only Lightning finds others.

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
