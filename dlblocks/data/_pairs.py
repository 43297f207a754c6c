"""Read pairs of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlblocks._errors import did_you_mean
from dlblocks._vocabulary import Level
from dlblocks.data._pair_sets import SETS
from dlblocks.data._read_csv import read_table

Text = str | Sequence[str]


def rows_of(column: Any) -> Iterator[Any]:
    """Yield the rows of a dense or ragged column."""
    return (column[i] for i in range(len(column)))


def joined(text: Text, level: Level) -> str:
    """Return a text, or symbols as a text."""
    return text if isinstance(text, str) else ("" if level == "character" else " ").join(text)


def read_pairs(
    argument: str, data: Any, names: tuple[str, str], read_args: Mapping[str, Any]
) -> list[tuple[Text, Text]]:
    """Read pairs of texts.

    Args:
        argument: What `data` is called in messages.
        data: As for `SequencePairsDataModule`.
        names: Columns of sources and targets.
        read_args: Arguments of `pandas.read_csv`.
    """
    if isinstance(data, str) and data in SETS:
        found: list[tuple[Text, Text]] = SETS[data][0]()
        return found
    if isinstance(data, str) or hasattr(data, "columns"):
        columns = [read_column(argument, data, name, read_args) for name in names]
        return list(zip(*columns, strict=True))
    pairs = []
    for row, pair in enumerate(data):
        if isinstance(pair, (str, Mapping)) or len(pair) != 2:
            raise ValueError(f"{argument} has {pair!r} in row {row}; give pairs (source, target).")
        for text in pair:
            check_text(argument, row, text)
        pairs.append((pair[0], pair[1]))
    return pairs


def check_text(argument: str, row: int, text: Any) -> None:
    """Raise a `TypeError` for anything but a text or symbols."""
    if isinstance(text, str) or (
        isinstance(text, Sequence) and all(isinstance(each, str) for each in text)
    ):
        return
    raise TypeError(
        f"{argument} has a {type(text).__name__} ({text!r}) in row {row}; give texts, or lists of "
        "symbols, which are texts. For numbers of tokens use ArrayDataModule."
    )


def check_symbols(argument: str, row: int, name: str, text: Text, level: Level) -> None:
    """Raise a `ValueError` for symbols that joined texts cannot keep apart."""
    if isinstance(text, str):
        return
    for symbol in text:
        if len(symbol) != 1 if level == "character" else symbol.split() != [symbol]:
            cure = f"set {name}_level='word'" if symbol.split() == [symbol] else "rename it"
            rule = "one character" if level == "character" else "a word without spaces"
            raise ValueError(
                f"{argument} has the symbol {symbol!r} in a {name} in row {row}, but with "
                f"{name}_level={level!r} a symbol is {rule}; {cure}."
            )


def read_column(argument: str, data: Any, name: str, read_args: Mapping[str, Any]) -> list[Text]:
    """Return the texts of a column of a CSV file or DataFrame."""
    where = argument
    if isinstance(data, str):
        # "null" and "nan" are words as others.
        data, where = read_table(Path(data), {"dtype": str, "na_filter": False, **read_args}), data
    if name not in data.columns:
        known = [str(column) for column in data.columns]
        hint = did_you_mean(name, known) or f"; there are {', '.join(map(repr, known[:8]))}."
        raise ValueError(f"{where} has no column {name!r}{hint}")
    found = list(data[name])
    for row, text in enumerate(found):
        check_text(f"{where}, column {name!r},", row, text)
    return found
