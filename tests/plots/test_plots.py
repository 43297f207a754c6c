import io
import math

import commands
import numpy as np
import pytest
import torch
from conftest import no_address
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from sklearn.metrics import r2_score

from dlblocks import plots
from dlblocks._files import atomic_write
from dlblocks.metrics import classification_metrics

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


def band_at(collection, epoch):
    """Lower and upper edge of a filled band at one epoch."""
    x, y = collection.get_paths()[0].vertices.T
    return y[x == epoch].min(), y[x == epoch].max()


def test_learning_curves_have_a_band_as_far_as_all_fits_ran():
    histories = [history(5), history(3, 0.1), history(4, 0.3)]
    for rows in histories:
        for row in rows:
            row["train/accuracy"] = 0.2 * row["epoch"] + row["train/loss"]
    loss, accuracy = plots.learning_curves(histories).axes
    for axis, metric in ((loss, "loss"), (accuracy, "accuracy")):
        bands = dict(zip(("train", "val"), axis.collections, strict=True))
        for part, band in bands.items():
            assert set(band.get_paths()[0].vertices[:, 0]) == {1, 2, 3}
            for epoch in (1, 2, 3):
                values = [rows[epoch - 1][f"{part}/{metric}"] for rows in histories]
                mean, std = np.mean(values), np.std(values, ddof=1)
                assert band_at(band, epoch) == pytest.approx((mean - std, mean + std))
        low, high = axis.get_ylim()
        for line in axis.lines:  # all is in sight
            assert low <= min(line.get_ydata(), default=low)
            assert max(line.get_ydata(), default=high) <= high
    assert not plots.learning_curves([history(5)]).axes[0].collections


def test_a_band_that_reaches_below_zero_stays_on_a_logarithmic_axis():
    histories = [[{"epoch": 0, "val/loss": value}] for value in (0.01, 0.02, 5.0)]
    axis = plots.learning_curves(histories, metrics=["loss"]).axes[0]
    assert axis.get_yscale() == "log"
    assert band_at(axis.collections[0], 1)[0] > 0
    assert 0.001 < axis.get_ylim()[0] < 0.01


def test_losses_that_differ_little_are_drawn_on_a_plain_axis():
    histories = [[{"epoch": 0, "val/loss": 0.3}, {"epoch": 1, "val/loss": 0.2}]]
    assert plots.learning_curves(histories, metrics=["loss"]).axes[0].get_yscale() == "linear"


def test_fits_that_share_no_epoch_have_no_band():
    histories = [[{"epoch": 0, "val/loss": 1.0}], [{"epoch": 1, "val/loss": 2.0}]]
    figure = plots.learning_curves(histories, metrics=["loss"])
    figure.savefig(io.BytesIO())


EPOCHS = [0, 1, 2]
NAMES = {
    "slash": ("train/loss", "val/loss"),
    "underscore": ("train_loss", "valid_loss"),
    "per epoch": ("train_loss_epoch", "validation_loss"),
    "behind": ("loss/train", "loss/val"),
    "selection": ("train/loss", "selection/loss"),
    "training without a part": ("loss", "selection/loss"),
    "validation without a part": ("training_loss", "loss"),
}


def named_history(*names, **more):
    return [
        {"epoch": e, **{name: 1 + i + 0.1 * e for i, name in enumerate(names)}, **more}
        for e in EPOCHS
    ]


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_learning_curves_pair_the_parts_of_a_metric_of_any_name(names):
    of_steps = {"train_loss_step": 7.0} if "train_loss_epoch" in names else {}
    rows = named_history(*names, **of_steps)
    monitor = names[1].replace("selection", "val")
    (axis,) = plots.learning_curves([rows], best_epochs=[1], monitor=monitor).axes
    part = "selection" if "selection" in names[1] else "validation"
    assert legend(axis) == ["training", part]
    training, held_out, dot = axis.lines
    assert list(training.get_ydata()) == [row[names[0]] for row in rows]
    assert list(held_out.get_ydata()) == [row[names[1]] for row in rows]
    assert (*dot.get_xdata(), *dot.get_ydata()) == (2, rows[1][names[1]])
    assert dot.get_color() == held_out.get_color() != training.get_color()


def test_learning_curves_of_training_alone_have_no_empty_panel_and_no_dots():
    """As ``select="last"`` leaves it: nothing is validated, so no epoch is selected."""
    rows = named_history("train/loss", "train/accuracy")
    axes = plots.learning_curves([rows, rows], best_epochs=[2, 2], monitor="val/loss").axes
    assert [axis.get_ylabel() for axis in axes] == ["loss", "accuracy"]
    for axis in axes:
        assert legend(axis) == ["training: mean ± std, 2 fits"]
        assert not [line for line in axis.lines if line.get_marker() == "o"]
    # An epoch that a metric of training has selected is marked on it.
    (axis,) = plots.learning_curves(
        [rows], metrics=["loss"], best_epochs=[2], monitor="train/loss"
    ).axes
    assert [line.get_marker() for line in axis.lines] == ["None", "o"]


def test_learning_curves_show_the_loss_then_the_monitor_then_others_up_to_four():
    rows = named_history("a", "train/b", "val/b", "val/auc", "val/c", "lr-Adam", "train/loss")
    rows[0]["step"] = rows[0]["val/d"] = math.nan
    names = [axis.get_ylabel() for axis in plots.learning_curves([rows], monitor="val/auc").axes]
    assert names == ["loss", "auc", "b", "a"] == plots.curve_metrics([rows], monitor="val/auc")
    alone = plots.learning_curves([named_history("acc")], best_epochs=[0], monitor="acc").axes[0]
    assert legend(alone) == ["acc"]
    assert alone.lines[-1].get_marker() == "o"
    assert plots.curve_metrics([]) == plots.curve_metrics([[{"epoch": 0}]]) == []
    three = plots.learning_curves([named_history("val/a", "val/b", "val/c")])
    assert len(three.axes) == 3


def test_texts_are_drawn_as_they_are():
    """matplotlib reads ``$…$`` as mathematics, and fails where it is not."""
    names = ["$x_$", r"$\frac$"]
    shares = np.array([[0.9, 0.1], [0.2, 0.8]])
    for figure in (
        plots.confusion_matrix([0, 1], [0, 1], names, title="$x_$"),
        plots.hardest(np.zeros((2, 4, 4)), [0, 1], shares, names, title="$x_$"),
        plots.batch(np.zeros((2, 4, 4)), np.array([0, 1]), names),
        plots.strip({"$x_$": [1, 2]}, metric="$x_$"),
        plots.reliability([0, 1], shares, title="$x_$"),
        plots.predicted_vs_true([0.0, 1.0], [0.0, 1.0], title="$x_$"),
        plots.learning_curves([[{"epoch": 0, "val/$x_$": 1.0}]] * 2),
    ):
        figure.savefig(io.BytesIO())


def test_strip_shows_every_fold_the_mean_and_the_interval():
    values = {"MLP": [0.9, 0.95, 0.9, 0.8], "CNN": [0.99, 0.98, 0.97]}
    axis = plots.strip(
        values, intervals={"MLP": (0.85, 0.93)}, metric="val/accuracy", dots="seeds"
    ).axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [sorted(line.get_xdata()) for line in dots] == [sorted(row) for row in values.values()]
    places = set(zip(dots[0].get_xdata(), dots[0].get_ydata(), strict=True))
    assert len(places) == 4  # of equal scores none hides another
    means = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D"]
    assert means == pytest.approx([np.mean(row) for row in values.values()])
    assert [0.85, 0.93] in [list(line.get_xdata()) for line in axis.lines]
    said = [text.get_text() for text in axis.texts]
    assert said == ["mean 0.8875, 95 % interval 0.85 … 0.93", "mean 0.98"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["MLP", "CNN"]
    assert axis.get_xlabel() == "val/accuracy (dots: seeds)"


def test_lines_show_mean_and_range_of_repeats():
    repeats = np.array([[1.0, 2.0, np.nan], [3.0, 5.0, 4.0]])
    curves = {"MLP": repeats, "CNN": [0.5, 0.25, 0.125]}
    axis = plots.lines(curves, [1, 10, 100], xlabel="rate", ylabel="loss", log="xy").axes[0]
    mean, single = axis.lines
    np.testing.assert_allclose(np.ma.filled(mean.get_ydata(), np.nan), [2, 3.5, 4])
    np.testing.assert_allclose(single.get_ydata(), curves["CNN"])
    assert list(single.get_xdata()) == [1, 10, 100]
    (band,) = axis.collections
    assert [band_at(band, x) for x in (1, 10, 100)] == [(1, 3), (2, 5), (4, 4)]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["MLP", "CNN"]
    for count in (12, 17):
        many = plots.lines({str(i): [i, 2 * i] for i in range(count)}).axes[0]
        assert list(many.lines[3].get_xdata()) == [1, 2]
        assert len({(str(a.get_color()), a.get_linestyle()) for a in many.lines}) == count


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])  # from unsure to probabilities of 1
@pytest.mark.parametrize("classes", [2, 10])
def test_reliability_has_the_error_that_the_models_log(scale, classes):
    logits = torch.tensor(scale * RNG.normal(size=(400, classes)), dtype=torch.float32)
    probabilities = logits.softmax(1)
    targets = torch.tensor(RNG.integers(0, classes, 400))
    targets[:200] = logits[:200].argmax(1)
    metric = classification_metrics(classes)["calibration_error"]
    metric.update(probabilities, targets)
    title = plots.reliability(targets, probabilities, title="Test").axes[0].get_title()
    assert title == f"Test:\nexpected calibration error {float(metric.compute()):.4f}"


def test_reliability_keeps_a_confidence_of_one_apart_as_the_models_do():
    probabilities = torch.tensor([[1.0, 0.0], *[[0.95, 0.05]] * 3])
    targets = torch.tensor([1, 0, 0, 0])
    metric = classification_metrics(2)["calibration_error"]
    metric.update(probabilities, targets)
    assert float(metric.compute()) == pytest.approx(0.2875)  # 1/4 · |0 - 1| + 3/4 · |1 - 0.95|
    assert "0.2875" in plots.reliability(targets, probabilities).axes[0].get_title()


def test_reliability_shows_accuracy_confidence_and_counts():
    # 0.5 lies on an edge and belongs above it; 1.0 is drawn as part of the last bar.
    confidence = np.array([0.5, 0.52, 0.58, 0.58, 0.72, 0.75, 0.78, 1.0, 0.97])
    right = np.array([True, True, False, False, True, True, False, True, False])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    top, bottom = plots.reliability(np.where(right, 0, 1), probabilities, num_bins=10).axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in top.patches}
    assert bars == pytest.approx({0.55: 0.5, 0.75: 2 / 3, 0.95: 0.5})
    dots = next(line for line in top.lines if line.get_marker() == "o")
    assert list(dots.get_xdata()) == pytest.approx([0.545, 0.75, 0.985])
    assert [text.get_text() for text in bottom.texts] == ["4", "3", "2"]
    assert [bar.get_height() for bar in bottom.patches] == [4, 3, 2]


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


def test_confusion_matrix_has_a_legend_of_its_colours():
    """The colour of a cell is that of its share in the legend."""
    figure = plots.confusion_matrix([0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 1, 1], list("ab"))
    cells = figure.axes[0].images[0].get_array()
    for axis, row, column, share in ((figure.axes[1], 0, 1, 25), (figure.axes[2], 0, 0, 75)):
        bar = axis.collections[-1]
        name = "wrong" if row != column else "right"
        assert axis.get_xlabel() == f"{name}, % of the true class"
        assert axis.get_xlim() == (0, share if name == "wrong" else 100)
        np.testing.assert_allclose(cells[row, column], bar.to_rgba(share)[:3], atol=0.01)
    perfect = plots.confusion_matrix([0, 1], [0, 1], list("ab"))
    assert len(perfect.axes) == 2  # nothing is wrong, so nothing is said of it


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
        (-100, ["a", "b"], "-100"),
        (-1, ["a", "b"], "-1"),
        (2, ["a", "b"], "2"),
        ([0.0, 0.38, 0.62], ["a", "b"], "2: 62 %, b: 38 %"),
        ("cat", ["a", "b"], "cat"),
        (True, None, "True"),
        ([-1.5, 0.25], None, "-1.5, 0.25"),
        ([0.5, 2.0, 0.1, 0.1], None, "0.5, 2, 0.1, …"),
        ([7.5], None, "7.5"),
    ],
)
def test_batch_says_the_labels(target, names, label):
    figure = plots.batch(np.zeros((1, 1, 4, 4)), np.array([target]), names)
    assert figure.axes[0].get_xlabel() == label


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=no_address)
def test_batch_takes_tensors_of_any_kind(dtype):
    images = torch.rand(2, 1, 4, 4, dtype=dtype, requires_grad=True)
    figure = plots.batch(images, torch.tensor([1.5, 0.5], dtype=dtype, requires_grad=True))
    assert [axis.get_xlabel() for axis in figure.axes if axis.images] == ["1.5", "0.5"]


def test_batch_draws_values_between_0_and_1_where_they_are_said_to_be_values():
    figure = plots.batch(np.zeros((1, 1, 4, 4)), np.array([[0.38, 0.62]]), values=True)
    assert figure.axes[0].get_xlabel() == "0.38, 0.62"


def test_values_of_several_columns_have_the_scores_of_the_table():
    y = RNG.normal(size=(50, 2)) * [1, 30]
    guess = y + RNG.normal(size=(50, 2))
    expected = r2_score(y, guess)
    assert abs(expected - r2_score(y.ravel(), guess.ravel())) > 0.1  # which is not what is meant
    assert f"R² {expected:.4f}" in plots.predicted_vs_true(y, guess).axes[0].get_title()
    given = plots.predicted_vs_true(y, guess, title="Test", scores={"rmse": 3.0, "r2": 0.25})
    assert given.axes[0].get_title() == "Test:\nRMSE 3, R² 0.2500"


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
        (lambda: plots.learning_curves([history(2)], metrics=["f1"]), "there are: loss, accuracy"),
        (lambda: plots.batch(np.zeros((2, 4, 8, 8)), [0, 1]), "have 4 channels; only 1"),
        (lambda: plots.batch(np.zeros((2, 1, 8, 8)), [0]), "images 2, targets 1"),
        (lambda: plots.learning_curves([history(2)], best_epochs=[1, 2]), "one for each fit"),
        (lambda: plots.confusion_matrix([0, 1], [0], ["a", "b"]), "targets 2, predictions 1"),
        (lambda: plots.confusion_matrix([0, 2], [0, 1], ["a", "b"]), "label 2 has no name"),
        (lambda: plots.predicted_vs_true([], []), "no sample"),
        (lambda: plots.strip({}), "without folds"),
        (lambda: plots.strip({"a": []}), "without folds"),
        (lambda: plots.strip({"a": [1]}, intervals={"b": (0, 1)}), "has 'b', which values lacks"),
        (lambda: plots.reliability([0, 1], np.ones((3, 2))), "targets 2, probabilities 3"),
        (lambda: plots.reliability([0], [[-2.0, 3.0]]), "from -2 to 3; expected 0 … 1. Pass logit"),
        (lambda: plots.reliability([0], [[np.nan, 1.0]]), "from nan to nan"),
        (lambda: plots.reliability([0, 1], [0.5, 0.5]), r"shape \(2,\); expected \(N, C\)"),
        (lambda: plots.hardest(np.zeros((2, 4, 4)), [0], np.ones((1, 2)), ["a", "b"]), "images 2"),
    ],
)
def test_bad_input(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = plots.learning_curves([history(3)])
    path = tmp_path / "deep" / "curves.png"
    plots.save(figure, path)
    before = path.read_bytes()
    assert before[:4] == b"\x89PNG"

    def fail(canvas, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_a_file_has_the_pixels_of_savefig(tmp_path):
    figure = plots.learning_curves([history(3)])
    canvas = figure.canvas
    plots.save(figure, tmp_path / "ours.png", dpi=90)
    assert (figure.canvas, figure.dpi) == (canvas, 100)
    figure.savefig(tmp_path / "theirs.png", dpi=90)
    ours, theirs = (imread(tmp_path / f"{name}.png") for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours, theirs)


def test_whole_file_gives_the_usual_permissions(tmp_path):
    with atomic_write(tmp_path / "a.txt") as part:
        part.write_text("x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_no_display_is_touched():
    code = (
        "import sys; from dlblocks import plots; "
        "plots.learning_curves([[{'epoch': 0, 'val/loss': 1.0}]]); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    commands.run("python", "-c", code)


NAMES = ["$x_$", r"\frac{", "😀", "", "_a", "$a$ and $b$", r"\$5", "a\nb", "{}", "%s"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_class_names_are_drawn_as_they_are(tmp_path, name):
    from matplotlib.text import Text

    figure = plots.confusion_matrix([0, 1], [0, 1], [name, "b"], title=name)
    plots.save(figure, tmp_path / "a.png")
    drawn = [text for text in figure.findobj(Text) if text.get_text()]
    ticks = {text.get_text().replace(r"\$", "$") for text in drawn}
    assert name in ticks or not name
    assert not any(text._preprocess_math(text.get_text())[1] is True for text in drawn)


def test_a_confusion_matrix_of_500_classes_is_of_bounded_size(tmp_path):
    labels = np.arange(500)
    figure = plots.confusion_matrix(labels, labels, [f"class number {i}" for i in labels])
    assert max(figure.get_size_inches()) < 17
    plots.save(figure, tmp_path / "a.png")
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names[:2] == ["class number 0", "class number 5"]
