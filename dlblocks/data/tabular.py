"""Tables of scikit-learn, CSV files and DataFrames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dlblocks.data._cells import (
    compacted,
    is_categorical,
    is_row_numbers,
    is_text,
    refuse_missing,
    shortened,
    text,
)
from dlblocks.data._columns import Column, ColumnKind, ColumnReader, unclear_dates
from dlblocks.data._encode import completion, encode
from dlblocks.data._read_csv import check_name, check_read_args
from dlblocks.data._table_encoder import TableEncoder, plain_read_args
from dlblocks.data._table_file import TableFile, read_sklearn
from dlblocks.data._table_notes import AS_VALUES, order_notes, table_notes
from dlblocks.data._table_roles import (
    check_roles,
    read_folds,
    read_groups,
    read_targets,
    read_weights,
)
from dlblocks.data._threads import THREADS_PAY, in_threads
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder
from dlblocks.data.source import Source

if TYPE_CHECKING:
    import pandas as pd

# Kinds of the columns that arguments name.
COLUMN_KINDS: dict[str, ColumnKind] = {
    "numeric": "number", "categorical": "category", "dates": "date", "counts": "counts",
    "embed": "embedding",
}  # fmt: skip
DATASETS = ("iris", "wine", "breast_cancer", "diabetes")


class TabularDataModule(DataModule):
    """A table as features (N, F) and classes or values.

    The table is a data set of scikit-learn (``"iris"``, ``"wine"``, ``"breast_cancer"``: classes;
    ``"diabetes"``: values), a CSV file, a folder of CSV files, or a pandas DataFrame.

    Columns are converted to features. `summary`, which is printed before training, shows how:

    - A column of numbers or truth values is one feature.
    - A column of texts is categories, with one feature of 0 and 1 for each. The categories are
      those of the whole table, so that every fold has the same features.
    - A column without a name that holds the numbers or names of the rows, as written by R and
      pandas, is left out.

    If a column is unclear, an error names the arguments to choose from. This happens for dates,
    identifiers, more than 50 categories, and numbers with some cells that are not.

    Missing cells are refused, or imputed from the training part of the fold: numbers by the median,
    categories by the most frequent. The texts that mean a missing cell are those of pandas (empty,
    NA, NaN, None, null, …), unless `na_values` and `keep_default_na` change them. Rows whose target
    is missing are always refused.

    Targets are classes if they are texts, truth values, or whole numbers with at most 20 different
    values; set `task` to override this. Classes can have any values. They are sorted by number if
    they are numbers, else by name, and `class_names` has their names.

    Args:
        data: Name of a data set of scikit-learn, path of a CSV file or of a folder of them, or a
            DataFrame, whose index is left out.
        target: The column to predict.
        group: A column of groups, none of which is in two parts. It is not a feature.
        fold_column: A column of folds, for ``split="predefined"``. Rows with an empty cell or -1
            are always used for training. It is not a feature.
        weights: A column with the weight of each row in training and in every score, numbers >= 0.
            It is not a feature.
        groups: ``"duplicates"`` keeps rows with exactly equal features together, so that none has a
            copy in another part or fold.
        drop: Columns to leave out.
        numeric: Columns of numbers, even if they look like identifiers.
        categorical: Columns of categories, even if they look like numbers or dates, or have more
            than 50 categories. Their cells are read as text: "01" is not "1".
        dates: Columns of dates, a list or a dictionary with their formats, such as
            ``{"signup": "%d.%m.%Y", "login": None}``, where None is inferred. They become days
            since 1970 (UTC), month (1 to 12), weekday (0 is Monday), and the hour if there is a
            time of day.
        counts: Columns of many categories that become one feature, the category's share of the
            training rows of the fold.
        embed: Columns of many categories that become numbers, for a model with
            ``embeddings=data.embeddings``. 0 means a missing cell, or a category that no training
            row has.
        task: ``"classification"``, ``"regression"``, or None to decide by the target.
        missing: ``"refuse"`` or ``"impute"``.
        sep: Separator of a file's columns. By default a tab in ``.tsv``, else a comma.
        decimal: The decimal point of a file's numbers.
        encoding: Encoding of a file. The default is UTF-8.
        na_values: More texts that mean a missing cell, a list or a dictionary by column.
        keep_default_na: Whether to use pandas' own list of such texts too. If "None" or "NA" are
            values, set ``keep_default_na=False, na_values=[""]``.
        read_args: Further arguments of `pandas.read_csv`, such as ``{"skiprows": 2}``.
        test_fraction: Share held out first as test set, outside every fold.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Attributes:
        table_columns: The columns that are features and their kinds, after the first use.

    Raises:
        FileNotFoundError: The file or folder does not exist. It is raised at the first use of the
            data.
        ValueError: An argument of `read_csv` is unknown. Or, at the first use of the data, a column
            is unknown or unclear, a file cannot be read, or a cell is missing. Rows are counted
            from 1, the first after the header.

    Example:
        >>> data = TabularDataModule("wine")
        >>> data.in_features, data.class_names
        (13, ['class_0', 'class_1', 'class_2'])
    """

    def __init__(
        self,
        data: str | Path | pd.DataFrame,
        target: str | None = None,
        *,
        group: str | None = None,
        fold_column: str | None = None,
        weights: str | None = None,
        groups: Literal["duplicates"] | None = None,
        drop: Sequence[str] = (),
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        dates: Sequence[str] | dict[str, str | None] = (),
        counts: Sequence[str] = (),
        embed: Sequence[str] = (),
        task: Literal["classification", "regression"] | None = None,
        missing: Literal["refuse", "impute"] = "refuse",
        sep: str | None = None,
        decimal: str = ".",
        encoding: str | None = None,
        na_values: Sequence[str] | dict[str, list[str]] | None = None,
        keep_default_na: bool = True,
        read_args: dict[str, Any] | None = None,
        test_fraction: float = 0.2,
        **kwargs: Any,
    ) -> None:
        import pandas as pd

        super().__init__(test_fraction=test_fraction, groups=groups, **kwargs)
        if group is not None and groups is not None:
            raise ValueError(
                f"group={group!r} and groups={groups!r} cannot both be kept whole; give one."
            )
        self.is_frame = isinstance(data, pd.DataFrame)
        if not isinstance(data, (str, Path, pd.DataFrame)):
            raise TypeError(
                f"data is a {type(data).__name__}; give {', '.join(DATASETS)}, a path, or a pandas "
                "DataFrame. For arrays there is ArrayDataModule."
            )
        data = data if self.is_frame else str(data)  # plain, so that any checkpoint loads
        if isinstance(na_values, tuple):
            na_values = list(na_values)
        reading = {
            "sep": sep, "decimal": decimal, "encoding": encoding, "na_values": na_values,
            "keep_default_na": keep_default_na,
        }  # fmt: skip
        defaults = {"decimal": ".", "keep_default_na": True}
        used = {k: v for k, v in reading.items() if v is not None and v != defaults.get(k)}
        asked = {
            "drop": drop, "numeric": numeric, "categorical": categorical, "dates": dates,
            "counts": counts, "embed": embed,
        }  # fmt: skip
        self.asked = {name: [str(one) for one in given] for name, given in asked.items()}
        self.date_formats = dict(dates) if isinstance(dates, Mapping) else dict.fromkeys(dates)
        check_read_args("read_args", read_args or {})
        for name in (read_args or {}).keys() & reading.keys():
            raise ValueError(f"read_args has {name!r}; give it as {name}=.")
        self.built_in = isinstance(data, str) and data in DATASETS
        if self.built_in or self.is_frame:
            without_effect: dict[str, Any] = {**used, "read_args": read_args}
            if self.built_in:
                without_effect |= {"target": target, "group": group}
                without_effect |= {"fold_column": fold_column, "weights": weights, "task": task}
            for name, value in without_effect.items():
                if value is not None:
                    what = f"data={data!r}" if self.built_in else "a DataFrame"
                    raise ValueError(f"{name}={value!r} has no effect on {what}; leave it out.")
        else:
            check_name("data", str(data), DATASETS)
        if not self.built_in and target is None:
            raise ValueError("target=None: name the column to predict, target='…'.")
        self.data = data
        self.target = "target" if self.built_in else str(target)
        self.group, self.fold_column, self.weights = group, fold_column, weights
        self.task = task
        self.missing = missing
        self.read_args = {**used, **(read_args or {})}
        self.table_columns: list[Column] = []
        self._others: dict[str, tuple[str, str]] = {}  # columns that are not features: kind, use
        self._texts_read: set[str] = set()  # columns that were read as texts
        self._slashed: list[str] = []  # see `unclear_dates`
        self._notes: list[str] = []
        self.save_hyperparameters(ignore=["data"] if self.is_frame else [])

    # The table

    def load(self) -> Source:
        table, class_names = self._read()
        declared = {
            name: [text(one) for one in table[name].cat.categories]
            for name in table.columns[table.dtypes == "category"]
        }
        table = table.drop(columns=self.asked["drop"])
        formatted = set[str]()
        if self._file is not None:
            others = self.group, self.fold_column
            formatted = self._file.read_numbers(table, self.target, others)
            self._file.keep_digits(table)
        for cells in in_threads(
            compacted,
            [cells for _, cells in table.items() if is_text(cells) or is_categorical(cells)],
            pays=len(table) > THREADS_PAY,
        ):
            table[cells.name] = cells
        where = "data" if self._file is None else str(self.data)
        target, labels = self.target, table[self.target]
        for name in (target, self.group, self.weights):
            if name is not None:
                self._refuse_missing(where, table, name)
        targets, found = read_targets(where, labels, self.task, is_frame=self.is_frame)
        groups = None if self.group is None else read_groups(table[self.group])
        folds = None if self.fold_column is None else read_folds(table[self.fold_column])
        weights = None if self.weights is None else read_weights(where, table[self.weights])
        self._set_aside(table)
        features = [name for name in table.columns if name not in self._others]
        if not features:
            raise ValueError(f"{where} has no column beside target={target!r} to learn from.")
        kinds = {
            name: kind for argument, kind in COLUMN_KINDS.items() for name in self.asked[argument]
        }
        impute = self.missing == "impute"
        reader = ColumnReader(where, kinds, self.date_formats, declared, impute, self.is_frame)
        self.table_columns = columns = reader.read_all(table[name] for name in features)
        self._notes = table_notes(
            columns,
            [name for name, (kind, _) in self._others.items() if kind == "row numbers"],
            {
                column.name: said
                for column in columns
                if column.missing and column.kind != "number"
                if (said := self._spelled(table, column.name))
            },
        )
        if self.split == "time_series":
            self._notes += order_notes(table, columns)
        self._texts_read = formatted | {
            column.name for column in columns if column.kind != "number"
        }
        self._slashed = unclear_dates(columns, table)
        inputs = encode(table, columns)
        names = [name for column in columns for name in column.feature_names]
        needed = impute or any(column.kind in ("counts", "embedding") for column in columns)
        return Source(
            inputs,
            targets,
            class_names=class_names or found,
            groups=groups,
            folds=folds,
            feature_names=names,
            weights=weights,
            completion=partial(completion, columns=columns, impute=impute) if needed else None,
            categories={
                names.index(column.name): len(column.categories)
                for column in columns
                if column.kind == "embedding"
            },
        )

    @property
    def _file(self) -> TableFile | None:
        """The file or folder of the table, None for one in memory."""
        if self.is_frame or self.built_in:
            return None
        kinds = "categorical", "counts", "embed", "dates"
        texts = [name for kind in kinds for name in self.asked[kind]]
        return TableFile(Path(str(self.data)), self.read_args, texts)

    def _read(self) -> tuple[pd.DataFrame, list[str] | None]:
        """Return the table, and the names of its classes if known."""
        if self.built_in:
            return read_sklearn(str(self.data))
        if self._file is None:
            frame: Any = self.data
            table = frame.reset_index(drop=True)
            table.columns = [str(name) for name in table.columns]
            twice = table.columns[table.columns.duplicated()]
            if len(twice):
                raise ValueError(f"data has two columns named {twice[0]!r}; rename one.")
        else:
            table = self._file.read()
        check_roles(list(table.columns), self._own(), self.asked)
        return table, None

    def _own(self) -> dict[str, str | None]:
        """Return the columns that are not features, by argument."""
        return {
            "weights": self.weights, "fold_column": self.fold_column, "group": self.group,
            "target": self.target,
        }  # fmt: skip

    def _set_aside(self, table: pd.DataFrame) -> None:
        """Collect the columns that are not features."""
        self._others = {name: ("dropped", "nothing") for name in self.asked["drop"]}
        kept = {name for argument, names in self.asked.items() for name in names}
        for name in table.columns:
            if name not in kept and is_row_numbers(name, table[name]):
                self._others[name] = ("row numbers", "nothing")
        for argument, name in self._own().items():
            if name is not None:
                self._others[name] = (argument.removesuffix("_column"), "no feature")

    def _refuse_missing(self, where: str, table: pd.DataFrame, name: str) -> None:
        said = self._spelled(table, name)
        cure = "remove or correct these rows"
        refuse_missing(where, table[name], f"{cure}; {AS_VALUES}" if said else cure, said)

    def _spelled(self, table: pd.DataFrame, name: str) -> str:
        """Tell how the file writes missing cells, unless they are empty."""
        if self._file is None or not table[name].isna().any():
            return ""
        return self._file.spelling_of_missing(name)

    # Description

    @property
    def column_features(self) -> dict[str, list[int]]:
        _ = self.source
        stops = accumulate(len(column.feature_names) for column in self.table_columns)
        return {
            column.name: [*range(stop - len(column.feature_names), stop)]
            for column, stop in zip(self.table_columns, stops, strict=True)
        }

    def _make_encoder(self, **shared: Any) -> Encoder:
        # What only this table has is no part of it.
        columns = [replace(column, missing=0, remark="") for column in self.table_columns]
        if not columns:  # a subclass has a `load` of its own
            return super()._make_encoder(**shared)
        return TableEncoder(
            **shared,
            columns=columns,
            others=list(self._others),
            target=self.target,
            impute=self.missing == "impute",
            is_wide=self.source.inputs.dtype == torch.float64,
            read_args=plain_read_args(self.read_args),
            texts=[column.name for column in columns if column.name in self._texts_read],
            slashed=self._slashed,
        )

    @property
    def embeddings(self) -> dict[int, int]:
        """The number of categories of each feature of `embed`, by position."""
        return self.source.categories

    def summary(self) -> pd.DataFrame:
        """Return a table of the columns, their missing cells and features."""
        import pandas as pd

        _ = self.source
        filled = {"number": "median", "date": "median", "category": "the most frequent"}
        rows: dict[str, tuple[str, int, str]] = {}
        for column in self.table_columns:
            becomes = column.becomes
            if column.missing and column.kind in filled:
                becomes += f", {filled[column.kind]} where missing"
            rows[column.name] = column.kind, column.missing, becomes
        others = {name: (kind, 0, use) for name, (kind, use) in self._others.items()}
        names = self.class_names
        of_target = "values" if names is None else f"{len(names)} classes: {shortened(names)}"
        rows |= others | {self.target: (others[self.target][0], 0, of_target)}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "missing", "becomes"])

    def description(self) -> str:
        # The columns of scikit-learn's data sets are clear, so there is nothing to show.
        return "" if self.built_in else self.summary().to_string(max_rows=60)

    def notes(self) -> list[str]:
        _ = self.source
        return [*super().notes(), *self._notes]
