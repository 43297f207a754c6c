"""Faster R-CNN, RetinaNet and FCOS of torchvision, for small images too.

Ren, He, Girshick, Sun: Faster R-CNN, towards real-time object detection with region proposal
networks. NeurIPS 2015.
Lin, Goyal, Girshick, He, Dollár: Focal loss for dense object detection. ICCV 2017.
Tian, Shen, Chen, He: FCOS, a simple and strong anchor-free object detector. 2020.
Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature pyramid networks for object detection.
CVPR 2017.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._errors import check_choice, check_range, checked, wrong_channels
from dlblocks.nets._feature_pyramid import FeaturePyramid

ARCHS = ("fasterrcnn", "retinanet", "fcos")
GROUPS = 32  # of the norms in the heads, so that widths are multiples of it
RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
DRAWS = 1234  # seed of Faster R-CNN's samples in evaluation

Targets = Sequence[Mapping[str, Tensor]]


class VisionDetection(nn.Module):
    """A detector of torchvision that computes its own loss.

    It takes images as they are: it neither normalises nor resizes them, as torchvision's detectors
    do. A batch has images of one size.

    Classes are 0 … C-1, without one for the background, for all three. (torchvision's Faster R-CNN
    counts the background as class 0; labels are shifted for it, and shifted back.)

    Level k of the pyramid has a stride of ``first_stride * 2**k`` pixels. An anchor of RetinaNet
    and Faster R-CNN has a side of `anchor_scale` strides, in three ratios. For FCOS the anchor is
    one stride, and an object of up to eight strides belongs to a level. So the default serves
    objects from about 8 pixels.

    Args:
        arch: ``"fasterrcnn"``, ``"retinanet"`` or ``"fcos"``.
        num_classes: Number of classes C.
        in_channels: Channels of the images.
        backbone: ``"small"``, three levels of one residual block each; ``"resnet18"`` or another
            ResNet of torchvision, four levels; or a net of timm with features, such as
            ``"timm:tf_efficientnet_lite0"``.
        weights: None for random ones, ``"DEFAULT"``, or a file of a classification net; see
            `dlblocks.nets.Backbone`.
        channels: Channels of the pyramid and the heads, a multiple of 32.
        num_convs: Convolutions of a head of FCOS.
        anchor_scale: Side of an anchor in strides.
        score_threshold: Detections of a lower score are left out.
        nms_threshold: IoU from which on the weaker of two detections of a class is left out.
        max_detections: Most detections of an image.

    Shape:
        Input (N, in_channels, H, W). In evaluation a list of N dictionaries with ``boxes`` (D, 4),
        ``scores`` (D,) and ``labels`` (D,).

    Raises:
        ValueError: An argument is out of range, or weights do not fit.

    Example:
        >>> net = VisionDetection("fcos", 2, in_channels=1).eval()
        >>> sorted(net(torch.zeros(1, 1, 40, 40))[0])
        ['boxes', 'labels', 'scores']
    """

    @checked
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
    ) -> None:
        super().__init__()
        check_choice("arch", arch, list(ARCHS))
        check_range("num_classes", num_classes, 1)
        check_range("in_channels", in_channels, 1)
        check_range("num_convs", num_convs, 1)
        check_range("anchor_scale", anchor_scale, 0, low_open=True)
        check_range("score_threshold", score_threshold, 0, 1)
        check_range("nms_threshold", nms_threshold, 0, 1)
        check_range("max_detections", max_detections, 1)
        if channels < GROUPS or channels % GROUPS:
            raise ValueError(
                f"channels={channels} must be a multiple of {GROUPS}, the groups of the norms."
            )
        self.arch, self.in_channels, self.num_classes = arch, in_channels, num_classes
        # torchvision's Faster R-CNN has the background as class 0.
        self.shift = int(arch == "fasterrcnn")
        pyramid = FeaturePyramid(backbone, in_channels, weights, channels)
        self.strides = pyramid.strides
        limits = {"score_thresh": score_threshold, "nms_thresh": nms_threshold,
                  "detections_per_img": max_detections}  # fmt: skip
        make = {"fasterrcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos}[arch]
        self.detector: Any = make(
            pyramid, num_classes + self.shift, channels, num_convs, anchor_scale, limits
        )

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        return self.step(images)[1]

    def step(
        self, images: Tensor, targets: Targets | None = None, *, detect: bool = True
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Compute losses and detections with one pass of the backbone.

        In evaluation mode the losses are those of training with the same weights, but batch norms
        use and keep their statistics. Faster R-CNN, which draws samples, then draws the same ones
        each time. The global random state stays as it is.

        Args:
            images: Shape (N, C, H, W).
            targets: For each image ``boxes`` (n, 4) and ``labels`` (n,); None for no losses.
            detect: Whether to compute detections.

        Returns:
            The losses by name (empty without targets), each a mean, and the detections (empty
            without `detect`).
        """
        self.check_input(tuple(images.shape[1:]))
        features = OrderedDict(
            (name, values.float()) for name, values in self.detector.backbone(images).items()
        )
        sizes: Any = [tuple(images.shape[2:])] * len(images)
        given = None
        if targets is not None:
            given = [
                {"boxes": t["boxes"].float(), "labels": t["labels"] + self.shift} for t in targets
            ]
        # Coordinates need the precision of float32.
        with torch.autocast(images.device.type, enabled=False):
            compute = self._two_stages if self.shift else self._one_stage
            losses, found = compute(images, sizes, features, given, detect)
        detections = [
            {
                "boxes": each["boxes"],
                "scores": each["scores"],
                "labels": each["labels"] - self.shift,
            }
            for each in found
        ]
        return losses, detections

    def _one_stage(
        self, images: Tensor, sizes: Any, features: Mapping[str, Tensor], targets: Any, detect: bool
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Run FCOS or RetinaNet, as the forward of torchvision's."""
        from torchvision.models.detection.image_list import ImageList

        net, maps = self.detector, list(features.values())
        outputs = net.head(maps)
        anchors = net.anchor_generator(ImageList(images, sizes), maps)
        per_place = net.anchor_generator.num_anchors_per_location()
        counts = [x.shape[2] * x.shape[3] * each for x, each in zip(maps, per_place, strict=True)]
        losses: dict[str, Tensor] = {}
        if targets is not None:
            more = [counts] if self.arch == "fcos" else []
            losses = dict(net.compute_loss(targets, outputs, anchors, *more))
        if not detect:
            return losses, []
        split = {name: list(x.detach().split(counts, 1)) for name, x in outputs.items()}
        parts = [list(each.split(counts)) for each in anchors]
        return losses, net.postprocess_detections(split, parts, sizes)

    def _two_stages(
        self, images: Tensor, sizes: Any, features: Mapping[str, Tensor], targets: Any, detect: bool
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Run Faster R-CNN, as the forward of torchvision's."""
        from torchvision.models.detection.image_list import ImageList

        net, listed = self.detector, ImageList(images, sizes)
        losses: dict[str, Tensor] = {}
        if targets is not None:
            with _training([net.rpn, net.roi_heads]), self._draws(images):
                proposals, first = net.rpn(listed, features, targets)
                _, second = net.roi_heads(features, proposals, sizes, targets)
            losses = first | second
        if not detect:
            return losses, []
        with _training([net.rpn, net.roi_heads], False), torch.no_grad():
            proposals, _ = net.rpn(listed, features, None)
            found, _ = net.roi_heads(features, proposals, sizes, None)
        return losses, found

    @contextlib.contextmanager
    def _draws(self, images: Tensor) -> Iterator[None]:
        """Draw the same samples each time in evaluation, from a state of their own."""
        if self.training:
            yield
            return
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(DRAWS)
            yield

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless images of `shape` (C, H, W) fit."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise wrong_channels(self.in_channels, tuple(shape))


@contextlib.contextmanager
def _training(modules: Sequence[nn.Module], mode: bool = True) -> Iterator[None]:
    """Set the mode of modules, but not of those inside them.

    So they take the path of training or evaluation, and batch norms keep their mode.
    """
    before = [module.training for module in modules]
    for module in modules:
        module.training = mode
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.training = was


def _anchors(strides: Sequence[int], scale: float, octaves: int, ratios: Sequence[float]) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    sizes = tuple(
        tuple(stride * scale * 2 ** (k / octaves) for k in range(octaves)) for stride in strides
    )
    return AnchorGenerator(sizes, (tuple(ratios),) * len(strides))


# torchvision's own normalisation and resizing are never called; see `VisionDetection.step`.
UNTOUCHED: dict[str, Any] = {"image_mean": [0.0], "image_std": [1.0], "min_size": 1, "max_size": 1}


def _fcos(
    pyramid: FeaturePyramid, num_classes: int, channels: int, num_convs: int, scale: float,
    limits: dict[str, Any],
) -> Any:  # fmt: skip
    from torchvision.models.detection.fcos import FCOS, FCOSHead

    return FCOS(
        pyramid,
        num_classes,
        anchor_generator=_anchors(pyramid.strides, 1, 1, [1.0]),
        head=FCOSHead(channels, 1, num_classes, num_convs),
        **limits,
        **UNTOUCHED,
    )


def _retinanet(
    pyramid: FeaturePyramid, num_classes: int, channels: int, num_convs: int, scale: float,
    limits: dict[str, Any],
) -> Any:  # fmt: skip
    from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

    anchors = _anchors(pyramid.strides, scale, 3, RATIOS)
    norm = partial(nn.GroupNorm, GROUPS)
    return RetinaNet(
        pyramid,
        num_classes,
        anchor_generator=anchors,
        head=RetinaNetHead(channels, 3 * len(RATIOS), num_classes, norm_layer=norm),
        **limits,
        **UNTOUCHED,
    )


def _faster_rcnn(
    pyramid: FeaturePyramid, num_classes: int, channels: int, num_convs: int, scale: float,
    limits: dict[str, Any],
) -> Any:  # fmt: skip
    from torchvision.models.detection.faster_rcnn import (
        FasterRCNN,
        FastRCNNPredictor,
        TwoMLPHead,
    )
    from torchvision.ops import MultiScaleRoIAlign

    side, wide = 7, 4 * channels
    pool = MultiScaleRoIAlign([str(i) for i in range(len(pyramid.strides))], side, 2)
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=_anchors(pyramid.strides, scale, 1, RATIOS),
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * side**2, wide),
        box_predictor=FastRCNNPredictor(wide, num_classes),
        **{f"box_{name}": value for name, value in limits.items()},
        **UNTOUCHED,
    )
