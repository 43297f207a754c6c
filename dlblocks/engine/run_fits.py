"""Run several fits one by one, side by side, or as one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from dlblocks import tracking
from dlblocks._errors import named
from dlblocks._files import is_rank_zero, write_rows
from dlblocks.data import SplitDataModule
from dlblocks.engine._support import check_vectorizable, is_out_of_memory, naming
from dlblocks.engine.choose import choose_engine, in_halves
from dlblocks.engine.fit_many import StackedFit
from dlblocks.engine.member import Member
from dlblocks.models._checkpoints import write_checkpoint
from dlblocks.runs._fits import FitResult, finish_fit, run_fit
from dlblocks.runs._history import name_of_selection
from dlblocks.runs._parallel import run_side_by_side
from dlblocks.runs._plan import engine_of
from dlblocks.runs._progress import FitProgress
from dlblocks.runs._run_config import FitSpec, RunConfig, Spec

STATE = "together.ckpt"  # of unfinished stacked fits, in the run folder
Outcomes = Generator[tuple[Spec, FitResult | Exception], None, None]


def engine_for(
    engine: str,
    config: RunConfig,
    make_data: Callable[[Spec], SplitDataModule],
    specs: Sequence[Spec],
    n_jobs: int = 1,
) -> tuple[str, str, list[StackedFit]]:
    """Choose the engine for the fits that are left of a run.

    Args:
        engine: ``"sequential"``, ``"vectorized"`` or ``"auto"``.
        config: Configuration of the run.
        make_data: Returns a new datamodule set to a fit.
        specs: The fits.
        n_jobs: Number of processes.

    Returns:
        The engine, the reason, and the argument `ready` of `run_fits`: a list with the stacked
        fits if the engine is ``"vectorized"``, else an empty one. See `choose_engine`.
    """
    if engine == "auto" and config.resume and (earlier := engine_of(config.run_dir)):
        return earlier, "the engine this run began with", []
    if engine != "sequential" and n_jobs == 1 and specs:
        chosen, why, stacked = choose_engine(
            engine, lambda part: _stacked(config, make_data, part), specs, f"{config.kind}s"
        )
        return chosen, why, [] if stacked is None else [stacked]
    chosen = "vectorized" if engine == "vectorized" else "sequential"
    return chosen, f"n_jobs runs {config.kind}s side by side" if n_jobs != 1 else "as asked", []


def run_fits(
    config: RunConfig,
    make_data: Callable[[Spec], SplitDataModule],
    specs: Sequence[Spec],
    total: int,
    *,
    engine: str,
    ready: list[StackedFit],
    n_jobs: int = 1,
    on_error: str = "raise",
    progress_bar: bool = True,
) -> tuple[dict[Spec, FitResult], dict[Spec, Exception]]:
    """Run fits, and return the results and the errors.

    Args:
        config: Configuration of the run.
        make_data: Returns a new datamodule set to a fit.
        specs: The fits that are left.
        total: Number of all fits of the run.
        engine: ``"sequential"`` or ``"vectorized"``.
        ready: As returned by `engine_for`. It is emptied, so that the memory can be freed.
        n_jobs: Number of processes.
        on_error: ``"raise"``, or ``"continue"`` with the other fits when one fails.
        progress_bar: Show one bar over all fits.
    """
    if not specs:
        config.forget()
        return {}, {}
    progress = FitProgress(total, config.kind, show=progress_bar)
    progress.count_finished(total - len(specs))
    if engine == "vectorized":
        outcomes = _run_vectorized(config, make_data, specs, progress, on_error, ready)
    elif n_jobs == 1:
        outcomes = _run_one_by_one(config, make_data, specs, progress if progress_bar else None)
    else:
        outcomes = run_side_by_side(config, make_data, specs, n_jobs, progress, on_error)
    found, failed = dict[Spec, FitResult](), dict[Spec, Exception]()
    try:
        for spec, outcome in outcomes:
            if isinstance(outcome, FitResult):
                found[spec] = outcome
                config.warned |= outcome.warned
            elif not config.run_id and is_rank_zero():
                raise outcome  # no fit has begun, so the run folder or the model is at fault
            elif on_error == "raise":
                raise named(outcome, spec.name) from outcome
            else:
                failed[spec] = outcome
                print(f"{spec.name} failed: {outcome!r}", file=sys.stderr, flush=True)
    finally:
        outcomes.close()
        progress.close()
        config.forget()
    return found, failed


def _run_one_by_one(
    config: RunConfig,
    make_data: Callable[[Spec], SplitDataModule],
    specs: Sequence[Spec],
    progress: FitProgress | None,
) -> Outcomes[Spec]:
    for spec in specs:
        bar = None if progress is None else progress.callback(spec.number)
        try:
            yield spec, run_fit(config, make_data(spec), spec, bar)
        except Exception as error:
            yield spec, error


def _run_vectorized(
    config: RunConfig,
    make_data: Callable[[Spec], SplitDataModule],
    specs: Sequence[Spec],
    progress: FitProgress,
    on_error: str,
    ready: list[StackedFit],
) -> Outcomes[Spec]:
    """Run fits as one, or in halves if memory is short."""

    def run(part: Sequence[Spec]) -> list[tuple[Spec, FitResult | Exception]]:
        stacked = ready.pop() if ready else _stacked(config, make_data, part)
        return _run_stacked(config, part, stacked, progress, on_error)

    yield from in_halves(run, specs, f"{config.kind}s")


def _stacked(
    config: RunConfig, make_data: Callable[[Spec], SplitDataModule], specs: Sequence[Spec]
) -> StackedFit:
    """Stack fits, each seeded and set up as in `run_fit`."""
    members = []
    for i, spec in enumerate(specs):
        pl.seed_everything(config.seed_of(spec), workers=True, verbose=False)
        with naming(spec.name if i else None):
            model: Any = config.new_model()
            datamodule: Any = make_data(spec)
            callbacks = config.new_callbacks()
        if i == 0:
            # Fail before the other members are created.
            check_vectorizable(model, datamodule, callbacks, config.trainer)
        members.append(Member(spec.name, model, datamodule, callbacks))
    # The random numbers that all members share are those of the first fit.
    pl.seed_everything(config.seed_of(specs[0]), workers=True, verbose=False)
    return StackedFit(
        members,
        trainer=config.trainer,
        monitor=config.monitor,
        mode=config.mode,
        folder=config.run_dir,
    )


def _run_stacked(
    config: RunConfig,
    specs: Sequence[Spec],
    stacked: StackedFit,
    progress: FitProgress,
    on_error: str,
) -> list[tuple[Spec, FitResult | Exception]]:
    started = time.monotonic()
    stacked.on_error = on_error
    stacked.save_to = config.run_dir / STATE if config.resume else None
    stacked.show(StackedBar(progress, len(specs)))
    loggers = [config.new_logger(spec) for spec in specs]
    try:
        for member, logger in zip(stacked.members, loggers, strict=True):
            member.log_to([] if logger is None else [logger])
        try:
            stacked.fit()
        except Exception as error:
            pairs = zip(specs, stacked.members, strict=True)
            mine = [spec for spec, member in pairs if member.error is error]
            if not mine:
                if is_out_of_memory(error):
                    raise
                raise named(error, f"all {config.kind}s") from error
            return [(mine[0], error)]
    finally:
        for logger in loggers:
            tracking.finish_logger(logger)
    progress.count_finished(len(specs))
    seconds = (time.monotonic() - started) / len(specs)
    found: list[tuple[Spec, FitResult | Exception]] = [
        (spec, member.error or _finish(config, spec, member, stacked, seconds))
        for spec, member in zip(specs, stacked.members, strict=True)
    ]
    (config.run_dir / STATE).unlink(missing_ok=True)
    return found


def _finish(
    config: RunConfig, spec: FitSpec, member: Member, stacked: StackedFit, seconds: float
) -> FitResult:
    """Predict, and write the files that `run_fit` would write."""
    folder, best, data = config.folder(spec), member.best, member.datamodule
    assert best is not None  # for the type checker: every member that did not fail has one
    checkpoint = f"checkpoints/{config.checkpoint_name}"
    write_checkpoint(folder / checkpoint, member.model, epoch=best.epoch, global_step=best.step)
    write_rows(folder / "history.csv", member.history.rows)
    is_predicted = len(data.indices(config.part)) > 0
    return finish_fit(
        config,
        spec,
        data,
        epochs=member.epochs,
        best_epoch=best.epoch + 1,
        metrics=best.metrics,
        seconds=seconds,
        checkpoint=checkpoint,
        predicted=stacked.predict(member, config.part) if is_predicted else None,
        history=member.history.rows,
    )


class StackedBar(ProgressBar):
    """Report the stacked fit to the bar over all fits."""

    def __init__(self, progress: FitProgress, count: int) -> None:
        super().__init__()
        self.progress, self.count = progress, count

    def disable(self) -> None:
        """Do nothing, since there is only one process."""

    def enable(self) -> None:
        """Do nothing, as in `disable`."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, StackedFit)
        fit, name = pl_module, pl_module.monitor
        text = f"epoch {fit.epoch}/{fit.max_epochs}"
        if len(fit.live) < len(fit.members):
            text += f" | {len(fit.live)} still running"
        found = [m.best.value for m in fit.members if m.best is not None and m.best.state]
        if found:
            if fit.validates_on == "selection" and not name.startswith("train"):
                name = name_of_selection(name)
            text += f" | best {name} {sum(found) / len(found):.4g}"
        self.progress.update_stacked(self.count, fit.epoch / fit.max_epochs, text)
