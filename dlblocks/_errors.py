"""Check arguments, with errors that name value and cure."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import numpy as np
from torch import Tensor, nn
from typing_extensions import Self


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return a hint at the closest choice, or an empty text.

    >>> did_you_mean("adan", ["adam", "sgd"])
    "; did you mean 'adam'?"
    """
    small = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), small, n=1)
    return f"; did you mean {small[close[0]]!r}?" if close else ""


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


def other_lightning(thing: object) -> str:
    """Return a hint if an object's class is from the package ``pytorch_lightning``."""
    if all(c.__module__.partition(".")[0] != "pytorch_lightning" for c in type(thing).__mro__):
        return ""
    return (
        f" {type(thing).__name__} is from the package pytorch_lightning, whose classes are not "
        "those of lightning.pytorch; import lightning.pytorch as pl instead."
    )


def named(error: Exception, name: str) -> Exception:
    """Return the same kind of error with a name before its message.

    >>> named(ValueError("lr=-1"), "fold 2")
    ValueError('fold 2: lr=-1')
    """
    message = f"{name}: {error}"
    try:
        new = type(error)(message)
    except Exception:  # its class needs other arguments
        return RuntimeError(f"{name}: {error!r}")
    return new if str(new) == message else RuntimeError(f"{name}: {error!r}")


Function = TypeVar("Function", bound=Callable[..., Any])
COUNTS = {"in_features", "out_features", "in_channels", "num_classes", "num_samples"}
ELSEWHERE = {"trainer"}  # checked elsewhere, with a better message
MAX_SEED = 2**32 - 1  # NumPy takes no larger one


class ArgumentError(TypeError, ValueError):
    """An argument has a wrong type or an unknown value."""


class _Wrong(Exception):
    """A value does not fit its annotation."""


@functools.lru_cache(256)
def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return ``inspect.signature(function)``, computed once.

    A run creates many models of one class.
    """
    return inspect.signature(function)


def checked(function: Function) -> Function:
    """Check and convert the arguments of a function at each call.

    Constructors that call Lightning's `save_hyperparameters` use `check_arguments` instead, because
    that method inspects the frames of the call stack.

    Example:
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
    signature = signature_of(function)
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
        parameters = dict(signature_of(init).parameters)
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
                names = signature_of(init).parameters
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
    hints = _hints(function)
    for name, value in arguments.items():
        parameter = signature.parameters[name]
        if name not in hints or value is parameter.default or name in ELSEWHERE:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            arguments[name] = _converted(value, hints[name])
        except _Wrong as error:
            shown = f"={value!r}" if len(repr(value)) <= 80 else f" is a {type(value).__name__}: it"
            raise ArgumentError(f"{name}{shown} {error}.") from None
        if name == "run_dir" and value is not None and Path(value).is_file():
            raise ArgumentError(f"run_dir={str(value)!r} is a file; name a folder.")
        if name in COUNTS and arguments[name] < 1:
            raise ArgumentError(f"{name}={value!r} must be at least 1.")
        is_seed = name == "seed" or name.endswith("_seed")
        if is_seed and not 0 <= (arguments[name] or 0) <= MAX_SEED:
            raise ArgumentError(f"{name}={value!r} is outside 0 … {MAX_SEED}.")


def whole(value: Any) -> Any:
    """Return whole numbers as `int`, other values unchanged."""
    try:
        return _converted(value, int)
    except _Wrong:
        return value


def plain_numbers(value: Any) -> Any:
    """Replace NumPy's numbers by Python's, in containers too."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain_numbers, value))
    if type(value) is dict:
        return {key: plain_numbers(item) for key, item in value.items()}
    return value


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function.

    Names that only type checkers import cannot be evaluated and are left out.
    """
    found = {}
    names = {**vars(typing), **getattr(function, "__globals__", {})}
    for name, hint in inspect.get_annotations(function).items():
        if isinstance(hint, str):
            try:
                hint = eval(hint, names)
            except Exception:
                continue
        if name != "return":
            found[name] = hint
    return found


def _converted(value: Any, hint: Any) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(value, options)
    if origin is Literal:
        return _choice(value, options)
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise _Wrong("must be None")
    if hint in CONVERTERS:
        return CONVERTERS[hint](value)
    if origin in (list, Sequence):
        return _items(value, options[0])
    if origin is tuple:
        return _tuple(value, options)
    if origin in (dict, Mapping) and not isinstance(value, Mapping):
        raise _Wrong("must be a dictionary")
    if origin in (dict, Mapping):
        return plain_numbers(value)
    if origin is PathLike:
        return _path(value)
    return value  # functions and objects are checked where they are used


def _one_of(value: Any, options: Sequence[Any]) -> Any:
    if value is None and type(None) in options:
        return None
    classes = [one for one in options if isinstance(one, type) and one not in CONVERTERS]
    if classes and isinstance(value, tuple(classes)):  # a learning rate may stay a tensor
        return value
    said: list[str] = []
    # 1.0 and 1 may mean different things, such as all batches and one batch.
    exact = float if isinstance(value, (float, np.floating)) else type(value)
    for option in sorted(options, key=lambda option: option is not exact):
        try:
            return _converted(value, option)
        except _Wrong as error:
            if typing.get_origin(option) is Literal and isinstance(value, str):
                said.insert(0, str(error))
            else:
                said.append(str(error))
    first, *others = dict.fromkeys(text.removeprefix("must be ") for text in said)
    if said[0] != first:
        raise _Wrong(" or ".join([said[0], *others]))
    raise _Wrong(", or give ".join([first, *([" or ".join(others)] if others else [])]))


def _choice(value: Any, options: Sequence[Any]) -> Any:
    if isinstance(value, (np.generic, str)) or type(value) in (bool, int):
        value = value.item() if isinstance(value, np.generic) else value
        for option in options:
            if type(option) is type(value) and option == value:
                return option
    if isinstance(value, str):
        raise _Wrong(_unknown(value, options))
    raise _Wrong(f"must be {' or '.join(map(repr, options))}")


def _unknown(value: str, options: Sequence[Any]) -> str:
    hint = did_you_mean(value, [one for one in options if isinstance(one, str)]) or "."
    return f"is not known{hint} Choose from: {', '.join(map(str, options))}"


def _bool(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise _Wrong("must be True or False")


def _int(value: Any) -> int:
    number = _number(value)
    if number is None or number != number or not math.isfinite(number) or number != int(number):
        raise _Wrong("must be a whole number")
    return int(number)


def _float(value: Any) -> float | int:
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise _Wrong("must be a finite number")
    return number


def _number(value: Any) -> int | float | None:
    """Return a Python number for any real number, or None.

    An array or tensor without axes is a number too.
    """
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else None


def _str(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, PathLike):
        return str(fspath(value))
    raise _Wrong("must be a text")


def _path(value: Any) -> Any:
    if isinstance(value, PathLike):
        return value
    raise _Wrong("must be a path")


def _module(value: Any) -> nn.Module:
    if isinstance(value, nn.Module):
        return value
    raise _Wrong("must be a torch.nn.Module")


def _items(value: Any, hint: Any) -> Any:
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        shown = isinstance(value, (str, int, float)) and len(repr(value)) <= 80
        raise _Wrong("must be a list" + (f", such as [{value!r}]" if shown else ""))
    items = []
    for item in value:
        try:
            items.append(_converted(item, hint))
        except _Wrong as error:
            entry = str(error).removeprefix("must be ")
            raise _Wrong(f"must be a list, each entry {entry}") from None
    return tuple(items) if isinstance(value, tuple) else items


def _tuple(value: Any, options: Sequence[Any]) -> Any:
    if len(options) == 2 and options[1] is ...:
        return tuple(_items(value, options[0]))
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or len(value) != len(options):
        raise _Wrong(f"must be {len(options)} values")
    try:
        return tuple(_converted(one, option) for one, option in zip(value, options, strict=True))
    except _Wrong as error:
        each = str(error).removeprefix("must be ")
        raise _Wrong(f"must be {len(options)} values, each {each}") from None


CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Path: _path,
    PathLike: _path,
    nn.Module: _module,
}
