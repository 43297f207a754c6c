"""A fixed choice of the training data, in the form of validation, for callbacks that measure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from dlblocks.errors import check_range


def check_limit(limit_batches: int | float | None) -> None:
    """Raises a `ValueError` unless it is None, a number of batches or a share of the data."""
    if isinstance(limit_batches, float):
        check_range("limit_batches", limit_batches, 0, 1, low_open=True)
    elif limit_batches is not None:
        check_range("limit_batches", limit_batches, 1)


def training_batches(
    trainer: pl.Trainer,
    who: str,
    *,
    limit_batches: int | float | None = None,
    dataloader: Callable[[], Iterable[Any]] | None = None,
    seed: int = 0,
) -> Iterable[Any]:
    """This rank's share of the training data in order, no sample twice, as the loader gives it.

    Args:
        trainer: In the middle of a fit.
        who: The caller's name, for the message.
        limit_batches: Number of batches (of each rank), or share of the data in (0, 1]: a random
            choice of samples, always the same. None for all.
        dataloader: A function that returns the batches instead, in which case a share of them is
            not limited.
        seed: Seed of the choice.

    Raises:
        ValueError: The trainer has several training loaders, or a data set without numbered
            samples.
    """
    limit = limit_batches
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        limit = int(trainer.fast_dev_run)  # type: ignore[attr-defined]
    if dataloader is not None:
        loader = dataloader()
        if not isinstance(limit, int):
            return loader
        return (batch for _, batch in zip(range(limit), loader, strict=False))
    with _validation_form(trainer) as loader:
        return _in_order(loader, trainer, who, limit, seed)


def to_device(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> Any:
    """A batch as the module's steps get it: converted, through the hooks, on the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    # The datamodule's hook or the module's; Lightning has no public way to it.
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _in_order(
    loader: Any, trainer: pl.Trainer, who: str, limit: int | float | None, seed: int
) -> DataLoader:
    """A loader of the same data set, without its sampler."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset):
        raise ValueError(
            f"{who} reads the training data from one DataLoader with numbered samples, and got "
            f"{type(loader).__name__} of {type(dataset).__name__}; give dataloader=, a function "
            "that returns batches in the form of validation."
        )
    batch_size = loader.batch_size
    if batch_size is None and loader.batch_sampler is not None:
        batch_size = getattr(loader.batch_sampler, "batch_size", None) or 64
    count = len(dataset)  # type: ignore[arg-type]
    wanted = count
    if isinstance(limit, float):
        wanted = max(1, round(limit * count))
    elif limit is not None:
        wanted = min(count, limit * (batch_size or 1) * trainer.world_size)
    rows = torch.arange(count)
    if wanted < count:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(count, generator=generator)[:wanted].sort()[0]
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=rows[trainer.global_rank :: trainer.world_size].tolist(),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )


@contextlib.contextmanager
def _validation_form(trainer: pl.Trainer) -> Iterator[Any]:
    """The training loader, of datamodules of this package without the training's transform."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if not (hasattr(datamodule, "predict_on") and hasattr(datamodule, "predict_index")):
        yield trainer.train_dataloader
        return
    before = datamodule.predict_on, datamodule.predict_index
    datamodule.predict_on, datamodule.predict_index = "train", False
    try:
        yield datamodule.predict_dataloader()
    finally:
        datamodule.predict_on, datamodule.predict_index = before
