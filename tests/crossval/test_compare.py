"""Several cross-validations as a ranking: order, tests against the best, refusals, page."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from dlblocks.crossval import CrossValidationResult, NestedResult, compare, load_result
from dlblocks.tasks import PredictionTable

FOLDS, SIZE = 4, 40
TARGET = np.arange(SIZE) % 2
FOLD = np.arange(SIZE) // (SIZE // FOLDS)


def result(run_dir, wrong, seed=0, fold=FOLD, **info):
    """A result whose predictions are wrong for so many samples of each fold."""
    rng = np.random.default_rng(seed)
    right = np.concatenate([rng.permutation(SIZE // FOLDS) >= count for count in wrong])
    classes = np.where(right, TARGET, 1 - TARGET)
    rows = [
        {
            "repeat": 0, "fold": k, "epochs": 1, "best_epoch": 1, "num_train": 30, "num_val": 10,
            "val/accuracy": float(right[k == FOLD].mean()), "val/loss": 0.1 + count / 10,
            "seconds": 1.0, "checkpoint": "",
        }
        for k, count in enumerate(wrong)
    ]  # fmt: skip
    oof = PredictionTable({
        "index": np.arange(SIZE), "fold": fold, "repeat": np.zeros(SIZE, int), "target": TARGET,
        "prediction": np.eye(2, dtype=np.float32)[classes],
    })  # fmt: skip
    return CrossValidationResult(
        run_dir, rows, oof, [], {"monitor": "val/loss", "mode": "min", **info}
    )


@pytest.fixture
def three(tmp_path):
    wrong = {"bad": [5, 4, 6, 4], "best": [0, 1, 0, 1], "middle": [2, 1, 3, 1]}
    return [result(tmp_path / name, each, seed) for seed, (name, each) in enumerate(wrong.items())]


def test_the_order_and_the_tests_are_those_of_all_pairs(three):
    bad, best, middle = three
    for metric, sign in (("val/loss", 1), ("val/accuracy", -1)):
        ranking = compare(three, metric)
        assert list(ranking.results) == ["best", "middle", "bad"]
        pairs = [(bad, best), (middle, best), (bad, middle)]
        p = [first.compare(second, metric).p for first, second in pairs]
        holm = multipletests(p, method="holm")[1]
        assert [ranking.p_holm[n] for n in ("bad", "middle")] == pytest.approx(holm[:2])
        assert ranking.tests["bad"] == bad.compare(best, metric)
        assert sign * ranking.tests["middle"].difference > 0
    assert compare(three).metric == "val/loss"


def test_the_table_says_what_the_results_say(three, tmp_path):
    _, best, middle = three
    rows = compare(three, "val/accuracy").rows()
    assert [row["rank"] for row in rows] == [1, 2, 3]
    low, high = middle.interval("val/accuracy")
    assert (rows[1]["interval_low"], rows[1]["interval_high"]) == (low, high)
    assert rows[1]["difference"] == pytest.approx(
        middle.mean("val/accuracy") - best.mean("val/accuracy")
    )
    assert "difference" not in rows[0]
    text = str(compare(three, "val/accuracy"))
    assert f"{low:.4f} … {high:.4f}" in text and "adjusted for all 3 pairs" in text
    assert compare(three).to_pandas()["run"].tolist() == ["best", "middle", "bad"]


def test_the_figure_shows_folds_means_and_differences(three):
    ranking = compare(three, "val/accuracy")
    left, right = ranking.figure().axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["best", "middle", "bad"]
    drawn = [line.get_xdata() for line in left.lines if len(line.get_xdata()) == FOLDS]
    for line, found in zip(drawn, ranking.results.values(), strict=True):
        assert sorted(line) == sorted(found.values("val/accuracy"))
    ends = [line.get_xdata() for line in right.lines if len(line.get_xdata()) == 2][:2]
    assert [tuple(each) for each in ends] == [test.interval for test in ranking.tests.values()]


def test_page_and_notebook_hold_table_and_figure_and_escape_names(three, tmp_path):
    named = dict(zip(["<b>bad</b>", "best", "middle"], three, strict=True))
    ranking = compare(named, "val/accuracy")
    page = ranking.write(tmp_path / "a.html").read_text()
    assert page.count("<img ") == 1 and "data:image/png;base64," in page
    for text in (page, ranking._repr_html_()):
        assert "&lt;b&gt;bad&lt;/b&gt;" in text and "<b>bad" not in text
        assert all(cell in text for row in ranking.cells()[1] for cell in row if "<" not in cell)
        assert text.count("<tr>") == 4


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    same = [result(tmp_path / name / "cv", [1, 2, 1, 2], i) for i, name in enumerate("ab")]
    assert set(compare(same).results) == {"a/cv", "b/cv"}


def test_optimistic_scores_beside_others_are_noted(tmp_path):
    runs = [result(tmp_path / way, [1, 2, 1, 2], select=way) for way in ("fold", "inner")]
    assert compare(runs).notes[0].startswith("fold: the epoch was selected on the scored samples")
    assert compare([runs[1], result(tmp_path / "b", [0, 2, 1, 2], select="last")]).notes == []


def test_what_cannot_be_compared_is_refused_by_name(three, tmp_path):
    other = result(tmp_path / "other", [1, 1, 1, 1], fold=FOLD[::-1])
    with pytest.raises(ValueError, match=r"(other and best|best and other|other and middle).*fold"):
        compare([*three, other])
    with pytest.raises(ValueError, match="at least, got 1"):
        compare(three[:1])
    with pytest.raises(ValueError, match="is given twice"):
        compare([three[0], three[0]])
    with pytest.raises(ValueError, match=r"val/acc.*did you mean 'val/accuracy'"):
        compare(three, "val/acc")
    with pytest.raises(ValueError, match="mode='min'; set"):
        compare(three, "val/accuracy", mode="min")
    unlike = result(tmp_path / "unlike", [1, 1, 1, 1], monitor="val/accuracy", mode="max")
    with pytest.raises(ValueError, match="val/loss of bad, val/accuracy of unlike"):
        compare([three[0], unlike])
    with pytest.raises(ValueError, match=r"Choose from: \.html"):
        compare(three).write(tmp_path / "a.gif")


def test_load_result_tells_a_nested_run_by_its_search(tmp_path, monkeypatch):
    asked = []
    for cls in (CrossValidationResult, NestedResult):
        monkeypatch.setattr(cls, "load", lambda path, cls=cls: asked.append(cls))
    load_result(tmp_path)
    (tmp_path / "search.csv").touch()
    load_result(str(tmp_path))
    assert asked == [CrossValidationResult, NestedResult]
