"""The figures of an experiment, as matplotlib `Figure`s that touch no display and no global state.

Show one in a notebook by ending a cell with it; write one with `save`.
"""

from dlblocks.plots._style import BLUE, GREEN, GREY, ORANGE, RED, save
from dlblocks.plots.classes import confusion_matrix, labels, reliability
from dlblocks.plots.fits import curve_metrics, learning_curves, strip
from dlblocks.plots.images import batch, hardest
from dlblocks.plots.masks import overlays, pixel_confusion
from dlblocks.plots.ranking import ranking
from dlblocks.plots.values import curve, predicted_vs_true

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "batch",
    "confusion_matrix",
    "curve",
    "curve_metrics",
    "hardest",
    "labels",
    "learning_curves",
    "overlays",
    "pixel_confusion",
    "predicted_vs_true",
    "ranking",
    "reliability",
    "save",
    "strip",
]
