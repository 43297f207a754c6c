"""Spread a small share of every target evenly over the classes.

::

    y' = (1 - ε) y + ε m / C                m = Σ_c y_c: 1, or 0 for an ignored sample

Source: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception Architecture for
Computer Vision", 2016, with ε = 0.1; Müller, Kornblith and Hinton, "When Does Label Smoothing
Help?", 2019: it calibrates, but harms a net that will teach another.

Use it for your own modules whose loss takes soft targets. The models of this package, and
`torch.nn.CrossEntropyLoss`, have the argument ``label_smoothing``; do not use both. Smoothing is
linear, so it may come before or after `MixUp` and `CutMix`. MixUp softens targets by itself, so
both together gain little. Ignored samples stay ignored in either order, if both have the same
`ignore_index`. ``MixUp(targets="pair")`` must come after the smoothing.

`dlblocks.losses.cross_entropy` leaves ignored samples out. torch's own loss gives them no gradient,
but includes their number when it divides. Class weights apply to the smoothed rows, and the loss is
divided by the mean weight of the smoothed rows.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks._errors import check_range, checked
from dlblocks.callbacks._mixing import Softening
from dlblocks.tasks import MultilabelTask


def smooth_labels(
    targets: Tensor,
    smoothing: float,
    num_classes: int | None = None,
    *,
    ignore_index: int = -100,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Smooth classes or soft targets, as ``(1 - ε) y + ε m / C``.

    Args:
        targets: Classes, integers of shape (N,) or (N, d1, ...), or soft targets, floating point of
            shape (N, C) or (N, C, d1, ...), where rows of zeros are ignored samples.
        smoothing: ε in [0, 1).
        num_classes: C, needed for classes.
        ignore_index: The class index that is ignored. Its rows are zeros.
        dtype: Floating-point dtype of the result; None for that of soft targets, or the default.

    Returns:
        Shape (N, C) or (N, C, d1, ...).

    Raises:
        ValueError: C is not known or not that of soft targets, or targets are values (N,) or bool.

    Example:
        >>> smooth_labels(torch.tensor([1, -100]), 0.2, 2)
        tensor([[0.1000, 0.9000],
                [0.0000, 0.0000]])
    """
    if targets.is_floating_point():
        if targets.ndim < 2:
            raise ValueError(
                f"smooth_labels expects classes or soft targets (N, C), got {targets.dtype} of "
                f"shape {tuple(targets.shape)}; values of a regression have no classes to smooth."
            )
        if num_classes is not None and targets.shape[1] != num_classes:
            raise ValueError(
                f"num_classes={num_classes}, but soft targets of shape {tuple(targets.shape)} "
                f"have {targets.shape[1]} classes."
            )
        dtype = targets.dtype if dtype is None else dtype
        wide = targets.to(torch.promote_types(dtype, torch.float32))
        mass = wide.sum(1, keepdim=True)
        return ((1 - smoothing) * wide + (smoothing / targets.shape[1]) * mass).to(dtype)
    if targets.dtype == torch.bool:
        raise ValueError(
            f"smooth_labels expects classes, got bool of shape {tuple(targets.shape)}; several "
            "labels have no distribution over classes: losses.binary_cross_entropy smooths them."
        )
    if num_classes is None:
        raise ValueError("smooth_labels needs the number of classes; set num_classes=.")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    share = smoothing / num_classes
    low, high = (torch.tensor(value, dtype=dtype) for value in (share, 1 - smoothing + share))
    classes = torch.arange(num_classes, device=targets.device)
    classes = classes.reshape(1, -1, *(1,) * (targets.ndim - 1))
    # Compare, because F.one_hot makes an accelerator wait for the largest label.
    rows = torch.where(targets.unsqueeze(1) == classes, high, low)
    return rows * (targets != ignore_index).unsqueeze(1)


class LabelSmoothing(Softening):
    """Smooths the targets of training batches.

    The docstring of the module says when to use it.

    Classes of shape (N,) or (N, d1, ...), 0 … C-1, become soft targets (N, C) or (N, C, d1, ...).
    Soft targets keep their shape. Validation keeps its targets. If the first batch of a run is not
    smoothed, it gets soft targets all the same, so that a loss that cannot take them fails at once.

    Args:
        smoothing: ε in [0, 1); 0 switches the method off.
        num_classes: Number of classes; None takes that of the module or the datamodule.
        ignore_index: Targets of this value stay ignored. Their rows are zeros.
        **kwargs: When and where it acts; see `BatchTransform`.

    Raises:
        ValueError: ε outside [0, 1), an unknown number of classes, a label outside the classes
            (checked in every batch on the CPU, and in the first on an accelerator), targets that
            are values.
    """

    takes_padded = True
    cure = "or leave LabelSmoothing out for the loss's own argument, if it has one"

    @checked
    def __init__(
        self,
        smoothing: float = 0.1,
        num_classes: int | None = None,
        *,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, ignore_index=ignore_index, **kwargs)
        check_range("smoothing", smoothing, 0, 1, high_open=True)
        self.smoothing = smoothing

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().prepare(trainer, pl_module)
        if isinstance(getattr(pl_module, "task", None), MultilabelTask):
            raise ValueError(
                f"LabelSmoothing smooths one class a sample, and {type(pl_module).__name__} has "
                "several labels; use its label_smoothing=."
            )
        own = getattr(pl_module, "label_smoothing", None)
        if self.smoothing and isinstance(own, (int, float)) and own:
            raise ValueError(
                f"{type(pl_module).__name__} has label_smoothing={own}, and LabelSmoothing would "
                "smooth again; leave one of them out."
            )

    def dry_run(self, batch: Any) -> Any:
        entries = self.entries(batch)
        if self.smoothing == 0 or not isinstance(entries.targets[0], Tensor):
            return batch
        soft = self._smooth(entries.inputs[0], entries.targets[0], 0.0)
        return entries.replaced(entries.inputs, [soft])

    def transform_entries(
        self, inputs: list[Tensor], targets: list[Any], generator: torch.Generator
    ) -> tuple[list[Any], list[Any]]:
        if self.smoothing == 0:
            return inputs, targets
        if not isinstance(targets[0], Tensor):
            raise ValueError(
                f"LabelSmoothing expects targets as a tensor, got {type(targets[0]).__name__}; put "
                "it before the transform that mixes targets in pairs."
            )
        return inputs, [self._smooth(inputs[0], targets[0], self.smoothing)]

    def _smooth(self, inputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        # Soft targets have columns already. The module's number of classes may be another one.
        count, dtype = self.num_classes, None
        if not targets.is_floating_point():
            count = self.found_classes if count is None else count
            if count is None:
                raise ValueError(
                    "LabelSmoothing must know the number of classes to smooth class indices; set "
                    "num_classes=."
                )
            self._check_labels(targets, count)
            dtype = inputs.dtype if inputs.is_floating_point() else None
        smooth = smooth_labels(
            targets, smoothing, count, ignore_index=self.ignore_index, dtype=dtype
        )
        self.softened(targets, smooth)
        return smooth

    def _check_labels(self, targets: Tensor, count: int) -> None:
        if not self.may_look(targets):
            return
        outside = (targets < 0) | (targets >= count)
        outside &= targets != self.ignore_index
        if outside.any():
            raise ValueError(
                f"LabelSmoothing found label {int(targets[outside][0])}, outside 0 … {count - 1} "
                f"(num_classes={count}) and not ignore_index={self.ignore_index}."
            )
