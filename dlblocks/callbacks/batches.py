"""Where inputs and targets are in a batch of any structure, and what else there is."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from dlblocks.losses import MixedTargets

Key = int | str | Sequence[int | str]
Path = tuple[int | str, ...]
Extras = str | Mapping[Any, str]


def structure(batch: Any) -> str:
    """A batch's structure in words, for error messages.

    >>> import torch
    >>> structure({"x": torch.zeros(2, 3), "n": 1})
    "{'x': Tensor (2, 3), 'n': int}"
    """
    if isinstance(batch, Tensor):
        return f"Tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{k!r}: {structure(v)}" for k, v in batch.items()) + "}"
    if isinstance(batch, (list, tuple)):
        entries = [structure(entry) for entry in batch[:8]]
        if len(batch) > 8:
            entries.append(f"… {len(batch)} entries")
        return "[" + ", ".join(entries) + "]"
    return type(batch).__name__


class Entries:
    """The tensors of a batch that a transform changes: its inputs, its targets, and extras of both.

    Args:
        batch: Any nest of dictionaries, lists, tuples and namedtuples.
        input_key: Where the inputs are: a tensor, or a nest of tensors that are all inputs. None if
            the batch is nothing else.
        target_key: Where the targets are: a tensor. None if there are none.
        extras: ``"refuse"``, ``"keep"``, or what to do with each further entry.
        who: Name of the transform, for error messages.
        actions: What it can do with a further entry.

    Raises:
        ValueError: The batch has another structure, or an entry that nobody knows how to change.
    """

    def __init__(
        self,
        batch: Any,
        input_key: Key | None,
        target_key: Key | None,
        extras: Extras,
        who: str,
        actions: Sequence[str] = ("keep",),
    ) -> None:
        self.batch, self.who, self.actions = batch, who, actions
        self.input_path = path_of(input_key)
        self.target_path = None if target_key is None else path_of(target_key)
        self.inputs = tensors_in(self._find(self.input_path, "input_key"))
        if not self.inputs or not all(x.ndim for x in self.inputs):
            raise self._unknown("input_key", self.input_path)
        self.targets: list[Any] = []
        if self.target_path is not None:
            target = self._find(self.target_path, "target_key")
            if not isinstance(target, (Tensor, MixedTargets)):
                raise self._unknown("target_key", self.target_path)
            self.targets.append(target)
        self.size = len(self.inputs[0])
        # Extras are looked for in the innermost container of both: a CombinedLoader's batch holds
        # other loaders' samples too.
        self.own_paths = [path for path in (self.input_path, self.target_path) if path]
        self.container: Path = ()
        if self.own_paths:
            together = zip(*(path[:-1] for path in self.own_paths), strict=False)
            same = itertools.takewhile(lambda keys: len(set(keys)) == 1, together)
            self.container = tuple(keys[0] for keys in same)
        self.extra_paths: list[tuple[Path, str]] = []
        self._sort_extras(extras)
        for x in self.inputs:
            if len(x) != self.size:
                raise ValueError(
                    f"{who} found inputs of {self.size} and of {len(x)} samples in the batch "
                    f"{structure(batch)}; all must have the batch's length."
                )

    def _find(self, path: Path, argument: str) -> Any:
        entry = self.batch
        for key in path:
            try:
                if not isinstance(entry, (Mapping, Sequence)) or isinstance(entry, str):
                    raise TypeError
                entry = entry[key]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                raise self._unknown(argument, path) from None
        return entry

    def _unknown(self, argument: str, path: Path) -> ValueError:
        shown = None if not path else path[0] if len(path) == 1 else list(path)
        return ValueError(
            f"{self.who} found no tensor at {argument}={shown!r} of the batch "
            f"{structure(self.batch)}; set input_key= and target_key= to where the inputs and "
            "targets are, such as 0, 'image', or ['a', 0] inside entry 'a'; None means that the "
            "batch is nothing but inputs, or has no targets."
        )

    def _sort_extras(self, extras: Extras) -> None:
        if extras == "keep" or not self.own_paths:
            return
        container = self._find(self.container, "input_key")
        items = dict(container.items() if isinstance(container, Mapping) else enumerate(container))
        given = dict(extras) if isinstance(extras, Mapping) else {}
        for key in list(given):
            if key not in items:  # through YAML and the command line, positions may be strings
                found_key = next((own for own in items if str(own) == key), None)
                if found_key is None:
                    raise ValueError(
                        f"extras={extras!r} names {key!r}, which is not in the batch "
                        f"{structure(self.batch)}."
                    )
                given[found_key] = given.pop(key)
        own_keys = {path[len(self.container)] for path in self.own_paths}
        for key, entry in items.items():
            path, action = (*self.container, key), given.get(key)
            if key in own_keys:
                if action is not None:
                    raise ValueError(
                        f"extras={extras!r} names {key!r}, which holds the inputs or the targets "
                        f"of {self.who}."
                    )
                self._refuse_beside(path)
            elif action is None:
                self._refuse(path, entry)
            elif action != "keep":
                found = tensors_in(entry)
                if not found:
                    raise ValueError(
                        f"{self.who} found no tensor at {key!r} of the batch "
                        f"{structure(self.batch)}, which extras={extras!r} names."
                    )
                (self.inputs if action == "input" else self.targets).extend(found)
                self.extra_paths.append((path, action))

    def _refuse_beside(self, path: Path) -> None:
        """Looks beside inputs and targets that lie deeper than their common container."""
        for own in self.own_paths:
            if own[: len(path)] != path or len(own) == len(path):
                continue
            entry = self._find(path, "input_key")
            items = entry.items() if isinstance(entry, Mapping) else enumerate(entry)
            for key, value in items:
                if key == own[len(path)]:
                    self._refuse_beside((*path, key))
                else:
                    self._refuse((*path, key), value)

    def _refuse(self, path: Path, entry: Any) -> None:
        """Raises if `entry` belongs to the samples and is not plain sample numbers."""
        is_list_of_samples = (
            isinstance(entry, (list, tuple)) and len(entry) == self.size and tensors_in(entry)
        )
        if is_list_of_samples or any(self._is_per_sample(x) for x in tensors_in(entry)):
            shown = path[-1] if len(path) == 1 else list(path)
            meaning = {
                "keep": "may stay as it is",
                "input": "changes as the inputs do (a second image, a mask)",
                "target": "changes as the targets do (weights of samples)",
            }
            raise ValueError(
                f"{self.who} does not know how to change entry {shown!r} of the batch "
                f"{structure(self.batch)} along with the inputs; leave it out of the batch, or set "
                + ", or ".join(
                    f"extras={{{path[len(self.container)]!r}: {action!r}}} if it {meaning[action]}"
                    for action in self.actions
                )
                + "."
            )

    def _is_per_sample(self, entry: Tensor) -> bool:
        is_sample_number = entry.ndim == 1 and not entry.is_floating_point()
        return entry.ndim > 0 and len(entry) == self.size and not is_sample_number

    def replaced(self, inputs: Sequence[Any], targets: Sequence[Any]) -> Any:
        """A batch like the given one with new inputs and targets, in the order found."""
        new_inputs, new_targets = iter(inputs), iter(targets)

        def put(batch: Any, path: Path, new: Any) -> Any:
            entry = self._find(path, "input_key")
            return _replace(batch, path, map_tensors(entry, new))

        batch = put(self.batch, self.input_path, new_inputs)
        if self.target_path is not None:
            batch = _replace(batch, self.target_path, next(new_targets))
        for path, action in self.extra_paths:
            batch = put(batch, path, new_inputs if action == "input" else new_targets)
        return batch


def path_of(key: Key | None) -> Path:
    """A key as a path from the outside in; None is the batch itself."""
    if key is None:
        return ()
    return (key,) if isinstance(key, (int, str)) else tuple(key)


def tensors_in(nest: Any) -> list[Tensor]:
    """All tensors of a nest of containers, in order."""
    if isinstance(nest, Tensor):
        return [nest]
    found: list[Tensor] = []
    apply_to_collection(nest, Tensor, found.append)
    return found


def map_tensors(nest: Any, new: Any) -> Any:
    """A nest like `nest` whose tensors are the next of `new`."""
    if isinstance(nest, Tensor):
        return next(new)
    return apply_to_collection(nest, Tensor, lambda _: next(new))


def _replace(batch: Any, path: Path, new: Any) -> Any:
    """A container like `batch` with the entry at `path` new; nothing is written in place."""
    if not path:
        return new
    key: Any = path[0]
    new = _replace(batch[key], path[1:], new)
    if isinstance(batch, (MutableMapping, MutableSequence)):
        changed = copy.copy(batch)
        changed[key] = new
        return changed
    if isinstance(batch, Mapping):
        return type(batch)({**batch, key: new})  # type: ignore[call-arg]
    entries = list(batch)
    entries[key] = new
    return batch._make(entries) if hasattr(batch, "_make") else type(batch)(entries)
