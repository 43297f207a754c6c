"""`SplitDataModule`, the base class of datamodules that can be split."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import Self

from dlblocks._errors import CheckedConstructor, check_choice, check_range, whole
from dlblocks.data._blocks import Plane
from dlblocks.data._fingerprint import first_copies
from dlblocks.data._holdout import selection
from dlblocks.data._kinds import find_target_kind
from dlblocks.data._strata import Indices
from dlblocks.data.dataset import EpochSampler
from dlblocks.data.encoders import Encoder
from dlblocks.data.splitting import (
    Split,
    Splitter,
    check_split,
    counts_folds,
    hold_out_test,
    is_in_time,
    own_repeats,
    split_name,
    splits,
)
from dlblocks.fields import Class, Kind, Labels
from dlblocks.nets.preprocess import Preprocess

DEFAULT_FOLDS = 5
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


class SplitDataModule(CheckedConstructor, pl.LightningDataModule):
    """A datamodule that cross-validation can set to each of its folds.

    `DataModule` is one over arrays, and `FoldedDataModule` one over any data set. Subclasses define
    `columns`, `fingerprint` and the loaders.

    Args:
        split: How to split the development set. Give one of these, or a splitter of scikit-learn,
            such as ``StratifiedGroupKFold(5, shuffle=True, random_state=0)``. A splitter gets
            targets and groups of the development set and determines the number of folds.

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

    batch_size: BatchSize
    predict_on = "test"
    validate_on: str | None = "val"
    predict_index = True
    repeat = 0
    selection_fraction = 0.0  # share of the training part; see `with_selection`
    whole = False  # True to train on the whole development set; see `without_validation`
    development: Indices | None = None  # the rows that are split, if not all; see `subset`
    # The original parts, and the drawn training rows; see `with_train_indices`.
    _drawn: tuple[dict[str, Tensor], Tensor] | None = None
    # Arguments that subclasses pass on by **kwargs; `save_hyperparameters` adds them.
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
        self.split: Split | Splitter = split
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
        self._rows: dict[str, Tensor] = {}
        # The folds of the last split, which the copies of `for_fold` share.
        self._folds: dict[tuple[Any, ...], list[dict[str, Indices]]] = {}

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

    def count_test(self) -> int:
        """Return the number of test samples."""
        return len(self.indices("test"))

    def train_targets(self) -> Tensor:
        """Return the targets of this fold's training part, for class weights."""
        targets = self.columns.targets
        if targets is None:
            raise ValueError("the data set has no targets that can be read; give targets=.")
        return torch.as_tensor(targets)[self.indices("train")]

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

    # Encoder of new samples

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

    # Splits

    def splits(self, num_folds: int | None = None, *, repeat: int = 0) -> list[dict[str, Indices]]:
        """Return the rows of ``"train"``, ``"val"`` and ``"test"`` of every fold.

        After `with_selection` there are also those of ``"selection"``.

        Args:
            num_folds: Number of folds; None as in the constructor.
            repeat: Another number gives other folds of ``split="kfold"``.
        """
        self._check_balanced()
        found = self._splits(num_folds, repeat)
        return [self._with_selection_part(fold, rows) for fold, rows in enumerate(found)]

    def _splits(self, num_folds: int | None, repeat: int) -> list[dict[str, Indices]]:
        names = (
            "split_name", "val_fraction", "test_fraction", "split_seed", "stratify", "margin",
            "num_blocks",
        )  # fmt: skip
        key = (num_folds, repeat, *(getattr(self, name) for name in names))
        if key not in self._folds:
            self._folds.clear()
            self._folds[key] = splits(
                num_folds=num_folds,
                val_fraction=self.val_fraction,
                labels=self.columns.targets,
                folds=self.columns.folds,
                repeat=repeat,
                **self._test_arguments(),
            )
        return self._folds[key]

    def _hold_out_test(self) -> tuple[Indices, Indices]:
        """Return the rows of the development set and of the test set."""
        return hold_out_test(**self._test_arguments())

    def _test_arguments(self) -> dict[str, Any]:
        """Return the arguments of `hold_out_test`, which `splits` has too."""
        columns = self.columns
        return {
            "num_samples": columns.num_samples,
            "split": self.split,
            "test_fraction": self.test_fraction,
            "targets": self._strata(columns.targets),
            "groups": columns.groups,
            "copies": columns.copies,
            "seed": self.split_seed,
            "development": self.development,
            "plane": self._plane,
        }

    @property
    def _plane(self) -> Plane | None:
        """Positions of the samples, if they decide the split."""
        positions = self.columns.positions
        if self.split != "blocks" or positions is None:
            return None
        return Plane(positions, self.margin, self.num_blocks)

    def count_duplicates(self, num_folds: int | None = None, *, repeat: int = 0) -> int | None:
        """Count validation samples with an exact copy in the training part.

        The counts of all folds are added. Such a sample can be predicted from memory, and
        ``groups="duplicates"`` prevents that. Only inputs are compared. Copies may have different
        targets.

        Args:
            num_folds: Number of folds; None as in the constructor.
            repeat: Another number gives other folds, as in `splits`.

        Returns:
            The number, or None if it is not known; see `input_keys`.
        """
        keys = self.input_keys()
        if keys is None:
            return None
        first = first_copies(keys)
        count = 0
        for rows in self.splits(num_folds, repeat=repeat):
            trained = np.zeros(len(first), dtype=bool)
            trained[first[rows["train"]]] = True
            count += int(trained[first[rows["val"]]].sum())
        return count

    def count_folds(self, num_folds: int | None = None) -> int:
        """Return the number of folds of a cross-validation.

        Args:
            num_folds: Number that the user asks for. With None it is that of the data or splitter,
                else the datamodule's own `num_folds`, else 5.

        Raises:
            ValueError: The data or the splitter has another number of folds.
        """
        if counts_folds(self.split):
            return len(self.splits(num_folds))
        return num_folds or self.num_folds or DEFAULT_FOLDS

    def count_repeats(self, repeats: int = 1) -> int:
        """Return the number of repeats of a cross-validation.

        Args:
            repeats: Number that the user asks for.

        Raises:
            ValueError: The folds of all repeats would be the same.
        """
        own = own_repeats(self.split)
        draws = self.split == "kfold" or (self.split == "blocks" and self.num_blocks is not None)
        if repeats not in (1, own) and not draws:
            cure = "num_blocks=, several a fold" if self.split == "blocks" else "split='kfold'"
            raise ValueError(
                f"repeats={repeats}, but split={self.split_name!r} makes the same folds every "
                f"time; use repeats={own}, or {cure}."
            )
        return max(repeats, own)

    @property
    def split_name(self) -> str:
        """The kind of split, or the class and parameters of the splitter."""
        return self.split if isinstance(self.split, str) else self._split_name

    def fold_name(self) -> str | None:
        """Name of the fold that validates, or None if folds are drawn.

        It is the group that is left out, or the value in the column of predefined folds.
        """
        named = {"leave_one_group_out": self.columns.groups, "predefined": self.columns.folds}
        values = named.get(self.split_name)
        rows = self.indices("val")
        return None if values is None or not len(rows) else str(values[int(rows[0])])

    def _strata(self, targets: np.ndarray | None) -> np.ndarray | None:
        if self.stratify is False or not (self.stratify or self.is_classification):
            return None
        if targets is None:
            raise ValueError("stratify=True needs targets, one per sample; give targets=.")
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]
        if targets.ndim > 1:
            raise ValueError(
                f"stratify=True, but targets has shape {targets.shape}, several labels or values "
                "per sample; use stratify=False, or split='predefined' with folds of your own."
            )
        return targets

    def _check_balanced(self) -> None:
        """Raise a `ValueError` if there are no classes to draw equally often."""
        if not self.balanced_sampling or self.is_classification:
            return
        found, cure = "are values", "leave balanced_sampling out"
        if self.columns.targets is None:
            found, cure = "cannot be read", "give targets=, one class per sample"
        elif self.is_multilabel:
            found = "are several labels per sample"
            cure = "use class_weights='balanced' of the model instead"
        raise ValueError(
            f"balanced_sampling=True needs one class per sample, but the targets of "
            f"{type(self).__name__} {found}; {cure}."
        )

    def _split_rows(self) -> dict[str, Tensor]:
        self._check_balanced()
        if self._drawn is not None:
            parts, drawn = self._drawn
            out = parts["train"][~torch.isin(parts["train"], drawn)]
            return {**parts, "train": drawn, "oob": out}
        if self.whole:
            rest, test = self._hold_out_test()
            rows = {"train": rest, "val": rest[:0], "test": test}
        else:
            found = self._splits(self.num_folds, self.repeat)
            check_range("fold", self.fold, 0, len(found) - 1)
            rows = self._with_selection_part(self.fold, found[self.fold])
        return {part: torch.from_numpy(row) for part, row in rows.items()}

    def _with_selection_part(self, fold: int, rows: dict[str, Indices]) -> dict[str, Indices]:
        if not self.selection_fraction:
            return rows
        columns, train = self.columns, rows["train"]
        # Only "kfold" is stratified. But no split may lose a class.
        strata = self._strata(columns.targets) if self.split == "kfold" else None
        targets = columns.targets if strata is None and self.is_classification else strata
        plane = self._plane
        try:
            training, selected_on = selection(
                len(train),
                self.selection_fraction,
                targets=None if targets is None else targets[train],
                stratify=strata is not None,
                groups=None if columns.groups is None else columns.groups[train],
                copies=columns.copies,
                in_order=is_in_time(self.split),
                plane=None if plane is None else plane[train],
                seed=self.split_seed,
            )
        except ValueError as error:
            raise ValueError(
                f"fold {fold} with selection_fraction={self.selection_fraction}: "
                f"{str(error).rstrip('.')}. Use select='last', which needs no selection part."
            ) from error
        return {**rows, "train": train[training], "selection": train[selected_on]}

    def rows_of(self, part: str | None) -> Tensor:
        """Return the rows of a part after `setup`, int64 of shape (M,).

        The part None has no rows.
        """
        if not self._rows:
            raise RuntimeError(
                f"{type(self).__name__} has no loaders before setup; call setup('fit') first."
            )
        return self._rows["train"][:0] if part is None else self._rows[part]

    @property
    def parts(self) -> list[str]:
        """Names of the parts that the data are split into."""
        self.setup("fit")
        return list(self._rows)

    def indices(self, part: str) -> Tensor:
        """Return the rows of ``"train"``, ``"val"`` or ``"test"``, int64 of shape (M,).

        After `with_selection` there is also ``"selection"``, and after `with_train_indices`
        ``"oob"``.
        """
        self.setup("fit")
        return self._rows[part]

    def weights_of(self, part: str) -> Tensor | None:
        """Return the weights of a part's samples, in the order of `indices`.

        None means equal weights.
        """
        return None

    def _loader(self, part: str, *, training: bool = False) -> DataLoader[Any]:
        raise NotImplementedError(f"{type(self).__name__} must define its loaders.")

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        part = self.validate_on
        return self._loader(part) if part and len(self.rows_of(part)) else []

    def predicted_part(self) -> str:
        """Return the part that is predicted.

        It is the one named by `predict_on`. Without test rows, ``"test"`` means ``"val"``.
        """
        is_missing = self.predict_on == "test" and not len(self.rows_of("test"))
        return "val" if is_missing else self.predict_on

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
        folds and consists of whole groups. With ``split="time_series"`` it is the last rows, and
        with ``split="blocks"`` a block with its margin. This datamodule stays as it is.

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
