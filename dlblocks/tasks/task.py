"""`Task`: what a learning problem defines, without Lightning and without data."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

Stage = Literal["train", "val", "test"]


class Task(nn.Module):
    """A learning problem: its loss, metrics and predictions, and how they are averaged.

    A model is a net with a task: ``Model(net, task)``. A task of your own is a subclass that
    defines `loss` and `make_metrics`, and the other methods where the outputs of the net are not
    themselves the predictions.

    It is a module, because it may hold tensors, such as the weights of classes. In training mode
    `loss` is what is minimised; in evaluation mode it is what is reported.

    Example:
        >>> class Absolute(Task):
        ...     name = "absolute"
        ...     def loss(self, outputs, targets):
        ...         return (outputs - targets).abs().mean()
        >>> Absolute().loss(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor(2.)
    """

    name: str = ""
    """What ``summary.json`` calls it."""
    shown: tuple[str, ...] = ()
    """Metrics in the progress bar, beside the loss."""
    loss_range: tuple[float | None, float | None] = (None, None)
    """Lowest and highest possible loss; None for an unknown bound."""
    votes: bool = False
    """Whether members of an ensemble can vote for one answer each."""

    def decode(self, outputs: Tensor) -> Tensor:
        """Outputs of the net in the units of the targets: what the model's `forward` returns."""
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(outputs, targets).")

    def make_metrics(self, stage: Stage) -> MetricCollection:
        """The metrics of one stage, updated with (predictions, targets) of `for_metrics`."""
        return MetricCollection({})

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """What to keep of a batch until the metrics are updated."""
        return self.predict(outputs), targets

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Predictions for outputs; of the shape of the targets, where they are known."""
        return outputs

    def outputs_of(self, predictions: Tensor) -> Tensor:
        """Outputs that `predict` turns into these predictions."""
        return predictions

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        """The outputs (N, ...) of an ensemble for those of its members, shape (M, N, ...).

        The predictions of the members are averaged, whatever their outputs are.

        Args:
            outputs: Outputs of M members.
            hard: Count votes instead, where `votes` is True.
        """
        predictions = torch.stack([self.predict(member) for member in outputs])
        return self.outputs_of(predictions.mean(0))

    def fit_to(self, datamodule: Any) -> None:
        """Takes from the training part of the data what the loss needs, as class weights."""

    def check_data(self, datamodule: Any, model: str) -> None:
        """Raises a `ValueError` if targets of `datamodule` are not of this problem.

        Args:
            datamodule: Any datamodule; what it does not say is not checked.
            model: The name of the model's class, for the message.
        """

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises a `ValueError` if targets do not fit outputs; called on the first batch."""

    def difference(self, other: Task) -> str:
        """What keeps models of this and of another task from being averaged, or ``""``."""
        return "" if type(self) is type(other) else f"{self.name} and {other.name}"

    # The engine asks for these; without them it computes each model by itself.

    def stacked_loss(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Losses (M,) of outputs (M, N, ...) of M models, each for its own targets (M, N, ...)."""
        return None

    def stacked_metrics(self, num_models: int, device: torch.device) -> Any:
        """Sums that give the metrics of M models at once, or None."""
        return None


def is_ours(method: Any) -> bool:
    """Tell methods and classes of this package from those of a user."""
    return method.__module__.startswith("dlblocks.")
