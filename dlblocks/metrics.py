"""Metrics of classification and regression, and properties of any metric."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
)

from dlblocks._errors import check_choice
from dlblocks.losses import MixedTargets

NUM_BINS = 15  # of confidence


def hard_labels(
    targets: Tensor | MixedTargets,
    *,
    task: Literal["multiclass", "multilabel", "binary"] = "multiclass",
    ignore_index: int | None = None,
) -> Tensor:
    """Replace soft targets by their dominant labels, for metrics.

    For soft targets (N, C) torchmetrics' accuracy silently returns 0.0, and other metrics raise. So
    pass the targets of mixed batches through this function first.

    Args:
        targets: Integers, which stay; floating point of shape (N, C, ...) for ``"multiclass"``, of
            any shape for the others; or `MixedTargets`.
        task: ``"multiclass"``: the class with the largest share, of equal ones the first, shape
            (N, ...). ``"multilabel"`` and ``"binary"``: 1 where the share is at least one half.
        ignore_index: The class of rows of zeros, which come from ignored targets; None gives
            them class 0 as any row without a largest value.

    Returns:
        int64 labels, or the integers given.

    Example:
        >>> hard_labels(torch.tensor([[0.3, 0.7], [0.5, 0.5]]))
        tensor([1, 0])
        >>> hard_labels(torch.tensor([[0.3, 0.7], [0.5, 0.5]]), task="multilabel")
        tensor([[0, 1],
                [1, 1]])
    """
    check_choice("task", task, ["multiclass", "multilabel", "binary"])
    if isinstance(targets, MixedTargets):
        first, second, lam = targets
        lam = lam.reshape(-1, *(1,) * (first.ndim - 1))
        if task == "multiclass" and not first.is_floating_point():
            return first.where(lam >= 0.5, second)
        targets = torch.lerp(second.to(lam.dtype), first.to(lam.dtype), lam)
    if not targets.is_floating_point():
        return targets
    if task != "multiclass":
        return (targets >= 0.5).long()
    if targets.ndim < 2:
        raise ValueError(
            f"hard_labels expects soft targets (N, C, ...), got shape {tuple(targets.shape)}; set "
            "task='binary' for the probabilities of one label."
        )
    labels = targets.argmax(1)
    return labels if ignore_index is None else labels.where(targets.any(1), ignore_index)


def classification_metrics(num_classes: int, *, weighted: bool = False) -> MetricCollection:
    """Accuracy, macro F1 and expected calibration error.

    - ``accuracy``: share of samples whose largest probability is their class.
    - ``f1``: mean over the classes of 2PR / (P + R). A class that is neither among the targets nor
      among the predictions is left out.
    - ``calibration_error``: mean distance between confidence and accuracy over 15 bins of
      confidence, weighted by their samples (Naeini et al. 2015, Guo et al. 2017).

    ``update`` takes probabilities (N, C) and classes (N,); see `hard_labels`. If `weighted`, it
    takes the samples' weights, too, shape (N,).

    >>> metrics = classification_metrics(2)
    >>> metrics.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    >>> metrics.compute()["accuracy"]
    tensor(0.5000)
    """
    if weighted:
        kinds = (_WeightedAccuracy, _WeightedF1, _WeightedCalibrationError)
        return MetricCollection({kind.name: kind(num_classes) for kind in kinds})
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(
                num_classes, n_bins=NUM_BINS, validate_args=False
            ),
        },
        compute_groups=False,
    )


def regression_metrics(*, weighted: bool = False) -> MetricCollection:
    """RMSE, MAE and R², in the units of the targets.

    RMSE is ``√(mean (ŷ - y)²)`` and MAE ``mean |ŷ - y|`` over all values; R² is
    ``1 - Σ (ŷ - y)² / Σ (y - ȳ)²``, averaged over the D targets, and NaN for fewer than two
    samples.

    ``update`` takes predictions and targets, both of shape (N, D). If `weighted`, it takes the
    samples' weights, too, shape (N,).

    >>> metrics = regression_metrics()
    >>> metrics.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    >>> metrics.compute()["mae"]
    tensor(1.)
    """
    errors: dict[str, Metric] = {
        "rmse": MeanSquaredError(squared=False),
        "mae": MeanAbsoluteError(),
    }
    if weighted:
        errors = {"rmse": _WeightedError(2), "mae": _WeightedError(1)}
    return MetricCollection({**errors, "r2": _R2Score()}, compute_groups=False)


def wide(device: torch.device) -> torch.dtype:
    """Return the dtype of sums, float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class _WeightedClassMetric(Metric):
    """Base of weighted accuracy, macro F1 and calibration error.

    They sum weights, and `classification_metrics` counts samples.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    name: str
    confusion: Tensor
    gaps: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # Weights by target and prediction; and in each bin of confidence the sum of
        # weight * (confidence - right).
        for state, size in (("confusion", num_classes**2), ("gaps", NUM_BINS + 1)):
            self.add_state(state, default=torch.zeros(size), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add classes (N,) or probabilities (N, C), classes (N,) and weights (N,)."""
        dtype = wide(weights.device)
        weights, classes = weights.to(dtype), predictions
        if predictions.ndim > 1:
            confidence, classes = predictions.max(1)
            edges = torch.linspace(0, 1, NUM_BINS + 1, device=predictions.device)
            where = torch.bucketize(confidence, edges, right=True) - 1
            gaps = weights * (confidence - (classes == targets).to(dtype))
            self.gaps = self.gaps.to(dtype).index_add(0, where, gaps)
        cell = targets * self.num_classes + classes
        self.confusion = self.confusion.to(dtype).index_add(0, cell, weights)

    def compute(self) -> Tensor:
        """Return the metric, NaN if no weight is above 0."""
        return self._of(self.confusion.view(self.num_classes, self.num_classes)).float()

    def _of(self, confusion: Tensor) -> Tensor:
        raise NotImplementedError


class _WeightedAccuracy(_WeightedClassMetric):
    name = "accuracy"

    def _of(self, confusion: Tensor) -> Tensor:
        return confusion.diagonal().sum() / confusion.sum()


class _WeightedF1(_WeightedClassMetric):
    name = "f1"

    def _of(self, confusion: Tensor) -> Tensor:
        both = confusion.sum(0) + confusion.sum(1)
        return (2 * confusion.diagonal() / both)[both > 0].mean()


class _WeightedCalibrationError(_WeightedClassMetric):
    name = "calibration_error"
    higher_is_better = False

    def _of(self, confusion: Tensor) -> Tensor:
        return self.gaps.abs().sum() / confusion.sum()


class _WeightedError(Metric):
    """The error (Σ w |ŷ - y|^p / Σ w)^(1/p) of weighted samples."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    errors: Tensor
    total: Tensor

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power
        for name in ("errors", "total"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add predictions and targets, (N,) or (N, D), and weights (N,)."""
        dtype = wide(targets.device)
        errors = (predictions.to(dtype) - targets.to(dtype)).abs() ** self.power
        weights = weights.to(dtype)
        self.errors = self.errors + weights @ errors.reshape(len(errors), -1).mean(1)
        self.total = self.total + weights.sum()

    def compute(self) -> Tensor:
        """Return the metric, NaN if no weight is above 0."""
        return (self.errors / self.total).float() ** (1 / self.power)


class _R2Score(Metric):
    """R² that loses no digits to targets far from zero.

    torchmetrics' `R2Score` subtracts two sums of squares in float32: targets of 10,000 to 10,010
    give it any value. Here the squares are those of distances from the mean, in float64, and parts
    are merged by the formula of Chan, Golub and LeVeque (1983). Like scikit-learn's `r2_score`,
    constant targets give 1 without errors and 0 with some.
    """

    is_differentiable = True
    higher_is_better = True
    plot_upper_bound = 1.0
    full_state_update = True  # states without a reduction cannot be merged by torchmetrics
    samples: Tensor
    count: Tensor
    mean: Tensor
    spread: Tensor
    errors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("samples", default=torch.tensor(0), dist_reduce_fx="sum")
        for name in ("count", "mean", "spread", "errors"):
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx=None)

    def update(self, predictions: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add predictions and targets, (N,) or (N, D), and perhaps weights (N,)."""
        if weights is not None:  # samples of weight 0 do not count
            predictions, targets, weights = (
                x[weights > 0] for x in (predictions, targets, weights)
            )
        if not len(targets):
            return
        # Widened here: a module's `to(dtype)` narrows what is kept.
        dtype = wide(targets.device)
        targets, predictions = targets.to(dtype), predictions.to(dtype)
        each = torch.ones(len(targets), dtype=dtype, device=targets.device)
        each = each if weights is None else weights.to(dtype)
        # Distances from a sample, so that constant targets have none at all.
        distances = targets - targets[0]
        mean = (each @ distances) / each.sum()
        new = {
            "count": each.sum(),
            "mean": targets[0] + mean,
            "spread": each @ (distances - mean).square(),
            "errors": each @ (predictions - targets).square(),
        }
        self.samples = self.samples + len(targets)
        both = {
            name: torch.stack([getattr(self, name).to(dtype).expand_as(value), value])
            for name, value in new.items()
        }
        self.count, self.mean, self.spread, self.errors = _merge(**both)

    def compute(self) -> Tensor:
        """Return the mean of the D scores."""
        count, spread, errors = self.count, self.spread, self.errors
        if count.ndim:  # of all ranks, side by side
            count, _, spread, errors = _merge(count, self.mean, spread, errors)
        return r2_from_sums(self.samples, spread, errors).mean().float()


def r2_from_sums(count: Tensor, spread: Tensor, errors: Tensor) -> Tensor:
    """Compute R² from sums, as scikit-learn's `r2_score` defines it.

    It is NaN for fewer than two samples.

    Args:
        count: Number of samples.
        spread: Σ (y - ȳ)².
        errors: Σ (ŷ - y)².
    """
    constant = (errors == 0).to(errors.dtype)
    found = torch.where(spread != 0, 1 - errors / spread, constant)
    return torch.where(count >= 2, found, torch.nan)


def _merge(
    count: Tensor, mean: Tensor, spread: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge counts, means and sums along the first axis."""
    total, weight = count.sum(), count.reshape(-1, *(1,) * (mean.ndim - 1))
    middle = mean[0] + (weight / total * (mean - mean[0])).sum(0)
    between = weight * (mean - middle).square()
    return total, middle, (spread + between).sum(0), errors.sum(0)


# Direction and range

Mode = Literal["min", "max"]
Range = tuple[float | None, float | None]

# Words of names, in lower case and without what separates them. torchmetrics' classes are added.
_HIGHER = """
    acc accuracy f1 fbeta auc auroc rocauc aucroc prauc aucpr auprc precision recall sensitivity
    specificity tpr tnr truepositiverate truenegativerate ppv npv r2 iou miou giou jaccard dice
    kappa mcc matthews ap map mar ndcg mrr psnr ssim bleu rouge meteor pearson spearman kendall
    likelihood loglikelihood exactmatch adjustedrandscore normalizedmutualinfoscore
"""
_LOWER = """
    loss error err cost mse rmse mae mape smape msle rmsle nll negativeloglikelihood ce bce
    crossentropy logloss perplexity ppl ece mce brier kl kld fid wer cer lpips hinge huber eer fpr
    fnr falsepositiverate falsenegativerate rootmeansquarederror mase pinball pinballloss
"""
# torchmetrics 1.9 has these the wrong way round.
_MISTAKEN = {
    "DaviesBouldinScore": False,
    "PerceptualPathLength": False,
    "SpectralDistortionIndex": False,
    "WordInfoPreserved": True,
}
# Words that turn the meaning of a metric's name round, or make it another quantity.
_UNSURE = """
    neg negative minus inverse inv reverse complement not gap diff difference delta change drop
    gain reduction improvement std var variance deviation sem weight scale count num number time
    seconds ratio threshold skill log adjusted
"""
_RANGES: dict[Range, str] = {
    (0.0, 1.0): """
        acc accuracy exactmatch f1 f1score fbeta fbetascore auc auroc rocauc aucroc prauc aucpr
        auprc ap averageprecision map meanaverageprecision mar precision recall sensitivity
        specificity tpr tnr fpr fnr truepositiverate truenegativerate falsepositiverate
        falsenegativerate npv ppv iou miou meaniou intersectionoverunion jaccard jaccardindex dice
        dicescore ece calibrationerror hammingdistance ndcg mrr coverage
    """,
    (0.0, None): """
        mse rmse mae mape msle rmsle meansquarederror rootmeansquarederror meanabsoluteerror
        meanabsolutepercentageerror meansquaredlogerror logloss ce bce crossentropy perplexity ppl
        mase pinball pinballloss
    """,
    (None, 1.0): "r2 r2score explainedvariance",
    (-1.0, 1.0): """
        kappa cohenkappa mcc matthews matthewscorrcoef pearson pearsoncorrcoef spearman
        spearmancorrcoef kendall kendallrankcorrcoef
    """,
}


def metric_mode(name: str) -> Mode | None:
    """Tell from its name whether a metric is best low or high.

    Looks for the names of torchmetrics' classes and the usual short ones in the words of `name`.

    Args:
        name: As logged, such as ``"val/loss"``, ``"val_acc"`` or ``"val/MulticlassF1Score"``.

    Returns:
        ``"min"``, ``"max"``, or None where no word is known, two contradict each other
        (``"val/dice_loss"``) or a word changes the meaning (``"val/accuracy_std"``).

    Example:
        >>> metric_mode("val/balanced_accuracy"), metric_mode("valid_loss"), metric_mode("val/it")
        ('max', 'min', None)
    """
    modes = _directions()
    found = {modes.get(word) for word in _known_words(name)}
    return found.pop() if len(found) == 1 else None


def metric_range(name: str) -> Range:
    """Tell from its name between which values a metric lies.

    Returns:
        The lowest and the highest value; None on a side without a known bound. A ``loss`` has no
        known range, since that depends on the module.

    Example:
        >>> metric_range("val/accuracy"), metric_range("val_rmse"), metric_range("val/r2")
        ((0.0, 1.0), (0.0, None), (None, 1.0))
    """
    ranges = _ranges()
    found = {ranges.get(word, (None, None)) for word in _known_words(name)}
    return found.pop() if len(found) == 1 else (None, None)


def metric_ranges(names: Iterable[str], loss: Range = (None, None)) -> dict[str, Range]:
    """Ranges of logged metrics by their names, without those of unknown range.

    Args:
        names: As logged.
        loss: The range of the module's own loss.

    Example:
        >>> metric_ranges(["val/loss", "val/accuracy", "val/it"], (0.0, None))
        {'val/loss': (0.0, None), 'val/accuracy': (0.0, 1.0)}
    """
    found = {name: loss if name.endswith("/loss") else metric_range(name) for name in names}
    return {name: bounds for name, bounds in found.items() if bounds != (None, None)}


def mode_of_metric(module: nn.Module, name: str) -> Mode | None:
    """Tell the direction of a logged metric from a module's torchmetrics objects.

    For ``"val/kappa"`` these are the attribute `val_kappa` and the entries ``"val/kappa"`` and
    ``"kappa"`` of a `MetricCollection`.

    Returns:
        ``"min"`` or ``"max"``; None where no metric is found, or the metric itself does not say.
    """
    attribute = getattr(module, re.sub(r"\W", "_", name), None)
    found = [attribute] if isinstance(attribute, Metric) else []
    for part in module.modules():
        if isinstance(part, MetricCollection):
            entries = dict(part.items(keep_base=False, copy_state=False))
            found += [entries[key] for key in (name, name.rpartition("/")[2]) if key in entries]
    modes = {mode for metric in found if (mode := mode_of(metric))}
    return modes.pop() if len(modes) == 1 else None


def mode_of(metric: Any) -> Mode | None:
    """Direction of a torchmetrics object or class, None if it has none."""
    name = (metric if isinstance(metric, type) else type(metric)).__name__
    higher = _MISTAKEN.get(name, getattr(metric, "higher_is_better", None))
    if not isinstance(higher, bool):
        return None
    return "max" if higher else "min"


@cache
def _directions() -> dict[str, Mode]:
    """The direction of each known name."""
    for domain in ("clustering", "detection", "nominal", "segmentation"):
        importlib.import_module(f"torchmetrics.{domain}")
    found: dict[str, Mode] = {}
    for metric in _subclasses(Metric):
        mode, name = mode_of(metric), metric.__name__.lower()
        is_theirs = metric.__module__.startswith("torchmetrics.") and name[0] != "_"
        if is_theirs and mode and not name.endswith("metric"):
            short = re.sub("^(binary|multiclass|multilabel|retrieval)", "", name)
            found |= dict.fromkeys([name, short, re.sub("(score|index)$", "", short)], mode)
    return found | dict.fromkeys(_HIGHER.split(), "max") | dict.fromkeys(_LOWER.split(), "min")


@cache
def _ranges() -> dict[str, Range]:
    """The range of each name that has one."""
    names = {word: bounds for bounds, words in _RANGES.items() for word in words.split()}
    kinds = ("", "binary", "multiclass", "multilabel")
    return {f"{kind}{name}": bounds for name, bounds in names.items() for kind in kinds}


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset([*_directions(), *_ranges(), *_UNSURE.split()])


def _subclasses(base: Any) -> Iterator[type[Metric]]:
    for metric in base.__subclasses__():
        yield metric
        yield from _subclasses(metric)


def _known_words(name: str) -> Iterator[str]:
    """Known words of a metric's name.

    The longest run of words counts: ``calibration_error`` is one, not ``error``.
    """
    known = _vocabulary()
    for part in name.split("/"):
        words = [word.lower() for word in re.findall("[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", part)]
        start = 0
        while start < len(words):
            for stop in range(len(words), start, -1):
                joined = "".join(words[start:stop])
                numbered = joined.rstrip("0123456789") if stop - start == 1 else ""  # acc5
                if joined in known or numbered in known:
                    yield joined if joined in known else numbered
                    start = stop
                    break
            else:
                start += 1
