"""Transforms that move or erase pixels. The targets must move with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from dlblocks._boxes import are_boxes
from dlblocks._errors import checked
from dlblocks._lightning import datamodule_of
from dlblocks.callbacks._batch_transform import BatchTransform
from dlblocks.fields import Boxes, Kind, as_kind, kinds_of
from dlblocks.losses import MixedTargets


class PixelTransform(BatchTransform):
    """A transform that moves or erases pixels, in images and their targets.

    The kind of the targets says what becomes of them: masks and boxes move along, classes stay.
    Our datamodules tell it. Of another's batch, lists of dictionaries with ``boxes`` are boxes;
    targets that have the height and width of the images as their last axes are refused unless
    `target_kind` is given.

    Args:
        target_kind: ``"mask"``, ``"image"`` or another kind of `dlblocks.fields`, or an object such
            as ``Mask(ignore_index=0)``; ``"values"`` stay as they are. None: what the datamodule
            says.
        **kwargs: When and where it acts; see `BatchTransform`.
    """

    takes_boxes = True

    @checked
    def __init__(self, *, target_kind: Kind | str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_kind = as_kind("target_kind", target_kind)
        self._told: Kind | None = None  # by the datamodule

    def changes_place(self) -> bool:
        """Return True if pixels move or are erased."""
        return True

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().prepare(trainer, pl_module)
        own_batch = self.input_key == 0 and self.target_key == 1  # [inputs, targets]
        kinds = kinds_of(datamodule_of(trainer)) if own_batch else {}
        self._told = kinds.get("targets")
        kind = self.target_kind or self._told
        if kind is not None and kind.refusal and self.changes_place():
            raise ValueError(
                f"{type(self).__name__} cannot change targets of kind {kind.name!r} along with the "
                f"images: {kind.refusal}."
            )
        if isinstance(kind, Boxes):
            self.check_boxes()

    def check_boxes(self) -> None:
        """Raise a `ValueError` for a change after which boxes would be wrong."""

    def dry_run(self, batch: Any) -> Any:
        entries = self.entries(batch)
        for target in entries.targets:
            self.kind_of(target, entries.inputs[0])
        return batch

    def kind_of(self, targets: Any, images: Tensor) -> Kind:
        """Return the kind of the targets.

        Raises:
            ValueError: They look like a mask, and nothing says what they are.
        """
        kind = self.target_kind or self._told
        if kind is not None:
            return kind
        if are_boxes(targets):
            self.check_boxes()
            return Boxes()
        first = targets.first if isinstance(targets, MixedTargets) else targets
        if images.ndim == 4 and first.ndim > 2 and first.shape[-2:] == images.shape[-2:]:
            raise ValueError(
                f"{type(self).__name__} changes images of shape {tuple(images.shape)}, but not the "
                f"targets of shape {tuple(first.shape)}, which have their height and width; set "
                "target_kind='mask' to move classes of pixels along, target_kind='image' for "
                "values of pixels, or target_kind='values' to leave them as they are."
            )
        return Kind()

    def changed(self, targets: Any, images: Tensor, change: Callable[[Kind, Any], Any]) -> Any:
        """Change targets, or both parts of a pair, by their kind."""
        kind = self.kind_of(targets, images)
        if isinstance(targets, MixedTargets):
            first, second = (change(kind, t) for t in (targets.first, targets.second))
            return targets._replace(first=first, second=second)
        return change(kind, targets)
