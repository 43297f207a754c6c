"""The figures that a run leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlblocks import plots
from dlblocks.data import DataModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_HARDEST = 20


def curve_figures(
    histories: Sequence[Sequence[Mapping[str, float]]],
    best_epochs: Sequence[int] | None,
    *,
    is_classification: bool,
) -> dict[str, Figure]:
    """The learning curves of one or more fits; `best_epochs` count from 1."""
    metrics = ("loss", "accuracy") if is_classification else ("loss", "rmse")
    best = None if best_epochs is None else [epoch - 1 for epoch in best_epochs]
    if not any(histories):
        return {}
    return {"learning_curves": plots.learning_curves(histories, metrics=metrics, best_epochs=best)}


def score_figure(
    name: str, metric: str, values: Sequence[float], interval: tuple[float, float]
) -> dict[str, Figure]:
    """The metric of every fold of one cross-validation, with its mean and interval."""
    return {"scores": plots.strip({name: values}, intervals={name: interval}, metric=metric)}


def prediction_figures(
    datamodule: DataModule,
    part: str,
    arrays: Mapping[str, np.ndarray],
    *,
    title: str,
) -> dict[str, Figure]:
    """What predictions look like: confusion matrix, reliability and hardest images, or values.

    Args:
        datamodule: Where the samples come from.
        part: ``"train"``, ``"val"`` or ``"test"``: which arrays `index` counts in.
        arrays: ``index``, ``target`` and ``prediction``, each sample once.
        title: Put above the confusion matrix and the reliability diagram.
    """
    targets, predictions, index = arrays["target"], arrays["prediction"], arrays["index"]
    inputs = datamodule.raw_inputs(part)
    if not datamodule.is_classification:
        figures = {
            "predicted_vs_true": plots.predicted_vs_true(targets.ravel(), predictions.ravel())
        }
        if datamodule.input_shape == (1,) and targets.ndim <= 2 and targets.size == len(targets):
            x = inputs[index].numpy().ravel()
            order = np.argsort(x)
            figures["curve"] = plots.curve(x, targets.ravel(), x[order], predictions.ravel()[order])
        return figures
    names = datamodule.class_names or []
    figures = {
        "confusion_matrix": plots.confusion_matrix(
            targets, predictions.argmax(1), names, title=title
        )
    }
    if predictions.min() >= 0 and predictions.max() < 1.01:  # not NaN, as of a failed training
        figures["reliability"] = plots.reliability(targets, predictions, title=title)
    if len(datamodule.input_shape) == 3:
        true = np.take_along_axis(predictions, targets[:, None], axis=1)[:, 0]
        worst = np.argsort(true, kind="stable")[:NUM_HARDEST]
        figures["hardest"] = plots.hardest(
            inputs[index[worst]].numpy(),
            targets[worst],
            predictions[worst],
            names,
            indices=index[worst],
        )
    return figures


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Writes each figure as ``<folder>/<name>.png``."""
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
