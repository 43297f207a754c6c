"""Folds as one fit: the engine ``"vectorized"`` of `cross_validate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from dlblocks import tracking
from dlblocks._errors import named
from dlblocks._files import write_rows
from dlblocks.crossval._fold import FoldResult, FoldSpec, RunConfig, finish_fold
from dlblocks.crossval._parallel import FoldProgress
from dlblocks.data import SplitDataModule
from dlblocks.engine._support import is_out_of_memory, naming
from dlblocks.engine.choose import choose_engine, in_halves
from dlblocks.ensembles import Member, StackedFit, check_vectorizable
from dlblocks.models._checkpoints import write_checkpoint
from dlblocks.runs.fit import CHECKPOINTS

STATE = "together.ckpt"


def choose(
    engine: str,
    plan: RunConfig,
    make_data: Callable[[FoldSpec], SplitDataModule],
    jobs: Sequence[FoldSpec],
) -> tuple[str, str, StackedFit | None]:
    """Which engine runs these fits, and why; see `choose_engine`.

    Args:
        engine: ``"vectorized"`` or ``"auto"``.
        plan: What is the same for every fit.
        make_data: Returns a new datamodule set to the fold of a job.
        jobs: The fits.
    """
    return choose_engine(engine, lambda part: _together(plan, make_data, part), jobs, "folds")


def run_together(
    plan: RunConfig,
    make_data: Callable[[FoldSpec], SplitDataModule],
    jobs: Sequence[FoldSpec],
    progress: FoldProgress,
    on_error: str,
    together: StackedFit | None = None,
) -> Generator[tuple[FoldSpec, FoldResult | Exception], None, None]:
    """Runs fits as one; yields each, with its error if it failed.

    Fits that do not fit into memory together are run in two halves.

    Args:
        plan: What is the same for every fit.
        make_data: Returns a new datamodule set to the fold of a job.
        jobs: The fits.
        progress: The bar over all fits.
        on_error: ``"raise"``, or ``"continue"`` with the other folds when one fails.
        together: The fits, ready to run; made here if None.
    """
    ready = [] if together is None else [together]
    del together  # which nothing may hold if its memory is short

    def run(part: Sequence[FoldSpec]) -> list[tuple[FoldSpec, FoldResult | Exception]]:
        fits = ready.pop() if ready else _together(plan, make_data, part)
        return _run(plan, part, fits, progress, on_error)

    yield from in_halves(run, jobs, "folds")


def _run(
    plan: RunConfig,
    jobs: Sequence[FoldSpec],
    together: StackedFit,
    progress: FoldProgress,
    on_error: str,
) -> list[tuple[FoldSpec, FoldResult | Exception]]:
    started = time.monotonic()
    together.on_error = on_error
    together.save_to = plan.run_dir / STATE if plan.resume else None
    together.show(_Bar(progress, len(jobs)))
    loggers = [plan.new_logger(job) for job in jobs]
    try:
        for member, logger in zip(together.members, loggers, strict=True):
            member.log_to([] if logger is None else [logger])
        try:
            together.fit()
        except Exception as error:
            mine = [job for job, m in zip(jobs, together.members, strict=True) if m.error is error]
            if not mine:
                if is_out_of_memory(error):
                    raise
                raise named(error, "all folds") from error
            return [(mine[0], error)]
    finally:
        for logger in loggers:
            tracking.finish_logger(logger)
    progress.end_together(len(jobs))
    seconds = (time.monotonic() - started) / len(jobs)
    found: list[tuple[FoldSpec, FoldResult | Exception]] = [
        (job, member.error or _finish(plan, job, member, together, seconds))
        for job, member in zip(jobs, together.members, strict=True)
    ]
    (plan.run_dir / STATE).unlink(missing_ok=True)
    return found


def _together(
    plan: RunConfig, make_data: Callable[[FoldSpec], SplitDataModule], jobs: Sequence[FoldSpec]
) -> StackedFit:
    """The fits of some jobs, ready to run, each begun as `run_fold` would."""
    members = []
    for i, job in enumerate(jobs):
        pl.seed_everything(plan.seed + job.number, workers=True, verbose=False)
        with naming(job.name if i else None):
            model: Any = plan.new_model()
            datamodule: Any = make_data(job)
            callbacks = plan.new_callbacks()
        if i == 0:
            # Before the others are made.
            check_vectorizable(model, datamodule, callbacks, plan.trainer)
        members.append(Member(job.name, model, datamodule, callbacks))
    # What all share is drawn as the first fit would.
    pl.seed_everything(plan.seed + jobs[0].number, workers=True, verbose=False)
    return StackedFit(
        members,
        trainer=plan.trainer,
        monitor=plan.monitor,
        mode=plan.mode,
        folder=plan.run_dir,
    )


def _finish(
    plan: RunConfig, job: FoldSpec, member: Member, together: StackedFit, seconds: float
) -> FoldResult:
    """Predicts the fold's validation part and writes what a fit of its own would have written."""
    folder, best = plan.folder(job), member.best
    assert best is not None  # for the type checker: every member that did not fail has one
    checkpoint = folder / "checkpoints" / f"{CHECKPOINTS[plan.select != 'last']}.ckpt"
    write_checkpoint(checkpoint, member.model, epoch=best.epoch, global_step=best.step)
    write_rows(folder / "history.csv", member.history.rows)
    return finish_fold(
        plan,
        job,
        member.datamodule,
        epochs=member.epochs,
        best_epoch=best.epoch + 1,
        metrics=best.metrics,
        seconds=seconds,
        checkpoint=checkpoint,
        predicted=together.predict(member, "val"),
        history=member.history.rows,
    )


class _Bar(ProgressBar):
    """Reports the one fit to the bar over all fits."""

    def __init__(self, progress: FoldProgress, count: int) -> None:
        super().__init__()
        self.progress, self.count = progress, count

    def disable(self) -> None:
        """Nothing to disable: there is but one process."""

    def enable(self) -> None:
        """Nothing to enable: see `disable`."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StackedFit)
        self.progress.update_together(self.count, *pl_module.progress())
