"""Tables of scikit-learn, CSV files and DataFrames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import did_you_mean
from dlblocks.data._cells import (
    compacted,
    count_missing,
    distinct,
    factorize,
    is_categorical,
    is_row_numbers,
    is_text,
    plain_numbers,
    refuse_missing,
    rounded_cell,
    shortened,
    text,
    to_numbers,
)
from dlblocks.data._columns import (
    DAY_AND_MONTH,
    MIN_IDENTIFIERS,
    Column,
    ColumnReader,
    Kind,
    format_cure,
)
from dlblocks.data._encode import completion, encode
from dlblocks.data._labels import label_key
from dlblocks.data._read_csv import check_read_args, missing_texts, read_table
from dlblocks.data._table_encoder import TableEncoder, plain_read_args
from dlblocks.data._threads import THREADS_PAY, in_threads
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder
from dlblocks.data.source import Source

if TYPE_CHECKING:
    import pandas as pd

# Kinds of the columns that arguments name.
KINDS: dict[str, Kind] = {
    "numeric": "number", "categorical": "category", "dates": "date", "counts": "counts",
    "embed": "embedding",
}  # fmt: skip
DATASETS = ("iris", "wine", "breast_cancer", "diabetes")
# Targets that are whole numbers are classes if they have at most this many different values.
MAX_NUMBER_CLASSES = 20
MAX_NOTES = 5  # of one kind
AS_VALUES = 'if that is a value, set keep_default_na=False and na_values=[""]'


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
        elif isinstance(data, str) and not Path(data).exists() and not Path(data).suffix:
            hint = did_you_mean(data, DATASETS) or f"; those are {', '.join(DATASETS)}."
            raise ValueError(f"data={data!r} is neither a file nor a data set{hint}")
        if not self.built_in and target is None:
            raise ValueError("target=None: name the column to predict, target='…'.")
        self.data = data
        self.target = "target" if self.built_in else str(target)
        self.group = group
        self.fold_column = fold_column
        self.weights = weights
        self.task = task
        self.missing = missing
        self.read_args = {**used, **(read_args or {})}
        self.table_columns: list[Column] = []
        self._others: dict[str, tuple[str, str]] = {}  # columns that are not features: kind, use
        self._texts_read: set[str] = set()  # columns that were read as texts
        self._slashed: list[str] = []  # of dates without a format, such as 1/31/2024
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
        before = {name for name in table.columns if is_text(table[name])}
        self._read_numbers(table)
        formatted = {name for name in before if not is_text(table[name])}
        self._keep_digits(table)
        for cells in in_threads(
            compacted,
            [cells for _, cells in table.items() if is_text(cells) or is_categorical(cells)],
            pays=len(table) > THREADS_PAY,
        ):
            table[cells.name] = cells
        where = "data" if self.is_frame or self.built_in else str(self.data)
        target, labels = self.target, table[self.target]
        self._refuse_missing(where, table, target)
        targets, found = self._targets(where, labels)
        groups = folds = None
        if self.group is not None:
            self._refuse_missing(where, table, self.group)
            groups = _plain_array(table[self.group])
        if self.fold_column is not None:
            folds = _folds(table[self.fold_column])
        weights = None if self.weights is None else self._read_weights(where, table)
        self._set_aside(table)
        features = [name for name in table.columns if name not in self._others]
        if not features:
            raise ValueError(f"{where} has no column beside target={target!r} to learn from.")
        kinds = {name: kind for argument, kind in KINDS.items() for name in self.asked[argument]}
        impute = self.missing == "impute"
        reader = ColumnReader(where, kinds, self.date_formats, declared, impute, self.is_frame)
        self.table_columns = columns = reader.read_all(table[name] for name in features)
        self._note(table)
        self._texts_read = formatted | {
            column.name for column in columns if column.kind != "number"
        }
        self._slashed = [
            column.name
            for column in columns
            if column.kind == "date"
            and column.date_format is None
            and any(DAY_AND_MONTH.match(str(cell)) for cell in distinct(table[column.name])[1])
        ]
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

    def _read(self) -> tuple[pd.DataFrame, list[str] | None]:
        """Return the table, and the names of its classes if known."""
        if self.built_in:
            return _load_sklearn(str(self.data))
        if self.is_frame:
            frame: Any = self.data
            table = frame.reset_index(drop=True)
            table.columns = [str(name) for name in table.columns]
            twice = table.columns[table.columns.duplicated()]
            if len(twice):
                raise ValueError(f"data has two columns named {twice[0]!r}; rename one.")
        else:
            table = self._read_file(self._texts())
        given = self._own()
        own = {argument: [name] for argument, name in given.items() if name is not None}
        for argument, names in (own | self.asked).items():
            for name in names:
                if name not in table.columns:
                    hint = did_you_mean(name, table.columns) or "."
                    raise ValueError(
                        f"{argument}={name!r} is not a column{hint} "
                        f"There are: {', '.join(table.columns)}."
                    )
        roles = [(name, argument) for argument, names in self.asked.items() for name in names]
        for i, (name, argument) in enumerate(roles):
            others = [other for known, other in roles[:i] if known == name]
            others += [other for other, names in own.items() if name in names]
            if others:
                raise ValueError(f"column {name!r} is in {argument} and in {others[0]}; choose.")
        return table, None

    def _own(self) -> dict[str, str | None]:
        """Return the columns that are not features, by argument."""
        return {
            "weights": self.weights, "fold_column": self.fold_column, "group": self.group,
            "target": self.target,
        }  # fmt: skip

    def _read_weights(self, where: str, table: pd.DataFrame) -> Tensor:
        self._refuse_missing(where, table, str(self.weights))
        cells = table[self.weights]
        numbers = to_numbers(cells)
        if numbers.isna().any():
            row = int(numbers.isna().to_numpy().argmax())
            raise ValueError(
                f"{where}: row {row + 1} of column {self.weights!r} is {cells.iloc[row]!r}; "
                "weights are numbers >= 0."
            )
        return torch.tensor(numbers.to_numpy(), dtype=torch.get_default_dtype())

    def _read_file(self, texts: Sequence[str]) -> pd.DataFrame:
        """Read the file or folder, with some columns as text."""
        dtype = self.read_args.get("dtype", {})
        if isinstance(dtype, Mapping):
            dtype = {**dict.fromkeys(texts, str), **dtype}
        args = {k: v for k, v in self.read_args.items() if k != "thousands"}
        return read_table(Path(str(self.data)), {**args, "dtype": dtype})

    def _texts(self) -> list[str]:
        """Return the columns to read as text."""
        return [name for kind in ("categorical", "counts", "embed", "dates")
                for name in self.asked[kind]]  # fmt: skip

    def _read_numbers(self, table: pd.DataFrame) -> None:
        """Read numbers of other formats.

        pandas would read 01.02.2024 as a number with thousands='.'.
        """
        decimal, thousands = self.read_args.get("decimal"), self.read_args.get("thousands")
        if decimal in (None, ".") and thousands is None:
            return
        for name in set(table.columns).difference(self._texts(), [self.group, self.fold_column]):
            if is_text(table[name]):
                cure = (
                    "correct it" if thousands else "set read_args={'thousands': '.'} if it has some"
                )
                if name != self.target:
                    cure += f", or categorical=[{name!r}] if it is a category"
                table[name] = plain_numbers(
                    str(self.data), table[name], decimal or ".", thousands, cure
                )

    def _keep_digits(self, table: pd.DataFrame) -> None:
        """Read long whole numbers as text if missing cells made them floats."""
        if self.is_frame or self.built_in:
            return
        floats = [name for name in table.columns if table[name].dtype == np.float64]
        names = [n for n in floats if count_missing(table[n]) and table[n].abs().max() > 2**53]
        texts = self._read_file([*self._texts(), *names]) if names else table
        for name in names:
            if is_text(texts[name]) and rounded_cell(compacted(texts[name])) is not None:
                table[name] = texts[name]

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

    def _note(self, table: pd.DataFrame) -> None:
        self._notes = [
            f"column {name!r} holds the numbers or names of the rows and is left out"
            for name, (kind, _) in self._others.items()
            if kind == "row numbers"
        ]
        incomplete = [c.name for c in self.table_columns if c.missing and c.kind != "number"]
        self._notes += [
            f"missing cells of column {name!r} are filled in{said}; {AS_VALUES}"
            for name in incomplete
            if (said := self._spelled(table, name))
        ]
        remarked: dict[str, list[str]] = {}
        for column in self.table_columns:
            if column.remark:
                remarked.setdefault(column.remark, []).append(column.name)
        for remark, names in remarked.items():
            if len(names) > MAX_NOTES:
                self._notes.append(f"{len(names)} columns: each {remark}: {shortened(names)}")
                continue
            for name in names:
                cure = f"if it tells nothing, set drop=[{name!r}]"
                self._notes.append(f"column {name!r} {remark}; {cure}")
        days = [c for c in self.table_columns if c.kind == "date"]
        if self.split == "time_series" and days:
            column = table[days[0].name]
            first = encode(table[[days[0].name]], days[:1])[:, 0]
            if bool((first[1:] < first[:-1]).any()):
                self._notes.append(
                    f"rows are not in the order of column {column.name!r}, which "
                    "split='time_series' takes for granted; sort them"
                )

    def _spelled(self, table: pd.DataFrame, name: str) -> str:
        """Tell how the file writes missing cells, unless they are empty."""
        if self.is_frame or self.built_in or not table[name].isna().any():
            return ""
        counts = missing_texts(Path(str(self.data)), self.read_args, name).most_common(4)
        return ", written " + ", ".join(f"{text!r} ({n})" for text, n in counts) if counts else ""

    def _targets(self, where: str, labels: pd.Series) -> tuple[Tensor, list[str] | None]:
        numbers = to_numbers(labels)
        numeric = bool(numbers.notna().all())
        task = self.task
        if task is None:
            few = labels.nunique() <= MAX_NUMBER_CLASSES
            whole = numeric and bool((numbers % 1 == 0).all())
            task = "classification" if not numeric or (whole and few) else "regression"
        if task == "classification":
            codes, names = factorize(labels, lambda cell: label_key(text(cell)))
            if self.task is None and len(names) >= max(MIN_IDENTIFIERS, len(labels) / 2):
                cure = None if self.is_frame else format_cure(names)
                raise ValueError(
                    f"{where}: target={labels.name!r} has {len(names)} different values in "
                    f"{len(labels)} rows, such as {shortened(names)}; "
                    f"{cure or 'choose another target, convert it to numbers'}, "
                    "or set task='classification'."
                )
            return torch.from_numpy(codes), names
        if not numeric:
            row = int(numbers.isna().to_numpy().argmax())
            raise ValueError(
                f"{where}: task='regression', but row {row + 1} of column {labels.name!r} is "
                f"{labels.iloc[row]!r}."
            )
        return torch.tensor(numbers.to_numpy(), dtype=torch.get_default_dtype()), None

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


def _load_sklearn(name: str) -> tuple[pd.DataFrame, list[str] | None]:
    from sklearn import datasets

    # Unscaled, because scikit-learn's scaling uses the rows that are held out here.
    unscaled = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(as_frame=True, **unscaled)
    names = None if name == "diabetes" else [str(one) for one in bunch.target_names]
    return bunch.frame, names


def _plain_array(cells: pd.Series) -> np.ndarray:
    """Return numbers, or texts."""
    values: np.ndarray = cells.to_numpy()
    return values if values.dtype.kind in "iufb" else values.astype(str)


def _folds(cells: pd.Series) -> np.ndarray:
    """Return integers if all cells are integers, else texts."""
    # As texts, fold 10 would come before fold 9.
    numbers = to_numbers(cells).fillna(-1)
    if ((numbers % 1 == 0) & (cells.isna() | (to_numbers(cells).notna()))).all():
        whole: np.ndarray = numbers.to_numpy().astype(np.int64)
        return whole
    texts: np.ndarray = cells.astype(object).where(cells.notna(), "").astype(str).to_numpy(str)
    return texts
