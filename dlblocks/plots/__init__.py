"""Draw the figures of an experiment with matplotlib.

They are `Figure`s without a display and without global state. A notebook shows one at the end of a
cell; `save` writes it to a file.
"""

from dlblocks.plots._style import BLUE, GREEN, GREY, ORANGE, RED, save
from dlblocks.plots.attention import attention, attention_on_images
from dlblocks.plots.boxes import boxes
from dlblocks.plots.classes import confusion_matrix, labels, reliability
from dlblocks.plots.comparison import comparison
from dlblocks.plots.fits import curve_metrics, learning_curves, strip
from dlblocks.plots.forecast import forecasts
from dlblocks.plots.images import answers, batch, hardest
from dlblocks.plots.masks import overlays, pixel_confusion
from dlblocks.plots.ranking import ranking
from dlblocks.plots.text import text_bits
from dlblocks.plots.values import curve, lines, predicted_vs_true

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "answers",
    "attention",
    "attention_on_images",
    "batch",
    "boxes",
    "comparison",
    "confusion_matrix",
    "curve",
    "curve_metrics",
    "forecasts",
    "hardest",
    "labels",
    "learning_curves",
    "lines",
    "overlays",
    "pixel_confusion",
    "predicted_vs_true",
    "ranking",
    "reliability",
    "save",
    "strip",
    "text_bits",
]
