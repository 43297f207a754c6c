"""Figures of masks: colours where classes are, light grey where nothing counts, shares in cells."""

import numpy as np
import pytest

from dlblocks import plots
from dlblocks.plots.masks import IGNORED


def pixels(axis):
    return np.asarray(axis.images[0].get_array())


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_overlays_colour_what_has_a_class(dtype):
    images = np.full((3, 1, 4, 5), 100, np.uint8)
    targets, guesses = np.zeros((2, 3, 4, 5), dtype)
    targets[0, 1, 1], targets[0, 2, 2] = 1, 255
    guesses[0, 1, 1] = 2
    figure = plots.overlays(images, targets, guesses, ["a", "b", "c"], titles=["x", "y", "z"])
    left, right = (pixels(axis) for axis in figure.axes[:2])
    assert np.ptp(left[0, 0]) == 0  # grey: the background
    assert np.ptp(left[1, 1]) > 0.3
    np.testing.assert_allclose(left[2, 2], IGNORED)
    assert np.abs(left[1, 1] - right[1, 1]).max() > 0.2  # another class
    assert np.ptp(right[2, 2]) == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "c"]
    with pytest.raises(ValueError, match="targets"):
        plots.overlays(images, targets[:2], guesses, ["a", "b", "c"])


def test_confusion_has_shares_of_rows():
    figure = plots.pixel_confusion([[90, 10], [0, 0]], ["a", "b"], title="t")
    said = {text.get_text() for text in figure.axes[0].texts}
    assert said == {"90.0", "10.0"}
    assert "90.00 % of 100 pixels right" in figure.axes[0].get_title()
    with pytest.raises(ValueError, match="expected"):
        plots.pixel_confusion([[1, 2]], ["a", "b"])
    plots.pixel_confusion(np.zeros((2, 2)), ["a", "b"])
    plots.pixel_confusion(np.eye(40), [str(i) for i in range(40)])
