"""A datamodule over the user's arrays."""

from __future__ import annotations

import functools
import mmap
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks._errors import channels_first
from dlblocks.data._blocks import as_positions, check_positions
from dlblocks.data._cache import read_only_tensor
from dlblocks.data._kinds import find_input_kind, find_target_kind, image_size
from dlblocks.data._labels import encode_labels, several_labels
from dlblocks.data._normalization import needs_float64, rounded_integer
from dlblocks.data.datamodule import DataModule
from dlblocks.data.source import Source
from dlblocks.fields import Class, Kind, Labels, Ragged, Values, as_kind


class ArrayDataModule(DataModule):
    """A datamodule over tensors or NumPy arrays, with splits and folds.

    The arrays are shared, not copied, and never written to. uint8 stays uint8 until a batch is on
    its device. float64 and integers become float32. An exception are tables (N, F) that this would
    round by more than 1e-3 of a column's standard deviation, such as times in milliseconds: these
    stay float64 until they are normalised. Arrays in half precision save memory; their batches are
    float32, or what the Trainer's `precision` converts them to. Tokens and masks keep their
    integers, and their batches are int64.

    Inputs may be larger than memory: a memory map (``np.load(file, mmap_mode="r")``), or the name
    of a ``.npy`` file, which is then mapped. Only the rows of a batch are read. Such a file must
    hold uint8 images, float32 or float16, or integers of tokens and masks. Any other dtype would
    have to be converted as a whole.

    Inputs may be sequences of unequal length, features or tokens: a list of arrays (T_i, F), or of
    whole numbers (T_i,), or a `dlblocks.fields.Ragged`. The inputs of a batch are then
    `dlblocks.fields.Padded`, padded with 0 to the longest of the batch. Each of the F features is
    normalised over all steps of the training part, and padding stays 0. A list of sequences of
    equal length is an array (N, T, F), which is normalised along its second axis; give
    ``Ragged.of(list)`` for one mean for each feature.

    Args:
        inputs: Images (N, C, H, W), uint8 or floating point, features (N, F), floating point, or
            tokens (N, T), integers. Or a list of sequences of unequal length. Or the name of a
            ``.npy`` file of an array, which is also possible for `targets`, `test_inputs` and
            `test_targets`.
        targets: Classes, shape (N,) or (N, 1): whole numbers, bool or texts of any values, which
            are mapped to 0 … C-1 and named by `class_names`; see
            `dlblocks.data._labels.encode_labels`. Values to regress, (N,) or (N, D), floating
            point. Masks of images, integers of shape (N, H, W), in which 255 is ignored.
        test_inputs: An official test set, outside every fold.
        test_targets: Its targets.
        groups: Group of each sample, shape (N,). No group is in two parts. With ``"duplicates"``
            equal inputs form a group.
        folds: Fold of each sample, shape (N,), integers or texts, for ``split="predefined"``.
            Samples with a negative number or an empty text are always used for training.
        class_names: Names of the classes 0 … C-1. Texts in `targets` are looked up in this list,
            and whole numbers are positions in it. None for the sorted labels in `targets`.
        input_kind: ``"image"``, ``"features"`` (normalised), ``"tokens"`` (whole numbers, not
            normalised), or a `dlblocks.fields.Kind`. By default (N, C, H, W) are images, and
            floating-point inputs features. Set it for other integers.
        weights: Weight of each sample in training and in every score, numbers >= 0 of shape (N,).
            See `DataModule`.
        test_weights: Weights of the official test set; None for equal weights.
        positions: Where the samples lie in large images, for ``split="blocks"``: image, row and
            column of the first pixel of each tile, shape (N, 3), as `cut_tiles` returns them. Their
            size is that of the inputs, or follows as height and width, shape (N, 5). Points of a
            map, such as plots of land, have height and width 1, or 0.001 in other units.
        target_kind: ``"class"``, ``"labels"``, ``"values"``, ``"mask"``, or a `Kind`, such as
            ``Mask(ignore_index=0)``. By default it follows from dtype and shape of `targets`.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: Lengths differ, values are not finite, a label is missing or unknown, images are
            NHWC, a memory map would have to be converted, and the like. It is raised at the first
            use of the data.

    Example:
        >>> data = ArrayDataModule(np.random.rand(20, 3), np.arange(20) % 2, num_folds=5)
        >>> data.in_features, data.num_classes
        (3, 2)
    """

    def __init__(
        self,
        # Names of files come first, because the command line uses the first type that accepts a
        # text, and NumPy would convert it to an array of bytes.
        inputs: str | Path | Tensor | Ragged | npt.ArrayLike,
        targets: str | Path | Tensor | npt.ArrayLike,
        *,
        test_inputs: str | Path | Tensor | Ragged | npt.ArrayLike | None = None,
        test_targets: str | Path | Tensor | npt.ArrayLike | None = None,
        groups: Literal["duplicates"] | npt.ArrayLike | None = None,
        folds: npt.ArrayLike | None = None,
        class_names: list[str] | None = None,
        input_kind: Kind | str | None = None,
        target_kind: Kind | str | None = None,
        weights: npt.ArrayLike | Tensor | None = None,
        test_weights: npt.ArrayLike | Tensor | None = None,
        positions: npt.ArrayLike | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(groups=groups if isinstance(groups, str) else None, **kwargs)
        check_positions(positions, self.split, groups)
        if (test_inputs is None) != (test_targets is None):
            raise ValueError("give test_inputs and test_targets together, or neither.")
        self.given = inputs, targets, test_inputs, test_targets
        self.groups = None if groups is None or self._keep_duplicates else np.asarray(groups)
        self.folds = None if folds is None else np.asarray(folds)
        self.given_class_names = class_names
        self.input_kind = as_kind("input_kind", input_kind)
        self.target_kind = as_kind("target_kind", target_kind)
        self.weights, self.test_weights = weights, test_weights
        self.positions = None if positions is None else np.asarray(positions)
        arrays = ["inputs", "targets", "test_inputs", "test_targets", "groups", "folds"]
        arrays += ["weights", "test_weights", "positions"]
        self.save_hyperparameters(ignore=[*arrays, "input_kind", "target_kind"])
        kinds = {"input_kind": self.input_kind, "target_kind": self.target_kind}
        self._set_hyperparameters({name: kind and repr(kind) for name, kind in kinds.items()})

    def load(self) -> Source:
        inputs, targets, test_inputs, test_targets = (
            _opened(name, values)
            for name, values in zip(
                ("inputs", "targets", "test_inputs", "test_targets"), self.given, strict=True
            )
        )
        inputs, test_inputs = _sequences(inputs, test_inputs)
        of_inputs = self.input_kind or find_input_kind("inputs", _array(inputs))
        size = image_size(_array(inputs), of_inputs)
        of_targets = self.target_kind or find_target_kind(targets, size) or Values()
        classes, names = _targets("targets", targets, of_targets, self.given_class_names)
        source = Source(
            _inputs("inputs", inputs, of_inputs),
            classes,
            class_names=names,
            groups=self.groups,
            folds=self.folds,
            input_kind=of_inputs,
            target_kind=of_targets,
            weights=_weights("weights", self.weights),
            test_weights=_weights("test_weights", self.test_weights),
        )
        if self.positions is not None:
            source.positions = as_positions(self.positions, len(source.inputs), size)
        if test_inputs is not None:
            source.test_inputs = _inputs("test_inputs", test_inputs, of_inputs)
            if torch.float64 in (source.inputs.dtype, source.test_inputs.dtype):  # keep both alike
                source.inputs = _inputs("inputs", inputs, of_inputs, wide=True)
                source.test_inputs = _inputs("test_inputs", test_inputs, of_inputs, wide=True)
            # A label of the test set has the class of the same label in the training set.
            by_name = self.given_class_names is None
            source.test_targets, _ = _targets(
                "test_targets", test_targets, of_targets, names, by_name=by_name, is_test=True
            )
        return source


def _weights(argument: str, values: Any) -> Tensor | None:
    if values is None:
        return None
    tensor = values.detach() if isinstance(values, Tensor) else _as_tensor(argument, values)
    return tensor.to(_dtype())


def _array(values: Any) -> Any:
    return values if isinstance(values, (Tensor, Ragged)) else np.asarray(values)


def _sequences(inputs: Any, test_inputs: Any) -> tuple[Any, Any]:
    """Make both sets `Ragged` if one has unequal lengths."""
    given = {"inputs": inputs, "test_inputs": test_inputs}
    if not any(isinstance(values, Ragged) or _is_uneven(values) for values in given.values()):
        return inputs, test_inputs
    made = [None if x is None else _ragged(name, x) for name, x in given.items()]
    return made[0], made[1]


def _is_uneven(values: Any) -> bool:
    """Tell whether values are a list of arrays of unequal shape."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        return False
    shapes = set[tuple[int, ...]]()
    for row in values:
        if isinstance(row, (np.ndarray, Tensor)):
            shapes.add(tuple(row.shape))
        else:
            shapes.add((len(row),) if isinstance(row, (list, tuple)) else ())
    return len(shapes) > 1 and () not in shapes


def _ragged(argument: str, values: Any) -> Ragged:
    if isinstance(values, Ragged):
        return values
    rows = [x.detach() if isinstance(x, Tensor) else _as_tensor(argument, x) for x in values]
    for number, row in enumerate(rows):
        if row.shape[1:] != rows[0].shape[1:]:
            cure = "leave out features that not all have"
            if row.ndim == 2 and len({len(x) for x in rows}) == 1:
                cure = "transpose them with [x.T for x in …]"
            raise ValueError(
                f"{argument} has sequences of shape {tuple(rows[0].shape)} in row 0 and "
                f"{tuple(row.shape)} in row {number}; sequences are (T, F) with the same F: {cure}."
            )
    dtypes = [row.dtype for row in rows]
    if len(set(dtypes)) > 1:
        dtype = functools.reduce(torch.promote_types, dtypes)
        rows = [row.to(dtype) for row in rows]
    return Ragged.of(rows)


def _inputs(argument: str, values: Any, kind: Kind, *, wide: bool = False) -> Any:
    """Convert inputs to the dtype in which they are kept.

    Images stay uint8 and tokens integers. Others become floating point: float64 if `wide`, or if
    float32 would round too much.
    """
    if isinstance(values, Ragged):
        converted = _inputs(argument, values.values, kind, wide=wide)
        return Ragged(converted, values.offsets)
    if _is_mapped(values):
        _check_mapped(argument, values, kind)
    if kind.is_integer:
        return _integers(argument, values)
    if isinstance(values, Tensor):
        tensor = values.detach()
        _check_integers(argument, tensor.cpu().numpy() if tensor.dtype == torch.int64 else None)
    else:
        values = np.asarray(values)
        _check_integers(argument, values)
        tensor = _as_tensor(argument, values)
    if tensor.is_complex():
        raise ValueError(f"{argument} is {tensor.dtype}; expected floating point or uint8.")
    if tensor.dtype == torch.bool:
        tensor = tensor.to(_dtype())
    if tensor.ndim == 4 and tensor.shape[-1] in (1, 3, 4) and tensor.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"{argument} has shape {tuple(tensor.shape)}, {channels_first('N, C, H, W')}"
        )
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.to(torch.float64 if wide or needs_float64(tensor) else _dtype())
    return tensor


def _check_integers(argument: str, values: np.ndarray | None) -> None:
    """Refuse whole numbers that float64 would round."""
    number = None if values is None else rounded_integer(values)
    if number is not None:
        raise ValueError(
            f"{argument} has whole numbers above 2**53, such as {number}, which float64 rounds; "
            "leave identifiers out, or subtract an offset."
        )


def _integers(argument: str, values: Any) -> Tensor:
    """Return whole numbers in their own dtype. The kind refuses other numbers."""
    tensor = values.detach() if isinstance(values, Tensor) else _as_tensor(argument, values)
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor


def _targets(
    argument: str,
    values: Any,
    kind: Kind,
    class_names: list[str] | None,
    *,
    by_name: bool = False,
    is_test: bool = False,
) -> tuple[Any, list[str] | None]:
    """Return targets, and the names of classes or None."""
    if isinstance(values, Ragged):
        return values, class_names
    # Values instead of classes are refused later, when both sets are compared.
    if is_test and isinstance(find_target_kind(values), Values):
        kind = Values()
    if isinstance(kind, (Class, Labels)):
        # A small test set may have rows with exactly one 1.
        one_hot = is_test and isinstance(kind, Labels)
        several = several_labels(argument, values, class_names, one_hot=one_hot)
        if several is not None:
            return several
        return encode_labels(argument, values, class_names, by_name=by_name)
    if kind.is_integer:
        return _integers(argument, values), class_names
    if class_names is not None and not by_name:
        raise ValueError(
            f"{argument} are floating point and class_names is given; classes must be integers."
        )
    tensor = values.detach() if isinstance(values, Tensor) else _as_tensor(argument, values)
    return tensor.to(_dtype()), None


def _dtype() -> torch.dtype:
    """Return float32, or float64 if that is torch's default."""
    return torch.promote_types(torch.float32, torch.get_default_dtype())


def _as_tensor(argument: str, values: Any) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{argument} has dtype {array.dtype}; expected numbers.")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    if not array.flags.writeable and not _is_mapped(array):
        array = array.copy()  # otherwise a user's write to it would crash
    return read_only_tensor(array)


# Arrays in files


def _opened(argument: str, values: Any) -> Any:
    """Map the ``.npy`` file named by `values`, or return other values unchanged."""
    if not isinstance(values, (str, os.PathLike)):
        return values
    path = Path(values)
    if path.suffix != ".npy":
        raise ValueError(f"{argument}={str(path)!r} is not a .npy file; save one with np.save.")
    if not path.is_file():
        raise FileNotFoundError(f"{argument}={str(path)!r} does not exist.")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{argument}={str(path)!r} cannot be mapped ({error}); save one array with np.save."
        ) from error


def _is_mapped(values: Any) -> bool:
    """True if an array, or its base, is a memory map."""
    while isinstance(values, np.ndarray):
        values = values.base
    return isinstance(values, mmap.mmap)


def _check_mapped(argument: str, array: np.ndarray, kind: Kind) -> None:
    """Raise a `ValueError` for a memory map that would need a copy."""
    as_it_is = array.dtype == np.uint8 and array.ndim == 4
    as_it_is |= kind.is_integer and (array.dtype.kind == "i" or array.dtype == np.uint8)
    if not as_it_is and array.dtype not in (np.float32, np.float16):
        raise ValueError(
            f"{argument} is a memory map of dtype {array.dtype} and shape {array.shape}; save it "
            "as float32, or as uint8 if it is images (N, C, H, W)."
        )
    if any(stride < 0 or stride > array.strides[0] for stride in array.strides):
        raise ValueError(
            f"{argument} is a memory map whose samples are not contiguous; save it with "
            "np.save(file, np.ascontiguousarray(…))."
        )
