"""A cross-validation as a table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dlblocks.tables import GAP, block, number, width

if TYPE_CHECKING:
    from dlblocks.crossval.result import CrossValidationResult

WIDTH = 100
# The scores that people ask for first.
FIRST = ("val/accuracy", "val/f1", "val/rmse", "val/r2", "val/loss")


def table(result: CrossValidationResult, beside: Mapping[str, Sequence[str]] | None = None) -> str:
    """What `CrossValidationResult.table` returns.

    Args:
        result: The result.
        beside: Further columns, before the metrics: a cell for each fold, and one for the means.
    """
    beside, pooled = beside or {}, result.pooled_or_none()
    shown = set()
    columns = []  # head, a cell for each fold, mean ± std, interval, pooled
    for name in table_metrics(result):
        over_all = pooled.get(name.removeprefix("val/"))
        if over_all is not None:
            shown.add(name.removeprefix("val/"))
        columns.append([
            name,
            *(number(row[name]) for row in result.folds),
            f"{number(result.mean(name))} ± {number(result.std(name))}",
            said_interval(result, name),
            "" if over_all is None else number(over_all),
        ])  # fmt: skip
    times = [row["seconds"] for row in result.folds]
    seconds = ["seconds", *(f"{t:.1f}" for t in times), f"{sum(times):.1f} in all", "", ""]
    names = _names(result, bool(shown))
    # Of a nested cross-validation, or without a selection, the last epoch is the one that counts.
    is_last = bool(beside) or result.info.get("select") == "last"
    epochs = [
        str(row["epochs"]) if is_last else f"{row['epochs']} (best {row['best_epoch']})"
        for row in result.folds
    ]
    lead = [["epochs", *epochs, _missing(result), "", ""]]
    lead += [[name, *cells, "", ""] for name, cells in beside.items()]
    first, *more = _blocks(names, lead, columns, reserved=width(seconds) + len(GAP))
    blocks = [_block(part, len(result.folds)) for part in [[*first, seconds], *more]]
    others = {name: value for name, value in pooled.items() if name not in shown}
    said = ", ".join(f"{name} {number(value)}" for name, value in others.items())
    below = [f"pooled: {said}"] if others else []
    return "\n\n".join(blocks) + "".join(f"\n{line}" for line in [*below, *noted(result)])


def _names(result: CrossValidationResult, any_pooled: bool) -> list[list[str]]:
    """The columns that say which row it is."""
    folds = result.folds
    below = ["mean ± std", "95 % interval", "pooled" if any_pooled else ""]
    columns = [["fold", *(str(row["fold"]) for row in folds), *below]]
    if len({row["repeat"] for row in folds}) > 1:
        columns.insert(0, ["repeat", *(str(row["repeat"]) for row in folds), "", "", ""])
    if any("group" in row for row in folds):
        groups = (_shortened(row.get("group", "")) for row in folds)
        columns.append(["group", *groups, "", "", ""])
    return columns


def _blocks(
    names: list[list[str]], lead: list[list[str]], columns: list[list[str]], reserved: int
) -> list[list[list[str]]]:
    """Put the columns into blocks of at most `WIDTH` characters.

    Each block begins with `names`. The first has `lead` too, and room for `reserved` characters.
    """
    blocks = [[*names, *lead]]
    for column in columns:
        room = WIDTH - (reserved if len(blocks) == 1 else 0)
        used = sum(width(c) + len(GAP) for c in blocks[-1])
        if used + width(column) > room and len(blocks[-1]) > len(names):
            blocks.append([*names])
        blocks[-1].append(column)
    return blocks


def _block(columns: list[list[str]], num_folds: int) -> str:
    lines = block(columns, num_folds).split("\n")
    if lines[-1].strip() == "pooled":  # of other blocks
        lines.pop()
    return "\n".join(lines)


def _shortened(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _missing(result: CrossValidationResult) -> str:
    """``"4 of 5 folds"`` where folds have failed."""
    failed = result.info.get("failed", [])
    return f"{len(result.folds)} of {len(result.folds) + len(failed)} folds" if failed else ""


def noted(result: CrossValidationResult) -> list[str]:
    """The notes of a result, a line each."""
    return [f"note: {' '.join(note.split())}" for note in result.notes]


def said_interval(result: CrossValidationResult, metric: str) -> str:
    """``"0.8911 … 0.9534"``."""
    low, high = result.interval(metric)
    return f"{number(low)} … {number(high)}"


def table_metrics(result: CrossValidationResult) -> list[str]:
    """All metrics of the folds, the monitor first, then those of `FIRST`."""
    names = result.metrics
    monitor = result.info.get("monitor")
    return [n for n in dict.fromkeys([monitor, *FIRST, *names]) if n in names]
