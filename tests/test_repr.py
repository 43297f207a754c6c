"""Results as one line, and as a table in a notebook."""

import html
import math
import re

import pytest

from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.data import TabularDataModule
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier

CPU = {"max_epochs": 1, "accelerator": "cpu"}
QUIET = {"progress_bar": False, "figures": False}


def model(lr=0.01):
    return MLPClassifier(4, 3, hidden=[4], lr=lr)


@pytest.fixture
def results(tmp_path):
    data = TabularDataModule("iris")
    return {
        "5 folds": cross_validate(
            model, data, num_folds=5, trainer=CPU, run_dir=tmp_path / "iris", **QUIET
        ),
        "2 outer folds": nested_cross_validate(
            model, data, {"lr": [0.1]}, num_folds=2, inner_folds=2, trainer=CPU,
            run_dir=tmp_path / "nested", **QUIET,
        ),
        "3 members": Bagging(
            model, data, num_members=3, trainer=CPU, run_dir=tmp_path / "bag", **QUIET
        ).fit(),
    }  # fmt: skip


def test_one_line_with_name_fits_and_monitor(results):
    for fits, result in results.items():
        values = result.values("val/loss")
        mean = sum(values) / len(values)
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        assert repr(result) == str(result) == (
            f"<{type(result).__name__} {result.run_dir.name!r}: {fits}, "
            f"val/loss {mean:.4f} ± {std:.4f}>"
        )  # fmt: skip
        loaded = type(result).load(result.run_dir)
        assert repr(loaded) == repr(result)


def test_a_result_without_its_monitor_or_of_one_fold(tmp_path):
    result = CrossValidationResult(tmp_path / "a", [{"repeat": 0, "fold": 0, "val/x": 1.0}], None)
    assert repr(result) == "<CrossValidationResult 'a': 1 folds>"
    result.info["monitor"] = "val/x"
    assert repr(result).endswith("val/x 1.0000 ± nan>")


def test_the_table_in_a_notebook(results):
    for result in results.values():
        shown = result._repr_html_()
        assert html.unescape(shown) == f"<pre>{result.table()}</pre>"
        assert re.findall("<[^>]*>", shown) == ["<pre>", "</pre>"]
    table = results["3 members"].table().split("\n")
    bagging = results["3 members"]
    assert table[0].split() == [
        "member", "epochs", "val/loss", *(n for n in bagging.metrics if n != "val/loss"), "seconds"
    ]  # fmt: skip
    for k, line in enumerate(table[2:5]):
        assert f"{bagging.members[k]['val/loss']:.4f}" in line
    assert f"oob/accuracy {bagging.oob_score['oob/accuracy']:.4f}" in table[-1]


def test_names_that_look_like_markup_are_escaped(tmp_path):
    result = cross_validate(
        model, TabularDataModule("iris"), num_folds=2, trainer=CPU, run_dir=tmp_path, **QUIET
    )
    result.info["notes"] = ["<script>alert('x')</script> & more"]
    shown = result._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
