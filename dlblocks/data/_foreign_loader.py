"""Check and copy loaders of other people."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from dlblocks.data.dataset import EpochSampler

UNIFORM = (SequentialSampler, RandomSampler, DistributedSampler)
# Settings that a fold's loader copies from the given loader.
KEPT = (
    "batch_size",
    "collate_fn",
    "num_workers",
    "pin_memory",
    "worker_init_fn",
    "timeout",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


class LoadedSampler(EpochSampler):
    """An `EpochSampler` whose batches a resumed run loads and drops.

    It must not skip them: the data set may draw random numbers in its workers, which reach the same
    state only by loading.
    """

    @property
    def skip_next(self) -> Any:
        raise AttributeError("batches are loaded, not skipped")


def check_loader(loader: Any, who: str) -> None:
    """Raise an error for a loader that has no folds.

    Args:
        loader: What `who` has returned as its training loader.
        who: Name of the class, for messages.

    Raises:
        TypeError: It is not a `DataLoader`, or its data set has no numbered samples.
        ValueError: It has a sampler of its own.
    """
    if not isinstance(loader, DataLoader):
        found = type(loader).__name__
        raise TypeError(f"{who} returned {found}; folds need a single DataLoader.")
    if not is_numbered(loader.dataset):
        raise TypeError(
            f"{type(loader.dataset).__name__} of {who} has no numbered samples; folds need "
            "dataset[i] and a length."
        )
    own_batches = type(loader.batch_sampler) not in (BatchSampler, type(None))
    uniform = isinstance(loader.sampler, UNIFORM) and not getattr(
        loader.sampler, "replacement", False
    )
    if loader.batch_size is None or own_batches or not uniform:
        sampler = loader.batch_sampler if own_batches else loader.sampler
        raise ValueError(
            f"the DataLoader of {who} has a {type(sampler).__name__} and "
            f"batch_size={loader.batch_size}, which cannot be restricted to a fold; pass "
            "DataLoader(dataset, batch_size=…) without a sampler."
        )


def is_numbered(dataset: Any) -> bool:
    return hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)


def loader_like(loader: DataLoader[Any], dataset: Dataset[Any], **changed: Any) -> DataLoader[Any]:
    """Return a loader of another data set with the same settings."""
    kept: dict[str, Any] = {name: getattr(loader, name) for name in KEPT}
    return DataLoader(dataset, **(kept | changed))


def datasets_of(loaders: Any) -> list[Dataset[Any]]:
    """Return the data sets of loaders, restricted to the rows they load."""
    found: list[Dataset[Any]] = []
    for loader in flat(loaders):
        dataset, sampler = getattr(loader, "dataset", loader), getattr(loader, "sampler", None)
        if isinstance(sampler, SubsetRandomSampler):
            dataset = Subset(dataset, list(sampler.indices))
        found.append(dataset)
    return found


def flat(loaders: Any) -> list[Any]:
    """Return all loaders in lists, dictionaries and Lightning's `CombinedLoader`."""
    return tree_leaves(loaders.flattened if isinstance(loaders, CombinedLoader) else loaders)


def check_has_test(data: Any) -> None:
    """Raise a `ValueError` if somebody else's data define no test set.

    Nothing is set up or loaded for it.
    """
    if not isinstance(data, pl.LightningDataModule) or not is_overridden("test_dataloader", data):
        raise _no_test_set(data)


def test_loaders(data: Any) -> Any:
    """Set up the test of somebody else's datamodule, and return its loaders."""
    data.setup("test")
    loaders = data.test_dataloader()
    if loaders is None or not flat(loaders):
        raise _no_test_set(data)
    return loaders


def _no_test_set(data: Any) -> ValueError:
    return ValueError(
        f"{type(data).__name__} has no test set; define its test_dataloader(), or hold samples out "
        "with test_fraction=0.2."
    )
