"""Classification: one generic model, and a leaf for each net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from dlblocks._errors import check_range
from dlblocks.losses import cross_entropy
from dlblocks.metrics import classification_metrics, hard_labels
from dlblocks.models.model import Model, Stage
from dlblocks.nets import CNN, MLP

SHOWN = 10  # labels in a message


class Classifier(Model):
    """A classifier over any net that puts out logits of shape (N, C).

    The loss is the cross-entropy; targets are classes, int64 of shape (N,), or soft, floating point
    of shape (N, C), as mixing callbacks make them. Logged: ``loss``, ``accuracy``, and for
    validation and test also ``f1`` (macro) and ``calibration_error`` (expected, 15 bins). With soft
    targets, as under mixup, accuracy counts agreement with the dominant class.

    `forward` returns logits; `Trainer.predict` gives probabilities (N, C).

    Args:
        net: Maps inputs (N, ...) to logits (N, C).
        num_classes: Number of classes C.
        label_smoothing: ε in [0, 1): the share of the target spread evenly over all classes
            (Szegedy et al. 2016). In training only.
        class_weights: Weight of each class in the loss, length C, or ``"balanced"`` for
            N / (C · N_c), counted on the training part of the data. In training only.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
        >>> model = Classifier(torch.nn.Linear(4, 3), num_classes=3, lr=0.1)
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        **kwargs: Any,
    ) -> None:
        check_range("num_classes", num_classes, 2)
        check_range("label_smoothing", label_smoothing, 0, 1, high_open=True)
        self.num_classes = num_classes
        super().__init__(net, **kwargs)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", _initial_weight(class_weights, num_classes))

    shown = ("accuracy",)

    def make_metrics(self, stage: Stage) -> MetricCollection:
        metrics = classification_metrics(self.num_classes)
        if stage == "train":
            return MetricCollection({"accuracy": metrics["accuracy"]})
        return metrics

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self.training:
            return cross_entropy(outputs, targets)
        return cross_entropy(
            outputs, targets, weight=self.class_weight, label_smoothing=self.label_smoothing
        )

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        targets = hard_labels(targets)
        # Our own metrics of training are accuracy: a class a sample is all that needs keeping.
        own = type(self).make_metrics.__module__.startswith("dlblocks.models.")
        if stage == "train" and own:
            return outputs.argmax(1), targets
        return self.prediction(outputs), targets

    def prediction(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(1)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.class_weights == "balanced":
            self.class_weight = self._balanced_weight().to(self.device)

    def _balanced_weight(self) -> Tensor:
        train_targets = getattr(self.datamodule, "train_targets", None)
        if not callable(train_targets):
            raise ValueError(
                "class_weights='balanced' needs a datamodule with train_targets(); "
                "pass the weights as a list."
            )
        targets = train_targets()
        self._check_labels(targets)
        counts = torch.bincount(targets, minlength=self.num_classes)
        if not counts.all():
            raise ValueError(
                f"class_weights='balanced', but class {int(counts.argmin())} of 0 … "
                f"{self.num_classes - 1} has no training sample; pass the weights as a list, or "
                "map the labels to classes that count from 0."
            )
        return counts.sum() / (self.num_classes * counts.to(torch.get_default_dtype()))

    def check_data(self, datamodule: Any) -> None:
        super().check_data(datamodule)
        found = getattr(datamodule, "num_classes", self.num_classes)
        if found is None:
            raise ValueError(
                f"{type(self).__name__} needs classes as targets, but the targets of "
                f"{type(datamodule).__name__} are values; use a Regressor."
            )
        if found != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but {type(datamodule).__name__} has {found} "
                f"classes; set num_classes={found}."
            )

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but the net puts out shape "
                f"{tuple(outputs.shape)}; expected (N, {self.num_classes})."
            )
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"targets are floating point of shape {tuple(targets.shape)}; expected classes "
                    f"(int64, (N,)) or soft targets {tuple(outputs.shape)}."
                )
            return
        if targets.ndim != 1:
            raise ValueError(
                f"targets of integers have shape {tuple(targets.shape)}; expected classes of shape "
                "(N,): let the data set return one number a sample, such as int(label), and for "
                "one-hot rows label.argmax()."
            )
        self._check_labels(targets)

    def _check_labels(self, targets: Tensor) -> None:
        """Raises a `ValueError` unless all labels are classes of this model."""
        labels = targets.unique().tolist()  # sorted
        if labels[0] >= 0 and labels[-1] < self.num_classes:
            return
        shown = ", ".join(map(str, labels[:SHOWN])) + (", …" if len(labels) > SHOWN else "")
        cure = (
            "Classes count from 0: map the labels in the data set, or use ArrayDataModule, which "
            "maps labels of any values"
        )
        if labels[0] == 0:
            cure += f"; if these are the numbers of all classes, set num_classes={labels[-1] + 1}"
        raise ValueError(
            f"targets have the labels {shown}, but num_classes={self.num_classes} means the "
            f"classes 0 … {self.num_classes - 1}. {cure}."
        )


class MLPClassifier(Classifier):
    """A multi-layer perceptron as classifier; inputs of any shape are flattened.

    Args:
        in_features: Values in one input: 64 for 8×8 grey images.
        num_classes: Number of classes.
        hidden: Widths of the hidden layers.
        activation: Name of the activation.
        norm: ``"batch"``, ``"layer"`` or None.
        dropout: Probability with which a hidden unit is dropped.
        init: ``"kaiming"``, ``"xavier"`` or None for torch's default.
        embeddings: For features that are numbers of categories their position and how many there
            are: ``data.embeddings`` of a `TabularDataModule(…, embed=[…])`.
        **kwargs: Loss and optimization; see `Classifier`.

    Example:
        >>> MLPClassifier(64, 10, hidden=[128])(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (256,),
        activation: str = "relu",
        norm: Literal["batch", "layer"] | None = None,
        dropout: float = 0.0,
        init: Literal["kaiming", "xavier"] | None = "kaiming",
        embeddings: dict[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        net = MLP(
            in_features,
            num_classes,
            hidden=hidden,
            activation=activation,
            norm=norm,
            dropout=dropout,
            init=init,
            embeddings=embeddings,
        )
        super().__init__(net, num_classes, **kwargs)


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


def _initial_weight(
    class_weights: Sequence[float] | Literal["balanced"] | None, num_classes: int
) -> Tensor | None:
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        return torch.ones(num_classes)
    weight = torch.tensor([float(value) for value in class_weights])
    if len(weight) != num_classes or not (weight >= 0).all() or not weight.isfinite().all():
        raise ValueError(
            f"class_weights={list(class_weights)} must be {num_classes} numbers >= 0, one a class."
        )
    return weight
