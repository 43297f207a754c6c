"""An error while drawing costs a figure, never a result."""

import warnings

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dlblocks.crossval import cross_validate, nested_cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier
from dlblocks.runs import fit_and_test

X = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
Y = np.arange(60) % 3
ARGUMENTS = {"trainer": {"max_epochs": 1, "accelerator": "cpu"}, "progress_bar": False}


def model(**arguments):
    return MLPClassifier(4, 3, hidden=[3], **arguments)


def cross(data, folder):
    cross_validate(model, data, num_folds=2, run_dir=folder, **ARGUMENTS)


def nested(data, folder):
    nested_cross_validate(
        model, data, {"lr": [0.1]}, num_folds=2, inner_folds=2, run_dir=folder, **ARGUMENTS
    )


def bagging(data, folder):
    Bagging(model, data, num_members=2, run_dir=folder, **ARGUMENTS).fit()


def once(data, folder):
    fit_and_test(model(), data.for_fold(0, 3), run_dir=folder, **ARGUMENTS)


@pytest.mark.parametrize("run", [cross, nested, bagging, once])
def test_names_that_matplotlib_could_misread(tmp_path, run):
    data = ArrayDataModule(X, Y, class_names=["$x_$", r"\frac{", "😀"], test_fraction=0.2)
    run(data, tmp_path / "a")
    assert (tmp_path / "a" / "figures" / "confusion_matrix.png").is_file()


@pytest.mark.parametrize("run", [cross, nested, bagging, once])
def test_an_error_is_a_warning_that_names_the_figure(tmp_path, monkeypatch, run):
    """One figure fails as it is drawn, another as it is saved."""

    def fails(*args, **kwargs):
        raise RuntimeError("no room")

    def saves(canvas, path, **kwargs):
        if "reliability" in str(path):
            raise RuntimeError("no room")
        print_png(canvas, path, **kwargs)

    print_png = FigureCanvasAgg.print_png
    monkeypatch.setattr(Axes, "imshow", fails)
    monkeypatch.setattr(FigureCanvasAgg, "print_png", saves)
    data = ArrayDataModule(X, Y, test_fraction=0.2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(data, tmp_path / "a")
    said = [str(w.message) for w in caught if "could not be drawn" in str(w.message)]
    drawn = {path.stem for path in (tmp_path / "a" / "figures").glob("*.png")}
    for name in ("confusion_matrix", "reliability"):
        expected = f"The figure {name} could not be drawn and is left out: RuntimeError"
        assert sum(text.startswith(expected) for text in said) == 1
        assert name not in drawn
    assert drawn  # the others
    assert (tmp_path / "a" / "summary.json").is_file()
