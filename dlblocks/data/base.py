"""`DataModule`: splits, folds, normalisation and loaders, the same for every source of data.

A source (digits, a table, MNIST, …) is a subclass that says where its arrays come from, by
`load()`. Everything else is here, once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import Self

from dlblocks.data import folds
from dlblocks.data.checks import check_arrays
from dlblocks.data.dataset import ArrayDataset, collate, collate_with_index
from dlblocks.data.sampler import EpochSampler
from dlblocks.errors import check_range


@dataclass
class Source:
    """The arrays of one source of data, as `DataModule.load` returns them.

    Attributes:
        inputs: Shape (N, ...): images NCHW, uint8 in 0 … 255 or floating point; features (N, F),
            floating point.
        targets: Classes, int64 of shape (N,), or values, floating point of shape (N,) or (N, D).
        test_inputs: The official test set, if there is one.
        test_targets: Its targets.
        class_names: Names of the classes 0 … C-1; None for values.
        groups: Group of each sample, shape (N,), if samples belong together.
        feature_names: Names of the columns of a table.
        complete: Fills in what `inputs` lacks (NaN), given `inputs` and the rows that train; it
            must look at no other rows. Returns a new array.
    """

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None
    class_names: list[str] | None = None
    groups: np.ndarray | None = None
    feature_names: list[str] | None = None
    complete: Callable[[Tensor, Tensor], Tensor] | None = None


class DataModule(pl.LightningDataModule):
    """A LightningDataModule over arrays in memory, with K-fold splitting.

    The test set is the official one, or `test_fraction` held out first; it is outside every fold.
    The rest, the development set, is split into `num_folds` folds, of which `fold` validates, or
    without folds by `val_fraction`. Splits depend on `split_seed` alone: never on the global
    seed, the rank or the fold.

    Batches are ``[inputs, targets]`` (predict: ``[inputs, targets, index]``, where `index` is the
    sample's row in the source). Images leave as floats: uint8 is scaled to [0, 1] and, with
    `normalize`, each channel (each column of a table) gets mean 0 and standard deviation 1 over
    the training part of this fold. Both happen once a batch, on the batch's device.

    To add a source, subclass and define `load() -> Source` (and `prepare_data` for a download).

    Args:
        batch_size: Samples a batch (of each rank).
        num_workers: Worker processes a loader. Arrays in memory are usually fastest with 0.
        num_folds: Number of folds K, or None for a single split by `val_fraction`.
        fold: Which fold validates, 0 … K-1.
        val_fraction: Validation share of the development set when `num_folds` is None.
        test_fraction: Share held out as test set where the source has no official one.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples, new in every epoch.
        stratify: Keep the proportions of the classes in every part. None: for classes, yes.
        normalize: Standardise inputs by the training part's mean and standard deviation.
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_range("batch_size", batch_size, 1)
        check_range("num_workers", num_workers, 0)
        check_range("val_fraction", val_fraction, 0, 1, high_open=True)
        check_range("test_fraction", test_fraction, 0, 1, high_open=True)
        _check_fold(num_folds, fold)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_folds = num_folds
        self.fold = fold
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.shuffle_seed = shuffle_seed
        self.stratify = stratify
        self.normalize = normalize
        self.predict_on = "test"
        self.repeat = 0
        self._source: Source | None = None
        self._rows: dict[str, Tensor] = {}
        self._inputs = torch.empty(0)  # those of the source, completed for this fold
        self._affine: tuple[Tensor, Tensor] | None = None

    # What a source defines

    def load(self) -> Source:
        """Returns the arrays. Called once, on every rank, after `prepare_data`."""
        raise NotImplementedError(f"{type(self).__name__} must define load() -> Source.")

    # What the source is

    @property
    def source(self) -> Source:
        """The arrays, loaded and checked at first use."""
        if self._source is None:
            source = self.load()
            if source.complete is None:
                names = source.class_names, source.feature_names
                check_arrays(source.inputs, source.targets, *names)
            if source.test_inputs is not None and source.test_targets is not None:
                check_arrays(
                    source.test_inputs,
                    source.test_targets,
                    source.class_names,
                    source.feature_names,
                    part="test_",
                )
            self._source = source
        return self._source

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes (integers) rather than values."""
        return not self.source.targets.is_floating_point()

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0 … C-1, or None for values."""
        if not self.is_classification:
            return None
        if self.source.class_names is None:
            return [str(i) for i in range(int(self.source.targets.max()) + 1)]
        return self.source.class_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes C, or None for values."""
        names = self.class_names
        return None if names is None else len(names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return tuple(self.source.inputs.shape[1:])

    @property
    def in_features(self) -> int:
        """Number of values in one input, flattened."""
        return int(np.prod(self.input_shape))

    @property
    def out_features(self) -> int:
        """Number of values that a model of this data puts out: classes, or columns of targets."""
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
        if len(self.input_shape) != 3:
            raise AttributeError(
                f"{type(self).__name__} has inputs of shape {self.input_shape}, which are not "
                "images (C, H, W)."
            )
        channels, height, width = self.input_shape
        return channels, height, width

    def arrays(self, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """The raw (inputs, targets, index) of ``"train"``, ``"val"`` or ``"test"``.

        Not normalised and in the order of the source: for looking at samples, not for training.
        """
        self.setup()
        inputs, targets = self._part_arrays(part)
        rows = self._rows[part]
        return inputs[rows], targets[rows], rows

    def raw_inputs(self, part: str) -> Tensor:
        """The whole input array in which the index of a sample of `part` counts; not normalised."""
        self.setup()
        return self._part_arrays(part)[0]

    def train_targets(self) -> Tensor:
        """Targets of the training part of this fold: what class weights may be fitted to."""
        return self.arrays("train")[1]

    # Splits

    def setup(self, stage: str | None = None) -> None:
        if self._rows:
            return
        source = self.source
        targets = source.targets.numpy() if self._stratified() else None
        development, test = np.arange(len(source.inputs)), np.empty(0, dtype=np.int64)
        if source.test_inputs is None:
            development, test = folds.holdout(
                len(development),
                self.test_fraction,
                targets=targets,
                groups=source.groups,
                seed=self.split_seed,
            )
        elif self.test_fraction:
            raise ValueError(
                f"test_fraction={self.test_fraction} is set, but {type(self).__name__} has a test "
                "set of its own; use test_fraction=0."
            )
        else:
            test = np.arange(len(source.test_inputs))
        targets = None if targets is None else targets[development]
        groups = None if source.groups is None else source.groups[development]
        # The test set stays what it is in every repeat.
        size, seed = len(development), self.split_seed + self.repeat
        if self.num_folds is None:
            train, val = folds.holdout(
                size, self.val_fraction, targets=targets, groups=groups, seed=seed
            )
        else:
            train, val = folds.kfold(
                size, self.num_folds, targets=targets, groups=groups, seed=seed
            )[self.fold]
        rows = {"train": development[train], "val": development[val], "test": test}
        self._rows = {part: torch.from_numpy(index) for part, index in rows.items()}
        self._inputs = source.inputs
        if source.complete is not None:
            self._inputs = source.complete(source.inputs, self._rows["train"])
            check_arrays(self._inputs, source.targets, source.class_names, source.feature_names)
        self._affine = self._fit_normalisation()

    def _stratified(self) -> bool:
        if self.stratify and not self.is_classification:
            raise ValueError(
                "stratify=True, but the targets are values and only classes can be stratified; "
                "use stratify=False."
            )
        return self.is_classification if self.stratify is None else self.stratify

    def for_fold(self, fold: int, num_folds: int | None, *, repeat: int = 0) -> Self:
        """A datamodule as new over the same arrays, set to one fold; this one is left as it is.

        Args:
            fold: Which fold validates.
            num_folds: Number of folds, or None for a single split.
            repeat: Another number gives other folds, of the same development set.
        """
        _check_fold(num_folds, fold)
        new = copy.copy(self)
        new.trainer = None
        new.num_folds, new.fold, new.repeat = num_folds, fold, repeat
        new._source = self.source
        new._rows, new._affine = {}, None
        # Lightning has no public way to change hyperparameters of a copy without changing those of
        # the original, whose dictionaries the copy shares.
        hparams = copy.deepcopy(self.hparams)
        for key in hparams.keys() & {"num_folds", "fold"}:
            hparams[key] = getattr(new, key)
        vars(new).update(_hparams=hparams, _hparams_initial=copy.deepcopy(hparams))
        return new

    # Batches

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader | list:
        return self._loader("val") if len(self._rows["val"]) else []

    def test_dataloader(self) -> DataLoader:
        if not len(self._rows["test"]):
            raise ValueError(
                f"{type(self).__name__} has no test set; hold one out with test_fraction=0.2."
            )
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches with the index of every sample, of the part named by `predict_on`.

        That is the test set or, where there is none, the validation part.
        """
        part = self.predict_on
        if part == "test" and not len(self._rows["test"]):
            part = "val"
        return self._loader(part, with_index=True)

    def _part_arrays(self, part: str) -> tuple[Tensor, Tensor]:
        source = self.source
        if part == "test" and source.test_inputs is not None and source.test_targets is not None:
            return source.test_inputs, source.test_targets
        return self._inputs, source.targets

    def _loader(self, part: str, *, with_index: bool = False) -> DataLoader:
        training = part == "train" and not with_index
        dataset = ArrayDataset(*self._part_arrays(part), self._rows[part])
        world_size, rank = 1, 0
        if self.trainer is not None:
            world_size, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = EpochSampler(
            dataset,
            shuffle=training,
            seed=self.shuffle_seed,
            num_replicas=world_size,
            rank=rank,
            avoid_single=self.batch_size if training else None,
        )
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_with_index if with_index else collate,
            pin_memory=torch.cuda.is_available(),
            # A loader's iterator draws a number from this generator instead of the global one:
            # how many loaders ran must not change a model's dropout.
            generator=torch.Generator().manual_seed(self.shuffle_seed),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes floats of the inputs and normalises them, on the batch's device."""
        inputs, *rest = batch
        return [self.transform(inputs), *rest]

    def transform(self, inputs: Tensor) -> Tensor:
        """Raw inputs (N, ...) as the model sees them: floating point, scaled, normalised."""
        if self._affine is None:
            raise RuntimeError("transform() needs the split; call setup() first.")
        scale, shift = (t.to(inputs.device, non_blocking=True) for t in self._affine)
        dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
        return torch.addcmul(shift.to(dtype), inputs.to(dtype), scale.to(dtype))

    def _fit_normalisation(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of ``x * scale + shift``, fitted to the training rows alone."""
        inputs, rows = self._inputs, self._rows["train"]
        unit = 1.0 if inputs.is_floating_point() else 1 / 255
        if not self.normalize:
            return torch.tensor(unit), torch.tensor(0.0)
        # Channels of images, columns of tables; float64 sums, some rows at a time.
        shape = (-1,) + (1,) * (inputs.ndim - 2)
        axes = [0, *range(2, inputs.ndim)]
        count = 0
        total = torch.zeros(inputs.shape[1], dtype=torch.float64)
        for chunk in rows.split(4096):
            x = inputs[chunk].double()
            total += x.sum(axes)
            count += x.numel() // x.shape[1]
        mean = total / count
        square = torch.zeros_like(total)
        for chunk in rows.split(4096):
            square += (inputs[chunk].double() - mean.view(shape)).square().sum(axes)
        std = (square / count).sqrt()
        std[std <= 1e-12 * mean.abs().clamp(min=1)] = 1.0  # a constant column stays finite: 0
        return (1 / std).view(shape).float(), (-mean / std).view(shape).float()


def _check_fold(num_folds: int | None, fold: int) -> None:
    if num_folds is None:
        if fold != 0:
            raise ValueError(f"fold={fold} has no effect without num_folds; set num_folds.")
        return
    if num_folds < 2:
        raise ValueError(f"num_folds={num_folds} is too few; use at least 2, or None for a split.")
    if not 0 <= fold < num_folds:
        raise ValueError(f"fold={fold} is outside 0 … {num_folds - 1} (num_folds={num_folds}).")
