"""Read targets, weights, groups and folds of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import did_you_mean
from dlblocks.data._cells import factorize, shortened, text, to_numbers
from dlblocks.data._columns import MIN_IDENTIFIERS, format_cure
from dlblocks.data._labels import label_key

if TYPE_CHECKING:
    import pandas as pd

# Targets that are whole numbers are classes if they have at most this many different values.
MAX_NUMBER_CLASSES = 20


def check_roles(
    columns: Sequence[str],
    own: Mapping[str, str | None],
    asked: Mapping[str, Sequence[str]],
) -> None:
    """Raise a `ValueError` for an unknown or repeated column.

    Args:
        columns: Names of the columns of the table.
        own: The columns that are not features, by argument.
        asked: The features whose kind is given, by argument.
    """
    single = {argument: [name] for argument, name in own.items() if name is not None}
    for argument, names in {**single, **asked}.items():
        for name in names:
            if name not in columns:
                hint = did_you_mean(name, columns) or "."
                raise ValueError(
                    f"{argument}={name!r} is not a column{hint} There are: {', '.join(columns)}."
                )
    roles = [(name, argument) for argument, names in asked.items() for name in names]
    for i, (name, argument) in enumerate(roles):
        others = [other for known, other in roles[:i] if known == name]
        others += [other for other, names in single.items() if name in names]
        if others:
            raise ValueError(f"column {name!r} is in {argument} and in {others[0]}; choose.")


def read_targets(
    where: str, labels: pd.Series, task: str | None, *, is_frame: bool
) -> tuple[Tensor, list[str] | None]:
    """Return classes and their names, or values and None.

    Args:
        where: The table, for messages.
        labels: The column, without missing cells.
        task: ``"classification"``, ``"regression"``, or None to decide by the cells.
        is_frame: Whether they are of a DataFrame, whose dates pandas has read.
    """
    numbers = to_numbers(labels)
    numeric = bool(numbers.notna().all())
    is_given = task is not None
    if task is None:
        few = labels.nunique() <= MAX_NUMBER_CLASSES
        whole = numeric and bool((numbers % 1 == 0).all())
        task = "classification" if not numeric or (whole and few) else "regression"
    if task == "classification":
        codes, names = factorize(labels, lambda cell: label_key(text(cell)))
        if not is_given and len(names) >= max(MIN_IDENTIFIERS, len(labels) / 2):
            cure = None if is_frame else format_cure(names)
            raise ValueError(
                f"{where}: target={labels.name!r} has {len(names)} different values in "
                f"{len(labels)} rows, such as {shortened(names)}; "
                f"{cure or 'choose another target, convert it to numbers'}, "
                "or set task='classification'."
            )
        return torch.from_numpy(codes), names
    if not numeric:
        row = int(numbers.isna().to_numpy().argmax())
        raise ValueError(
            f"{where}: task='regression', but row {row + 1} of column {labels.name!r} is "
            f"{labels.iloc[row]!r}."
        )
    return torch.tensor(numbers.to_numpy(), dtype=torch.get_default_dtype()), None


def read_weights(where: str, cells: pd.Series) -> Tensor:
    """Return the weights of the rows, shape (N,)."""
    numbers = to_numbers(cells)
    if numbers.isna().any():
        row = int(numbers.isna().to_numpy().argmax())
        raise ValueError(
            f"{where}: row {row + 1} of column {cells.name!r} is {cells.iloc[row]!r}; weights are "
            "numbers >= 0."
        )
    return torch.tensor(numbers.to_numpy(), dtype=torch.get_default_dtype())


def read_groups(cells: pd.Series) -> np.ndarray:
    """Return numbers, or texts."""
    values: np.ndarray = cells.to_numpy()
    return values if values.dtype.kind in "iufb" else values.astype(str)


def read_folds(cells: pd.Series) -> np.ndarray:
    """Return integers if all cells are integers, else texts."""
    # As texts, fold 10 would come before fold 9.
    numbers = to_numbers(cells).fillna(-1)
    if ((numbers % 1 == 0) & (cells.isna() | (to_numbers(cells).notna()))).all():
        whole: np.ndarray = numbers.to_numpy().astype(np.int64)
        return whole
    texts: np.ndarray = cells.astype(object).where(cells.notna(), "").astype(str).to_numpy(str)
    return texts
