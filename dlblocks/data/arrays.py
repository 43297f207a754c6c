"""Arrays of the user's own."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks.data._cache import read_only_tensor
from dlblocks.data._kinds import find_input_kind, find_target_kind, image_size
from dlblocks.data._labels import encode_labels, several_labels
from dlblocks.data._normalization import needs_float64, rounded_integer
from dlblocks.data.datamodule import DataModule, Source
from dlblocks.fields import Class, Kind, Labels, Ragged, Values, as_kind


class ArrayDataModule(DataModule):
    """Tensors or NumPy arrays as a datamodule: splits, folds, normalisation, loaders.

    The arrays are shared, not copied, and never written to. uint8 stays uint8 until a batch is on
    its device. float64 and integers become float32, but for tables (N, F) that this would round by
    more than 1e-3 of a column's standard deviation, such as times in milliseconds: these stay
    float64 until they are normalised. Half precision saves memory: batches are float32, or what the
    Trainer's `precision` makes of them. Tokens and masks keep their integers; batches are int64.

    Inputs may be larger than memory: a memory map (``np.load(file, mmap_mode="r")``), or the name
    of a ``.npy`` file, which is then mapped. Only the rows of a batch are read. Such a file must
    be uint8 images, float32 or float16, or integers of tokens and masks, since others would be
    converted whole.

    Args:
        inputs: Images (N, C, H, W), uint8 or floating point, features (N, F), floating point, or
            tokens (N, T), integers; or a ``.npy`` file of those, as `targets`, `test_inputs` and
            `test_targets` may be, too.
        targets: Classes, shape (N,) or (N, 1): whole numbers, bool or texts of any values, which
            are mapped to 0 … C-1 and named by `class_names`; see
            `dlblocks.data._labels.encode_labels`. Values to regress, (N,) or (N, D), floating
            point. Masks of images, integers of shape (N, H, W), in which 255 does not count.
        test_inputs: An official test set, outside every fold.
        test_targets: Its targets.
        groups: Group of each sample, shape (N,): no group is in two parts. ``"duplicates"``: equal
            inputs are a group.
        folds: Fold of each sample, shape (N,), integers or texts, for ``split="predefined"``; one
            that is negative or empty always trains.
        class_names: Names of the classes 0 … C-1: texts in `targets` are looked up in it, whole
            numbers are positions in it. None: the sorted labels in `targets`.
        input_kind: ``"image"``, ``"features"`` (normalised), ``"tokens"`` (whole numbers that stay
            whole), or a `dlblocks.fields.Kind`. None: images (N, C, H, W), or features if they are
            floating point. Other integers need it.
        weights: How much each sample counts, in training and in every score: numbers >= 0 of shape
            (N,). See `DataModule`.
        test_weights: Likewise of the official test set; None: all the same.
        target_kind: ``"class"``, ``"labels"``, ``"values"``, ``"mask"``, or a `Kind`, such as
            ``Mask(ignore_index=0)``. None: by dtype and shape, as `targets` says.
        **kwargs: Batches, splits and normalisation; see `DataModule`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: Lengths differ, values are not finite, a label is missing or unknown, images are
            NHWC, a memory map would have to be converted, and the like; said at the first use of
            the data.

    Example:
        >>> data = ArrayDataModule(np.random.rand(20, 3), np.arange(20) % 2, num_folds=5)
        >>> data.in_features, data.num_classes
        (3, 2)
    """

    def __init__(
        self,
        # Names of files first: the command line takes the first type that a text fits, and NumPy
        # would make an array of bytes of it.
        inputs: str | Path | Tensor | npt.ArrayLike,
        targets: str | Path | Tensor | npt.ArrayLike,
        *,
        test_inputs: str | Path | Tensor | npt.ArrayLike | None = None,
        test_targets: str | Path | Tensor | npt.ArrayLike | None = None,
        groups: Literal["duplicates"] | npt.ArrayLike | None = None,
        folds: npt.ArrayLike | None = None,
        class_names: list[str] | None = None,
        input_kind: Kind | str | None = None,
        target_kind: Kind | str | None = None,
        weights: npt.ArrayLike | Tensor | None = None,
        test_weights: npt.ArrayLike | Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(groups=groups if isinstance(groups, str) else None, **kwargs)
        if (test_inputs is None) != (test_targets is None):
            raise ValueError("give test_inputs and test_targets together, or neither.")
        self.given = inputs, targets, test_inputs, test_targets
        self.groups = None if groups is None or self._keep_duplicates else np.asarray(groups)
        self.folds = None if folds is None else np.asarray(folds)
        self.given_class_names = class_names
        self.input_kind = as_kind("input_kind", input_kind)
        self.target_kind = as_kind("target_kind", target_kind)
        self.weights, self.test_weights = weights, test_weights
        arrays = ["inputs", "targets", "test_inputs", "test_targets", "groups", "folds"]
        arrays += ["weights", "test_weights"]
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


def _array(values: Any) -> Tensor | np.ndarray:
    return values if isinstance(values, Tensor) else np.asarray(values)


def _inputs(argument: str, values: Any, kind: Kind, *, wide: bool = False) -> Tensor:
    """Return images as uint8, tokens as integers, and other inputs as floating point.

    They are float64 if `wide`, or if float32 would lose too much.
    """
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
            f"{argument} has shape {tuple(tensor.shape)}, whose last axis looks like channels; "
            "images are (N, C, H, W): use .transpose(0, 3, 1, 2) (NumPy) or .permute (torch)."
        )
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.to(torch.float64 if wide or needs_float64(tensor) else _dtype())
    return tensor


def _check_integers(argument: str, values: np.ndarray | None) -> None:
    """Refuse whole numbers that are others as float64."""
    number = None if values is None else rounded_integer(values)
    if number is not None:
        raise ValueError(
            f"{argument} has whole numbers above 2**53, such as {number}, which float64 rounds; "
            "leave identifiers out, or subtract an offset."
        )


def _integers(argument: str, values: Any) -> Tensor:
    """Return whole numbers in their own dtype; what is not whole the kind refuses."""
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
    # Values in the place of classes are refused when both sets are compared.
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
        array = array.copy()  # a slip of the user's must be no crash
    return read_only_tensor(array)


# Arrays in files


def _opened(argument: str, values: Any) -> Any:
    """Maps the ``.npy`` file that `values` names; returns anything else as it is."""
    if not isinstance(values, (str, os.PathLike)):
        return values
    path = Path(values)
    if path.suffix != ".npy":
        raise ValueError(f"{argument}={str(path)!r} is no .npy file; save one by np.save.")
    if not path.is_file():
        raise FileNotFoundError(f"{argument}={str(path)!r} is no file.")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{argument}={str(path)!r} cannot be mapped ({error}); save one array by np.save."
        ) from error


def _is_mapped(values: Any) -> bool:
    """Whether the memory of an array, or of what it is a view of, is a file's."""
    while isinstance(values, np.ndarray):
        values = values.base
    return isinstance(values, mmap.mmap)


def _check_mapped(argument: str, array: np.ndarray, kind: Kind) -> None:
    """Raises a `ValueError` for what could not be used without a copy of the whole file."""
    as_it_is = array.dtype == np.uint8 and array.ndim == 4
    as_it_is |= kind.is_integer and (array.dtype.kind == "i" or array.dtype == np.uint8)
    if not as_it_is and array.dtype not in (np.float32, np.float16):
        raise ValueError(
            f"{argument} is a memory map of dtype {array.dtype} and shape {array.shape}; save it "
            "as float32, or as uint8 if it is images (N, C, H, W)."
        )
    if any(stride < 0 or stride > array.strides[0] for stride in array.strides):
        raise ValueError(
            f"{argument} is a memory map whose samples do not lie one after the other; save it by "
            "np.save(file, np.ascontiguousarray(…))."
        )
