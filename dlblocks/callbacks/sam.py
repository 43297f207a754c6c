"""Train towards flat minima by sharpness-aware minimization (SAM).

Each step climbs to the worst nearby point, to first order, and descends by the gradient there::

    e = ρ g / ‖g‖                      g = ∇L(w), the norm over all parameters
    w ← optimizer step with ∇L(w + e)

Source: Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently
Improving Generalization", 2021; they suggest ρ = 0.05, and tune over 0.01 … 0.5. With
``adaptive=True`` the neighbourhood follows the scale of each weight (Kwon, Kim, Park and Choi,
"ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
2021)::

    e = ρ T² g / ‖T g‖                 T = |w| + η for weights, 1 for biases

for which ρ is about ten times as large, 0.5 on CIFAR-10 and 1 on CIFAR-100, and η = 0.01.

Use it for few data or noisy labels, if the test error matters more than time: a step costs two. It
works with gradient accumulation, clipping, mixed precision, weight decay, mixing, dropout and
averaged weights, but not with LBFGS or manual optimization. `WeightNoise` is a cheap alternative;
do not use both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from dlblocks._errors import check_range, checked
from dlblocks.callbacks._parameters import check_dense, check_step, check_whole_parameters
from dlblocks.callbacks._resume import random_state, set_random_state
from dlblocks.callbacks._side_effects import paused, values_kept
from dlblocks.callbacks._wrapper import AroundStep, Wrapped, unwrap, wrap

# Keeps a gradient of zeros from dividing by zero.
TINY = 1e-12


@torch.no_grad()
def sam_perturbation(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: float,
    *,
    adaptive: bool | Sequence[bool] = False,
    eta: float = 0.01,
) -> list[Tensor]:
    """Return the step to the worst point within ρ.

    It is ``ρ g / ‖g‖``, or ``ρ T² g / ‖T g‖`` if `adaptive`. It does not depend on the scale of the
    gradients, so gradients of a loss that was scaled for half precision are fine.

    Args:
        weights: Tensors of any shapes.
        gradients: Their gradients, of the same shapes.
        rho: The radius ρ.
        adaptive: Use T = ``|w| + η`` rather than 1. One for all tensors or one each.
        eta: η.

    Returns:
        A perturbation for each tensor.

    Example:
        >>> w, g = [torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 4.0])]
        >>> sam_perturbation(w, g, rho=0.5)
        [tensor([0.3000, 0.4000])]
    """
    flags = [adaptive] * len(weights) if isinstance(adaptive, bool) else list(adaptive)
    scales = [w.abs() + eta if flag else None for w, flag in zip(weights, flags, strict=True)]
    scaled = [g if t is None else g * t for g, t in zip(gradients, scales, strict=True)]
    # At least float32: in half precision, squares overflow, and so does ρ over a small norm.
    wide = [torch.promote_types(g.dtype, torch.float32) for g in scaled]
    norms = [torch.linalg.vector_norm(g, dtype=w) for g, w in zip(scaled, wide, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    factor = rho / (norm + TINY)
    return [
        ((g if t is None else g * t).to(w) * factor.to(g.device, w)).to(g.dtype)
        for g, t, w in zip(scaled, scales, wide, strict=True)
    ]


class SAM(AroundStep):
    """Sharpness-aware minimization, with any optimizer but LBFGS.

    The docstring of the module says when to use it. `training_step`, optimizer and schedules of the
    LightningModule stay as they are::

        trainer = pl.Trainer(callbacks=[SAM(rho=0.05)], accumulate_grad_batches=4,
                             precision="bf16-mixed", gradient_clip_val=1.0)

    - *Accumulation*: the gradient of the whole window makes the perturbation, and all of its
      batches run again at w + e, as if they were one large batch. They are kept in memory.
    - *Mixed precision*: under ``"16-mixed"`` both passes are scaled, and unscaled once. A step that
      overflows is skipped as usual, and the weights stay as they were.
    - *Clipping*, and `on_before_optimizer_step` of other callbacks, get the gradient at w + e.
    - *DDP*: the perturbation is that of the gradient over all ranks, the same on each. (Foret et
      al. let each accelerator perturb by its own share, "m-sharpness". Here m is the whole batch,
      and a smaller m is a smaller batch.)
    - Both passes see the same batch, mixed once, and draw the same random numbers, so dropout drops
      the same units. Logs, torchmetrics and `outputs` are those of the first pass, at w. The second
      pass does not update buffers, such as the statistics of batch norm.

    The step's own hooks, `on_before_backward` and `on_after_backward`, are called for both
    passes. `training_step` must not write into its batch. In pure half precision
    (``"bf16-true"``) rounding may remove the perturbation. `training_step` changes its attributes
    other than buffers and metrics twice.

    Args:
        rho: Radius ρ > 0 of the neighbourhood.
        adaptive: Scale it by the parameters with "weight" in their name (ASAM), as the authors'
            code does.
        eta: η of the adaptive form.

    Raises:
        ValueError: ``rho <= 0``, ``eta < 0``; at the start of the fit: manual optimization, LBFGS,
            a step that takes the loader's iterator, parameters spread over processes.
    """

    @checked
    def __init__(self, rho: float = 0.05, *, adaptive: bool = False, eta: float = 0.01) -> None:
        check_range("rho", rho, 0, low_open=True, high_open=True, high=float("inf"))
        check_range("eta", eta, 0)
        self.rho = rho
        self.adaptive = adaptive
        self.eta = eta
        # Arguments and random state of each step since the gradients were zero.
        self._window: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        self._again = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_step(pl_module, "SAM")
        check_whole_parameters(trainer, "SAM")
        check_dense(pl_module, dict(pl_module.named_parameters()), "SAM")
        if sum(isinstance(c, SAM) for c in vars(trainer)["callbacks"]) > 1:
            raise ValueError("callbacks has SAM twice; leave one of them out.")
        if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(
                "SAM does not work with LBFGS, whose line search needs loss and gradient at the "
                "same weights; use another optimizer."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._window, self._again = [], False
        wrap(pl_module, "optimizer_step", self, trainer, _step_after_two_passes)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        unwrap(pl_module, "optimizer_step", self)
        self._window = []

    # First pass

    def around_step(
        self,
        trainer: pl.Trainer,
        run: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not self._again:
            self._window.append((args, kwargs, random_state(trainer.strategy.root_device)))
        return run()

    def on_before_zero_grad(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        # It is called between forward and backward pass of the first batch of a window.
        del self._window[:-1]

    # Second pass

    def second_pass(self, trainer: pl.Trainer, batch_idx: int, optimizer: Any) -> None:
        """Replace the gradients by those at w + e."""
        pl_module = trainer.lightning_module
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        weights, gradients, flags = [], [], []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    weights.append(parameter)
                    gradients.append(parameter.grad)
                    flags.append(self.adaptive and "weight" in names.get(id(parameter), ""))
        if not weights:
            return  # training_step returned None
        device = trainer.strategy.root_device
        steps = len(self._window)
        moved = sam_perturbation(weights, gradients, self.rho, adaptive=flags, eta=self.eta)
        with values_kept(weights), paused(pl_module):
            with torch.no_grad():
                torch._foreach_add_(weights, moved)
            pl_module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
            self._again = True
            try:
                for i, (args, kwargs, before) in enumerate(self._window):
                    # After the same draws, the generators have the state after the first pass.
                    set_random_state(device, before)
                    with _synchronized(trainer, i == steps - 1):
                        output: Any = trainer.strategy.training_step(*args, **kwargs)
                        loss = output["loss"] if isinstance(output, dict) else output
                        if loss is not None:
                            loss = loss / trainer.accumulate_grad_batches
                            trainer.strategy.backward(loss, optimizer)
            finally:
                self._again = False


def _step_after_two_passes(
    step: Wrapped, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
) -> None:
    """Call `optimizer_step` with a closure that runs both passes."""

    def both() -> Any:
        loss = optimizer_closure()
        step.callbacks[0].second_pass(step.trainer, batch_idx, optimizer)
        return loss

    step.inner(epoch, batch_idx, optimizer, both)


def _synchronized(trainer: pl.Trainer, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Let ranks sum gradients after the last batch of a window only."""
    if isinstance(trainer.strategy, ParallelStrategy) and not is_last:
        return trainer.strategy.block_backward_sync()
    return contextlib.nullcontext()
