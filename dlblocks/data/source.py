"""`Source`: the arrays that a datamodule splits and hands out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from dlblocks.data.checks import check_arrays, check_test_set
from dlblocks.data.fingerprint import row_keys


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
        complete: Fills in what `inputs` lacks (NaN), given `inputs` and the rows that train; it
            must look at no other rows. Returns a new array.
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
    complete: Callable[[Tensor, Tensor], Tensor] | None = None
    categories: dict[int, int] = field(default_factory=dict)

    @cached_property
    def input_keys(self) -> np.ndarray:
        """Numbers of the samples, int64 of shape (N,), equal for equal `inputs`."""
        return row_keys(self.inputs)

    def check(self) -> None:
        """Raises a `ValueError` that says what is wrong with the arrays, and where."""
        names = self.class_names, self.feature_names
        if self.complete is None:  # otherwise what `complete` returns is checked
            check_arrays(self.inputs, self.targets, *names)
        if self.test_inputs is not None and self.test_targets is not None:
            test_set = self.test_inputs, self.test_targets
            check_arrays(*test_set, *names, part="test_")
            check_test_set(self.inputs, self.targets, *test_set, self.class_names)
