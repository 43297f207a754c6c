"""`Source`, the arrays that a datamodule splits and loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._boxes import check_boxes_inside
from dlblocks.data._fingerprint import row_keys
from dlblocks.data._kinds import find_input_kind, find_target_kind, image_size
from dlblocks.fields import Boxes, Class, Field, Image, Kind, Mask, Ragged, Values, Weight, as_kind


@dataclass
class Source:
    """The arrays of a data set, as returned by `DataModule.load`.

    Attributes:
        inputs: Shape (N, ...): images NCHW, uint8 in 0 … 255 or floating point; features (N, F),
            floating point; or tokens, integers. `Ragged` for features or tokens of sequences of
            unequal length.
        targets: Classes, int64 of shape (N,), values, floating point of shape (N,) or (N, D), masks
            of images, integers of shape (N, H, W), or of another kind; `Ragged` for boxes, with
            rows (x0, y0, x1, y1, class).
        test_inputs: The official test set, if there is one.
        test_targets: Its targets.
        class_names: Names of the classes 0 … C-1; None for values.
        groups: Group of each sample, shape (N,), if samples belong together.
        folds: Predefined fold of each sample, shape (N,), integers or texts. A sample with a
            negative number or an empty text is always used for training.
        feature_names: Names of the columns of a table.
        completion: Function of `inputs` and the training rows, which must read no other rows. It
            returns the statistics ``fill``, ``coded`` and ``tables`` with which
            `dlblocks.nets.Preprocess` fills in missing inputs.
        categories: Columns of `inputs` that are numbers of categories for an embedding, with the
            number of categories, not counting 0 for unknown ones. They are not normalised.
        input_kind: Kind of `inputs`, a `dlblocks.fields.Kind` or its name. By default images or
            features, by dtype and shape. Set it for integers that are not images.
        target_kind: Kind of `targets`, in the same way.
        weights: Weight of each sample, floating point of shape (N,), or None.
        test_weights: Weights of the test set; None for equal weights.
        positions: Image, row, column, height and width of each sample, floating point (N, 5), if
            samples are tiles of large images.
        test_positions: Those of the test set, whose images are numbered anew.
    """

    inputs: Tensor | Ragged
    targets: Any
    test_inputs: Tensor | Ragged | None = None
    test_targets: Any = None
    class_names: list[str] | None = None
    groups: np.ndarray | None = None
    folds: np.ndarray | None = None
    feature_names: list[str] | None = None
    completion: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    categories: dict[int, int] = field(default_factory=dict)
    input_kind: Kind | str | None = None
    target_kind: Kind | str | None = None
    weights: Tensor | None = None
    test_weights: Tensor | None = None
    positions: np.ndarray | None = None
    test_positions: np.ndarray | None = None

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The fields by name, in the order of a batch."""
        inputs = as_kind("input_kind", self.input_kind) or find_input_kind("inputs", self.inputs)
        targets = as_kind("target_kind", self.target_kind)
        targets = targets or find_target_kind(self.targets, image_size(self.inputs, inputs))
        found = {
            "inputs": Field(self.inputs, inputs, "input"),
            # Targets of unknown kind are checked as values, which refuses them.
            "targets": Field(self.targets, targets or Values(), "target"),
        }
        if self.weights is not None:
            found["weights"] = Field(self.weights, Weight(), "other")
        return found

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each field."""
        return {name: field.kind for name, field in self.fields.items()}

    @cached_property
    def num_inner_classes(self) -> int | None:
        """Number of classes of masks or boxes, or None for other targets."""
        kind = self.kinds["targets"]
        return kind.num_classes(self.targets) if isinstance(kind, (Mask, Boxes)) else None

    @cached_property
    def input_keys(self) -> np.ndarray:
        """Numbers of the samples, int64 (N,), equal for equal inputs."""
        inputs = self.inputs
        return row_keys([*inputs] if isinstance(inputs, Ragged) else inputs)

    def check(self) -> None:
        """Raise a `ValueError` that names wrong values and where they are."""
        names = self.class_names, self.feature_names
        for part, inputs, weights in (
            ("", self.inputs, self.weights),
            ("test_", self.test_inputs, self.test_weights),
        ):
            if weights is not None:
                count = 0 if inputs is None else len(inputs)
                if len(weights) != count:
                    raise ValueError(
                        f"{part}weights has {len(weights)} entries for {count} samples; give one "
                        "per sample."
                    )
                Weight().check(f"{part}weights", weights)
        if self.test_weights is not None and self.weights is None:
            raise ValueError("test_weights needs weights too, for the other samples.")
        if self.completion is None:  # otherwise inputs are checked when they are complete
            check_arrays(self.inputs, self.targets, self.kinds, *names)
        if self.test_inputs is not None and self.test_targets is not None:
            test_set = self.test_inputs, self.test_targets
            check_arrays(*test_set, self.kinds, *names, part="test_")
            _check_test_set(self.inputs, self.targets, *test_set, self.kinds, self.class_names)


SHOWN = 8  # columns in a message


def check_arrays(
    inputs: Tensor | Ragged,
    targets: Any,
    kinds: Mapping[str, Kind],
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    *,
    part: str = "",
) -> None:
    """Raise a `ValueError` that names wrong values of a data set.

    Args:
        inputs: Shape (N, ...), or `Ragged`.
        targets: Shape (N, ...), or `Ragged`.
        kinds: The kinds of ``"inputs"`` and ``"targets"``.
        class_names: Names of the classes; labels must be smaller than their number.
        feature_names: Names of the columns of `inputs`, for the message.
        part: Prefix of the arguments' names in the message, such as ``"test_"``.
    """
    if len(inputs) != len(targets):
        raise ValueError(
            f"{part}inputs has {len(inputs)} samples and {part}targets has {len(targets)}; "
            "their lengths must be equal."
        )
    if len(inputs) == 0:
        raise ValueError(f"{part}inputs is empty; a data set needs at least one sample.")
    if isinstance(inputs, Ragged):
        _check_sequences(f"{part}inputs", inputs, kinds["inputs"])
    elif inputs.ndim < 2:
        raise ValueError(
            f"{part}inputs has shape {tuple(inputs.shape)}; expected (N, F) or (N, C, H, W). For a "
            "single feature use inputs[:, None]."
        )
    kinds["inputs"].check(f"{part}inputs", inputs)
    _check_finite(f"{part}inputs", inputs, feature_names)
    kinds["targets"].check(f"{part}targets", targets, class_names)
    _check_finite(f"{part}targets", targets, None)
    if isinstance(kinds["targets"], Mask) and targets.shape[1:] != inputs.shape[2:]:
        raise ValueError(
            f"{part}targets are masks of shape {tuple(targets.shape)} and {part}inputs has shape "
            f"{tuple(inputs.shape)}; masks need the height and width of images (N, C, H, W)."
        )
    if isinstance(kinds["targets"], Boxes):
        if not isinstance(kinds["inputs"], Image) or isinstance(inputs, Ragged):
            raise ValueError(
                f"{part}targets are boxes and {part}inputs has shape {tuple(inputs.shape)}; boxes "
                "need images (N, C, H, W)."
            )
        check_boxes_inside(f"{part}targets", targets, inputs.shape[2:])


def _check_sequences(argument: str, inputs: Ragged, kind: Kind) -> None:
    if not kind.is_padded:
        raise ValueError(
            f"{argument} have unequal lengths, which kind {kind.name!r} does not take; "
            "features and tokens do."
        )
    if not kind.is_integer and inputs.values.ndim < 2:
        raise ValueError(
            f"{argument} are sequences of single numbers, (T,); features are (T, F): use "
            "[x[:, None] for x in …]."
        )
    empty = (inputs.lengths == 0).nonzero()
    if len(empty):
        raise ValueError(
            f"{argument} has length 0 in row {int(empty[0])} ({len(empty)} such rows in all); "
            "remove these rows."
        )


def _check_test_set(
    inputs: Tensor | Ragged,
    targets: Any,
    test_inputs: Tensor | Ragged,
    test_targets: Any,
    kinds: Mapping[str, Kind],
    class_names: Sequence[str] | None = None,
) -> None:
    """Raise a `ValueError` if test and training set do not match.

    Args:
        inputs: Shape (N, ...).
        targets: Shape (N, ...), or `Ragged`.
        test_inputs: Shape (M, ...).
        test_targets: Shape (M, ...), or `Ragged`.
        kinds: The kinds of ``"inputs"`` and ``"targets"``.
        class_names: Names of the classes; None if they are those in `targets`.
    """
    for name, ours, theirs in (
        ("inputs", inputs, test_inputs),
        ("targets", targets, test_targets),
    ):
        if isinstance(ours, Ragged) != isinstance(theirs, Ragged):
            raise ValueError(
                f"only one of {name} and test_{name} is Ragged; make both with Ragged.of([…])."
            )
        # Floating point may differ in precision.
        both_floating = ours.is_floating_point() and theirs.is_floating_point()
        alike = ours.dtype == theirs.dtype or both_floating
        if tuple(ours.shape[1:]) != tuple(theirs.shape[1:]) or not alike:
            raise ValueError(
                f"test_{name} is {theirs.dtype} of shape {tuple(theirs.shape)} and {name} "
                f"{ours.dtype} of {tuple(ours.shape)}; give both in the same units and shape."
            )
    if not isinstance(kinds["targets"], Class):
        return
    count = int(targets.max()) + 1 if class_names is None else len(class_names)
    high = int(test_targets.max())
    if high >= count:
        raise ValueError(
            f"test_targets has label {high} in row {int(test_targets.argmax())}, but there are "
            f"{count} classes; give class_names if there are more."
        )


def _check_finite(argument: str, values: Any, names: Sequence[str] | None) -> None:
    if isinstance(values, Ragged):
        _check_finite_steps(argument, values)
        return
    # One pass without a mask of the whole array: a finite sum has only finite terms. A sum may also
    # overflow, which the slow check below recognises.
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


def _check_finite_steps(argument: str, rows: Ragged) -> None:
    if not rows.is_floating_point() or torch.isfinite(rows.values.sum()):
        return
    bad = (~rows.values.isfinite()).nonzero()
    if len(bad):
        at, *rest = (int(i) for i in bad[0])
        row = int(torch.searchsorted(rows.offsets, at, right=True)) - 1
        where = f"row {row}, step {at - int(rows.offsets[row])}"
        where += f", feature {rest[0]}" if rest else ""
        raise ValueError(
            f"{argument} has {len(bad)} value(s) that are not finite, the first "
            f"({rows.values[tuple(bad[0])].item()}) in {where}; remove these steps or rows, or "
            "fill them in."
        )
