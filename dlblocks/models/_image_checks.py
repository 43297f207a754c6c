"""Checks of what generative models are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor


def check_image_shape(image_shape: Any) -> None:
    """Raise a `ValueError` unless it is three whole numbers from 1."""
    sizes = list(image_shape) if isinstance(image_shape, Sequence) else [image_shape]
    if len(sizes) != 3 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(
            f"image_shape={image_shape!r} must be channels, height and width, each at least 1, "
            "such as [1, 8, 8]."
        )


def check_values(prepared: Tensor, levels: int, max_value: float) -> None:
    """Raise a `ValueError` unless prepared images lie on the levels."""
    top = levels - 1
    given = (prepared.float() + 1) * (top / 2)
    # Whole numbers in the source may be rounded levels, such as 16 for 1/16 of 255.
    step = max_value / top
    allowed = 0.02 + (0.5 / step if step >= 1 else 0.0)
    off = (given - given.round().clamp(0, top)).abs()
    worst = float(off.max()) if off.numel() else 0.0
    highest = float(given.max()) * step if worst > 0.02 else 0.0
    if worst > 0.02 and worst <= allowed and highest <= 1 < max_value:
        # Rounded, they would be two levels of all.
        raise ValueError(
            f"images have values from 0 to {highest:.4g}, but max_value={max_value:g}; "
            "set max_value=1 for images from 0 to 1."
        )
    if worst > allowed:
        where = off.flatten(1).amax(1).argmax()
        value = float(given[where].flatten()[off[where].flatten().argmax()]) * step
        raise ValueError(
            f"image {int(where)} has the value {value:.4g}, but levels={levels} and "
            f"max_value={max_value:g} mean the values 0, {step:.4g}, … "
            f"{max_value:g}; set levels and max_value, and leave out callbacks that put "
            "other values into images, such as noise or MixUp."
        )


def check_labels(labels: Any, num_classes: int) -> Tensor:
    """Return labels as int64 (N,), or raise a `ValueError`."""
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        what = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(
            labels, Tensor) else f"a {type(labels).__name__}"  # fmt: skip
        raise ValueError(
            f"labels are {what}, but num_classes={num_classes} needs one class a sample, "
            "integers (N,); leave out callbacks that mix labels, or set num_classes=None."
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        raise ValueError(
            f"label {int(labels[wrong][0])} is outside the classes 0 … {num_classes - 1}; "
            f"num_classes={num_classes}."
        )
    return labels.long()


def check_monitors(trainer: pl.Trainer, name: str, measure: str, *, is_slow: bool) -> None:
    """Raise a `ValueError` if a callback monitors an unlogged score.

    Lightning finds out after the first epoch, or without validation not at all.

    Args:
        trainer: The Trainer of the fit, whose loaders are known.
        name: Class of the model.
        measure: The model's score of an image.
        is_slow: Whether a fit leaves it out.
    """
    # Before the first validation Lightning may not have asked for the loaders.
    is_known = trainer.val_dataloaders is not None
    validates = trainer.enable_validation and not (is_known and not sum(trainer.num_val_batches))
    logged = {"val/loss"} if is_slow else {"val/loss", f"val/{measure}"}
    for callback in vars(trainer)["callbacks"]:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(callback, (EarlyStopping, ModelCheckpoint)) or not monitor:
            continue
        who = f"{type(callback).__name__} monitors {monitor!r}"
        scores = ("val/loss", f"val/{measure}")  # others may be logged by a callback
        if monitor in scores and not validates:
            raise ValueError(
                f"{who}, but the fit has no validation; set val_fraction of the datamodule and not "
                "limit_val_batches=0, or monitor 'train/loss'."
            )
        if monitor in ("val/bits_per_dim", "val/energy_score") and monitor not in logged:
            why = "has no such score"
            if monitor == f"val/{measure}":
                why = "takes too long over it for every epoch, and computes it in Trainer.validate"
            raise ValueError(
                f"{who}, but {name} {why}; monitor {' or '.join(map(repr, sorted(logged)))}."
            )
