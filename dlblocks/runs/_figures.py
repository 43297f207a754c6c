"""The figures that a run leaves in its folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dlblocks import plots
from dlblocks._npz import is_finite
from dlblocks.data import DataModule, SplitDataModule
from dlblocks.tasks import Predictions, PredictionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    table: PredictionTable,
    *,
    title: str,
    scores: Mapping[str, float] | None = None,
) -> dict[str, Figure]:
    """Draw predictions, as their task does.

    Predictions that no task explains, or that are not finite, have no figure. Figures of inputs
    need a `DataModule`. Over several repeats all predictions are drawn, but each input once, with
    the mean of its predictions.

    Args:
        datamodule: Where the samples come from.
        part: ``"train"``, ``"val"`` or ``"test"``: which arrays `index` counts in.
        table: The predictions.
        title: Put above the figures.
        scores: The metrics to put there, as `CrossValidationResult.pooled` gives them; None for
            those of all predictions at once.
    """
    repeats = len(np.unique(table.repeat)) if "repeat" in table else 1
    if repeats > 1:
        title += f", {repeats} repeats"
    try:
        of_task = table.of_task()
    except ValueError:
        return {}
    if table.has("prediction") and not is_finite(table.prediction):
        return {}
    shown = Predictions(table, class_names=datamodule.class_names or [], repeats=repeats)
    if isinstance(datamodule, DataModule) and None not in datamodule.input_shape:
        shown.inputs = lambda rows: datamodule.raw_inputs(part)[rows].numpy()
        shown.input_shape = datamodule.input_shape
    figures: dict[str, Figure] = {}
    for name, draw in of_task.figures(shown, title=title, scores=scores).items():
        with drawing(name):
            figures[name] = draw()
    return figures


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
