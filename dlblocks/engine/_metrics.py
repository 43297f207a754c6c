"""From what the steps of an epoch leave to each member's metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlblocks.engine._batches import Batches
from dlblocks.engine.member import Member
from dlblocks.metrics import r2_from_sums
from dlblocks.models.classification import Classifier
from dlblocks.models.model import FLUSH_EVERY, Model, Stage
from dlblocks.models.regression import Regressor


class BatchedMetrics:
    """The losses and metrics of one stage of an epoch, of several members.

    Metrics of the package are summed for all members at once; a member that has metrics of its own
    gets what it would have got by itself.

    Args:
        members: The members.
        stage: The stage.
        device: Where the batches are.
    """

    def __init__(self, members: Sequence[Member], stage: Stage, device: torch.device) -> None:
        self.members, self.stage = members, stage
        self.grouped = make_sums(members[0].model, len(members), device)
        self.alike = is_ours(members[0].model, "for_metrics", "prediction")
        self.parts: list[tuple[list[int], int, Tensor, Tensor, Tensor]] = []
        self.losses = torch.zeros(2, len(members), device=device)  # their sums, and samples
        if self.grouped is None:
            for member in members:
                member.model.reset_metrics(stage)

    def add(self, batches: Batches, losses: Tensor, outputs: Tensor) -> None:
        """Adds a step: losses (M,) and outputs (M, N, ...), detached."""
        model = self.members[batches.members[0]].model
        if self.alike:
            # Of all members' samples at once: it treats every sample by itself.
            predictions, targets = model.for_metrics(
                outputs.flatten(0, 1), batches.targets.flatten(0, 1), self.stage
            )
        else:
            pairs = zip(batches.members, outputs, batches.targets, strict=True)
            parts = [self.members[k].model.for_metrics(o, t, self.stage) for k, o, t in pairs]
            predictions, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        size = batches.rows.shape[1]
        self.parts.append((batches.members, size, losses, predictions, targets))
        if len(self.parts) >= FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        if not self.parts:
            return
        columns = list(zip(*self.parts, strict=True))
        losses, predictions, targets = (torch.cat(column) for column in columns[2:])
        losses = losses.float()
        owners = torch.tensor([k for part in self.parts for k in part[0]], device=losses.device)
        counts = torch.tensor([size for who, size, *_ in self.parts for _ in who])
        samples = owners.repeat_interleave(counts.to(losses.device))
        sizes = counts.to(self.losses)
        if self.grouped is not None:
            self.losses.index_add_(1, owners, torch.stack([losses * sizes, sizes]))
            self.grouped.update(samples, predictions, targets)
        else:
            for k, member in enumerate(self.members):
                mine, rows = owners == k, samples == k
                if mine.any():
                    member.model.update_metrics(
                        self.stage, losses[mine], sizes[mine], predictions[rows], targets[rows]
                    )
        self.parts = []

    def compute(self) -> list[dict[str, Tensor]]:
        """What each member logs; nothing for one that has failed."""
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
        # One look at the device for all.
        columns = torch.stack([values.double() for values in found.values()]).cpu().float()
        names = [f"{self.stage}/{name}" for name in found]
        return [
            dict(zip(names, values.unbind(), strict=True)) if member.active else {}
            for member, values in zip(self.members, columns.unbind(1), strict=True)
        ]


NUM_BINS = 15


def make_sums(
    model: Model, num_models: int, device: torch.device
) -> ClassificationSums | RegressionSums | None:
    """BatchedMetrics for K models like `model`, or None if it has metrics of its own."""
    if not is_ours(model, "make_metrics", "for_metrics"):
        return None
    if isinstance(model, Classifier):
        return ClassificationSums(num_models, model.num_classes, device)
    if isinstance(model, Regressor):
        return RegressionSums(num_models, model.out_features, device)
    return None


def is_ours(model: Model, *names: str) -> bool:
    """Whether methods of a model are those of the package, not of a user's subclass."""
    return all(getattr(type(model), n).__module__.startswith("dlblocks.models.") for n in names)


class ClassificationSums:
    """Accuracy, macro F1 and expected calibration error of each of K models.

    As `dlblocks.metrics.classification_metrics` has them, from the samples of all models in any
    order. In training only the accuracy, of predicted classes.

    Args:
        num_models: K.
        num_classes: C.
        device: Where the samples are.
    """

    def __init__(self, num_models: int, num_classes: int, device: torch.device) -> None:
        self.shape = (num_models, num_classes, num_classes)
        self.confusion = torch.zeros(num_models * num_classes**2, device=device, dtype=torch.int64)
        # Of each bin of confidence: samples, sum of confidences, right ones. As torchmetrics has
        # it, bins are open above and a confidence of 1 has one to itself.
        self.bins = torch.zeros(3, num_models * (NUM_BINS + 1), device=device)
        self.edges = torch.linspace(0, 1, NUM_BINS + 1, device=device)

    def update(self, model: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """Adds samples.

        Args:
            model: Whose sample it is, int64 of shape (M,).
            predictions: Classes (M,) or probabilities (M, C).
            targets: Classes, int64 of shape (M,).
        """
        classes = predictions
        if predictions.ndim > 1:
            confidence, classes = predictions.max(1)
            right = (classes == targets).to(confidence.dtype)
            where = torch.bucketize(confidence, self.edges, right=True) - 1
            where += model * (NUM_BINS + 1)
            parts = torch.stack([torch.ones_like(confidence), confidence, right])
            self.bins.index_add_(1, where, parts.to(self.bins.dtype))
        num_classes = self.shape[1]
        cell = (model * num_classes + targets) * num_classes + classes
        self.confusion += torch.bincount(cell, minlength=len(self.confusion))

    def compute(self, *, whole: bool) -> dict[str, Tensor]:
        """Each metric, shape (K,): the accuracy, and if `whole` the others too."""
        confusion = self.confusion.view(self.shape)
        hits = confusion.diagonal(dim1=1, dim2=2)
        count = confusion.sum((1, 2))
        found = {"accuracy": hits.sum(1) / count}
        if whole:
            # 2TP / (2TP + FP + FN), over the classes that occur in targets or predictions.
            both = confusion.sum(1) + confusion.sum(2)
            occurs = both > 0
            f1 = torch.where(occurs, 2 * hits / both.clamp(min=1), 0)
            _, confidences, right = self.bins.view(3, self.shape[0], NUM_BINS + 1)
            found["calibration_error"] = (confidences - right).abs().sum(1) / count
            found["f1"] = f1.sum(1) / occurs.sum(1)
        return found


class RegressionSums:
    """RMSE, MAE and R² of each of K models, as `dlblocks.metrics.regression_metrics` has them.

    Args:
        num_models: K.
        num_targets: Values a sample, D.
        device: Where the samples are.
    """

    def __init__(self, num_models: int, num_targets: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.count = torch.zeros(num_models, device=device, dtype=dtype)
        # One target of each model. R² is a difference of sums of squares, which are small where
        # targets are measured from one of their own.
        self.origin = torch.zeros(num_models, num_targets, device=device, dtype=dtype)
        # Of each target: squared and absolute errors, distances from the origin and their squares.
        self.sums = torch.zeros(num_models, 4, num_targets, device=device, dtype=dtype)

    def update(self, model: Tensor, predictions: Tensor, targets: Tensor) -> None:
        """Adds samples: `model` (M,), predictions and targets (M, D)."""
        predictions, targets = predictions.to(self.sums.dtype), targets.to(self.sums.dtype)
        is_new = (self.count == 0)[model, None]
        # Of a model's several samples any may be written.
        self.origin[model] = torch.where(is_new, targets, self.origin[model])
        error, distance = predictions - targets, targets - self.origin[model]
        parts = torch.stack([error.square(), error.abs(), distance, distance.square()], dim=1)
        self.sums.index_add_(0, model, parts)
        self.count.index_add_(0, model, torch.ones_like(model, dtype=self.count.dtype))

    def compute(self, *, whole: bool) -> dict[str, Tensor]:
        """Each metric, shape (K,)."""
        square, absolute, total, total_square = self.sums.unbind(1)
        count = self.count[:, None]
        spread = (total_square - total.square() / count).clamp(min=0)
        return {
            "mae": absolute.sum(1) / (self.count * absolute.shape[1]),
            "r2": r2_from_sums(count, spread, square).mean(1),
            "rmse": (square.sum(1) / (self.count * square.shape[1])).sqrt(),
        }
