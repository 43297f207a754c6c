"""A cross-validation as a table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlblocks.crossval.result import CrossValidationResult


def table(result: CrossValidationResult, beside: Mapping[str, Sequence[str]] | None = None) -> str:
    """What `CrossValidationResult.table` returns.

    Args:
        result: The result.
        beside: Further columns, before the metrics: a cell for each fold, and one for the means.
    """
    beside = beside or {}
    chosen = table_metrics(result.metrics)
    repeated = len({row["repeat"] for row in result.folds}) > 1
    head = [*(["repeat"] if repeated else []), "fold", "epochs", *beside, *chosen, "seconds"]
    rows = [
        [
            *([str(row["repeat"])] if repeated else []),
            str(row["fold"]),
            str(row["epochs"]) if beside else f"{row['epochs']} (best {row['best_epoch']})",
            *(cells[i] for cells in beside.values()),
            *(number(row[name]) for name in chosen),
            f"{row['seconds']:.1f}",
        ]
        for i, row in enumerate(result.folds)
    ]
    seconds = sum(row["seconds"] for row in result.folds)
    start = [""] if repeated else []
    means = [f"{number(result.mean(name))} ± {number(result.std(name))}" for name in chosen]
    ends = [result.interval(name) for name in chosen]
    pooled = result.pooled_or_none()
    last, blank = [cells[-1] for cells in beside.values()], [""] * len(beside)
    below = [
        [*start, "mean ± std", _missing(result), *last, *means, f"{seconds:.1f} in all"],
        [*start, "95 % interval", "", *blank, *(f"{number(a)} … {number(b)}" for a, b in ends), ""],
    ]
    over_all = [pooled.get(name.removeprefix("val/")) for name in chosen]
    if any(value is not None for value in over_all):
        cells = ["" if value is None else number(value) for value in over_all]
        below.append([*start, "pooled", "", *blank, *cells, ""])
    widths = [max(len(line[i]) for line in [head, *rows, *below]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(head), rule, *map(line, rows), rule, *map(line, below)])


def _missing(result: CrossValidationResult) -> str:
    """``"4 of 5 folds"`` where folds have failed."""
    failed = result.info.get("failed", [])
    return f"{len(result.folds)} of {len(result.folds) + len(failed)} folds" if failed else ""


def number(value: float) -> str:
    """Four decimals, or four digits where that would say too little or too much."""
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.2e}" if small else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def table_metrics(names: Sequence[str]) -> list[str]:
    """The metrics worth a column: the score that people ask for, and the loss."""
    first = [n for n in ("val/accuracy", "val/f1", "val/rmse", "val/r2", "val/loss") if n in names]
    return first or list(names)[:4]
