"""`SplitDataModule`, the base class of datamodules that can be split."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from dlblocks._errors import check_choice, check_range, whole
from dlblocks.data._fold_rows import FoldRows
from dlblocks.data._strata import Indices
from dlblocks.data.dataset import EpochSampler
from dlblocks.data.splitting import Split, Splitter, check_split, counts_folds, split_name


class SplitDataModule(FoldRows):
    """A datamodule that cross-validation can set to each of its folds.

    `DataModule` is one over arrays, and `FoldedDataModule` one over any data set. Subclasses define
    `columns`, `fingerprint` and the loaders.

    Args:
        split: How to split the development set. Give one of these, or a splitter of scikit-learn,
            such as ``StratifiedGroupKFold(5, shuffle=True, random_state=0)``. A splitter gets
            targets and groups of the development set and determines the number of folds. The test
            and selection part of ``TimeSeriesSplit(gap=…)`` are the last samples, with its gap.

            - ``"kfold"``: folds that are stratified by `stratify` and keep groups whole.
            - ``"time_series"``: training always before validation, in the order of the samples.
            - ``"leave_one_group_out"``: a fold for each group.
            - ``"predefined"``: a fold for each value of a column of folds.
            - ``"blocks"``: compact blocks of the plane, for tiles of large images (Roberts et al.
              2017). Training samples nearer than `margin` to a validation or test sample are in no
              part, and neither are those near to the selection part. Every sample is still
              validated once.
        num_folds: Number of folds K. With None, the last two kinds of `split` use the number in
            the data, and the others a single split by `val_fraction`.
        fold: The fold that validates, 0 … K-1.
        val_fraction: Validation share of the development set without folds.
        test_fraction: Share held out first, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples, which is new in every epoch.
        stratify: Keep the proportions of the classes in every part, or of ten quantile bins of
            values. By default only classes are stratified.
        groups: ``"duplicates"`` keeps samples with exactly equal inputs together, so that none has
            a copy in another part or fold. It replaces groups of the source.
        balanced_sampling: Draw all classes equally often in training. An epoch still has N samples,
            where N is the size of the training part: N / C of each of its C classes, rounded down
            or up. Samples of small classes repeat, and those of large ones are left out at random.
            Within a class, no sample is drawn more than once more than another (random over- and
            under-sampling; Japkowicz and Stephen 2002). The draw depends only on `shuffle_seed` and
            the epoch. Do not combine it with ``class_weights="balanced"``, which would correct a
            second time. Repeats in an epoch get the same `train_transform`, but
            `dlblocks.callbacks.Augment` changes each differently.

    Attributes:
        predict_on: The part that `predict_dataloader` loads, in the order of `indices`.
        validate_on: The part that `val_dataloader` loads: ``"val"``, ``"selection"`` during a fit
            of `with_selection`, or None for no validation.
        predict_index: Whether batches for prediction end with the index of every sample, if the
            datamodule supports it.
        batch_size: Samples per batch (of each rank), or ``"full"`` for all of a part.
    """

    validate_on: str | None = "val"
    predict_index = True
    _shared: tuple[str, ...] = (
        "num_folds", "fold", "val_fraction", "test_fraction", "split_seed", "shuffle_seed",
        "stratify", "balanced_sampling", "margin", "num_blocks",
    )  # fmt: skip

    def __init__(
        self,
        *,
        split: Split | Splitter = "kfold",
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        groups: Literal["duplicates"] | None = None,
        balanced_sampling: bool = False,
        margin: float = 1,
        num_blocks: int | None = None,
    ) -> None:
        super().__init__()
        check_split(split)
        check_range("margin", margin, 0)
        if num_blocks is not None:
            check_range("num_blocks", num_blocks, 2)
        if split != "blocks" and (margin != 1 or num_blocks is not None):
            raise ValueError(
                f"margin={margin} and num_blocks={num_blocks} have no effect with "
                f"split={split_name(split)}; use split='blocks'."
            )
        check_range("val_fraction", val_fraction, 0, 1, high_open=True)
        check_range("test_fraction", test_fraction, 0, 1, high_open=True)
        _check_fold(num_folds, fold, counted=counts_folds(split))
        if stratify and split != "kfold":
            raise ValueError(f"stratify=True has no effect with split={split_name(split)}.")
        self.split = split
        self._split_name = split_name(split)  # computed once: it may list each sample's fold
        self.num_folds = whole(num_folds)
        self.fold = whole(fold)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = whole(split_seed)
        self.shuffle_seed = whole(shuffle_seed)
        self.stratify = stratify
        if groups is not None:
            check_choice("groups", groups, ["duplicates"])
        self._keep_duplicates = groups is not None
        self.balanced_sampling = balanced_sampling
        self.margin, self.num_blocks = margin, whole(num_blocks)
        self._rows, self._folds = {}, {}

    # Loaders

    def _loader(self, part: str, *, training: bool = False) -> DataLoader[Any]:
        raise NotImplementedError(f"{type(self).__name__} must define its loaders.")

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        part = self.validate_on
        return self._loader(part) if part and len(self.rows_of(part)) else []

    def _sampler(
        self,
        dataset: Dataset[Any],
        *,
        training: bool,
        kind: type[EpochSampler] = EpochSampler,
        **kwargs: Any,
    ) -> EpochSampler:
        """Create the sampler of one part, for this rank and epoch."""
        trainer = self.trainer
        if training and self.balanced_sampling:
            kwargs["classes"] = self.train_targets()
        sampler = kind(
            dataset,
            shuffle=training,
            seed=self.shuffle_seed,
            num_replicas=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            **kwargs,
        )
        # Lightning sets the epoch later, when workers of a resumed run have begun already.
        sampler.set_epoch(0 if trainer is None else trainer.current_epoch)
        return sampler

    def _generator(self) -> torch.Generator:
        """Create the generator from which a loader's iterator draws its seed.

        Otherwise it would draw from the global one, and the number of loaders would change a
        model's dropout.
        """
        return torch.Generator().manual_seed(self.shuffle_seed)

    # Copies of the datamodule, which share its data

    def for_fold(self, fold: int, num_folds: int | None, *, repeat: int = 0) -> Self:
        """Return a new datamodule over the same data, set to one fold.

        This datamodule stays as it is.

        Args:
            fold: The fold that validates.
            num_folds: Number of folds, or None as in the constructor.
            repeat: Another number gives other folds, of the same development set.
        """
        _check_fold(num_folds, fold, counted=counts_folds(self.split))
        new = copy.copy(self)
        new.trainer = None
        new.num_folds, new.fold, new.repeat = num_folds, fold, repeat
        new._rows = {}
        new.whole = False
        new._drawn = None
        new.selection_fraction, new.validate_on = 0.0, "val"
        vars(new).update(_hparams=copy.deepcopy(self.hparams))  # the copy shares them
        names = self.hparams.keys() & {"num_folds", "fold"}
        new._set_hyperparameters({name: getattr(new, name) for name in names})
        return new

    def with_selection(self, fraction: float) -> Self:
        """Return a new datamodule with a selection part, which chooses the epoch.

        The part ``"selection"`` is a share of the training part, disjoint from the new ``"train"``,
        ``"val"`` and ``"test"``.
        Statistics of the training part, such as those of the normalisation, do not use it. While
        `validate_on` is ``"selection"``, `val_dataloader` loads it for early stopping and the best
        epoch. With ``validate_on = "val"`` the fold is scored. The share is stratified like the
        folds and consists of whole groups. In the order of time it is the last rows, after the
        splitter's `gap`, and with ``split="blocks"`` a block with its margin. This datamodule stays
        as it is.

        Args:
            fraction: Share of the training part, in (0, 1).

        Raises:
            ValueError: There are too few samples, groups, or samples of a class. It is raised at
                the first use of the data.

        Example:
            >>> from dlblocks.data import TabularDataModule
            >>> data = TabularDataModule("iris").for_fold(0, 5).with_selection(0.15)
            >>> {part: len(data.indices(part)) for part in ("train", "selection", "val", "test")}
            {'train': 82, 'selection': 14, 'val': 24, 'test': 30}
        """
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.selection_fraction, new.validate_on = fraction, "selection"
        return new

    def without_validation(self) -> Self:
        """Return a new datamodule that trains on the whole development set.

        It has no validation part. This datamodule stays as it is.
        """
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.whole = True
        return new

    def subset(self, rows: npt.ArrayLike) -> Self:
        """Return a new datamodule whose development set is only some rows.

        Everything else stays: samples keep their numbers, and the test set, kind of split, groups
        and stratification are the same. A nested cross-validation creates its inner folds in this
        way: ``data.subset(data.splits(5)[0]["train"])``. This datamodule stays as it is.

        Args:
            rows: Numbers of samples of the development set, in any order, int of shape (M,).

        Raises:
            ValueError: There are no rows, a row is given twice, or is not in the development set.
        """
        mine, _ = self._hold_out_test()
        given = _row_numbers(rows, mine, f"development set of {len(mine)} samples")
        kept, counts = np.unique(given, return_counts=True)
        if counts.max() > 1:
            raise ValueError(f"rows has {kept[counts.argmax()]} {counts.max()} times.")
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.development, new._folds = kept, {}
        return new

    def with_train_indices(self, rows: npt.ArrayLike, *, shuffle_seed: int | None = None) -> Self:
        """Return a new datamodule that trains on drawn training rows.

        A row that is given twice is seen twice per epoch, and counts twice in statistics of the
        training part, such as those of the normalisation. Rows that are not drawn are the part
        ``"oob"`` (out of the bag). Validation and test part stay the same. Members of a bagging
        ensemble are trained in this way. This datamodule stays as it is. `for_fold`, and methods
        that use it, ignore the draw.

        Args:
            rows: Numbers of samples of the training part, in any order, int of shape (M,).
            shuffle_seed: Another seed of the order of the training samples.

        Raises:
            ValueError: There are no rows, or one is not in the training part.
        """
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.whole = self.whole
        # Splitting takes most of the time here, and an ensemble has many members.
        known = self._rows and self._drawn is None
        parts = dict(self._rows) if known else new._split_rows()
        drawn = _row_numbers(rows, parts["train"].numpy(), "training part")
        new._drawn = parts, torch.from_numpy(drawn)
        if shuffle_seed is not None:
            new._reseed(shuffle_seed)
        return new

    def _reseed(self, shuffle_seed: int) -> None:
        """Set the seed of the order, in a copy of `for_fold`."""
        self.shuffle_seed = shuffle_seed
        if "shuffle_seed" in self.hparams:
            self._set_hyperparameters({"shuffle_seed": shuffle_seed})


def _check_fold(num_folds: int | None, fold: int, *, counted: bool = False) -> None:
    """Raise a `ValueError` if the fold does not exist.

    With `counted` the number of folds comes from the data or a splitter.
    """
    if num_folds is not None:
        check_range("num_folds", num_folds, 2)
        check_range("fold", fold, 0, num_folds - 1)
    elif counted:
        check_range("fold", fold, 0)
    elif fold != 0:
        raise ValueError(f"fold={fold} has no effect without num_folds; set num_folds.")


def _row_numbers(rows: npt.ArrayLike, known: Indices, where: str) -> Indices:
    """Return the numbers of samples, all of which must be `known`."""
    given = np.asarray(rows)
    if given.ndim != 1 or not len(given) or given.dtype.kind not in "iu":
        raise ValueError(
            f"rows has shape {given.shape} and dtype {given.dtype}; expected integers (M,)."
        )
    outside = given[~np.isin(given, known)]
    if len(outside):
        raise ValueError(
            f"row {outside[0]} is not in the {where} ({len(outside)} such rows in all)."
        )
    return given.astype(np.int64)
