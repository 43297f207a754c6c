"""Make soft targets of classes, so that a callback can mix them."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dlblocks.losses import IGNORED


def soft_targets(
    targets: Tensor,
    num_classes: int | None,
    owner: Any,
    who: str,
    like: Tensor,
    *,
    ignore_index: int = IGNORED,
    check: bool | None = None,
) -> Tensor:
    """Return targets that can be mixed, with one-hot rows of classes.

    Args:
        targets: Classes, integers of shape (N,), or of shape (N, d1, d2, ...) for each place of
            a sample; 0/1 integers or bool of shape (N, C) for several labels at once; or floating
            point of any shape.
        num_classes: Number of classes, or None to take `owner`.
        owner: A number of classes that was found elsewhere; other values count as None.
        who: The caller's name, for the message.
        like: A tensor with the floating-point dtype of the result.
        ignore_index: A class index that does not count. Its row is zeros.
        check: Check that labels are classes, which makes an accelerator wait. None: on the CPU
            only.

    Returns:
        Floating point: (N, C) or (N, C, d1, d2, ...) for classes, else of the shape of `targets`.

    Raises:
        ValueError: The number of classes is needed and not known, a label lies outside, or integers
            of shape (N, K) are neither classes nor 0 and 1.
    """
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    if targets.is_floating_point():
        return targets
    count = num_classes if num_classes is not None else owner
    known = isinstance(count, Integral)
    if check is None:
        check = targets.device.type == "cpu"
    if targets.ndim == 2:
        several = targets.dtype == torch.bool or not known or targets.shape[1] == count
        if not several or (check and targets.numel() and _outside(targets, 0, 1)):
            raise ValueError(
                f"{who} got integer targets of shape {tuple(targets.shape)}; expected classes "
                f"(N,), or several labels as 0 and 1{f' (N, {count})' if known else ''}; squeeze a "
                "last axis of 1, convert values to floating point, or make classes of places "
                "one-hot."
            )
        return targets.to(dtype)
    if not known:
        raise ValueError(
            f"{who} must know the number of classes to mix class indices; set num_classes=, or "
            "convert values to floating point."
        )
    if count < 2:
        raise ValueError(
            f"{who} found num_classes={count} for class indices; set num_classes= to 2 or more, or "
            "make the targets of one output floating point."
        )
    if check and targets.numel() and _outside(targets, 0, count - 1, ignore_index):
        labels = targets[targets != ignore_index]
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(
            f"{who} found label {low if low < 0 else high}, outside 0 … {count - 1} "
            f"(num_classes={count}); ignored labels are {ignore_index} (ignore_index)."
        )
    # Compare, because F.one_hot makes an accelerator wait for the largest label.
    classes = torch.arange(count, device=targets.device)
    return (targets.unsqueeze(1) == classes.reshape(-1, *(1,) * (targets.ndim - 1))).to(dtype)


def find_num_classes(trainer: Any, pl_module: Any) -> int | None:
    """Return the number of classes of the module or the datamodule."""
    for thing in (pl_module, getattr(pl_module, "hparams", None), trainer.datamodule):
        found = getattr(thing, "num_classes", None)
        if isinstance(found, Integral) and not isinstance(found, bool):
            return int(found)
    return None


def _outside(labels: Tensor, low: int, high: int, ignored: int | None = None) -> bool:
    smallest, largest = labels.aminmax()
    if low <= int(smallest) and int(largest) <= high:
        return False
    inside = (labels >= low) & (labels <= high)
    if ignored is not None:
        inside |= labels == ignored
    return not bool(inside.all())
