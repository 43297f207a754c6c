"""Score the stacked members, and predict with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from dlblocks.engine._batched_metrics import BatchedMetrics
from dlblocks.engine._stacked_batches import BatchSource
from dlblocks.engine._stacked_models import StackedModels
from dlblocks.engine.member import Member
from dlblocks.runs._table_writer import TableWriter
from dlblocks.runs.predict_part import add_weights, columns_of
from dlblocks.tasks import PredictionTable, Task


def score(
    stack: StackedModels,
    members: Sequence[Member],
    source: BatchSource,
    trainer: pl.Trainer,
    limit: int | float | None,
    *,
    is_selection: bool,
) -> list[dict[str, Tensor]]:
    """Compute the validation metrics of all active members in one pass.

    Args:
        stack: The models of the members.
        members: The members.
        source: The batches that are scored.
        trainer: The Trainer, for its precision.
        limit: Its ``limit_val_batches``.
        is_selection: Whether the batches are those of selection parts.
    """
    stack.train(False)
    sums = BatchedMetrics(members, "val", stack.device)
    active = [k for k, member in enumerate(members) if member.active]
    if is_selection and isinstance(limit, float):
        counts = {k: max(1, int(source.count(k) * limit)) for k in active}
    else:
        counts = {k: limited("val", source.count(k), limit) for k in active}
    with torch.inference_mode(), trainer.precision_plugin.val_step_context():
        for number in range(max(counts.values(), default=0)):
            part = [k for k in active if number < counts[k]]
            for batches in source.step(number, part):
                losses, outputs = stack.run(
                    batches.inputs, batches.targets, batches.members, batches.weights
                )
                sums.add(batches, losses, outputs)
    stack.train()
    return sums.compute()


def predict(member: Member, part: str, trainer: pl.Trainer) -> PredictionTable:
    """Predict a part of a member's data, in order of the index."""
    data, task = member.datamodule, member.model.task
    rows, device = data.indices(part), trainer.strategy.root_device
    arrays = {"inputs": data.raw_inputs(part), "targets": data.source.targets}
    size = data.batch_size if isinstance(data.batch_size, int) else max(len(rows), 1)
    writer = TableWriter(rows.numpy(), Path(trainer.default_root_dir))
    keep = Task().keep if task is None else task.keep
    member.model.eval()
    with torch.inference_mode(), trainer.precision_plugin.val_step_context():
        for start in range(0, len(rows), size):
            index = rows[start : start + size]
            batch: list[Any] = [
                data.kinds[name].gather(x, index).to(device) for name, x in arrays.items()
            ]
            batch[0] = member.model.preprocess(batch[0])
            result = member.model.predict_step([*batch, index], 0)
            columns = columns_of(result, index) | keep(result["prediction"], batch[1])
            writer.add(np.arange(start, start + len(index)), columns)
    table = writer.finish()
    table.task = None if task is None else task.name
    return add_weights(table, data, part)


def limited(part: str, count: int, limit: int | float | None) -> int:
    """Apply ``limit_train_batches`` or ``limit_val_batches`` to a number of batches.

    An int is a number of batches, a float a share.
    """
    if limit is None:
        return count
    found = min(count, limit) if isinstance(limit, int) else int(count * limit)
    if found < 1:
        raise ValueError(
            f"limit_{part}_batches={limit} of {count} batches leaves none; use a larger share."
        )
    return found
