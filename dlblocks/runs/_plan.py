"""Describe a run in ``plan.json``, and compare a later call with it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import os
import re
import secrets
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dlblocks import tracking
from dlblocks._files import PLAN, read_json, remove_parts, write_json
from dlblocks._plain import LARGEST
from dlblocks.data._fingerprint import fingerprint
from dlblocks.runs._other_run import replace_untrained
from dlblocks.runs._trainer import without_bars
from dlblocks.runs.folder import check_new_run_dir, say_resumed, write_beside_plan

SHOWN = 8  # differences in a message
DEEPEST = 60  # objects within objects
PLACE = "data.data "  # where a table lies; what it holds is compared by its fingerprint
ADDRESS = re.compile(" at 0x[0-9a-fA-F]+")
CONSTANTS: tuple[type, ...] = (
    bool, int, float, complex, str, bytes, tuple, list, dict, Set, Enum, np.generic, np.ndarray,
    Tensor, os.PathLike,
)  # fmt: skip
OF_ANY_LAYER = set(vars(nn.Module()))
FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


def describe(
    model: pl.LightningModule,
    callbacks: Sequence[Callback],
    datamodule: pl.LightningDataModule,
    **settings: Any,
) -> dict[str, Any]:
    """Describe a configuration as JSON values.

    Args:
        model: A new model.
        callbacks: New callbacks.
        datamodule: The data.
        settings: Further arguments of the run, such as ``seed``.
    """
    found = configuration(model, datamodule)
    transform = getattr(datamodule, "train_transform", None)
    if transform is not None:
        found["data"]["train_transform"] = transform.transform
    found["data"].setdefault("batch_size", getattr(datamodule, "batch_size", None))
    if getattr(datamodule, "balanced_sampling", False):
        found["data"]["balanced_sampling"] = True  # even if no hyperparameters were saved
    shapes = {name: list(p.shape) for name, p in model.named_parameters() if not is_lazy(p)}
    plan: dict[str, Any] = described(
        {
            **settings,
            **found,
            "layers": _layers(model, {*found["model"], *vars(pl.LightningModule())}),
            "parameters": shapes,
            "callbacks": without_bars(callbacks),
        }
    )
    return plan


def configuration(
    model: pl.LightningModule, datamodule: pl.LightningDataModule
) -> dict[str, dict[str, Any]]:
    """Return the classes and hyperparameters of a model and its data."""
    return {
        "model": {"class": type(model).__name__, **dict(model.hparams_initial)},
        "data": {"class": type(datamodule).__name__, **dict(datamodule.hparams_initial)},
    }


def begin_run(
    run_dir: Path,
    config: Mapping[str, Any],
    progress: tuple[int, int, str],
    *,
    resume: bool,
    others: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    more: Callable[[], Sequence[str]] = list,
) -> str:
    """Write ``plan.json``, or check that the existing one matches.

    Args:
        run_dir: The folder, locked.
        config: What `describe` returned.
        progress: How many fits are finished, how many there are, and what they are called.
        resume: Continue a run that is there.
        others: Files that are written before the plan, by name.
        more: Returns further differences from the run that is there.

    Returns:
        An id for this run and all that resume it.

    Raises:
        FileExistsError: The folder holds something else, or another configuration or other data,
            which have trained and whose differences are listed; or `resume` is off.
        ValueError: A file of the folder is damaged.
    """
    if resume and (run_dir / PLAN).is_file():
        old = _read_plan(run_dir)
        different = [*differences(old["config"], config), *more()]
        is_table = config.get("data", {}).get("class") == "TabularDataModule"
        # A table that lies in another file with the same content is the same.
        if not different or (is_table and all(text.startswith(PLACE) for text in different)):
            remove_parts(run_dir)
            write_beside_plan(run_dir)
            say_resumed(run_dir, *progress)
            return run_id_of(run_dir)
        rest = f", and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        replace_untrained(run_dir, old["versions"], f"{'; '.join(different[:SHOWN])}{rest}")
    else:
        check_new_run_dir(run_dir, but=others)
    remove_parts(run_dir)
    for write in others.values():
        write()
    run_id = secrets.token_hex(4)
    plan = {"run_id": run_id, "config": config, "versions": tracking.versions()}
    write_json(run_dir / PLAN, plan)
    write_beside_plan(run_dir)
    return run_id


def run_id_of(run_dir: Path) -> str:
    """Return the id of a folder's run, or ``""`` without one."""
    return str(_read_plan(run_dir)["run_id"]) if (run_dir / PLAN).is_file() else ""


def engine_of(run_dir: Path) -> str | None:
    """Return the engine of a folder's run, or None without one."""
    if not (run_dir / PLAN).is_file():
        return None
    return str(_read_plan(run_dir)["config"].get("engine", "sequential"))


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """List differences of JSON values, as ``"lr was 0.01 and is 0.02"``."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            where = f"{name}.{key}" if name else key
            if key not in old or key not in new:
                found.append(f"{where} is {'new' if key not in old else 'gone'}")
            else:
                found += differences(old[key], new[key], where)
        return found
    if all(isinstance(v, list) and v and isinstance(v[0], dict) for v in (old, new)):
        if len(old) == len(new):
            pairs = enumerate(zip(old, new, strict=True))
            return [text for i, (a, b) in pairs for text in differences(a, b, f"{name}[{i}]")]
        return [f"{name} had {len(old)} entries and has {len(new)}"]
    # As texts: 1 and 1.0 and True are three amounts of batches to a Trainer.
    if json.dumps(old) == json.dumps(new):
        return []
    short = all(len(repr(value)) <= 60 for value in (old, new))
    return [f"{name} was {old!r} and is {new!r}" if short else f"{name} differs"]


def _read_plan(run_dir: Path) -> dict[str, Any]:
    """Read ``plan.json``."""
    plan: dict[str, Any] = read_json(
        run_dir / PLAN, "choose another run_dir, or delete this one: nothing says what its run is"
    )
    return plan


def described(
    value: Any,
    _within: Set[int] = frozenset(),
    _depth: int = 0,
    _seen: dict[int, tuple[Any, Any]] | None = None,
) -> Any:
    """Return JSON values that differ where two values differ.

    NumPy's numbers become Python's, paths texts, and small arrays lists. Large arrays are hashed.
    A function is described by its code, defaults, closure and the globals that it reads. Another
    object is described by its class, its own ``repr``, attributes with the names of its
    constructor's arguments, and a hash of what pickle keeps of it.

    Example:
        >>> described({"lr": np.float32(0.5), "widths": range(2), "folder": Path("a")})
        {'lr': 0.5, 'widths': [0, 1], 'folder': 'a'}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # an Enum of texts is its text
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, (Tensor, np.ndarray)):
        return _array(value)
    if id(value) in _within or _depth > DEEPEST:
        return f"<{type(value).__name__}>"
    seen = {} if _seen is None else _seen
    if id(value) not in seen:  # objects may hold each other in many ways
        within = {*_within, id(value)}
        inner = functools.partial(described, _within=within, _depth=_depth + 1, _seen=seen)
        seen[id(value)] = value, _container(value, inner)  # kept, so that its id stays its own
    return seen[id(value)][1]


def _container(value: Any, inner: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted(map(inner, value), key=json.dumps)
    if isinstance(value, Sequence):
        items = [inner(item) for item in value]
        if len(items) <= LARGEST:
            return items
        return {"length": len(items), "sha256": _digest(items)}
    return _object(value, inner)


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.is_meta or is_lazy(value):
            return f"<{type(value).__name__}>"
        value = value.detach().cpu()
        value = value if value.layout == torch.strided else value.to_dense()
    count = value.numel() if isinstance(value, Tensor) else value.size
    if count <= LARGEST:
        return described(value.tolist())
    return {"shape": list(value.shape), "sha256": fingerprint({"": value}, {})}


def _object(value: Any, inner: Any) -> Any:
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return f"<{value.__module__}.{value.__qualname__}>"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, functools.partial):
        return {"partial": inner([value.func, value.args, value.keywords])}
    if isinstance(value, types.MethodType):
        return {"function": value.__qualname__, "of": inner(value.__self__)}
    if isinstance(value, types.FunctionType):
        return {
            "function": value.__qualname__,
            "code": _digest(_code(value.__code__)),
            "defaults": inner([value.__defaults__, value.__kwdefaults__]),
            "closure": inner([_content(cell) for cell in value.__closure__ or ()]),
            "globals": inner(_globals(value)),
        }
    found: dict[str, Any] = {"class": type(value).__name__}
    if isinstance(value, nn.Module):
        return {**found, "layers": _layers(value, inner=inner)}
    if type(value).__repr__ is not object.__repr__:  # type: ignore[comparison-overlap]
        found["repr"] = ADDRESS.sub("", repr(value))
    found |= {name: inner(item) for name, item in _attributes(value).items()}
    if not _is_of_lightning(value) and (state := _state(value)) is not None:
        found["state"] = _digest(inner(state))
    return found


def _is_of_lightning(value: Any) -> bool:
    """Return True for objects that a Trainer changes, such as strategies."""
    return any(cls.__module__.partition(".")[0] == "lightning" for cls in type(value).__mro__)


def _state(value: Any) -> Any:
    """Return the state that pickle keeps, or None."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # objects raise many
        return None
    if isinstance(reduced, str):
        return reduced
    return [list(part) if isinstance(part, Iterator) else part for part in reduced[1:]]


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the constants and functions of its module that a function reads."""
    there = function.__globals__
    return {
        name: there[name]
        for name in sorted(_names(function.__code__) & there.keys())
        if isinstance(there[name], CONSTANTS)
        or (
            isinstance(there[name], types.FunctionType)
            and there[name].__module__ == function.__module__
        )
    }


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(value) for value in code.co_consts if isinstance(value, types.CodeType)]
    return {*code.co_names}.union(*inner)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _code(code: types.CodeType) -> list[Any]:
    """Return the instructions of a function, without file and line."""
    constants = [
        _code(value)
        if isinstance(value, types.CodeType)
        else repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
        for value in code.co_consts
    ]
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def _attributes(value: Any) -> dict[str, Any]:
    """Return attributes named like constructor arguments.

    Callbacks also give all public plain attributes.
    """
    names: set[str] = set()
    for cls in type(value).__mro__:
        init = vars(cls).get("__init__")
        if isinstance(init, types.FunctionType):
            names |= set(inspect.signature(init).parameters)
    names |= {f"_{name}" for name in names}
    own = getattr(value, "__dict__", {})
    own = {**own, **own.get("_buffers", {})}
    found = {
        name: item
        for name, item in own.items()
        if name in names or name.endswith("kwargs") or isinstance(item, FUNCTIONS)
    }
    return {**(tracking.plain_attributes(value) if isinstance(value, Callback) else {}), **found}


def _layers(module: nn.Module, but: Set[str] = frozenset(), inner: Any = None) -> dict[str, str]:
    """Describe every layer, as ``"Dropout(p=0.5)"``.

    Attributes are the public plain ones, and those with the names of constructor arguments.

    Args:
        module: The module.
        but: Names of attributes of `module` itself to leave out.
        inner: A partial of `described`, which knows what it is within.
    """
    # A function may hold the module itself.
    within = {*(inner.keywords["_within"] if inner else ()), *map(id, module.modules())}
    inner = functools.partial(inner or described, _within=within)
    found = {}
    for name, layer in module.named_modules():
        leave_out = {"training"} if name else {"training", *but}
        own = tracking.plain_attributes(layer)
        # Without those that wrap methods, such as the `update` of a metric.
        own |= {
            name: item
            for name, item in vars(layer).items()
            if isinstance(item, FUNCTIONS) and not hasattr(type(layer), name)
        }
        given = _attributes(layer).items()
        own |= {k: v for k, v in given if v is not None and k not in OF_ANY_LAYER}
        shown = [f"{k}={inner(v)!r}" for k, v in own.items() if k not in leave_out]
        found[name or "self"] = f"{type(layer).__name__}({', '.join(shown)})"
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
