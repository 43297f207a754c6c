"""Describe the data of a datamodule before they are split."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from dlblocks._errors import CheckedConstructor
from dlblocks.data._kinds import find_target_kind
from dlblocks.data.encoders import Encoder
from dlblocks.fields import Class, Kind, Labels
from dlblocks.nets.preprocess import Preprocess

MAX_CLASSES = 100_000  # larger labels are probably not classes
BatchSize = int | Literal["full"]


@dataclass
class SplitMetadata:
    """Columns that decide the split, with one value per sample.

    Attributes:
        num_samples: Number of samples N.
        targets: Classes, integers of shape (N,), or values, floating point. None if not known.
        groups: Group of each sample, shape (N,).
        folds: Predefined fold of each sample, shape (N,).
        copies: True if each group consists of copies of one sample, as with
            ``groups="duplicates"``.
        positions: Image, row, column, height and width of each sample, shape (N, 5), for tiles of
            large images.
    """

    num_samples: int
    targets: np.ndarray | None
    groups: np.ndarray | None
    folds: np.ndarray | None
    copies: bool = False
    positions: np.ndarray | None = None


class DescribedData(CheckedConstructor, pl.LightningDataModule):
    """Base class with targets, names of classes, hyperparameters and encoder.

    Subclasses define `columns` and `fingerprint`.
    """

    batch_size: BatchSize
    # Arguments that subclasses pass on by **kwargs; `save_hyperparameters` adds them.
    _shared: tuple[str, ...] = ()
    _split_name: str
    _keep_duplicates: bool
    _rows: dict[str, Tensor]  # the rows of each part, after `setup`

    # Defined by subclasses

    @property
    def columns(self) -> SplitMetadata:
        """Columns that decide the split."""
        raise NotImplementedError(f"{type(self).__name__} must define columns.")

    def fingerprint(self) -> str:
        """Return a hash with which a later run recognises the data."""
        raise NotImplementedError(f"{type(self).__name__} must define fingerprint().")

    def input_keys(self) -> np.ndarray | None:
        """Return a number for each sample, the same for equal inputs.

        int64 of shape (N,), or None if it is not known whether inputs are equal, or the data are
        larger than 4 GiB.
        """
        return None

    def shared_with_test(self) -> int | None:
        """Count the test samples that are in the development set.

        Returns:
            None if it is not known, and 0 if `test_fraction` holds out the test set.
        """
        return 0

    def description(self) -> str:
        """Return a text to show before training. It may be empty."""
        return ""

    def notes(self) -> list[str]:
        """Return remarks about the data for the result of a run."""
        return []

    # Targets

    @property
    def _target_kind(self) -> Kind | None:
        targets = self.columns.targets
        return None if targets is None else find_target_kind(targets)

    @property
    def is_classification(self) -> bool:
        """True if the targets are classes (integers) and not values."""
        return isinstance(self._target_kind, Class)

    @property
    def is_multilabel(self) -> bool:
        """True if each sample has several labels, integers of shape (N, C)."""
        return isinstance(self._target_kind, Labels)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0 … C-1, or None for values.

        None also if a label is negative, or 100,000 and more.
        """
        targets = self.columns.targets
        if targets is not None and self.is_multilabel:
            return [str(i) for i in range(targets.shape[1])]
        if targets is None or not self.is_classification:
            return None
        if targets.min() < 0 or targets.max() >= MAX_CLASSES:
            return None
        return [str(i) for i in range(int(targets.max()) + 1)]

    # Values that a fit saves

    @property
    def encoder(self) -> Encoder:
        """The encoder of new samples, which a fit stores in the model."""
        size = None if self.batch_size == "full" else self.batch_size
        return Encoder(self.class_names, size)

    def _describe_to_model(self) -> None:
        """Store the encoder in the Trainer's model, if it is a `Model`."""
        model: Any = getattr(self.trainer, "lightning_module", None)
        if hasattr(model, "data_spec"):
            model.data_spec = self.encoder.to_plain()

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints of other modules need to predict new samples.

        A `Model` saves it itself.
        """
        model = getattr(self.trainer, "lightning_module", None)
        if model is None or hasattr(model, "data_spec") or not self._rows:
            return {}
        preprocess = getattr(self, "preprocess", None)
        found = {"data_spec": self.encoder.to_plain()}
        if isinstance(preprocess, Preprocess) and preprocess.is_set:
            found["preprocess"] = preprocess.to_plain()
        return found

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Save the arguments of the constructor and of its base classes."""
        current = inspect.currentframe()
        frame = frame or (current and current.f_back)
        ignored = [ignore] if isinstance(ignore, str) else list(ignore or ())
        objects = ["split", "train_transform"]  # a checkpoint holds only plain values
        super().save_hyperparameters(*args, ignore=[*ignored, *objects], frame=frame, logger=logger)
        shared = {name: getattr(self, name) for name in self._shared}
        shared["split"] = self._split_name
        shared["groups"] = "duplicates" if self._keep_duplicates else None
        known = {*ignored, *self.hparams}
        self._set_hyperparameters({k: v for k, v in shared.items() if k not in known})

    def _set_hyperparameters(self, values: dict[str, Any]) -> None:
        """Set hyperparameters.

        Lightning's own way would compare arrays among the constructor's arguments, and fail.
        """
        self.hparams.update(values)
        vars(self).update(_hparams_initial=copy.deepcopy(self.hparams))
