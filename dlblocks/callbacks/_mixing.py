"""Bases of the transforms that soften targets or mix pairs of samples.

If a loss cannot take the new targets, the error says so.
"""

from __future__ import annotations

import traceback
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks._errors import check_range, checked
from dlblocks._memory import BatchMemory
from dlblocks.callbacks._batch_transform import (
    EntriesTransform,
    batches_seen,
    per_sample,
)
from dlblocks.callbacks._soft_targets import find_num_classes, soft_targets
from dlblocks.losses import MixedTargets

# Samples of this size or more are averaged one by one on the CPU; see benchmarks/mixing.py.
LARGE_BYTES = 1 << 16


class Softening(EntriesTransform):
    """A transform that turns classes into soft targets.

    Subclasses call `softened` with the new targets, in `dry_run` too, so that a loss that cannot
    take them fails on the first batch of a run. `cure` says what may help other than a loss that
    takes soft targets.

    Args:
        num_classes: Number of classes, for targets that are class indices. None takes the number of
            the module, of its hyperparameters, or of the datamodule.
        ignore_index: The class index that does not count in the loss. Its soft row is zeros, which
            `dlblocks.losses.cross_entropy` leaves out.
        **kwargs: When and where it acts; see `BatchTransform`.
    """

    cure: str

    @checked
    def __init__(
        self, *, num_classes: int | None = None, ignore_index: int = -100, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_classes is not None:
            check_range("num_classes", num_classes, 2)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.found_classes: int | None = None
        self._looked = False  # labels on an accelerator were checked, which makes it wait
        self._step = 0
        # Number of the first batch that was softened, and a description of its new targets.
        self._first_softened: tuple[int, str] | None = None

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().prepare(trainer, pl_module)
        self.found_classes = find_num_classes(trainer, pl_module)
        self._looked, self._step, self._first_softened = False, 0, None

    def apply(self, batch: Any, *, epoch: int, step: int, rank: int) -> Any:
        self._step = step
        return super().apply(batch, epoch=epoch, step=step, rank=rank)

    def softened(self, before: Any, after: Any) -> None:
        """Remember the first change of targets, for error messages."""
        if self._first_softened is None:
            self._first_softened = (self._step, _kind(before, after))

    def may_look(self, labels: Tensor) -> bool:
        """Return True if these labels should be checked.

        On the CPU all are, elsewhere those of one batch a run.
        """
        looked, self._looked = self._looked, True
        return labels.device.type == "cpu" or not looked

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Add the cure to an error of the first step with soft targets."""
        super().on_exception(trainer, pl_module, exception)
        # In training_step, Lightning has counted the batch already.
        first, kind = self._first_softened or (None, "")
        if first != batches_seen(trainer) - 1 or not kind:
            return
        kinds = (TypeError, ValueError, RuntimeError, IndexError, AttributeError)
        if not isinstance(exception, kinds) or isinstance(exception, torch.OutOfMemoryError):
            return
        frames = traceback.extract_tb(exception.__traceback__)
        if not any(frame.name == "training_step" for frame in frames):
            return
        exception.args = (
            f"{exception}\n\n{type(self).__name__} gave training_step {kind}. If that is what the "
            "error is about: for the loss use dlblocks.losses.cross_entropy, which takes hard and "
            f"soft targets, and for metrics dlblocks.metrics.hard_labels(targets); {self.cure}.",
        )


def _kind(before: Any, after: Any) -> str:
    """Describe new targets that some losses cannot take."""
    if isinstance(after, MixedTargets):
        return "targets that are a pair, MixedTargets(first, second, lam)"
    if before.is_floating_point() or not after.is_floating_point():
        return ""
    return (
        f"soft targets, {after.dtype} of shape {tuple(after.shape)}, for the integers of shape "
        f"{tuple(before.shape)} in the batch"
    )


class Mix(NamedTuple):
    """Plan for mixing a batch.

    Attributes:
        partner: The partner of each sample, int64, shape (N,).
        lam: The share of each sample's own target, float32, shape (N,).
        box: The rectangle that comes from the partner, int64, shape (N, 4), or None.
    """

    partner: Tensor
    lam: Tensor
    box: Tensor | None = None

    def to(self, device: torch.device) -> Mix:
        """Copy it to another device, without waiting."""
        partner, lam = (t.to(device, non_blocking=True) for t in (self.partner, self.lam))
        box = None if self.box is None else self.box.to(device, non_blocking=True)
        return Mix(partner, lam, box)


class Mixer(Softening):
    """Mixes each sample and its target with a partner from the batch.

    Subclasses define `draw` and `mix_input`. Partners form a random cycle through the batch: every
    sample is a partner once, and never its own unless the batch has one sample. The generator draws
    in this order: whether to mix the batch (if ``p < 1``), λ, the cycle, the boxes.

    If the first batch of a run is not mixed, its targets become soft all the same. So a loss that
    cannot take them, labels outside the classes and batches of another structure show at once,
    whenever the mixing starts.

    Args:
        alpha: α of the Beta distribution; 0 switches the method off.
        per_sample: Draw for each sample rather than for the batch.
        targets: ``"soft"``, or ``"pair"`` for `MixedTargets`, which `mixed_loss` turns into calls
            of a loss that takes hard targets only.
        **kwargs: Classes, and when and where it acts; see `Softening` and `BatchTransform`.
    """

    extra_actions = ("keep", "input", "target")
    weights_action = "target"  # the last of the targets, then

    @checked
    def __init__(
        self,
        alpha: float,
        *,
        per_sample: bool = True,
        targets: Literal["soft", "pair"] = "soft",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_range("alpha", alpha, 0, float("inf"), high_open=True)
        self.alpha = alpha
        self.per_sample = per_sample
        self.targets = targets
        self.cure = (
            "or, for a loss that needs hard targets, "
            f"{type(self).__name__}(targets='pair') and dlblocks.losses.mixed_loss"
        )
        if targets == "pair":
            self.cure = (
                "or, for a pair, dlblocks.losses.mixed_loss, or targets='soft' for soft targets"
            )

    def draw(self, inputs: Tensor, generator: torch.Generator) -> Mix:
        """Draw a plan for mixing a batch of these inputs."""
        raise NotImplementedError

    def unmixed(self, inputs: Tensor) -> Mix:
        """Return a plan that leaves every sample as it is."""
        return Mix(torch.arange(len(inputs)), torch.ones(len(inputs)))

    def mix_input(self, inputs: Tensor, mix: Mix) -> Tensor:
        """Return mixed inputs."""
        raise NotImplementedError

    def check_inputs(self, inputs: list[Tensor]) -> None:
        """Raise a `ValueError` unless the inputs can be mixed."""

    def pasted(self, target: Tensor, inputs: Tensor) -> bool:
        """Return True if `target` has values for pixels and changes as inputs do."""
        return False

    def transform_entries(
        self, inputs: list[Tensor], targets: list[Any], generator: torch.Generator
    ) -> tuple[list[Any], list[Any]]:
        self.check_inputs(inputs)
        if self.alpha == 0:
            return inputs, targets
        return self._mixed(inputs, targets, self.draw(inputs[0], generator))

    def dry_run(self, batch: Any) -> Any:
        if self.alpha == 0:
            return batch
        entries = self.entries(batch)
        if any(isinstance(target, MixedTargets) for target in entries.targets):
            return batch
        self.check_inputs(entries.inputs)
        mix = self.unmixed(entries.inputs[0])
        return entries.replaced(*self._mixed(entries.inputs, entries.targets, mix))

    def _mixed(
        self, inputs: list[Tensor], targets: list[Any], mix: Mix
    ) -> tuple[list[Any], list[Any]]:
        mix = mix.to(inputs[0].device)
        new_inputs = [self.mix_input(x, mix) for x in inputs]
        weights: list[Any] = []
        if self.weights_key is not None and targets:
            *targets, old = targets
            new, lam = mixed_weights(old, mix)
            mix, weights = mix._replace(lam=lam), [new]
            if any(self.pasted(y, inputs[0]) for y in targets):
                raise ValueError(
                    f"{type(self).__name__} cannot mix masks of samples that have weights; leave "
                    "one of the two out."
                )
        new_targets = [self._mix_target(y, inputs[0], mix, i == 0) for i, y in enumerate(targets)]
        if targets:
            self.softened(targets[0], new_targets[0])
        return new_inputs, new_targets + weights

    def _mix_target(self, target: Any, inputs: Tensor, mix: Mix, is_first: bool) -> Any:
        name = type(self).__name__
        if isinstance(target, MixedTargets):
            raise ValueError(
                f"{name} cannot mix targets that are a pair already; use OneOf([...]) to apply one "
                "of the two, or targets='soft'."
            )
        if target.ndim == 0 or len(target) != len(inputs):
            raise ValueError(
                f"{name} got {len(inputs)} inputs but targets of shape {tuple(target.shape)}; both "
                "must have the batch's length."
            )
        if self.pasted(target, inputs):
            return self.mix_input(target, mix)
        if not (is_first or target.is_floating_point()):
            raise ValueError(
                f"{name} mixes further targets (data_keys=) only if they are floating point, got "
                f"{target.dtype} of shape {tuple(target.shape)}; make classes one-hot."
            )
        soft = soft_targets(
            target,
            self.num_classes,
            self.found_classes,
            name,
            inputs,
            ignore_index=self.ignore_index,
            check=self.may_look(target) and target.device.type != "meta",
        )
        if self.targets == "pair":
            lam = mix.lam.to(soft.dtype)
            return MixedTargets(target, gather(target, mix.partner), lam)
        return average(soft, mix.lam, mix.partner)


def mixed_weights(weights: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """The weights of mixed samples, and the shares of their own targets, both (N,).

    A loss that is linear in the target is then the mean of ``λ w_i l_i + (1 - λ) w_j l_j``, as it
    would be if each of the two targets had the weight of its own sample.
    """
    own, other = weights * mix.lam, weights[mix.partner] * (1 - mix.lam)
    new = own + other
    return new, torch.where(new > 0, own / new, mix.lam)


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[index]`` in the memory format of `values`."""
    if values.is_contiguous() or values.requires_grad:
        return values.index_select(0, index)
    return torch.index_select(values, 0, index, out=torch.empty_like(values))


def average(
    values: Tensor, lam: Tensor, index: Tensor, memory: BatchMemory | None = None
) -> Tensor:
    """Average each sample with its partner.

    The result is ``lam * values + (1 - lam) * values[index]`` with λ of shape (N,).
    """
    lam = per_sample(lam, values)
    if values.requires_grad:
        return torch.lerp(values.index_select(0, index), values, lam)
    out = torch.empty_like(values) if memory is None else memory.like(values)
    if values.device.type == "cpu" and values[:1].nbytes >= LARGE_BYTES:
        # One after another, each is read and written once; a copy of all is one more pass.
        rows = values.unbind()
        pairs = zip(out.unbind(), rows, lam.unbind(), index.tolist(), strict=True)
        for new, own, share, partner in pairs:
            torch.lerp(rows[partner], own, share, out=new)
        return out
    torch.index_select(values, 0, index, out=out)
    return torch.lerp(out, values, lam, out=out)


def draw_mix(
    size: int, alpha: float, generator: torch.Generator, per_sample: bool
) -> tuple[Tensor, Tensor]:
    """Draw λ ~ Beta(α, α) and a random partner for each sample.

    λ is float32, the partners are int64, both of shape (N,).
    """
    # Two gamma variables make a beta variable. In float64 a small α does not underflow to 0 / 0.
    shape = torch.full((2, size if per_sample else 1), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=generator)
    lam = (gamma[0] / gamma.sum(0)).nan_to_num(1.0).float().expand(size)
    order = torch.randperm(size, generator=generator)
    # Each sample's partner is the next of a random order, the last one's the first.
    return lam, torch.empty_like(order).scatter_(0, order, order.roll(-1))
