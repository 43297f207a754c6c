"""Turn rows of new tables into inputs, as in training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import Self

from dlblocks._errors import did_you_mean, listed
from dlblocks._plain import NOT_PLAIN, plain
from dlblocks.data._cells import (
    compacted,
    factorize,
    is_text,
    plain_numbers,
    shortened,
    to_days,
    to_numbers,
)
from dlblocks.data._columns import DAY_AND_MONTH, TIME, Column
from dlblocks.data._csv_chunks import CsvChunks
from dlblocks.data._encode import encode
from dlblocks.data._read_csv import is_number
from dlblocks.data.encoders import ENCODERS, Encoder, Samples, Unseen, what, whole_batches

if TYPE_CHECKING:
    from pandas import DataFrame, Series

TRUTH = ("true", "false")


@dataclass
class TableEncoder(Encoder):
    """Read CSV files, folders of them, DataFrames, and lists of dictionaries.

    Arrays (N, F) are the columns in the order of `columns`, if all of them are numbers.

    Args:
        columns: What becomes of each column; see `dlblocks.data._columns.Column`.
        others: Columns of the training table that are no features, such as the target.
        target: The target.
        impute: Whether missing cells are filled in.
        is_wide: Whether inputs are float64.
        read_args: Arguments of `pandas.read_csv`; None if they are not plain values.
        texts: Columns that are read as text.
        slashed: Columns of dates without a format, some of which are such as 1/31/2024.
    """

    kind: ClassVar[str] = "table"

    columns: list[Column] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    target: str = ""
    impute: bool = False
    is_wide: bool = False
    read_args: dict[str, Any] | None = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    slashed: list[str] = field(default_factory=list)

    @property
    def input_shape(self) -> list[int]:
        return [len(self.feature_names)]

    @property
    def input_dtype(self) -> str:
        return "float64" if self.is_wide else "float32"

    @property
    def feature_names(self) -> list[str]:
        return [name for column in self.columns for name in column.feature_names]

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(Column)}
        columns = [
            Column(**{name: value for name, value in column.items() if name in known})
            for column in values["columns"]
        ]
        return super().from_plain({**values, "columns": columns})

    def read(
        self,
        data: Any,
        rows: int,
        *,
        id_column: str | None = None,
        unseen: Unseen = "refuse",
    ) -> Samples:
        import pandas as pd

        where = "data"
        total: Callable[[], float | None]
        rows = whole_batches(rows)
        if isinstance(data, (str, os.PathLike)):
            where = str(data)
            if self.read_args is None:
                raise ValueError(
                    "read_args of the training are not plain values, and a checkpoint does "
                    f"not have them; read {where} yourself, and give the DataFrame."
                )
            args = {k: v for k, v in self.read_args.items() if k != "thousands"}
            texts = self._text_dtypes()
            if id_column is not None and id_column not in [column.name for column in self.columns]:
                texts[id_column] = str
            reader = CsvChunks(Path(data), args, texts, rows)
            tables: Iterator[DataFrame] = iter(reader)
            seen = [0]

            def total() -> float | None:
                return seen[0] / reader.fraction if reader.fraction else None
        else:
            frame = self._frame(data)
            seen, has_names = [0], not isinstance(frame.index, pd.RangeIndex)
            if has_names and id_column is None:
                id_column = str(frame.index.name or "index")
                frame = frame.reset_index(names=id_column)
            tables = (frame.iloc[start : start + rows] for start in range(0, len(frame), rows))

            def total() -> float | None:
                return len(frame)

        def chunks() -> Iterator[tuple[Tensor, Any]]:
            said = False
            for table in tables:
                self._check_names(where, [str(name) for name in table.columns], id_column)
                if not said:
                    self._say_others(where, [str(name) for name in table.columns], id_column)
                    said = True
                start, seen[0] = seen[0], seen[0] + len(table)
                names = None if id_column is None else table[id_column].to_numpy()
                yield self.encode(table, where, start, unseen), names

        return Samples(chunks(), id_column or "index", total)

    def _text_dtypes(self) -> dict[str, Any]:
        """Return the dtypes by which pandas reads columns of texts."""
        dtypes: dict[str, Any] = dict.fromkeys(self.texts, str)
        for column in self.columns:
            # pandas makes numbers of categories if all of them are some: "01" would be "1".
            may_convert = (is_number(one) or one.lower() in TRUTH for one in column.categories)
            if column.kind != "date" and column.categories and not any(may_convert):
                dtypes[column.name] = "category"  # twice as fast: no text is made of each cell
        return dtypes

    def _frame(self, data: Any) -> DataFrame:
        """Return a data frame with texts as names of columns."""
        import pandas as pd

        names = [column.name for column in self.columns]
        is_rows = isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data)
        if isinstance(data, pd.DataFrame):
            frame = data.copy(deep=False)
        elif is_rows and not isinstance(data, (str, bytes)):
            frame = pd.DataFrame(list(data))
        elif isinstance(data, (np.ndarray, Tensor)):
            array = data.detach().cpu().numpy() if isinstance(data, Tensor) else data
            other = [column.name for column in self.columns if column.kind != "number"]
            if other:
                raise TypeError(
                    f"data is {what(data)}, and column {other[0]!r} of the training table is not "
                    "a number; give a DataFrame."
                )
            if array.ndim != 2 or array.shape[1] != len(names):
                raise ValueError(
                    f"data has shape {array.shape}; expected (N, {len(names)}), with the columns "
                    f"{listed(names)}."
                )
            frame = pd.DataFrame(array, columns=names)
        else:
            raise TypeError(
                f"data is {what(data)}, and the model was trained on a table; give a CSV file, a "
                "DataFrame, or a list of dictionaries."
            )
        frame.columns = [str(name) for name in frame.columns]
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise ValueError(f"data has two columns named {twice[0]!r}; rename one.")
        if not len(frame):
            raise ValueError("data has no rows; there is nothing to predict.")
        return frame

    def _check_names(self, where: str, names: Sequence[str], id_column: str | None) -> None:
        present = set(names)
        missing = [column.name for column in self.columns if column.name not in present]
        if id_column is not None and id_column not in present:
            raise ValueError(
                f"{where} has no id_column={id_column!r}{did_you_mean(id_column, names) or '.'}"
            )
        if not missing:
            return
        known = {column.name for column in self.columns} | set(self.others)
        new = [name for name in names if name not in known]
        hints = (did_you_mean(name, new) for name in missing)
        hint = next((hint for hint in hints if hint), "")
        header = ""
        if (self.read_args or {}).get("header", 0) is None:
            header = (
                " Files without a header need the columns of the training file, in its order; "
                f"that of the target ({self.target!r}) may be left out if it is the last."
            )
        raise ValueError(
            f"{where} has no column {listed(missing)}, which the model was trained on"
            f"{hint or '.'} There are: {listed(names)}.{header}"
        )

    def _say_others(self, where: str, names: Sequence[str], id_column: str | None) -> None:
        known = {column.name for column in self.columns} | {*self.others, id_column}
        more = [name for name in names if name not in known]
        if more:
            rank_zero_info(f"{where}: the model does not know, and ignores, {listed(more)}.")

    # Cells

    def encode(
        self,
        table: DataFrame,
        where: str = "data",
        start: int = 0,
        unseen: Unseen = "refuse",
    ) -> Tensor:
        """Make features of a table as `TabularDataModule` did in training.

        Args:
            table: Any rows; columns are found by their names.
            where: The table's name in messages.
            start: Number of the first row, from 0, for messages.
            unseen: See `read`.

        Returns:
            Shape (N, F), float32 or float64.
        """
        import pandas as pd

        table = table.reset_index(drop=True)
        check = _Cells(self, where, start, unseen)
        cells = {column.name: check(column, table[column.name]) for column in self.columns}
        return encode(pd.DataFrame(cells), self.columns, is_wide=self.is_wide)


@dataclass
class _Cells:
    """Check cells of new rows by the columns of training."""

    encoder: TableEncoder
    where: str
    start: int
    unseen: Unseen

    def __call__(self, column: Column, cells: Series) -> Series:
        if column.kind == "number":
            cells = self._numbers(column, cells)
        else:
            cells = compacted(cells)
            cells = (
                self._dates(column, cells)
                if column.kind == "date"
                else (self._categories(column, cells))
            )
        gone = cells.isna().to_numpy()
        if gone.any() and not self.encoder.impute:
            self._refuse(
                column,
                f"has no value in row {self._row(gone)} ({int(gone.sum())} such rows here)",
                "the model was trained without missing cells: fill them in, or train with "
                "missing='impute'",
            )
        return cells

    def _numbers(self, column: Column, cells: Series) -> Series:
        from pandas.api import types

        args = self.encoder.read_args or {}
        is_category = isinstance(cells.dtype, types.CategoricalDtype)
        if column.name in self.encoder.texts and (is_text(cells) or is_category):
            cure = "numbers must have the format of the training file"
            cells = plain_numbers(
                self.where, cells, args.get("decimal") or ".", args.get("thousands"), cure
            )
        known = types.is_numeric_dtype(cells.dtype) and not types.is_complex_dtype(cells.dtype)
        if known and isinstance(cells.dtype, np.dtype):
            values = cells.to_numpy()
            if values.dtype.kind == "f" and not np.isfinite(values.sum()):
                self._check_finite(column, cells, values)
            return cells
        if not (known or is_text(cells) or is_category):
            self._refuse(column, f"has the dtype {cells.dtype}", "training had numbers")
        numbers = to_numbers(compacted(cells))
        bad = (numbers.isna() & cells.notna()).to_numpy()
        if bad.any():
            self._refuse(
                column,
                f"has {str(cells.iloc[int(bad.argmax())])!r} in row {self._row(bad)}, which is not "
                f"a number ({int(bad.sum())} such rows here)",
                "training had numbers",
            )
        self._check_finite(column, cells, numbers.to_numpy())
        return numbers

    def _check_finite(self, column: Column, cells: Series, values: np.ndarray) -> None:
        infinite = np.isinf(values)
        if infinite.any():
            found = cells.iloc[int(infinite.argmax())]
            self._refuse(
                column, f"is infinite ({found}) in row {self._row(infinite)}", "remove this row"
            )

    def _categories(self, column: Column, cells: Series) -> Series:
        if column.kind != "category":
            return cells  # counts and embeddings have a place for what training had not
        codes, names = factorize(cells)
        known = set(column.categories)
        new = [name for name in names if name not in known]
        if not new:
            return cells
        is_new = np.isin(codes, [names.index(name) for name in new])
        if self.unseen == "missing" and self.encoder.impute:
            return cells.mask(is_new)
        cure = "predict(…, unseen='missing') treats them as missing cells"
        if not self.encoder.impute:
            cure = (
                "remove these rows"
                if self.unseen == "refuse"
                else ("unseen='missing' needs a model that was trained with missing='impute'")
            )
        first = names[int(codes[int(is_new.argmax())])]
        hint = did_you_mean(first, column.categories).removeprefix("; ")
        said = f"{hint} Otherwise " if hint else ""
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        self._refuse(
            column,
            f"has the category {first!r} in row {self._row(is_new)}{more}, which training had not "
            f"({shortened(column.categories)})",
            f"{said}{cure}",
        )
        raise AssertionError  # for the type checker

    def _dates(self, column: Column, cells: Series) -> Series:
        if column.date_format is None:
            given = [str(cell).strip() for cell in cells.dropna().unique()]
            pairs = [(one, found) for one in given if (found := DAY_AND_MONTH.match(one))]
            odd = [one for one in given if TIME.fullmatch(one)]
            if column.name not in self.encoder.slashed:
                odd += [one for one, _ in pairs]
            odd += [one for one, found in pairs if int(found[1]) > 12]
            if odd:
                is_odd = cells.astype(str).str.strip().isin(odd).to_numpy()
                self._refuse(
                    column,
                    f"has {odd[0]!r} in row {self._row(is_odd)}, a date of another format than in "
                    "training",
                    "write dates as the training file does",
                )
        bad = (to_days(cells, column.date_format).isna() & cells.notna()).to_numpy()
        if bad.any():
            self._refuse(
                column,
                f"has {str(cells.iloc[int(bad.argmax())])!r} in row {self._row(bad)}, which is "
                "not a date",
                f"training had dates{f' ({column.date_format})' if column.date_format else ''}",
            )
        return cells

    def _row(self, mask: np.ndarray) -> int:
        return self.start + int(mask.argmax()) + 1

    def _refuse(self, column: Column, what: str, cure: str) -> None:
        raise ValueError(f"{self.where}: column {column.name!r} {what}; {cure}.")


ENCODERS[TableEncoder.kind] = TableEncoder


def plain_read_args(read_args: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return arguments of `pandas.read_csv` as plain values.

    None if some cannot be such values.
    """

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: named(one) for name, one in value.items()}
        if isinstance(value, type):
            return value.__name__
        return value if isinstance(value, str) else str(value)

    given = dict(read_args)
    if "dtype" in given:
        given["dtype"] = named(given["dtype"])
    found = plain(given, lists=True)
    return None if found is NOT_PLAIN else found
