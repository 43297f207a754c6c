"""What becomes of each column of a table, and how its cells become numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks.data.cache import read_only_tensor
from dlblocks.data.csv_files import NO_NAME
from dlblocks.data.normalisation import needs_float64

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Kind = Literal["number", "category", "date", "counts", "embedding"]
# A column that would become more features is asked about.
MAX_CATEGORIES = 50
# From this share of numbers on, a column of texts is a column of numbers with bad cells.
MOSTLY_NUMBERS = 0.5
MOSTLY_DATES = 0.5
# Below so many cells, that all are different says little.
MIN_IDENTIFIERS = 11
SHOWN = 3  # cells in a message
DAY_FIRST = "dayfirst"  # in the place of a format
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
CHUNK = 1024  # rows


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
        remark: What else a reader should know.
    """

    name: str
    kind: Kind
    missing: int = 0
    categories: list[str] = field(default_factory=list)
    date_format: str | None = None
    has_time: bool = False
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
        """What becomes of it, in a few words."""
        count = len(self.categories)
        return {
            "number": "1 feature",
            "category": f"{count} features of 0 and 1: {shortened(self.categories)}",
            "date": f"{len(self.feature_names)} features: {', '.join(self.feature_names)}",
            "counts": f"1 feature: share of the training rows with that category, of {count}",
            "embedding": f"1 feature: number of the category, of {count}, for an embedding",
        }[self.kind]


class ColumnReader:
    """Finds out what the columns of a table are, and refuses what it cannot know.

    Args:
        where: The table's name in messages.
        numeric: Columns that are numbers, whatever they look like.
        categorical: Columns of categories.
        dates: Columns of dates, with a format or None.
        counts: Columns of categories of which the share of the training rows is taken.
        embed: Columns of categories that are numbered.
        declared: Columns whose categories are known, and these in order.
        is_frame: Whether the table is a DataFrame, which arguments of `read_csv` do not mend.
        impute: Whether missing cells may be filled in.
    """

    def __init__(
        self,
        where: str,
        *,
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        dates: Mapping[str, str | None] | None = None,
        counts: Sequence[str] = (),
        embed: Sequence[str] = (),
        declared: Mapping[str, Sequence[str]] | None = None,
        impute: bool = False,
        is_frame: bool = False,
    ) -> None:
        self.where = where
        self.is_frame = is_frame
        self.declared = declared or {}
        self.dates = dict(dates or {})
        self.impute = impute
        self.asked: dict[str, Kind] = {
            **dict.fromkeys(numeric, "number"),
            **dict.fromkeys(categorical, "category"),
            **dict.fromkeys(self.dates, "date"),
            **dict.fromkeys(counts, "counts"),
            **dict.fromkeys(embed, "embedding"),
        }

    def read(self, cells: Series) -> Column:
        """What a column is; one of texts is as `compacted` makes it."""
        from pandas.api import types

        name, kind = str(cells.name), self.asked.get(str(cells.name))
        missing = int(cells.isna().sum())
        if missing == len(cells):
            self._refuse(name, "has no value at all", f"drop=[{name!r}] leaves it out")
        if missing and not self.impute:
            cure = f"set missing='impute' to fill it in, or drop=[{name!r}] to leave it out"
            refuse_missing(self.where, cells, cure)
        column = Column(name, kind or "number", missing)
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
        elif types.is_datetime64_any_dtype(cells.dtype):
            self._refuse_dates(name, str(cells.dropna().iloc[0]))
        elif isinstance(cells.dtype, types.CategoricalDtype):
            self._read_texts(column, cells)
        elif types.is_numeric_dtype(cells.dtype) and not types.is_complex_dtype(cells.dtype):
            self._check_identifier(name, cells)
            if _are_dates(cells):
                self._refuse_dates(
                    name, str(cells.dropna().iloc[0]), f"numeric=[{name!r}] keeps it"
                )
            column.remark = _remark(cells)
        else:
            self._refuse(name, f"has the dtype {cells.dtype}", "convert it to numbers")
        if column.kind == "number":
            self._check_finite(name, cells)
        return column

    def _check_finite(self, name: str, cells: Series) -> None:
        """Raises a `ValueError` if a cell is infinite, as are "inf" and 1e999."""
        values = _numbers(cells)
        infinite = np.isinf(values)
        if infinite.any():
            row = int(infinite.argmax())
            cure = "remove these rows"
            if not self.is_frame:
                cure += f", or na_values=[{str(cells.iloc[row])!r}] if the cell is missing"
            self._refuse(name, f"is infinite ({cells.iloc[row]}) in row {row + 1}", cure)

    def _read_texts(self, column: Column, cells: Series) -> None:
        name, count = column.name, int(cells.notna().sum())
        numbers = to_numbers(cells)
        share = int(numbers.notna().sum()) / count
        if share == 1:
            return  # a number, as are truth values
        if share >= MOSTLY_NUMBERS:
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
        column.date_format = self.dates[column.name]
        cells = cells.dropna()
        if column.date_format is None:
            found = [DAY_AND_MONTH.match(str(cell)) for cell in cells.unique()]
            pairs = [(int(one[1]), int(one[2])) for one in found if one]
            day_first, month_first = (any(pair[i] > 12 for pair in pairs) for i in (0, 1))
            times = [str(cell) for cell in cells.unique() if TIME.fullmatch(str(cell).strip())]
            if times:
                self._refuse(
                    column.name,
                    f"has times without a date, such as {times[0]!r}",
                    f"give the format: dates={{{column.name!r}: '%H:%M'}}",
                )
            if pairs and day_first == month_first:
                self._refuse(
                    column.name,
                    f"has dates such as {str(cells.iloc[0])!r}, of which day or month may come "
                    "first",
                    f"give the format: dates={{{column.name!r}: '%d/%m/%Y'}}",
                )
            if day_first:
                column.date_format = DAY_FIRST
        days = to_days(cells, column.date_format)
        if days.isna().any():
            row = int(np.flatnonzero(days.isna())[0])
            self._refuse(
                column.name,
                f"is of dates, but row {cells.index[row] + 1} is {str(cells.iloc[row])!r}",
                f"give the format: dates={{{column.name!r}: '%Y-%m-%d'}}, or convert the column "
                "by pandas.to_datetime",
            )
        column.has_time = bool((days % 1 != 0).any())

    def _check_categories(self, column: Column, cells: Series) -> None:
        name, count = column.name, len(column.categories)
        known = int(cells.notna().sum())
        if count == known and count >= MIN_IDENTIFIERS:
            self._refuse_identifier(name, column.categories)
        if count > MAX_CATEGORIES:
            self._refuse(
                name,
                f"has {count} categories, such as {shortened(column.categories)}, which would "
                f"become {count} features",
                f"drop=[{name!r}] leaves it out; counts=[{name!r}] makes one feature of it, how "
                f"often the category occurs; embed=[{name!r}] numbers the categories for an "
                f"embedding; categorical=[{name!r}] makes {count} features all the same",
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
            + (f"numeric=[{name!r}]" if numbers else f"categorical=[{name!r}]")
            + " keeps it",
        )

    def _check_number_format(self, name: str, cells: Sequence[str]) -> None:
        """Raises a `ValueError` if the texts are numbers of another format."""
        what, keep = f"such as {shortened(cells)}", f"categorical=[{name!r}] if they are categories"
        # "1,234" has thousands, "1,5" decimals: three digits after every comma decide.
        for decimal, thousands in FORMATS:
            if all(map(_number_format(decimal, thousands).fullmatch, cells)):
                cure = f"set decimal={decimal!r}" * (decimal != ".")
                cure += ", " * bool(cure and thousands) if cure else "set " * bool(thousands)
                cure += f"read_args={{'thousands': {thousands!r}}}" if thousands else ""
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
            f"mend them; or {gone} if they are missing; or categorical=[{name!r}] if all cells are "
            "categories",
        )

    def _refuse_dates(self, name: str, date: str, keep: str = "") -> NoReturn:
        self._refuse(
            name,
            f"has dates, such as {date!r}",
            f"dates=[{name!r}] makes days, month and weekday of it; drop=[{name!r}] leaves it out; "
            + (keep or f"categorical=[{name!r}] makes a category of each date"),
        )

    def _refuse(self, name: str, what: str, cure: str) -> NoReturn:
        raise ValueError(f"{self.where}: column {name!r} {what}; {cure}.")


# Cells


def compacted(cells: Series) -> Series:
    """A column of texts as pandas' categories, with which all that follows is many times faster."""
    import pandas as pd

    if not is_text(cells):
        return cells
    try:
        codes, found = pd.factorize(cells)
    except TypeError as error:
        raise ValueError(
            f"column {cells.name!r} has cells that are neither numbers nor texts ({error}), such "
            f"as {cells.iloc[0]!r}; make columns of them, or drop=[{cells.name!r}] leaves it out."
        ) from error
    texts = pd.Index(found, dtype=object)
    known = pd.Categorical.from_codes(codes, categories=texts, validate=False)
    return pd.Series(known, index=cells.index, name=cells.name)


def is_text(cells: Series) -> bool:
    """Whether a column has texts, or any objects."""
    from pandas.api import types

    return bool(types.is_object_dtype(cells.dtype) or types.is_string_dtype(cells.dtype))


def text(cell: Any) -> str:
    """A cell as the name of a category: whole numbers without decimals, no spaces around."""
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def factorize(
    cells: Series, name: Callable[[Any], str] = text
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Numbers of the categories, -1 for a missing cell, and their names in order.

    Names are sorted as numbers if all of them are, else as texts. Cells of the same `name` are of
    the same category.
    """
    import pandas as pd

    codes, found = pd.factorize(cells)
    texts = [name(cell) for cell in found]
    names = sorted(set(texts))
    if all(map(_is_number, names)):
        names.sort(key=float)
    place = {name: i for i, name in enumerate(names)}
    return np.array([*(place[name] for name in texts), -1])[codes], names


def to_numbers(cells: Series) -> Series:
    """Cells as float64; NaN for missing cells and for those that are no numbers."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells.dtype):
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        return pd.Series(values, index=cells.index)
    codes, found = pd.factorize(cells)  # each text is read once
    numbers = pd.to_numeric(pd.Series(found).astype(object), errors="coerce").to_numpy(np.float64)
    return pd.Series(np.append(numbers, np.nan)[codes], index=cells.index)


def plain_numbers(
    where: str, cells: Series, decimal: str, thousands: str | None, cure: str
) -> Series:
    """Texts with numbers such as "1.234,5" written as "1234.5"; as numbers if all are.

    Args:
        where: The table's name in messages.
        cells: Texts.
        decimal: The decimal point.
        thousands: What separates thousands, if anything does.
        cure: What else the message says for a number of another format.

    Raises:
        ValueError: A cell is a number only with a decimal point, as "1.500" is not for
            ``decimal=","``.
    """
    import pandas as pd

    codes, found = pd.factorize(cells)
    ours, pythons = _number_format(decimal, thousands), _number_format(".", None)
    plain: list[Any] = []
    for cell in found:
        known = ours.fullmatch(str(cell).strip())
        if known is None and pythons.fullmatch(str(cell).strip()):
            row = int((codes == len(plain)).argmax()) + 1
            given = f"decimal={decimal!r}" + f", thousands={thousands!r}" * bool(thousands)
            raise ValueError(
                f"{where}: column {cells.name!r} has {cell!r} in row {row}, which is no number "
                f"with {given}; {cure}."
            )
        number = str(cell).strip().replace(thousands or decimal, "" if thousands else ".")
        plain.append(number.replace(decimal, ".") if known else cell)
    made = pd.Series([*plain, None], dtype=object)
    if all(map(pythons.fullmatch, map(str, plain))):
        made = pd.to_numeric(made)
        made = made if (codes < 0).any() else pd.to_numeric(made[:-1])
    return pd.Series(made.to_numpy()[codes], index=cells.index, name=cells.name)


def _number_format(decimal: str, thousands: str | None) -> re.Pattern[str]:
    """Numbers with this decimal point and this separator of thousands."""
    point, whole = re.escape(decimal), r"\d+"
    if thousands:
        whole = rf"\d{{1,3}}({re.escape(thousands)}\d{{3}})+|\d+"
    return re.compile(rf"[+-]?(({whole})({point}\d*)?|{point}\d+)([eE][+-]?\d+)?", re.ASCII)


WITH_SIGN = re.compile(r"[$€£¥]\s*[+-]?\d[\d.,]*|[+-]?\d[\d.,]*\s*[%$€£¥]", re.ASCII)


def to_days(cells: Series, date_format: str | None) -> Series:
    """Days since 1970-01-01 UTC, as float64 with a fraction; NaN for what is no date.

    Args:
        cells: Texts or dates.
        date_format: For `pandas.to_datetime`; `DAY_FIRST`, or None to infer it.
    """
    import pandas as pd

    codes, found = pd.factorize(cells)  # each date is read once
    dates = pd.Series(found)
    if not pd.api.types.is_datetime64_any_dtype(dates.dtype):
        texts = dates.astype(str)
        kind: dict[str, Any] = {"errors": "coerce", "utc": True}
        if date_format is None or date_format == DAY_FIRST:
            kind["dayfirst"] = date_format == DAY_FIRST
        else:
            kind["format"] = date_format
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a format that cannot be inferred
            dates = pd.to_datetime(texts, **kind)
        if "dayfirst" in kind and dates.isna().any():  # the format of the first is not that of all
            dates = pd.to_datetime(texts, format="mixed", **kind)
    if dates.dt.tz is not None:
        dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
    since = dates.to_numpy("datetime64[us]") - np.datetime64(0, "us")  # of year 1, too
    days = since / np.timedelta64(1, "D")
    return pd.Series(np.append(days, np.nan)[codes], index=cells.index)


def refuse_missing(where: str, cells: Series, cure: str, said: str = "") -> None:
    """Raises a `ValueError` if a cell is missing; `said` is how such cells are written."""
    gone = cells.isna().to_numpy()
    if gone.any():
        count = f"{int(gone.sum())} of {len(gone)} rows have none{said}"
        raise ValueError(
            f"{where}: row {int(gone.argmax()) + 1} has no value in column {cells.name!r} "
            f"({count}); {cure}."
        )


def is_row_numbers(name: str, cells: Series) -> bool:
    """Whether a column without a name holds the numbers or names of the rows."""
    return name.startswith(NO_NAME) and len(cells) > 1 and cells.is_unique and cells.notna().all()


# Features


def encode(table: DataFrame, columns: Sequence[Column]) -> Tensor:
    """Features (N, F) of a table; NaN where a cell is missing, in all features of its column.

    Columns of the kinds ``"counts"`` and ``"embedding"`` are numbers of categories, from 0, -1 for
    a missing cell; see `complete`.

    Args:
        table: A table.
        columns: What becomes of its columns.

    Returns:
        float32, or float64 if float32 would round away what a column says.
    """
    values = [_values(column, table[column.name]) for column in columns]
    wide = any(
        needs_float64(read_only_tensor(block.reshape(len(block), -1)))
        for block in values
        if block.dtype.kind in "if"
    )
    stops = np.cumsum([len(column.feature_names) for column in columns]).tolist()
    features = np.zeros((len(table), stops[-1]), dtype=np.float64 if wide else np.float32)
    rows = np.arange(CHUNK)
    for first in range(0, len(table), CHUNK):  # which a cache holds
        part, start = features[first : first + CHUNK], 0
        for column, block, stop in zip(columns, values, stops, strict=True):
            cells = block[first : first + CHUNK]
            if column.kind == "category":
                part[rows[: len(cells)], start + np.maximum(cells, 0)] = 1
                if column.missing:
                    part[cells < 0, start:stop] = np.nan
            elif cells.ndim == 1:
                part[:, start] = cells
            else:
                part[:, start:stop] = cells
            start = stop
    return torch.from_numpy(features)


def complete(inputs: Tensor, rows: Tensor, columns: Sequence[Column], *, impute: bool) -> Tensor:
    """Fills in what only the training rows may say.

    Missing numbers and dates become the median, missing categories the most frequent one; of
    ``"counts"``, a category becomes its share of the training rows; of ``"embedding"``, its number
    from 1, or 0 if no training row has it. Missing cells of these two count as one more category,
    and as unknown.

    Args:
        inputs: As `encode` makes them.
        rows: Rows that train, int64.
        columns: What becomes of the columns.
        impute: Whether missing cells are filled in.

    Returns:
        New features, of the same shape.
    """
    inputs = inputs.clone()
    start = 0
    for column in columns:
        block = inputs[:, start : start + len(column.feature_names)]
        start += len(column.feature_names)
        if column.kind in ("counts", "embedding"):
            codes = block[:, 0].long() + 1
            seen = torch.bincount(codes[rows], minlength=len(column.categories) + 1)
            if column.kind == "counts":
                block[:, 0] = (seen / len(rows)).to(block.dtype)[codes]
            else:
                block[:, 0] = torch.where(seen[codes] > 0, codes, 0).to(block.dtype)
        elif impute and column.missing:
            _impute(block, rows, most_frequent=column.kind == "category")
    return inputs


def _impute(block: Tensor, rows: Tensor, *, most_frequent: bool) -> None:
    gone = block[:, 0].isnan()
    seen = block[rows]
    seen = seen[~seen[:, 0].isnan()]
    fill = torch.zeros(block.shape[1], dtype=block.dtype)  # nothing seen: 0, or no category
    if len(seen) and most_frequent:
        fill[seen.sum(0).argmax()] = 1
    elif len(seen):
        fill = torch.from_numpy(np.median(seen.numpy(), axis=0))
    block[gone] = fill.to(block.dtype)


def _values(column: Column, cells: Series) -> npt.NDArray[Any]:
    """Numbers (N,) or (N, F), or numbers of categories, -1 for a missing one."""
    if column.kind == "date":
        return _date_parts(column, cells)
    if column.kind != "number":
        return _codes(column, cells)
    return _numbers(cells)


def _numbers(cells: Series) -> npt.NDArray[Any]:
    """Numbers (N,), not copied where the cells are numbers of NumPy."""
    plain = isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "iufb"
    plain = plain and cells.dtype.itemsize <= 8  # of which torch has numbers
    return cells.to_numpy() if plain else to_numbers(cells).to_numpy()


def _date_parts(column: Column, cells: Series) -> npt.NDArray[np.float64]:
    """The features of a date, shape (N, F): days, month from 1, weekday from 0 (Monday), hour."""
    days = to_days(cells, column.date_format).to_numpy(dtype=np.float64, na_value=np.nan)
    whole = np.floor(days)
    month = whole.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12 + 1
    parts = [days, np.where(np.isnan(days), np.nan, month), (whole + 3) % 7]  # 0 is Monday
    if column.has_time:
        parts.append((days - whole) * 24)
    return np.stack(parts, axis=1)


def _codes(column: Column, cells: Series) -> npt.NDArray[np.int64]:
    """Numbers of the column's categories, -1 for missing cells and unknown categories."""
    codes, names = factorize(cells)
    place = {name: i for i, name in enumerate(column.categories)}
    return np.array([*(place.get(name, -1) for name in names), -1])[codes]


def _are_dates(cells: Series) -> bool:
    """Whether whole numbers are dates such as 20240131."""
    values = _numbers(cells)
    for some in (values[: SHOWN + 1], values):  # the first spare most columns the rest
        some = some[np.isfinite(some)].astype(np.float64)
        month, day = some // 100 % 100, some % 100
        dates = (some >= 1900_01_01) & (some <= 2100_12_31) & (month >= 1) & (month <= 12)
        if not (dates & (day >= 1) & (day <= 31) & (day % 1 == 0)).all():
            return False
    return bool(len(some))


def _remark(cells: Series) -> str:
    values = _numbers(cells)
    if len(values) > 1 and values[0] == values[-1] and (values == values[0]).all():
        return "is the same in every row"
    if values.dtype.kind in "iu" and len(values) > MIN_IDENTIFIERS and (np.diff(values) == 1).all():
        return "numbers the rows"
    return ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def shortened(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
