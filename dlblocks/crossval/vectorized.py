"""Folds as one fit: the engine ``"vectorized"`` of `cross_validate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from dlblocks import tracking
from dlblocks.crossval.fold import Fold, Job, Plan, finish_fold
from dlblocks.crossval.progress import FoldProgress
from dlblocks.data import SplitDataModule
from dlblocks.ensembles import Member, NotVectorizable, Together, check_vectorizable
from dlblocks.ensembles.engine import STEP_SECONDS
from dlblocks.ensembles.probe import is_out_of_memory, seconds_a_step
from dlblocks.files import write_rows
from dlblocks.models.checkpoints import write_checkpoint

STATE = "together.ckpt"


def choose_engine(
    engine: str, plan: Plan, make_data: Callable[[Job], SplitDataModule], jobs: Sequence[Job]
) -> tuple[str, str, Together | None]:
    """Which engine runs these fits, and why.

    Args:
        engine: ``"vectorized"`` or ``"auto"``.
        plan: What is the same for every fit.
        make_data: Returns a new datamodule set to the fold of a job.
        jobs: The fits.

    Returns:
        The engine, a sentence that says why it was chosen, and the fits, ready to run, if they are
        to be run as one and memory suffices.

    Raises:
        NotVectorizable: The fits must be vectorized and cannot be.
    """
    together, part = None, jobs
    try:
        while together is None:
            try:
                together = _together(plan, make_data, part)
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                part = part[: -(-len(part) // 2)]
    except NotVectorizable as error:
        if engine == "vectorized":
            raise NotVectorizable(
                f"engine='vectorized' cannot run these fits: {error}; use engine='sequential', or "
                "'auto' to have it chosen."
            ) from error
        return "sequential", f"the folds cannot be fitted together: {error}", None
    except Exception as error:
        if engine == "vectorized":
            raise
        # One after the other, it is said which fold has it.
        return "sequential", f"a fold fails: {error!r}", None
    ready = together if len(part) == len(jobs) else None
    if engine == "vectorized":
        return engine, "as asked", ready
    at_once, apart = seconds_a_step(together)
    apart += STEP_SECONDS * len(part)
    why = f"a step takes {1e3 * at_once:.2g} ms for {len(part)} folds at once and "
    why += f"{1e3 * apart:.2g} ms for one after the other"
    if at_once < apart:
        return "vectorized", why, ready
    together.detach()
    return "sequential", why, None


def run_together(
    plan: Plan,
    make_data: Callable[[Job], SplitDataModule],
    jobs: Sequence[Job],
    progress: FoldProgress,
    on_error: str,
    together: Together | None = None,
) -> Generator[tuple[Job, Fold | Exception], None, None]:
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
    try:
        found = _run(plan, jobs, together or _together(plan, make_data, jobs), progress, on_error)
    except Exception as error:
        if len(jobs) == 1 or not is_out_of_memory(error):
            raise
        found = None
    if found is not None:
        yield from found
        return
    del together
    half = -(-len(jobs) // 2)
    said = f"{len(jobs)} folds at once need more memory than there is; going on with {half}."
    print(said, file=sys.stderr, flush=True)
    for part in (jobs[:half], jobs[half:]):
        yield from run_together(plan, make_data, part, progress, on_error)


def _run(
    plan: Plan, jobs: Sequence[Job], together: Together, progress: FoldProgress, on_error: str
) -> list[tuple[Job, Fold | Exception]]:
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
                raise
            return [(mine[0], error)]
    finally:
        for logger in loggers:
            tracking.finish_logger(logger)
    progress.end_together(len(jobs))
    seconds = (time.monotonic() - started) / len(jobs)
    found: list[tuple[Job, Fold | Exception]] = [
        (job, member.error or _finish(plan, job, member, together, seconds))
        for job, member in zip(jobs, together.members, strict=True)
    ]
    (plan.run_dir / STATE).unlink(missing_ok=True)
    return found


def _together(
    plan: Plan, make_data: Callable[[Job], SplitDataModule], jobs: Sequence[Job]
) -> Together:
    """The fits of some jobs, ready to run, each begun as `run_fold` would."""
    members = []
    for i, job in enumerate(jobs):
        pl.seed_everything(plan.seed + job.number, workers=True, verbose=False)
        model: Any = plan.new_model()
        datamodule: Any = make_data(job)
        callbacks = plan.new_callbacks()
        if i == 0:
            # Before the others are made.
            check_vectorizable(model, datamodule, callbacks, plan.trainer)
        members.append(Member(job.name, model, datamodule, callbacks))
    # What all share is drawn as the first fit would.
    pl.seed_everything(plan.seed + jobs[0].number, workers=True, verbose=False)
    return Together(
        members,
        trainer=plan.trainer,
        monitor=plan.monitor,
        mode=plan.mode,
        folder=plan.run_dir,
    )


def _finish(plan: Plan, job: Job, member: Member, together: Together, seconds: float) -> Fold:
    """Predicts the fold's validation part and writes what a fit of its own would have written."""
    folder, best = plan.folder(job), member.best
    assert best is not None  # for the type checker: every member that did not fail has one
    checkpoint = folder / "checkpoints" / "best.ckpt"
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
        assert isinstance(pl_module, Together)
        self.progress.update_together(self.count, *pl_module.progress())
