"""`cross_validate`: K fits, each with everything new, and what they found."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from dlblocks import report, tracking
from dlblocks.crossval.progress import FoldProgress
from dlblocks.crossval.result import CrossValidationResult, OutOfFold, fold_dir
from dlblocks.crossval.splits import check_same, new_datamodule, plan_splits, write_splits
from dlblocks.crossval.text import table_metrics
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.errors import check_choice, check_range
from dlblocks.files import check_new_run_dir, is_rank_zero
from dlblocks.fitting import check_trainer_arguments, configuration, fit
from dlblocks.predictions import predict_part
from dlblocks.quiet import quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cross_validate(
    make_model: Callable[[], pl.LightningModule],
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    *,
    num_folds: int | None = None,
    repeats: int = 1,
    make_callbacks: Callable[[], Sequence[Callback]] | None = None,
    trainer: Mapping[str, Any] | None = None,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    run_dir: str | PathLike[str] = "runs/cross-validation",
    seed: int = 0,
    progress_bar: bool = True,
    figures: bool = True,
) -> CrossValidationResult:
    """Fits a new model for each fold and validates it on the samples that it has not seen.

    Datamodule, model, callbacks, logger and Trainer are made anew for every fold, so that nothing
    passes from one to the next. Fit number i is seeded with ``seed + i`` before its model is made;
    the global random states of the caller are as before afterwards. The weights of the epoch with
    the best `monitor` are kept, validated and used for the out-of-fold predictions. That epoch is
    chosen on the same samples that score it, as early stopping is wont to: scores are a little
    optimistic by it. The test set is never touched.

    Each development sample is validated once in every repeat, save under
    ``split="time_series"``, where the first block only trains, and ``"predefined"``, where samples
    of no fold do. Any model whose `predict_step`, given a validation batch, returns a prediction a
    sample has out-of-fold predictions, and so has one with no more than a `forward` for the inputs
    alone; they are left as they come, so that those of somebody else's model may be logits.

    Before the first fit the splits are written to ``folds.json``, with a fingerprint of the data.
    Later the run folder also holds ``summary.json``, ``folds.csv``, ``oof.npz``,
    ``figures/*.png`` and for each fold ``fold-0/checkpoints/best.ckpt`` and ``fold-0/history.csv``
    (later repeats: ``repeat-1/fold-0/…``).

    Args:
        make_model: Returns a new LightningModule; called once a fold.
        datamodule: A `DataModule`, or anybody's data in a `FoldedDataModule`; or a function that
            returns one. Its `num_folds` and `fold` are set here; its `split` and `split_seed`
            decide the folds.
        num_folds: Number of folds K >= 2. None: what the data say where `split` is
            ``"leave_one_group_out"`` or ``"predefined"``, else the datamodule's own, else 5.
        repeats: How often to cross-validate, each time with other folds.
        make_callbacks: Returns new callbacks; called once a fold.
        trainer: Arguments of the Lightning `Trainer`, such as ``{"max_epochs": 30}``.
        monitor: The logged metric by which the best epoch is chosen.
        mode: Whether ``"min"`` or ``"max"`` of `monitor` is best.
        logger: Where each fold logs; W&B runs share a group named after `run_dir`.
        run_dir: A folder that is empty or does not exist.
        seed: Seed of initialisation, dropout and all else that is random in training.
        progress_bar: Show one bar over all folds, on rank 0.
        figures: Draw ``figures/*.png``.

    Returns:
        The result: ``result.mean("val/accuracy")``, ``result.folds``, ``result.oof``, …

    Raises:
        ValueError: An argument is wrong, or `make_model` returned the same model twice.
        FileExistsError: `run_dir` holds something already.

    Example:
        >>> import tempfile
        >>> from dlblocks.data import DigitsDataModule
        >>> from dlblocks.models import MLPClassifier
        >>> result = cross_validate(
        ...     lambda: MLPClassifier(64, 10), DigitsDataModule(), num_folds=2,
        ...     trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False, figures=False,
        ...     run_dir=tempfile.mkdtemp(),
        ... )
        >>> len(result.folds), len(result.oof)
        (2, 1438)
    """
    if num_folds is not None:
        check_range("num_folds", num_folds, 2)
    check_range("repeats", repeats, 1)
    check_choice("mode", mode, ["min", "max"])
    trainer_args = check_trainer_arguments(trainer)
    # Other ranks of the same run come here while rank 0 is already writing.
    path = check_new_run_dir(run_dir) if is_rank_zero() else Path(run_dir)
    done: list[_Fold] = []
    started = time.monotonic()
    with isolate_rng(), quiet():
        data = new_datamodule(datamodule, seed)
        splits = plan_splits(data, num_folds, repeats)
        if is_rank_zero():
            write_splits(path / "folds.json", splits)
        plan = _Plan(
            make_model,
            make_callbacks or list,
            trainer_args,
            monitor,
            mode,
            logger,
            path,
            num_folds=splits["num_folds"],
        )
        progress = FoldProgress(len(splits["folds"]), show=progress_bar)
        try:
            for number, written in enumerate(splits["folds"]):
                if number and not isinstance(datamodule, SplitDataModule):
                    data = new_datamodule(datamodule, seed)
                    check_same(data, splits, number)
                repeat, fold = written["repeat"], written["fold"]
                done.append(
                    _run_fold(
                        plan,
                        data.for_fold(fold, plan.num_folds, repeat=repeat),
                        repeat,
                        fold,
                        seed + number,
                        progress.callback(number) if progress_bar else None,
                    )
                )
        finally:
            progress.close()
    result = CrossValidationResult(
        run_dir=path,
        folds=[fit.row for fit in done],
        oof=_join([fit.oof for fit in done]),
        histories=[fit.history for fit in done],
        info={
            "num_folds": plan.num_folds,
            "repeats": repeats,
            "monitor": monitor,
            "mode": mode,
            "class_names": done[0].datamodule.class_names,
            "seconds": time.monotonic() - started,
            "config": {"seed": seed, "logger": logger, "trainer": trainer_args, **done[0].config},
            "versions": tracking.versions(),
        },
    )
    if is_rank_zero():
        result.write()
        if figures:
            report.save_figures(path / "figures", _figures(result, done[0].datamodule))
    return result


@dataclass
class _Plan:
    """What is the same for every fold."""

    make_model: Callable[[], pl.LightningModule]
    make_callbacks: Callable[[], Sequence[Callback]]
    trainer: dict[str, Any]
    monitor: str
    mode: str
    logger: str | None
    run_dir: Path
    num_folds: int
    seen: weakref.WeakSet = field(default_factory=weakref.WeakSet)

    def new_model(self) -> pl.LightningModule:
        model = self.make_model()
        if not isinstance(model, pl.LightningModule):
            raise TypeError(
                f"make_model must return a LightningModule, got {type(model).__name__}; "
                "pass a function such as lambda: MLPClassifier(64, 10)."
            )
        self._check_new(model, "make_model", "model")
        return model

    def new_callbacks(self) -> list[Callback]:
        callbacks = list(self.make_callbacks())
        for callback in callbacks:
            self._check_new(callback, "make_callbacks", type(callback).__name__)
        return callbacks

    def _check_new(self, thing: Any, argument: str, what: str) -> None:
        if thing in self.seen:
            raise ValueError(
                f"{argument} returned the same {what} for two folds, which would carry one fold's "
                "training into the next; make it inside the function."
            )
        self.seen.add(thing)


@dataclass
class _Fold:
    """What one fold leaves."""

    row: dict[str, Any]
    oof: OutOfFold | None
    history: list[dict[str, float]]
    config: dict[str, Any]
    datamodule: SplitDataModule


def _run_fold(
    plan: _Plan,
    datamodule: SplitDataModule,
    repeat: int,
    fold: int,
    seed: int,
    bar: Callback | None,
) -> _Fold:
    started = time.monotonic()
    pl.seed_everything(seed, workers=True, verbose=False)
    folder = fold_dir(plan.run_dir, {"repeat": repeat, "fold": fold})
    name = f"{plan.run_dir.name}-{folder.relative_to(plan.run_dir)}".replace("/", "-")
    model, callbacks = plan.new_model(), plan.new_callbacks()
    logger = tracking.make_logger(
        plan.logger,
        folder,
        run_name=name,
        group=plan.run_dir.name,
        job_type="fold",
        config={"fold": fold, "repeat": repeat, "num_folds": plan.num_folds, "seed": seed},
    )
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
    )
    predicted = predict_part(done.trainer, model, datamodule, "val")
    row: dict[str, Any] = {
        "repeat": repeat,
        "fold": fold,
        "epochs": done.epochs,
        "best_epoch": done.best_epoch,
        "num_train": len(datamodule.indices("train")),
        "num_val": len(datamodule.indices("val")),
        **done.metrics,
        "seconds": round(time.monotonic() - started, 3),
        "checkpoint": str(done.checkpoint.relative_to(plan.run_dir.absolute()))
        if done.checkpoint
        else "",
    }
    config = configuration(model, datamodule)
    for key in ("fold", "num_folds"):
        config["data"].pop(key, None)
    oof = None
    if predicted is not None:
        numbers = {"fold": fold, "repeat": repeat}
        size = len(predicted["index"])
        oof = OutOfFold(**predicted, **{key: np.full(size, n) for key, n in numbers.items()})
    return _Fold(row, oof, done.history, config, datamodule)


def _join(parts: Sequence[OutOfFold | None]) -> OutOfFold | None:
    found = [part for part in parts if part is not None]
    shapes = {(part.target.shape[1:], part.prediction.shape[1:]) for part in found}
    if len(found) < len(parts) or len(shapes) > 1:
        return None
    columns = {name: np.concatenate([getattr(p, name) for p in found]) for name in vars(found[0])}
    order = np.lexsort((columns["index"], columns["repeat"]))
    return OutOfFold(**{name: values[order] for name, values in columns.items()})


def _figures(result: CrossValidationResult, datamodule: SplitDataModule) -> dict[str, Figure]:
    figures = report.curve_figures(
        result.histories,
        [row["best_epoch"] for row in result.folds],
        is_classification=datamodule.is_classification,
    )
    if result.metrics:
        metric = table_metrics(result.metrics)[0]
        figures |= report.score_figure(
            result.run_dir.absolute().name, metric, result.values(metric), result.interval(metric)
        )
    if (
        result.oof is not None
        and isinstance(datamodule, DataModule)
        and _are_scores(result.oof, datamodule)
    ):
        once = result.oof.repeat == 0
        arrays = {name: values[once] for name, values in vars(result.oof).items()}
        figures |= report.prediction_figures(
            datamodule, "val", arrays, title="Out-of-fold predictions"
        )
    return figures


def _are_scores(oof: OutOfFold, datamodule: DataModule) -> bool:
    """Whether predictions are what figures draw: probabilities of the classes, or values."""
    if not datamodule.is_classification:
        return oof.prediction.size == oof.target.size
    shape = (len(oof), datamodule.num_classes)
    if oof.prediction.shape != shape or not np.isfinite(oof.prediction).all():
        return False
    return bool(oof.prediction.min() >= 0 and np.allclose(oof.prediction.sum(1), 1, atol=1e-2))
