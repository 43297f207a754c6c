"""Compute each member's metrics from the stacked outputs of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlblocks.engine._stacked_batches import Batches
from dlblocks.engine.member import Member
from dlblocks.models._step_buffer import FLUSH_BYTES, FLUSH_EVERY, by_weight
from dlblocks.tasks.task import Stage, fits, is_ours


class BatchedMetrics:
    """Losses and metrics of several members in one stage.

    Metrics of the package are updated for all members in one call. Metrics that a user's model
    defines are updated member by member, as in a fit of its own.

    Args:
        members: The members.
        stage: The stage.
        device: Where the batches are.
    """

    def __init__(self, members: Sequence[Member], stage: Stage, device: torch.device) -> None:
        self.members, self.stage = members, stage
        model = members[0].model
        self.grouped = None
        names = ("make_metrics", "for_metrics")
        standard = all(is_ours(getattr(type(model), name)) for name in names)
        if model.task is not None and standard and fits(model.task, "stacked_metrics", *names):
            self.grouped = model.task.stacked_metrics(len(members), device)
        self.alike = model.is_standard("for_metrics", "prediction")
        self.parts: list[tuple[Any, ...]] = []  # one for each step; see `add`
        self.bytes = 0
        self.losses = torch.zeros(2, len(members), device=device)  # sums of losses, and of weights
        if self.grouped is None:
            for member in members:
                member.model.reset_metrics(stage)

    def add(self, batches: Batches, losses: Tensor, outputs: Tensor) -> None:
        """Add a step's detached losses (M,) and outputs (M, N, ...)."""
        model = self.members[batches.members[0]].model
        if self.alike:
            # One call for the samples of all members, since it treats every sample by itself.
            predictions, targets = model.for_metrics(
                outputs.flatten(0, 1), batches.targets.flatten(0, 1), self.stage
            )
        else:
            pairs = zip(batches.members, outputs, batches.targets, strict=True)
            parts = [self.members[k].model.for_metrics(o, t, self.stage) for k, o, t in pairs]
            predictions, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        size = batches.rows.shape[1]
        counted = None if model.task is None else model.task.counted(batches.targets.flatten(0, 1))
        sizes = torch.full_like(losses, size, dtype=torch.float32)
        if counted is not None:
            counted = counted.view(len(losses), size)
            sizes = counted.sum(1).float()
        part: tuple[Any, ...] = (batches.members, size, losses, sizes, predictions, targets)
        if batches.weights is not None:
            weights = batches.weights if counted is None else batches.weights * counted
            part = *part, batches.weights.flatten(), weights.sum(1)
        self.parts.append(part)
        self.bytes += predictions.nbytes + targets.nbytes
        if len(self.parts) >= FLUSH_EVERY or self.bytes >= len(self.members) * FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.parts:
            return
        columns = list(zip(*self.parts, strict=True))
        losses, sizes, *kept = (torch.cat(column) for column in columns[2:])
        losses, sizes = losses.float(), sizes.to(self.losses)
        owners = torch.tensor([k for part in self.parts for k in part[0]], device=losses.device)
        counts = torch.tensor([size for who, size, *_ in self.parts for _ in who])
        samples = owners.repeat_interleave(counts.to(losses.device))
        if len(kept) > 2:
            losses, sizes = by_weight(losses, sizes, kept.pop().to(sizes))
        if self.grouped is not None:
            self.losses.index_add_(1, owners, torch.stack([losses * sizes, sizes]))
            self.grouped.update(samples, *kept)
        else:
            for k, member in enumerate(self.members):
                mine, rows = owners == k, samples == k
                if mine.any():
                    own = [column[rows] for column in kept]
                    member.model.update_metrics(self.stage, losses[mine], sizes[mine], *own)
        self.parts, self.bytes = [], 0

    def compute(self) -> list[dict[str, Tensor]]:
        """Return the metrics of each member, empty for a failed one."""
        self._flush()
        if self.grouped is None:
            return [
                member.model.compute_metrics(self.stage) if member.active else {}
                for member in self.members
            ]
        found = {
            "loss": self.losses[0] / self.losses[1],
            **self.grouped.compute(whole=self.stage != "train"),
        }
        # One copy from the device for all members: each copy waits for it.
        columns = torch.stack([values.double() for values in found.values()]).cpu().float()
        names = [f"{self.stage}/{name}" for name in found]
        return [
            dict(zip(names, values.unbind(), strict=True)) if member.active else {}
            for member, values in zip(self.members, columns.unbind(1), strict=True)
        ]
