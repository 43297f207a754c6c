"""Draw the samples of the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dlblocks._npz import allocate, chunks
from dlblocks.data import SplitDataModule
from dlblocks.models import VotingEnsemble
from dlblocks.models._step_buffer import by_weight
from dlblocks.tasks import PredictionTable
from dlblocks.tasks.multiclass import hard_votes

Rows = npt.NDArray[np.int64]


def draw(
    rows: npt.ArrayLike,
    *,
    seed: int,
    member: int,
    share: float = 1.0,
    replace: bool = True,
    groups: npt.ArrayLike | None = None,
    classes: npt.ArrayLike | None = None,
) -> Rows:
    """Draws a sample of some rows, a function of (seed, member) alone.

    With the defaults it is the bootstrap (Efron 1979): N of N rows with replacement, in which a row
    has the chance 1 - (1 - 1/N)^N ≈ 0.632 to be.

    Args:
        rows: The rows to draw from, int64 of shape (N,).
        seed: Another seed gives other samples.
        member: Number of the member.
        share: Size of the sample over N, in (0, 1]; at least one is drawn.
        replace: Draw with replacement; without, and with a `share` of 1, all rows are returned.
        groups: Group of each row, shape (N,): whole groups are drawn, `share` of their number.
        classes: Class of each row, shape (N,): each class is drawn by itself, `share` of its size.

    Example:
        >>> draw([4, 5, 6], seed=0, member=1).tolist()
        [5, 6, 6]
    """
    pool = np.asarray(rows, dtype=np.int64)
    if share == 1 and not replace:
        return pool
    random = np.random.default_rng((seed, member))

    def some(of: npt.NDArray[Any]) -> npt.NDArray[Any]:
        size = max(1, round(share * len(of)))
        return random.choice(of, size, replace=replace)

    if groups is not None:
        column = np.asarray(groups)
        parts = [pool[column == group] for group in some(np.unique(column))]
        return np.concatenate(parts)
    if classes is not None:
        column = np.asarray(classes)
        return np.concatenate([some(pool[column == c]) for c in np.unique(column)])
    return some(pool)


def draw_all(
    data: SplitDataModule,
    num_members: int,
    *,
    seed: int,
    share: float,
    replace: bool,
    stratify: bool,
) -> list[Rows]:
    """Draw a sample of the training part for each member.

    Data with groups are drawn by whole groups.

    Raises:
        ValueError: `stratify` without classes, or with groups; or a training part of one group.
    """
    rows = data.indices("train").numpy()
    columns = data.columns
    groups = None if columns.groups is None else columns.groups[rows]
    if groups is not None and replace and len(np.unique(groups)) < 2:
        raise ValueError(
            "the training part is of a single group, and whole groups are drawn, so that nothing "
            "would be out of the bag; use bootstrap=False, or data without groups."
        )
    classes = None
    if stratify:
        if not data.is_classification or columns.targets is None:
            raise ValueError("stratify=True needs classes as targets; use stratify=False.")
        if groups is not None:
            raise ValueError(
                "stratify=True cannot be heeded where whole groups are drawn; use stratify=False, "
                "or data without groups."
            )
        classes = columns.targets[rows]
    return [
        draw(
            rows,
            seed=seed,
            member=k,
            share=share,
            replace=replace,
            groups=groups,
            classes=classes,
        )
        for k in range(num_members)
    ]


def missing_classes(data: SplitDataModule, samples: Sequence[Rows]) -> dict[int, list[int]]:
    """Find the classes that members' samples lack."""
    targets = data.columns.targets
    if not data.is_classification or targets is None:
        return {}
    there = np.unique(targets[data.indices("train").numpy()])
    lacking = {k: np.setdiff1d(there, targets[sample]) for k, sample in enumerate(samples)}
    return {k: classes.tolist() for k, classes in lacking.items() if len(classes)}


def combine(
    index: npt.NDArray[np.int64],
    targets: npt.NDArray[Any] | None,
    parts: Sequence[PredictionTable],
    *,
    voting: str,
    folder: Path | None = None,
) -> PredictionTable | None:
    """Combine what each member predicts out of its bag (Breiman 1996).

    A sample is predicted by those members alone whose sample does not have it. One that every
    member was trained on has NaN and 0 votes; it counts in no score.

    Of maps of classes, which segmentation keeps, each pixel gets the class that most members
    predict, of several the first.

    Args:
        index: The rows of the training part, sorted.
        targets: Their targets; None to take them from `parts`.
        parts: Out-of-bag predictions of the members that have some, sorted by index.
        voting: ``"hard"`` for the votes of classes instead of their probabilities.
        folder: Where columns lie that are too large for memory.

    Returns:
        A table with ``index``, ``target``, ``prediction``; ``std``, the standard deviation over the
        members, with their number in the denominator; and ``votes``, how many members predicted a
        sample. Maps of classes have no ``std``. None if the task keeps no predictions.

    Example:
        >>> parts = [{"index": np.array([0, 1]), "prediction": np.array([1.0, 2.0])},
        ...          {"index": np.array([1]), "prediction": np.array([4.0])}]
        >>> parts = [PredictionTable(part) for part in parts]
        >>> combine(np.arange(3), np.zeros(3), parts, voting="soft").prediction
        array([ 1.,  3., nan])
    """
    if not all(part.has("prediction") for part in parts):
        return None
    if parts[0].prediction.dtype.kind in "iu":
        return _vote(index, parts, folder)
    targets = _targets(index, parts, folder) if targets is None else targets
    shape = (len(index), *parts[0].prediction.shape[1:])
    prediction, std = (allocate(shape, np.float64, folder) for _ in range(2))
    votes = np.zeros(len(index), dtype=np.int64)
    for rows in chunks(prediction):
        some = index[rows]
        ends = [np.searchsorted(part.index, [some[0], some[-1] + 1]) for part in parts]
        found = [part[start:stop] for part, (start, stop) in zip(parts, ends, strict=True)]
        prediction[rows], std[rows], votes[rows] = _combine(some, found, shape[1:], voting)
    columns = {"target": targets, "prediction": prediction, "std": std, "votes": votes}
    return PredictionTable({"index": index, **columns}, task=parts[0].task)


def _combine(
    index: Rows, parts: Sequence[PredictionTable], row_shape: tuple[int, ...], voting: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Rows]:
    """Predictions, their standard deviations and the votes of some samples."""
    shape = (len(index), *row_shape)
    total, square = np.zeros(shape), np.zeros(shape)
    combined, votes = np.zeros(shape), np.zeros(len(index), dtype=np.int64)
    # About the first found, so that large means lose no digits.
    pivot = np.zeros(shape)
    for part in parts:
        at = np.searchsorted(index, part.index)
        values = part.prediction.astype(np.float64)
        first = at[votes[at] == 0]
        pivot[first] = values[votes[at] == 0]
        votes[at] += 1
        total[at] += values - pivot[at]
        square[at] += (values - pivot[at]) ** 2
        if voting == "hard":
            combined[at] += hard_votes(torch.from_numpy(values)).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        count = votes.reshape(-1, *(1,) * (len(shape) - 1)).astype(np.float64)
        mean = total / count
        spread = np.sqrt(np.clip(square / count - mean**2, 0, None))
        return combined / count if voting == "hard" else pivot + mean, spread, votes


def _targets(
    index: Rows, parts: Sequence[PredictionTable], folder: Path | None
) -> npt.NDArray[Any]:
    """Return the targets of samples, as they were kept with the predictions.

    Samples without a prediction have targets that do not count.
    """
    kept = parts[0].target
    fill = np.iinfo(kept.dtype).max if kept.dtype == np.uint8 else -1
    targets = allocate((len(index), *kept.shape[1:]), kept.dtype, folder)
    for rows in chunks(targets):
        targets[rows] = fill
    for part in parts:
        at = np.searchsorted(index, part.index)
        for rows in chunks(part.target):
            targets[at[rows]] = part.target[rows]
    return targets


def _vote(index: Rows, parts: Sequence[PredictionTable], folder: Path | None) -> PredictionTable:
    """Give each pixel the class that most members predict."""
    targets = _targets(index, parts, folder)
    first = parts[0].prediction
    shape = (len(index), *first.shape[1:])
    prediction = allocate(shape, first.dtype, folder)
    votes = np.zeros(len(index), dtype=np.int64)
    for part in parts:
        votes[np.searchsorted(index, part.index)] += 1
    num_classes = 1 + max(int(part.prediction.max(initial=0)) for part in parts)
    for rows in chunks(prediction):
        some = index[rows]
        ends = [np.searchsorted(part.index, [some[0], some[-1] + 1]) for part in parts]
        found = [
            (np.searchsorted(some, part.index[start:stop]), part.prediction[start:stop])
            for part, (start, stop) in zip(parts, ends, strict=True)
        ]
        most = np.zeros((len(some), *shape[1:]), np.int32)
        winner = np.zeros((len(some), *shape[1:]), first.dtype)
        for label in range(num_classes):
            count = np.zeros_like(most)
            for at, labels in found:
                count[at] += labels == label
            winner[count > most] = label
            np.maximum(most, count, out=most)
        prediction[rows] = winner
    columns = {"target": targets, "prediction": prediction, "votes": votes}
    return PredictionTable({"index": index, **columns}, task=parts[0].task)


def score(model: VotingEnsemble, oob: PredictionTable) -> dict[str, float]:
    """Compute metrics of the out-of-bag predictions, such as ``oob/loss``.

    They are those that `model` logs of a test set; of maps of classes those of the task, without a
    loss.

    Args:
        model: The ensemble, whose loss and metrics are computed of its predictions.
        oob: The predictions; samples without votes are left out.
    """
    scored = oob[oob.votes > 0]
    if scored.prediction.dtype.kind in "iu":  # votes have no probabilities
        return {f"oob/{name}": value for name, value in model.task.score(scored).items()}
    outputs = model.task.outputs_of(torch.from_numpy(scored.prediction))
    targets = torch.from_numpy(scored.target)
    model.eval()
    model.reset_metrics("test")
    kept: tuple[torch.Tensor, ...] = model.for_metrics(outputs, targets, "test")
    size = torch.tensor([len(targets)])
    model.use_weights("weight" in scored)
    if "weight" in scored:
        weights = torch.from_numpy(scored.weight)
        losses = model.loss(outputs, targets, weights)[None].float()
        losses, size = by_weight(losses, size, weights.sum()[None])
        kept = *kept, weights
    else:
        losses = model.loss(outputs, targets)[None].float()
    model.update_metrics("test", losses, size, *kept)
    found = {
        name.replace("test/", "oob/"): float(value)
        for name, value in model.compute_metrics("test").items()
    }
    model.reset_metrics("test")
    return found
