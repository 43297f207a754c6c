"""Score a scikit-learn estimator on the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dlblocks._errors import check_whole
from dlblocks.data import DataModule

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


def baseline_scores(
    estimator: BaseEstimator,
    datamodule: DataModule,
    num_folds: int | None = None,
    *,
    repeats: int = 1,
    scoring: str | Callable[..., float] | None = None,
) -> npt.NDArray[np.float64]:
    """Score a scikit-learn estimator on the folds of `cross_validate`.

    Each fold trains a copy on the training samples, all of them, and scores it on the fold's own.
    The inputs are raw, and rows of numbers: images are flattened. What is fitted to them, such as a
    scaler, belongs into a pipeline with the estimator, so that each fold fits its own.

    Args:
        estimator: The estimator, such as ``SVC()``.
        datamodule: The data.
        num_folds: Number of folds, as for `cross_validate`; None for that of the data, else 5.
        repeats: How often they are drawn, as for `cross_validate`.
        scoring: Name of a score of scikit-learn, or a function of estimator, inputs and targets;
            None for the estimator's own, accuracy or R².

    Returns:
        One score a fold, repeat by repeat, in the order of ``result.values(…)``.

    Raises:
        ValueError: The samples are no rows of equal length, have weights, or columns that each fold
            completes.

    Example:
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> from dlblocks.data import TabularDataModule
        >>> wine = TabularDataModule("wine", test_fraction=0.0)
        >>> baseline_scores(KNeighborsClassifier(), wine, 3).round(2)
        array([0.7 , 0.71, 0.73])
    """
    from sklearn.model_selection import cross_val_score

    if num_folds is not None:
        check_whole("num_folds", num_folds, 2)
    check_whole("repeats", repeats, 1)
    inputs, targets = datamodule.source.inputs, datamodule.source.targets
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise ValueError(
            "estimators of scikit-learn need inputs (N, …) and targets (N,) as arrays; samples of "
            "other kinds, such as boxes or sequences of unequal length, cannot be passed to them."
        )
    if datamodule.source.weights is not None:
        raise ValueError(
            "the samples have weights, which baseline_scores does not pass on; score the "
            "estimator on datamodule.splits(num_folds) by a loop of your own."
        )
    if datamodule.source.completion is not None:
        raise ValueError(
            "each fold completes columns of the table by its training rows (counts=, embed= or "
            "missing='impute'), which baseline_scores does not; leave these arguments out, or "
            "score a pipeline of scikit-learn on the DataFrame and datamodule.splits(num_folds)."
        )
    num_folds, repeats = datamodule.count_folds(num_folds), datamodule.count_repeats(repeats)
    folds: list[tuple[Any, Any]] = []
    for repeat in range(repeats):
        drawn = datamodule.splits(num_folds, repeat=repeat)
        folds += [(fold["train"], fold["val"]) for fold in drawn]
    rows: Any = inputs.flatten(1).numpy()
    found: npt.NDArray[np.float64] = cross_val_score(
        estimator, rows, targets.numpy(), cv=folds, scoring=scoring, error_score="raise"
    )
    return found
