"""Decide what the columns of a table become."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from dlblocks.data._cache import read_only_tensor
from dlblocks.data._cells import (
    DAY_FIRST,
    SHOWN,
    count_missing,
    distinct,
    factorize,
    is_categorical,
    number_format,
    plain_values,
    refuse_missing,
    rounded_cell,
    shortened,
    text,
    to_days,
    to_numbers,
    value_range,
)
from dlblocks.data._normalization import fits_float32, needs_float64
from dlblocks.data._threads import THREADS_PAY, in_threads

if TYPE_CHECKING:
    from pandas import DataFrame, Series

ColumnKind = Literal["number", "category", "date", "counts", "embedding"]
# A column that would become more features is asked about.
MAX_CATEGORIES = 50
MAX_QUESTIONS = 20  # in a message
# From this share of numbers on, a column of texts is a column of numbers with bad cells.
MOSTLY_NUMBERS = 0.5
MOSTLY_DATES = 0.5
# Below so many cells, that all are different says little.
MIN_IDENTIFIERS = 11
DATE = re.compile(
    r"\d{4}([-/.])\d{1,2}\1\d{1,2}([T ].*)?"
    r"|\d{1,2}([-/.])\d{1,2}\3(\d{4}|\d{2})( .*)?"
    r"|.*\b\d{1,2}\b.*\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.*\d{2}.*"
    r"|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\W+\d{1,2}\W+\d{2,4}.*",
    re.IGNORECASE,
)
TIME = re.compile(r"\d{1,2}:\d{2}.*|now|today", re.IGNORECASE)  # pandas adds the current day
FORMATS = ((".", ","), (",", None), (",", "."), (".", " "), (".", "'"), (",", " "))
DAY_AND_MONTH = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.]\d")
IDENTIFIER = re.compile(
    r"(.*[\s_.-])?(id|uuid|guid|index|rownames?|row[\s_.-]?(number|id|names?|nr|no))", re.IGNORECASE
)
IDENTIFIER_SUFFIX = re.compile(r".*[a-z](ID|Id)")  # PassengerId, customerID
WITH_SIGN = re.compile(r"[$€£¥]\s*[+-]?\d[\d.,]*|[+-]?\d[\d.,]*\s*[%$€£¥]", re.ASCII)


@dataclass
class Column:
    """A column of a table that becomes features. All values are plain.

    Attributes:
        name: Its name.
        kind: ``"number"``, ``"category"`` (a 0/1 feature each), ``"date"``, ``"counts"`` (one
            feature: the category's share of the training rows) or ``"embedding"`` (one feature: the
            number of the category, from 1; 0 is unknown).
        missing: How many of its cells are missing.
        categories: Of the kinds of categories, their names.
        date_format: Of dates, their format for `pandas.to_datetime`, or None to infer it.
        has_time: Of dates, whether they have a time of the day.
        is_wide: For numbers, whether float32 would round them too much.
        remark: What else a reader should know.
    """

    name: str
    kind: ColumnKind
    missing: int = 0
    categories: list[str] = field(default_factory=list)
    date_format: str | None = None
    has_time: bool = False
    is_wide: bool = False
    remark: str = ""

    @property
    def feature_names(self) -> list[str]:
        """Names of its features."""
        if self.kind == "category":
            return [f"{self.name}={category}" for category in self.categories]
        if self.kind == "date":
            parts = ["days", "month", "weekday", *(["hour"] if self.has_time else [])]
            return [f"{self.name}.{part}" for part in parts]
        return [self.name]

    @property
    def becomes(self) -> str:
        """A description of its features in a few words."""
        count = len(self.categories)
        return {
            "number": "1 feature",
            "category": f"{count} features of 0 and 1: {shortened(self.categories)}",
            "date": f"{len(self.feature_names)} features: {', '.join(self.feature_names)}",
            "counts": f"1 feature: share of the training rows with that category, of {count}",
            "embedding": f"1 feature: number of the category, of {count}, for an embedding",
        }[self.kind]


def format_cure(cells: Sequence[str]) -> str | None:
    """Return the arguments that read these numbers, or None for other texts."""
    # "1,234" has thousands, "1,5" decimals: three digits after every comma decide.
    for decimal, thousands in FORMATS:
        if all(map(number_format(decimal, thousands).fullmatch, cells)):
            cures = [f"decimal={decimal!r}"] * (decimal != ".")
            cures += [f"read_args={{'thousands': {thousands!r}}}"] * bool(thousands)
            return f"set {', '.join(cures)}"
    return None


@dataclass
class ColumnReader:
    """Infer the kinds of columns, and refuse unclear ones.

    Args:
        where: The table's name in messages.
        asked: Columns whose kind the user has set, whatever they look like.
        dates: Formats of the columns of dates, or None.
        declared: Known categories of columns, in order.
        impute: Whether missing cells may be filled in.
        is_frame: Whether the table is a DataFrame, so that arguments of `read_csv` are no cure.
    """

    where: str
    asked: Mapping[str, ColumnKind]
    dates: Mapping[str, str | None]
    declared: Mapping[str, Sequence[str]]
    impute: bool
    is_frame: bool

    def read_all(self, columns: Iterable[Series]) -> list[Column]:
        """Infer the kinds of columns.

        Args:
            columns: The cells of each column. Texts are in the form of `compacted`.

        Raises:
            ValueError: Columns are unclear. The message has the questions about all of them.
        """
        cells = list(columns)
        pays = bool(cells) and len(cells[0]) > THREADS_PAY
        found: list[Column] = []
        questions: list[str] = []
        for column, asked in in_threads(self._inspect, cells, pays=pays):
            found += [column] if column else []
            questions += asked
        if len(questions) > 1:
            listed = [question.removeprefix(f"{self.where}: ") for question in questions]
            if len(listed) > MAX_QUESTIONS:
                listed[MAX_QUESTIONS:] = [f"and {len(listed) - MAX_QUESTIONS} more"]
            title = f"{self.where}: {len(questions)} questions about columns:"
            raise ValueError("\n  ".join([title, *listed]))
        if questions:
            raise ValueError(questions[0])
        return found

    def _inspect(self, cells: Series) -> tuple[Column | None, list[str]]:
        """Infer the kind of a column, and return the questions about it."""
        missing, column, questions = count_missing(cells), None, []
        for step in (self._check_missing, self._read):
            try:
                column = step(cells, missing)
            except ValueError as error:
                questions.append(str(error))
        return column, questions

    def _check_missing(self, cells: Series, missing: int) -> None:
        """Refuse a column with missing cells, unless they may be filled in.

        Columns without any value are refused elsewhere.
        """
        if not self.impute and 0 < missing < len(cells):
            name = str(cells.name)
            cure = f"set missing='impute' to fill it in, or drop=[{name!r}] to leave it out"
            refuse_missing(self.where, cells, cure)

    def _read(self, cells: Series, missing: int) -> Column:
        """Infer the kind of a column."""
        from pandas.api import types

        name, kind = str(cells.name), self.asked.get(str(cells.name))
        if missing == len(cells):
            self._refuse(name, "has no value at all", f"drop=[{name!r}] leaves it out")
        column, spread = Column(name, kind or "number", missing), None
        if kind is None and name in self.declared:
            column.kind = "category"
            present = set(factorize(cells)[1])
            column.categories = [one for one in self.declared[name] if one in present]
            self._check_categories(column, cells)
        elif kind in ("category", "counts", "embedding"):
            column.categories = factorize(cells)[1]
        elif kind == "date":
            self._read_dates(column, cells)
        elif kind == "number":
            numbers = to_numbers(cells)
            if (numbers.isna() & cells.notna()).any():
                self._refuse_bad_numbers(name, cells, numbers)
            if rounded_cell(cells) is not None:
                column.remark = "has whole numbers above 2**53, which float64 rounds"
        elif types.is_datetime64_any_dtype(cells.dtype):
            self._refuse_dates(name, str(cells.dropna().iloc[0]))
        elif is_categorical(cells):
            self._read_texts(column, cells)
        elif types.is_numeric_dtype(cells.dtype) and not types.is_complex_dtype(cells.dtype):
            self._check_identifier(name, cells)
            self._check_rounded(name, cells)
            spread = value_range(plain_values(cells))
            if _are_dates(cells, spread):
                date = str(cells.dropna().iloc[0])
                self._refuse_dates(name, date, f"numeric=[{name!r}] keeps it")
            column.remark = _remark(cells)
        else:
            self._refuse(name, f"has the dtype {cells.dtype}", "convert it to numbers")
        if column.kind == "number":
            self._check_range(column, cells, spread)
        return column

    def _check_range(
        self, column: Column, cells: Series, spread: tuple[float, float] | None
    ) -> None:
        """Refuse infinite cells, such as "inf" and 1e999, and set `is_wide`."""
        name, values = column.name, plain_values(cells)
        low, high = spread or value_range(values)
        if not fits_float32(low, high, len(values)):
            column.is_wide = needs_float64(read_only_tensor(values)[:, None])
        if np.isinf(low) or np.isinf(high):
            infinite = np.isinf(values)
            row = int(infinite.argmax())
            cure = "remove these rows"
            if not self.is_frame:
                cure += f", or na_values=[{str(cells.iloc[row])!r}] if the cell is missing"
            self._refuse(name, f"is infinite ({cells.iloc[row]}) in row {row + 1}", cure)

    def _read_texts(self, column: Column, cells: Series) -> None:
        name, count = column.name, len(cells) - column.missing
        are_numbers = to_numbers(cells.cat.categories.to_series()).notna()
        numbers = to_numbers(cells) if are_numbers.any() else None
        share = 0 if numbers is None else int(numbers.notna().sum()) / count
        if share == 1:  # a number, as are truth values
            self._check_rounded(name, cells)
            return
        if numbers is not None and share >= MOSTLY_NUMBERS:
            self._refuse_bad_numbers(name, cells, numbers)
        column.kind = "category"
        column.categories = factorize(cells)[1]
        sample = column.categories[: 10 * MAX_CATEGORIES]
        dates = [one for one in sample if DATE.fullmatch(one)]
        if len(dates) > MOSTLY_DATES * len(sample):
            self._refuse_dates(name, dates[0])
        if len(column.categories) > SHOWN:  # a few categories may well be "1,5" and "2,5"
            self._check_number_format(name, column.categories)
        self._check_categories(column, cells)

    def _read_dates(self, column: Column, cells: Series) -> None:
        import pandas as pd

        column.date_format = self.dates[column.name]
        codes, found = distinct(cells)  # each date is read once
        texts = [str(cell) for cell in found]
        if column.date_format is None:
            days_and_months = map(DAY_AND_MONTH.match, texts)
            pairs = [(int(one[1]), int(one[2])) for one in days_and_months if one]
            day_first, month_first = (any(pair[i] > 12 for pair in pairs) for i in (0, 1))
            times = [one for one in texts if TIME.fullmatch(one.strip())]
            if times:
                what = f"has times without a date, such as {times[0]!r}"
                self._refuse_format(column.name, what, "%H:%M")
            if pairs and day_first == month_first:
                what = f"has dates such as {texts[0]!r}, of which day or month may come"
                self._refuse_format(column.name, f"{what} first", "%d/%m/%Y")
            if day_first:
                column.date_format = DAY_FIRST
        days = to_days(pd.Series(found), column.date_format)
        if days.isna().any():
            row = int(np.isin(codes, np.flatnonzero(days.isna())).argmax())
            what = f"is of dates, but row {row + 1} is {str(cells.iloc[row])!r}"
            self._refuse_format(column.name, what, "%Y-%m-%d")
        column.has_time = bool((days % 1 != 0).any())

    def _check_categories(self, column: Column, cells: Series) -> None:
        name, count = column.name, len(column.categories)
        if count == len(cells) - column.missing and count >= MIN_IDENTIFIERS:
            self._refuse_identifier(name, column.categories)
        if count > MAX_CATEGORIES:
            self._refuse(
                name,
                f"has {count} categories, such as {shortened(column.categories)}",
                f"drop=[{name!r}] leaves it out; counts=[{name!r}] makes one feature of it, how "
                f"often the category occurs; embed=[{name!r}] numbers the categories for an "
                f"embedding; categorical=[{name!r}] makes {count} features",
            )

    def _check_identifier(self, name: str, cells: Series) -> None:
        looks = IDENTIFIER.fullmatch(name) or IDENTIFIER_SUFFIX.fullmatch(name)
        if looks and len(cells) >= MIN_IDENTIFIERS and cells.is_unique:
            self._refuse_identifier(name, [text(cell) for cell in cells.iloc[: SHOWN + 1]])

    def _refuse_identifier(self, name: str, cells: Sequence[str]) -> NoReturn:
        numbers = all(re.fullmatch(r"-?[\d.]+", cell) for cell in cells)
        self._refuse(
            name,
            f"is different in every row ({shortened(cells)}), as identifiers are",
            f"drop=[{name!r}] leaves it out; "
            f"{'numeric' if numbers else 'categorical'}=[{name!r}] keeps it",
        )

    def _check_rounded(self, name: str, cells: Series) -> None:
        """Refuse whole numbers that float64 would round."""
        cell = rounded_cell(cells)
        if cell is not None:
            self._refuse(
                name,
                f"has whole numbers above 2**53, such as {cell}, which float64 rounds",
                f"drop=[{name!r}] leaves it out; numeric=[{name!r}] rounds it; "
                f"categorical=[{name!r}] makes a category of each number",
            )

    def _check_number_format(self, name: str, cells: Sequence[str]) -> None:
        """Raise a `ValueError` if the texts are numbers of another format."""
        what, keep = f"such as {shortened(cells)}", f"categorical=[{name!r}] if they are categories"
        cure = format_cure(cells)
        if cure:
            cure = "convert it to numbers" if self.is_frame else cure
            self._refuse(name, f"has numbers of another format, {what}", f"{cure}; or {keep}")
        if all(map(WITH_SIGN.fullmatch, cells)):
            self._refuse(name, f"has numbers with a sign, {what}", f"remove the sign; or {keep}")

    def _refuse_bad_numbers(self, name: str, cells: Series, numbers: Series) -> NoReturn:
        bad = cells[numbers.isna() & cells.notna()]
        self._check_number_format(name, [str(cell) for cell in cells.dropna().unique()])
        rows = [f"{str(cell)!r} in row {row + 1}" for row, cell in bad.iloc[:SHOWN].items()]
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        texts = sorted({str(cell) for cell in bad.iloc[:SHOWN]})
        gone = f"data.replace({texts}, None)" if self.is_frame else f"na_values={texts}"
        self._refuse(
            name,
            f"has numbers, but for {len(bad)} cell(s): {', '.join(rows)}{more}",
            f"correct them; or {gone} if they are missing; or categorical=[{name!r}] if all cells "
            "are categories",
        )

    def _refuse_dates(self, name: str, date: str, keep: str = "") -> NoReturn:
        self._refuse(
            name,
            f"has dates, such as {date!r}",
            f"dates=[{name!r}] makes days, month and weekday of it; drop=[{name!r}] leaves it out; "
            + (keep or f"categorical=[{name!r}] makes a category of each date"),
        )

    def _refuse_format(self, name: str, what: str, example: str) -> NoReturn:
        self._refuse(name, what, f"give the format: dates={{{name!r}: {example!r}}}")

    def _refuse(self, name: str, what: str, cure: str) -> NoReturn:
        raise ValueError(f"{self.where}: column {name!r} {what}; {cure}.")


def unclear_dates(columns: Sequence[Column], table: DataFrame) -> list[str]:
    """Return columns of dates such as 1/31/2024 that no format explains."""
    return [
        column.name
        for column in columns
        if column.kind == "date"
        and column.date_format is None
        and any(DAY_AND_MONTH.match(str(cell)) for cell in distinct(table[column.name])[1])
    ]


def _are_dates(cells: Series, spread: tuple[float, float]) -> bool:
    """Return True for whole numbers that are dates, such as 20240131."""
    low, high = spread
    if not (low >= 1900_01_01 and high <= 2100_12_31):
        return False
    values = plain_values(cells)
    values = values[~np.isnan(values)]
    month, day = values // 100 % 100, values % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31) & (day % 1 == 0)).all())


def _remark(cells: Series) -> str:
    values = plain_values(cells)
    if len(values) > 1 and values[0] == values[-1] and (values == values[0]).all():
        return "is the same in every row"
    counts = values.dtype.kind in "iu" and len(values) > MIN_IDENTIFIERS
    if counts and values[1] - values[0] == 1 and (np.diff(values) == 1).all():
        return "numbers the rows"
    return ""
