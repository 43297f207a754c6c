"""Make, draw, write and log the result of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dlblocks import tracking
from dlblocks.crossval._fold_config import FoldConfig, FoldSpec
from dlblocks.crossval._out_of_fold import join
from dlblocks.crossval._report import table_metrics
from dlblocks.crossval._splits import folding, limit_note, predictions_note
from dlblocks.crossval.results import CrossValidationResult
from dlblocks.data import SplitDataModule
from dlblocks.metrics import metric_ranges
from dlblocks.runs._figures import curve_figures, prediction_figures, save_figures, score_figure
from dlblocks.runs._fits import FitResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AnyResult = TypeVar("AnyResult", bound=CrossValidationResult)


def make_result(
    cls: type[AnyResult],
    config: FoldConfig,
    data: SplitDataModule,
    splits: Mapping[str, Any],
    done: Sequence[FitResult],
    failed: Mapping[FoldSpec, Exception],
    *,
    notes: Sequence[str],
    seconds: float,
    described: Mapping[str, Any],
    given: Mapping[str, Any],
    **own: Any,
) -> AnyResult:
    """Make the result of a run from those of its folds.

    Args:
        cls: Its class.
        config: Of the run.
        data: The data.
        splits: What `plan_splits` returned.
        done: Results of the folds that have not failed.
        failed: The errors of the others.
        notes: Warnings of the run.
        seconds: Duration of the run.
        described: What `describe` returned.
        given: Arguments that the result needs again.
        **own: Further entries of ``summary.json``.
    """
    rows = [fold.row for fold in done]
    errors = [{**spec.place, "error": repr(error)} for spec, error in failed.items()]
    result = cls(
        run_dir=config.run_dir,
        folds=rows,
        oof=join(done, config.task, config.run_dir),
        histories=[fold.history for fold in done],
        info={
            "num_folds": config.num_folds,
            "repeats": splits["repeats"],
            "splits": folding(data, splits),
            "monitor": config.monitor,
            "mode": config.mode,
            "select": config.select,
            "selection_fraction": config.selection_fraction,
            "class_names": data.class_names,
            **({"task": config.task} if config.task else {}),
            "data": data.description(),
            "duplicates": data.count_duplicates(config.num_folds),
            "notes": [
                *notes,
                *limit_note(rows, splits),
                *predictions_note([fold.reason for fold in done]),
            ],
            **({"failed": errors} if errors else {}),
            **own,
            "seconds": seconds,
            "config": {"logger": config.logger, **described},
            "versions": tracking.versions(),
        },
        given={
            "make_model": config.make_model,
            "datamodule": data,
            "make_callbacks": config.make_callbacks,
            "trainer": config.trainer,
            "seed": config.seed,
            **given,
        },
    )
    result.info["ranges"] = metric_ranges(result.metrics, config.loss_range)
    return result


def result_figures(result: CrossValidationResult, datamodule: SplitDataModule) -> dict[str, Figure]:
    """Draw all figures of a result, by the names of their files."""
    figures = curve_figures(
        result.histories,
        [row["best_epoch"] for row in result.folds],
        monitor=result.info["monitor"],
    )
    if result.metrics:
        metric = table_metrics(result.metrics, result.info["monitor"])[0]
        figures |= score_figure(
            result.run_dir.absolute().name, metric, result.values(metric), result.interval(metric)
        )
    if result.oof is not None:
        figures |= prediction_figures(
            datamodule,
            "val",
            result.oof,
            title="Out-of-fold predictions",
            scores=result.pooled_or_none(),
        )
    return figures


def write_outcome(
    config: FoldConfig,
    result: CrossValidationResult,
    figures: Mapping[str, Figure],
    *,
    checkpoints: bool,
    rows: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write the files of the run and log its W&B summary.

    ``summary.json`` comes last, so that after a kill the next call writes what is missing.

    Args:
        config: Of the run.
        result: Its result.
        figures: What was drawn of it, by the names of the files.
        checkpoints: Whether W&B gets the models as an artifact.
        rows: The table of the summary run; by default the folds.
    """
    result.write_parts()
    figures = save_figures(config.run_dir / "figures", figures)
    summary = result.summary()
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
    paths = [config.run_dir / row["checkpoint"] for row in result.folds if row["checkpoint"]]
    config.log_summary(
        summary["config"],
        values,
        result.folds if rows is None else rows,
        figures,
        paths if checkpoints else (),
    )
    result.write_summary()
