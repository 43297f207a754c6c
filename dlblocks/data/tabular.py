"""Tables: those that come with scikit-learn, and the user's CSV files."""

from __future__ import annotations

import csv as csv_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dlblocks.data.base import BatchSize, DataModule, Source
from dlblocks.data.splits import Split
from dlblocks.errors import check_choice, did_you_mean

DATASETS = ("iris", "wine", "breast_cancer", "diabetes")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
# Integers with at most so many different values are taken for classes.
MAX_INTEGER_CLASSES = 20


class TabularDataModule(DataModule):
    """A table as features (N, F) and classes or values.

    Either a data set of scikit-learn (``"iris"``, ``"wine"``, ``"breast_cancer"``: classes;
    ``"diabetes"``: values) or a CSV file with a header. A column whose cells are all numbers is one
    feature. Any other holds categories and becomes one 0/1 feature for each of them; the list of
    categories is that of the whole file, so that every fold has the same features.

    Missing cells (empty, NA, NaN, null, None, ?) are refused, or imputed from the training part of
    the fold: numbers by the median, categories by the most frequent. Rows whose target is missing
    are always refused.

    A target is taken for classes if it is text, or whole numbers with at most 20 different values;
    `task` overrules. Classes are sorted: by number if they are numbers, else by name.

    Args:
        dataset: Name of a data set of scikit-learn.
        csv: Path of a CSV file, in its place.
        target: The CSV column to predict.
        group: A CSV column of groups, none of which is in two parts; it is no feature.
        fold_column: A CSV column of folds, for ``split="predefined"``; a row whose cell is empty or
            -1 always trains. It is no feature.
        groups: ``"duplicates"`` keeps rows of exactly equal features together: none has a copy in
            another part or fold.
        task: ``"classification"``, ``"regression"``, or None to decide by the target.
        missing: ``"refuse"`` or ``"impute"``.
        batch_size: Samples a batch, or ``"full"``.
        num_workers: Worker processes a loader.
        split: ``"kfold"``; ``"time_series"``, rows in the order of time; ``"leave_one_group_out"``;
            or ``"predefined"``. See `SplitDataModule`.
        num_folds: Number of folds, or None for a single split by `val_fraction`, or where `split`
            takes it from the data.
        fold: Which fold validates.
        val_fraction: Validation share of the development set when `num_folds` is None.
        test_fraction: Share held out first as test set, outside every fold.
        split_seed: Seed of every split.
        shuffle_seed: Seed of the order of training samples.
        stratify: Keep the proportions of the classes in every part, or of ten quantile bins of
            values; None: for classes, yes.
        normalize: Standardise by the training part's mean and standard deviation.
        device_resident: Keep the arrays on the accelerator: True, False or ``"auto"``.

    Raises:
        ValueError: No or unknown data set or column, a missing cell, and the like; for the file,
            said at the first use of the data, with row (1 is the first after the header) and
            column.

    Example:
        >>> data = TabularDataModule("wine")
        >>> data.in_features, data.class_names
        (13, ['class_0', 'class_1', 'class_2'])
    """

    def __init__(
        self,
        dataset: Literal["iris", "wine", "breast_cancer", "diabetes"] | None = None,
        *,
        csv: str | None = None,
        target: str | None = None,
        group: str | None = None,
        fold_column: str | None = None,
        groups: Literal["duplicates"] | None = None,
        task: Literal["classification", "regression"] | None = None,
        missing: Literal["refuse", "impute"] = "refuse",
        batch_size: BatchSize = 64,
        num_workers: int = 0,
        split: Split = "kfold",
        num_folds: int | None = None,
        fold: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        shuffle_seed: int = 0,
        stratify: bool | None = None,
        normalize: bool = True,
        device_resident: bool | Literal["auto"] = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            split=split,
            num_folds=num_folds,
            fold=fold,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            shuffle_seed=shuffle_seed,
            stratify=stratify,
            normalize=normalize,
            device_resident=device_resident,
            groups=groups,
        )
        if group is not None and groups is not None:
            raise ValueError(
                f"group={group!r} and groups={groups!r} cannot both be kept whole; give one."
            )
        if (dataset is None) == (csv is None):
            raise ValueError(
                f"dataset={dataset!r} and csv={csv!r}: give one of them; "
                f"dataset is one of {', '.join(DATASETS)}."
            )
        if dataset is not None:
            check_choice("dataset", dataset, DATASETS)
            of_files = {"target": target, "group": group, "fold_column": fold_column, "task": task}
            for name, value in of_files.items():
                if value is not None:
                    raise ValueError(f"{name}={value!r} has no effect on dataset={dataset!r}.")
        elif target is None:
            raise ValueError(f"csv={csv!r} needs target=, the name of the column to predict.")
        if task is not None:
            check_choice("task", task, ["classification", "regression"])
        check_choice("missing", missing, ["refuse", "impute"])
        self.dataset = dataset
        csv = None if csv is None else str(csv)  # plain, so that any checkpoint loads
        self.csv = csv
        self.target = target
        self.group = group
        self.fold_column = fold_column
        self.task = task
        self.missing = missing
        self.save_hyperparameters()

    def load(self) -> Source:
        return self._load_sklearn() if self.dataset is not None else self._load_csv()

    def _load_sklearn(self) -> Source:
        from sklearn import datasets

        if self.dataset == "diabetes":
            # Unscaled: scikit-learn's scaling has seen the rows that are held out here.
            bunch = datasets.load_diabetes(scaled=False)
            targets, names = torch.from_numpy(bunch.target).float(), None
        else:
            bunch = getattr(datasets, f"load_{self.dataset}")()
            targets = torch.from_numpy(bunch.target).long()
            names = [str(name) for name in bunch.target_names]
        return Source(
            torch.from_numpy(bunch.data).float(),
            targets,
            class_names=names,
            feature_names=[str(name) for name in bunch.feature_names],
        )

    def _load_csv(self) -> Source:
        path = Path(str(self.csv))
        if not path.is_file():
            raise FileNotFoundError(f"csv={self.csv!r} is no file.")
        table = _read(path)
        own = {"target": self.target, "group": self.group, "fold_column": self.fold_column}
        for argument, column in own.items():
            if column is not None and column not in table:
                hint = did_you_mean(column, table) or "."
                raise ValueError(
                    f"{argument}={column!r} is no column of {path}{hint} "
                    f"There are: {', '.join(table)}."
                )
        labels = table[str(self.target)]
        # Read, not popped: one column may be both.
        groups = np.array(table[self.group]) if self.group is not None else None
        folds = _folds(table[self.fold_column]) if self.fold_column is not None else None
        if self.group is not None:
            _refuse_missing(path, self.group, table[self.group])
        table = {name: cells for name, cells in table.items() if name not in own.values()}
        if not table:
            raise ValueError(f"{path} has no column beside target={self.target!r} to learn from.")
        _refuse_missing(path, str(self.target), labels)
        targets, class_names = _targets(labels, self.task, str(self.target))
        blocks: list[np.ndarray] = []
        names: list[str] = []
        slices: list[slice] = []
        for column, cells in table.items():
            if self.missing == "refuse":
                _refuse_missing(path, column, cells, "; set missing='impute' to fill it in")
            block, block_names = _encode(column, cells)
            slices.append(slice(len(names), len(names) + len(block_names)))
            blocks.append(block)
            names += block_names
        inputs = torch.from_numpy(np.concatenate(blocks, axis=1)).float()

        def complete(inputs: Tensor, rows: Tensor) -> Tensor:
            return _impute(inputs, rows, slices)

        return Source(
            inputs,
            targets,
            class_names=class_names,
            groups=groups,
            folds=folds,
            feature_names=names,
            complete=complete if self.missing == "impute" else None,
        )


def _read(path: Path) -> dict[str, list[str]]:
    """The columns of a CSV file, as text."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv_module.reader(file) if row]
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows; expected a header and at least one row.")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path} has two columns named {twice!r}; rename one.")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(row)} cells and the header {len(header)}."
            )
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(header)}


def _is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def _refuse_missing(path: Path, column: str, cells: list[str], cure: str = "") -> None:
    for number, cell in enumerate(cells, start=1):
        if _is_missing(cell):
            raise ValueError(f"{path}: row {number} has no value in column {column!r}{cure}.")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _targets(cells: list[str], task: str | None, column: str) -> tuple[Tensor, list[str] | None]:
    numbers = [_number(cell) for cell in cells]
    numeric = all(number is not None for number in numbers)
    if task is None:
        whole = numeric and all(float(str(cell)).is_integer() for cell in cells)
        few = len(set(cells)) <= MAX_INTEGER_CLASSES
        task = "classification" if not numeric or (whole and few) else "regression"
    if task == "regression":
        if not numeric:
            row = numbers.index(None)
            raise ValueError(
                f"task='regression', but row {row + 1} of column {column!r} is {cells[row]!r}."
            )
        return torch.tensor(numbers, dtype=torch.float32), None
    names = sorted(set(cells), key=float) if numeric else sorted(set(cells))
    number_of = {name: i for i, name in enumerate(names)}
    return torch.tensor([number_of[cell] for cell in cells]), names


def _folds(cells: list[str]) -> np.ndarray:
    """Integers if all cells are, so that fold 10 comes after fold 9; else texts."""
    names = ["" if _is_missing(cell) else cell for cell in cells]
    try:
        return np.array([int(name or -1) for name in names])
    except ValueError:
        return np.array(names)


def _encode(column: str, cells: list[str]) -> tuple[np.ndarray, list[str]]:
    """Float64 (N, width) and the names of its columns; a missing cell is NaN in all of them."""
    missing = np.array([_is_missing(cell) for cell in cells])
    numbers = [np.nan if gone else _number(c) for c, gone in zip(cells, missing, strict=True)]
    if missing.all():
        raise ValueError(f"column {column!r} has no value at all; leave it out.")
    if None not in numbers:
        return np.array(numbers, dtype=np.float64)[:, None], [column]
    categories = sorted({c for c, gone in zip(cells, missing, strict=True) if not gone})
    block = (np.array(cells)[:, None] == np.array(categories)[None, :]).astype(np.float64)
    block[missing] = np.nan
    return block, [f"{column}={category}" for category in categories]


def _impute(inputs: Tensor, rows: Tensor, slices: list[slice]) -> Tensor:
    """Fills NaN from some rows: a number by their median, a category by the most frequent."""
    inputs = inputs.clone()
    for columns in slices:
        block, seen = inputs[:, columns], inputs[rows, columns]
        gone = block[:, 0].isnan()
        if not gone.any():
            continue
        seen = seen[~seen[:, 0].isnan()]
        fill = torch.zeros(block.shape[1])  # nothing seen: 0, or no category
        if len(seen) and block.shape[1] == 1:
            fill = torch.from_numpy(np.median(seen.numpy(), axis=0))
        elif len(seen):
            fill[seen.sum(0).argmax()] = 1.0
        block[gone] = fill.to(block.dtype)
    return inputs
