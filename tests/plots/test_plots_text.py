import numpy as np
import pytest

from dlblocks import plots
from dlblocks.plots.text import WORST_BITS


def test_each_character_has_the_colour_of_its_bits():
    text = "ab\ncde fg$x"
    chances = np.linspace(0.05, 1, len(text))
    figure = plots.text_bits(text, chances, width=4, title="a $b$")
    axis = figure.axes[0]
    grid = axis.images[0].get_array().filled(np.nan)
    assert grid.shape == (3, 4)
    expected = np.full((3, 4), np.nan)
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)]
    places.append((2, 3))
    for place, chance in zip(places, chances, strict=True):
        expected[place] = -np.log2(chance)
    np.testing.assert_allclose(grid, expected)
    drawn = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axis.texts}
    assert [drawn[place] for place in places] == [*"ab↵cde fg", r"\$", "x"]
    figure.canvas.draw()


def test_long_texts_are_cut_and_chances_of_zero_are_drawn():
    figure = plots.text_bits("a" * 100, np.zeros(100), width=10, max_lines=3)
    assert figure.axes[0].images[0].get_array().shape == (3, 10)
    assert figure.axes[0].images[0].get_array().max() == WORST_BITS
    assert len(figure.axes[0].texts) == 30


def test_wrong_lengths():
    with pytest.raises(ValueError, match="equally long, got text 2, probabilities 3"):
        plots.text_bits("ab", [1, 1, 1])
    with pytest.raises(ValueError, match="no sample"):
        plots.text_bits("", [])
