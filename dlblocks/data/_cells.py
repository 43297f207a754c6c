"""Read numbers, dates and categories in cells of tables."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dlblocks.data._normalization import rounded_integer
from dlblocks.data._read_csv import NO_NAME, is_number

if TYPE_CHECKING:
    from pandas import Series

SHOWN = 3  # cells in a message
LONG_INTEGER = re.compile(r"[+-]?\d{16,}", re.ASCII)  # perhaps above 2**53
DAY_FIRST = "dayfirst"  # in place of a date format
FILTERS = threading.Lock()


def compacted(cells: Series) -> Series:
    """Convert a column of texts to pandas' categories.

    The categories are in the order of their first rows. Those without a row are left out. All later
    steps are many times faster with categories.
    """
    import pandas as pd

    values: Any = cells
    if is_text(cells) and getattr(cells.dtype, "storage", "") != "pyarrow":
        values = cells.to_numpy(dtype=object)  # twice as fast
    try:
        codes, found = _factorize_objects(values) if values is not cells else pd.factorize(values)
    except TypeError as error:
        raise ValueError(
            f"column {cells.name!r} has cells that are neither numbers nor texts, such as "
            f"{cells.iloc[0]!r}; split them into columns, or leave it out with "
            f"drop=[{cells.name!r}]."
        ) from error
    texts = pd.Index(found, dtype=object)
    known = pd.Categorical.from_codes(codes, categories=texts, validate=False)
    return pd.Series(known, index=cells.index, name=cells.name)


def _factorize_objects(cells: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Any]:
    """Do as `pandas.factorize`, in a third of the time where many cells are the same object.

    Equal texts of a chunk of a CSV file are one object.
    """
    import pandas as pd

    addresses = np.frombuffer(np.ascontiguousarray(cells), np.intp)
    objects, different = pd.factorize(addresses)
    first = np.empty(len(different), np.intp)
    first[objects[::-1]] = np.arange(len(cells) - 1, -1, -1)
    codes, found = pd.factorize(cells[first])
    return codes[objects], found


def is_categorical(cells: Series) -> bool:
    """Return True for a column of pandas' categories."""
    from pandas.api import types

    return isinstance(cells.dtype, types.CategoricalDtype)


def is_text(cells: Series) -> bool:
    """Return True for a column of texts or objects."""
    from pandas.api import types

    return bool(types.is_object_dtype(cells.dtype) or types.is_string_dtype(cells.dtype))


def text(cell: Any) -> str:
    """Return a cell as the name of a category.

    Whole numbers lose their decimals, and texts the spaces around them.
    """
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def distinct(cells: Series) -> tuple[npt.NDArray[Any], Any]:
    """Number the different cells in the order of their first rows.

    Missing cells get -1. Categories must be in the form of `compacted`.
    """
    import pandas as pd

    if is_categorical(cells):
        return cells.cat.codes.to_numpy(), cells.cat.categories
    codes, found = pd.factorize(cells)
    return codes, found


def factorize(
    cells: Series, name: Callable[[Any], str] = text
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Number the categories of a column.

    Missing cells get -1. Names are sorted as numbers if all of them are numbers, else as texts.
    Cells with the same `name` belong to the same category.
    """
    codes, found = distinct(cells)
    texts = [name(cell) for cell in found]
    names = sorted(set(texts))
    if all(map(is_number, names)):
        names.sort(key=float)
    place = {name: i for i, name in enumerate(names)}
    return np.array([*(place[name] for name in texts), -1])[codes], names


def to_numbers(cells: Series) -> Series:
    """Return cells as float64, with NaN for cells that are not numbers."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(cells.dtype):
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        return pd.Series(values, index=cells.index)
    codes, found = distinct(cells)  # each text is read once
    numbers = pd.to_numeric(pd.Series(found).astype(object), errors="coerce").to_numpy(np.float64)
    return pd.Series(np.append(numbers, np.nan)[codes], index=cells.index)


def plain_values(cells: Series) -> npt.NDArray[Any]:
    """Return numbers (N,), without a copy if the cells are NumPy's numbers."""
    plain = isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "iufb"
    plain = plain and cells.dtype.itemsize <= 8  # torch has no larger numbers
    values: npt.NDArray[Any] = cells.to_numpy() if plain else to_numbers(cells).to_numpy()
    return values


def count_missing(cells: Series) -> int:
    """Count the missing cells of a column."""
    if isinstance(cells.dtype, np.dtype) and (
        cells.dtype.kind in "iub"
        # The smallest number is NaN if any number is, which is faster to find than all of them.
        or (cells.dtype.kind == "f" and len(cells) and not np.isnan(cells.to_numpy().min()))
    ):
        return 0
    return int(cells.isna().sum())


def value_range(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and the largest number, apart from NaN."""
    return float(np.fmin.reduce(values)), float(np.fmax.reduce(values))


def rounded_cell(cells: Series) -> int | None:
    """Return the first whole number above 2**53 that float64 rounds, or None.

    Args:
        cells: Numbers, or texts such as "9007199254740993", as `compacted` makes them.
    """
    import pandas as pd

    if is_categorical(cells):
        texts = [str(cell).strip() for cell in cells.cat.categories]
        whole = [int(one) for one in texts if LONG_INTEGER.fullmatch(one)]
        return next((one for one in whole if int(float(one)) != one), None)
    if not pd.api.types.is_integer_dtype(cells.dtype):
        return None
    return rounded_integer(cells.dropna().to_numpy())


def plain_numbers(
    where: str, cells: Series, decimal: str, thousands: str | None, cure: str
) -> Series:
    """Read numbers such as "1.234,5".

    Texts stay texts unless all of them are numbers.

    Args:
        where: The table's name in messages.
        cells: Texts.
        decimal: The decimal point.
        thousands: Separator of thousands, or None.
        cure: End of the message about a number of another format.

    Raises:
        ValueError: A cell is a number only with a decimal point, such as "1.500" with
            ``decimal=","``.
    """
    import pandas as pd

    codes, found = pd.factorize(cells)
    ours, pythons = number_format(decimal, thousands), number_format(".", None)
    plain: list[Any] = []
    for cell in found:
        known = ours.fullmatch(str(cell).strip())
        if known is None and pythons.fullmatch(str(cell).strip()):
            row = int((codes == len(plain)).argmax()) + 1
            given = f"decimal={decimal!r}" + f", thousands={thousands!r}" * bool(thousands)
            raise ValueError(
                f"{where}: column {cells.name!r} has {cell!r} in row {row}, which is not a number "
                f"with {given}; {cure}."
            )
        number = str(cell).strip().replace(thousands or decimal, "" if thousands else ".")
        plain.append(number.replace(decimal, ".") if known else cell)
    made = pd.Series([*plain, None], dtype=object)
    if all(map(pythons.fullmatch, map(str, plain))):
        numbers = pd.to_numeric(made[:-1])
        if not (codes < 0).any():
            made = numbers
        elif rounded_integer(numbers.to_numpy()) is None:  # else keep texts for a question
            made = pd.to_numeric(made)
    return pd.Series(made.to_numpy()[codes], index=cells.index, name=cells.name)


def number_format(decimal: str, thousands: str | None) -> re.Pattern[str]:
    """Return a pattern of numbers with this decimal point and separator."""
    point, whole = re.escape(decimal), r"\d+"
    if thousands:
        whole = rf"\d{{1,3}}({re.escape(thousands)}\d{{3}})+|\d+"
    return re.compile(rf"[+-]?(({whole})({point}\d*)?|{point}\d+)([eE][+-]?\d+)?", re.ASCII)


def to_days(cells: Series, date_format: str | None) -> Series:
    """Return dates as days since 1970-01-01 UTC, with fractions.

    They are float64, with NaN for cells that are not dates.

    Args:
        cells: Texts or dates.
        date_format: Format for `pandas.to_datetime`, `DAY_FIRST`, or None to infer it.
    """
    import pandas as pd

    codes, found = distinct(cells)  # each date is read once
    dates = pd.Series(found)
    if not pd.api.types.is_datetime64_any_dtype(dates.dtype):
        texts = dates.astype(str)
        kind: dict[str, Any] = {"errors": "coerce", "utc": True}
        if date_format is None or date_format == DAY_FIRST:
            kind["dayfirst"] = date_format == DAY_FIRST
        else:
            kind["format"] = date_format
        # Columns are read in threads, which share the filters of warnings.
        with FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the format cannot be inferred
            dates = pd.to_datetime(texts, **kind)
        if "dayfirst" in kind and dates.isna().any():  # formats differ
            dates = pd.to_datetime(texts, format="mixed", **kind)
    if dates.dt.tz is not None:
        dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
    since = dates.to_numpy("datetime64[us]") - np.datetime64(0, "us")  # reaches back to year 1
    days = since / np.timedelta64(1, "D")
    return pd.Series(np.append(days, np.nan)[codes], index=cells.index)


def refuse_missing(where: str, cells: Series, cure: str, said: str = "") -> None:
    """Refuse missing cells. `said` tells how the file writes them."""
    gone = cells.isna().to_numpy()
    if gone.any():
        count = f"{int(gone.sum())} of {len(gone)} rows have none{said}"
        raise ValueError(
            f"{where}: row {int(gone.argmax()) + 1} has no value in column {cells.name!r} "
            f"({count}); {cure}."
        )


def is_row_numbers(name: str, cells: Series) -> bool:
    """Return True for a nameless column that differs in every row."""
    return name.startswith(NO_NAME) and len(cells) > 1 and cells.is_unique and cells.notna().all()


def shortened(names: Sequence[str]) -> str:
    """Return the first of some names, for a message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
