"""Predict batches with any LightningModule, and join the results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from dlblocks._ragged import entries_of

# Names of a batch's entry that may hold the targets.
TARGETS = ("target", "targets", "label", "labels", "y")
MASKS = ("mask", "masks")  # where there are images, and none of the above


def gather(batches: Sequence[Any]) -> list[Any]:
    """Collect the prediction batches of all ranks on every rank.

    All ranks must call it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(batches)
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, list(batches))
    return [batch for rank in ranks for batch in rank]


def join_batches(batches: Sequence[Any]) -> dict[str, np.ndarray]:
    """Join prediction batches along the first axis.

    The rows are sorted by ``index``, where the batches have it.

    Args:
        batches: Dictionaries of tensors, as predicted by `dlblocks.models`, or tensors.

    Returns:
        One array for each key. The key for batches that are tensors is ``"prediction"``.

    Raises:
        TypeError: A batch is neither a tensor nor a dictionary of tensors.

    Example:
        >>> join_batches([{"prediction": torch.tensor([1.0]), "index": torch.tensor([1])},
        ...        {"prediction": torch.tensor([0.0]), "index": torch.tensor([0])}])["prediction"]
        array([0., 1.], dtype=float32)
    """
    parts = [{"prediction": b} if isinstance(b, Tensor) else b for b in batches]
    if not parts:
        return {}
    for part in parts:
        if not isinstance(part, dict) or not all(
            isinstance(value, Tensor) for value in part.values()
        ):
            raise TypeError(
                f"predict_step returned {type(part).__name__}; expected a tensor or a dictionary "
                "of tensors such as {'prediction': …, 'index': …}."
            )
    arrays = {key: to_numpy(torch.cat([part[key] for part in parts])) for key in parts[0]}
    if "index" in arrays:
        order = np.argsort(arrays["index"], kind="stable")
        arrays = {key: values[order] for key, values in arrays.items()}
    return arrays


class NoPredictions(ValueError):
    """A model cannot predict.

    Attributes:
        failed: True if an error in the model or the data is the reason.
    """

    def __init__(self, reason: str, *, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


def predictor(model: pl.LightningModule) -> Callable[[Any, int], Any]:
    """Return a function (batch, batch number) that predicts as the model does.

    It calls the model's own `predict_step`. A model without one is called with the first entry of
    the batch, or with the whole batch if that is not a list or tuple.

    Raises:
        NoPredictions: There is no `predict_step`, and no `forward` of a single argument.
    """
    step, name = model.predict_step, type(model).__name__
    if is_overridden("predict_step", model):
        wants_number = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        return lambda batch, number: step(batch, number) if wants_number else step(batch)
    cure = "write def predict_step(self, batch, batch_idx) that returns one row per sample."
    if not is_overridden("forward", model):
        raise NoPredictions(f"{name} has neither a predict_step nor a forward; {cure}")
    if not _takes_one(model.forward):
        raise NoPredictions(
            f"{name} has no predict_step, and its forward takes more than one argument; {cure}"
        )
    return lambda batch, number: model(entries_of(batch)[0])


def target_in(batch: Any) -> Any:
    """Return the entry of a batch that holds its targets, or None."""
    named = batch._asdict() if hasattr(batch, "_asdict") else batch
    if isinstance(named, Mapping):
        if {"boxes", "labels"} <= named.keys():  # lists, one entry an image
            pairs = zip(named["boxes"], named["labels"], strict=True)
            return [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]
        found = [named[key] for key in TARGETS if key in named]
        found = found or _masks_in(named)
        if len(found) == 1:
            return found[0]
    entries = entries_of(batch)
    return entries[1] if len(entries) > 1 else None


def _masks_in(batch: Mapping[Any, Any]) -> list[Any]:
    """Return masks of pixels: with height and width of the images, unlike masks of sequences."""
    sizes = {value.shape[-2:] for value in batch.values()
             if isinstance(value, Tensor) and value.ndim == 4}  # fmt: skip
    found = [batch[key] for key in MASKS if key in batch]
    return [
        mask for mask in found
        if isinstance(mask, Tensor) and mask.ndim in (3, 4) and mask.shape[-2:] in sizes
    ]  # fmt: skip


def _takes_one(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    return True


def to_numpy(values: Tensor) -> np.ndarray:
    """Return values as a NumPy array, bfloat16 as float32."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
