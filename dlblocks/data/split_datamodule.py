"""`SplitDataModule`: a datamodule whose development set is split into training and validation."""

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
from dlblocks.data._fingerprint import first_copies
from dlblocks.data._kinds import find_target_kind
from dlblocks.data.dataset import EpochSampler
from dlblocks.data.encoders import Encoder
from dlblocks.data.splitting import (
    Indices,
    Split,
    Splitter,
    check_split,
    counts_folds,
    hold_out_test,
    is_in_time,
    own_repeats,
    selection,
    split_name,
    splits,
)
from dlblocks.fields import Class, Kind, Labels
from dlblocks.nets.preprocess import Preprocess

DEFAULT_FOLDS = 5
MAX_CLASSES = 100_000  # larger labels are numbers of something else
BatchSize = int | Literal["full"]


@dataclass
class SplitMetadata:
    """What a data set is split by, one value a sample.

    Attributes:
        num_samples: Number of samples N.
        targets: Classes, integers of shape (N,); values, floating point; or None if not known.
        groups: Group of each sample, shape (N,).
        folds: Predefined fold of each sample, shape (N,).
        copies: Whether `groups` are copies of one sample each, as ``groups="duplicates"`` makes
            them.
    """

    num_samples: int
    targets: np.ndarray | None
    groups: np.ndarray | None
    folds: np.ndarray | None
    copies: bool = False


class SplitDataModule(CheckedConstructor, pl.LightningDataModule):
    """What cross-validation needs of a datamodule: that it can be set to each of its folds.

    `DataModule` is one over arrays, `FoldedDataModule` over anybody's data set. Subclasses define
    `columns`, `fingerprint` and the loaders.

    Args:
        split: How the development set is split: ``"kfold"``, stratified and by groups as
            `stratify` and the data say; ``"time_series"``, training always before validation, in
            the order of the samples; ``"leave_one_group_out"``, a fold for each group; or
            ``"predefined"``, a fold for each value of a column of folds. Or a splitter of
            scikit-learn, such as ``StratifiedGroupKFold(5, shuffle=True, random_state=0)``, which
            gets targets and groups of the development set and says the number of folds.
        num_folds: Number of folds K. None: a single split by `val_fraction`, or, for the last two
            kinds of `split`, what the data says.
        fold: Which fold validates, 0 … K-1.
        val_fraction: Validation share of the development set without folds.
        test_fraction: Share held out first, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples, new in every epoch.
        stratify: Keep the proportions of the classes in every part, or of ten quantile bins of
            values. None: for classes, yes.
        groups: ``"duplicates"`` keeps samples of exactly equal inputs together: none has a copy in
            another part or fold. It takes the place of groups that the source may have.
        balanced_sampling: Draw all classes equally often in training. An epoch still has N samples,
            those of the training part: N / C of each of the C classes in it, rounded down or up.
            Samples of small classes repeat, those of large ones take turns at random; within a
            class, each is drawn equally often or once more (random over- and under-sampling;
            Japkowicz and Stephen 2002). The draw depends on `shuffle_seed` and the epoch alone. It
            replaces ``class_weights="balanced"``, which would correct a second time. Repeats in an
            epoch get the same `train_transform`; `dlblocks.callbacks.Augment` changes each.

    Attributes:
        predict_on: The part that `predict_dataloader` loads, in the order of `indices`.
        validate_on: The part that `val_dataloader` loads: ``"val"``, ``"selection"`` during a fit
            of `with_selection`, or None for no validation.
        predict_index: Whether its batches end with the index of every sample, where they can.
        batch_size: Samples a batch (of each rank); ``"full"`` for all of a part.
    """

    batch_size: BatchSize
    predict_on = "test"
    validate_on: str | None = "val"
    predict_index = True
    repeat = 0
    selection_fraction = 0.0  # share of the training part; see `with_selection`
    whole = False  # whether all that is not held out trains; see `without_validation`
    development: Indices | None = None  # the rows that are split, if not all; see `subset`
    # The parts before, and the rows that train instead; see `with_train_indices`.
    _drawn: tuple[dict[str, Tensor], Tensor] | None = None
    # Arguments that subclasses take by **kwargs; `save_hyperparameters` adds them.
    _shared: tuple[str, ...] = (
        "num_folds", "fold", "val_fraction", "test_fraction", "split_seed", "shuffle_seed",
        "stratify", "balanced_sampling",
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
    ) -> None:
        super().__init__()
        check_split(split)
        check_range("val_fraction", val_fraction, 0, 1, high_open=True)
        check_range("test_fraction", test_fraction, 0, 1, high_open=True)
        _check_fold(num_folds, fold, counted=counts_folds(split))
        if stratify and split != "kfold":
            raise ValueError(f"stratify=True has no effect with split={split_name(split)}.")
        self.split: Split | Splitter = split
        self._split_name = split_name(split)  # once: it may hold the fold of each sample
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
        self._rows: dict[str, Tensor] = {}
        # The folds that were made last: the copies that `for_fold` makes share them.
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
        objects = ["split", "train_transform"]  # a checkpoint holds plain values alone
        super().save_hyperparameters(*args, ignore=[*ignored, *objects], frame=frame, logger=logger)
        shared = {name: getattr(self, name) for name in self._shared}
        shared["split"] = self._split_name
        shared["groups"] = "duplicates" if self._keep_duplicates else None
        known = {*ignored, *self.hparams}
        self._set_hyperparameters({k: v for k, v in shared.items() if k not in known})

    def _set_hyperparameters(self, values: dict[str, Any]) -> None:
        """Set hyperparameters.

        Lightning's own way compares arrays that the constructor was given.
        """
        self.hparams.update(values)
        vars(self).update(_hparams_initial=copy.deepcopy(self.hparams))

    # What a subclass defines

    @property
    def columns(self) -> SplitMetadata:
        """What the data set is split by."""
        raise NotImplementedError(f"{type(self).__name__} must define columns.")

    def fingerprint(self) -> str:
        """A hash of the data, by which a later run knows whether it has the same."""
        raise NotImplementedError(f"{type(self).__name__} must define fingerprint().")

    def input_keys(self) -> np.ndarray | None:
        """Return a number for each sample, the same for equal inputs.

        int64 of shape (N,), or None if it is not known whether inputs are equal, or the data are
        larger than 4 GiB.
        """
        return None

    def shared_with_test(self) -> int | None:
        """Count the test samples that are in the development set; None if it is not known.

        0 where the test set was held out of one set of samples, by `test_fraction`.
        """
        return 0

    def description(self) -> str:
        """Return a text to show before a training. It may be empty."""
        return ""

    def notes(self) -> list[str]:
        """Sentences on the data that a result should say."""
        return []

    def count_test(self) -> int:
        """The number of test samples."""
        return len(self.indices("test"))

    def train_targets(self) -> Tensor:
        """Targets of the training part of this fold: what class weights may be fitted to."""
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
        """Whether the targets are classes (integers) rather than values."""
        return isinstance(self._target_kind, Class)

    @property
    def is_multilabel(self) -> bool:
        """Whether each sample has several labels, integers of shape (N, C)."""
        return isinstance(self._target_kind, Labels)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes 0 … C-1, or None for values.

        None also for labels that are negative, or 100,000 and more.
        """
        targets = self.columns.targets
        if targets is not None and self.is_multilabel:
            return [str(i) for i in range(targets.shape[1])]
        if targets is None or not self.is_classification:
            return None
        if targets.min() < 0 or targets.max() >= MAX_CLASSES:
            return None
        return [str(i) for i in range(int(targets.max()) + 1)]

    # What the model is told

    @property
    def encoder(self) -> Encoder:
        """What makes inputs of new samples; a fit leaves its plain values on the model."""
        size = None if self.batch_size == "full" else self.batch_size
        return Encoder(self.class_names, size)

    def _describe_to_model(self) -> None:
        """Leave the encoder on the Trainer's model, if that is one of ours."""
        model: Any = getattr(self.trainer, "lightning_module", None)
        if hasattr(model, "data_spec"):
            model.data_spec = self.encoder.to_plain()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of somebody else's module needs to predict new samples.

        Ours have it themselves.
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
        """The rows of ``"train"``, ``"val"`` and ``"test"`` of every fold.

        After `with_selection` also those of ``"selection"``.

        Args:
            num_folds: Number of folds; None as in the constructor.
            repeat: Another number gives other folds of ``split="kfold"``.
        """
        self._check_balanced()
        found = self._splits(num_folds, repeat)
        return [self._with_selection_part(fold, rows) for fold, rows in enumerate(found)]

    def _splits(self, num_folds: int | None, repeat: int) -> list[dict[str, Indices]]:
        names = ("split_name", "val_fraction", "test_fraction", "split_seed", "stratify")
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

    def _test_arguments(self) -> dict[str, Any]:
        """What decides which rows are held out and which are the development set."""
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
        }

    def count_duplicates(self, num_folds: int | None = None, *, repeat: int = 0) -> int | None:
        """Count validation samples with an exact copy in the training part.

        The counts of all folds are added. Such a sample can be predicted by heart;
        ``groups="duplicates"`` keeps its copies together. Only inputs are compared: copies may
        have different targets.

        Args:
            num_folds: Number of folds; None as in the constructor.
            repeat: Another number for other folds, as in `splits`.

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
        """The number of folds of a cross-validation that is asked for `num_folds`.

        None means what the data says, or the datamodule's own `num_folds`, or 5.

        Raises:
            ValueError: The data says another number.
        """
        if counts_folds(self.split):
            return len(self.splits(num_folds))
        return num_folds or self.num_folds or DEFAULT_FOLDS

    def count_repeats(self, repeats: int = 1) -> int:
        """The number of repeats of a cross-validation that is asked for `repeats`.

        Raises:
            ValueError: The folds of every repeat would be the same.
        """
        own = own_repeats(self.split)
        if repeats not in (1, own) and self.split != "kfold":
            raise ValueError(
                f"repeats={repeats}, but split={self.split_name!r} makes the same folds every "
                f"time; use repeats={own}, or split='kfold'."
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
            raise ValueError("stratify=True needs targets, one a sample; give targets=.")
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]
        if targets.ndim > 1:
            raise ValueError(
                f"stratify=True, but targets has shape {targets.shape}: several labels or values a "
                "sample; use stratify=False, or split='predefined' with folds of your own."
            )
        return targets

    def _check_balanced(self) -> None:
        """Raise a `ValueError` if there are no classes to draw equally often."""
        if not self.balanced_sampling or self.is_classification:
            return
        found, cure = "are values", "leave balanced_sampling out"
        if self.columns.targets is None:
            found, cure = "cannot be read", "give targets=, one class a sample"
        elif self.is_multilabel:
            found = "are several labels a sample"
            cure = "use class_weights='balanced' of the model instead"
        raise ValueError(
            f"balanced_sampling=True needs one class a sample, but the targets of "
            f"{type(self).__name__} {found}; {cure}."
        )

    def _split_rows(self) -> dict[str, Tensor]:
        self._check_balanced()
        if self._drawn is not None:
            parts, drawn = self._drawn
            out = parts["train"][~torch.isin(parts["train"], drawn)]
            return {**parts, "train": drawn, "oob": out}
        if self.whole:
            rest, test = hold_out_test(**self._test_arguments())
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
        # Only "kfold" is stratified; of the others no class may be lost all the same.
        strata = self._strata(columns.targets) if self.split == "kfold" else None
        targets = columns.targets if strata is None and self.is_classification else strata
        try:
            training, selected_on = selection(
                len(train),
                self.selection_fraction,
                targets=None if targets is None else targets[train],
                stratify=strata is not None,
                groups=None if columns.groups is None else columns.groups[train],
                copies=columns.copies,
                in_order=is_in_time(self.split),
                seed=self.split_seed,
            )
        except ValueError as error:
            raise ValueError(
                f"fold {fold} with selection_fraction={self.selection_fraction}: "
                f"{str(error).rstrip('.')}. Use select='last', which needs no such part."
            ) from error
        return {**rows, "train": train[training], "selection": train[selected_on]}

    def rows_of(self, part: str | None) -> Tensor:
        """The rows of a part after `setup`, int64 of shape (M,).

        There are none of the part None.
        """
        if not self._rows:
            raise RuntimeError(
                f"{type(self).__name__} has no loaders before it is split; call setup('fit') first."
            )
        return self._rows["train"][:0] if part is None else self._rows[part]

    @property
    def parts(self) -> list[str]:
        """Names of the parts that the data are split into."""
        self.setup("fit")
        return list(self._rows)

    def indices(self, part: str) -> Tensor:
        """Rows that are ``"train"``, ``"val"`` or ``"test"``, int64 of shape (M,).

        After `with_selection` there is ``"selection"``, after `with_train_indices` ``"oob"``.
        """
        self.setup("fit")
        return self._rows[part]

    def weights_of(self, part: str) -> Tensor | None:
        """How much each sample of a part counts, in the order of `indices`; None: all the same."""
        return None

    def _loader(self, part: str, *, training: bool = False) -> DataLoader:
        raise NotImplementedError(f"{type(self).__name__} must define its loaders.")

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader | list:
        part = self.validate_on
        return self._loader(part) if part and len(self.rows_of(part)) else []

    def predicted_part(self) -> str:
        """Return the part that is predicted.

        It is the one named by `predict_on`. Without test rows, ``"test"`` stands for ``"val"``.
        """
        is_missing = self.predict_on == "test" and not len(self.rows_of("test"))
        return "val" if is_missing else self.predict_on

    def _sampler(
        self,
        dataset: Dataset,
        *,
        training: bool,
        kind: type[EpochSampler] = EpochSampler,
        **kwargs: Any,
    ) -> EpochSampler:
        """Make the sampler of one part, for this rank and epoch."""
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
        # Lightning tells the epoch later; workers of a run that is resumed have begun by then.
        sampler.set_epoch(0 if trainer is None else trainer.current_epoch)
        return sampler

    def _generator(self) -> torch.Generator:
        """Make the generator from which a loader's iterator draws a number.

        It would draw from the global one otherwise, so that the number of loaders would change a
        model's dropout.
        """
        return torch.Generator().manual_seed(self.shuffle_seed)

    def for_fold(self, fold: int, num_folds: int | None, *, repeat: int = 0) -> Self:
        """A datamodule as new over the same data, set to one fold; this one is left as it is.

        Args:
            fold: Which fold validates.
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
        vars(new).update(_hparams=copy.deepcopy(self.hparams))  # which the copy shares
        names = self.hparams.keys() & {"num_folds", "fold"}
        new._set_hyperparameters({name: getattr(new, name) for name in names})
        return new

    def with_selection(self, fraction: float) -> Self:
        """Return a new datamodule that selects the epoch on a share of its training part.

        The share is the part ``"selection"``, disjoint from ``"train"``, ``"val"`` and ``"test"``;
        nothing that is fitted to the training part sees it. `val_dataloader` loads it as long as
        `validate_on` is ``"selection"``: early stopping and the best epoch look at it. With
        ``validate_on = "val"`` the fold is scored. The share is stratified like the folds and holds
        whole groups; with ``split="time_series"`` it is the last rows. This datamodule stays as it
        is.

        Args:
            fraction: Share of the training part, in (0, 1).

        Raises:
            ValueError: At the first use of the data: too few samples, of a class or groups.

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
        """A datamodule as new whose training part is all that is not held out for the test.

        It has no validation part. This one is left as it is.
        """
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.whole = True
        return new

    def subset(self, rows: npt.ArrayLike) -> Self:
        """A datamodule as new whose development set is some rows alone, which are then split.

        All else stays: samples keep their numbers, the test set is the same, and so are the kind of
        split, groups and stratification, of these rows. The inner folds of a nested
        cross-validation are made so: ``data.subset(data.splits(5)[0]["train"])``. This one is
        left as it is.

        Args:
            rows: Numbers of samples of the development set, in any order, int of shape (M,).

        Raises:
            ValueError: There are no rows, one is there twice, or not in the development set.
        """
        mine, _ = hold_out_test(**self._test_arguments())
        given = _row_numbers(rows, mine, f"development set of {len(mine)} samples")
        kept, counts = np.unique(given, return_counts=True)
        if counts.max() > 1:
            raise ValueError(f"rows has {kept[counts.argmax()]} {counts.max()} times.")
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.development, new._folds = kept, {}
        return new

    def with_train_indices(self, rows: npt.ArrayLike, *, shuffle_seed: int | None = None) -> Self:
        """A datamodule as new that trains on rows drawn from its training part, perhaps repeatedly.

        A row that is given twice is seen twice an epoch, and counts twice in what is fitted to the
        training part, such as the normalisation. Those that are not drawn are the part ``"oob"``,
        out of the bag; validation and test part stay. Members of a bagging ensemble are trained on
        such. This one is left as it is; `for_fold` and what uses it know nothing of the draw.

        Args:
            rows: Numbers of samples of the training part, in any order, int of shape (M,).
            shuffle_seed: Another seed of the order of the training samples.

        Raises:
            ValueError: There are no rows, or one is not in the training part.
        """
        new = self.for_fold(self.fold, self.num_folds, repeat=self.repeat)
        new.whole = self.whole
        # Splitting takes longer than all else here, and an ensemble has many members.
        known = self._rows and self._drawn is None
        parts = dict(self._rows) if known else new._split_rows()
        drawn = _row_numbers(rows, parts["train"].numpy(), "training part")
        new._drawn = parts, torch.from_numpy(drawn)
        if shuffle_seed is not None:
            new._reseed(shuffle_seed)
        return new

    def _reseed(self, shuffle_seed: int) -> None:
        """Sets the seed of the order, of a copy that `for_fold` has made."""
        self.shuffle_seed = shuffle_seed
        if "shuffle_seed" in self.hparams:
            self._set_hyperparameters({"shuffle_seed": shuffle_seed})


def _check_fold(num_folds: int | None, fold: int, *, counted: bool = False) -> None:
    """Raise a `ValueError` unless there is such a fold.

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
    """Return numbers of samples that are all `known`."""
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
