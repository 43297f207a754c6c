"""How the package says that an argument is wrong: what was expected, what came, and the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Returns ``"; did you mean 'adam'?"`` for the closest choice, or ``""`` if none is close.

    >>> did_you_mean("adan", ["adam", "sgd"])
    "; did you mean 'adam'?"
    """
    small = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), small, n=1)
    return f"; did you mean {small[close[0]]!r}?" if close else ""


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Raises a `ValueError` that lists the choices unless `value` is one of them.

    >>> check_choice("optimizer", "adan", ["adam", "sgd"])
    Traceback (most recent call last):
    ValueError: optimizer='adan' is not known; did you mean 'adam'? Choose from: adam, sgd.
    """
    choices = list(choices)
    if value not in choices:
        hint = did_you_mean(value, choices) or "."
        raise ValueError(
            f"{argument}={value!r} is not known{hint} Choose from: {', '.join(choices)}."
        )


def check_range(
    argument: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raises a `ValueError` unless `value` lies in the interval (NaN never does).

    A `TypeError` if it is not a number.

    >>> check_range("lr", "0.1", 0)
    Traceback (most recent call last):
    TypeError: lr='0.1' must be a number.

    >>> check_range("dropout", 1.5, 0, 1, high_open=True)
    Traceback (most recent call last):
    ValueError: dropout=1.5 is outside [0, 1).
    """
    try:
        above = low is None or (value > low if low_open else value >= low)
        below = high is None or (value < high if high_open else value <= high)
    except TypeError as error:
        raise TypeError(f"{argument}={value!r} must be a number.") from error
    if not (above and below and value == value):
        left = "(-inf" if low is None else f"{'(' if low_open else '['}{low}"
        right = "inf)" if high is None else f"{high}{')' if high_open else ']'}"
        raise ValueError(f"{argument}={value!r} is outside {left}, {right}.")


def check_whole(argument: str, value: Any, low: int) -> None:
    """Raises a `ValueError` unless `value` is a whole number of at least `low`.

    A `TypeError` if it is not a number.

    >>> check_whole("num_folds", 2.5, 2)
    Traceback (most recent call last):
    ValueError: num_folds=2.5 is no whole number.
    """
    check_range(argument, value, low)
    if not isinstance(value, int):
        raise ValueError(f"{argument}={value!r} is no whole number.")


def check_function(argument: str, value: object, example: str) -> None:
    """Raises a `TypeError` unless `value` is a function that can make something new at each call.

    >>> check_function("make_model", 3, "lambda: MLPClassifier(64, 10)")
    Traceback (most recent call last):
    TypeError: make_model=3 is no function; it must return a new one at each call, such as \
lambda: MLPClassifier(64, 10).
    """
    # Models can be called, but make no models.
    is_model = hasattr(value, "forward") and not isinstance(value, type)
    if is_model or not callable(value):
        what = f" is a {type(value).__name__}, and" if is_model else f"={value!r} is"
        raise TypeError(
            f"{argument}{what} no function; it must return a new one at each call, such as "
            f"{example}."
        )


def other_lightning(thing: object) -> str:
    """Say that something is of the package ``pytorch_lightning``, or nothing."""
    if all(c.__module__.partition(".")[0] != "pytorch_lightning" for c in type(thing).__mro__):
        return ""
    return (
        f" {type(thing).__name__} is of the package pytorch_lightning, whose classes are not those "
        "of lightning.pytorch; import lightning.pytorch as pl in its place."
    )


def named(error: Exception, name: str) -> Exception:
    """The same kind of error, whose message begins with the name of what it belongs to.

    >>> named(ValueError("lr=-1"), "fold 2")
    ValueError('fold 2: lr=-1')
    """
    message = f"{name}: {error}"
    try:
        new = type(error)(message)
    except Exception:  # one that wants other arguments
        return RuntimeError(f"{name}: {error!r}")
    return new if str(new) == message else RuntimeError(f"{name}: {error!r}")
