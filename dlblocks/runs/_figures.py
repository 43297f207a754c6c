"""The figures that a run leaves in its folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlblocks import plots
from dlblocks._scores import are_probabilities, kind_of
from dlblocks.data import DataModule, SplitDataModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_HARDEST = 20
MAX_CLASSES = 1000  # a matrix of more might not fit into memory


def curve_figures(
    histories: Sequence[Sequence[Mapping[str, float]]],
    best_epochs: Sequence[int] | None,
    *,
    monitor: str = "val/loss",
) -> dict[str, Figure]:
    """Draw the learning curves of fits, if they logged a metric.

    Args:
        histories: For each fit one row an epoch.
        best_epochs: The selected epoch of each fit, from 1.
        monitor: The metric that selected it.
    """
    if not plots.curve_metrics(histories):
        return {}
    best = None if best_epochs is None else [epoch - 1 for epoch in best_epochs]
    with drawing("learning_curves") as figures:
        figures["learning_curves"] = plots.learning_curves(
            histories, best_epochs=best, monitor=monitor
        )
    return figures


def score_figure(
    name: str, metric: str, values: Sequence[float], interval: tuple[float, float]
) -> dict[str, Figure]:
    """Draw a metric of every fold, with its mean and interval."""
    with drawing("scores") as figures:
        figures["scores"] = plots.strip({name: values}, intervals={name: interval}, metric=metric)
    return figures


def prediction_figures(
    datamodule: SplitDataModule,
    part: str,
    arrays: Mapping[str, np.ndarray],
    *,
    title: str,
    scores: Mapping[str, float] | None = None,
) -> dict[str, Figure]:
    """Draw predictions of classes or of values.

    Classes have a confusion matrix, reliability and hardest images; values are drawn over the true
    ones. Predicted classes, and scores that are not probabilities, such as logits, have a
    confusion matrix only. Predictions that `dlblocks._scores.kind_of` refuses, or that are not
    finite, have no figure. Figures of inputs need a `DataModule`. Over several repeats all
    predictions are drawn, but each input once, with the mean of its predictions.

    Args:
        datamodule: Where the samples come from.
        part: ``"train"``, ``"val"`` or ``"test"``: which arrays `index` counts in.
        arrays: ``index``, ``target`` and ``prediction``; and ``repeat`` if there are several.
        title: Put above the figures.
        scores: The metrics to put there, as `CrossValidationResult.pooled` gives them; None for
            those of all predictions at once.
    """
    target, prediction, index = arrays["target"], arrays["prediction"], arrays["index"]
    repeats = len(np.unique(arrays["repeat"])) if "repeat" in arrays else 1
    if repeats > 1:
        title += f", {repeats} repeats"
    try:
        kind = kind_of(target, prediction)
    except ValueError:
        return {}
    if not np.isfinite(prediction).all():
        return {}
    ours = datamodule if isinstance(datamodule, DataModule) else None
    figures: dict[str, Figure] = {}
    if kind == "values":
        with drawing("predicted_vs_true"):
            figures["predicted_vs_true"] = plots.predicted_vs_true(
                target, prediction.reshape(target.shape), title=title, scores=scores or None
            )
        if ours and ours.input_shape == (1,) and target.size == len(target):
            with drawing("curve"):
                index, target, prediction = _means(index, target, prediction)
                x = ours.raw_inputs(part)[index].numpy().ravel()
                order = np.argsort(x)
                figures["curve"] = plots.curve(
                    x, target.ravel(), x[order], prediction.ravel()[order]
                )
        return figures
    predicted = prediction if kind == "labels" else prediction.argmax(1)
    if min(target.min(), predicted.min()) < 0:
        return {}  # numbers that are not those of classes
    names = datamodule.class_names or []
    if kind == "scores":
        num_classes = prediction.shape[1]
    else:
        num_classes = int(max(len(names), target.max() + 1, predicted.max() + 1))
    if num_classes > MAX_CLASSES:
        return {}
    if len(names) != num_classes:  # the data do not know of a class that they lack
        names = [str(i) for i in range(num_classes)]
    with drawing("confusion_matrix"):
        figures["confusion_matrix"] = plots.confusion_matrix(target, predicted, names, title=title)
    if kind == "labels" or not are_probabilities(prediction):
        return figures
    error = (scores or {}).get("calibration_error")
    with drawing("reliability"):
        figures["reliability"] = plots.reliability(target, prediction, title=title, error=error)
    if ours and len(ours.input_shape) == 3:
        with drawing("hardest"):
            index, target, prediction = _means(index, target, prediction)
            true = np.take_along_axis(prediction, target[:, None], axis=1)[:, 0]
            worst = np.argsort(true, kind="stable")[:NUM_HARDEST]
            figures["hardest"] = plots.hardest(
                ours.raw_inputs(part)[index[worst]].numpy(),
                target[worst],
                prediction[worst],
                names,
                indices=index[worst],
                title="hardest samples" + (f", means of {repeats} repeats" if repeats > 1 else ""),
            )
    return figures


def _means(
    index: np.ndarray, target: np.ndarray, prediction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average the predictions of each sample; sorted by index."""
    once, first, where, counts = np.unique(
        index, return_index=True, return_inverse=True, return_counts=True
    )
    sums = np.zeros((len(once), *prediction.shape[1:]))
    np.add.at(sums, where, prediction)
    return once, target[first], sums / counts.reshape(-1, *(1,) * (prediction.ndim - 1))


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Write figures as ``<folder>/<name>.png`` and return those that were written."""
    written = {}
    for name, figure in figures.items():
        with drawing(name):
            plots.save(figure, folder / f"{name}.png")
            written[name] = figure
    return written


@contextlib.contextmanager
def drawing(name: str) -> Iterator[dict[str, Figure]]:
    """Turn an error of drawing into a warning.

    A figure never costs a result.

    Args:
        name: The figure, for the warning.

    Yields:
        An empty dictionary for the figure.
    """
    try:
        yield {}
    except Exception as error:
        warnings.warn(
            f"The figure {name} could not be drawn and is left out: {error!r}", stacklevel=4
        )
