"""What can be found out about anybody's data set: its targets, its groups, its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

TARGETS = ("targets", "labels", "y")
GROUPS = ("groups",)


def read_column(dataset: Dataset, names: Sequence[str]) -> np.ndarray | None:
    """One value a sample of a data set, or None if it has no such attribute.

    Looks for an attribute of one of the `names` that is as long as the data set; through `Subset`
    and `ConcatDataset`. Targets of a `TensorDataset` are its last tensor. No sample is loaded.

    Example:
        >>> data = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 2, 1, 0]))
        >>> read_column(Subset(data, [0, 2]), TARGETS)
        array([3, 1])
    """
    if isinstance(dataset, Subset):
        whole = read_column(dataset.dataset, names)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [read_column(part, names) for part in dataset.datasets]
        found = [part for part in parts if part is not None]
        return np.concatenate(found) if len(found) == len(parts) else None
    if isinstance(dataset, TensorDataset):
        last = names is TARGETS and len(dataset.tensors) > 1
        return as_numpy(dataset.tensors[-1]) if last else None
    for name in names:
        values = getattr(dataset, name, None)
        if isinstance(values, (Tensor, np.ndarray, list, tuple)) and len(values) == length(dataset):
            return as_numpy(values)
    return None


def arrays(dataset: Dataset) -> dict[str, Any]:
    """The arrays or lists that a data set holds its samples in, as far as they can be told."""
    if isinstance(dataset, Subset):
        inner = arrays(dataset.dataset)
        return {**inner, f"indices{len(inner)}": np.asarray(dataset.indices, dtype=np.int64)}
    if isinstance(dataset, ConcatDataset):
        parts = enumerate(dataset.datasets)
        return {f"{i}.{name}": a for i, part in parts for name, a in arrays(part).items()}
    if isinstance(dataset, TensorDataset):
        return {f"tensor{i}": tensor for i, tensor in enumerate(dataset.tensors)}
    own = {k: v for k, v in vars(dataset).items() if isinstance(v, (Tensor, np.ndarray))}
    found = {**own, **{name: getattr(dataset, name, None) for name in ("data", "samples")}}
    return {
        name: values if isinstance(values, (Tensor, np.ndarray)) else [str(v) for v in values]
        for name, values in found.items()
        if isinstance(values, (Tensor, np.ndarray, list, tuple))
    }


def as_numpy(values: Any) -> np.ndarray:
    """Tensors, lists of numbers or texts, lists of scalar tensors, as one array."""
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
        values = torch.stack(list(values))
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def length(dataset: Dataset) -> int:
    """The number of samples; an `IterableDataset` has none."""
    return len(dataset)  # type: ignore[arg-type]
