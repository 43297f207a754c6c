"""A score for each image, and new images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dlblocks import plots
from dlblocks._scores import Weighted
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_WORST = 20


class GenerativeTask(Task):
    """Give each image a probability.

    A prediction is the code length of an image in bits per dimension (N,): -log2 p(image) divided
    by the number of pixels and channels. It needs no targets.

    Out-of-fold and test predictions keep it as ``prediction``, and the class, if there is one, as
    ``target``.
    """

    name = "generative"
    measure = "bits_per_dim"
    """Name of the score of an image; lower is better."""
    worst = "least likely images, bits per dimension"
    shown = (measure,)

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        if isinstance(target, Tensor) and target.ndim == 1:
            return {"target": target, "prediction": prediction}
        return {"target": torch.zeros(len(prediction)), "prediction": prediction}

    def for_ensemble(self) -> Task:
        raise ValueError(
            "generative models have no average; sample from the model of one fold, or refit one on "
            "all samples."
        )

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        mean = np.average(np.asarray(table.prediction, float), weights=table.sample_weight)
        return {cls.measure: float(mean)}

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        scores = np.asarray(prediction, float)
        return {cls.measure: lambda weights: weights @ scores / weights.sum(-1)}

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {cls.measure: prediction}

    @classmethod
    def answers(
        cls, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {cls.measure: prediction}

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw the images with the highest scores."""
        if table.inputs is None or len(table.input_shape) != 3 or not len(table):
            return {}
        inputs = table.inputs

        def worst() -> Figure:
            order = np.argsort(-table.prediction, kind="stable")[:NUM_WORST]
            said = [f"{value:.2f}" for value in table.prediction[order]]
            figure = plots.batch(inputs(table.index[order]), np.array(said))
            figure.suptitle(f"{title}: {cls.worst}", fontsize=11)
            return figure

        return {"least_likely": worst}


class SampleTask(GenerativeTask):
    """Make images without giving them a probability.

    A prediction is the energy score of an image (N,), a distance from samples: see
    `dlblocks.models.GAN`.
    """

    name = "samples"
    measure = "energy_score"
    worst = "images farthest from samples, energy score"
    shown = (measure,)
