"""Stack the batches that the members' own loaders would give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dlblocks.callbacks._batch_transform import BatchTransform
from dlblocks.data.dataset import ArrayDataset, EpochSampler
from dlblocks.engine._support import NotVectorizable
from dlblocks.engine.member import Member
from dlblocks.nets.preprocess import STATISTICS, complete, rescale


@dataclass
class Batches:
    """Stacked batches of M members, all of the same size.

    Attributes:
        members: Numbers of the members.
        inputs: Shape (M, N, ...).
        targets: Shape (M, N, ...).
        rows: Rows of the samples in the members' data, on the CPU, shape (M, N).
        weights: How much each sample counts, shape (M, N), or None.
    """

    members: list[int]
    inputs: Tensor
    targets: Tensor
    rows: Tensor
    weights: Tensor | None = None

    def beside(self, member: int) -> list[Tensor]:
        """Return the other arguments of a member's loss.

        These are its targets, and its weights if there are any.
        """
        columns = [self.targets] if self.weights is None else [self.targets, self.weights]
        return [column[member] for column in columns]


class BatchSource:
    """Stacked batches of one part of several members' data.

    The folds of one data set share their arrays. Such members are served by one gather and one
    normalisation per step; each keeps its own mean and standard deviation.

    Args:
        members: The members, attached.
        part: ``"train"`` or ``"val"``.
        device: Device of the batches.
    """

    def __init__(self, members: Sequence[Member], part: str, device: torch.device) -> None:
        self.members = members
        self.training = part == "train"
        self.device = device
        self.precision = members[0].trainer.precision_plugin
        loaders: list[Any] = [
            m.datamodule.train_dataloader() if self.training else m.datamodule.val_dataloader()
            for m in members
        ]
        if any(not isinstance(loader, DataLoader) for loader in loaders):
            raise NotVectorizable(f"a member has no {part} samples")
        self.samplers: list[EpochSampler] = [loader.sampler for loader in loaders]
        self.datasets: list[ArrayDataset] = [loader.dataset for loader in loaders]
        self.sizes: list[int] = [loader.batch_size for loader in loaders]
        self.orders: list[Tensor] = []
        self.table: Tensor
        first = self.datasets[0]
        self.shared = all(
            d.inputs is first.inputs and d.targets is first.targets for d in self.datasets
        )
        found = [m.model.preprocess for m in members]
        self.shared &= all(preprocess.is_like(found[0]) for preprocess in found)
        # Statistics of the members' `preprocess`, stacked.
        self.statistics: dict[str, Tensor] = {}
        if self.shared:
            self.coded = found[0].coded.to(device)  # the same columns in all members
            self.statistics = {
                name: torch.stack([getattr(preprocess, name) for preprocess in found]).to(device)
                for name in STATISTICS
                if name != "coded"
            }
        self.changed = [
            self.training and any(isinstance(c, BatchTransform) for c in m.callbacks)
            for m in members
        ]

    def count(self, k: int) -> int:
        """Return the number of batches of member k in an epoch."""
        return -(-len(self.samplers[k]) // self.sizes[k])

    def begin(self, epoch: int) -> None:
        """Draw the order of every member's samples for an epoch."""
        self.orders = []
        for sampler, dataset in zip(self.samplers, self.datasets, strict=True):
            sampler.set_epoch(epoch)
            positions = torch.from_numpy(sampler.positions())
            self.orders.append(dataset.rows.index_select(0, positions))
        # One table as long as the shortest order: most steps only slice it.
        common = min(map(len, self.orders)) if len(set(self.sizes)) == 1 else 0
        self.table = torch.stack([order[:common] for order in self.orders])

    def step(self, number: int, members: Sequence[int]) -> Iterator[Batches]:
        """Yield the batches of one step, one for each batch size.

        Members whose epoch has no such batch are left out.

        Args:
            number: Number of the batch in the epoch, from 0.
            members: The members that take part.
        """
        end = (number + 1) * self.sizes[0]
        if len(members) == len(self.members) and end <= self.table.shape[1]:
            yield from self._gather(list(members), self.table[:, end - self.sizes[0] : end])
            return
        by_size: dict[int, list[int]] = {}
        rows: dict[int, Tensor] = {}
        for k in members:
            size = self.sizes[k]
            rows[k] = self.orders[k][number * size : (number + 1) * size]
            if len(rows[k]):
                by_size.setdefault(len(rows[k]), []).append(k)
        for group in by_size.values():
            yield from self._gather(group, torch.stack([rows[k] for k in group]))

    def _gather(self, members: list[int], rows: Tensor) -> Iterator[Batches]:
        if self.shared and not any(self.changed[k] for k in members):
            dataset = self.datasets[0]
            where = rows.flatten().to(dataset.inputs.device, non_blocking=True)
            inputs, targets = self._gathered(dataset, where)
            inputs = self._prepared(torch.unflatten(inputs, 0, rows.shape), members)
            targets, weights = torch.unflatten(targets, 0, rows.shape), self._weights(members, rows)
            yield Batches(members, inputs, targets, rows, weights)
            return
        # Make each member's batch on its own, then stack those of equal shapes and dtypes.
        alike: dict[tuple[Any, ...], list[list[Any]]] = {}  # each row: a member and its tensors
        for k, mine in zip(members, rows, strict=True):
            dataset = self.datasets[k]
            where = mine.to(dataset.inputs.device, non_blocking=True)
            batch = self._gathered(dataset, where)
            known = self._weights([k], mine[None])
            batch += [] if known is None else [known[0]]
            inputs, targets, *weights = self.members[k].datamodule.on_after_batch_transfer(batch, 0)
            if not isinstance(targets, Tensor):
                raise ValueError(
                    f"a callback turned the targets into a {type(targets).__name__}, which the "
                    "models of dlblocks.models do not accept; remove targets='pair' from MixUp or "
                    "CutMix."
                )
            kind = (inputs.shape, inputs.dtype, targets.shape, targets.dtype)
            alike.setdefault(kind, []).append([k, inputs, targets, mine, *weights])
        for parts in alike.values():
            numbers = [part[0] for part in parts]
            stacked = [torch.stack(column) for column in list(zip(*parts, strict=True))[1:]]
            yield Batches(numbers, *stacked)

    def _gathered(self, dataset: ArrayDataset, where: Tensor) -> list[Tensor]:
        """Return the raw inputs and targets of some rows, on the device."""
        arrays = zip(dataset.kinds, (dataset.inputs, dataset.targets), strict=True)
        return [k.gather(x, where).to(self.device, non_blocking=True) for k, x in arrays]

    def _weights(self, members: Sequence[int], rows: Tensor) -> Tensor | None:
        """Return sample weights (M, N) on the device, or None."""
        found = [self.datasets[k].weights for k in members]
        known = [weights for weights in found if weights is not None]
        if not known:
            return None
        pairs = zip(known, rows, strict=True)
        return torch.stack([w.index_select(0, mine.to(w.device)) for w, mine in pairs]).to(
            self.device, non_blocking=True
        )

    def _prepared(self, inputs: Tensor, members: Sequence[int]) -> Tensor:
        """Apply each member's `preprocess` to its inputs (M, N, …)."""
        known = self.statistics
        if not known["scale"].numel():  # tokens have no statistics
            return inputs
        if len(members) < len(self.members):
            known = {name: values[members] for name, values in known.items()}
        fill = known["fill"].unsqueeze(1) if known["fill"].numel() else known["fill"]
        inputs = complete(inputs, fill, self.coded, known["tables"])
        scale, shift = known["scale"], known["shift"]
        # The scale is (M, C) for inputs (M, N, C, …), or (M,).
        missing = inputs.ndim - scale.ndim - 1
        shape = (len(members), 1, *scale.shape[1:], *(1,) * missing)
        dtype = torch.get_default_dtype()
        made = rescale(inputs, scale.reshape(shape), shift.reshape(shape), dtype)
        converted: Tensor = self.precision.convert_input(made)
        return converted
