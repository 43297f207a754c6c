"""Results as text: numbers, columns, one line, and a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

GAP = "  "


class Scored(Protocol):
    """A result of several fits."""

    run_dir: Path

    @property
    def metrics(self) -> list[str]: ...

    def mean(self, metric: str) -> float: ...

    def std(self, metric: str) -> float: ...


def number(value: float) -> str:
    """Four decimals, or four digits where that would say too little or too much."""
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.2e}" if small else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def width(column: Sequence[str]) -> int:
    """Number of characters of the longest cell."""
    return max(map(len, column))


def block(columns: Sequence[Sequence[str]], num_rows: int) -> str:
    """Columns as lines: the heads, `num_rows` rows between two rules, and what is below."""
    widths = [width(column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return GAP.join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()

    head, *rows = map(line, zip(*columns, strict=True))
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    below = [row for row in rows[num_rows:] if row]
    return "\n".join([head, rule, *rows[:num_rows], rule, *below])


def one_line(result: Scored, fits: str, monitor: str | None) -> str:
    """Name, fits and the monitor's mean ± std: ``<BaggingResult 'digits': 3 members, …>``."""
    said = [fits]
    if monitor in result.metrics:
        said.append(f"{monitor} {number(result.mean(monitor))} ± {number(result.std(monitor))}")
    return f"<{type(result).__name__} {result.run_dir.absolute().name!r}: {', '.join(said)}>"


def as_html(table: str) -> str:
    """A table of text for a notebook, whatever its names hold."""
    return f"<pre>{html.escape(table)}</pre>"
