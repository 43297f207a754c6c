"""Give a fold average its prediction intervals and temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dlblocks.models import VotingEnsemble, VotingModule
from dlblocks.tasks import PredictionTable, Task, task_names


def calibrate(
    average: VotingEnsemble | VotingModule,
    oof: PredictionTable | None,
    folds: Sequence[Mapping[str, Any]],
) -> None:
    """Give a fold average the scores for its prediction intervals.

    Args:
        average: The fold average.
        oof: Out-of-fold predictions.
        folds: The rows of the fits, one a member.
    """
    if oof is None or not oof.has("target", "prediction"):
        return
    if oof.sample_weight is not None:
        return  # CV+ counts samples, and would not have the coverage of weighted ones
    name = task_of(oof)
    if name is None:
        return
    task = task_names()[name]
    prediction = oof.prediction
    if isinstance(average, VotingEnsemble) and average.temperature != 1:
        outputs = average.task.outputs_of(torch.from_numpy(np.array(prediction)))
        prediction = average.task.predict(outputs / average.temperature).numpy()
    scores = task.conformal_scores(oof.target, prediction)
    if scores is None or not np.isfinite(scores).all():
        return
    numbers = {(row["repeat"], row["fold"]): k for k, row in enumerate(folds)}
    member = [numbers[place] for place in zip(oof.repeat.tolist(), oof.fold.tolist(), strict=True)]
    average.calibration.set(torch.tensor(member), torch.from_numpy(scores))


def task_of(oof: PredictionTable | None) -> str | None:
    """Return the task's name, or None if it is not clear."""
    try:
        return None if oof is None else oof.of_task().name
    except ValueError:
        return None


def best_temperature(task: Task, oof: PredictionTable | None) -> float:
    """Fit the temperature to the out-of-fold predictions (Guo et al. 2017).

    It is the T in 0.05 … 20 for which the loss of the logits divided by T is smallest. Logits are
    those of the fold models.
    """
    from scipy.optimize import minimize_scalar

    if oof is None or not oof.has("target", "prediction") or not task.votes:
        raise ValueError(
            "fit_temperature=True needs out-of-fold probabilities of classes, which this result "
            "does not have."
        )
    outputs = task.outputs_of(torch.from_numpy(np.array(oof.prediction))).double()
    targets = torch.from_numpy(np.array(oof.target))
    task = task.for_ensemble().eval()
    weights = oof.sample_weight
    beside = [] if weights is None else [torch.from_numpy(np.array(weights))]

    def loss(log_temperature: float) -> float:
        return float(task.loss(outputs / math.exp(log_temperature), targets, *beside))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))
