"""Describe the arrays of a `DataModule`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from dlblocks.data._described_data import SplitMetadata
from dlblocks.data._fingerprint import MAX_SEARCHED_BYTES, fingerprint, first_copies, row_keys
from dlblocks.data.encoders import ArrayEncoder, Encoder, ImageEncoder, SequenceEncoder
from dlblocks.data.source import Source
from dlblocks.data.split_datamodule import SplitDataModule
from dlblocks.fields import KINDS, Kind, Ragged


class SourceData(SplitDataModule):
    """Base class that reads shapes, names and kinds off a `Source`."""

    def load(self) -> Source:
        """Return the arrays. Called once on every rank, after `prepare_data`."""
        raise NotImplementedError(f"{type(self).__name__} must define load() -> Source.")

    @cached_property
    def source(self) -> Source:
        """The arrays, which are loaded and checked at first use."""
        source = self.load()
        source.check()
        return source

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kinds of ``"inputs"`` and ``"targets"``, in the order of a batch."""
        return self.source.kinds

    @property
    def _target_kind(self) -> Kind:
        return self.kinds["targets"]

    @property
    def columns(self) -> SplitMetadata:
        """Columns that decide the split.

        Masks, boxes and other structured targets are left out.
        """
        source = self.source
        targets = source.targets
        if isinstance(targets, Tensor) and targets.dtype == torch.bfloat16:  # unknown to NumPy
            targets = targets.float()
        return SplitMetadata(
            len(source.inputs),
            None if self.kinds["targets"].is_structured else targets.numpy(),
            first_copies(source.input_keys) if self._keep_duplicates else source.groups,
            source.folds,
            copies=self._keep_duplicates,
            positions=source.positions,
        )

    def input_keys(self) -> np.ndarray | None:
        inputs = self.source.inputs
        if inputs.nbytes > MAX_SEARCHED_BYTES:
            return None
        return self.source.input_keys

    def shared_with_test(self) -> int | None:
        """Count the official test samples that are also in the development set.

        Returns:
            0 without an official test set, and None for more than 4 GiB.
        """
        test, known = self.source.test_inputs, self.input_keys()
        if test is None:
            return 0
        if known is None or test.nbytes > MAX_SEARCHED_BYTES:
            return None
        rows = [*test] if isinstance(test, Ragged) else test
        return int(np.isin(row_keys(rows), known).sum())

    def fingerprint(self) -> str:
        """Hash the arrays without the official test set.

        See `dlblocks.data._fingerprint`.
        """
        source = self.source
        inputs: Any = source.inputs
        targets: dict[str, Any] = {"targets": source.targets}
        if isinstance(source.targets, Ragged):
            targets = {"targets": source.targets.values, "offsets": source.targets.offsets}
        if isinstance(inputs, Ragged):
            targets["input_offsets"], inputs = inputs.offsets, inputs.values
        columns = targets | {"groups": source.groups, "folds": source.folds}
        if source.weights is not None:
            columns["weights"] = source.weights
        if source.positions is not None:
            columns["positions"] = source.positions
        return fingerprint({"inputs": inputs}, columns)

    # Shapes and names

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0 … C-1, or None for values."""
        count = self.source.num_inner_classes
        numbers = super().class_names if count is None else [str(i) for i in range(count)]
        return numbers and (self.source.class_names or numbers)

    @property
    def num_classes(self) -> int | None:
        """Number of classes C, or None for values."""
        names = self.class_names
        return None if names is None else len(names)

    @property
    def feature_names(self) -> list[str] | None:
        """Names of the features, or None."""
        return self.source.feature_names

    @property
    def column_features(self) -> dict[str, list[int]]:
        """The features of each column of a table.

        In arrays (N, F) each feature is a column.
        """
        if len(self.input_shape) != 1:
            raise ValueError(
                f"inputs of shape {self.input_shape} are not a table (N, F) of columns, such as "
                "that of a TabularDataModule."
            )
        names = self.feature_names or [str(i) for i in range(self.in_features)]
        return {name: [i] for i, name in enumerate(names)}

    @property
    def input_shape(self) -> tuple[Any, ...]:
        """Shape of one input, without the batch axis.

        Sequences of unequal length have the shape (None, ...).
        """
        return tuple(self.source.inputs.shape[1:])

    @property
    def in_features(self) -> int:
        """Number of values in one input, flattened."""
        if None in self.input_shape:
            raise AttributeError(
                f"inputs of shape {self.input_shape} have unequal lengths, so their number of "
                "values is not fixed; one step has input_shape[-1] features."
            )
        return int(np.prod(self.input_shape))

    @property
    def out_features(self) -> int:
        """Number of outputs of a model, which are classes or target columns."""
        if self.num_classes is not None:
            return self.num_classes
        return int(np.prod(self.source.targets.shape[1:]))

    @property
    def in_channels(self) -> int:
        """Channels of the images, C of (C, H, W)."""
        return self._image_shape()[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._image_shape()[1:]

    def _image_shape(self) -> tuple[int, int, int]:
        if len(self.input_shape) != 3 or None in self.input_shape:
            raise AttributeError(f"inputs of shape {self.input_shape} are not images (C, H, W).")
        channels, height, width = self.input_shape
        return channels, height, width

    # Raw arrays

    def raw_inputs(self, part: str) -> Any:
        """Return the whole input array, not normalised, that contains a part.

        The index of a sample of the part is its row in this array.
        """
        return self._part_arrays(part)[0]

    def _part_arrays(self, part: str) -> tuple[Any, Any]:
        source = self.source
        if part == "test" and source.test_inputs is not None and source.test_targets is not None:
            return source.test_inputs, source.test_targets
        return source.inputs, source.targets

    def weights_of(self, part: str) -> Tensor | None:
        weights = self._weights(part)
        return None if weights is None else weights[self.indices(part)]

    def _weights(self, part: str) -> Tensor | None:
        """Return the weights of the whole array that contains a part."""
        source = self.source
        if source.weights is None or part != "test" or source.test_inputs is None:
            return source.weights
        return (
            torch.ones(len(source.test_inputs))
            if source.test_weights is None
            else source.test_weights
        )

    def for_fold(self, fold: int, num_folds: int | None, *, repeat: int = 0) -> Self:
        _ = self.source  # loaded once for all folds
        return super().for_fold(fold, num_folds, repeat=repeat)

    # Encoder of new samples

    @property
    def encoder(self) -> Encoder:
        size = None if self.batch_size == "full" else self.batch_size
        targets = self.source.targets
        shape = None if isinstance(targets, Ragged) else list(targets.shape[1:])
        kind = self.kinds["targets"].name
        encoder = self._make_encoder(
            class_names=self.class_names, batch_size=size, target_shape=shape, target_kind=kind
        )
        if isinstance(encoder, ImageEncoder) and kind == "boxes" and encoder.file_size is None:
            encoder.file_size = []  # boxes are in the pixels of the file
        return encoder

    def _make_encoder(self, **shared: Any) -> Encoder:
        """Make the encoder of the source's inputs."""
        inputs, kind = self.source.inputs, self.kinds["inputs"]
        is_uint8 = inputs.dtype == torch.uint8 and inputs.ndim == 4 and inputs.shape[1] in (1, 3)
        make = ImageEncoder if kind.name == "image" and is_uint8 else ArrayEncoder
        if isinstance(inputs, Ragged):
            make = SequenceEncoder
        own = "tokens" if kind.is_integer else "features"  # a kind of the user's
        return make(
            **shared,
            shape=list(inputs.shape[1:]),
            dtype=str(inputs.dtype).removeprefix("torch."),
            input_kind=kind.name if kind.name in KINDS else own,
            may_lack=self.source.completion is not None,
        )
