"""The figures that a run leaves in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlblocks import plots
from dlblocks.data import DataModule, SplitDataModule

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
    datamodule: SplitDataModule,
    part: str,
    arrays: Mapping[str, np.ndarray],
    *,
    title: str,
) -> dict[str, Figure]:
    """What predictions look like: confusion matrix, reliability and hardest images, or values.

    Scores of classes that are no probabilities, such as logits, have a confusion matrix only;
    what is neither scores of classes nor one value a target has no figure. What shows inputs is
    for a `DataModule`.

    Args:
        datamodule: Where the samples come from.
        part: ``"train"``, ``"val"`` or ``"test"``: which arrays `index` counts in.
        arrays: ``index``, ``target`` and ``prediction``, each sample once.
        title: Put above the confusion matrix and the reliability diagram.
    """
    targets, predictions, index = arrays["target"], arrays["prediction"], arrays["index"]
    ours = datamodule if isinstance(datamodule, DataModule) else None
    if np.issubdtype(targets.dtype, np.floating):
        if predictions.size != targets.size:
            return {}
        figures = {
            "predicted_vs_true": plots.predicted_vs_true(targets.ravel(), predictions.ravel())
        }
        if ours and ours.input_shape == (1,) and targets.size == len(targets):
            x = ours.raw_inputs(part)[index].numpy().ravel()
            order = np.argsort(x)
            figures["curve"] = plots.curve(x, targets.ravel(), x[order], predictions.ravel()[order])
        return figures
    if not _scores_of_classes(targets, predictions):
        return {}
    num_classes = predictions.shape[1]
    names = datamodule.class_names or []
    if len(names) != num_classes:  # the data do not know of a class that they lack
        names = [str(i) for i in range(num_classes)]
    figures = {
        "confusion_matrix": plots.confusion_matrix(
            targets, predictions.argmax(1), names, title=title
        )
    }
    if predictions.min() < 0 or not np.allclose(predictions.sum(1), 1, atol=1e-2):
        return figures
    figures["reliability"] = plots.reliability(targets, predictions, title=title)
    if ours and len(ours.input_shape) == 3:
        true = np.take_along_axis(predictions, targets[:, None], axis=1)[:, 0]
        worst = np.argsort(true, kind="stable")[:NUM_HARDEST]
        figures["hardest"] = plots.hardest(
            ours.raw_inputs(part)[index[worst]].numpy(),
            targets[worst],
            predictions[worst],
            names,
            indices=index[worst],
        )
    return figures


def _scores_of_classes(targets: np.ndarray, predictions: np.ndarray) -> bool:
    """Whether these are classes (M,) and a score of each (M, C), of which the highest is meant."""
    if not (np.issubdtype(targets.dtype, np.integer) and targets.ndim == 1):
        return False
    if predictions.ndim != 2 or predictions.shape[1] < 2 or not np.isfinite(predictions).all():
        return False
    return bool(targets.min() >= 0 and targets.max() < predictions.shape[1])


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Writes each figure as ``<folder>/<name>.png``."""
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
