"""Take loss, predictions and metrics of a model from its task."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torchmetrics import MetricCollection

from dlblocks._lightning import datamodule_of, trainer_of
from dlblocks.models._step_buffer import StageMetrics
from dlblocks.tasks import Task
from dlblocks.tasks.task import Stage, is_ours

STAGES: tuple[Stage, ...] = ("train", "val", "test")


class TaskModel(pl.LightningModule):
    """Base class with loss, metrics and predictions of a task."""

    net: nn.Module
    task: Task | None
    _metrics: nn.ModuleDict
    _weighted = False  # True if batches are [inputs, targets, weights]

    @property
    def datamodule(self) -> Any:
        """The Trainer's datamodule, or None if it was given loaders."""
        return datamodule_of(self.trainer)

    # Defined by the task; a subclass may override them

    def make_metrics(self, stage: Stage) -> MetricCollection:
        """Create the metrics of a stage. They get the results of `for_metrics`."""
        return MetricCollection({}) if self.task is None else self.task.make_metrics(stage)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        With weights (N,) it is the mean of ``weight * loss``.
        """
        if self.task is None:
            raise NotImplementedError(
                f"{type(self).__name__} needs a task, or its own method loss(outputs, targets)."
            )
        if weights is None:
            return self.task.loss(outputs, targets)
        return self.task.loss(outputs, targets, weights)

    @property
    def loss_range(self) -> tuple[float | None, float | None]:
        """Lowest and highest possible loss, None for an unknown bound."""
        if self.task is None or not is_ours(type(self).loss):
            return None, None
        return self.task.loss_range

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return the predictions and targets of a batch that the metrics need."""
        if self.task is None:
            return outputs, targets
        if not is_ours(type(self).make_metrics):  # in training they may need more than ours
            stage = "val"
        kept, targets = self.task.for_metrics(outputs, targets, stage)
        # In training our classifiers keep only the predicted classes.
        own = kept.is_floating_point() and not is_ours(type(self).prediction)
        return (self.prediction(outputs) if own else kept), targets

    def prediction(self, outputs: Tensor) -> Tensor:
        """Return the predictions for outputs of the net."""
        return outputs if self.task is None else self.task.predict(outputs)

    def is_standard(self, *names: str) -> bool:
        """Tell whether the task and these methods are those of this package."""
        task = self.task is None or is_ours(type(self.task))
        return task and all(is_ours(getattr(type(self), name)) for name in names)

    def check_data(self, datamodule: Any) -> None:
        """Raise a `ValueError` if the model does not fit the data."""
        shape = getattr(datamodule, "input_shape", None)
        check_input = getattr(self.net, "check_input", None)
        if isinstance(shape, tuple) and callable(check_input):
            if None in shape and not getattr(self.net, "takes_padded", False):
                raise ValueError(
                    f"{type(self.net).__name__} needs inputs of one shape, but the sequences of "
                    f"{type(datamodule).__name__} have unequal lengths; use a net over padded "
                    "batches, such as dlblocks.nets.RNN."
                )
            check_input(shape)
        check_embeddings = getattr(self.net, "check_embeddings", None)
        if callable(check_embeddings):
            embeddings = getattr(datamodule, "embeddings", None) or {}
            check_embeddings(embeddings, type(datamodule).__name__)
        if self.task is not None:
            self.task.check_data(datamodule, type(self).__name__)

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise a `ValueError` if targets do not fit outputs.

        It is called on the first batch.
        """
        if self.task is not None:
            self.task.check_batch(outputs, targets)

    def _check_outputs(self, outputs: Any) -> None:
        """Raise a `TypeError` unless the net returns a tensor."""
        if not isinstance(outputs, Tensor):
            named = ", ".join(map(repr, outputs)) if isinstance(outputs, dict) else ""
            raise TypeError(
                f"{type(self.net).__name__} returns a {type(outputs).__name__}"
                f"{f' with {named}' if named else ''}, but {type(self).__name__} expects a "
                "tensor; define forward in a subclass, such as return "
                f"self.net(inputs)[{next(iter(outputs), 0) if named else 0!r}]."
            )

    @property
    def not_vectorizable(self) -> str | None:
        """Reason why several such models cannot be fitted as one, or None.

        A subclass with a training of its own gives one. `dlblocks.engine` asks for it.
        """
        return None

    @property
    def not_exportable(self) -> str | None:
        """Reason why `dlblocks.loading.Predictor.export` refuses the model, or None."""
        return None

    # Metrics of a stage

    def update_metrics(self, stage: Stage, losses: Tensor, sizes: Tensor, *kept: Tensor) -> None:
        """Add batches to the metrics of a stage.

        Args:
            stage: The stage.
            losses: The mean loss of each batch, shape (B,).
            sizes: The number of samples of each batch, or what `Task.counted` counts, or the sum of
                their weights, shape (B,).
            *kept: Predictions and targets of all samples, as returned by `for_metrics`, and the
                weights of the samples if there are any.
        """
        metrics = self._stage_metrics(stage)
        metrics.loss.update(losses, sizes)
        metrics.others.update(*kept)

    def compute_metrics(self, stage: Stage) -> dict[str, Tensor]:
        """Compute the metrics of a stage over all ranks, by logged name."""
        metrics = self._stage_metrics(stage)
        values = {"loss": metrics.loss.compute(), **metrics.others.compute()}
        return {f"{stage}/{name}": value for name, value in values.items()}

    def reset_metrics(self, stage: Stage) -> None:
        """Reset the metrics of a stage."""
        metrics = self._stage_metrics(stage)
        metrics.loss.reset()
        metrics.others.reset()

    def _stage_metrics(self, stage: Stage) -> StageMetrics:
        # With a suffix, because a child module cannot be called "train", like a method.
        name = f"{stage}_metrics"
        if name not in self._metrics:
            self._metrics[name] = StageMetrics(self.make_metrics(stage)).to(self.device)
        metrics = self._metrics[name]
        assert isinstance(metrics, StageMetrics)  # for the type checker
        return metrics

    # Sample weights

    def use_weights(self, weighted: bool) -> None:
        """Prepare for batches with or without sample weights."""
        if weighted == self._weighted:
            return
        self._weighted = weighted
        if self.task is not None:
            self.task.weighted = weighted
        for stage in [name.removesuffix("_metrics") for name in self._metrics]:
            del self._metrics[f"{stage}_metrics"]  # those with and without weights differ
        if not weighted:
            return
        takes_weights("loss", self.loss)
        if self.task is not None:
            takes_weights(f"{type(self.task).__name__}.loss", self.task.loss)
        for stage in STAGES:
            for name, metric in self._stage_metrics(stage).others.items():
                takes_weights(f"the metric {name!r}", metric.update)

    def _check_loader(self, stage: Stage) -> None:
        """Refuse sample weights that the model does not know of."""
        name = "train_dataloader" if stage == "train" else f"{stage}_dataloaders"
        found = getattr(trainer_of(self), name, None)
        for loader in found if isinstance(found, list) else [found]:
            weights = getattr(getattr(loader, "dataset", None), "weights", None)
            if isinstance(weights, Tensor) and not self._weighted:
                raise ValueError(
                    "the loader has sample weights, which count only with its datamodule; give "
                    "datamodule=… to the Trainer instead of loaders."
                )


def takes_weights(name: str, method: Any) -> None:
    """Raise a `ValueError` unless a method takes (outputs, targets, weights)."""
    try:
        inspect.signature(method).bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"the samples have weights, which {name} does not take; remove it, or give one that "
            "takes (outputs, targets, weights)."
        ) from error
