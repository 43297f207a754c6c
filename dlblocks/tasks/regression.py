"""One or several values for each sample."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from dlblocks import plots
from dlblocks._scores import Weighted, value_metrics, weighted_value_metrics
from dlblocks.metrics import regression_metrics
from dlblocks.tasks._stacked import RegressionSums
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


class RegressionTask(Task):
    """Predict D values of each sample.

    The net puts out as many, shape (N, D).

    With `standardize_targets` the net learns (y - mean) / std, with the mean and standard deviation
    of each target over the training part of the data; the two are kept with the weights. `decode`
    brings the net's outputs back into the target's own units, in which are predictions, ``rmse``,
    ``mae`` and ``r2``. The loss is in the units in which the net learns.

    Targets have shape (N,) or (N, D); predictions have the same.

    Args:
        out_features: Number of target values D.
        loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        standardize_targets: Learn standardised targets.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"pearson_corr_coef"``, or metrics.

    Example:
        >>> RegressionTask().loss(torch.tensor([[1.0]]), torch.tensor([3.0]))
        tensor(4.)
    """

    name = "regression"
    shown = ("rmse",)
    loss_range = (0.0, None)
    standard = ("rmse", "mae", "r2")

    def __init__(
        self,
        out_features: int = 1,
        *,
        loss: Literal["mse", "mae", "huber"] = "mse",
        standardize_targets: bool = False,
        metrics: Sequence[str | Metric] | None = None,
    ) -> None:
        super().__init__(metrics=metrics)
        self.out_features = out_features
        self.loss_name: Literal["mse", "mae", "huber"] = loss
        self.standardize_targets = standardize_targets
        self.target_mean: Tensor
        self.target_std: Tensor
        self.register_buffer("target_mean", torch.zeros(out_features))
        self.register_buffer("target_std", torch.ones(out_features))

    def decode(self, outputs: Tensor) -> Tensor:
        if not self.standardize_targets:
            return outputs
        return outputs * self.target_std + self.target_mean

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        outputs, targets = outputs.flatten(1), targets.reshape(len(targets), -1).to(outputs.dtype)
        if self.standardize_targets:
            # The mean cancels; dividing by std gives the loss in the units the net learns in.
            outputs, targets = outputs / self.target_std, targets / self.target_std
        if weights is None:
            return LOSSES[self.loss_name](outputs, targets)
        losses = LOSSES[self.loss_name](outputs, targets, reduction="none")
        return (losses.mean(1) * weights).mean()

    def make_metrics(self, stage: Stage) -> MetricCollection:
        metrics = regression_metrics(weighted=self.weighted)
        if stage == "train" or not self.chosen:
            return metrics
        chosen: Any = self.chosen_metrics()
        return MetricCollection({**dict(metrics.items()), **chosen}, compute_groups=False)

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        return outputs.float().flatten(1), targets.float().reshape(len(targets), -1)

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return self.shaped(outputs.float(), targets)

    def shaped(self, predictions: Tensor, targets: Tensor | None) -> Tensor:
        is_one = targets is not None and targets.ndim == 1 and predictions.ndim == 2
        return predictions.squeeze(1) if is_one else predictions

    def outputs_of(self, predictions: Tensor) -> Tensor:
        return predictions.unsqueeze(1) if predictions.ndim == 1 else predictions

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        return outputs.mean(0)

    def for_ensemble(self) -> Task:
        # Each member has units of its own to learn in; the ensemble's loss is in the target's.
        metrics = copy.deepcopy(self.chosen)
        return RegressionTask(self.out_features, loss=self.loss_name, metrics=metrics)

    def fit_to(self, datamodule: Any) -> None:
        if not self.standardize_targets:
            return
        train_targets = getattr(datamodule, "train_targets", None)
        if not callable(train_targets):
            raise ValueError(
                "standardize_targets=True needs a datamodule with train_targets(); scale the "
                "targets yourself and use standardize_targets=False."
            )
        values = train_targets().double()
        values = values.reshape(len(values), -1)
        std = values.std(0, correction=0)
        self.target_mean.copy_(values.mean(0))
        self.target_std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def check_data(self, datamodule: Any, model: str) -> None:
        if isinstance(getattr(datamodule, "num_classes", None), int):
            raise ValueError(
                f"{model} needs values as targets, but the targets of "
                f"{type(datamodule).__name__} are classes; use a Classifier."
            )
        found = getattr(datamodule, "out_features", self.out_features)
        if found != self.out_features:
            raise ValueError(
                f"out_features={self.out_features}, but {type(datamodule).__name__} has {found} "
                f"target value(s) a sample; set out_features={found}."
            )

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        expected = (len(targets), self.out_features)
        if tuple(outputs.shape) != expected or targets.numel() != outputs.numel():
            raise ValueError(
                f"out_features={self.out_features}: expected outputs of shape {expected} and as "
                f"many targets, got outputs {tuple(outputs.shape)}, targets {tuple(targets.shape)}."
            )

    def difference(self, other: Task) -> str:
        return self._size_difference(other, RegressionTask, "out_features", "{} values a sample")

    def stacked_metrics(self, num_models: int, device: torch.device) -> RegressionSums | None:
        if self.chosen or self.weighted:
            return None
        return RegressionSums(num_models, self.out_features, device)

    @classmethod
    def check_arrays(cls, target: Array, prediction: Array) -> None:
        if len(target) != len(prediction) or target.size != prediction.size:
            raise ValueError(
                f"there are targets of shape {target.shape} and predictions of shape "
                f"{prediction.shape}; expected values of one shape."
            )

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        found = value_metrics(table.target, table.prediction, table.sample_weight)
        return {name: float(value) for name, value in found.items()}

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        return weighted_value_metrics(target, prediction)

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array:
        error = table.target - table.prediction.reshape(table.target.shape)
        found: Array = np.square(error.reshape(len(error), -1).astype(float)).mean(1)
        return found

    @classmethod
    def show(cls, table: Predictions, *, title: str | None = None) -> Figure:
        pairs = zip(table.target.reshape(len(table), -1), table.prediction.reshape(len(table), -1),
                    strict=True)  # fmt: skip
        return plots.answers(
            table.images(),
            [
                " → ".join(", ".join(f"{v:.3g}" for v in values) for values in pair)
                for pair in pairs
            ],
            captions=table.captions(),
            title=title and f"{title}: true → predicted",
        )

    @classmethod
    def conformal_scores(cls, target: Array, prediction: Array) -> Array:
        found: Array = np.abs(target - prediction.reshape(target.shape))
        return found

    @classmethod
    def regions(cls, calibration: Any, each: Tensor, coverage: float) -> dict[str, Tensor]:
        lower, upper = calibration.interval(each, coverage)
        return {"lower": lower, "upper": upper}

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw predictions over true values, and the curve of a single input."""
        target, prediction = table.target, table.prediction
        found: dict[str, Callable[[], Figure]] = {
            "predicted_vs_true": lambda: plots.predicted_vs_true(
                target, prediction.reshape(target.shape), title=title, scores=scores or None
            )
        }
        if table.inputs is not None and table.input_shape == (1,) and target.size == len(target):
            found["curve"] = lambda: _curve(table)
        return found


def _curve(table: Predictions) -> Figure:
    assert table.inputs is not None  # for the type checker
    means = table.mean()
    x = table.inputs(means.index).ravel()
    order = np.argsort(x)
    return plots.curve(x, means.target.ravel(), x[order], means.prediction.ravel()[order])
