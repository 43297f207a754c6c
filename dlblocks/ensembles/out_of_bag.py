"""What members of an ensemble predict for the samples that they have not been trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dlblocks.models import VotingClassifier, VotingRegressor
from dlblocks.models.voting import NO_VOTE, hard_votes


@dataclass
class OutOfBag:
    """The combined out-of-bag prediction of every sample of the training part (Breiman 1996).

    Each is made by those members alone whose sample does not have it. A sample that every member
    was trained on has NaN, and 0 `votes`; it counts in no score.

    Attributes:
        index: The sample's row in its data set, int64 of shape (N,), sorted.
        target: Its target, shape (N,) or (N, D).
        prediction: Probabilities (N, C), of hard voting the shares of the votes; or values of the
            target's shape.
        spread: Standard deviation over the members of their probabilities or values, of the same
            shape as `prediction`; with their number in the denominator.
        votes: How many members predicted it, int64 of shape (N,).
    """

    index: npt.NDArray[np.int64]
    target: npt.NDArray[Any]
    prediction: npt.NDArray[np.floating]
    spread: npt.NDArray[np.floating]
    votes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Which samples have a prediction, bool of shape (N,)."""
        return self.votes > 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """``index``, ``target`` and ``prediction`` of the samples that have one."""
        names = ("index", "target", "prediction")
        return {name: getattr(self, name)[self.predicted] for name in names}


def combine(
    index: npt.NDArray[np.int64],
    targets: npt.NDArray[Any],
    parts: Sequence[Mapping[str, npt.NDArray[Any]]],
    *,
    voting: str,
) -> OutOfBag:
    """Combines what each member predicts out of its bag.

    Args:
        index: The rows of the training part, sorted.
        targets: Their targets.
        parts: For each member ``index`` and ``prediction`` of its out-of-bag samples; empty if it
            has none.
        voting: ``"hard"`` for the votes of classes instead of their probabilities.

    Example:
        >>> parts = [{"index": np.array([0, 1]), "prediction": np.array([1.0, 2.0])},
        ...          {"index": np.array([1]), "prediction": np.array([4.0])}]
        >>> combine(np.arange(3), np.zeros(3), parts, voting="soft").prediction
        array([ 1.,  3., nan])
    """
    found = [part for part in parts if part]
    if not found:
        raise ValueError("every member was trained on all samples; there is nothing out of a bag.")
    shape = (len(index), *found[0]["prediction"].shape[1:])
    total, square = np.zeros(shape), np.zeros(shape)
    combined, votes = np.zeros(shape), np.zeros(len(index), dtype=np.int64)
    # About the first found, so that large means lose no digits.
    pivot = np.zeros(shape)
    for part in found:
        at = np.searchsorted(index, part["index"])
        values = part["prediction"].astype(np.float64)
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
        prediction = combined / count if voting == "hard" else pivot + mean
    return OutOfBag(index, targets, prediction, spread, votes)


def score(model: VotingClassifier | VotingRegressor, oob: OutOfBag) -> dict[str, float]:
    """Metrics of the out-of-bag predictions, as `model` logs them of a test set: ``oob/loss`` etc.

    Args:
        model: The ensemble, whose loss and metrics are computed of its predictions.
        oob: The predictions.
    """
    arrays = oob.arrays()
    outputs = torch.from_numpy(arrays["prediction"])
    targets = torch.from_numpy(arrays["target"])
    if isinstance(model, VotingClassifier):
        # The outputs of a classifier are logits: log p, whose softmax is p.
        least = NO_VOTE if model.voting == "hard" else torch.finfo(torch.float32).tiny
        outputs = outputs.clamp(min=least).log()
    elif outputs.ndim == 1:
        outputs = outputs.unsqueeze(1)
    model.eval()
    model.reset_metrics("test")
    loss = model.loss(outputs, targets)
    kept = model.for_metrics(outputs, targets, "test")
    model.update_metrics("test", loss[None].float(), torch.tensor([len(targets)]), *kept)
    found = {
        name.replace("test/", "oob/"): float(value)
        for name, value in model.compute_metrics("test").items()
    }
    model.reset_metrics("test")
    return found
