"""Find the samples of each part of every fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import check_range
from dlblocks.data._blocks import Plane
from dlblocks.data._described_data import DescribedData
from dlblocks.data._fingerprint import first_copies
from dlblocks.data._holdout import selection
from dlblocks.data._strata import Indices
from dlblocks.data.splitting import (
    Split,
    Splitter,
    check_order,
    counts_folds,
    gap_of,
    hold_out_test,
    is_in_time,
    own_repeats,
    splits,
)

DEFAULT_FOLDS = 5


class FoldRows(DescribedData):
    """Base class that splits the samples by the arguments of `SplitDataModule`."""

    split: Split | Splitter
    num_folds: int | None
    fold: int
    val_fraction: float
    test_fraction: float
    split_seed: int
    stratify: bool | None
    balanced_sampling: bool
    margin: float
    num_blocks: int | None
    predict_on = "test"
    repeat = 0
    selection_fraction = 0.0  # share of the training part; see `with_selection`
    whole = False  # True to train on the whole development set; see `without_validation`
    development: Indices | None = None  # the rows that are split, if not all; see `subset`
    # The original parts, and the drawn training rows; see `with_train_indices`.
    _drawn: tuple[dict[str, Tensor], Tensor] | None = None
    # The folds of the last split, which the copies of `for_fold` share.
    _folds: dict[tuple[Any, ...], list[dict[str, Indices]]]

    # All folds

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
        if self.test_fraction or self.selection_fraction:
            check_order(self.split, self._folds[key])
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

    def strata(self) -> np.ndarray | None:
        """Return the targets that folds are stratified by, or None.

        Only those of ``split="kfold"`` are.
        """
        return self._strata(self.columns.targets) if self.split == "kfold" else None

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

    def _with_selection_part(self, fold: int, rows: dict[str, Indices]) -> dict[str, Indices]:
        if not self.selection_fraction:
            return rows
        columns, train = self.columns, rows["train"]
        strata = self.strata()  # but no split may lose a class
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
                gap=gap_of(self.split),
                plane=None if plane is None else plane[train],
                seed=self.split_seed,
            )
        except ValueError as error:
            raise ValueError(
                f"fold {fold} with selection_fraction={self.selection_fraction}: "
                f"{str(error).rstrip('.')}. Use select='last', which needs no selection part."
            ) from error
        return {**rows, "train": train[training], "selection": train[selected_on]}

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

    # Parts of this fold

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

    def predicted_part(self) -> str:
        """Return the part that is predicted.

        It is the one named by `predict_on`. Without test rows, ``"test"`` means ``"val"``.
        """
        is_missing = self.predict_on == "test" and not len(self.rows_of("test"))
        return "val" if is_missing else self.predict_on

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
