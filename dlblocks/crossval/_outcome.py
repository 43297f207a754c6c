"""Write, draw and log what a run has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlblocks import tracking
from dlblocks.crossval._fold import FoldSpec, RunConfig
from dlblocks.crossval._report import table_metrics
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.data import SplitDataModule
from dlblocks.runs._figures import curve_figures, prediction_figures, save_figures, score_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def failures(failed: Mapping[FoldSpec, Exception]) -> list[dict[str, Any]]:
    """What ``summary.json`` says of fits that have failed."""
    return [
        {"repeat": job.repeat, "fold": job.fold, "error": repr(error)}
        for job, error in failed.items()
    ]


def result_figures(result: CrossValidationResult, datamodule: SplitDataModule) -> dict[str, Figure]:
    """All that can be drawn of a result, by the names of the files."""
    figures = curve_figures(
        result.histories,
        [row["best_epoch"] for row in result.folds],
        monitor=result.info["monitor"],
    )
    if result.metrics:
        metric = table_metrics(result)[0]
        figures |= score_figure(
            result.run_dir.absolute().name, metric, result.values(metric), result.interval(metric)
        )
    if result.oof is not None:
        figures |= prediction_figures(
            datamodule,
            "val",
            vars(result.oof),
            title="Out-of-fold predictions",
            scores=result.pooled_or_none(),
        )
    return figures


def write_outcome(
    plan: RunConfig,
    result: CrossValidationResult,
    figures: Mapping[str, Figure],
    *,
    checkpoints: bool,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes what is of the whole run, and logs the summary run of its W&B group.

    The summary comes last: what a kill prevents before it, the next call makes up for.

    Args:
        plan: Of the run.
        result: Its result.
        figures: What was drawn of it, by the names of the files.
        checkpoints: Whether W&B gets the models as an artifact.
        rows: The table of the summary run; by default the folds.
    """
    result.write_parts()
    figures = save_figures(plan.run_dir / "figures", figures)
    _log_summary(plan, result, figures, checkpoints, result.folds if rows is None else rows)
    result.write_summary()


def _log_summary(
    plan: RunConfig,
    result: CrossValidationResult,
    figures: Mapping[str, Figure],
    checkpoints: bool,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    summary = result.summary()
    logger = tracking.make_logger(
        "wandb" if plan.logger == "wandb" else None,
        plan.run_dir,
        run_name=f"{plan.run_dir.name}-summary",
        group=plan.run_dir.name,
        job_type="summary",
        run_id=f"{plan.run_id}-summary",
        config=summary["config"],
    )
    if logger is None:
        return
    values: dict[str, Any] = {
        f"{metric}/{name}": value
        for metric, found in summary["metrics"].items()
        for name, value in (
            ("mean", found["mean"]),
            ("std", found["std"]),
            ("interval_low", found["interval"][0]),
            ("interval_high", found["interval"][1]),
        )
    }
    values |= {f"pooled/{name}": value for name, value in summary["pooled"].items()}
    if summary["notes"]:
        values["notes"] = " ".join(summary["notes"])
    paths = [plan.run_dir / row["checkpoint"] for row in result.folds if row["checkpoint"]]
    try:
        tracking.log_summary(
            logger,
            values=values,
            rows=rows,
            figures=figures,
            checkpoints=paths if checkpoints else (),
        )
    finally:
        tracking.finish_logger(logger)
