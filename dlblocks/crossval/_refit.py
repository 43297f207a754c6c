"""After a cross-validation: the models of its folds as one, one model on all data, the test set."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from dlblocks._files import check_files, read_json, read_record, write_json
from dlblocks._plain import plain_checkpoints
from dlblocks._quiet import isolated
from dlblocks.crossval._fold import fold_folder
from dlblocks.crossval._scored_folds import ScoredFolds
from dlblocks.crossval._splits import FOLDS
from dlblocks.crossval.held_out import HeldOutScores
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.models import (
    Model,
    VotingEnsemble,
    VotingModule,
    load,
)
from dlblocks.models._checkpoints import restore
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


def ensemble(
    result: ScoredFolds,
    classes: Iterable[type[Model]] = (),
    make_model: Callable[[], pl.LightningModule] | None = None,
) -> Model:
    """The average of the fold models, in evaluation mode; see `ScoredFolds.ensemble`."""
    members, preprocess = [], []
    for row in result.folds:
        if not row.get("checkpoint"):
            raise ValueError(
                f"fold {row['fold']} has no checkpoint, as under fast_dev_run; there is nothing "
                "to make an ensemble of."
            )
        path = result.run_dir / fold_folder(row) / "fold.json"
        cure = f"delete {path}, and the same call runs {path.parent.name} again"
        found = read_record(path, cure)
        check_files(path, found, cure)
        preprocess.append(found["preprocess"])
        members.append(_member(result, row["checkpoint"], list(classes), make_model))
    if all(isinstance(getattr(member, "task", None), Task) for member in members):
        return VotingEnsemble(members).eval()
    oof = result.oof
    if oof is not None and oof.has("prediction") and oof.prediction.dtype.kind not in "fc":
        raise ValueError(
            f"{type(members[0]).__name__} predicts {oof.prediction.dtype}, as of classes, "
            "which have no average; let predict_step return probabilities or logits."
        )
    task = result.info.get("task")
    average = VotingModule(members, task_name=task).eval()
    for own, values in zip(average.own, preprocess, strict=True):
        own.set(**Preprocess.from_plain(values or {}).statistics())  # type: ignore[operator]
    return average


def _member(
    result: ScoredFolds,
    checkpoint: str,
    classes: list[type[Model]],
    make_model: Callable[[], pl.LightningModule] | None,
) -> pl.LightningModule:
    """The model of one fold: as its checkpoint describes it, else as `make_model` makes it."""
    path = result.run_dir / checkpoint
    if make_model is None:
        try:
            return load(path, classes=classes)
        except ValueError as error:
            make_model = (result.given or {}).get("make_model")
            if make_model is None:
                raise ValueError(
                    f"{error} A result that was loaded does not know how its models were made; "
                    "give make_model=, or classes= for your own."
                ) from error
    with isolated():
        return restore(new_module(make_model), path)


def refit(
    result: ScoredFolds,
    make_model: Callable[[], pl.LightningModule],
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    *,
    make_callbacks: Callable[[], Sequence[Callback]] | None = None,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
    logger: Logger | None = None,
    history: History | None = None,
) -> pl.LightningModule:
    """One model, trained on all development data; see `ScoredFolds.refit`.

    A `history` gets a row of metrics an epoch.
    """
    arguments = check_trainer_arguments(trainer)
    for name in ("min_epochs", "min_steps"):  # they would make it longer
        arguments.pop(name, None)
    epochs = refit_epochs(result)
    folder = result.run_dir / "refit"
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


def refit_epochs(result: ScoredFolds) -> int:
    """For how many epochs `refit` trains: the median of the folds' best ones."""
    return max(1, round(statistics.median(row["best_epoch"] for row in result.folds)))


class _StopAfter(Callback):
    """Ends the fit after some epochs; schedules run as if it went on, as they did in the folds."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def test_once(
    result: ScoredFolds,
    model: pl.LightningModule,
    datamodule: SplitDataModule,
    *,
    trainer: Mapping[str, Any] | None = None,
    allow_shared: bool = False,
) -> HeldOutScores:
    """Metrics of the test set, which is looked at once; see `ScoredFolds.test`."""
    path = result.run_dir / TESTED
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
            logger=NoLogger(result.run_dir),
            default_root_dir=result.run_dir,
            enable_checkpointing=False,
        )
        data = datamodule.without_validation()  # all folds have the same test set
        _check_data_of(result, data)
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
            task=result.info.get("task"),
        )
    if tester.is_global_zero:
        intervals = {name: list(scores.interval(name)) for name in scores}
        write_json(path, {**written, "intervals": intervals})
        if note:
            print(note, file=sys.stderr, flush=True)
    return scores


def _count_tested(data: SplitDataModule, trainer: pl.Trainer, num_loaders: int) -> int:
    """The number of test samples in one loader without limits, else 0: not known."""
    if num_loaders != 1 or trainer.limit_test_batches != 1.0:
        return 0
    try:
        return data.count_test()
    except TypeError:  # a data set without a length
        return 0


def _test_predictions(
    trainer: pl.Trainer, model: pl.LightningModule, data: SplitDataModule, num_loaders: int
) -> tuple[PredictionTable | None, np.ndarray | None]:
    """Predictions and groups of the test samples, None where there are none."""
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


def _check_data_of(result: ScoredFolds, data: SplitDataModule) -> None:
    """Raise a `ValueError` unless the datamodule holds the data and test set of the run.

    A new datamodule may split in another way. Then the run has trained on some of its test samples.
    """
    path = result.run_dir / FOLDS
    if not path.is_file():
        return
    splits = read_json(path, "choose another run_dir: nothing says what its folds are")
    same = data.fingerprint() == splits["fingerprint"]
    if not same or data.splits(splits["num_folds"])[0]["test"].tolist() != splits["test"]:
        raise ValueError(
            f"the datamodule has other samples, or holds out others, than the run in "
            f"'{result.run_dir}', which may have trained on some of them; give the datamodule of "
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
