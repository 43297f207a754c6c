"""All that a run says of its scores says the same: text, page, files, figures, W&B, pandas."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn import metrics
from wandb_offline import read_runs

from dlblocks._files import read_rows
from dlblocks._scores import calibration_error
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.crossval._outcome import result_figures
from dlblocks.crossval._report import WIDTH
from dlblocks.data import ArrayDataModule, DigitsDataModule
from dlblocks.models import MLPClassifier, MLPRegressor

METRICS = ["val/accuracy", "val/calibration_error", "val/f1", "val/loss"]


@pytest.fixture(scope="module")
def data():
    return DigitsDataModule(batch_size=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory, data):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_MODE", "offline")
        return cross_validate(
            lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01), data, num_folds=2, repeats=2,
            trainer={"max_epochs": 2, "accelerator": "cpu"}, logger="wandb", progress_bar=False,
            monitor="val/f1", mode="max", run_dir=tmp_path_factory.mktemp("runs") / "digits",
        )  # fmt: skip


@pytest.fixture(scope="module")
def expected(made):
    """Metric → folds, mean, std, interval, computed here; and the pooled metrics."""
    scores = {name: [row[name] for row in made.folds] for name in METRICS}
    summary = {
        name: {
            "folds": values,
            "mean": np.mean(values),
            "std": np.std(values, ddof=1),
            "interval": made.interval(name),
        }
        for name, values in scores.items()
    }
    pooled = {"accuracy": [], "f1": [], "log_loss": [], "calibration_error": []}
    for repeat in (0, 1):
        rows = made.oof.repeat == repeat
        target, shares = made.oof.target[rows], made.oof.prediction[rows]
        pooled["accuracy"].append(metrics.accuracy_score(target, shares.argmax(1)))
        pooled["f1"].append(metrics.f1_score(target, shares.argmax(1), average="macro"))
        pooled["log_loss"].append(-np.log(shares[np.arange(len(target)), target]).mean())
        pooled["calibration_error"].append(calibration_error(target, shares))
    return summary, {name: np.mean(values) for name, values in pooled.items()}


def close(value):
    return pytest.approx(value, rel=1e-5)


def test_result_and_files(made, expected):
    summary, pooled = expected
    assert set(made.metrics) == set(METRICS)
    assert made.pooled() == close(pooled)
    written = json.loads((made.run_dir / "summary.json").read_text())
    assert written["metrics"].keys() == summary.keys()
    for name, found in written["metrics"].items():
        for key, value in summary[name].items():
            assert found[key] == close(value), (name, key)
    assert written["pooled"] == close(pooled)
    rows = read_rows(made.run_dir / "folds.csv")
    for name in METRICS:
        assert [row[name] for row in rows] == close(summary[name]["folds"])
    again = CrossValidationResult.load(made.run_dir)
    assert again.summary() == json.loads(json.dumps(made.summary()))
    assert again.table() == made.table()


def cells_of(table):
    """Head → the cells below it, over all blocks; by the place of the heads."""
    found = {}
    for block in table.split("\n\n"):
        head, *lines = (line for line in block.split("\n") if not line.startswith("─"))
        starts = [i for i, c in enumerate(head) if c != " " and (i == 0 or head[i - 2 : i] == "  ")]
        for a, b in zip(starts, [*starts[1:], None], strict=True):
            found.setdefault(head[a:b].strip(), [line[a:b].strip() for line in lines])
    return found


def test_table(made, expected):
    summary, pooled = expected
    table = made.table()
    assert max(map(len, table.split("\n"))) <= WIDTH
    cells = cells_of(table)
    assert list(cells)[:4] == ["repeat", "fold", "epochs", "val/f1"]  # the monitor comes first
    for name, found in summary.items():
        low, high = found["interval"]
        assert cells[name][:7] == [
            *(f"{value:.4f}" for value in found["folds"]),
            f"{found['mean']:.4f} ± {found['std']:.4f}",
            f"{low:.4f} … {high:.4f}",
            f"{pooled[name.removeprefix('val/')]:.4f}" if name != "val/loss" else "",
        ]
    assert table.split("\n")[-1] == f"pooled: log_loss {pooled['log_loss']:.4f}"


class Tables(HTMLParser):
    """The cells of a page's tables, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_page(made, expected):
    summary, pooled = expected
    rows = Tables(made.report().read_text(encoding="utf-8").split("<h2>Figures")[0]).rows
    by_name = {row[0]: row[1:] for row in rows}
    for name, found in summary.items():
        low, high = found["interval"]
        assert by_name[name][:3] == [
            f"{found['mean']:.4f}", f"{found['std']:.4f}", f"{low:.4f} … {high:.4f}",
        ]  # fmt: skip
    for name, value in pooled.items():
        row = by_name.get(f"val/{name}") or by_name[name]
        assert row[3] == f"{value:.4f}"
    start = next(i for i, row in enumerate(rows) if row[:2] == ["repeat", "fold"])
    assert set(METRICS) < set(rows[start])
    for name in METRICS:
        at = rows[start].index(name)
        found = [row[at] for row in rows[start + 1 : start + 5]]
        assert found == [f"{value:.4f}" for value in summary[name]["folds"]]


def test_wandb(made, expected):
    summary, pooled = expected
    (run,) = [run for run in read_runs(made.run_dir) if run["job_type"] == "summary"]
    for name, found in summary.items():
        low, high = found["interval"]
        ends = {"mean": found["mean"], "std": found["std"]}
        for key, value in {**ends, "interval_low": low, "interval_high": high}.items():
            assert run["summary"][f"{name}/{key}"] == close(value)
    for name, value in pooled.items():
        assert run["summary"][f"pooled/{name}"] == close(value)


def test_pandas(made, expected):
    pytest.importorskip("pandas")
    summary, pooled = expected
    folds, oof = made.to_pandas(), made.to_pandas("oof")
    for name in METRICS:
        assert folds[name].mean() == close(summary[name]["mean"])
        assert folds[name].std() == close(summary[name]["std"])
    right = (oof["target"] == oof["prediction"]).groupby(oof["repeat"]).mean()
    assert right.mean() == close(pooled["accuracy"])


def test_figures_show_the_monitor_and_all_repeats(made, expected, data):
    summary, pooled = expected
    figures = result_figures(made, data)
    axis = figures["scores"].axes[0]
    dots = next(line for line in axis.lines if line.get_marker() == "o")
    assert list(dots.get_xdata()) == sorted(summary["val/f1"]["folds"])
    assert list(summary["val/f1"]["interval"]) in [list(line.get_xdata()) for line in axis.lines]
    assert "val/f1" in axis.get_xlabel()

    title = "Out-of-fold predictions, 2 repeats:\n"
    axis = figures["confusion_matrix"].axes[0]
    assert axis.get_title().startswith(title)
    assert axis.get_title().endswith(f"accuracy {pooled['accuracy']:.4f}")
    guess = made.oof.prediction.argmax(1)
    counts = metrics.confusion_matrix(made.oof.target, guess)
    assert counts.sum() == 2 * 1438
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert all(texts[(i, i)] == str(counts[i, i]) for i in range(10))

    top, bottom = figures["reliability"].axes
    error = f"expected calibration error {pooled['calibration_error']:.4f}"
    assert top.get_title() == title + error
    assert sum(int(text.get_text()) for text in bottom.texts) == 2 * 1438

    # Once each, by the mean over the repeats of what the true class got.
    true = made.oof.prediction[np.arange(len(guess)), made.oof.target]
    means = {i: true[made.oof.index == i].mean() for i in np.unique(made.oof.index)}
    axes = figures["hardest"].axes
    shown = [int(axis.get_xlabel().split("sample ")[1]) for axis in axes if axis.get_xlabel()]
    assert shown == sorted(means, key=means.get)[:20]
    assert figures["hardest"].get_suptitle().startswith("hardest samples, means of 2 repeats")


def test_values_of_several_columns_and_repeats_have_one_r2(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = np.stack([x[:, 0] + rng.normal(size=60), 1000 + 30 * x[:, 1]], 1).astype(np.float32)
    values = ArrayDataModule(x, y)
    found = cross_validate(
        lambda: MLPRegressor(3, 2, hidden=[8], lr=0.05, standardize_targets=True), values,
        num_folds=2, repeats=2, trainer={"max_epochs": 8, "accelerator": "cpu"}, logger=None,
        progress_bar=False, run_dir=tmp_path / "values",
    )  # fmt: skip
    each = [
        metrics.r2_score(found.oof.target[rows], found.oof.prediction[rows])
        for rows in (found.oof.repeat == 0, found.oof.repeat == 1)
    ]
    assert found.pooled()["r2"] == pytest.approx(np.mean(each))
    axis = result_figures(found, values)["predicted_vs_true"].axes[0]
    assert axis.get_title().endswith(f"R² {np.mean(each):.4f}")
    assert f"{np.mean(each):.4f}" in cells_of(found.table())["val/r2"]
    assert len(axis.lines[1].get_xdata()) == 2 * 60 * 2
