"""Read what version 0.1 wrote.

There the datamodule normalised inputs, and checkpoints had no statistics of them. Scale and shift
are known where models of different training parts were averaged: of folds, members and votes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import STATISTICS, PassOn

_VOTING = "dlblocks.models.voting."
# Today's names of classes.
RENAMED = dict.fromkeys(
    [f"{_VOTING}VotingClassifier", f"{_VOTING}VotingRegressor"], f"{_VOTING}VotingEnsemble"
)


def add_statistics(model: Any, checkpoint: dict[str, Any], saved: Any, source: Any) -> None:
    """Add the statistics of inputs to a checkpoint that has none.

    They are those of the model if these are set, as before a fit, else those of an ensemble's
    description.

    Args:
        model: The model.
        checkpoint: Its checkpoint, of any version. That of today is not changed.
        saved: The description of the model in it.
        source: Origin of the checkpoint, for the message.

    Raises:
        ValueError: The statistics are not known.
    """
    there = checkpoint.get("state_dict", {})
    if "preprocess.scale" in there:
        return
    _set(model.preprocess, saved)
    parts = {k: x for k, x in model.named_modules() if isinstance(x, Preprocess)}
    if not all(part.is_set for part in _leaves(model.preprocess)):
        raise ValueError(
            f"{source} was written by an earlier version of dlblocks, which did not save how "
            "inputs were normalised. Give it: dlblocks.models.load(path, preprocess=…) with "
            "data.preprocess, after data.setup(), of the same datamodule, or "
            "dlblocks.nets.Preprocess(mean, std) of the training part, or Preprocess([0.0], [1.0]) "
            "if inputs were not normalised. dlblocks.load takes the model that this returns."
        )
    for name, part in parts.items():
        there.update({f"{name}.{key}": getattr(part, key) for key in STATISTICS})


def set_statistics(model: Any, statistics: Preprocess) -> None:
    """Set the statistics of a model, or of each of its members."""
    for part in _leaves(model.preprocess):
        part.set(**statistics.statistics())


def plain_statistics(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the statistics of a fit's inputs, as of `Preprocess.to_plain`, or None.

    Args:
        record: The content of ``fold.json`` or ``member.json``.
    """
    if "preprocess" in record:
        found: dict[str, Any] | None = record["preprocess"]
        return found
    pair = record.get("normalisation")
    return None if pair is None else Preprocess().set(**_of_pair(pair)).to_plain()


def statistics_of_earlier(record: Mapping[str, Any]) -> Preprocess | None:
    """Return the statistics of a fit by version 0.1.

    None for a fit by a later version.

    Args:
        record: As for `plain_statistics`.
    """
    if "preprocess" in record:
        return None
    found = plain_statistics(record)
    return Preprocess([0.0], [1.0]) if found is None else Preprocess.from_plain(found)


def _set(preprocess: Preprocess, saved: Any, pair: Any = None) -> None:
    """Set statistics by the ``normalisations`` of an ensemble's description."""
    if isinstance(preprocess, PassOn):
        parts = preprocess.members
        known = saved if isinstance(saved, Mapping) else {}
        described = known.get("members") or []
        if len(described) != len(parts):  # it passes on to a single model
            described = [known] * len(parts)
        pairs = known.get("normalisations") or [pair] * len(parts)
        for part, member, own in zip(parts, described, pairs, strict=True):
            _set(part, member, own)
    elif pair is not None:
        preprocess.set(**_of_pair(pair))


def _leaves(preprocess: Preprocess) -> list[Preprocess]:
    if not isinstance(preprocess, PassOn):
        return [preprocess]
    return [leaf for part in preprocess.members for leaf in _leaves(part)]


def _of_pair(pair: Any) -> dict[str, Tensor]:
    return {name: _exact(values) for name, values in zip(("scale", "shift"), pair, strict=True)}


def _exact(values: Any) -> Tensor:
    """Make a tensor (C,) or ().

    It is float32 if that holds the numbers, else float64.
    """
    wide = torch.tensor(values, dtype=torch.float64)
    narrow = wide.float()
    found = narrow if torch.equal(narrow.double(), wide) else wide
    return found.flatten() if found.ndim else found
