"""Segmentation: one generic model, and a leaf for each net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torchmetrics import Metric

from dlblocks.models.model import Model
from dlblocks.nets import UNet, VisionSegmentation
from dlblocks.tasks import SegmentationTask


class Segmenter(Model):
    """A segmenter over any net that puts out logits of shape (N, C, H, W).

    Targets are masks of classes, integers (N, H, W). Logged: ``loss``, ``iou``, ``dice`` and
    ``accuracy``; see `dlblocks.tasks.SegmentationTask`.

    `forward` returns logits; `Trainer.predict` gives probabilities (N, C, H, W).

    Args:
        net: Maps images (N, ...) to logits (N, C, H, W).
        num_classes: Number of classes C, with that of the background.
        loss: ``"cross_entropy"``, ``"dice"``, ``"focal"``, or a sum: ``"cross_entropy+dice"``.
        ignore_index: The label of pixels that do not count, in loss and metrics.
        gamma: γ of the focal loss.
        label_smoothing: ε in [0, 1) of the cross-entropy. In training only.
        class_weights: Weight of each class in the loss, length C, or ``"balanced"`` for
            N / (C · N_c), counted in pixels of the training part. In training only.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"cohen_kappa"``, or metrics.
        aux_weight: Weight of the loss of auxiliary logits; see `SegmentationTask`.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
        >>> import torch
        >>> model = Segmenter(torch.nn.Conv2d(1, 3, 1), num_classes=3, loss="dice")
        >>> model(torch.zeros(2, 1, 5, 7)).shape
        torch.Size([2, 3, 5, 7])
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        *,
        loss: str = "cross_entropy",
        ignore_index: int = 255,
        gamma: float = 2.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | Literal["balanced"] | None = None,
        metrics: Sequence[str | Metric] | None = None,
        aux_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.num_classes = num_classes
        task = SegmentationTask(
            num_classes,
            loss=loss,
            ignore_index=ignore_index,
            gamma=gamma,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            metrics=metrics,
            aux_weight=aux_weight,
        )
        super().__init__(net, task, **kwargs)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights


class UNetSegmenter(Segmenter):
    """A U-Net as segmenter of images (N, C, H, W) of any size.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes, with that of the background.
        width: Channels of the first level; each level has twice those of the one before.
        depth: How often the map is halved.
        norm: ``"batch"``, ``"group"`` (for batches of one or two images), or None.
        activation: Name of the activation.
        init: ``"kaiming"``, ``"xavier"`` or None for torch's default.
        **kwargs: Loss and optimization; see `Segmenter`.

    Example:
        >>> import torch
        >>> UNetSegmenter(1, 3, width=4, depth=2)(torch.zeros(2, 1, 9, 9)).shape
        torch.Size([2, 3, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 32,
        depth: int = 4,
        norm: Literal["batch", "group"] | None = "batch",
        activation: str = "relu",
        init: Literal["kaiming", "xavier"] | None = "kaiming",
        **kwargs: Any,
    ) -> None:
        net = UNet(
            in_channels,
            num_classes,
            width=width,
            depth=depth,
            norm=norm,
            activation=activation,
            init=init,
        )
        super().__init__(net, num_classes, **kwargs)


class VisionSegmenter(Segmenter):
    """A net of torchvision as segmenter, with random weights at the start.

    Args:
        arch: ``"fcn_resnet50"``, ``"deeplabv3_resnet50"``, ``"lraspp_mobilenet_v3_large"``, or
            another of `dlblocks.nets.vision_segmentation.ARCHS`.
        num_classes: Number of classes, with that of the background.
        in_channels: Channels of the images.
        aux_weight: Weight of the loss of FCN's and DeepLab's auxiliary classifier, which sees the
            maps of the second last stage. It is trained and otherwise not used. torchvision trains
            with 0.5. 0: there is none.
        **kwargs: Loss and optimization; see `Segmenter`.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        *,
        in_channels: int = 3,
        aux_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = VisionSegmentation(arch, in_channels, num_classes, aux=aux_weight > 0)
        super().__init__(net, num_classes, aux_weight=aux_weight, **kwargs)
