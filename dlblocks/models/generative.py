"""`GenerativeModel`, the base class of generative models of images."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from dlblocks._errors import check_range
from dlblocks._lightning import trainer_of
from dlblocks.models._image_checks import (
    check_image_shape,
    check_labels,
    check_monitors,
    check_values,
)
from dlblocks.models._image_sampling import Sampler
from dlblocks.models._inputs import with_prepared_inputs
from dlblocks.models._noise import AnyNoise, BatchNoise, Noise
from dlblocks.models.model import beside_inputs
from dlblocks.nets import Preprocess
from dlblocks.tasks import GenerativeTask
from dlblocks.tasks.task import Stage

EVALUATION_SEED = 0
NUM_CHECKED = 4096  # images of a data set whose values are checked before a fit
MOST_METRICS = 8  # values of a sample that are averaged


class GenerativeModel(Sampler):
    """A model that gives images a probability and makes new ones.

    Images have `levels` values a pixel, 0 … L-1, at equal distances from 0 to `max_value` of the
    source. All likelihoods are those of these discrete values. So the digits of scikit-learn, whose
    pixels count 0 … 16, have 17 levels, although they are stored in 0 … 255.

    Logged: ``loss``, and in bits ``bits_per_dim`` = -log2 p(image) / (C · H · W). A model of
    classes, with `num_classes`, gives p(image | class). Without it, targets may have any form and
    are not used.

    Evaluation has no chance in it: its noise depends only on the position of the image in its
    loader. Training takes its noise from torch's global generator, and on several ranks each has
    its own.

    With `ema_decay` d, an exponential moving average of the net is kept beside it, and is used by
    validation, test and `sample`: θ' ← d θ' + (1 - d) θ after every step of the optimizer, with d
    at most (1 + s) / (10 + s) in step s. It is part of the model's `state_dict`, and is never
    swapped with the net.

    A subclass defines `losses` and `draw`, and `scores` if ``bits_per_dim`` is too slow for every
    epoch. It is then logged by ``Trainer.validate`` and ``Trainer.test`` only.

    Args:
        net: The net that makes images. It is averaged.
        image_shape: Channels, height and width.
        levels: Number of values L of a pixel.
        max_value: The value of the highest level in the source: 255 for uint8 images.
        num_classes: Number of classes of a conditional model, or None.
        ema_decay: Decay d in [0, 1) of the average, or None.
        **kwargs: Optimization; see `dlblocks.models.Model`.
    """

    def __init__(
        self,
        net: nn.Module,
        image_shape: Sequence[int],
        *,
        levels: int = 256,
        max_value: float = 255.0,
        num_classes: int | None = None,
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_image_shape(image_shape)
        check_range("levels", levels, 2)
        check_range("max_value", max_value, 0, low_open=True)
        if num_classes is not None:
            check_range("num_classes", num_classes, 1)
        if ema_decay is not None:
            check_range("ema_decay", ema_decay, 0, 1, high_open=True)
        super().__init__(net, self.make_task(), **kwargs)
        self.image_shape = tuple(int(size) for size in image_shape)
        self.levels, self.max_value = int(levels), float(max_value)
        self.num_classes, self.ema_decay = num_classes, ema_decay
        middle = [self.max_value / 2] * self.image_shape[0]
        self.preprocess = Preprocess(mean=middle, std=middle)  # to [-1, 1], whatever the data
        self.ema = None if ema_decay is None else AveragedNet(self.net, ema_decay)
        self._seen: dict[str, int] = {}  # images of each stage
        self._known_stages: set[str] = set()

    # Defined by subclasses

    def losses(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> dict[str, Tensor]:
        """Compute values of each image, among them ``"loss"``.

        Args:
            levels: Images, int64 of shape (N, C, H, W).
            labels: Classes, int64 of shape (N,), or None for a model without classes.
            noise: All random numbers.

        Returns:
            Tensors (N,) by name; their means are logged.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses.")

    @classmethod
    def _instead_of(cls, name: str) -> str:
        return f"override make_{name} in a subclass"

    def make_task(self) -> GenerativeTask:
        """Create the task, which names the score of an image."""
        return GenerativeTask()

    def scores(self, levels: Tensor, labels: Tensor | None, noise: AnyNoise) -> Tensor:
        """Compute the score of each image, bits per dimension (N,)."""
        return self.losses(levels, labels, noise)[self.measure]

    @property
    def measure(self) -> str:
        """Name of the score of an image."""
        assert isinstance(self.task, GenerativeTask)  # for the type checker
        return self.task.measure

    slow_scores = False
    """Whether `scores` takes much longer than `losses`."""

    @property
    def not_vectorizable(self) -> str | None:
        return f"{type(self).__name__} is trained on images alone, with noise"

    @property
    def not_exportable(self) -> str | None:
        return (
            "it draws noise for each image, which a written program cannot; use "
            "dlblocks.models.load(path), with its sample and predict_step"
        )

    # Levels

    @property
    def num_dims(self) -> int:
        """Values of an image, D = C · H · W."""
        return math.prod(self.image_shape)

    def to_levels(self, images: Tensor) -> Tensor:
        """Turn prepared images in [-1, 1] into levels, int64."""
        top = self.levels - 1
        return ((images.float() + 1) * (top / 2)).round().long().clamp(0, top)

    def check_data(self, datamodule: Any) -> None:
        name = type(datamodule).__name__
        shape = getattr(datamodule, "input_shape", None)
        if isinstance(shape, tuple) and shape != self.image_shape:
            cure = f"set image_shape={list(shape)}"
            if len(shape) != 3:
                cure = "a generative model needs images (C, H, W)"
            raise ValueError(
                f"image_shape={list(self.image_shape)}, but an input of {name} has shape {shape}; "
                f"{cure}."
            )
        inputs = getattr(getattr(datamodule, "source", None), "inputs", None)
        if isinstance(inputs, Tensor):
            prepared = self.preprocess(inputs[:NUM_CHECKED].to(self.device))
            check_values(prepared, self.levels, self.max_value)
        count = getattr(datamodule, "num_classes", None)
        if self.num_classes is not None and count is not None and count > self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but {name} has {count} classes; set "
                f"num_classes={count}, or None for a model without classes."
            )

    # Steps

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self._known_stages = set()

    def on_train_start(self) -> None:
        check_monitors(self.trainer, type(self).__name__, self.measure, is_slow=self.slow_scores)

    def _entries(self, batch: Any) -> tuple[Tensor, Any, Tensor | None]:
        """Return images, labels and weights of a batch."""
        entries = list(batch) if isinstance(batch, (list, tuple)) else [batch]
        if not entries or not isinstance(entries[0], Tensor):
            found = f" with {', '.join(map(repr, batch))}" if isinstance(batch, dict) else ""
            raise ValueError(
                f"{type(self).__name__} expects batches images, [images] or [images, labels], got "
                f"a {type(batch).__name__}{found}; give your DataLoader a collate_fn that returns "
                "such batches."
            )
        labels = None
        if self.num_classes is not None:
            if len(entries) < 2:
                raise ValueError(
                    f"num_classes={self.num_classes}, but the batch has no labels; set "
                    "num_classes=None, or use batches [images, labels]."
                )
            labels = entries[1]
        return entries[0], labels, entries[2] if self._weighted else None

    def _levels_and_labels(self, images: Tensor, labels: Any) -> tuple[Tensor, Tensor | None]:
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"image_shape={list(self.image_shape)}, got images of shape "
                f"{tuple(images.shape)}; set image_shape={list(images.shape[1:])}."
            )
        # On an accelerator, reading a value waits for it, so only the first batch is checked.
        if self._first_batch or images.device.type == "cpu":
            check_values(images, self.levels, self.max_value)
        if labels is not None and (self._first_batch or labels.device.type == "cpu"):
            labels = check_labels(labels, self.num_classes or 0)
        return self.to_levels(images), labels

    def _checked(self, batch: Any, stage: Stage) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return levels, labels and weights of a batch."""
        images, labels, weights = self._entries(batch)
        # Callbacks change the batches of training only, so each stage has its first batch.
        self._first_batch = stage not in self._known_stages
        levels, labels = self._levels_and_labels(images, labels)
        if self._first_batch:
            self._check_loader(stage)
            self._known_stages.add(stage)
        return levels, labels, weights

    def _step(self, batch: Any, stage: Stage) -> Tensor:
        levels, labels, weights = self._checked(batch, stage)
        noise = self._noise(stage, len(levels))
        found = dict(self.losses(levels, labels, noise))
        is_fit = self.trainer.state.fn == TrainerFn.FITTING
        if self.slow_scores and not is_fit:
            found[self.measure] = self.scores(levels, labels, noise.again())
        each = found.pop("loss")
        loss = weighted_mean(each, weights)
        self.record(stage, loss, found, weights, size=len(each))
        return loss

    def record(
        self,
        stage: Stage,
        loss: Tensor,
        found: dict[str, Tensor],
        weights: Tensor | None = None,
        *,
        size: int,
    ) -> None:
        """Log the loss of a step of `size` samples N, and means of values (N,)."""
        if self.metrics_paused:
            return
        means = self._stage_metrics(stage).others["means"]
        assert isinstance(means, Means)  # for the type checker
        means.names = tuple(found)
        values = [value.detach().float() for value in found.values()]
        table = torch.stack(values, 1) if values else loss.new_zeros(size, 0)
        beside = (table, table.new_zeros(size)) + (() if weights is None else (weights,))
        buffer = self._buffers_of[stage]
        buffer.add(loss.detach(), beside, step=self.global_step)
        if buffer.is_full or (stage == "train" and loss.device.type == "cpu"):
            self._flush(stage, whole=buffer.is_full)

    def _noise(self, stage: str, count: int) -> AnyNoise:
        trainer = trainer_of(self)
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if stage == "train":
            return BatchNoise(count, self.device, rank=rank if ranks > 1 else None)
        start = self._seen.get(stage, 0)
        self._seen[stage] = start + count
        # Rank r gets the samples r, r + R, r + 2R, …
        numbers = range(rank + start * ranks, rank + (start + count) * ranks, ranks)
        return Noise(EVALUATION_SEED, numbers, self.device)

    def _reset(self, stage: Stage) -> None:
        super()._reset(stage)
        self._seen[stage] = 0

    def make_metrics(self, stage: Stage) -> MetricCollection:
        return MetricCollection({"means": Means()})

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the score of images, such as bits per dimension, shape (N,).

        The noise depends on the position in the batch. A model of classes needs labels.
        """
        if not self._prepared:
            images = self.preprocess(images)
        if self.num_classes is not None and labels is None:
            raise ValueError(
                f"num_classes={self.num_classes}: give the classes too, model(images, labels)."
            )
        labels = None if self.num_classes is None else labels
        levels, labels = self._levels_and_labels(images, labels)
        return self.scores(levels, labels, Noise(EVALUATION_SEED, range(len(levels)), self.device))

    @with_prepared_inputs
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the score of each image as ``"prediction"``.

        Target and index of the batch are returned beside them.
        """
        if not batch_idx:
            self._seen["predict"] = 0
        images, labels, _ = self._entries(batch)
        levels, labels = self._levels_and_labels(images, labels)
        found = {"prediction": self.scores(levels, labels, self._noise("predict", len(levels)))}
        return found | beside_inputs(batch[1:] if isinstance(batch, (list, tuple)) else [])

    # The averaged net

    @property
    def used_net(self) -> nn.Module:
        """The net, or in evaluation its average if there is one."""
        return self.net if self.training or self.ema is None else self.ema.net

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.net)


class AveragedNet(nn.Module):
    """An exponential moving average of a net.

    Args:
        net: The net. Its copy is averaged.
        decay: Decay d; see `GenerativeModel`.
    """

    steps: Tensor

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move towards the weights of the net. Buffers are copied."""
        self.steps += 1
        step = int(self.steps)
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        mine, new = ([p.detach() for p in each.parameters()] for each in (self.net, net))
        if mine:
            torch._foreach_lerp_(mine, new, share)
        for own, buffer in zip(self.net.buffers(), net.buffers(), strict=True):
            own.copy_(buffer)


class Means(Metric):
    """Means of named values of samples.

    Attributes:
        names: Names of the columns of `update`.
    """

    sums: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        zeros = torch.zeros(MOST_METRICS, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, _: Tensor, weights: Tensor | None = None) -> None:
        """Add samples.

        Args:
            values: Shape (N, K).
            weights: Shape (N,), or None.
        """
        values = values.double()
        if weights is not None:
            values = values * weights.double()[:, None]
        self.sums[: values.shape[1]] += values.sum(0)
        self.count += len(values) if weights is None else weights.double().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the means by name."""
        return {name: (self.sums[i] / self.count).float() for i, name in enumerate(self.names)}


def weighted_mean(each: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of losses (N,), times weights (N,) if any."""
    return each.mean() if weights is None else (weights * each).mean()
