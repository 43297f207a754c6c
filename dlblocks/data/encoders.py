"""Turn samples into the inputs of a model, as in its training.

A fit with a datamodule leaves its encoder on the model, as plain values (`Model.data_spec`), and
the checkpoint keeps it. An encoder reads files, data frames and arrays into raw inputs; the model
prepares those itself. What does not fit the training data is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import Self

from dlblocks._errors import did_you_mean
from dlblocks._plain import NOT_PLAIN, plain
from dlblocks.data._cache import read_only_tensor
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
from dlblocks.data._images import ENDINGS, decode, images_below, size_of
from dlblocks.data._read_csv import is_number
from dlblocks.fields import KINDS, Padded

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SHOWN = 8  # names in a message
CSV_ROWS = 2**16  # read at a time
TRUTH = ("true", "false")
Unseen = Literal["refuse", "missing"]


@dataclass
class Samples:
    """Raw inputs of new samples, some at a time.

    Attributes:
        chunks: Inputs (N, ...), and what each of these samples is called, or None.
        title: What the samples are called by, such as ``"file"``.
        total: Returns the number of samples; None if it is not known.
        is_batched: Whether a chunk is a batch already.
    """

    chunks: Iterator[tuple[Any, Any]]
    title: str = "index"
    total: Callable[[], float | None] = lambda: None
    is_batched: bool = False


@dataclass
class Encoder:
    """Base class of encoders. It takes batches as they are.

    Args:
        class_names: Names of the classes 0 … C-1, or None for values.
        batch_size: Samples of a batch in training; None for all at once.
        target_shape: Shape of the target of a sample, or None if it is not known.
    """

    kind: ClassVar[str] = "batches"

    class_names: list[str] | None = None
    batch_size: int | None = None
    target_shape: list[int] | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, of which `from_plain` makes the same encoder."""
        return {
            "kind": self.kind,
            **asdict(self),
            # For those who have the plain values alone.
            "input_shape": self.input_shape,
            "input_dtype": self.input_dtype,
            "feature_names": self.feature_names,
        }

    @property
    def input_shape(self) -> list[int] | None:
        """Shape of one raw input, or None if not known."""
        return None

    @property
    def input_dtype(self) -> str | None:
        """Dtype of raw inputs, or None if it is not known."""
        return None

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features of a table."""
        return None

    def decoded(self, prediction: Any) -> np.ndarray | None:
        """Return a ragged column of predicted tokens as texts (N,).

        None for other predictions.
        """
        return None

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Make an encoder of what `to_plain` returned."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def read(
        self,
        data: Any,
        rows: int,
        *,
        id_column: str | None = None,
        unseen: Unseen = "refuse",
    ) -> Samples:
        """Open new samples.

        Args:
            data: What the class says.
            rows: Samples of a batch; chunks are multiples of it.
            id_column: Of tables, a column by which the rows are called.
            unseen: Of tables, what becomes of categories that training had not: an error, or a
                missing cell.

        Raises:
            FileNotFoundError: There is no such file, or nothing to predict in it.
            ValueError: The data do not fit those of the training.
            TypeError: The data are of a kind that the model was not trained on.
        """
        if isinstance(data, (np.ndarray, Tensor)):
            return _slices(data, rows, lambda part: torch.as_tensor(part))
        raise TypeError(
            f"data is {_what(data)}, and nothing says how inputs are made of it: the model was "
            "trained on batches of somebody else's, or its members on different data. Give a "
            "DataLoader of such batches, or load(…, preprocess=a function that makes a batch)."
        )


@dataclass
class ArrayEncoder(Encoder):
    """Read tensors, NumPy arrays, lists of numbers and ``.npy`` files.

    Args:
        shape: Shape of a sample.
        dtype: dtype of the training data, such as ``"uint8"``.
        input_kind: Name of their kind; see `dlblocks.fields`.
        may_lack: Whether NaN stands for what the model fills in.
    """

    kind: ClassVar[str] = "array"

    shape: list[Any] = field(default_factory=list)
    dtype: str = "float32"
    input_kind: str = "features"
    may_lack: bool = False

    @property
    def input_shape(self) -> list[Any]:
        return list(self.shape)

    @property
    def input_dtype(self) -> str:
        return "int64" if KINDS[self.input_kind].is_integer else self.dtype

    @property
    def any_size(self) -> bool:
        """True if images may have another size, since targets are maps."""
        return self.input_kind == "image" and self.target_shape == self.shape[1:]

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        if isinstance(data, (str, os.PathLike)):
            data = self._open(Path(data))
        elif not isinstance(data, Tensor):
            data = np.asarray(data)
        if len(data.shape) == 4 and self.any_size and data.shape[1] == self.shape[0]:
            pass  # a map of another size is one of the same kind
        elif len(data.shape) != 1 + len(self.shape) or list(data.shape[1:]) != self.shape:
            one = list(data.shape) == self.shape
            raise ValueError(
                f"data has shape {tuple(data.shape)}, and the model was trained on samples of "
                f"shape {tuple(self.shape)}; give {('N', *self.shape)}"
                f"{', for one sample data[None]' if one else ''}.".replace("'N'", "N")
            )
        if not len(data):
            raise ValueError("data is empty; there is nothing to predict.")
        return _slices(data, rows, self.encode)

    def encode(self, values: Tensor | np.ndarray) -> Tensor:
        """Convert arrays as the datamodule of the training did.

        Returns:
            Shape (N, ...).
        """
        inputs = values if isinstance(values, Tensor) else _as_tensor(values)
        dtype = getattr(torch, self.dtype)
        is_image = self.input_kind == "image"
        if (is_image or not dtype.is_floating_point) and (
            inputs.is_floating_point() != dtype.is_floating_point
        ):
            cure = "give uint8 of 0 … 255" if self.dtype == "uint8" else f"give {self.dtype}"
            raise ValueError(
                f"data is {inputs.dtype}, and the model was trained on {self.dtype}; {cure}, in "
                "the units of the training data."
            )
        if inputs.is_complex():
            raise ValueError(f"data is {inputs.dtype}; give {self.dtype}.")
        if self.dtype == "uint8" and inputs.dtype != torch.uint8:
            low, high = int(inputs.min()), int(inputs.max())
            if low < 0 or high > 255:
                raise ValueError(f"data has values of {low} … {high}; images are uint8, 0 … 255.")
        bad = inputs.isinf() if self.may_lack else ~inputs.isfinite()
        if bad.any():
            row = int(bad.flatten(1).any(1).nonzero()[0])
            raise ValueError(f"data has a value that is not finite in row {row}; remove this row.")
        inputs = inputs.to(dtype)
        return inputs.long() if KINDS[self.input_kind].is_integer else inputs

    def _open(self, path: Path) -> np.ndarray:
        if path.suffix != ".npy":
            raise TypeError(
                f"data={str(path)!r} is not a .npy file, and the model was trained on arrays of "
                f"shape {('N', *self.shape)}; give an array.".replace("'N'", "N")
            )
        if not path.is_file():
            raise FileNotFoundError(f"data={str(path)!r} is not a file.")
        opened: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return opened


def one_size(files: Sequence[str]) -> tuple[int, int]:
    """Return the height and width of all image files.

    Raises:
        ValueError: They have different sizes.
    """
    first = size_of(files[0])
    for file in files[1:]:
        size = size_of(file)
        if size != first:
            raise ValueError(
                f"{file} has {size[0]}×{size[1]} pixels and {files[0]} {first[0]}×{first[1]}; "
                "predict images of one size at a time."
            )
    return first


@dataclass
class SequenceEncoder(ArrayEncoder):
    """Read sequences of any length.

    Data are lists of arrays (T_i, ...), `Ragged`, `Padded`, or arrays (N, T, ...). The first entry
    of `shape`, the length, is None.
    """

    kind: ClassVar[str] = "sequences"

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        if isinstance(data, Padded):
            data = data.sequences()
        if isinstance(data, (str, os.PathLike)):
            raise TypeError(
                f"data={os.fspath(data)!r} is the name of a file, and the model was trained on "
                "sequences; give a list of arrays, one for each sequence."
            )
        if not len(data):
            raise ValueError("data is empty; there is nothing to predict.")
        starts = range(0, len(data), rows)

        def chunks() -> Iterator[tuple[Padded, Any]]:
            for start in starts:
                some = range(start, min(start + rows, len(data)))
                yield Padded.of([self._sequence(i, data[i]) for i in some]), None

        return Samples(chunks(), "index", lambda: len(data), is_batched=True)

    def _sequence(self, row: int, values: Any) -> Tensor:
        """Return one sequence as the datamodule of the training did."""
        inputs = values if isinstance(values, Tensor) else _as_tensor(np.asarray(values))
        if inputs.ndim != len(self.shape) or list(inputs.shape[1:]) != self.shape[1:]:
            raise ValueError(
                f"data has shape {tuple(inputs.shape)} in row {row}, and the model was trained on "
                f"sequences {('T', *self.shape[1:])}; give a list of such arrays.".replace("'", "")
            )
        if not len(inputs):
            raise ValueError(f"data has length 0 in row {row}; remove this row.")
        try:
            return self.encode(inputs)
        except ValueError as error:
            raise ValueError(f"sequence {row}: {error}") from error


@dataclass
class ImageEncoder(ArrayEncoder):
    """Read image files, folders and lists of them, and arrays (N, C, H, W).

    Files are decoded as `dlblocks.data.ImageFolderDataModule` does: turned upright, made grey or
    colour, the shorter side resized and the centre cut out.

    Args:
        background: What transparent pixels are laid on.
        file_size: Height and width to which files are resized, or an empty list to leave them as
            they are. None for those of `shape`.
    """

    kind: ClassVar[str] = "image"

    background: list[int] = field(default_factory=lambda: [255, 255, 255])
    file_size: list[int] | None = None

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        files, names = self._files(data)
        if files is None:
            return super().read(data, rows)
        channels, *size = self.shape
        if self.file_size is not None:
            size = list(self.file_size or one_size(files))
        colour: Any = tuple(self.background)

        def chunks() -> Iterator[tuple[Tensor, list[str]]]:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
                for start in range(0, len(files), rows):
                    some = files[start : start + rows]
                    decoded = pool.map(lambda file: decode(file, size, channels, colour), some)
                    # Of another layout in memory, convolutions round in another way.
                    images = np.ascontiguousarray(np.stack(list(decoded)))
                    yield torch.from_numpy(images), names[start : start + rows]

        return Samples(chunks(), "file", lambda: len(files))

    def _files(self, data: Any) -> tuple[list[str] | None, list[str]]:
        """Return the files and their names.

        The files are None if the data are arrays.
        """
        if isinstance(data, (str, os.PathLike)):
            path = Path(data)
            if path.suffix == ".npy":
                return None, []
            if path.is_dir():
                found = images_below(path)
                if not found:
                    raise FileNotFoundError(
                        f"data={str(path)!r} has no image, which end with {', '.join(ENDINGS)}."
                    )
                return found, [Path(file).relative_to(path).as_posix() for file in found]
            data = [path]
        is_list = isinstance(data, Sequence) and not isinstance(data, (bytes, str))
        if not is_list or not all(isinstance(file, (str, os.PathLike)) for file in data):
            return None, []
        if not data:
            raise ValueError("data is an empty list; there is nothing to predict.")
        files = [os.fspath(file) for file in data]
        for file in files:
            if not os.path.isfile(file):
                raise FileNotFoundError(f"data={file!r} is neither a file nor a folder.")
        return files, files


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
        rows = max(1, CSV_ROWS // rows) * rows
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
                    f"data is {_what(data)}, and column {other[0]!r} of the training table is not "
                    "a number; give a DataFrame."
                )
            if array.ndim != 2 or array.shape[1] != len(names):
                raise ValueError(
                    f"data has shape {array.shape}; expected (N, {len(names)}), with the columns "
                    f"{_listed(names)}."
                )
            frame = pd.DataFrame(array, columns=names)
        else:
            raise TypeError(
                f"data is {_what(data)}, and the model was trained on a table; give a CSV file, a "
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
            f"{where} has no column {_listed(missing)}, which the model was trained on"
            f"{hint or '.'} There are: {_listed(names)}.{header}"
        )

    def _say_others(self, where: str, names: Sequence[str], id_column: str | None) -> None:
        known = {column.name for column in self.columns} | {*self.others, id_column}
        more = [name for name in names if name not in known]
        if more:
            rank_zero_info(f"{where}: the model does not know, and ignores, {_listed(more)}.")

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
    """Check the cells of new rows against the columns of the training table."""

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


ENCODERS: dict[str, type[Encoder]] = {
    cls.kind: cls for cls in (Encoder, ArrayEncoder, SequenceEncoder, ImageEncoder, TableEncoder)
}


def encoder_of(data_spec: Mapping[str, Any] | None) -> Encoder:
    """Return the encoder that a `data_spec` describes.

    None gives one that knows nothing.

    Raises:
        ValueError: A later version of dlblocks has written it.
    """
    if data_spec is None:
        return Encoder()
    kind = data_spec.get("kind")
    if kind not in ENCODERS:
        raise ValueError(
            f"the model's data are of kind {kind!r}, which this version of dlblocks does not know."
        )
    return ENCODERS[kind].from_plain(data_spec)


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


def _slices(data: Any, rows: int, encode: Callable[[Any], Tensor]) -> Samples:
    rows = max(1, CSV_ROWS // rows) * rows if data[:1].nbytes < 1024 else rows
    chunks = ((encode(data[i : i + rows]), None) for i in range(0, len(data), rows))
    return Samples(chunks, total=lambda: len(data))


def _as_tensor(values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "fiub":
        raise ValueError(f"data has dtype {values.dtype}; expected numbers.")
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.int64)
    return read_only_tensor(np.ascontiguousarray(values))


def _what(data: Any) -> str:
    if isinstance(data, (str, os.PathLike)):
        return repr(str(data))
    shape = getattr(data, "shape", None)
    return f"a {type(data).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
