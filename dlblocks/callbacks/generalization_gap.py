"""Measure how much better a model is on its training data.

::

    gap = metric(validation data) - metric(training data)

The logged training loss does not show it. It is an average over an epoch in which the weights
change, with dropout, augmentation, mixing and smoothed labels, so it is often above the validation
loss even of a model that overfits. Here both are measured in the same way, by the module's own
`validation_step`, in evaluation mode, with the same weights.

Source: the gap is that of the theory of generalization (Vapnik, "The Nature of Statistical Learning
Theory", 1995); for deep nets see Zhang et al., "Understanding Deep Learning Requires Rethinking
Generalization", 2017, and Jiang et al., "Fantastic Generalization Measures and Where to Find Them",
2020.

Use it to see whether a model needs regularization. A large gap in the loss says so. A small gap
with a high loss asks for a larger model or a longer training. It costs a forward pass over the
training data; ``limit_batches=0.2`` and ``every_n_epochs=5`` make it cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.data import extract_batch_size
from torchmetrics import MaxMetric, MeanMetric, Metric, MinMetric, SumMetric

from dlblocks._errors import checked, did_you_mean
from dlblocks.callbacks._measurement import TrainingMeasurement
from dlblocks.callbacks._side_effects import logging_to, metrics_kept, random_kept

PREFIXES = ("val/", "val_", "valid/", "valid_", "validation/", "validation_")
REDUCTIONS = {"mean": MeanMetric, "sum": SumMetric, "max": MaxMetric, "min": MinMetric}


class GeneralizationGap(TrainingMeasurement):
    """Logs the gap between validation and training data.

    The docstring of the module says when to use it.

    For each metric that `validation_step`, or the module's `on_validation_epoch_end`, logs, such as
    ``val/loss``, there are ``train_eval/loss``, its value on the training data, and ``gap/loss``,
    validation minus training. A positive gap of a loss is overfitting, and so is a negative gap of
    an accuracy.

    The training data are measured at the start of each validation, with averaged weights if
    validation has them. A datamodule of this package gives the training part in the form of
    validation, without `train_transform`. The data set of any other loader is read in order, and an
    augmentation within that data set acts here too. In this case give `dataloader`, which returns
    the same samples without it. Batches pass the hooks of the datamodule as in validation.

    The measurement does not change the training: random numbers, metrics, the order of the data and
    `ExactResume` are not touched. But `validation_step`, `on_validation_epoch_start` and
    `on_validation_epoch_end` are called for the training data first, so other effects of these
    steps, such as pictures in a logger, happen twice.

    Under DDP each rank measures a share of the training data, no sample twice.

    Args:
        metrics: Names as they are logged in validation, such as ``["val/loss"]``; None for all.
        **kwargs: When and on which samples it measures; see `TrainingMeasurement`.

    Raises:
        ValueError: A bad number; in the first validation: a metric that is not logged, several
            loaders, or a data set without numbered samples.
    """

    @checked
    def __init__(self, metrics: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if metrics is not None and not metrics:
            raise ValueError("metrics is empty; name one, or leave it out for all.")
        self.metrics = metrics
        self._measured: dict[str, float] = {}

    # Times of measuring

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # The module is as in validation here: in evaluation mode, with averaged weights if a
        # callback has some, and with the sums of an epoch's start.
        is_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not is_fit or batch_idx or dataloader_idx:
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        self._measured = self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Nothing can be logged at the end of validation.
        measured, self._measured = self._measured, {}
        validated = trainer.callback_metrics
        for name, value in measured.items():
            short = next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)
            gap = float(validated[name]) - value
            for key, number in ((f"train_eval/{short}", value), (f"gap/{short}", gap)):
                pl_module.log(key, number, sync_dist=trainer.world_size > 1)

    # Measurement

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        if len(trainer.num_val_batches) > 1:
            raise ValueError(
                f"GeneralizationGap compares with one validation loader, and there are "
                f"{len(trainer.num_val_batches)}; use one."
            )
        device = trainer.strategy.root_device
        log = _Log(device)
        with random_kept(device), metrics_kept(pl_module), logging_to(pl_module, log):
            for i, batch in enumerate(self.training_batches(trainer, pl_module)):
                log.batch = batch
                # The step of DDP's strategy would wait for other ranks, which may have another
                # number of batches.
                with trainer.precision_plugin.val_step_context():
                    pl_module.validation_step(batch, i)
            log.batch = None
            pl_module.on_validation_epoch_end()
            found = {name: float(metric.compute()) for name, metric in log.metrics.items()}
            pl_module.on_validation_epoch_start()
        for name in self.metrics or ():
            if name not in found:
                hint = did_you_mean(name, found) or f"; it logs {', '.join(found) or 'nothing'}"
                raise ValueError(f"metrics has {name!r}, which validation does not log{hint}.")
        return {name: found[name] for name in self.metrics or found}


class _Log:
    """Replaces ``module.log`` and reduces as Lightning does.

    Args:
        device: Where the sums are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.batch: Any = None
        self.metrics: dict[str, Metric] = {}

    def __call__(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        batch_size: int | None = None,
        **others: Any,
    ) -> None:
        if on_epoch is False:
            return
        if isinstance(value, Metric):
            self.metrics[name] = value
            return
        kind = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "?")
        if kind not in REDUCTIONS:
            raise ValueError(
                f"GeneralizationGap cannot reduce {name!r} by {reduce_fx!r}, only by "
                f"{', '.join(REDUCTIONS)}; name the metrics to compare by metrics=."
            )
        if name not in self.metrics:
            # NaN stays NaN. With "disable" torchmetrics 1.9 ignores the weights.
            metric = REDUCTIONS[kind](nan_strategy=math.nan).set_dtype(torch.float64)
            self.metrics[name] = metric.to(self.device)
        value = torch.as_tensor(value, device=self.device).detach().double().mean()
        if kind != "mean":
            self.metrics[name].update(value)
            return
        if batch_size is None:
            batch_size = 1 if self.batch is None else extract_batch_size(self.batch)
        self.metrics[name].update(value, batch_size)
