"""Average the models of the folds, fit one on all data, and test it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from dlblocks._files import check_files, read_json, read_record, write_json
from dlblocks._plain import plain_checkpoints
from dlblocks._quiet import isolated
from dlblocks.crossval._calibration import best_temperature, calibrate, task_of
from dlblocks.crossval._fold import fold_folder
from dlblocks.crossval._splits import FOLDS
from dlblocks.crossval.held_out import HeldOutScores
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.models import (
    Model,
    VotingEnsemble,
    VotingModule,
    load,
)
from dlblocks.models._checkpoints import of_foreign, read_checkpoint, restore
from dlblocks.models._predict import NoPredictions
from dlblocks.nets import Preprocess
from dlblocks.runs._history import History, record
from dlblocks.runs._trainer import (
    NeedsNoValidation,
    NoLogger,
    check_trainer_arguments,
    leaving_out,
    new_module,
    saying_that_nothing_is_validated,
    without_bars,
)
from dlblocks.runs.fit import drop_training_state
from dlblocks.runs.predictions import predict_part
from dlblocks.tasks import PredictionTable, Task

TESTED = "test.json"
# What `refit` says of schedules that need validation.
REFIT = {"who": "refit", "cure": "give refit a make_model with another schedule"}


def average(
    run_dir: Path,
    folds: Sequence[Mapping[str, Any]],
    load_member: Callable[[Path], pl.LightningModule],
    task: str | None,
    oof: PredictionTable | None,
    *,
    fit_temperature: bool = False,
) -> Model:
    """Average the fold models, in evaluation mode; see `CrossValidationResult.ensemble`.

    Args:
        run_dir: The run folder.
        folds: The rows of the fits.
        load_member: Returns the model of a checkpoint.
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
        preprocess.append(found["preprocess"])
        members.append(load_member(run_dir / row["checkpoint"]))
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
    classes: Iterable[type[Model]],
    make_model: Callable[[], pl.LightningModule] | None,
    given: Callable[[], pl.LightningModule] | None,
) -> pl.LightningModule:
    """Load the model of one fold.

    Args:
        path: Its checkpoint.
        classes: The user's subclasses of our models.
        make_model: Makes the model; None to load what the checkpoint describes.
        given: Makes the model that the checkpoint does not describe.
    """
    if make_model is None:
        try:
            return load(path, classes=classes)
        except ValueError as error:
            make_model = given
            if make_model is None:
                raise ValueError(
                    f"{error} A result that was loaded does not know how its models were made; "
                    "give make_model=, or classes= for your own."
                ) from error
    with isolated():
        return restore(new_module(make_model), path)


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
    """
    arguments = check_trainer_arguments(trainer)
    for name in ("min_epochs", "min_steps"):  # they would make it longer
        arguments.pop(name, None)
    given = datamodule if isinstance(datamodule, SplitDataModule) else datamodule()
    with isolated():
        pl.seed_everything(seed, workers=True, verbose=False)
        model = new_module(make_model)
        given_callbacks = make_callbacks() if make_callbacks else ()
        # There is no validation by which it could stop or choose.
        left_out = (EarlyStopping, ModelCheckpoint)
        callbacks = [c for c in without_bars(given_callbacks) if not isinstance(c, left_out)]
        if getattr(model, "lr_schedule", None) == "plateau":
            raise ValueError(
                "lr_schedule='plateau' lowers the rate by the validation loss, and refit has no "
                f"validation; {REFIT['cure']}."
            )
        fitter = pl.Trainer(
            **{"enable_progress_bar": False, **arguments, "limit_val_batches": 0},
            callbacks=[*callbacks, NeedsNoValidation(**REFIT), _StopAfter(epochs)],
            logger=logger or NoLogger(folder),
            default_root_dir=folder,
            enable_checkpointing=False,
        )
        if history is not None:
            record(fitter, history, validated_on=None)
        with leaving_out(model, left_out), saying_that_nothing_is_validated(**REFIT):
            fitter.fit(model, datamodule=given.without_validation())
        with plain_checkpoints(fitter):
            fitter.save_checkpoint(folder / "model.ckpt")
        if fitter.is_global_zero:
            drop_training_state(folder / "model.ckpt")
    return model.eval()


class _StopAfter(Callback):
    """End the fit after some epochs. Schedules run as if it went on, as they did in the folds."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def test_once(
    run_dir: Path,
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    *,
    trainer: Mapping[str, Any] | None,
    allow_shared: bool,
    task: str | None,
) -> HeldOutScores:
    """Compute metrics of the test set, once; see `CrossValidationResult.test`."""
    path = run_dir / TESTED
    if path.is_file():
        raise FileExistsError(
            f"{path} says that the test set was looked at already: "
            f"{json.loads(path.read_text())['metrics']}. Choosing a model by a second look would "
            "make its score too good; delete the file if that is not why."
        )
    arguments = check_trainer_arguments(trainer)
    with isolated():
        tester = pl.Trainer(
            **{"enable_progress_bar": False, **arguments},
            logger=NoLogger(run_dir),
            default_root_dir=run_dir,
            enable_checkpointing=False,
        )
        data = datamodule.without_validation()  # all folds have the same test set
        check_data_of(run_dir, data)
        data.trainer = tester  # as Lightning does; their loaders may ask it
        shared = data.shared_with_test()
        note = _note_on_shared(data, shared, allow_shared)
        logged = tester.test(model, datamodule=data, verbose=False)
        # One dictionary a loader; Lightning tells their names apart.
        metrics = {name: float(value) for loader in logged for name, value in loader.items()}
        if not metrics:
            raise ValueError(
                f"nothing was logged in the test of {type(model).__name__}; log metrics in its "
                "test_step, and leave out limit_test_batches=0."
            )
        written: dict[str, Any] = {
            "metrics": metrics,
            "model": type(model).__name__,
            "shared_with_training": shared,
            **({"notes": [note]} if note else {}),
        }
        if tester.is_global_zero:
            write_json(path, written)  # before what may fail: the test set was looked at
        scores = HeldOutScores(
            metrics,
            *_test_predictions(tester, model, data, len(logged)),
            num_samples=_count_tested(data, tester, len(logged)),
            notes=[note] if note else [],
            task=task,
        )
    if tester.is_global_zero:
        intervals = {name: list(scores.interval(name)) for name in scores}
        write_json(path, {**written, "intervals": intervals})
        if note:
            print(note, file=sys.stderr, flush=True)
    return scores


def _count_tested(data: SplitDataModule, trainer: pl.Trainer, num_loaders: int) -> int:
    """Count the test samples in one loader without limits; 0 if that is not known."""
    if num_loaders != 1 or trainer.limit_test_batches != 1.0:
        return 0
    try:
        return data.count_test()
    except TypeError:  # a data set without a length
        return 0


def _test_predictions(
    trainer: pl.Trainer, model: pl.LightningModule, data: SplitDataModule, num_loaders: int
) -> tuple[PredictionTable | None, np.ndarray | None]:
    """Return predictions and groups of the test samples, None where there are none."""
    rows = data.indices("test")
    if num_loaders != 1 or not len(rows):  # loaders of somebody else's datamodule
        return None, None
    try:
        predicted = predict_part(trainer, model, data, "test")
    except NoPredictions:
        return None, None
    # Ranks get as many samples each, some of them twice.
    index, first = np.unique(predicted["index"], return_index=True)
    predicted = predicted[first]
    groups = data.columns.groups
    # A test set of its own is numbered anew, and has no groups.
    own = bool(np.isin(index, data.indices("train").numpy()).any())
    return predicted, None if groups is None or own else np.asarray(groups)[index]


def check_data_of(run_dir: Path, data: SplitDataModule) -> None:
    """Raise a `ValueError` unless the datamodule holds the data and test set of the run.

    A new datamodule may split in another way. Then the run has trained on some of its test samples.
    """
    path = run_dir / FOLDS
    if not path.is_file():
        return
    splits = read_json(path, "choose another run_dir: nothing says what its folds are")
    same = data.fingerprint() == splits["fingerprint"]
    if not same or data.splits(splits["num_folds"])[0]["test"].tolist() != splits["test"]:
        raise ValueError(
            f"the datamodule has other samples, or holds out others, than the run in "
            f"'{run_dir}', which may have trained on some of them; give the datamodule of "
            "that run, with splits drawn by a seeded generator. Other data are tested by "
            "Trainer.test(model, datamodule=…)."
        )


def _note_on_shared(data: SplitDataModule, shared: int | None, allow: bool) -> str | None:
    """Describe test samples that are in the development set, or refuse them."""
    if shared == 0:
        return None
    if shared is None:
        return (
            "Whether test samples are in the development set is not known: the data sets hold no "
            "arrays to compare, and their samples are too many or differ every time they are "
            "loaded."
        )
    note = f"{shared} of {data.count_test()} test samples are in the development set, too"
    if isinstance(data, DataModule):
        return f"{note}: exact copies in the official test set."
    if allow:
        return f"{note}, which allow_shared=True allows."
    raise ValueError(
        f"{note}: the score would be too good. Does setup('test') draw the split anew? Draw it in "
        "__init__, or by random_split(…, generator=torch.Generator().manual_seed(0)). If the data "
        "really hold duplicates, set allow_shared=True."
    )
