"""Read the training data at the end of an epoch without side effects."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset

from dlblocks._errors import check_range, checked
from dlblocks._lightning import before_transfer


class TrainingMeasurement(Callback):
    """Base of callbacks that measure a model on its training data.

    Args:
        every_n_epochs: Epochs between two measurements, each at the end of an epoch.
        limit_batches: Number of batches (of each rank), or share of the data in (0, 1], to measure:
            a random choice of samples, always the same. None for all.
        dataloader: A function that returns a loader of training data without augmentation, always
            the same. Under DDP it must return the rank's share. A `limit_batches` that is a share
            does not apply to it.
        seed: Seed of the choice.
    """

    @checked
    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        limit_batches: int | float | None = None,
        dataloader: Callable[[], Iterable[Any]] | None = None,
        seed: int = 0,
    ) -> None:
        check_range("every_n_epochs", every_n_epochs, 1)
        if isinstance(limit_batches, float):
            check_range("limit_batches", limit_batches, 0, 1, low_open=True)
        elif limit_batches is not None:
            check_range("limit_batches", limit_batches, 1)
        self.every_n_epochs = every_n_epochs
        self.limit_batches = limit_batches
        self.dataloader = dataloader
        self.seed = seed

    def training_batches(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[Any]:
        """Yield this rank's training batches in order, no sample twice.

        They are on the device and have passed the hooks, as the steps get them.

        Raises:
            ValueError: The trainer has several training loaders, or a data set without numbered
                samples.
        """
        limit = trainer.fast_dev_run or self.limit_batches  # type: ignore[attr-defined]
        if self.dataloader is None:
            with _validation_form(trainer) as loader:
                batches: Iterable[Any] = self._in_order(loader, trainer, limit)
        else:
            batches = self.dataloader()
            if isinstance(limit, int):
                batches = itertools.islice(batches, int(limit))
        for batch in batches:
            batch = trainer.precision_plugin.convert_input(batch)
            # The datamodule's hook or the module's; Lightning has no public way to it.
            batch = before_transfer(pl_module, batch)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _in_order(
        self, loader: Any, trainer: pl.Trainer, limit: int | float | None
    ) -> DataLoader[Any]:
        """Return a loader of the same data set, without its sampler."""
        dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset):
            raise ValueError(
                f"{type(self).__name__} reads the training data from one DataLoader with numbered "
                f"samples, and got {type(loader).__name__} of {type(dataset).__name__}; give "
                "dataloader=, a function that returns batches without augmentation."
            )
        batch_size = loader.batch_size
        if batch_size is None and loader.batch_sampler is not None:
            batch_size = getattr(loader.batch_sampler, "batch_size", None) or 64
        count = wanted = len(dataset)  # type: ignore[arg-type]
        if isinstance(limit, float):
            wanted = max(1, round(limit * count))
        elif limit is not None:
            wanted = min(count, limit * (batch_size or 1) * trainer.world_size)
        rows = torch.arange(count)
        if wanted < count:
            generator = torch.Generator().manual_seed(self.seed)
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
    """Give the training loader, for our datamodules without `train_transform`."""
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
