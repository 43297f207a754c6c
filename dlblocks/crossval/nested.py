"""`nested_cross_validate`: hyperparameters chosen on inner folds, scored on outer ones."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from dlblocks import plots, report, tracking
from dlblocks.crossval.final import refit
from dlblocks.crossval.fold import Fold, Job, Plan, join, read_fold, write_fold
from dlblocks.crossval.lock import locked
from dlblocks.crossval.nested_result import NestedResult
from dlblocks.crossval.out_of_fold import OutOfFold
from dlblocks.crossval.parallel import check_jobs
from dlblocks.crossval.plan import begin
from dlblocks.crossval.run import failures, log_summary, named, result_figures
from dlblocks.crossval.search import (
    SEARCHED,
    Grid,
    Search,
    check_names,
    forget_weights,
    grid_points,
    said,
)
from dlblocks.crossval.splits import new_datamodule, plan_splits
from dlblocks.data import SplitDataModule
from dlblocks.data.splits import COUNTED
from dlblocks.errors import check_choice, check_range
from dlblocks.files import SUMMARY, is_rank_zero, know_rank, write_rows
from dlblocks.fitting import check_trainer_arguments
from dlblocks.history import History
from dlblocks.predictions import predict_part
from dlblocks.quiet import quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INNER_FOLDS = 5
Data = SplitDataModule | Callable[[], SplitDataModule]


def nested_cross_validate(
    make_model: Callable[..., pl.LightningModule],
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    grid: Grid,
    *,
    num_folds: int | None = None,
    inner_folds: int | None = None,
    repeats: int = 1,
    make_callbacks: Callable[[], Sequence[Callback]] | None = None,
    trainer: Mapping[str, Any] | None = None,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    n_jobs: int = 1,
    on_error: Literal["raise", "continue"] = "raise",
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    log_checkpoints: bool = False,
    run_dir: str | PathLike[str] = "runs/nested-cross-validation",
    resume: bool = True,
    seed: int = 0,
    progress_bar: bool = True,
    figures: bool = True,
) -> NestedResult:
    """Scores a training procedure that chooses its own hyperparameters.

    The best score of a search is too good a guess of what new data will give: it was chosen for
    being the best (Varma and Simon 2006; Cawley and Talbot 2010). Here the search is a part of what
    is scored. For every outer fold, on its training samples alone:

    1. each point of `grid` is cross-validated on the same inner folds, by `cross_validate`;
    2. that with the best mean of `monitor` is chosen, the first of equal ones;
    3. a new model of it is trained on all of the outer fold's training samples, for the median of
       the best epochs of its inner fits, under the same learning-rate schedule, without validation
       or early stopping, as by `CrossValidationResult.refit`;
    4. the outer fold is looked at for the first time, and once: that is the score.

    So neither hyperparameters nor the number of epochs have seen the samples that score them, and
    the optimism that `cross_validate` names is not here. Scores are as those of scikit-learn's
    ``cross_val_score(GridSearchCV(...))``. The choice may differ between outer folds: what is
    scored is the procedure, not one point. `NestedResult.refit` applies it to all development data.

    Normalisation is fitted anew for each inner fit; groups, strata, order in time and predefined
    folds hold for inner folds as for outer ones. Fits of the inner folds have the seeds ``seed``,
    ``seed + 1``, …, the same for every point; the model of outer fit number i has ``seed + i``.

    The same call goes on after a kill, as with `cross_validate`; the model of an outer fold that
    was in training begins anew. Inner fits lie in ``fold-0/point-0/fold-0/…`` and log their
    ``history.csv`` alone; their weights are removed when their outer fold ends. The run folder also
    holds ``search.csv``, one row an outer fold and point.

    Args:
        make_model: Returns a new LightningModule for a point: ``make_model(lr=0.1, hidden=[8])``.
        datamodule: As for `cross_validate`.
        grid: Name → list of values, whose every combination is a point, or a list of such grids;
            as scikit-learn's `ParameterGrid`. Values are best plain: numbers, texts, lists.
        num_folds: Number of outer folds, as for `cross_validate`.
        inner_folds: Number of inner folds >= 2. None: what the data say where `split` is
            ``"leave_one_group_out"`` or ``"predefined"``, else 5.
        repeats: How often to do it all, each time with other outer folds.
        make_callbacks: Returns new callbacks; early stopping is for the inner fits alone.
        trainer: Arguments of the Trainer, such as ``{"max_epochs": 30}``.
        monitor: The validation metric by which inner fits choose their best epoch, and whose mean
            over the inner folds chooses the point.
        mode: Whether ``"min"`` or ``"max"`` of `monitor` is best.
        n_jobs: Inner folds of a point side by side, as for `cross_validate`; more than
            `inner_folds` are of no use.
        on_error: ``"continue"`` leaves a point out of the choice if one of its inner fits fails,
            and an outer fold out of the result if all points or the last fit do.
        logger: Where the model of each outer fold logs, in one W&B group with a summary run.
        log_checkpoints: Send the models of the outer folds to W&B as an artifact.
        run_dir: A folder that is empty or does not exist, or holds a run to go on with.
        resume: Go on with the run in `run_dir`; False refuses a folder that holds something.
        seed: Seed of initialisation, dropout and all else that is random in training.
        progress_bar: Show one bar over all fits, on rank 0.
        figures: Draw ``figures/*.png``.

    Returns:
        The result; its scores are those of the outer folds.

    Raises:
        ValueError: An argument is wrong, `make_model` does not take a name of `grid`, or an outer
            fold's training samples are too few for `inner_folds`.
        BlockingIOError: Another process works in `run_dir`.
        TypeError: `grid` is none, or `datamodule` cannot be set to folds.
        FileExistsError: `run_dir` holds something else, as for `cross_validate`.

    References:
        - Varma, Simon: Bias in error estimation when using cross-validation for model selection.
          BMC Bioinformatics 7:91, 2006.
        - Cawley, Talbot: On over-fitting in model selection and subsequent selection bias in
          performance evaluation. Journal of Machine Learning Research 11, 2010.

    Example:
        >>> import tempfile
        >>> from dlblocks.data import TabularDataModule
        >>> from dlblocks.models import MLPClassifier
        >>> result = nested_cross_validate(
        ...     lambda lr: MLPClassifier(4, 3, hidden=[8], lr=lr), TabularDataModule("iris"),
        ...     {"lr": [0.001, 0.1]}, num_folds=2, inner_folds=2,
        ...     trainer={"max_epochs": 2, "accelerator": "cpu"}, progress_bar=False, figures=False,
        ...     run_dir=tempfile.mkdtemp(),
        ... )
        >>> len(result.oof), [choice["hyperparameters"] for choice in result.choices]
        (120, [{'lr': 0.1}, {'lr': 0.1}])
    """
    for name, number in (("num_folds", num_folds), ("inner_folds", inner_folds)):
        if number is not None:
            check_range(name, number, 2)
    check_range("repeats", repeats, 1)
    check_choice("mode", mode, ["min", "max"])
    check_choice("on_error", on_error, ["raise", "continue"])
    check_choice("logger", logger or "none", tracking.LOGGERS)
    trainer_args = check_trainer_arguments(trainer)
    check_jobs(n_jobs, trainer_args)
    know_rank(trainer_args.get("num_nodes", 1))
    points = grid_points(grid)
    check_names(make_model, points)
    with locked(Path(run_dir)) if is_rank_zero() else contextlib.nullcontext():
        started = time.monotonic()
        with isolate_rng(), quiet():
            data = new_datamodule(datamodule, seed)
            splits = plan_splits(data, num_folds, repeats)
            if inner_folds is None and data.split not in COUNTED:
                inner_folds = INNER_FOLDS
            search = Search(
                make_model,
                points,
                make_callbacks,
                inner_folds,
                monitor,
                mode,
                on_error,
                {"trainer": trainer_args, "n_jobs": n_jobs, "resume": resume, "seed": seed},
            )
            outer = _Outer(
                search,
                datamodule,
                data,
                Plan(
                    make_model,
                    make_callbacks or list,
                    trainer_args,
                    monitor=monitor,
                    mode=mode,
                    logger=logger,
                    run_dir=Path(run_dir),
                    seed=seed,
                    resume=resume,
                    num_folds=splits["num_folds"],
                ),
            )
            jobs = [
                Job(i, split["repeat"], split["fold"]) for i, split in enumerate(splits["folds"])
            ]
            # Read by every rank before any fit, so that all run the same folds.
            read = [(job, outer.read(job)) for job in jobs if resume]
            found = {job: fold for job, fold in read if fold is not None}
            fits = {job: len(points) * outer.count_inner(job) + 1 for job in jobs}
            settings = {"trainer": trainer_args, "monitor": monitor, "mode": mode, "seed": seed}
            config = search.describe(data, **settings)
            if is_rank_zero():
                outer.plan.run_id = begin(outer.plan.run_dir, config, splits, resume=resume)
            todo = [job for job in jobs if job not in found]
            failed: dict[Job, Exception] = {}
            bar = tqdm(
                total=sum(fits.values()),
                initial=sum(fits[job] for job in found),
                bar_format="{desc} {bar} {percentage:3.0f}% | {elapsed} elapsed, {remaining} left",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 10.0,
                disable=not (progress_bar and is_rank_zero()),
            )
            with bar:
                for job in todo:
                    done = bar.n
                    try:
                        found[job] = outer.run(job, bar)
                    except FileExistsError:  # of another run
                        raise
                    except Exception as error:
                        if on_error == "raise":
                            raise named(error, f"outer {job.name}") from error
                        failed[job] = error
                        print(f"outer {job.name} failed: {error!r}", file=sys.stderr, flush=True)
                    bar.update(done + fits[job] - bar.n)
        if not found:
            job, why = next(iter(failed.items()))
            raise named(why, f"outer {job.name}") from why
        done_jobs = [job for job in jobs if job in found]
        folds = [found[job][0] for job in done_jobs]
        result = NestedResult(
            run_dir=outer.plan.run_dir,
            folds=[fold.row for fold in folds],
            oof=join([fold.oof for fold in folds]),
            histories=[fold.history for fold in folds],
            info={
                "num_folds": splits["num_folds"],
                "repeats": repeats,
                "inner_folds": inner_folds,
                "monitor": monitor,
                "mode": mode,
                "class_names": data.class_names,
                **({"failed": failures(failed)} if failed else {}),
                "search": [
                    {"repeat": job.repeat, "fold": job.fold, **row}
                    for job in done_jobs
                    for row in found[job][1]
                ],
                "seconds": time.monotonic() - started,
                "config": {"logger": logger, **config},
                "versions": tracking.versions(),
            },
            given={
                "search": search,
                "make_model": make_model,
                "datamodule": data,
                "make_callbacks": make_callbacks,
                "trainer": trainer_args,
                "seed": seed,
            },
        )
        if is_rank_zero() and (todo or not (outer.plan.run_dir / SUMMARY).is_file()):
            # The summary comes last: what a kill prevents before it, the next call makes up for.
            result.write_parts()
            drawn = _figures(result, data) if figures else {}
            report.save_figures(outer.plan.run_dir / "figures", drawn)
            log_summary(outer.plan, result, drawn, log_checkpoints, result.rows())
            result.write_summary()
        return result


class _Outer:
    """Runs outer folds.

    Args:
        search: The search within each.
        given: The data, or what makes them.
        data: The data.
        plan: What is the same for every fold.
    """

    def __init__(self, search: Search, given: Data, data: SplitDataModule, plan: Plan) -> None:
        self.search, self.given, self.data, self.plan = search, given, data, plan

    def training_part(self, job: Job) -> Data:
        """The data of an outer fold's training samples, or what makes them."""
        rows = self.data.splits(self.plan.num_folds, repeat=job.repeat)[job.fold]["train"]
        if isinstance(self.given, SplitDataModule):
            return self.data.for_rows(rows)
        return lambda: new_datamodule(self.given, self.plan.seed).for_rows(rows)

    def count_inner(self, job: Job) -> int:
        """The number of inner folds; raises a `ValueError` if there can be none."""
        rows = self.data.splits(self.plan.num_folds, repeat=job.repeat)[job.fold]["train"]
        try:
            return len(self.data.for_rows(rows).splits(self.search.num_folds))
        except ValueError as error:
            raise ValueError(
                f"inner_folds={self.search.num_folds} of the {len(rows)} training samples of outer "
                f"{job.name}: {error}"
            ) from error

    def read(self, job: Job) -> tuple[Fold, list[dict[str, Any]]] | None:
        """What a finished outer fold has left, or None if it is not finished."""
        fold = read_fold(self.plan.folder(job))
        if fold is None:
            return None
        return fold, json.loads((self.plan.folder(job) / SEARCHED).read_text())

    def run(self, job: Job, bar: tqdm) -> tuple[Fold, list[dict[str, Any]]]:
        """Searches on the training samples, trains what was chosen, and scores it once."""
        started = time.monotonic()
        plan, folder = self.plan, self.plan.folder(job)

        def tell(point: str, fits: int) -> None:
            bar.set_description_str(f"outer {job.name} | {point}", refresh=sys.stderr.isatty())
            bar.update(fits)

        part = self.training_part(job)
        rows, best = self.search.run(part, folder, tell)
        (choice,) = (row for row in rows if row["chosen"])
        tell(f"training: {said(choice['hyperparameters'])}", 0)
        history = History()
        if is_rank_zero():
            (folder / "metrics.csv").unlink(missing_ok=True)  # of a fit that was killed
        place = {"fold": job.fold, "repeat": job.repeat}
        logger = tracking.make_logger(
            plan.logger,
            folder,
            run_name=f"{plan.run_dir.name}-{folder.relative_to(plan.run_dir)}".replace("/", "-"),
            group=plan.run_dir.name,
            job_type="fold",
            run_id=f"{plan.run_id}-{job.repeat}-{job.fold}",
            config={
                **place,
                "num_folds": plan.num_folds,
                "seed": plan.seed + job.number,
                "chosen": choice["hyperparameters"],
                f"inner/{plan.monitor}": choice["mean"],
            },
        )
        try:
            model = refit(
                best,
                self.search.model_of(choice["point"]),
                part,
                make_callbacks=self.search.make_callbacks,
                trainer=plan.trainer,
                seed=plan.seed + job.number,
                loggers=[history, *([] if logger is None else [logger])],
            )
            steps, epochs = model.trainer.global_step, model.trainer.current_epoch
            outer = self.data.for_fold(job.fold, plan.num_folds, repeat=job.repeat)
            scorer = pl.Trainer(
                **{"enable_progress_bar": False, **plan.trainer},
                logger=False,
                default_root_dir=folder,
                enable_checkpointing=False,
            )
            (scores,) = scorer.validate(model, datamodule=outer, verbose=False)
            metrics = {name: float(value) for name, value in scores.items()}
            predicted = predict_part(scorer, model, outer, "val")
            if logger is not None:
                logger.log_metrics(metrics, step=steps)
                logger.save()
        finally:
            tracking.finish_logger(logger)
        checkpoint = (best.run_dir / "refit" / "model.ckpt").relative_to(plan.run_dir)
        row: dict[str, Any] = {
            "repeat": job.repeat,
            "fold": job.fold,
            "epochs": epochs,
            "best_epoch": epochs,
            "num_train": len(outer.indices("train")),
            "num_val": len(outer.indices("val")),
            **metrics,
            "seconds": round(time.monotonic() - started, 3),
            "checkpoint": str(checkpoint),
        }
        oof = None
        if predicted is not None:
            size = len(predicted["index"])
            oof = OutOfFold(**predicted, **{key: np.full(size, n) for key, n in place.items()})
        if scorer.is_global_zero:
            forget_weights(folder)
            write_rows(folder / "history.csv", history.rows)
            write_fold(folder, row, oof, getattr(outer, "normalisation", None))
        return Fold(row, oof, history.rows), rows


def _figures(result: NestedResult, data: SplitDataModule) -> dict[str, Figure]:
    drawn = result_figures(result, data)
    # A mean over different hyperparameters, of training alone, would say nothing.
    drawn.pop("learning_curves", None)
    monitor = result.info["monitor"]
    if monitor in result.metrics:
        values = {
            "outer folds": result.values(monitor),
            "inner means of\nwhat was chosen": [choice["mean"] for choice in result.choices],
        }
        interval = {"outer folds": result.interval(monitor)}
        drawn["inner_and_outer"] = plots.strip(values, intervals=interval, metric=monitor)
    return drawn
