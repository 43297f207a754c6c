"""Classifiers over any net, a perceptron or a CNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torchmetrics import Metric

from dlblocks.models._mlp_model import MLPModel
from dlblocks.models.model import Model
from dlblocks.nets import CNN
from dlblocks.tasks import MulticlassTask, MultilabelTask


class Classifier(Model):
    """A classifier over any net with logits of shape (N, C).

    The loss is the cross-entropy. Targets are classes, int64 of shape (N,), or soft targets,
    floating point of shape (N, C), such as those of mixup. Soft targets count for accuracy by their
    dominant class. The model logs ``loss`` and ``accuracy``, and in validation and test also ``f1``
    (macro) and ``calibration_error`` (expected, 15 bins).

    With ``multilabel=True`` a sample has any number of the C labels. Targets are then 0 and 1 of
    shape (N, C), and the loss is the binary cross-entropy; see `dlblocks.tasks.MultilabelTask`.

    `forward` returns logits, `Trainer.predict` probabilities (N, C).

    Args:
        net: Maps inputs (N, ...) to logits (N, C).
        num_classes: Number of classes C.
        multilabel: True if a sample may have several labels, or none.
        label_smoothing: ε in [0, 1), the share of the target spread evenly over all classes
            (Szegedy et al. 2016). Used in training only.
        class_weights: Weight of each class in the loss, length C, or ``"balanced"`` for
            N / (C · N_c), counted on the training part. Used in training only. With several labels
            they are the factors of the positive terms, and ``"balanced"`` is (N - N_c) / N_c.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"auroc"`` or ``"cohen_kappa"``, or metrics.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
        >>> import torch
        >>> model = Classifier(torch.nn.Linear(4, 3), num_classes=3, lr=0.1)
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        *,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        metrics: Sequence[str | Metric] | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_classes = num_classes
        make_task = MultilabelTask if multilabel else MulticlassTask
        task = make_task(
            num_classes,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            metrics=metrics,
        )
        super().__init__(net, task, **kwargs)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights


class MLPClassifier(MLPModel, Classifier):
    """A multi-layer perceptron as classifier of flattened inputs.

    Args:
        in_features: Number of values of one input: 64 for 8×8 grey images.
        num_classes: Number of classes.
        **kwargs: ``hidden``, ``activation``, ``norm``, ``dropout``, ``init`` and ``embeddings`` of
            `dlblocks.nets.MLP`; loss and optimization, see `Classifier`.

    Example:
        >>> import torch
        >>> MLPClassifier(64, 10, hidden=[128])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_features: int, num_classes: int, **kwargs: Any) -> None:
        self._num_outputs = num_classes
        super().__init__(in_features, num_classes=num_classes, **kwargs)


class CNNClassifier(Classifier):
    """A convolutional net as classifier of images (N, C, H, W).

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        channels: Channels of each block of convolution – norm – activation – pooling.
        convs_per_block: Convolutions in a block.
        kernel_size: Side of the kernels.
        norm: ``"batch"`` or None.
        activation: Name of the activation.
        pool: ``"max"`` or ``"avg"``.
        head: ``"gap"`` (global average pooling) or ``"flatten"``, which needs `image_size`.
        image_size: Height and width of the images.
        hidden: Widths of dense layers before the last.
        dropout: Probability with which an input of a dense layer is dropped.
        init: ``"kaiming"``, ``"xavier"`` or None for torch's default.
        **kwargs: Loss and optimization; see `Classifier`.

    Example:
        >>> import torch
        >>> CNNClassifier(1, 10, channels=[8, 16])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64),
        convs_per_block: int = 1,
        kernel_size: int = 3,
        norm: Literal["batch"] | None = "batch",
        activation: str = "relu",
        pool: Literal["max", "avg"] = "max",
        head: Literal["gap", "flatten"] = "gap",
        image_size: int | tuple[int, int] | None = None,
        hidden: Sequence[int] = (),
        dropout: float = 0.0,
        init: Literal["kaiming", "xavier"] | None = "kaiming",
        **kwargs: Any,
    ) -> None:
        net = CNN(
            in_channels,
            num_classes,
            channels=channels,
            convs_per_block=convs_per_block,
            kernel_size=kernel_size,
            norm=norm,
            activation=activation,
            pool=pool,
            head=head,
            image_size=image_size,
            hidden=hidden,
            dropout=dropout,
            init=init,
        )
        super().__init__(net, num_classes, **kwargs)
