"""Measure how fast the training loss rises around the weights.

::

    train/sharpness            100 · (max f in a small box around x - f(x)) / (1 + f(x))
    train/hessian_eigenvalue   the largest eigenvalue of the Hessian of f at x

f is the training loss as a function of the weights x. `sharpness` and `top_eigenvalue` of
`dlblocks.callbacks` have the formulas.

Source: Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, "On Large-Batch Training for Deep
Learning: Generalization Gap and Sharp Minima", 2017. The eigenvalue shows which learning rates are
too large: plain gradient descent is unstable if the eigenvalue is above 2 / lr, and tends to reach
that limit (Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient Descent on Neural Networks Typically
Occurs at the Edge of Stability", 2021).

Both numbers change when weights are scaled without a change of the net's outputs, as before batch
norm or from layer to layer with ReLU (Dinh, Pascanu, Bengio and Bengio, "Sharp Minima Can
Generalize For Deep Nets", 2017). Both fall when the loss itself gets small. So compare runs of one
net, trained to about the same loss, not different nets.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn

from dlblocks._errors import check_range, checked
from dlblocks.callbacks._curvature import check_params, top_eigenvalue
from dlblocks.callbacks._curvature import sharpness as sharpness  # for users
from dlblocks.callbacks._measurement import TrainingMeasurement
from dlblocks.callbacks._parameters import check_step, check_whole_parameters
from dlblocks.callbacks._resume import set_random_state
from dlblocks.callbacks._side_effects import evaluated, paused, random_kept
from dlblocks.callbacks._wrapper import plain_step

SHARPNESS, SUBSPACE = "train/sharpness", "train/sharpness_subspace"
EIGENVALUE = "train/hessian_eigenvalue"


class Sharpness(TrainingMeasurement):
    """Logs ε-sharpness and the top Hessian eigenvalue at the end of epochs.

    The docstring of the module says what they mean.

    f is the mean loss that the module's own `training_step` returns for a fixed random choice of
    training samples, in evaluation mode: without dropout, and with the running statistics of batch
    norm, so that it is a function of the weights alone. It leaves out mixing, smoothed labels,
    noise on weights and `WeightPenalty`, and for our datamodules `train_transform`. The data set of
    any other loader is read in order, and an augmentation within that data set acts here too, with
    new draws in each batch. In this case give `dataloader`, which returns the same samples without
    it. The weights are the trained ones, not their moving average.

    The measurement does not change the training: weights, gradients, buffers, metrics, logs, random
    numbers, the order of the data and `ExactResume` are not touched. Other effects of
    `training_step`, such as pictures in a logger, happen here too.

    A measurement takes about 60 gradients of f, and 10 to 50 products with its Hessian. Meanwhile
    the chosen batches stay in the device's memory. Mixed precision is measured in the precision of
    the weights, without autocast, whose rounding would hide the small steps. Under DDP each rank
    measures its share of the samples, and all log the result for all samples.

    Two of these, one with `directions` and ``eigenvalue=False``, log both sharpnesses.

    Args:
        epsilon: Size ε of the box; None leaves the sharpness out.
        directions: None for the whole space, logged as ``train/sharpness``; p for a subspace of p
            random directions, ``train/sharpness_subspace``, the same in every epoch. They take p
            times the memory of the weights.
        eigenvalue: Log ``train/hessian_eigenvalue``. It needs second derivatives, which a compiled
            module does not have.
        at_epochs: Epochs to measure after, instead of `every_n_epochs`: 0 is the first, -1 the last
            of `max_epochs`.
        limit_batches: Number of batches (of each rank), or share of the data in (0, 1], to measure.
            None for all.
        iterations: Iterations of L-BFGS-B from each of three starts.
        **kwargs: When and on which samples it measures; see `TrainingMeasurement`. `seed` also
            seeds the directions and starts.

    Raises:
        ValueError: A number out of range. At the start of the fit: manual optimization, a step that
            takes the loader's iterator, parameters spread over processes or of half precision,
            epochs after the end. At the first measurement: several loaders, a data set without
            numbered samples, a step without a loss.
    """

    @checked
    def __init__(
        self,
        epsilon: float | None = 1e-3,
        *,
        directions: int | None = None,
        eigenvalue: bool = True,
        at_epochs: Sequence[int] | None = None,
        limit_batches: int | float | None = 10,
        iterations: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(limit_batches=limit_batches, **kwargs)
        if epsilon is not None:
            check_range("epsilon", epsilon, 0, float("inf"), low_open=True, high_open=True)
        if directions is not None:
            check_range("directions", directions, 1)
        if epsilon is None and not eigenvalue:
            raise ValueError("epsilon=None and eigenvalue=False leave nothing to measure.")
        check_range("iterations", iterations, 1)
        if at_epochs is not None and not at_epochs:
            raise ValueError("at_epochs is empty; name an epoch, such as -1 for the last.")
        self.epsilon = epsilon
        self.directions = directions
        self.eigenvalue = eigenvalue
        self.at_epochs = at_epochs
        self.iterations = iterations

    # Times of measuring

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_whole_parameters(trainer, "Sharpness")
        check_step(pl_module, "Sharpness")
        last = trainer.max_epochs
        if trainer.fast_dev_run or self.at_epochs is None:  # type: ignore[attr-defined]
            return
        if last in (None, -1):
            if min(self.at_epochs) < 0:
                raise ValueError(
                    f"at_epochs={list(self.at_epochs)} counts from the end, but max_epochs="
                    f"{last} sets no end; set max_epochs, or epochs from 0 on."
                )
        elif not all(-last <= epoch < last for epoch in self.at_epochs):
            raise ValueError(
                f"at_epochs={list(self.at_epochs)} names an epoch that max_epochs={last} does not "
                f"have; the first is 0, the last {last - 1} or -1."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Only now do lazy parameters have shapes, and weights the precision of training.
        count = check_params(_trained(pl_module))
        if self.directions is not None:
            check_range("directions", self.directions, 1, count)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_due(trainer):
            return
        for name, value in self._measure(trainer, pl_module).items():
            if value != value:
                rank_zero_warn(
                    f"{name} is not a number in epoch {trainer.current_epoch}: the training loss "
                    "is not finite there, or for the sharpness not above -1."
                )
            pl_module.log(name, value, sync_dist=trainer.world_size > 1)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        epoch, last = trainer.current_epoch, trainer.max_epochs
        if self.at_epochs is None:
            return (epoch + 1) % self.every_n_epochs == 0
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        return any(epoch == (at if at >= 0 else at + (last or 0)) for at in self.at_epochs)

    # Measurement

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        device = trainer.strategy.root_device
        params = _trained(pl_module)
        # cuDNN's kernels for recurrent nets have no gradient in evaluation mode.
        recurrent = any(isinstance(part, nn.RNNBase) for part in pl_module.modules())
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
        found = {}
        with random_kept(device) as state, evaluated(pl_module), cudnn:
            batches = self._batches(trainer, pl_module)
            sizes = [extract_batch_size(batch) for batch in batches]
            total = float(_over_ranks(trainer, torch.tensor(float(sum(sizes)))))
            step = _loss_step(trainer, pl_module)

            def loss() -> Iterator[Tensor]:
                # Use the same random numbers and buffers in each evaluation.
                set_random_state(device, state)
                with paused(pl_module):
                    for i, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
                        yield step(batch, i) * (size / total)

            reduce = functools.partial(_over_ranks, trainer) if trainer.world_size > 1 else None
            if self.epsilon is not None:
                found[SHARPNESS if self.directions is None else SUBSPACE] = sharpness(
                    loss,
                    params,
                    self.epsilon,
                    directions=self.directions,
                    iterations=self.iterations,
                    seed=self.seed,
                    reduce=reduce,
                )
            if self.eigenvalue:
                found[EIGENVALUE] = top_eigenvalue(loss, params, seed=self.seed, reduce=reduce)
        return found

    def _batches(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Any]:
        stage = trainer.state.stage
        # Transforms for training, in callbacks and hooks, do not act in this stage.
        trainer.validating = True
        try:
            return list(self.training_batches(trainer, pl_module))
        finally:
            trainer.state.stage = stage


def _over_ranks(trainer: pl.Trainer, value: Tensor) -> Tensor:
    """Sum a value over the ranks."""
    if trainer.world_size == 1:
        return value
    device = trainer.strategy.root_device
    return trainer.strategy.reduce(value.to(device), reduce_op="sum").to(value.device)


def _loss_step(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Callable[[Any, int], Tensor]:
    """Return a function that calls the module's own step and returns the loss."""
    inner, plugin = plain_step(pl_module), trainer.precision_plugin
    takes_index = len(inspect.signature(inner).parameters) > 1

    def step(batch: Any, batch_idx: int) -> Tensor:
        # The rounding of autocast would hide the small steps of the weights.
        mixed = isinstance(plugin, MixedPrecision)
        with contextlib.nullcontext() if mixed else plugin.train_step_context():
            output = inner(batch, batch_idx) if takes_index else inner(batch)
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"Sharpness needs the loss that {type(pl_module).__name__}.training_step returns, "
                f"and got {type(output).__name__}; return the loss of every batch, or a dict with "
                "'loss'."
            )
        return loss

    return step


def _trained(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
