"""Plain values: a checkpoint that holds only these runs no code."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._lightning import changed_checkpoints

if TYPE_CHECKING:
    import lightning.pytorch as pl

LARGEST = 10_000  # values of an array that is stored as a list
SIMPLE = frozenset({type(None), bool, int, float, str, bytes, complex})
HPARAMS = ("hyper_parameters", "datamodule_hyper_parameters")


class _NotPlain:
    def __repr__(self) -> str:
        return "NOT_PLAIN"


NOT_PLAIN = _NotPlain()


def plain(value: Any, *, lists: bool = False) -> Any:
    """Return the value as ``torch.load(…, weights_only=True)`` reads it, or `NOT_PLAIN`.

    NumPy's numbers become Python's, paths become texts, ranges and small arrays lists. Containers
    are converted with what they hold. What is plain already is returned as it is.

    Args:
        value: Any value.
        lists: Make lists of tuples and tensors too, and texts of the keys of mappings.

    Example:
        >>> plain({"lr": np.float64(0.1), "widths": range(2)})
        {'lr': 0.1, 'widths': [0, 1]}
        >>> plain([len])
        NOT_PLAIN
    """
    if type(value) in SIMPLE:
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.size <= LARGEST else NOT_PLAIN
    if isinstance(value, Tensor):
        if not lists:
            return value
        value = value.tolist() if value.numel() <= LARGEST else NOT_PLAIN
    if type(value) in SIMPLE:
        return value
    if isinstance(value, str):  # exact types: an Enum of texts, for one, cannot be read
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return _mapping(value, lists)
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray, memoryview)):
        return _items(value, lists)
    return value if _reads(value) else NOT_PLAIN


def _mapping(value: Mapping[str, Any], lists: bool) -> Any:
    if type(value) is dict and not lists and _all_simple(value) and _all_simple(value.values()):
        return value
    new = {
        str(k) if lists else plain(k, lists=lists): plain(v, lists=lists) for k, v in value.items()
    }
    if any(v is NOT_PLAIN for pair in new.items() for v in pair):
        return NOT_PLAIN
    # A state_dict has attributes of its own.
    same = type(value) in (dict, OrderedDict) and _same(
        [*new, *new.values()], [*value, *value.values()]
    )
    return value if same else new


def _items(value: Any, lists: bool) -> Any:
    if type(value) in (list, tuple) and _all_simple(value):  # such as the state of `random`
        return list(value) if lists and type(value) is tuple else value
    new = [plain(item, lists=lists) for item in value]
    if any(item is NOT_PLAIN for item in new):
        return NOT_PLAIN
    kind = list if lists else set if isinstance(value, Set) else tuple
    if not isinstance(value, (tuple, Set)):
        kind = list
    return value if type(value) is kind and _same(new, value) else kind(new)


def _all_simple(values: Iterable[Any]) -> bool:
    return SIMPLE.issuperset(map(type, values))


def _same(new: Any, old: Any) -> bool:
    return all(one is other for one, other in zip(new, old, strict=True))


def _reads(value: Any) -> bool:
    """Return True if torch reads the value without running code."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


# Checkpoints


def plain_hyperparameters(checkpoint: dict[str, Any]) -> None:
    """Leave only plain hyperparameters in a checkpoint, of model and data."""
    for key in HPARAMS:
        if key in checkpoint:
            checkpoint[key] = _only_plain(checkpoint[key])
    # A class of OmegaConf.
    for key in ("hparams_type", "datamodule_hparams_type"):
        checkpoint.pop(key, None)


def plain_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Leave plain values only in a checkpoint of a Trainer.

    Hyperparameters and attributes of schedulers that are not plain are left out: the run makes the
    model and its schedulers anew. So are states of callbacks, with a warning.

    Raises:
        ValueError: What a hook adds is not plain, or the state of an optimizer.
    """
    plain_hyperparameters(checkpoint)
    if "lr_schedulers" in checkpoint:
        checkpoint["lr_schedulers"] = [_pruned(state) for state in checkpoint["lr_schedulers"]]
    for name, state in checkpoint.get("callbacks", {}).items():
        if plain(state) is NOT_PLAIN:
            warnings.warn(
                f"{_place(f'the state of {name}', state)}, which could not be read back without "
                "running code; it is left out of the checkpoint, and a resumed fit has it as new.",
                stacklevel=2,
            )
    if "callbacks" in checkpoint:
        checkpoint["callbacks"] = _only_plain(checkpoint["callbacks"])
    for key, value in checkpoint.items():
        checkpoint[key] = plain(value)
        if checkpoint[key] is NOT_PLAIN:
            raise ValueError(
                f"the checkpoint's entry {_place(key, value)}, which could not be read back "
                "without running code; let on_save_checkpoint and state_dict() give tensors and "
                "plain values."
            )


def _only_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: plain(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not NOT_PLAIN}


def _pruned(value: Any) -> Any:
    """Return the state of a scheduler without what is not plain."""
    if (found := plain(value)) is not NOT_PLAIN:
        return found
    if isinstance(value, Mapping):
        return {name: _pruned(v) for name, v in value.items() if _pruned(v) is not NOT_PLAIN}
    if isinstance(value, (list, tuple)):  # None stands for a function in `LambdaLR`
        return [None if (new := _pruned(item)) is NOT_PLAIN else new for item in value]
    return NOT_PLAIN


def _place(key: str, value: Any) -> str:
    """Name the first value that is not plain, and its class."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, Sequence):
        items = enumerate(value)
    for name, item in items:
        if plain(item) is NOT_PLAIN:
            return _place(f"{key}[{name!r}]", item)
    return f"{key} is a {type(value).__name__}"


@contextlib.contextmanager
def plain_checkpoints(trainer: pl.Trainer) -> Iterator[None]:
    """Let a Trainer write plain checkpoints, whichever callback writes them.

    Hyperparameters of any kind may be in a LightningModule; see `plain_checkpoint`.
    """
    with changed_checkpoints(trainer, plain_checkpoint):
        yield
