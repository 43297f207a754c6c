import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from dlblocks import plots
from dlblocks.files import whole_file

RNG = np.random.default_rng(0)


def history(epochs, offset=0.0):
    return [
        {"epoch": e, "train/loss": 1 / (e + 1) + offset, "val/loss": 1.5 / (e + 1) + offset,
         "val/accuracy": 1 - 0.5 / (e + 1)}
        for e in range(epochs)
    ]  # fmt: skip


def test_learning_curves_show_the_numbers():
    histories = [history(5), history(3, 0.1)]
    figure = plots.learning_curves(histories, best_epochs=[4, 1])
    loss, accuracy = figure.axes
    drawn = {tuple(np.round(line.get_ydata(), 6)) for line in loss.lines}
    for rows in histories:
        for key in ("train/loss", "val/loss"):
            assert tuple(np.round([row[key] for row in rows], 6)) in drawn
    first, second = ([row["val/loss"] for row in rows] for rows in histories)
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=False)]
    assert tuple(np.round(mean, 6)) in drawn  # as far as both ran
    assert tuple(np.round([first[4]], 6)) in drawn  # the dot of the best epoch
    assert loss.get_yscale() == "log"
    assert accuracy.get_ylabel() == "accuracy"
    assert len(plots.learning_curves([history(4)], metrics=["loss"]).axes) == 1


def test_confusion_matrix_shows_the_counts():
    targets, predictions = RNG.integers(0, 4, 200), RNG.integers(0, 4, 200)
    axis = plots.confusion_matrix(targets, predictions, list("abcd")).axes[0]
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    counts = sklearn_confusion_matrix(targets, predictions)
    for i in range(4):
        for j in range(4):
            assert texts[(j, i)] == str(counts[i, j])
        recall = f"{100 * counts[i, i] / counts[i].sum():.1f} %"
        assert recall in texts.values()
    assert f"{(targets != predictions).sum()} of 200 wrong" in axis.get_title()


def test_confusion_matrix_of_a_class_that_never_occurs():
    axis = plots.confusion_matrix([0, 1], [0, 1], list("abc")).axes[0]
    assert "–" in [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("shape", [(30, 1, 5, 4), (30, 3, 5, 4), (30, 5, 4)])
def test_hardest_are_those_with_the_least_probability(shape):
    probabilities = RNG.dirichlet(np.ones(3), 30)
    targets = RNG.integers(0, 3, 30)
    figure = plots.hardest(
        RNG.random(shape), targets, probabilities, list("abc"), indices=np.arange(100, 130), count=7
    )
    true = probabilities[np.arange(30), targets]
    expected = [f"sample {100 + i}" for i in np.argsort(true)[:7]]
    shown = [axis.get_xlabel().split("\n")[1] for axis in figure.axes if axis.get_xlabel()]
    assert shown == expected
    first = np.argmin(true)
    guess = "abc"[probabilities[first].argmax()]
    assert figure.axes[0].get_title() == f"{'abc'[targets[first]]} → {guess}"


@pytest.mark.parametrize("shape", [(6, 1, 5, 4), (6, 3, 5, 4), (6, 5, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batch_shows_images_in_order_and_on_one_scale(shape, dtype):
    images = RNG.integers(10, 200, shape).astype(dtype)
    axes = [axis for axis in plots.batch(images, np.arange(6)).axes if axis.images]
    assert len(axes) == 6
    scaled = images if dtype == np.uint8 else (images - images.min()) / np.ptp(images)
    for axis, image in zip(axes, scaled, strict=True):
        if image.ndim == 3:
            image = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        np.testing.assert_allclose(axis.images[0].get_array(), image)
        if image.ndim == 2:  # no image is stretched by its own range
            assert axis.images[0].get_clim() == (0, 255 if dtype == np.uint8 else 1)


@pytest.mark.parametrize(
    ("target", "names", "label"),
    [
        (2, ["a", "b", "c"], "c"),
        (2, None, "2"),
        ([0.0, 0.38, 0.62], ["a", "b", "c"], "c: 62 %, b: 38 %"),
        ([0.0, 0.38, 0.62], ["cat", "horse", "dog"], "dog: 62 %\nhorse: 38 %"),
        ([0.001, 0.999, 0.0], ["a", "b", "c"], "b"),
        ([0.4, 0.3, 0.2, 0.1], None, "0: 40 %, 1: 30 %, 2: 20 %"),
        (0.12345, None, "0.123"),
        ([7.5], None, "7.5"),
    ],
)
def test_batch_says_the_labels(target, names, label):
    figure = plots.batch(np.zeros((1, 1, 4, 4)), np.array([target]), names)
    assert figure.axes[0].get_xlabel() == label


def test_values_over_values():
    y = RNG.normal(size=50)
    figure = plots.predicted_vs_true(y, y + 0.5)
    assert "RMSE 0.5" in figure.axes[0].get_title()
    x = np.linspace(0, 1, 50)
    lines = plots.curve(x, y, x, y + 1, truth=y).axes[0].lines
    np.testing.assert_allclose(lines[-1].get_ydata(), y + 1)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.learning_curves([]), "empty"),
        (lambda: plots.batch(np.zeros((2, 4, 8, 8)), [0, 1]), "have 4 channels; only 1"),
        (lambda: plots.batch(np.zeros((2, 1, 8, 8)), [0]), "images 2, targets 1"),
        (lambda: plots.learning_curves([history(2)], best_epochs=[1, 2]), "one a fit"),
        (lambda: plots.confusion_matrix([0, 1], [0], ["a", "b"]), "targets 2, predictions 1"),
        (lambda: plots.confusion_matrix([0, 2], [0, 1], ["a", "b"]), "label 2 has no name"),
        (lambda: plots.predicted_vs_true([], []), "no sample"),
        (lambda: plots.hardest(np.zeros((2, 4, 4)), [0], np.ones((1, 2)), ["a", "b"]), "images 2"),
    ],
)
def test_bad_input(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_saved_whole_or_not_at_all(tmp_path):
    figure = plots.learning_curves([history(3)])
    path = tmp_path / "deep" / "curves.png"
    plots.save(figure, path)
    before = path.read_bytes()
    assert before[:4] == b"\x89PNG"

    def fail(*args, **kwargs):
        args[0].write_bytes(b"half")
        raise OSError("disk full")

    figure.savefig = fail
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_whole_file_gives_the_usual_permissions(tmp_path):
    with whole_file(tmp_path / "a.txt") as part:
        part.write_text("x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_no_display_is_touched():
    code = (
        "import sys; from dlblocks import plots; "
        "plots.learning_curves([[{'epoch': 0, 'val/loss': 1.0}]]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
