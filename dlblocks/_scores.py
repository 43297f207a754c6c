"""Scores of predictions as arrays, over all samples at once.

Tables and figures take their numbers from here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

NUM_BINS = 15
# A metric of the samples with weights W (B, N): one value a row of W.
Weighted = Callable[[npt.NDArray[np.floating]], npt.NDArray[np.floating]]


def kind_of(
    target: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> Literal["scores", "labels", "values"]:
    """Tells scores of classes, predicted classes and values apart.

    - ``"scores"``: integer targets (M,) within 0 … C-1, and predictions (M, C) with C >= 2, of
      which the highest is meant.
    - ``"labels"``: integer targets (M,) and integer predictions (M,).
    - ``"values"``: floating-point targets, not only 0 and 1, and one prediction for each.

    Raises:
        ValueError: It is none of them, so that any score would be a guess; the message says why.

    Example:
        >>> kind_of(np.array([0, 1]), np.array([[0.9, 0.1], [0.4, 0.6]]))
        'scores'
    """
    shapes = f"targets of shape {target.shape} and predictions of shape {prediction.shape}"
    if len(target) != len(prediction):
        raise ValueError(f"there are {shapes}; expected one prediction a target.")
    if not _is_integer(target):
        if target.dtype.kind == "f" and target.size == prediction.size:
            if np.isin(target, (0, 1)).all():
                raise ValueError(
                    f"there are only 0 and 1 among the {target.dtype} targets: of two classes or "
                    "of several labels rather than values; give integer classes, and predict "
                    "scores (M, C)."
                )
            return "values"
        raise ValueError(f"there are {target.dtype} {shapes}; expected values of one shape.")
    if target.ndim != 1:
        raise ValueError(
            f"there are integer {shapes}, as of several labels a sample; expected classes (M,), "
            "or task='multilabel' with probabilities (M, C)."
        )
    if prediction.ndim == 1 and _is_integer(prediction):
        return "labels"
    if prediction.size == len(prediction):
        raise ValueError(
            "the model puts out one number a sample for integer targets: a probability, a logit or "
            "a value; predict scores (M, C) or integer classes (M,)."
        )
    if prediction.ndim != 2:
        raise ValueError(f"there are integer {shapes}; expected classes (M,) and scores (M, C).")
    outside = target[(target < 0) | (target >= prediction.shape[1])]
    if len(outside):
        raise ValueError(
            f"target {outside[0]} is outside the classes 0 … {prediction.shape[1] - 1} of "
            f"predictions of shape {prediction.shape}."
        )
    return "scores"


def are_probabilities(prediction: npt.NDArray[Any]) -> bool:
    """Tell whether scores (M, C) sum to 1, up to half-precision rounding."""
    sums = prediction.sum(1, dtype=float)
    return bool((prediction >= 0).all() and np.allclose(sums, 1, atol=0.01))


def pooled_metrics(
    target: npt.NDArray[Any],
    prediction: npt.NDArray[np.floating],
    weight: npt.NDArray[np.floating] | None = None,
) -> dict[str, float]:
    """Metrics over all samples at once, by scikit-learn.

    - Scores of classes, (M, C) for integer targets (M,): ``accuracy`` and macro ``f1`` of the
      highest; of probabilities also ``log_loss``, `calibration_error`, and for two classes ``auc``.
    - Classes, integers (M,) for integer targets (M,): ``accuracy`` and macro ``f1``.
    - Values (M,) or (M, D): ``rmse`` and ``mae`` over all of them, ``r2`` averaged over the D.

    All are NaN where a prediction is not finite; AUC is where one class alone occurs, R² for fewer
    than two samples. With `weight`, shape (M,), each sample counts by its weight.

    Raises:
        ValueError: `target` and `prediction` are none of these; see `kind_of`.

    Example:
        >>> pooled_metrics(np.array([1.0, 2.0]), np.array([1.0, 4.0]))["mae"]
        1.0
    """
    kind = kind_of(target, prediction)
    if kind == "values":
        found = value_metrics(target, prediction, weight)
    elif kind == "labels":
        found = _label_metrics(target, prediction, weight)
    else:
        found = _score_metrics(target, prediction, weight)
    return {name: float(value) for name, value in found.items()}


def calibration_error(
    target: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    *,
    num_bins: int = NUM_BINS,
    weight: npt.NDArray[np.floating] | None = None,
) -> float:
    """Expected calibration error, as torchmetrics' `MulticlassCalibrationError` has it.

    Σ n_b / N · |accuracy_b - confidence_b| over `calibration_bins` (Naeini et al. 2015, Guo et al.
    2017).

    Args:
        target: True classes, int, shape (N,).
        probabilities: Shape (N, C).
        num_bins: Number of bins of confidence over [0, 1].
        weight: How much each sample counts, shape (N,); None: all the same.

    Example:
        >>> calibration_error(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]]))
        0.25
    """
    counts, accuracy, confidence = calibration_bins(target, probabilities, num_bins, weight)
    return float((counts / counts.sum() * np.abs(accuracy - confidence)).sum())


def calibration_bins(
    target: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    num_bins: int = NUM_BINS,
    weight: npt.NDArray[np.floating] | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Samples, accuracy and mean confidence of each bin of confidence.

    The bins are [0, 1/B) … [1 - 1/B, 1) and [1, ∞): as in torchmetrics, a confidence of 1 has a
    bin to itself.
    """
    confidence = probabilities.max(1).astype(np.float32)
    at = bin_of(confidence, num_bins)
    right = probabilities.argmax(1) == target
    each = 1 if weight is None else weight
    counts = np.bincount(at, weight, num_bins + 1)
    sums = [np.bincount(at, values * each, num_bins + 1) for values in (right, confidence)]
    accuracy, mean = (values / np.where(counts, counts, 1) for values in sums)
    return counts, accuracy, mean


def bin_of(confidence: npt.NDArray[Any], num_bins: int = NUM_BINS) -> npt.NDArray[np.int64]:
    """Number of each confidence's bin in `calibration_bins`, 0 … B."""
    import torch

    # torchmetrics' edges, too: those of NumPy differ in the last digit.
    edges = torch.linspace(0, 1, num_bins + 1).numpy()
    return np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1


def _is_integer(values: np.ndarray) -> bool:
    return values.dtype.kind in "iub"


def _label_metrics(
    target: np.ndarray, predicted: np.ndarray, weight: np.ndarray | None
) -> dict[str, Any]:
    from sklearn import metrics

    return {
        "accuracy": metrics.accuracy_score(target, predicted, sample_weight=weight),
        "f1": metrics.f1_score(target, predicted, average="macro", sample_weight=weight),
    }


def _score_metrics(
    target: np.ndarray, prediction: np.ndarray, weight: np.ndarray | None
) -> dict[str, Any]:
    from sklearn import metrics

    num_classes = prediction.shape[1]
    if not np.isfinite(prediction).all():
        names = ["accuracy", "f1", "log_loss", "calibration_error"]
        return dict.fromkeys([*names, *(["auc"] if num_classes == 2 else [])], np.nan)
    found = _label_metrics(target, prediction.argmax(1), weight)
    if are_probabilities(prediction):
        # scikit-learn warns of sums that are only nearly 1.
        shares = prediction / prediction.sum(1, keepdims=True, dtype=float)
        found["log_loss"] = metrics.log_loss(
            target, shares, labels=range(num_classes), sample_weight=weight
        )
        found["calibration_error"] = calibration_error(target, prediction, weight=weight)
        if num_classes == 2:
            both = len(np.unique(target if weight is None else target[weight > 0])) == 2
            found["auc"] = np.nan
            if both:
                score = shares[:, 1]
                found["auc"] = metrics.roc_auc_score(target, score, sample_weight=weight)
    return found


def value_metrics(
    target: npt.NDArray[Any],
    prediction: npt.NDArray[np.floating],
    weight: npt.NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """RMSE, MAE and R² of values (M,) or (M, D)."""
    from sklearn import metrics

    shape = len(target), -1
    target, prediction = target.reshape(shape), prediction.reshape(shape)
    if not (np.isfinite(prediction).all() and np.isfinite(target).all()):
        return dict.fromkeys(["rmse", "mae", "r2"], np.nan)
    # Half precision has no squares of large numbers.
    target, prediction = target.astype(float), prediction.astype(float)
    return {
        # scikit-learn's own root averages the roots of the D columns.
        "rmse": metrics.mean_squared_error(target, prediction, sample_weight=weight) ** 0.5,
        "mae": metrics.mean_absolute_error(target, prediction, sample_weight=weight),
        "r2": metrics.r2_score(target, prediction, sample_weight=weight)
        if len(target) > 1
        else np.nan,
    }


# Metrics of weighted samples, for the bootstrap


def weighted_class_metrics(
    target: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> dict[str, Weighted]:
    """Accuracy, macro F1, and of probabilities log loss, calibration error and AUC.

    Args:
        target: Classes (N,).
        prediction: Scores of the classes (N, C), or predicted classes (N,).
    """
    if prediction.ndim == 1:
        return {"accuracy": weighted_mean((target == prediction).astype(float))}
    prediction = prediction.astype(float)
    num_classes = prediction.shape[1]
    guess = prediction.argmax(1)
    right = (guess == target).astype(float)
    is_target, is_guess = (np.eye(num_classes)[labels] for labels in (target, guess))

    def f1(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        both = weights @ (is_target + is_guess)  # 2 TP + FP + FN of each class
        with np.errstate(invalid="ignore"):  # a class that is neither target nor guess
            found: npt.NDArray[Any] = np.nanmean(
                2 * (weights @ (is_target * is_guess)) / both, axis=1
            )
            return found

    found: dict[str, Weighted] = {"accuracy": weighted_mean(right), "f1": f1}
    if not are_probabilities(prediction):
        return found
    smallest = np.finfo(np.float32).tiny
    own = prediction[np.arange(len(target)), target].clip(smallest)
    found["log_loss"] = weighted_mean(-np.log(own))
    confidence = prediction.max(1)
    bins = np.eye(NUM_BINS + 1)[bin_of(confidence)]
    gaps = bins * (right - confidence)[:, None]
    found["calibration_error"] = lambda w: np.abs(w @ gaps).sum(1) / w.sum(1)
    if num_classes == 2 and len(np.unique(target)) == 2:
        found["auc"] = weighted_auc(target, prediction[:, 1])
    return found


def weighted_auc(target: npt.NDArray[Any], score: npt.NDArray[Any]) -> Weighted:
    """Return the area under the ROC curve as a function of weights.

    It is NaN where one class alone has weight.

    Args:
        target: 0 and 1, shape (N,).
        score: Shape (N,); equal scores count half.
    """
    order = np.argsort(score, kind="stable")
    positive = (target[order] == 1).astype(float)
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of equal scores

    def auc(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        weights = weights[:, order]
        up = np.add.reduceat(weights * positive, starts, axis=1)
        down = np.add.reduceat(weights * (1 - positive), starts, axis=1)
        below = np.cumsum(down, axis=1) - down / 2  # ties count half
        with np.errstate(invalid="ignore"):  # one class alone
            found: npt.NDArray[Any] = (up * below).sum(1) / (up.sum(1) * down.sum(1))
            return found

    return auc


def weighted_average_precision(target: npt.NDArray[Any], score: npt.NDArray[Any]) -> Weighted:
    """Return the average precision Σ (R_n - R_{n-1}) P_n as a function of weights.

    It is NaN where no sample of class 1 has weight.

    Args:
        target: 0 and 1, shape (N,).
        score: Shape (N,); equal scores have one threshold.
    """
    order = np.argsort(-score, kind="stable")
    positive = (target[order] == 1).astype(float)
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))

    def average_precision(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        weights = weights[:, order]
        hits = np.add.reduceat(weights * positive, starts, axis=1)
        both = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
        with np.errstate(invalid="ignore"):  # thresholds above all samples, or no positive one
            precision = np.cumsum(hits, axis=1) / both
            found: npt.NDArray[Any] = np.nansum(hits * precision, axis=1) / hits.sum(1)
            return found

    return average_precision


def weighted_value_metrics(
    target: npt.NDArray[Any], prediction: npt.NDArray[Any]
) -> dict[str, Weighted]:
    """``mse``, ``rmse``, ``mae`` and ``r2`` of values (N,) or (N, D)."""
    shape = len(target), -1
    target, prediction = target.reshape(shape).astype(float), prediction.reshape(shape)
    error = prediction - target
    mse, mae = weighted_mean((error**2).mean(1)), weighted_mean(np.abs(error).mean(1))
    centered = target - target.mean(0)

    def r2(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        around = (weights @ centered**2) - (weights @ centered) ** 2 / weights.sum(1)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: npt.NDArray[Any] = (1 - (weights @ error**2) / around).mean(1)
            return found

    return {"mse": mse, "rmse": lambda w: np.sqrt(mse(w)), "mae": mae, "r2": r2}


def weighted_mean(values: npt.NDArray[Any]) -> Weighted:
    """The mean of one value a sample, shape (N,)."""
    return lambda weights: (weights @ values) / weights.sum(1)
