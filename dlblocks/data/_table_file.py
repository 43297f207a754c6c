"""Read tables of CSV files and of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlblocks.data._cells import compacted, count_missing, is_text, plain_numbers, rounded_cell
from dlblocks.data._read_csv import missing_texts, read_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class TableFile:
    """A CSV file, or a folder of them.

    Attributes:
        path: The file or folder.
        read_args: Arguments of `pandas.read_csv`.
        texts: Columns to read as text.
    """

    path: Path
    read_args: Mapping[str, Any]
    texts: Sequence[str]

    def read(self, more_texts: Sequence[str] = ()) -> pd.DataFrame:
        """Read the table, with some more columns as text."""
        dtype = self.read_args.get("dtype", {})
        if isinstance(dtype, Mapping):
            dtype = {**dict.fromkeys([*self.texts, *more_texts], str), **dtype}
        args = {k: v for k, v in self.read_args.items() if k != "thousands"}
        return read_table(self.path, {**args, "dtype": dtype})

    def read_numbers(
        self, table: pd.DataFrame, target: str, others: Sequence[str | None]
    ) -> set[str]:
        """Read numbers of other formats in place.

        Columns to read as text, and `others`, are left out.

        pandas would read 01.02.2024 as a number with thousands='.'.

        Returns:
            The columns that became numbers.
        """
        found = set[str]()
        decimal, thousands = self.read_args.get("decimal"), self.read_args.get("thousands")
        if decimal in (None, ".") and thousands is None:
            return found
        for name in set(table.columns).difference(self.texts, others):
            if is_text(table[name]):
                cure = (
                    "correct it" if thousands else "set read_args={'thousands': '.'} if it has some"
                )
                if name != target:
                    cure += f", or categorical=[{name!r}] if it is a category"
                table[name] = plain_numbers(
                    str(self.path), table[name], decimal or ".", thousands, cure
                )
                if not is_text(table[name]):
                    found.add(name)
        return found

    def keep_digits(self, table: pd.DataFrame) -> None:
        """Read long whole numbers as text if missing cells made them floats."""
        floats = [name for name in table.columns if table[name].dtype == np.float64]
        names = [n for n in floats if count_missing(table[n]) and table[n].abs().max() > 2**53]
        texts = self.read(names) if names else table
        for name in names:
            if is_text(texts[name]) and rounded_cell(compacted(texts[name])) is not None:
                table[name] = texts[name]

    def spelling_of_missing(self, name: str) -> str:
        """Tell how the file writes missing cells, unless they are empty."""
        counts = missing_texts(self.path, self.read_args, name).most_common(4)
        return ", written " + ", ".join(f"{text!r} ({n})" for text, n in counts) if counts else ""


def read_sklearn(name: str) -> tuple[pd.DataFrame, list[str] | None]:
    """Return a data set of scikit-learn, and the names of its classes."""
    from sklearn import datasets

    # Unscaled, because scikit-learn's scaling uses the rows that are held out here.
    unscaled = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(as_frame=True, **unscaled)
    names = None if name == "diabetes" else [str(one) for one in bunch.target_names]
    return bunch.frame, names
