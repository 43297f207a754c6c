"""Check arguments, with errors that name value and cure."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Self

from dlblocks._convert import Wrong, annotations_of, converted, plain_numbers, whole
from dlblocks._messages import (
    channels_first,
    did_you_mean,
    is_channels_last,
    listed,
    named,
    other_lightning,
    wrong_channels,
)

__all__ = [
    "MAX_SEED",
    "ArgumentError",
    "CheckedConstructor",
    "channels_first",
    "check_arguments",
    "check_choice",
    "check_function",
    "check_range",
    "check_whole",
    "checked",
    "constructor_arguments",
    "convert_arguments",
    "did_you_mean",
    "is_channels_last",
    "listed",
    "named",
    "other_lightning",
    "plain_numbers",
    "whole",
    "wrong_channels",
]


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Raise a `ValueError` that lists the choices.

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
    """Raise a `ValueError` unless `value` lies in the interval (NaN never does).

    A value that is not a number raises a `TypeError`.

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
    """Raise a `ValueError` unless `value` is a whole number from `low`.

    A value that is not a number raises a `TypeError`.

    >>> check_whole("num_folds", 2.5, 2)
    Traceback (most recent call last):
    ValueError: num_folds=2.5 is not a whole number.
    """
    check_range(argument, value, low)
    if not isinstance(value, int):
        raise ValueError(f"{argument}={value!r} is not a whole number.")


def check_function(argument: str, value: object, example: str) -> None:
    """Raise a `TypeError` for anything but a function.

    >>> check_function("make_model", 3, "lambda: MLPClassifier(64, 10)")
    Traceback (most recent call last):
    TypeError: make_model=3 is not a function; give one that returns a new object at each call, \
such as lambda: MLPClassifier(64, 10).
    """
    # A model can be called, but does not return a model.
    is_model = hasattr(value, "forward") and not isinstance(value, type)
    if is_model or not callable(value):
        what = f" is a {type(value).__name__}," if is_model else f"={value!r} is"
        raise TypeError(
            f"{argument}{what} not a function; give one that returns a new object at each call, "
            f"such as {example}."
        )


Function = TypeVar("Function", bound=Callable[..., Any])
COUNTS = {"in_features", "out_features", "in_channels", "num_classes", "num_samples"}
ELSEWHERE = {"trainer"}  # checked elsewhere, with a better message
MAX_SEED = 2**32 - 1  # NumPy takes no larger one


class ArgumentError(TypeError, ValueError):
    """An argument has a wrong type or an unknown value."""


def checked(function: Function) -> Function:
    """Check and convert the arguments of a function at each call.

    Constructors that call Lightning's `save_hyperparameters` use `check_arguments` instead, because
    that method inspects the frames of the call stack.

    Example:
        >>> import numpy as np
        >>> @checked
        ... def repeat(text: str, count: int = 2, *, reverse: bool = False) -> str:
        ...     return text * count
        >>> repeat("ab", np.int64(3))
        'ababab'
        >>> repeat("ab", "3")
        Traceback (most recent call last):
        dlblocks._errors.ArgumentError: count='3' must be a whole number.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own error says what is wrong
        try:
            convert_arguments(function, signature, bound.arguments)
        except ArgumentError as error:
            if function.__name__ == "__init__":  # any other function might start its work
                _own_error(function, args, kwargs, about=str(error).partition("=")[0])
            raise
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def _own_error(function: Callable[..., Any], args: Any, kwargs: Any, *, about: str) -> None:
    """Raise the constructor's own error, which may suggest a better cure."""
    try:
        function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        is_general = str(error).endswith("must be a number.")  # from `check_range`
        if str(error).startswith(f"{about}=") and not is_general:
            raise ArgumentError(str(error)) from None
    except Exception:
        pass


def check_arguments(function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> None:
    """Raise an `ArgumentError` if an argument does not fit its annotation.

    Args:
        function: The function to call. Functions of other packages are not checked.
        args: Its positional arguments, including ``self``.
        kwargs: Its other arguments.
    """
    if not function.__module__.startswith("dlblocks."):
        return
    signature = inspect.signature(function)
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError:  # the call itself raises it; a copy makes no call
        return
    convert_arguments(function, signature, bound.arguments)


def constructor_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor and of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if not isinstance(init, types.FunctionType):
            continue
        parameters = dict(inspect.signature(init).parameters)
        kinds = {parameter.kind for parameter in parameters.values()}
        found = {**parameters, **found}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in found.items() if n != "self" and p.kind not in unnamed}


class CheckedConstructor:
    """Check the arguments of a constructor and of its base classes.

    It is a separate base class because jsonargparse reads the arguments of a class from `__new__`
    if the class itself defines that.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        try:
            cls._check_all(args, kwargs)
        except ArgumentError as error:
            new = super().__new__(cls)
            own = functools.partial(cls.__init__, new)
            _own_error(own, args, kwargs, about=str(error).partition("=")[0])
            raise
        return super().__new__(cls)

    @classmethod
    def _accepted(cls) -> Iterable[str]:
        """Return names of arguments, for hints."""
        return constructor_arguments(cls)

    @classmethod
    def _check_all(cls, args: Any, kwargs: Any) -> None:
        check_arguments(cls.__init__, (None, *args), kwargs)
        rest = dict(kwargs)
        for base in cls.__mro__ if kwargs else ():
            if isinstance(init := vars(base).get("__init__"), types.FunctionType):
                names = inspect.signature(init).parameters
                given = {name: rest.pop(name) for name in names.keys() & rest.keys()}
                if base is not cls:
                    check_arguments(init, (None,), given)
        if rest and cls.__module__.startswith("dlblocks."):
            name = next(iter(rest))
            hint = did_you_mean(name, cls._accepted()) or "."
            raise TypeError(f"{cls.__name__} has no argument {name!r}{hint}")


def convert_arguments(
    function: Callable[..., Any], signature: inspect.Signature, arguments: dict[str, Any]
) -> None:
    """Check and convert arguments in place.

    Raises:
        ArgumentError: An argument does not fit its annotation.
    """
    hints = annotations_of(function)
    for name, value in arguments.items():
        parameter = signature.parameters[name]
        if name not in hints or value is parameter.default or name in ELSEWHERE:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            arguments[name] = converted(value, hints[name])
        except Wrong as error:
            shown = f"={value!r}" if len(repr(value)) <= 80 else f" is a {type(value).__name__}: it"
            raise ArgumentError(f"{name}{shown} {error}.") from None
        if name == "run_dir" and value is not None and Path(value).is_file():
            raise ArgumentError(f"run_dir={str(value)!r} is a file; name a folder.")
        if name in COUNTS and arguments[name] < 1:
            raise ArgumentError(f"{name}={value!r} must be at least 1.")
        is_seed = name == "seed" or name.endswith("_seed")
        if is_seed and not 0 <= (arguments[name] or 0) <= MAX_SEED:
            raise ArgumentError(f"{name}={value!r} is outside 0 … {MAX_SEED}.")
