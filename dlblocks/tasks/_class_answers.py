"""Turn scores of classes into classes and columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlblocks._scores import are_probabilities
from dlblocks.tasks._registry import Array


def likeliest(prediction: Array) -> Array:
    """Return the likeliest class, or -1 where a probability is NaN."""
    if prediction.ndim == 1:
        return prediction
    return np.where(np.isnan(prediction).any(1), -1, prediction.argmax(1))


def share_columns(prediction: Array, names: Sequence[str]) -> dict[str, Array]:
    """Return a column for each class."""
    kind = kind_of_share(prediction)
    titles = [f"{kind}_{name}" for name in names]
    return dict(zip(titles, prediction.T, strict=True))


def kind_of_share(prediction: Array) -> str:
    """Return ``"probability"`` if rows without NaN sum to 1, else ``"score"``."""
    known = prediction[~np.isnan(prediction).any(1)]
    return "probability" if are_probabilities(known) else "score"


def values_of(names: Sequence[str]) -> Array:
    """Convert names that are whole numbers or truth values into such values."""
    if set(names) <= {"True", "False"}:
        return np.array([name == "True" for name in names])
    digits = [name.removeprefix("-") for name in names]
    if all(one.isascii() and one.isdecimal() and len(one) < 19 for one in digits) and all(
        str(int(name)) == name for name in names
    ):
        return np.array([int(name) for name in names])
    return np.array(names)
