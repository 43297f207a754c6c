"""Read CSV files with pandas.

Files that pandas would read wrongly without a warning raise errors here.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlblocks._errors import did_you_mean, listed

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".tsv", ".txt", ".data")
COMPRESSED = (".gz", ".bz2", ".zip", ".xz", ".zst")
OTHER_READERS = {".parquet": "parquet", ".feather": "feather", ".json": "json", ".xlsx": "excel"}
NO_NAME = "Unnamed: "  # pandas' name of a nameless column
# Arguments with which the bytes of a file are not the cells as written.
DECODING = {"encoding", "compression", "delimiter", "dialect", "lineterminator"}
SCANNED = 1 << 18  # bytes at a time
HEAD = 100  # rows that show which columns are texts
MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bz2", b"PK": "zip", b"\xfd7": "xz"}


def check_read_args(argument: str, given: Mapping[str, Any]) -> None:
    """Raise a `ValueError` unless `pandas.read_csv` has arguments of these names."""
    import pandas as pd

    known = list(inspect.signature(pd.read_csv).parameters)[1:]
    for name in given:
        if name not in known:
            raise ValueError(
                f"{argument} has {name!r}, which is not an argument of pandas.read_csv"
                f"{did_you_mean(name, known) or '.'}"
            )


def check_name(argument: str, given: str | Path, names: Collection[str]) -> None:
    """Raise a `ValueError` unless it is a known name or a path."""
    path = Path(given)
    if str(given) not in names and not path.suffix and not path.exists():
        hint = did_you_mean(str(given), names) or f"; those are {', '.join(names)}."
        raise ValueError(f"{argument}={str(given)!r} is neither a file nor a data set{hint}")


def read_table(path: Path, read_args: Mapping[str, Any]) -> pd.DataFrame:
    """Read a CSV file, or all CSV files of a folder.

    Args:
        path: A file, or a folder whose files have the same columns; they are read in the order of
            their names. Hidden files are left out.
        read_args: Arguments of `pandas.read_csv`. ``sep`` is a tab by default for ``.tsv``.

    Returns:
        The table. An index that pandas found is a column ``"Unnamed: 0"``.

    Raises:
        FileNotFoundError: The file or folder does not exist, or the folder has no CSV file.
        ValueError: A file cannot be read, has no rows or no header, or has two columns of one name;
            or the files of a folder have different columns.
    """
    import pandas as pd

    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _is_table(file))
        if not files:
            endings = ", ".join(ENDINGS)
            raise FileNotFoundError(
                f"data={str(path)!r} has no CSV file, which end with {endings}."
            )
    elif path.is_file():
        files = [path]
    else:
        raise FileNotFoundError(f"data={str(path)!r} is neither a file nor a folder.")
    tables = [_read(file, read_args) for file in files]
    for file, table in zip(files, tables, strict=True):
        different = set(table.columns) ^ set(tables[0].columns)
        if different:
            raise ValueError(
                f"{file} and {files[0]} have different columns: only one of them has "
                f"{listed(sorted(different), 6)}. All files of a folder need the same."
            )
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)


def missing_texts(path: Path, read_args: Mapping[str, Any], column: str) -> Counter[str]:
    """Count how the missing cells of a column are written.

    Empty cells are left out.

    Args:
        path: As for `read_table`.
        read_args: As for `read_table`.
        column: Name of the column.
    """
    texts = {"keep_default_na": False, "na_values": None, "dtype": str}
    gone = read_table(path, read_args)[column].isna().to_numpy()
    cells = read_table(path, {**read_args, **texts})[column][gone].dropna()
    return Counter(text for cell in cells if (text := str(cell).strip()))


def _is_table(file: Path) -> bool:
    name = file.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return file.is_file() and not name.startswith(".") and name.endswith(ENDINGS)


def _read(path: Path, given: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    reader = OTHER_READERS.get(path.suffix.lower())
    if reader is not None:
        raise ValueError(
            f"data={str(path)!r} is not a CSV file; pass data=pandas.read_{reader}({str(path)!r})."
        )
    args = {"index_col": False, **given}
    if args.get("sep") is None:
        args["sep"] = "\t" if ".tsv" in [ending.lower() for ending in path.suffixes] else ","
    args.setdefault("skipinitialspace", _may_have_leading_spaces(path, args))
    by_column = [
        key for key in ("dtype", "na_values") if args.get(key) and isinstance(args[key], dict)
    ]
    if by_column:  # by stripped names, as the table has them; pandas wants those of the file
        no_rows = {k: v for k, v in args.items() if k not in (*by_column, "skipfooter")}
        names = list(getattr(_parse(path, {**no_rows, "nrows": 1}), "columns", ()))
        for key in by_column:
            given_as = args[key]
            args[key] = {n: given_as[str(n).strip()] for n in names if str(n).strip() in given_as}
    if isinstance(args.get("dtype"), dict):
        # With it pandas would put the columns together in a single thread.
        given_as = args.pop("dtype")
        if given_as:
            first = {**args, "nrows": min(HEAD, args.get("nrows") or HEAD)}
            head = _parse(path, {k: v for k, v in first.items() if k != "skipfooter"})
            given_as = {
                name: dtype
                for name, dtype in given_as.items()
                if dtype is not str or not _is_text_anyway(head[name])
            }
        if given_as:
            args["dtype"] = given_as
    table = _parse(path, args)
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{path}: read_args={dict(given)!r} gives no table.")
    if "header" not in args and "names" not in args:
        _check_header(path, table, args)
    table.columns = [str(name).strip() for name in table.columns]
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise ValueError(f"{path} has two columns named {twice[0]!r}; rename one.")
    if "index_col" in given:
        table = table.reset_index()
    if not len(table):
        raise ValueError(f"{path} has no rows; expected a header and at least one row.")
    return table


def _is_text_anyway(head: pd.Series) -> bool:
    """Tell from its first cells whether pandas reads a column as text.

    A single text makes the whole column text. If only some cells are texts, or some are missing,
    pieces of the file may have none, and pandas would read it again.
    """
    return all(isinstance(cell, str) and not is_number(cell) for cell in head)


def _may_have_leading_spaces(path: Path, args: Mapping[str, Any]) -> bool:
    """Tell whether a cell may begin with a space.

    If none does, pandas reads the file in 4/5 of the time.
    """
    plain = path.suffix.lower() in ENDINGS and not DECODING & args.keys()
    if not plain or len(args["sep"]) != 1 or not args["sep"].isascii():
        return True
    starts = np.frombuffer(f"\n\r{args['sep']}".encode(), dtype=np.uint8)
    chunk = bytearray(SCANNED)  # the first byte is the one before
    chunk[0] = ord("\n")
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(memoryview(chunk)[1:]):
            if chunk.find(b" ", 1, size + 1) >= 0:
                codes = np.frombuffer(chunk, dtype=np.uint8, count=size + 1)
                if np.isin(codes[:-1][codes[1:] == ord(" ")], starts).any():
                    return True
            chunk[0] = chunk[size]
    return False


def _parse(path: Path, args: Mapping[str, Any]) -> Any:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.DtypeWarning)
            warnings.filterwarnings("error", "Length of header", pd.errors.ParserWarning)
            return pd.read_csv(path, **args)
    except pd.errors.ParserWarning as error:
        return _with_row_names(path, args, error)
    except pd.errors.DtypeWarning:
        # Read in pieces, a column has numbers in one piece and texts in another.
        return pd.read_csv(path, **{**args, "low_memory": False})
    except UnicodeError as error:
        raise ValueError(_not_decoded(path, args, error)) from error
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} has no rows: the file is empty.") from error
    except pd.errors.ParserError as error:
        said = str(error).strip().replace("Error tokenizing data. C error: ", "")
        raise ValueError(
            f"{path} cannot be read ({said}). Here sep={args['sep']!r}; for lines above the header "
            "set read_args={'skiprows': 2}."
        ) from error
    except Exception as error:  # each decompressor has errors of its own
        raise ValueError(f"{path} cannot be read: {error}") from error


def _not_decoded(path: Path, args: Mapping[str, Any], error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    for magic, name in MAGIC.items():
        if start.startswith(magic):
            return f"{path} is compressed; set read_args={{'compression': {name!r}}}."
    if start in (b"\xff\xfe", b"\xfe\xff"):
        cure = "It begins like encoding='utf-16'."
    else:
        cure = "Older files of Windows are often encoding='cp1252', others encoding='latin-1'."
    return f"{path} is not encoding={args.get('encoding') or 'utf-8'!r} ({error}). {cure}"


def _check_header(path: Path, table: pd.DataFrame, args: Mapping[str, Any]) -> None:
    """Refuse a header that shows wrong arguments."""
    names = [str(name) for name in table.columns]
    named = [name for name in names if not name.startswith(NO_NAME)]
    if len(named) == 1:  # two if the cells have decimal commas
        single = f"{path} has a single column, {named[0]!r}; if it is separated by"
        for sep in (";", "\t", "|", ","):
            if sep in named[0] and sep != args["sep"]:
                raise ValueError(f"{single} {sep!r}, set sep={sep!r}.")
        cells = table[table.columns[names.index(named[0])]].astype(str)
        if re.search(r"\S\s+\S", named[0]) and cells.str.contains(r"\s").all():
            raise ValueError(rf"{single} spaces, set sep='\s+'.")
    bases = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2].isdecimal()}
    if bases & set(names):  # pandas calls a second "a" "a.1"; the file may, too
        text = {"header": None, "nrows": 1, "dtype": str, "index_col": False}
        kept = ("sep", "encoding", "compression", "skiprows", "quotechar")
        only = {key: args[key] for key in kept if key in args}
        header = [str(name).strip() for name in _parse(path, {**only, **text}).iloc[0]]
        twice = [name for name in header if header.count(name) > 1 and name != "nan"]
        if twice:
            raise ValueError(f"{path} has two columns named {twice[0]!r}; rename one.")
    # pandas makes "5.1.1" of a second "5.1" in the header.
    plain = [name.rpartition(".")[0] if name.count(".") > 1 else name for name in named]
    if len(names) > 1 and all(map(is_number, plain)):
        raise ValueError(
            f"{path} seems to have no header: its first row is {listed(names, 6)}. "
            "read_args={'header': None} names the columns; {'header': 0} takes the row as it is."
        )


def _with_row_names(path: Path, args: Mapping[str, Any], error: Exception) -> pd.DataFrame:
    """Read a file of R, whose rows have a name without header."""
    table = _parse(path, {**args, "index_col": None})
    count, levels = len(table.columns), table.index.nlevels
    if levels > 1 or not table.index.is_unique:
        _check_header(path, table, args)  # decimal commas split the cells of another separator
        raise ValueError(
            f"{path}: rows have {count + levels} cells and the header {count}; complete the header."
        ) from error
    return table.reset_index(names=f"{NO_NAME}0")


def is_number(text: str) -> bool:
    """Return True for a text that `float` reads."""
    try:
        float(text)
    except ValueError:
        return False
    return True
