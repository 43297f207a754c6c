"""Convert values to the annotation of their argument."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
from torch import Tensor, nn

from dlblocks._messages import did_you_mean


class Wrong(Exception):
    """A value does not fit its annotation."""


def whole(value: Any) -> Any:
    """Return whole numbers as `int`, other values unchanged."""
    try:
        return converted(value, int)
    except Wrong:
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
def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
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


def converted(value: Any, hint: Any) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(value, options)
    if origin is Literal:
        return _choice(value, options)
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise Wrong("must be None")
    if hint in CONVERTERS:
        return CONVERTERS[hint](value)
    if origin in (list, Sequence):
        return _items(value, options[0])
    if origin is tuple:
        return _tuple(value, options)
    if origin in (dict, Mapping) and not isinstance(value, Mapping):
        raise Wrong("must be a dictionary")
    if origin in (dict, Mapping):
        return plain_numbers(value)
    if origin is PathLike:
        return _path(value)
    return value  # functions and objects are checked where they are used


def _one_of(value: Any, options: Sequence[Any]) -> Any:
    if value is None and type(None) in options:
        return None
    # In Python 3.10, list[int] counts as a type.
    plain = (one for one in options if isinstance(one, type) and typing.get_origin(one) is None)
    classes = [one for one in plain if one not in CONVERTERS]
    if classes and isinstance(value, tuple(classes)):  # a learning rate may stay a tensor
        return value
    said: list[str] = []
    # 1.0 and 1 may mean different things, such as all batches and one batch.
    exact = float if isinstance(value, (float, np.floating)) else type(value)
    for option in sorted(options, key=lambda option: option is not exact):
        try:
            return converted(value, option)
        except Wrong as error:
            if typing.get_origin(option) is Literal and isinstance(value, str):
                said.insert(0, str(error))
            else:
                said.append(str(error))
    first, *others = dict.fromkeys(text.removeprefix("must be ") for text in said)
    if said[0] != first:
        raise Wrong(" or ".join([said[0], *others]))
    raise Wrong(", or give ".join([first, *([" or ".join(others)] if others else [])]))


def _choice(value: Any, options: Sequence[Any]) -> Any:
    if isinstance(value, (np.generic, str)) or type(value) in (bool, int):
        value = value.item() if isinstance(value, np.generic) else value
        for option in options:
            if type(option) is type(value) and option == value:
                return option
    if isinstance(value, str):
        raise Wrong(_unknown(value, options))
    raise Wrong(f"must be {' or '.join(map(repr, options))}")


def _unknown(value: str, options: Sequence[Any]) -> str:
    hint = did_you_mean(value, [one for one in options if isinstance(one, str)]) or "."
    return f"is not known{hint} Choose from: {', '.join(map(str, options))}"


def _bool(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise Wrong("must be True or False")


def _int(value: Any) -> int:
    number = _number(value)
    if number is None or number != number or not math.isfinite(number) or number != int(number):
        raise Wrong("must be a whole number")
    return int(number)


def _float(value: Any) -> float | int:
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise Wrong("must be a finite number")
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
    raise Wrong("must be a text")


def _path(value: Any) -> Any:
    if isinstance(value, PathLike):
        return value
    raise Wrong("must be a path")


def _module(value: Any) -> nn.Module:
    if isinstance(value, nn.Module):
        return value
    raise Wrong("must be a torch.nn.Module")


def _items(value: Any, hint: Any) -> Any:
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        shown = isinstance(value, (str, int, float)) and len(repr(value)) <= 80
        raise Wrong("must be a list" + (f", such as [{value!r}]" if shown else ""))
    items = []
    for item in value:
        try:
            items.append(converted(item, hint))
        except Wrong as error:
            entry = str(error).removeprefix("must be ")
            raise Wrong(f"must be a list, each entry {entry}") from None
    return tuple(items) if isinstance(value, tuple) else items


def _tuple(value: Any, options: Sequence[Any]) -> Any:
    if len(options) == 2 and options[1] is ...:
        return tuple(_items(value, options[0]))
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or len(value) != len(options):
        raise Wrong(f"must be {len(options)} values")
    try:
        return tuple(converted(one, option) for one, option in zip(value, options, strict=True))
    except Wrong as error:
        each = str(error).removeprefix("must be ")
        raise Wrong(f"must be {len(options)} values, each {each}") from None


CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Path: _path,
    PathLike: _path,
    nn.Module: _module,
}
