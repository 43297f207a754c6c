"""Map labels of any values to classes 0 … C-1."""

from __future__ import annotations

import re
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import listed

SHOWN = 20  # classes in a message
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def encode_labels(
    argument: str,
    values: Any,
    class_names: list[str] | None = None,
    *,
    by_name: bool = False,
) -> tuple[Tensor, list[str]]:
    """Map labels to the classes 0 … C-1.

    Classes are sorted by number if all labels are numbers or texts of numbers, else by name.
    Whole numbers that count from 0 stay as they are. That is the case if 0 is the smallest and at
    least half of 0 … max occur. The numbers that do not occur are classes without samples. ``1``
    and ``1.0`` are the same label.

    Args:
        argument: Name of the labels in messages.
        values: Shape (N,) or (N, 1): a tensor, array, list or pandas Series of whole numbers, bool,
            texts, or a mixture of them.
        class_names: Names of the classes 0 … C-1. Texts are looked up in this list, and whole
            numbers are positions in it.
        by_name: Look up whole numbers in `class_names` too, for the labels of a test set with the
            class names of the training labels.

    Returns:
        Classes, int64 of shape (N,), and their names.

    Raises:
        ValueError: A label is missing (None, NaN, NaT, pandas.NA, masked or an empty text), is not
            a whole number, or is not among `class_names`; or the shape is wrong.
        TypeError: A label is a list, dictionary or array.

    Example:
        >>> encode_labels("targets", [3, 7, 7])
        (tensor([0, 1, 1]), ['3', '7'])
        >>> encode_labels("targets", ["7", "3"], ["3", "7"])
        (tensor([1, 0]), ['3', '7'])
    """
    labels, position = _distinct(argument, values)
    numbers = [label for label in labels if _is_number(label)]
    for label in numbers:
        if not float(label).is_integer():
            row = _first(labels, position, label)
            raise ValueError(f"{argument} has {label} in row {row}, which is not a whole number.")
    if class_names is not None:
        classes = _look_up(argument, labels, position, class_names, by_name)
        return _picked(classes, position), list(class_names)
    if len(numbers) == len(labels) > 0:
        top = int(max(numbers))
        if min(numbers) == 0 and 2 * len({int(n) for n in numbers}) >= top + 1:
            names = [str(i) for i in range(top + 1)]
            return _picked([int(label) for label in labels], position), names
    shown: dict[str, str] = {}  # the shortest text of each label
    for label in labels:
        text = _text(label)
        shown[label_key(text)] = min(shown.get(label_key(text), text), text, key=len)
    keys = sorted(shown)
    if all(NUMBER.fullmatch(key) for key in keys):
        keys.sort(key=float)
    class_of = {key: i for i, key in enumerate(keys)}
    classes = [class_of[label_key(_text(label))] for label in labels]
    return _picked(classes, position), [shown[key] for key in keys]


def several_labels(
    argument: str,
    values: Any,
    class_names: list[str] | None = None,
    *,
    one_hot: bool = False,
) -> tuple[Tensor, list[str]] | None:
    """Read several labels per sample, or return None for other targets.

    Args:
        argument: Name of the labels in messages.
        values: Integers or bool of shape (N, C), with C >= 2.
        class_names: Names of the labels.
        one_hot: Accept rows that all have exactly one 1, which can happen in a small test set.

    Returns:
        int64 of shape (N, C), and C names.

    Raises:
        ValueError: Each row has exactly one 1, like one-hot classes, or the number of names
            differs.

    Example:
        >>> several_labels("targets", [[1, 1], [0, 0]], ["sea", "sand"])[0].shape
        torch.Size([2, 2])
    """
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "biu":
        return None
    if not len(array) or array.min() < 0 or array.max() > 1:
        return None
    if not one_hot and (array.sum(1) == 1).all():
        raise ValueError(
            f"{argument} has shape {array.shape} and exactly one 1 in each row, like one-hot "
            f"classes; pass {argument}.argmax(1)."
        )
    names = [str(i) for i in range(array.shape[1])] if class_names is None else list(class_names)
    if len(names) != array.shape[1]:
        raise ValueError(
            f"class_names has {len(names)} names, but {argument} has {array.shape[1]} labels per "
            "sample; give each label a name."
        )
    return torch.from_numpy(array.astype(np.int64)), names


def read_labels(argument: str, values: Any) -> np.ndarray:
    """Return labels as numbers, to stratify another package's data by them.

    Whole numbers stay as they are, since the data set's batches hold them. Texts become 0 … C-1.
    Numbers that are not all whole are values and become float64.

    Args:
        argument: Name of the labels in messages.
        values: Shape (N,) or (N, 1), as in `encode_labels`.

    Returns:
        int64 or float64 of shape (N,).

    Raises:
        ValueError: A label is missing, or the shape is wrong.
        TypeError: A label is a list, dictionary or array.

    Example:
        >>> read_labels("targets", np.array([[3], [7]])), read_labels("targets", ["b", "a"])
        (array([3, 7]), array([1, 0]))
    """
    labels, position = _distinct(argument, values)
    if not all(isinstance(label, (bool, np.bool_)) or _is_number(label) for label in labels):
        return encode_labels(argument, values)[0].numpy()
    whole = all(float(label).is_integer() for label in labels)
    numbers: np.ndarray = np.array(labels, dtype=np.int64 if whole else np.float64)[position]
    return numbers


def as_targets(targets: np.ndarray, *, is_given: bool) -> np.ndarray | None:
    """Return labels as integers and values unchanged, else None.

    Args:
        targets: Shape (N, ...).
        is_given: Whether the user gave them, so that unusable ones are an error.
    """
    kind = targets.dtype.kind
    column = targets[:, 0] if targets.shape[1:] == (1,) else targets  # as in MedMNIST
    if column.ndim > 1:  # several labels or values per sample
        several = kind in "USO"
        return np.unique(targets.astype(str), return_inverse=True)[1] if several else targets
    if kind == "f":
        known = column[~np.isnan(column)]
        if len(known) == len(column) or (known != known.round()).any():
            return targets  # values
    if kind in "iu":
        return column
    try:
        return read_labels("targets", column)
    except TypeError:  # dictionaries, such as the boxes of a detector
        if is_given:
            raise
        return None


def as_numpy(values: Any) -> np.ndarray:
    """Convert a tensor, or a list of numbers, texts or scalar tensors.

    A masked array becomes an array of objects, with None for masked entries.
    """
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        values = torch.stack(list(values))
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, np.ma.MaskedArray):
        objects = values.data.astype(object)
        objects[np.ma.getmaskarray(values)] = None
        return objects
    return np.asarray(values)


def _distinct(argument: str, values: Any) -> tuple[list[Any], np.ndarray]:
    """Return the different labels, and each row's position among them."""
    array = _column(argument, values)
    if array.dtype.kind in "biuf":
        different, position = np.unique(array, return_inverse=True)
        labels = different.tolist()
    else:
        positions: dict[Any, int] = {}
        try:
            rows = [positions.setdefault(label, len(positions)) for label in array.tolist()]
        except TypeError as error:
            raise TypeError(
                f"{argument} has a list, dictionary or array in place of a label ({error})."
            ) from error
        position, labels = np.array(rows, dtype=np.int64), list(positions)
    # NumPy turns NaN among texts into the text "nan".
    gone = [_is_missing(x) or (array.dtype.kind == "U" and x == "nan") for x in labels]
    missing = np.flatnonzero(np.array(gone, dtype=bool)[position])
    if len(missing):
        first = labels[position[missing[0]]]
        raise ValueError(
            f"{argument} has {len(missing)} missing label(s), the first ({first!r}) in row "
            f"{missing[0]}; remove these rows, or give them a label such as 'unknown'."
        )
    return labels, position


def _column(argument: str, values: Any) -> np.ndarray:
    """Return labels as an array (N,), with None for masked entries."""
    array = as_numpy(values)
    if isinstance(values, (list, tuple)) and array.dtype.kind in "US":
        array = np.asarray(values, dtype=object)  # else None and NaN become texts
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{argument} has shape {array.shape}; labels must have shape (N,) or (N, 1). For "
            f"one-hot rows pass {argument}.argmax(1), for values to regress floating point."
        )
    return array


def _is_missing(label: Any) -> bool:
    if label is None or (isinstance(label, (str, bytes)) and not label.strip()):
        return True
    try:
        return bool(label != label)  # NaN and NaT
    except TypeError:  # pandas.NA is neither equal nor unequal
        return True


def _is_number(label: Any) -> bool:
    return isinstance(label, Real) and not isinstance(label, bool)


def _text(label: Any) -> str:
    if _is_number(label):
        return str(int(label))
    return label.decode() if isinstance(label, bytes) else str(label)


def label_key(text: str) -> str:
    """Return the same text for ``1`` and ``1.0``."""
    return re.sub(r"\.0+$", "", text) if NUMBER.fullmatch(text) else text


def _first(labels: list[Any], position: np.ndarray, label: Any) -> int:
    return int((position == labels.index(label)).argmax())


def _picked(classes: list[int], position: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(classes, dtype=np.int64)[position])


def _look_up(
    argument: str,
    labels: list[Any],
    position: np.ndarray,
    class_names: list[str],
    by_name: bool,
) -> list[int]:
    """Return the class of each of the different labels."""
    known = {label_key(name): i for i, name in enumerate(class_names)}
    if len(known) < len(class_names):
        raise ValueError(f"class_names={class_names} has a name twice; give each class its own.")
    are_bool = all(isinstance(label, (bool, np.bool_)) for label in labels)
    if are_bool and all(_text(label) in known for label in labels):
        by_name = True
    if not by_name and (are_bool or all(map(_is_number, labels))):
        for label in labels:
            if not 0 <= label < len(class_names):
                raise ValueError(
                    f"{argument} has label {label} in row {_first(labels, position, label)}, but "
                    f"class_names has {len(class_names)} names, for 0 … {len(class_names) - 1}."
                )
        return [int(label) for label in labels]
    for label in labels:
        if label_key(_text(label)) not in known:
            raise ValueError(
                f"{argument} has label {label!r} in row {_first(labels, position, label)}, which "
                f"is not among the classes {listed(class_names, SHOWN)}; give class_names that has "
                "all labels."
            )
    return [known[label_key(_text(label))] for label in labels]
