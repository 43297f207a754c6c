"""Regressors over any net, or a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torchmetrics import Metric

from dlblocks.models._mlp_model import MLPModel
from dlblocks.models.model import Model
from dlblocks.tasks import RegressionTask


class Regressor(Model):
    """A regressor over any net with outputs of shape (N, D).

    With `standardize_targets` the net learns (y - mean) / std. Mean and standard deviation of each
    target are those of the training part, and are saved with the weights. `forward` and
    `Trainer.predict` return values in the target's own units. The metrics ``rmse``, ``mae`` and
    ``r2`` are in these units too, but ``loss`` is in those of the standardised targets.

    Targets have shape (N,) or (N, D); predictions have the same.

    Args:
        net: Maps inputs (N, ...) to values (N, D).
        out_features: Number of target values D.
        loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        standardize_targets: Learn standardised targets.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"pearson_corr_coef"``, or metrics.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
        >>> import torch
        >>> model = Regressor(torch.nn.Linear(4, 1), lr=0.1)
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        net: nn.Module,
        out_features: int = 1,
        *,
        loss: Literal["mse", "mae", "huber"] = "mse",
        standardize_targets: bool = False,
        metrics: Sequence[str | Metric] | None = None,
        **kwargs: Any,
    ) -> None:
        self.out_features = out_features
        task = RegressionTask(
            out_features, loss=loss, standardize_targets=standardize_targets, metrics=metrics
        )
        super().__init__(net, task, **kwargs)
        self.loss_name = loss
        self.standardize_targets = standardize_targets


class MLPRegressor(MLPModel, Regressor):
    """A multi-layer perceptron as regressor of flattened inputs.

    Args:
        in_features: Number of values of one input.
        out_features: Number of target values.
        **kwargs: ``hidden``, ``activation``, ``norm``, ``dropout``, ``init`` and ``embeddings`` of
            `dlblocks.nets.MLP`; loss and optimization, see `Regressor`.

    Example:
        >>> import torch
        >>> MLPRegressor(10, hidden=[32])(torch.zeros(2, 10)).shape
        torch.Size([2, 1])
    """

    def __init__(self, in_features: int, out_features: int = 1, **kwargs: Any) -> None:
        self._num_outputs = out_features
        super().__init__(in_features, out_features=out_features, **kwargs)
