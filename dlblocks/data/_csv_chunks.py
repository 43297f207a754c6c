"""Read CSV files in chunks, by the rules of `dlblocks.data._read_csv`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlblocks.data._read_csv import COMPRESSED, NO_NAME, _is_table, _not_decoded, read_table

if TYPE_CHECKING:
    import pandas as pd

HEAD = 50  # rows by which a file is judged before it is read
# Of the training file, but not of others: which of its rows and columns are read.
OF_ONE_FILE = ("nrows", "usecols", "chunksize", "iterator")


class CsvChunks:
    """Iterate over the rows of CSV files in chunks.

    Args:
        path: A file, or a folder whose files are read in the order of their names.
        read_args: Arguments of `pandas.read_csv`; see `read_table`.
        texts: Dtypes of columns that are read as texts.
        rows: Rows of a chunk.

    Attributes:
        fraction: Share of the bytes that have been read, 0 … 1; 0 if it is not known.
    """

    def __init__(
        self, path: Path, read_args: Mapping[str, Any], texts: Mapping[str, Any], rows: int
    ) -> None:
        self.path, self.texts, self.rows, self.fraction = path, texts, rows, 0.0
        self.read_args = {k: v for k, v in read_args.items() if k not in OF_ONE_FILE}

    def __iter__(self) -> Iterator[pd.DataFrame]:
        head = read_table(self.path, {**self.read_args, **self._nrows()})  # says what is wrong
        files = [self.path]
        if self.path.is_dir():
            files = sorted(file for file in self.path.iterdir() if _is_table(file))
        sizes = [file.stat().st_size for file in files]
        for i, file in enumerate(files):
            if i:
                head = read_table(file, {**self.read_args, **self._nrows()})
            for table, share in self._chunks(file, head):
                self.fraction = (sum(sizes[:i]) + share * sizes[i]) / max(1, sum(sizes))
                yield table

    def _nrows(self) -> dict[str, Any]:
        # pandas skips a footer only of a file that it reads whole.
        return {} if self.read_args.get("skipfooter") else {"nrows": HEAD}

    def _chunks(self, path: Path, head: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, float]]:
        if self.read_args.get("skipfooter"):
            dtype = {name: of for name, of in self.texts.items() if name in head.columns}
            table = read_table(path, {**self.read_args, "dtype": self._dtype(dtype)})
            for start in range(0, len(table), self.rows):
                yield table.iloc[start : start + self.rows], (start + self.rows) / len(table)
            return
        import pandas as pd

        args = {"skipinitialspace": True, "index_col": False, **self.read_args}
        if args.get("sep") is None:
            args["sep"] = "\t" if ".tsv" in [ending.lower() for ending in path.suffixes] else ","
        plain = {k: v for k, v in args.items() if k not in ("dtype", "na_values")}
        if args.get("names") is not None:
            # pandas would fill in columns that the file does not have.
            unnamed = {**plain, "names": None, "header": None, "nrows": 1, "dtype": str}
            width = len(_reading(path, lambda: pd.read_csv(path, **unnamed)).columns)
            args["names"] = plain["names"] = list(args["names"])[:width]
        names = list(_reading(path, lambda: pd.read_csv(path, **plain, nrows=0)).columns)
        found = {str(name).strip(): name for name in names}  # as the file has them
        texts = {found[name]: of for name, of in self.texts.items() if name in found}
        dtype = self._dtype({}, found)
        args["dtype"] = {**texts, **dtype} if isinstance(dtype, dict) else dtype
        if isinstance(args.get("na_values"), Mapping):
            args["na_values"] = {
                found[name]: values for name, values in args["na_values"].items() if name in found
            }
        row_names = f"{NO_NAME}0"
        has_row_names = row_names in head.columns and row_names not in found
        if has_row_names:  # a cell more in each row than in the header
            args["index_col"] = None
        with contextlib.ExitStack() as stack:
            source: Any = path
            size = max(1, path.stat().st_size)
            if not path.name.lower().endswith(COMPRESSED) and "compression" not in args:
                source = stack.enter_context(path.open("rb"))  # which knows its position
            reader = stack.enter_context(
                _reading(path, lambda: pd.read_csv(source, chunksize=self.rows, **args))
            )
            while True:
                table = _reading(path, lambda: next(reader, None))
                if table is None:
                    return
                if has_row_names:
                    table = table.reset_index(names=row_names)
                elif "index_col" in self.read_args:
                    table = table.reset_index()
                table.columns = [str(name).strip() for name in table.columns]
                yield table, 0.0 if source is path else source.tell() / size

    def _dtype(self, texts: dict[Any, Any], found: Mapping[str, Any] | None = None) -> Any:
        """Return the user's dtypes, and text for some columns."""
        given = self.read_args.get("dtype", {})
        if not isinstance(given, Mapping):
            return given
        names = found or {name: name for name in given}
        return {**texts, **{names[name]: dtype for name, dtype in given.items() if name in names}}


def _reading(path: Path, read: Any) -> Any:
    """Call `read`, and name the file in errors."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # cells are checked one by one
            warnings.filterwarnings("error", "Length of header", pd.errors.ParserWarning)
            return read()
    except UnicodeError as error:
        raise ValueError(_not_decoded(path, {}, error)) from error
    except Exception as error:  # each decompressor has errors of its own
        said = str(error).strip().replace("Error tokenizing data. C error: ", "")
        raise ValueError(f"{path} cannot be read ({said}).") from error
