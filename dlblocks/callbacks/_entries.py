"""Find inputs, targets and further tensors in batches of any structure."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from dlblocks._boxes import are_boxes
from dlblocks.fields import Padded
from dlblocks.losses import MixedTargets

Key = int | str | Sequence[int | str]
Path = tuple[int | str, ...]


class Entries:
    """Inputs, targets and further tensors of a batch that a transform changes.

    Args:
        batch: Any nest of dictionaries, lists, tuples and namedtuples.
        transform: A `BatchTransform`. Its keys say where the inputs are (a tensor, or a nest of
            tensors that are all inputs), where the targets are (a tensor), and what to do with
            further entries.

    Raises:
        ValueError: The batch has another structure, or an entry whose treatment is not known.
    """

    def __init__(self, batch: Any, transform: Any) -> None:
        self.batch, self.actions = batch, transform.extra_actions
        self.who = type(transform).__name__
        self.input_path = _path_of(transform.input_key)
        self.target_path = _path_of(transform.target_key)
        self.has_target = transform.target_key is not None
        found = self._find(self.input_path, "input_key")
        transform.check_padded(_has_padded(found))
        self.inputs = tensors_in(found)
        if not self.inputs or not all(x.ndim for x in self.inputs):
            raise self._unknown("input_key", self.input_path)
        self.targets: list[Any] = []
        if self.has_target:
            self.targets.append(self._find(self.target_path, "target_key"))
            if are_boxes(self.targets[0]):
                if not transform.takes_boxes:
                    raise ValueError(
                        f"{self.who} cannot change boxes and their labels; remove it. Augment and "
                        "Cutout move boxes with their images."
                    )
            elif not isinstance(self.targets[0], (Tensor, MixedTargets)):
                raise self._unknown("target_key", self.target_path)
        self.size = len(self.inputs[0])
        self.own_paths = [path for path in (self.input_path, self.target_path) if path]
        self.extra_paths: list[tuple[Path, str]] = []
        actions = transform.data_keys
        if transform.weights_key is not None and actions != "keep":
            known = {} if isinstance(actions, str) else actions
            actions = {**known, transform.weights_key: transform.weights_action}
        if actions != "keep" and self.own_paths:
            self._sort_extras(actions)
        for x in self.inputs:
            if len(x) != self.size:
                raise ValueError(
                    f"{self.who} found inputs of {self.size} and of {len(x)} samples in the batch "
                    f"{structure(batch)}; all must have the batch's length."
                )

    def replaced(self, inputs: Iterable[Any], targets: Iterable[Any]) -> Any:
        """Return a batch with new inputs and targets, in the order found."""
        new_inputs, new_targets = iter(inputs), iter(targets)
        batch = self._put(self.batch, self.input_path, new_inputs)
        if self.has_target:
            batch = _replace(batch, self.target_path, next(new_targets))
        for path, action in self.extra_paths:
            batch = self._put(batch, path, new_inputs if action == "input" else new_targets)
        return batch

    def _put(self, batch: Any, path: Path, new: Iterator[Any]) -> Any:
        return _replace(batch, path, map_tensors(self._find(path, "input_key"), new))

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
        return ValueError(
            f"{self.who} found no tensor at {argument}={_shown(path)} of the batch "
            f"{structure(self.batch)}; set input_key= and target_key= to where the inputs and "
            "targets are, such as 0, 'image', or ['a', 0] inside entry 'a'. Use input_key=None for "
            "a batch of inputs only, and target_key=None without targets."
        )

    def _sort_extras(self, data_keys: str | Mapping[Any, str]) -> None:
        """Find the entries of `data_keys`, and refuse others that belong to samples."""
        # Look for them in the innermost container of inputs and targets only: the batch of a
        # CombinedLoader also holds samples of other loaders.
        container = min(self.own_paths, key=len)[:-1]
        while any(path[: len(container)] != container for path in self.own_paths):
            container = container[:-1]
        named = {} if isinstance(data_keys, str) else self._named(data_keys, container)
        for path, entry in self._beside(container):
            action = named.pop(path, None)
            if action is None:
                self._refuse(path, entry, path[len(container)])
            elif action != "keep":
                found = tensors_in(entry)
                if not found:
                    raise ValueError(
                        f"{self.who} found no tensor at {path[-1]!r} of the batch "
                        f"{structure(self.batch)}, which data_keys={data_keys!r} names."
                    )
                (self.inputs if action == "input" else self.targets).extend(found)
                self.extra_paths.append((path, action))
        for path in named:
            raise ValueError(
                f"data_keys={data_keys!r} names {path[-1]!r}, which holds the inputs or the "
                f"targets of {self.who}."
            )

    def _named(self, data_keys: Mapping[Any, str], container: Path) -> dict[Path, str]:
        """Return the actions of `data_keys` by path."""
        keys = [key for key, _ in _items(self._find(container, "input_key"))]
        # Through YAML and the command line, positions may be strings.
        known = {**{str(key): key for key in keys}, **{key: key for key in keys}}
        for key in data_keys:
            if key not in known:
                raise ValueError(
                    f"data_keys={data_keys!r} names {key!r}, which is not in the batch "
                    f"{structure(self.batch)}."
                )
        return {(*container, known[key]): action for key, action in data_keys.items()}

    def _beside(self, path: Path) -> Iterator[tuple[Path, Any]]:
        """Yield the entries at `path` and deeper beside inputs and targets."""
        for key, entry in _items(self._find(path, "input_key")):
            here = (*path, key)
            if not any(own[: len(here)] == here for own in self.own_paths):
                yield here, entry
            elif here not in self.own_paths:
                yield from self._beside(here)

    def _refuse(self, path: Path, entry: Any, key: int | str) -> None:
        """Raise if `entry` belongs to samples, unless it holds sample numbers."""
        tensors = tensors_in(entry)
        is_list_of_samples = (
            isinstance(entry, (list, tuple)) and len(entry) == self.size and tensors
        )
        if is_list_of_samples or any(self._is_per_sample(x) for x in tensors):
            meaning = {
                "keep": "may stay as it is",
                "input": "changes as the inputs do (a second image, a mask)",
                "target": "changes as the targets do (weights of samples)",
            }
            cures = [
                f"data_keys={{{key!r}: {action!r}}} if it {meaning[action]}"
                for action in self.actions
            ]
            raise ValueError(
                f"{self.who} does not know how to change entry {_shown(path)} of the batch "
                f"{structure(self.batch)} along with the inputs; leave it out of the batch, or set "
                f"{', or '.join(cures)}."
            )

    def _is_per_sample(self, entry: Tensor) -> bool:
        is_sample_number = entry.ndim == 1 and not entry.is_floating_point()
        return entry.ndim > 0 and len(entry) == self.size and not is_sample_number


def _path_of(key: Key | None) -> Path:
    """Return a key as a path from the outside in.

    The path of None is empty: the batch itself.
    """
    if key is None:
        return ()
    return (key,) if isinstance(key, (int, str)) else tuple(key)


def _shown(path: Path) -> str:
    """Return a path as the argument that it was."""
    return repr(list(path) if len(path) > 1 else path[0] if path else None)


def _items(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.items() if isinstance(container, Mapping) else enumerate(container)


def tensors_in(nest: Any) -> list[Tensor]:
    """Return all tensors of a nest of containers, in order."""
    found: list[Tensor] = []
    apply_to_collection(nest, Tensor, found.append)
    return found


def _has_padded(nest: Any) -> bool:
    if isinstance(nest, Mapping):
        nest = list(nest.values())
    if isinstance(nest, Padded) or not isinstance(nest, (list, tuple)):
        return isinstance(nest, Padded)
    return any(map(_has_padded, nest))


def map_tensors(nest: Any, new: Iterator[Any]) -> Any:
    """Replace the tensors of a nest by those of `new`, in order."""
    return apply_to_collection(nest, Tensor, lambda _: next(new))


def _replace(batch: Any, path: Path, new: Any) -> Any:
    """Return a copy of a container with another entry at `path`."""
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


def structure(batch: Any) -> str:
    """Describe a batch's structure, for error messages.

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
