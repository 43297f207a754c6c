"""Classification by nets of torchvision and timm, with freezing."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim import Optimizer
from typing_extensions import Self

from dlblocks._errors import check_range
from dlblocks.models.classification import Classifier
from dlblocks.nets.backbone import Backbone, Stem


class VisionClassifier(Classifier):
    """A torchvision or timm net as classifier of images.

    A frozen backbone stays as it is to the last bit: its weights get no gradient, its batch norms
    use and keep their running statistics, its dropout is off. (`EMAWeightAveraging` rounds them.)

    With `unfreeze_epoch` the optimizer has the groups of the backbone from the beginning, at the
    learning rate of the schedule. So unfreezing changes neither optimizer nor schedule, and a
    resumed run does the same. A smaller rate for the backbone:
    ``optimizer_args={"lr_groups": {"net.model.layer*": 0.1}}``, or ``{"layer_decay": 0.7}``.

    Args:
        arch: As for `dlblocks.nets.Backbone`: ``"resnet18"``, ``"timm:convnext_atto"``, ….
        num_classes: Number of classes.
        in_channels: Channels of the images.
        weights: None, ``"DEFAULT"`` or a file; see `dlblocks.nets.Backbone`.
        stem: ``"auto"``, ``"small"`` or ``"imagenet"``; see `dlblocks.nets.Backbone`.
        image_size: Side of the images, or height and width.
        freeze: Freeze all but the head (True), nothing (False), or the modules of these names, such
            as ``["conv1", "bn1", "layer1"]``.
        unfreeze_epoch: From this epoch on, from 0, everything is trained. None: never.
        **kwargs: Loss and optimization; see `Classifier`.

    Raises:
        ValueError: A name is not known, images are too small, or weights do not fit.

    Example:
        >>> model = VisionClassifier("resnet18", 10, in_channels=1, image_size=8, freeze=True)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)  # 512 · 10 + 10
        5130
    """

    net: Backbone

    def __init__(
        self,
        arch: str,
        num_classes: int,
        *,
        in_channels: int = 3,
        weights: str | PathLike[str] | None = None,
        stem: Stem = "auto",
        image_size: int | Sequence[int] | None = None,
        freeze: bool | Sequence[str] = False,
        unfreeze_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = Backbone(
            arch,
            num_classes,
            in_channels=in_channels,
            weights=None if weights is None else str(weights),
            stem=stem,
            image_size=image_size,
        )
        super().__init__(net, num_classes, **kwargs)
        # A checkpoint has the weights: it must not look for the file.
        self.save_hyperparameters({"weights": None, "stem": net.stem}, logger=False)
        self.unfreeze_epoch = unfreeze_epoch
        self._frozen_names, self._frozen_parameters = _frozen(net, freeze)
        if unfreeze_epoch is not None:
            check_range("unfreeze_epoch", unfreeze_epoch, 1)
            if not self._frozen_names:
                raise ValueError(f"unfreeze_epoch={unfreeze_epoch} needs freeze=True or names.")
        self.is_frozen = False
        self._freeze(True)

    @property
    def not_vectorizable(self) -> str | None:
        if self.unfreeze_epoch is None:
            return None
        return f"unfreeze_epoch changes what {type(self).__name__} trains"

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            self._set_mode(False)
        return self

    def _set_mode(self, training: bool) -> None:
        for name in self._frozen_names:
            # Each by itself: one that holds the head would take it along.
            self.net.model.get_submodule(name).training = training

    def _freeze(self, frozen: bool) -> None:
        if not self._frozen_names:
            return
        self.is_frozen = frozen
        for name in self._frozen_parameters:
            self.net.model.get_parameter(name).requires_grad_(not frozen)

    def make_optimizer(self) -> Optimizer:
        if self.unfreeze_epoch is None or not self.is_frozen:
            return super().make_optimizer()
        self._freeze(False)  # so that the optimizer has all parameters
        try:
            return super().make_optimizer()
        finally:
            self._freeze(True)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        callbacks = getattr(self.trainer, "callbacks", None) or []
        if stage == "fit" and self._frozen_names:
            for callback in callbacks:
                if isinstance(callback, StochasticWeightAveraging):
                    raise ValueError(
                        "StochasticWeightAveraging resets the running statistics of a frozen "
                        "backbone; use EMAWeightAveraging, or freeze=False."
                    )
        if stage == "fit" and self.unfreeze_epoch is not None and self.trainer.world_size > 1:
            unused = getattr(self.trainer.strategy, "_ddp_kwargs", {})
            if not unused.get("find_unused_parameters"):
                raise ValueError(
                    f"unfreeze_epoch={self.unfreeze_epoch} on several devices needs "
                    "strategy='ddp_find_unused_parameters_true': otherwise gradients of the "
                    "backbone would not be averaged."
                )

    def on_train_start(self) -> None:
        # Not before: Lightning warns of modules that a fit finds in evaluation mode.
        super().on_train_start()
        self._set_mode(not self.is_frozen)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.unfreeze_epoch is not None:
            self._freeze(self.current_epoch < self.unfreeze_epoch)
            self._set_mode(not self.is_frozen)

    def on_train_end(self) -> None:
        super().on_train_end()
        self._set_mode(self.training)


def _frozen(net: Backbone, freeze: bool | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of frozen modules and parameters of ``net.model``."""
    model, head = net.model, net.head.removeprefix("model.")
    modules = [name for name, _ in model.named_modules() if name]
    if freeze is False:
        return [], []
    if freeze is True:
        parameters = [n for n, _ in model.named_parameters() if not n.startswith(f"{head}.")]
        # Modules that contain the head stay trainable.
        return [n for n in modules if not f"{head}.".startswith(f"{n}.")], parameters
    if isinstance(freeze, str):
        raise TypeError(f"freeze={freeze!r} must be True, False or a list of names.")
    for name in freeze:
        if name not in modules:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"freeze has {name!r}, which is not a module of the net: {children}.")
    inside = tuple(f"{name}." for name in freeze)
    parameters = [n for n, _ in model.named_parameters() if n.startswith(inside)]
    return [n for n in modules if f"{n}.".startswith(inside)], parameters
