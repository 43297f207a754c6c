"""Find targets, groups, arrays and equal samples of any data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from dlblocks._quiet import isolated
from dlblocks.data._fingerprint import MAX_SEARCHED_BYTES, row_keys
from dlblocks.data._labels import as_numpy

TARGETS = ("targets", "labels", "y")
GROUPS = ("groups",)
# Packages whose classes have a length and entries, but are not data sets.
NO_DATASETS = ("builtins", "collections", "numpy", "torch", "pandas", "polars", "scipy")
# Up to this many samples are loaded to compare them, which takes seconds to minutes.
MAX_LOADED = 20_000
# This many samples are loaded twice, to see whether they are augmented at random.
PROBED = 16


def read_column(dataset: Dataset[Any], names: Sequence[str]) -> np.ndarray | None:
    """Read an attribute with one value per sample, or return None.

    The attribute has one of the `names` and is as long as the data set, or as the data sets inside
    of `Subset` and `ConcatDataset`. Targets of a `TensorDataset` are its last tensor. No sample is
    loaded.

    Example:
        >>> import torch
        >>> data = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 2, 1, 0]))
        >>> read_column(Subset(data, [0, 2]), TARGETS)
        array([3, 1])
    """

    def own(part: Dataset[Any]) -> dict[str, np.ndarray]:
        if isinstance(part, TensorDataset):
            last = names is TARGETS and len(part.tensors) > 1
            return {"": as_numpy(part.tensors[-1])} if last else {}
        for name in names:
            values: Any = getattr(part, name, None)
            is_column = isinstance(values, (Tensor, np.ndarray, list, tuple)) or _is_series(values)
            if is_column and len(values) == length(part):
                return {"": as_numpy(values)}
        return {}

    return _columns(dataset, own).get("")


def _columns(
    dataset: Dataset[Any], own: Callable[[Dataset[Any]], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return columns of a data set, also inside `Subset` and `ConcatDataset`.

    `own` returns those of any other data set, with one value per sample.
    """
    if isinstance(dataset, Subset):
        rows = np.asarray(dataset.indices, dtype=np.int64)
        return {name: column[rows] for name, column in _columns(dataset.dataset, own).items()}
    if isinstance(dataset, ConcatDataset):
        parts = [_columns(part, own) for part in dataset.datasets]
        names = set.intersection(*(set(part) for part in parts))
        return {name: np.concatenate([part[name] for part in parts]) for name in names}
    return own(dataset)


def arrays(dataset: Dataset[Any]) -> dict[str, Any]:
    """Return the known arrays and lists that hold a data set's samples."""
    if isinstance(dataset, Subset):
        inner = arrays(dataset.dataset)
        return {**inner, f"indices{len(inner)}": np.asarray(dataset.indices, dtype=np.int64)}
    if isinstance(dataset, ConcatDataset):
        parts = enumerate(dataset.datasets)
        return {f"{i}.{name}": a for i, part in parts for name, a in arrays(part).items()}
    if isinstance(dataset, TensorDataset):
        return {f"tensor{i}": tensor for i, tensor in enumerate(dataset.tensors)}
    own = {k: v for k, v in _attributes(dataset).items() if isinstance(v, (Tensor, np.ndarray))}
    found = {**own, **{name: getattr(dataset, name, None) for name in ("data", "samples")}}
    return {
        name: values if isinstance(values, (Tensor, np.ndarray)) else [str(v) for v in values]
        for name, values in found.items()
        if isinstance(values, (Tensor, np.ndarray, list, tuple))
    }


def _is_series(values: Any) -> bool:
    """Return True for a pandas Series, Index or array."""
    return hasattr(values, "isna") and hasattr(values, "__array__")


def is_dataset(data: Any) -> bool:
    """Return True for any object that works as a `DataLoader`'s data set."""
    if isinstance(data, Dataset):
        return True
    package = type(data).__module__.partition(".")[0]
    return package not in NO_DATASETS and all(
        hasattr(type(data), m) for m in ("__len__", "__getitem__")
    )


def _attributes(dataset: Any) -> dict[str, Any]:
    """Return the attributes of a data set."""
    # An object with `__slots__` may have none.
    return getattr(dataset, "__dict__", {})


def length(dataset: Dataset[Any]) -> int:
    """Return the number of samples, which an `IterableDataset` lacks."""
    return len(dataset)  # type: ignore[arg-type]


# Equal samples


def count_shared(test: Dataset[Any], development: Dataset[Any]) -> int | None:
    """Count the samples of one data set that are in another.

    Samples of `Subset`s of one data set, or of two over equal arrays, are compared by number.
    Others are compared by the rows of the arrays, texts and file names that the data sets hold.
    Without such attributes, the samples are loaded and compared. The result is None if there are
    more than 20,000 samples to load, or if they are augmented at random.

    Example:
        >>> import torch
        >>> data = TensorDataset(torch.arange(6.0)[:, None])
        >>> count_shared(Subset(data, [0, 1, 2]), Subset(data, [2, 3]))
        1
    """
    (test_base, test_rows), (base, rows) = _place(test), _place(development)
    if test_base is base:
        return int(np.isin(test_rows, rows).sum())
    test_keys, keys = sample_keys(test_base), sample_keys(base)
    names = test_keys.keys() & keys.keys()
    if names - {"targets"}:
        theirs, ours = (_combined({n: k[n] for n in sorted(names)}) for k in (test_keys, keys))
        if np.array_equal(theirs, ours):  # the same samples, in the same order
            return int(np.isin(test_rows, rows).sum())
        return int(np.isin(theirs[test_rows], ours[rows]).sum())
    if length(test) + length(development) > MAX_LOADED:
        return None
    with isolated():
        loaded = [_loaded_keys(dataset) for dataset in (test, development)]
    found, known = loaded
    return None if found is None or known is None else sum(key in set(known) for key in found)


def input_keys(dataset: Dataset[Any]) -> np.ndarray | None:
    """Return a number per sample, or None if the inputs are unknown."""
    keys = sample_keys(dataset)
    inputs = {name: of for name, of in keys.items() if name not in ("targets", "files")}
    return _combined(inputs) if inputs else None


def sample_keys(dataset: Dataset[Any]) -> dict[str, np.ndarray]:
    """Return numbers of the samples for each attribute, int64 of shape (N,).

    The names are ``"targets"``, ``"files"`` for names of files, and those of all other arrays and
    lists of texts or arrays. Columns of single numbers are left out, since they may be sample
    numbers. The result is empty if there are no such attributes, or more than 4 GiB of them.
    """

    def own(part: Dataset[Any]) -> dict[str, np.ndarray]:
        found = _held(part)
        size = sum(v.nbytes for v in found.values() if isinstance(v, (Tensor, np.ndarray)))
        return {} if size > MAX_SEARCHED_BYTES else {n: row_keys(v) for n, v in found.items()}

    return _columns(dataset, own)


def _held(dataset: Dataset[Any]) -> dict[str, Any]:
    """Return the attributes that hold one entry per sample."""
    if isinstance(dataset, TensorDataset):
        *inputs, last = dataset.tensors
        return {f"tensor{i}": x for i, x in enumerate(inputs)} | (
            {"targets": last} if inputs else {"tensor0": last}
        )
    found: dict[str, Any] = {}
    attributes = {**_attributes(dataset), "samples": getattr(dataset, "samples", None)}
    attributes["data"] = getattr(dataset, "data", None)
    for name, values in attributes.items():
        if not isinstance(values, (Tensor, np.ndarray, list, tuple)) or not len(values):
            continue
        if len(values) != length(dataset):
            continue
        if name.strip("_").lower() in (*TARGETS, "target", "label"):
            found["targets"] = as_numpy(values)
        elif isinstance(values, (list, tuple)):
            found |= _listed(name, values)
        elif values.ndim > 1 or (isinstance(values, np.ndarray) and values.dtype.kind in "USO"):
            found[name] = values
    if "data" in found:
        return {name: found[name] for name in ("data", "targets") if name in found}
    return found


def _listed(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return a list of texts, file names or arrays, by name.

    Each file name may come with a class, as in torchvision.
    """
    firsts = [v[0] if isinstance(v, tuple) and v else v for v in values]
    if all(isinstance(value, (str, os.PathLike)) for value in firsts):
        if isinstance(firsts[0], os.PathLike) or os.path.exists(firsts[0]):
            return {"files": [os.path.abspath(value) for value in firsts]}
        return {name: firsts}
    arrays = all(isinstance(value, (Tensor, np.ndarray)) for value in values)
    return {name: values} if arrays else {}


def _combined(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    found = list(columns.values())
    return found[0] if len(found) == 1 else row_keys(np.stack(found, axis=1))


def _place(dataset: Dataset[Any]) -> tuple[Dataset[Any], np.ndarray]:
    """Return the data set inside `Subset`s and wrappers, and its rows."""
    rows = np.arange(length(dataset))
    while True:
        if isinstance(dataset, Subset):
            rows = np.asarray(dataset.indices, dtype=np.int64)[rows]
            dataset = dataset.dataset
            continue
        # A data set that transforms the samples of another.
        inner = [v for v in _attributes(dataset).values() if isinstance(v, Dataset)]
        if len(inner) != 1 or not hasattr(inner[0], "__len__"):
            return dataset, rows
        if length(inner[0]) != length(dataset):
            return dataset, rows
        dataset = inner[0]


def _loaded_keys(dataset: Dataset[Any]) -> list[int] | None:
    """Load samples and number them, or return None if they are random."""
    size = length(dataset)
    probe = np.linspace(0, size - 1, min(size, PROBED)).round().astype(int).tolist()
    for i in probe:
        if (one := _sample_key(dataset[i])) is None or one != _sample_key(dataset[i]):
            return None
    keys = [_sample_key(dataset[i]) for i in range(size)]
    return None if None in keys else [key for key in keys if key is not None]


def _sample_key(sample: Any) -> int | None:
    """Return a number for arrays, images, numbers and texts in any structure."""
    known = (Tensor, np.ndarray, np.generic, int, float, str, bytes, type(None))
    leaves = list(_leaves(sample))
    if not all(isinstance(leaf, known) for leaf in leaves):
        return None
    return hash(tuple(row_keys(leaves).tolist()))


def _leaves(sample: Any) -> Iterator[Any]:
    """Yield all values inside a sample, including keys of dictionaries."""
    if isinstance(sample, Mapping):
        sample = [part for pair in sample.items() for part in pair]
    if isinstance(sample, (list, tuple)):
        for part in sample:
            yield from _leaves(part)
    else:
        yield np.asarray(sample) if hasattr(sample, "getbands") else sample  # Pillow's images
