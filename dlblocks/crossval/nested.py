"""`nested_cross_validate`, which chooses hyperparameters on inner folds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from dlblocks import plots
from dlblocks._errors import check_function, check_range, checked, named
from dlblocks._files import SUMMARY, is_json, is_rank_zero
from dlblocks._quiet import isolated
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.crossval._outcome import make_result, result_figures, write_outcome
from dlblocks.crossval._outer_folds import OuterFolds
from dlblocks.crossval._search import Grid, Search, grid_points
from dlblocks.crossval._splits import (
    begin,
    duplicates_note,
    fold_specs,
    margin_note,
    overlap_note,
    plan_splits,
)
from dlblocks.crossval.nested_results import NestedResult
from dlblocks.data import SplitDataModule
from dlblocks.data.splitting import counts_folds
from dlblocks.runs._figures import drawing
from dlblocks.runs._monitor import resolve_mode
from dlblocks.runs._parallel import check_jobs
from dlblocks.runs._plan import run_id_of
from dlblocks.runs._progress import make_bar
from dlblocks.runs._trainer import CALLBACKS, check_trainer_arguments, new_datamodule, shows_bar
from dlblocks.runs.fit import Select
from dlblocks.runs.folder import in_run_dir, know_rank, say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_DIR = "runs/nested-cross-validation"
INNER_FOLDS = 5


@checked
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
    mode: Literal["min", "max"] | None = None,
    task: str | None = None,
    engine: Literal["sequential", "vectorized", "auto"] = "sequential",
    n_jobs: int = 1,
    on_error: Literal["raise", "continue"] = "raise",
    select: Select = "fold",
    selection_fraction: float = 0.15,
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    log_checkpoints: bool = False,
    run_dir: str | PathLike[str] | None = None,
    resume: bool = True,
    seed: int = 0,
    progress_bar: bool = True,
    figures: bool = True,
) -> NestedResult:
    """Score a training procedure that chooses its own hyperparameters.

    The best score of a search is too good a guess of what new data will give: it was chosen for
    being the best (Varma and Simon 2006; Cawley and Talbot 2010). Here the search is a part of what
    is scored. For every outer fold, on its training samples alone:

    1. each point of `grid` is cross-validated on the same inner folds, by `cross_validate`;
    2. that with the best mean of `monitor` is chosen, the first of equal ones;
    3. a new model of it is trained on all of the outer fold's training samples, for the median of
       the best epochs of its inner fits, under the same learning-rate schedule, without validation
       or early stopping, as by `CrossValidationResult.refit`;
    4. the outer fold is looked at for the first time, and once: that is the score.

    So neither hyperparameters nor the number of epochs have seen the samples that score them: the
    scores are unbiased, also with ``select="fold"``, which is about the inner folds alone. Scores
    are as those of scikit-learn's ``cross_val_score(GridSearchCV(...))``. The choice may differ
    between outer folds: what is scored is the procedure, not one point. `NestedResult.refit`
    applies it to all development data.

    Normalisation is fitted anew for each inner fit; groups, strata, order in time and predefined
    folds hold for inner folds as for outer ones. Fits of the inner folds have the seeds ``seed``,
    ``seed + 1``, …, the same for every point; the model of outer fit number i has ``seed + i``.

    After a kill, the same call resumes, as with `cross_validate`. The model of an outer fold that
    was in training starts again. Inner fits lie in ``fold-0/point-0/fold-0/…`` and log their
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
        task: As for `cross_validate`.
        mode: Whether ``"min"`` or ``"max"`` of `monitor` is best; None for the metric's own
            direction, where its name or a torchmetrics object of the model says it.
        engine: How the inner folds of a point are run, as for `cross_validate`: ``"vectorized"``
            trains all of them as one. ``"auto"`` measures anew for each point and outer fold, and
            `NestedResult.search` says what it chose; as that hangs on what else the machine does,
            name an engine where a run must be repeatable to the last digit. The models of the outer
            folds are trained one by one.
        n_jobs: Inner folds of a point side by side, as for `cross_validate`; more than
            `inner_folds` are of no use.
        on_error: ``"continue"`` leaves a point out of the choice if one of its inner fits fails,
            and an outer fold out of the result if all points or the last fit do.
        select: How the inner fits select their epoch, as for `cross_validate`. ``"fold"``, on the
            inner fold that scores them: its optimism is the same for all points and stays inside
            the search. ``"inner"``: on a selection part. ``"last"``: not at all; every model is
            trained for all epochs.
        selection_fraction: As for `cross_validate`.
        logger: Where the model of each outer fold logs, in one W&B group with a summary run.
        log_checkpoints: Send the models of the outer folds to W&B as an artifact.
        run_dir: A folder that is empty or does not exist, or holds a run to resume. A finished
            run is loaded. Both are reported on stderr. None: ``runs/nested-cross-validation``,
            numbered: the first that is empty, or holds an unfinished run of the same configuration.
        resume: Resume the run in `run_dir`; False refuses a folder that holds something.
        seed: Seed of initialisation, dropout and all else that is random in training.
        progress_bar: Show one bar over all fits, on rank 0, whatever bar `make_callbacks` has.
        figures: Draw ``figures/*.png``.

    Returns:
        The result; its scores are those of the outer folds.

    Raises:
        ValueError: An argument is wrong, an outer fold's training samples are too few for
            `inner_folds`, or a point cannot be vectorized.
        TypeError: `grid` is not a grid, `make_model` does not take its names, or `datamodule`
            cannot be set to folds.
        BlockingIOError: Another process works in `run_dir`.
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
    check_function("make_model", make_model, "lambda lr: MLPClassifier(64, 10, lr=lr)")
    if make_callbacks is not None:
        check_function("make_callbacks", make_callbacks, CALLBACKS)
    check_range("repeats", repeats, 1)
    trainer_args = check_trainer_arguments(trainer, None if select == "last" else monitor)
    check_jobs(n_jobs, trainer_args, engine, on_error)
    points = grid_points(grid)
    mode = resolve_mode(monitor, mode, partial(make_model, **points[0]))
    know_rank(trainer_args.get("num_nodes", 1))
    search = Search(
        make_model,
        points,
        make_callbacks,
        inner_folds,
        monitor,
        mode,
        on_error,
        {
            "trainer": trainer_args,
            "engine": engine,
            "n_jobs": n_jobs,
            "resume": resume,
            "seed": seed,
            "select": select,
            "selection_fraction": selection_fraction,
        },
    )
    config = FoldConfig(
        make_model,
        make_callbacks or list,
        trainer_args,
        monitor=monitor,
        mode=mode,
        logger=logger,
        run_dir=Path(run_dir or RUN_DIR),
        seed=seed,
        resume=resume,
        select=select,
        selection_fraction=selection_fraction,
        task=task,
    )

    def run(path: Path) -> NestedResult:
        # The inner cross-validations hold the locks of their own folders.
        return _nested(
            search,
            replace(config, run_dir=path),
            datamodule,
            num_folds,
            repeats,
            log_checkpoints=log_checkpoints,
            progress_bar=shows_bar(progress_bar, trainer),
            figures=figures,
        )

    return in_run_dir(run_dir, RUN_DIR, run, resume=resume)


def _nested(
    search: Search,
    config: FoldConfig,
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    num_folds: int | None,
    repeats: int,
    *,
    log_checkpoints: bool,
    progress_bar: bool,
    figures: bool,
) -> NestedResult:
    """Run `nested_cross_validate` in a folder that it or its rank 0 holds."""
    started = time.monotonic()
    with isolated():
        data = new_datamodule(datamodule, config.seed)
        splits = plan_splits(data, num_folds, repeats)
        config.num_folds = splits["num_folds"]
        if search.num_folds is None and not counts_folds(data.split):
            search.num_folds = INNER_FOLDS
        outer = OuterFolds(search, datamodule, data, config)
        specs = fold_specs(splits)
        # Read by every rank before any fit, so that all run the same folds.
        before = run_id_of(config.run_dir) if config.resume else ""
        read = [(spec, outer.read(spec, before)) for spec in specs if before]
        found = {spec: fold for spec, fold in read if fold is not None}
        fits = {spec: len(search.points) * outer.count_inner(spec) + 1 for spec in specs}
        settings = config.settings()
        if search.engine != "sequential":  # which may draw other random numbers
            settings["engine"] = search.engine
        described = search.describe(config, data, **settings)
        todo = [spec for spec in specs if spec not in found]
        if todo:
            search.check_engine(outer.training_part(todo[0]), config)
        if is_rank_zero():
            begin(config, described, splits, len(found), len(specs), "outer folds")
        notes = data.notes() + duplicates_note(data.count_duplicates(config.num_folds), splits)
        notes += margin_note(splits) + overlap_note(splits)
        if todo and progress_bar:
            say(data.description(), *notes)
        failed = dict[FoldSpec, Exception]()
        bar = make_bar(
            sum(fits.values()),
            initial=sum(fits[spec] for spec in found),
            disable=not (progress_bar and is_rank_zero()),
        )
        with bar:
            for spec in todo:
                done = bar.n
                try:
                    found[spec] = outer.run(spec, bar)
                except (FileExistsError, BlockingIOError):  # of another run
                    raise
                except Exception as error:
                    if search.on_error == "raise":
                        raise named(error, f"outer {spec.name}") from error
                    failed[spec] = error
                    print(f"outer {spec.name} failed: {error!r}", file=sys.stderr, flush=True)
                bar.update(done + fits[spec] - bar.n)
    if not found:
        spec, why = next(iter(failed.items()))
        raise named(why, f"outer {spec.name}") from why
    done = [spec for spec in specs if spec in found]
    result = make_result(
        NestedResult,
        config,
        data,
        splits,
        [found[spec][0] for spec in done],
        failed,
        notes=notes,
        seconds=time.monotonic() - started,
        described=described,
        given={"search": search, "make_callbacks": search.make_callbacks},
        engine=search.engine,
        inner_folds=search.num_folds,
        search=[{**spec.place, **row} for spec in done for row in found[spec][1]],
    )
    if is_rank_zero() and (todo or not is_json(config.run_dir / SUMMARY)):
        drawn = _figures(result, data) if figures else {}
        write_outcome(config, result, drawn, checkpoints=log_checkpoints, rows=result.rows())
    return result


def _figures(result: NestedResult, data: SplitDataModule) -> dict[str, Figure]:
    drawn = result_figures(result, data)
    # Their mean would mix hyperparameters, and they are of training alone.
    drawn.pop("learning_curves", None)
    monitor = result.info["monitor"]
    if monitor in result.metrics:
        values = {
            "outer folds": result.values(monitor),
            "inner means of\nwhat was chosen": [choice["mean"] for choice in result.choices],
        }
        interval = {"outer folds": result.interval(monitor)}
        with drawing("inner_and_outer"):
            drawn["inner_and_outer"] = plots.strip(values, intervals=interval, metric=monitor)
    return drawn
