"""From the batches that `Trainer.predict` returns to arrays over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def gather(batches: Sequence[Any]) -> list[Any]:
    """The prediction batches of all ranks, on every rank. A collective: all ranks must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(batches)
    ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, list(batches))
    return [batch for rank in ranks for batch in rank]


def stack(batches: Sequence[Any]) -> dict[str, np.ndarray]:
    """Joins prediction batches along the first axis, sorted by ``index`` where they have one.

    Args:
        batches: Dictionaries of tensors, as `dlblocks.models` predict them, or tensors.

    Returns:
        One array a key; tensors come under the key ``"prediction"``.

    Raises:
        TypeError: A batch is neither a tensor nor a dictionary of tensors.

    Example:
        >>> stack([{"prediction": torch.tensor([1.0]), "index": torch.tensor([1])},
        ...        {"prediction": torch.tensor([0.0]), "index": torch.tensor([0])}])["prediction"]
        array([0., 1.], dtype=float32)
    """
    parts = [{"prediction": b} if isinstance(b, torch.Tensor) else b for b in batches]
    if not parts:
        return {}
    for part in parts:
        if not isinstance(part, dict) or not all(
            isinstance(value, torch.Tensor) for value in part.values()
        ):
            raise TypeError(
                f"predict_step returned {type(part).__name__}; expected a tensor or a dictionary "
                "of tensors such as {'prediction': …, 'index': …}."
            )
    arrays = {key: torch.cat([part[key].cpu() for part in parts]).numpy() for key in parts[0]}
    if "index" in arrays:
        order = np.argsort(arrays["index"], kind="stable")
        arrays = {key: values[order] for key, values in arrays.items()}
    return arrays
