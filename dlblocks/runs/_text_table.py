"""Lay out numbers and columns as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "


def number(value: float) -> str:
    """Format with four decimals, or four digits where that is better."""
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.2e}" if small else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def width(column: Sequence[str]) -> int:
    """Return the number of characters of the longest cell."""
    return max(map(len, column))


def block(columns: Sequence[Sequence[str]], num_rows: int) -> str:
    """Lay columns out as lines.

    These are the heads, `num_rows` rows between two rules, and any rows below.
    """
    widths = [width(column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return GAP.join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()

    head, *rows = map(line, zip(*columns, strict=True))
    rule = "─" * (sum(widths) + len(GAP) * (len(widths) - 1))
    below = [row for row in rows[num_rows:] if row]
    return "\n".join([head, rule, *rows[:num_rows], rule, *below])
