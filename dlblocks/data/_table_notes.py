"""Remarks on a table that a user should read before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dlblocks.data._cells import shortened
from dlblocks.data._columns import Column
from dlblocks.data._encode import encode

if TYPE_CHECKING:
    import pandas as pd

MAX_NOTES = 5  # of one kind
AS_VALUES = 'if that is a value, set keep_default_na=False and na_values=[""]'


def table_notes(
    columns: Sequence[Column], row_numbers: Sequence[str], spellings: Mapping[str, str]
) -> list[str]:
    """Return remarks on the columns.

    Args:
        columns: The columns that are features.
        row_numbers: Columns that are left out, since they hold only numbers of rows.
        spellings: How the file writes missing cells of a column that are filled in.
    """
    notes = [
        f"column {name!r} holds the numbers or names of the rows and is left out"
        for name in row_numbers
    ]
    notes += [
        f"missing cells of column {name!r} are filled in{said}; {AS_VALUES}"
        for name, said in spellings.items()
    ]
    remarked: dict[str, list[str]] = {}
    for column in columns:
        if column.remark:
            remarked.setdefault(column.remark, []).append(column.name)
    for remark, names in remarked.items():
        if len(names) > MAX_NOTES:
            notes.append(f"{len(names)} columns: each {remark}: {shortened(names)}")
            continue
        for name in names:
            notes.append(f"column {name!r} {remark}; if it tells nothing, set drop=[{name!r}]")
    return notes


def order_notes(table: pd.DataFrame, columns: Sequence[Column]) -> list[str]:
    """Return a remark if rows are not in the order of time."""
    for column in [column for column in columns if column.kind == "date"][:1]:
        first = encode(table[[column.name]], [column])[:, 0]
        if bool((first[1:] < first[:-1]).any()):
            return [
                f"rows are not in the order of column {column.name!r}, which split='time_series' "
                "takes for granted; sort them"
            ]
    return []
