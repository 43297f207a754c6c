"""Regression: one generic model, and a leaf for each net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from dlblocks.metrics import regression_metrics
from dlblocks.models.model import Model, Stage
from dlblocks.nets import MLP

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


class Regressor(Model):
    """A regressor over any net that puts out values of shape (N, D).

    With `standardize_targets` the net learns (y - mean) / std, with the mean and standard deviation
    of each target over the training part of the data; the two are kept with the weights. `forward`
    and `Trainer.predict` give values in the target's own units, and so are ``rmse``, ``mae`` and
    ``r2``. ``loss`` is in the units in which the net learns.

    Targets have shape (N,) or (N, D); predictions have the same.

    Args:
        net: Maps inputs (N, ...) to values (N, D).
        out_features: Number of target values D.
        loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        standardize_targets: Learn standardised targets.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
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
        **kwargs: Any,
    ) -> None:
        self.out_features = out_features
        super().__init__(net, **kwargs)
        self.loss_name = loss
        self.standardize_targets = standardize_targets
        self.target_mean: Tensor
        self.target_std: Tensor
        self.register_buffer("target_mean", torch.zeros(out_features))
        self.register_buffer("target_std", torch.ones(out_features))

    shown = ("rmse",)

    def make_metrics(self, stage: Stage) -> MetricCollection:
        return regression_metrics()

    def forward(self, inputs: Tensor) -> Tensor:
        values = self.net(inputs)
        return values * self.target_std + self.target_mean if self.standardize_targets else values

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = outputs.flatten(1), targets.reshape(len(targets), -1).to(outputs.dtype)
        if self.standardize_targets:
            # The mean cancels; dividing by std gives the loss in the units the net learns in.
            outputs, targets = outputs / self.target_std, targets / self.target_std
        return LOSSES[self.loss_name](outputs, targets)

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        return outputs.float().flatten(1), targets.float().reshape(len(targets), -1)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        result = super().predict_step(batch, batch_idx, dataloader_idx)
        if "target" in result and result["target"].ndim == 1:
            result["prediction"] = result["prediction"].squeeze(1)
        return result

    def prediction(self, outputs: Tensor) -> Tensor:
        return outputs.float()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.standardize_targets:
            train_targets = getattr(self.datamodule, "train_targets", None)
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

    def check_data(self, datamodule: Any) -> None:
        super().check_data(datamodule)
        if isinstance(getattr(datamodule, "num_classes", None), int):
            raise ValueError(
                f"{type(self).__name__} needs values as targets, but the targets of "
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


class MLPRegressor(Regressor):
    """A multi-layer perceptron as regressor; inputs of any shape are flattened.

    Args:
        in_features: Values in one input.
        out_features: Number of target values.
        hidden: Widths of the hidden layers.
        activation: Name of the activation.
        norm: ``"batch"``, ``"layer"`` or None.
        dropout: Probability with which a hidden unit is dropped.
        init: ``"kaiming"``, ``"xavier"`` or None for torch's default.
        embeddings: For features that are numbers of categories their position and how many there
            are: ``data.embeddings`` of a `TabularDataModule(…, embed=[…])`.
        **kwargs: Loss and optimization; see `Regressor`.

    Example:
        >>> MLPRegressor(10, hidden=[32])(torch.zeros(2, 10)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        *,
        hidden: Sequence[int] = (256,),
        activation: str = "relu",
        norm: Literal["batch", "layer"] | None = None,
        dropout: float = 0.0,
        init: Literal["kaiming", "xavier"] | None = "kaiming",
        embeddings: dict[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        net = MLP(
            in_features,
            out_features,
            hidden=hidden,
            activation=activation,
            norm=norm,
            dropout=dropout,
            init=init,
            embeddings=embeddings,
        )
        super().__init__(net, out_features, **kwargs)
