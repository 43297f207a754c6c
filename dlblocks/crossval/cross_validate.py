"""`cross_validate`, which fits and scores a new model for each fold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from dlblocks._errors import check_function, check_range, checked, named
from dlblocks._files import SUMMARY, is_json, is_rank_zero
from dlblocks._quiet import isolated
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.crossval._outcome import make_result, result_figures, write_outcome
from dlblocks.crossval._splits import (
    begin,
    check_same,
    describe,
    duplicates_note,
    fold_specs,
    margin_note,
    overlap_note,
    plan_splits,
    selection_note,
)
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.data import SplitDataModule
from dlblocks.engine.run_fits import engine_for, run_fits
from dlblocks.runs._fits import read_fits
from dlblocks.runs._monitor import resolve_mode
from dlblocks.runs._parallel import check_jobs, wait_for_workers
from dlblocks.runs._trainer import CALLBACKS, check_trainer_arguments, new_datamodule, shows_bar
from dlblocks.runs.fit import Select
from dlblocks.runs.folder import in_run_dir, know_rank, say

RUN_DIR = "runs/cross-validation"
OPTIMISTIC = "optimistic: the epoch was selected on the scored samples"


@checked
def cross_validate(
    make_model: Callable[[], pl.LightningModule],
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    *,
    num_folds: int | None = None,
    repeats: int = 1,
    make_callbacks: Callable[[], Sequence[Callback]] | None = None,
    trainer: Mapping[str, Any] | None = None,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] | None = None,
    task: str | None = None,
    engine: Literal["sequential", "vectorized", "auto"] = "sequential",
    n_jobs: int = 1,
    on_error: Literal["raise", "continue"] = "raise",
    select: Select = "inner",
    selection_fraction: float = 0.15,
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = "csv",
    log_checkpoints: bool = False,
    run_dir: str | PathLike[str] | None = None,
    resume: bool = True,
    seed: int = 0,
    progress_bar: bool = True,
    figures: bool = True,
) -> CrossValidationResult:
    """Fit and score a new model for each fold.

    Everything is new for every fold: datamodule, model, callbacks, logger and Trainer. Fit number i
    is seeded with ``seed + i`` before its model is made. The caller's global state is left as it
    was: random states, ``PL_…`` and ``WANDB_…`` variables, torch's defaults, filters of warnings.
    The test set is never touched.

    **One part selects the epoch, another scores it.** With ``select="inner"`` each fold splits the
    selection part off its training samples. It decides which epoch's weights are kept, when to stop
    early, and when a plateau schedule lowers the rate. The weights that were kept are then
    validated once on the fold's own samples. That is the score, and it gives the out-of-fold
    predictions. Scores are unbiased for models that are trained in this way, on as many samples.

    During the fit the module's `validation_step` gets the selection part. Its ``val/loss`` is
    called ``selection/loss`` in curves, ``history.csv`` and the logger; ``val/…`` is always the
    score of the fold. ``data.for_fold(0, 5).with_selection(0.15)`` has the same parts as fold 0.

    Each development sample is scored once in every repeat. Two kinds of split leave some out: the
    first block of ``"time_series"`` and the samples without a fold of ``"predefined"`` only train.
    Out-of-fold predictions come from the module's `predict_step`, which gets the batches of
    `validation_step` and returns one prediction a sample, or from a `forward` that takes the inputs
    alone. They are kept as they are: those of your own module may be logits. The prediction of such
    a module is tried on one batch before the first fit. If it fails, then or later, a warning names
    the error and the cure, ``result.oof`` is None, and the fits run.

    **Resume.** After a kill, make the same call again. Finished folds are loaded, and the broken
    one resumes from its last checkpoint, which is about ten seconds and one epoch old at most.
    Scores, predictions and weights are bit for bit those of a run without a kill, on the same
    hardware and versions with as many threads. A finished run is loaded. Another configuration is
    refused as far as it can be seen: hyperparameters, layers and their plain attributes, shapes of
    the weights, arguments of callbacks, Trainer arguments, data and splits. Of functions among
    these, code, defaults and closure are compared. The code of methods and of what a function calls
    cannot be seen: use another `run_dir`. Only a run that has not trained yet, such as one with a
    mistyped `monitor`, is replaced, and a line on stderr says so. A second process in the same
    `run_dir` is refused while the first lives. A file system without locks only allows a warning.

    A damaged file of the run folder is an error that names the file and the cure. But a damaged
    ``last.ckpt`` only starts its fold anew, and a damaged ``summary.json`` is written again.

    ``plan.json`` (the configuration) and ``folds.json`` (the splits, with a fingerprint of the
    data) are written before the first fit. Later the run folder also holds ``summary.json``,
    ``folds.csv``, ``oof.npz``, ``figures/*.png`` and for each fold ``fold-0/fold.json``,
    ``fold-0/history.csv`` and ``fold-0/checkpoints/best.ckpt`` (``last-epoch.ckpt`` with
    ``select="last"``; later repeats are in ``repeat-1/fold-0``).

    Args:
        make_model: Returns a new LightningModule. Called for each fold, and a few times more where
            something has to be tried first.
        datamodule: A `DataModule`, or anybody's data in a `FoldedDataModule`; or a function that
            returns one. Its `num_folds` and `fold` are set here; its `split` and `split_seed`
            decide the folds.
        num_folds: Number of folds K >= 2. None: what the data say where `split` is
            ``"leave_one_group_out"`` or ``"predefined"``, else the datamodule's own, else 5.
        repeats: How often to cross-validate, each time with other folds.
        make_callbacks: Returns new callbacks; called once a fold.
        trainer: Arguments of the Lightning `Trainer`, such as ``{"max_epochs": 30}``.
        monitor: The logged validation metric by which the epoch is selected, and the score that
            comes first in tables and figures. Under its usual name: ``"val/loss"`` also where the
            selection part is what it is computed on.
        task: For a module that is not of `dlblocks.models`: what its predictions are, so that
            they have pooled metrics and figures. ``"multiclass"``: scores (N, C) or classes (N,);
            ``"multilabel"``: probabilities (N, C) for targets of 0 and 1; ``"regression"``: values;
            ``"segmentation"``: class maps (N, H, W); ``"detection"``: for each image a
            dictionary with boxes, scores and labels, as torchvision's detectors return.
            None: what shapes and dtypes leave no doubt about. Models of ours know theirs.
        mode: Whether ``"min"`` or ``"max"`` of `monitor` is best; None for the metric's own
            direction, where its name or a torchmetrics object of the model says it.
        engine: How the fits are run. ``"sequential"``: one after another. ``"vectorized"``: all as
            one fit, in which every step computes all models at once; many times faster for small
            nets. Needs models of `dlblocks.models`, a `DataModule` over arrays, one device, and no
            callbacks but `EarlyStopping` and those that change batches. Losses and weights are
            those of the sequential engine within rounding, but dropout draws other numbers. The
            ``seconds`` of a fold are its share. ``"auto"``: vectorized if that is possible and a
            few measured steps are faster. The choice and its reason are printed with the progress
            bar and kept in ``summary.json``.
        n_jobs: Folds side by side, each in a process of its own with its share of the cores and,
            where there are several, a GPU; -1 for one a core. Under
            ``joblib.parallel_config("ray")`` or ``"dask"`` (``pip install 'dlblocks[ray]'``) they
            run on a cluster that shares `run_dir`; folds of a machine that dies are run again.
            See ``docs/cluster.md``, for SLURM and several nodes a fold as well.
        on_error: ``"raise"`` the error of a fold, or ``"continue"`` with the others, print it, and
            list it under ``failed`` in ``summary.json``. The same call later runs what failed. If a
            worker of `n_jobs` dies, the folds that ran are resumed one by one, and one that dies
            again has failed. Not with several devices a fold, where the other ranks would hang.
            With ``engine="vectorized"`` an error before the first step, or one that concerns all
            folds, is raised in any case.
        select: How the epoch of each fold is selected. ``"inner"``: on a selection part, split off
            the fold's training samples; stratified like the folds, in whole groups, and for time
            series the last rows. ``"last"``: not at all. The weights of the last epoch are scored,
            and nothing is validated during the fit; early stopping or a plateau schedule on a
            validation metric is refused. ``"fold"``: on the samples that score it. Such scores are
            optimistic, and reported as such; use it to compare with older results.
        selection_fraction: Share of a fold's training samples in the selection part.
        logger: Where each fold logs. W&B runs share a group named after `run_dir`; a further run
            of the group, of job type ``"summary"``, holds means, the table of folds and figures.
        log_checkpoints: Send the best checkpoints of all folds to W&B as an artifact.
        run_dir: A folder that is empty or does not exist, or holds a run to resume. A finished run
            is loaded. Both are reported on stderr. None: ``runs/cross-validation``, numbered: the
            first that is empty, or holds an unfinished run of the same configuration.
        resume: Resume the run in `run_dir`; False refuses a folder that holds something.
        seed: Seed of initialisation, dropout and all else that is random in training.
        progress_bar: Show one bar over all folds, on rank 0. A progress bar of `make_callbacks`
            takes its place where folds run one by one in this process. False, or
            ``trainer={"enable_progress_bar": False}``, shows none at all.
        figures: Draw ``figures/*.png``.

    Returns:
        The result: ``result.mean("val/accuracy")``, ``result.folds``, ``result.oof``, …

    Raises:
        ValueError: An argument is wrong, or `make_model` returned the same model twice.
        BlockingIOError: Another process works in `run_dir`.
        FileExistsError: `run_dir` holds something else, or a run with another configuration, other
            data or other folds; the message lists the differences.

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
    check_function("make_model", make_model, "lambda: MLPClassifier(64, 10)")
    if make_callbacks is not None:
        check_function("make_callbacks", make_callbacks, CALLBACKS)
    check_range("repeats", repeats, 1)
    mode = resolve_mode(monitor, mode, make_model)
    trainer_args = check_trainer_arguments(trainer, None if select == "last" else monitor)
    check_jobs(n_jobs, trainer_args, engine, on_error)
    know_rank(trainer_args.get("num_nodes", 1))
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

    def run(path: Path) -> CrossValidationResult:
        return _cross_validate(
            replace(config, run_dir=path),
            datamodule,
            num_folds,
            repeats,
            engine=engine,
            n_jobs=n_jobs,
            on_error=on_error,
            log_checkpoints=log_checkpoints,
            progress_bar=shows_bar(progress_bar, trainer),
            figures=figures,
        )

    return in_run_dir(run_dir, RUN_DIR, run, resume=resume)


def _cross_validate(
    config: FoldConfig,
    datamodule: SplitDataModule | Callable[[], SplitDataModule],
    num_folds: int | None,
    repeats: int,
    *,
    engine: str,
    n_jobs: int,
    on_error: str,
    log_checkpoints: bool,
    progress_bar: bool,
    figures: bool,
) -> CrossValidationResult:
    """Run `cross_validate` in a folder that it or its rank 0 holds."""
    started = time.monotonic()
    with isolated():
        data = new_datamodule(datamodule, config.seed)
        splits = plan_splits(data, num_folds, repeats, selection_fraction=config.selection_fraction)
        config.num_folds = splits["num_folds"]
        specs = fold_specs(splits)
        if is_rank_zero():
            wait_for_workers(config, specs)
        # Read by every rank before any fit, so that all run the same folds.
        found = read_fits(config, specs)
        todo = [spec for spec in specs if spec not in found]

        def make_data(spec: FoldSpec) -> SplitDataModule:
            base = data
            if spec.number and not isinstance(datamodule, SplitDataModule):
                base = new_datamodule(datamodule, config.seed)
                check_same(base, splits, spec.number)
            return config.data_of(base, spec)

        chosen, why, ready = engine_for(engine, config, make_data, todo, n_jobs)
        settings = config.settings()
        if chosen == "vectorized":  # which draws other random numbers
            settings["engine"] = chosen
        described: dict[str, Any] = {}

        def check(model: pl.LightningModule, callbacks: Sequence[Callback]) -> None:
            """Check before training that the run folder is new or of this run."""
            if described:
                return
            described.update(describe(model, callbacks, data, **settings))
            config.know(model)
            if is_rank_zero():
                begin(config, described, splits, len(found), len(specs), "folds")

        if ready:
            check(ready[0].members[0].model, ready[0].members[0].callbacks)
        elif n_jobs == 1 and chosen == "sequential" and todo:
            config.check = check  # of the first fit's own model and callbacks
        else:
            check(config.new_model(), config.new_callbacks())
            if todo:
                config.new_model()  # workers cannot see that it is another
        if engine == "auto" and todo and progress_bar:
            say(f"engine: {chosen}; {why}")
        notes = [OPTIMISTIC] if config.select == "fold" else []
        notes += data.notes()
        notes += duplicates_note(data.count_duplicates(config.num_folds), splits)
        notes += margin_note(splits) + overlap_note(splits)
        notes += selection_note(splits, config.selection_fraction)
        if todo and progress_bar:
            say(data.description(), *notes)
        fitted, failed = run_fits(
            config,
            make_data,
            todo,
            len(specs),
            engine=chosen,
            ready=ready,
            n_jobs=n_jobs,
            on_error=on_error,
            progress_bar=progress_bar,
        )
    found |= fitted
    if not found:
        spec, error = next(iter(failed.items()))
        raise named(error, spec.name) from error
    done = [found[spec] for spec in specs if spec in found]
    for fold in done:
        if fold.reason is not None:
            config.warn(fold.reason)  # if a worker has found it
    result = make_result(
        CrossValidationResult,
        config,
        data,
        splits,
        done,
        failed,
        notes=notes,
        seconds=time.monotonic() - started,
        described=described,
        given={},
        engine=chosen,
        **({"engine_reason": why} if engine == "auto" else {}),
    )
    if is_rank_zero() and (todo or not is_json(config.run_dir / SUMMARY)):
        drawn = result_figures(result, data) if figures else {}
        write_outcome(config, result, drawn, checkpoints=log_checkpoints)
    return result
