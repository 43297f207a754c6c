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
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from dlblocks.data._cache import read_only_tensor
from dlblocks.data._images import ENDINGS, decode, images_below, one_size
from dlblocks.fields import KINDS, Padded

CSV_ROWS = 2**16  # read at a time
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
        target_kind: Name of its kind, such as ``"boxes"``; empty if it is not known.
    """

    kind: ClassVar[str] = "batches"

    class_names: list[str] | None = None
    batch_size: int | None = None
    target_shape: list[int] | None = None
    target_kind: str = ""

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
            f"data is {what(data)}, and nothing says how inputs are made of it: the model was "
            "trained on batches of somebody else's, or its members on different data, or it was "
            "written by an earlier version of dlblocks. Give an array of inputs, a DataLoader of "
            "such batches, or load(…, preprocess=a function that makes a batch)."
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
        """True if images may have another size, since targets are maps or boxes."""
        finds_places = self.target_kind == "boxes" or self.target_shape == self.shape[1:]
        return self.input_kind == "image" and finds_places

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        if isinstance(data, (str, os.PathLike)):
            data = self._open(Path(data))
        elif not isinstance(data, Tensor):
            data = np.asarray(data)
        if len(data.shape) == 4 and self.any_size and data.shape[1] == self.shape[0]:
            pass  # a map of another size, or boxes in it, are of the same kind
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


ENCODERS: dict[str, type[Encoder]] = {
    cls.kind: cls for cls in (Encoder, ArrayEncoder, SequenceEncoder, ImageEncoder)
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


def as_given(encoder: Encoder, background: Any, size: Any) -> Encoder:
    """Read image files in their own size, unless training resized them."""
    if isinstance(encoder, ImageEncoder):
        encoder.background, encoder.file_size = list(background), list(size or ())
    return encoder


def whole_batches(rows: int) -> int:
    """Return how many rows are read at a time.

    They are whole batches.
    """
    return max(1, CSV_ROWS // rows) * rows


def _slices(data: Any, rows: int, encode: Callable[[Any], Tensor]) -> Samples:
    rows = whole_batches(rows) if data[:1].nbytes < 1024 else rows
    chunks = ((encode(data[i : i + rows]), None) for i in range(0, len(data), rows))
    return Samples(chunks, total=lambda: len(data))


def _as_tensor(values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "fiub":
        raise ValueError(f"data has dtype {values.dtype}; expected numbers.")
    if values.dtype.kind == "u" and values.dtype != np.uint8:
        values = values.astype(np.int64)
    return read_only_tensor(np.ascontiguousarray(values))


def what(data: Any) -> str:
    """Return what data are, for messages."""
    if isinstance(data, (str, os.PathLike)):
        return repr(str(data))
    shape = getattr(data, "shape", None)
    return f"a {type(data).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")
