"""`Source`: the arrays that a datamodule splits and hands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dlblocks.data._fingerprint import row_keys


@dataclass
class Source:
    """The arrays of one source of data, as `DataModule.load` returns them.

    Attributes:
        inputs: Shape (N, ...): images NCHW, uint8 in 0 … 255 or floating point; features (N, F),
            floating point.
        targets: Classes, int64 of shape (N,), or values, floating point of shape (N,) or (N, D).
        test_inputs: The official test set, if there is one.
        test_targets: Its targets.
        class_names: Names of the classes 0 … C-1; None for values.
        groups: Group of each sample, shape (N,), if samples belong together.
        folds: Predefined fold of each sample, shape (N,), integers or texts; negative or empty
            for a sample that always trains.
        feature_names: Names of the columns of a table.
        completion: Statistics by which `dlblocks.nets.Preprocess` fills in what `inputs` lack:
            ``fill``, ``coded`` and ``tables``, given `inputs` and the rows that train; it must look
            at no other rows.
        categories: Columns of `inputs` that are numbers of categories, for an embedding, and how
            many categories there are, without 0 for an unknown one. They are not normalised.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None
    class_names: list[str] | None = None
    groups: np.ndarray | None = None
    folds: np.ndarray | None = None
    feature_names: list[str] | None = None
    completion: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    categories: dict[int, int] = field(default_factory=dict)

    @cached_property
    def input_keys(self) -> np.ndarray:
        """Numbers of the samples, int64 of shape (N,), equal for equal `inputs`."""
        return row_keys(self.inputs)

    def check(self) -> None:
        """Raises a `ValueError` that says what is wrong with the arrays, and where."""
        names = self.class_names, self.feature_names
        if self.completion is None:  # otherwise completed inputs are checked
            check_arrays(self.inputs, self.targets, *names)
        if self.test_inputs is not None and self.test_targets is not None:
            test_set = self.test_inputs, self.test_targets
            check_arrays(*test_set, *names, part="test_")
            _check_test_set(self.inputs, self.targets, *test_set, self.class_names)


SHOWN = 8  # columns in a message


def check_arrays(
    inputs: Tensor,
    targets: Tensor,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    *,
    part: str = "",
) -> None:
    """Raises a `ValueError` that says what is wrong with the arrays of a data set, and where.

    Args:
        inputs: Shape (N, ...).
        targets: Classes (N,) as integers, 0 and 1 of several labels (N, C) as integers, or values
            (N,) or (N, D) as floating point.
        class_names: Names of the classes; labels must be smaller than their number.
        feature_names: Names of the columns of `inputs`, for the message.
        part: Prefix of the arguments' names in the message, such as ``"test_"``.
    """
    if len(inputs) != len(targets):
        raise ValueError(
            f"{part}inputs has {len(inputs)} samples and {part}targets has {len(targets)}; "
            "they must be equally long."
        )
    if len(inputs) == 0:
        raise ValueError(f"{part}inputs is empty; a data set needs at least one sample.")
    if inputs.ndim < 2:
        raise ValueError(
            f"{part}inputs has shape {tuple(inputs.shape)}; expected (N, F) or (N, C, H, W). For a "
            "single feature use inputs[:, None]."
        )
    _check_finite(f"{part}inputs", inputs, feature_names)
    are_values, are_labels = targets.is_floating_point(), targets.ndim == 2
    if are_labels and not are_values:
        are_labels = bool(targets.min() >= 0 and targets.max() <= 1)
    if targets.ndim != 1 and not are_labels:
        raise ValueError(
            f"{part}targets has shape {tuple(targets.shape)}; expected classes of shape (N,), 0 "
            "and 1 of several labels (N, C), or values of shape (N,) or (N, D)."
        )
    if are_values or are_labels:
        _check_finite(f"{part}targets", targets, None)
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0:
        row = int(targets.argmin())
        raise ValueError(f"{part}targets has label {low} in row {row}; classes start at 0.")
    if class_names is not None and high >= len(class_names):
        raise ValueError(
            f"{part}targets has label {high} in row {int(targets.argmax())}, but there are "
            f"{len(class_names)} classes."
        )
    if not part and low == high:
        name = low if class_names is None else repr(class_names[low])
        raise ValueError(f"targets has one class only ({name}); a classifier needs two.")


def _check_test_set(
    inputs: Tensor,
    targets: Tensor,
    test_inputs: Tensor,
    test_targets: Tensor,
    class_names: Sequence[str] | None = None,
) -> None:
    """Raises a `ValueError` unless a model of the training set can be tested on the test set.

    Args:
        inputs: Shape (N, ...).
        targets: Classes, integers of shape (N,), or values, floating point.
        test_inputs: Shape (M, ...).
        test_targets: Shape (M,) or (M, D).
        class_names: Names of the classes; None if they are those in `targets`.
    """
    for name, ours, theirs in (
        ("inputs", inputs, test_inputs),
        ("targets", targets, test_targets),
    ):
        # Floating point of another precision will do.
        both_floating = ours.is_floating_point() and theirs.is_floating_point()
        alike = ours.dtype == theirs.dtype or both_floating
        if ours.shape[1:] != theirs.shape[1:] or not alike:
            raise ValueError(
                f"test_{name} is {theirs.dtype} of shape {tuple(theirs.shape)} and {name} "
                f"{ours.dtype} of {tuple(ours.shape)}; give both in the same units and shape."
            )
    if targets.is_floating_point() or targets.ndim > 1:
        return
    count = int(targets.max()) + 1 if class_names is None else len(class_names)
    high = int(test_targets.max())
    if high >= count:
        raise ValueError(
            f"test_targets has label {high} in row {int(test_targets.argmax())}, but there are "
            f"{count} classes; give class_names if there are more."
        )


def _check_finite(argument: str, values: Tensor, names: Sequence[str] | None) -> None:
    # One pass without a mask of the whole array: a sum is finite only if every term is,
    # save for overflow, which the slow look below sorts out.
    if not values.is_floating_point() or torch.isfinite(values.sum()):
        return
    # A mask of some rows at a time, for arrays larger than memory.
    rows = max(1, 2**20 // values[0].numel())
    count, first = 0, list[int]()
    columns: set[int] = set()
    for start in range(0, len(values), rows):
        bad = ~torch.isfinite(values[start : start + rows])
        if not first and bad.any():
            row, *rest = (int(i) for i in bad.nonzero()[0])
            first = [start + row, *rest]
        count += int(bad.sum())
        if values.ndim == 2:
            columns.update(bad.any(0).nonzero().flatten().tolist())
    if not first:
        return
    where = f"row {first[0]}"
    if values.ndim == 2:
        column = first[1]
        where += f", column {column}" + (f" ({names[column]!r})" if names else "")
        if len(columns) > 1:
            shown = [repr(names[i]) if names else str(i) for i in sorted(columns)[:SHOWN]]
            more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
            where += f"; they are in columns {', '.join(shown)}{more}"
    elif values.ndim > 2:
        where += f", position {tuple(first[1:])}"
    cure = "remove these rows"
    if argument.endswith("inputs"):
        cure += ", or fill NaN in by TabularDataModule(…, missing='impute')"
    raise ValueError(
        f"{argument} has {count} value(s) that are not finite, the first "
        f"({values[tuple(first)].item()}) in {where}; {cure}."
    )
