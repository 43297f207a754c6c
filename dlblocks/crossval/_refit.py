"""Average the models of the folds, or fit one on all data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from dlblocks._files import check_files, read_record
from dlblocks._plain import plain_checkpoints
from dlblocks._quiet import isolated
from dlblocks.crossval._calibrate_average import best_temperature, calibrate, task_of
from dlblocks.crossval._fold_config import fold_folder
from dlblocks.data import SplitDataModule
from dlblocks.models import Model, VotingEnsemble, VotingModule, load
from dlblocks.models._checkpoints import of_foreign, read_checkpoint, restore
from dlblocks.models._earlier import plain_statistics, statistics_of_earlier
from dlblocks.nets import Preprocess
from dlblocks.runs._history import History, record
from dlblocks.runs._trainer import (
    NeedsNoValidation,
    check_trainer_arguments,
    leaving_out,
    new_module,
    quiet_trainer,
    saying_that_nothing_is_validated,
    without_bars,
)
from dlblocks.runs.fit import drop_training_state
from dlblocks.tasks import PredictionTable, Task

# Words of `refit` in the error for schedules that need validation.
REFIT = {"who": "refit", "cure": "give refit a make_model with another schedule"}


def average(
    run_dir: Path,
    folds: Sequence[Mapping[str, Any]],
    load_member: Callable[[Path, Preprocess | None], pl.LightningModule],
    task: str | None,
    oof: PredictionTable | None,
    *,
    fit_temperature: bool = False,
) -> Model:
    """Average the fold models, in evaluation mode.

    See `CrossValidationResult.ensemble`.

    Args:
        run_dir: The run folder.
        folds: The rows of the fits.
        load_member: Returns the model of a checkpoint. It also gets the statistics of inputs, if
            version 0.1 made it.
        task: The name of the models' task, if it is known.
        oof: Out-of-fold predictions, from which intervals and the temperature come.
        fit_temperature: Whether to fit the temperature.
    """
    members, preprocess = [], []
    for row in folds:
        if not row.get("checkpoint"):
            raise ValueError(
                f"fold {row['fold']} has no checkpoint, as under fast_dev_run; there is nothing "
                "to make an ensemble of."
            )
        path = run_dir / fold_folder(row) / "fold.json"
        cure = f"delete {path}, and the same call runs {path.parent.name} again"
        found = read_record(path, cure)
        check_files(path, found, cure)
        preprocess.append(plain_statistics(found))
        given = statistics_of_earlier(found)
        members.append(load_member(run_dir / row["checkpoint"], given))
    if all(isinstance(getattr(member, "task", None), Task) for member in members):
        ensemble = VotingEnsemble(members).eval()
        if fit_temperature:
            temperature = best_temperature(ensemble.task, oof)
            ensemble = VotingEnsemble(members, temperature=temperature).eval()
        calibrate(ensemble, oof, folds)
        return ensemble
    if fit_temperature:
        raise ValueError(
            "fit_temperature=True needs models of dlblocks.models, whose logits are known; scale "
            "the logits in your module."
        )
    model = VotingModule(members, task_name=task_of(oof) if task is None else task).eval()
    for own, values in zip(model.own, preprocess, strict=True):
        own.set(**Preprocess.from_plain(values or {}).statistics())  # type: ignore[operator]
    if model.data_spec is None:
        model.data_spec, _ = of_foreign(read_checkpoint(run_dir / folds[0]["checkpoint"], "cpu"))
    calibrate(model, oof, folds)
    return model


def load_fold(
    path: Path,
    preprocess: Preprocess | None,
    classes: Iterable[type[Model]],
    make_model: Callable[[], pl.LightningModule] | None,
    given: Callable[[], pl.LightningModule] | None,
) -> pl.LightningModule:
    """Load the model of one fold.

    Args:
        path: Its checkpoint.
        preprocess: As for `dlblocks.models.load`.
        classes: The user's subclasses of our models.
        make_model: Makes the model; None to load what the checkpoint describes.
        given: Makes the model that the checkpoint does not describe.
    """
    if make_model is None:
        try:
            return load(path, classes=classes, preprocess=preprocess)
        except ValueError as error:
            make_model = given
            if make_model is None:
                raise ValueError(
                    f"{error} A result that was loaded does not know how its models were made; "
                    "give make_model= (dlblocks.load: module=), or classes= for your own."
                ) from error
    with isolated():
        return restore(new_module(make_model), path, preprocess=preprocess)


def refit(
    folder: Path,
    epochs: int,
    make_model: Callable[[], pl.LightningModule],
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    *,
    make_callbacks: Callable[[], Sequence[Callback]] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
    logger: Logger | None = None,
    history: History | None = None,
    words: Mapping[str, str] = REFIT,
) -> pl.LightningModule:
    """Train one model on all development data; see `CrossValidationResult.refit`.

    Args:
        folder: Gets ``model.ckpt``.
        epochs: How long to train.
        make_model: As for `cross_validate`, like what is not described.
        datamodule: The data.
        make_callbacks: Callbacks; early stopping is left out.
        trainer: Arguments of the Trainer.
        seed: The seed.
        logger: A new logger, or None.
        history: Gets a row of metrics an epoch.
        words: Who and cure of the error for schedules that need validation.
    """
    arguments = check_trainer_arguments(trainer)
    for name in ("min_epochs", "min_steps"):  # they would make it longer
        arguments.pop(name, None)
    given = datamodule if isinstance(datamodule, SplitDataModule) else datamodule()
    with isolated():
        pl.seed_everything(seed, workers=True, verbose=False)
        model = new_module(make_model)
        given_callbacks = make_callbacks() if make_callbacks else ()
        # Without validation it can neither stop nor choose.
        left_out = (EarlyStopping, ModelCheckpoint)
        callbacks = [c for c in without_bars(given_callbacks) if not isinstance(c, left_out)]
        fitter = quiet_trainer(
            folder,
            {**arguments, "limit_val_batches": 0},
            callbacks=[*callbacks, NeedsNoValidation(**words), _StopAfter(epochs)],
            logger=logger,
        )
        if history is not None:
            record(fitter, history, validated_on=None)
        with leaving_out(model, left_out), saying_that_nothing_is_validated(**words):
            fitter.fit(model, datamodule=given.without_validation())
        with plain_checkpoints(fitter):
            fitter.save_checkpoint(folder / "model.ckpt")
        if fitter.is_global_zero:
            drop_training_state(folder / "model.ckpt")
    return model.eval()


class _StopAfter(Callback):
    """End the fit after some epochs.

    Schedules run as in the folds, as if the fit continued.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True
