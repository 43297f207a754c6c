"""A generic detector, and a leaf for those of torchvision."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch import Tensor, nn

from dlblocks.models.model import Model
from dlblocks.nets import VisionDetection
from dlblocks.tasks import DetectionTask


class BoxDetector(Model):
    """A detector over a net that computes its own losses.

    Batches are ``[images, targets]``: images (N, C, H, W) of one size, and for each image a
    dictionary with ``boxes`` (n, 4) and ``labels`` (n,), int64, as
    `dlblocks.data.DetectionDataModule` gives them. Classes are 0 … C-1, without the background.

    ``val/loss`` and ``test/loss`` are the loss that training with the same weights would have on
    the same batch, with batch norms in evaluation mode. Logged beside it: ``map``, ``map_50``,
    ``map_75`` and ``mar``; see `dlblocks.tasks.DetectionTask`.

    `forward` returns a dictionary with ``boxes``, ``scores`` and ``labels`` for each image.
    `Trainer.predict` gives rows (x0, y0, x1, y1, score, class) for each image.

    Args:
        net: Has ``step(images, targets, detect=…)``, which returns losses by name and detections,
            as `dlblocks.nets.VisionDetection.step`; ``net(images)`` returns detections.
        num_classes: Number of classes C.
        **kwargs: Optimization; see `dlblocks.models.Model`.
    """

    def __init__(self, net: nn.Module, num_classes: int, **kwargs: Any) -> None:
        self.num_classes = num_classes
        super().__init__(net, DetectionTask(num_classes), **kwargs)

    def setup(self, stage: str) -> None:
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision[:2] in ("16", "bf"):
            raise ValueError(
                f"precision={precision!r} would round the coordinates of boxes; use "
                f"precision='{precision.replace('true', 'mixed')}'."
            )
        super().setup(stage)

    def outputs_and_loss(
        self, inputs: Any, targets: Any, weights: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(
                f"{type(self).__name__} expects images (N, C, H, W) of one size, got {got}; stack "
                "them in the collate_fn of your DataLoader."
            )
        # Some wrong labels are no error of the net, and would count as background.
        if self._first_batch or inputs.device.type == "cpu":
            self.check_batch(inputs, targets)
        net: Any = self.net
        # Detections cost time, and training needs none.
        losses, found = net.step(inputs, targets, detect=not self.training)
        return found, self.loss(losses, targets)


class Detector(BoxDetector):
    """A detector of torchvision for images of any size.

    Classes are 0 … C-1, without the background, for all three. Images are normalised once, by
    `preprocess`, and keep their size: torchvision's own normalisation and resizing to 800 pixels
    are off.

    Args:
        arch: ``"fcos"``, ``"retinanet"`` or ``"fasterrcnn"``. The first is the fastest in training;
            the last takes about ten times as long.
        num_classes: Number of classes C.
        in_channels: Channels of the images.
        backbone: ``"small"``, ``"resnet18"`` or another ResNet, or ``"timm:…"``; see
            `dlblocks.nets.VisionDetection`.
        weights: None, ``"DEFAULT"``, or a file of weights of the backbone.
        channels: Channels of the feature pyramid and the heads, a multiple of 32.
        num_convs: Convolutions of a head of FCOS.
        anchor_scale: Side of an anchor in strides, of RetinaNet and Faster R-CNN.
        score_threshold: Detections of a lower score are left out.
        nms_threshold: IoU from which on the weaker of two detections of a class is left out.
        max_detections: Most detections of an image.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
        >>> import torch
        >>> model = Detector("fcos", 10, in_channels=1, channels=32, num_convs=1).eval()
        >>> len(model(torch.zeros(2, 1, 40, 40)))
        2
    """

    @property
    def not_exportable(self) -> str | None:
        if self.net.arch != "fasterrcnn":
            return None
        # torchvision pools the boxes of each level by themselves, and a traced program fails with
        # images of which a level has none.
        return "Faster R-CNN fails with some images once exported; use arch='fcos' or 'retinanet'"

    def __init__(
        self,
        arch: str,
        num_classes: int,
        *,
        in_channels: int = 3,
        backbone: str = "small",
        weights: str | PathLike[str] | None = None,
        channels: int = 64,
        num_convs: int = 4,
        anchor_scale: float = 4.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        **kwargs: Any,
    ) -> None:
        net = VisionDetection(
            arch,
            num_classes,
            in_channels=in_channels,
            backbone=backbone,
            weights=None if weights is None else str(weights),
            channels=channels,
            num_convs=num_convs,
            anchor_scale=anchor_scale,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )
        super().__init__(net, num_classes, **kwargs)
        # A checkpoint has the weights: it must not look for the file.
        self.save_hyperparameters({"weights": None}, logger=False)
