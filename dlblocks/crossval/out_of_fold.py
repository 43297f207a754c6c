"""Predictions for samples that the model has not trained on, and the folds that they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dlblocks.scores import kind_of


@dataclass
class OutOfFold:
    """Predictions for each development sample by the model of the fold that did not train on it.

    Rows are sorted by (repeat, index).

    Attributes:
        index: The sample's row in its data set, int64 of shape (M,).
        target: Its target, shape (M,) or (M, D).
        prediction: Probabilities (M, C) for classes; values of the target's shape otherwise. Those
            of somebody else's model are as it gives them.
        fold: The fold that predicted it, int64 of shape (M,).
        repeat: The repeat, int64 of shape (M,).
    """

    index: npt.NDArray[np.int64]
    target: npt.NDArray[Any]
    prediction: npt.NDArray[np.floating]
    fold: npt.NDArray[np.int64]
    repeat: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def difference(self, other: OutOfFold) -> str:
        """Says the first thing in which the folds of two cross-validations differ, or nothing."""
        if len(self) != len(other):
            return f"there are {len(self)} out-of-fold predictions here and {len(other)} there"
        if self.target.shape != other.target.shape:
            return f"targets have shape {self.target.shape} here and {other.target.shape} there"
        for name in ("repeat", "index", "fold", "target"):
            mine, theirs = getattr(self, name), getattr(other, name)
            same = (mine == theirs).reshape(len(mine), -1).all(1)
            if not same.all():
                at = int(np.argmin(same))
                return (
                    f"{name} differs in {int((~same).sum())} of {len(mine)} rows, first for sample "
                    f"{self.index[at]} in repeat {self.repeat[at]}: {mine[at]} here and "
                    f"{theirs[at]} there"
                )
        return ""

    def correct(self) -> npt.NDArray[np.floating] | None:
        """How often each sample's class is predicted right.

        Returns:
            Share of the repeats, one value a sample, in the order of `index`, shape (N,). None if
            the predictions are not classes or scores of them.
        """
        if self._kind() == "scores":
            right = self.prediction.argmax(1) == self.target
        elif self._kind() == "labels":
            right = self.prediction == self.target
        else:
            return None
        _, sample, counts = np.unique(self.index, return_inverse=True, return_counts=True)
        return np.bincount(sample, weights=right) / counts

    def columns(self, class_names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Make the columns of ``to_pandas("oof")``, one row a prediction.

        Args:
            class_names: Names of the classes 0 … C-1.
        """
        columns = {"repeat": self.repeat, "fold": self.fold, "index": self.index}
        if self._kind() == "scores":
            num_classes = self.prediction.shape[1]
            if class_names is None or len(class_names) != num_classes:
                class_names = [str(i) for i in range(num_classes)]
            columns |= {"target": self.target, "prediction": self.prediction.argmax(1)}
            names = [f"probability_{name}" for name in class_names]
            return columns | dict(zip(names, self.prediction.T, strict=True))
        for name in ("target", "prediction"):
            values = getattr(self, name).reshape(len(self), -1).T
            numbered = [f"{name}_{i}" for i in range(len(values))] if len(values) > 1 else [name]
            columns |= dict(zip(numbered, values, strict=True))
        return columns

    def _kind(self) -> str | None:
        """As `dlblocks.scores.kind_of`; None where that raises."""
        try:
            return kind_of(self.target, self.prediction)
        except ValueError:
            return None
