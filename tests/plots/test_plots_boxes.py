"""Figures of boxes: what is drawn where."""

import matplotlib
import numpy as np
import pytest

from dlblocks import plots


def test_boxes_are_drawn_where_they_are():
    images = np.random.default_rng(0).random((3, 3, 20, 30))
    targets = [np.array([[2, 3, 10, 12, 1.0]]), np.zeros((0, 5)), np.array([[0, 0, 30, 20, 0.0]])]
    guesses = [np.array([[2, 4, 11, 12, 0.75, 0], [5, 5, 6, 6, 0.5, 1]]), np.zeros((0, 6)),
               np.zeros((0, 6))]  # fmt: skip
    figure = plots.boxes(images, targets, guesses, ["cat", "dog"], titles=["a", "b", "c"])
    first, second, third = [axis for axis in figure.axes if axis.images]
    assert [patch.get_bbox().extents.tolist() for patch in first.patches] == [
        [2, 3, 10, 12], [2, 4, 11, 12], [5, 5, 6, 6]
    ]  # fmt: skip
    assert [patch.get_linestyle() for patch in first.patches] == ["-", "--", "--"]
    assert [text.get_text() for text in first.texts] == ["dog", "cat 0.75", "dog 0.50"]
    assert not second.patches
    assert third.patches[0].get_bbox().extents.tolist() == [0, 0, 30, 20]
    # Pixel i covers i … i + 1.
    assert first.images[0].get_extent() == [0, 30, 20, 0]
    green, red = (matplotlib.colors.to_rgba(colour) for colour in (plots.GREEN, plots.RED))
    assert [patch.get_edgecolor() for patch in first.patches] == [green, red, red]


def test_grey_images_and_one_class():
    figure = plots.boxes(np.zeros((1, 1, 8, 8), np.uint8), [[[1, 1, 4, 4, 0]]], class_names=["x"])
    assert [text.get_text() for text in figure.axes[0].texts] == [""]
    with pytest.raises(ValueError, match="targets"):
        plots.boxes(np.zeros((2, 1, 8, 8)), [[[1, 1, 4, 4, 0]]])
