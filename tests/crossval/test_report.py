"""The page of a cross-validation: whole, of one file, and with nothing in it that is not text."""

import base64
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from dlblocks._files import write_rows
from dlblocks.crossval import CrossValidationResult, cross_validate, nested_cross_validate
from dlblocks.crossval import _report as page
from dlblocks.crossval._outcome import result_figures
from dlblocks.crossval._report import WIDTH, table_metrics
from dlblocks.data import ArrayDataModule, DigitsDataModule, FoldedDataModule
from dlblocks.models import MLPClassifier
from dlblocks.runs._figures import prediction_figures
from dlblocks.tasks import PredictionTable

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The text and the tags of a page; tags that do not match raise."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return cross_validate(
        lambda: MLPClassifier(64, 10, hidden=[16], lr=0.01),
        DigitsDataModule(split_seed=4),
        num_folds=3,
        trainer={"max_epochs": 2, "accelerator": "cpu"},
        logger=None,
        seed=11,
        progress_bar=False,
        run_dir=tmp_path_factory.mktemp("runs") / "digits",
    )


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished.run_dir, tmp_path / "digits")


def test_cross_validate_draws_what_the_page_shows_and_writes_no_page(finished):
    names = sorted(path.stem for path in (finished.run_dir / "figures").iterdir())
    assert names == ["confusion_matrix", "hardest", "learning_curves", "reliability", "scores"]
    assert set(names) <= page.CAPTIONS.keys()
    assert not (finished.run_dir / "report.html").exists()
    summary = json.loads((finished.run_dir / "summary.json").read_text())
    assert summary["class_names"] == [str(i) for i in range(10)]
    assert summary["pooled"] == pytest.approx(finished.pooled())


def test_the_page_says_everything_and_comes_from_the_files_alone(finished, run_dir):
    result = CrossValidationResult.load(run_dir)
    path = result.report()
    assert path == run_dir / "report.html"
    read = Page(path)
    for metric in finished.metrics:
        low, high = finished.interval(metric)
        for said in (finished.mean(metric), finished.std(metric)):
            assert f"{said:.4f}" in read.text
        assert f"{low:.4f} … {high:.4f}" in read.text
    for row in result.folds:
        assert f"{row['val/accuracy']:.4f}" in read.text
        assert str(row["num_train"]) in read.text
    for value in finished.pooled().values():
        assert f"{value:.4f}" in read.text
    text = "".join(read.text)
    assert "Folds: split=kfold; 3 folds; no groups; stratified by classes." in text
    assert "Seeds: 11 … 13 for the fits, in their order; 4 for the split." in text
    for name, version in finished.info["versions"].items():
        assert f"{name} {version}" in text
    configuration = json.loads(text[text.index("Configuration") + len("Configuration") :])
    assert configuration == json.loads(json.dumps(finished.info["config"], default=str))

    given = finished.run_dir, finished.folds, finished.summary(), len(finished.oof)
    finished_page = page.page(*given).replace("digits", "")
    assert finished_page == path.read_text().replace("digits", "")


def test_scores_of_the_test_set_come_onto_the_page(run_dir):
    result = CrossValidationResult.load(run_dir)
    assert "Test set" not in Page(result.report()).text
    scores = result.test(
        result.ensemble(), DigitsDataModule(split_seed=4), trainer={"accelerator": "cpu"}
    )
    text = Page(run_dir / "report.html").text
    assert "Test set" in text
    assert "Scored once, by a VotingEnsemble" in "".join(text)
    for name, value in scores.items():
        low, high = scores.interval(name)
        row = text[text.index(name) :]
        assert row[1:3] == [f"{value:.4f}", f"{low:.4f} … {high:.4f}"]


def test_the_configuration_is_folded_and_figures_are_equally_wide(run_dir):
    read = Page(CrossValidationResult.load(run_dir).report())
    assert ("details", {}) in read.tags
    style = (run_dir / "report.html").read_text().split("</style>")[0]
    assert "img { display: block; width: 100%;" in style


def test_the_figures_are_in_the_page_and_nothing_else_is_needed(run_dir):
    read = Page(CrossValidationResult.load(run_dir).report())
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    figures = {path.read_bytes() for path in (run_dir / "figures").iterdir()}
    prefix = "data:image/png;base64,"
    assert all(image["src"].startswith(prefix) and image["alt"] for image in images)
    assert {base64.b64decode(image["src"][len(prefix) :]) for image in images} == figures
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert all(not a.get("href") and not a.get("srcset") for _, a in read.tags)
    style = (run_dir / "report.html").read_text().split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in read.tags


def test_all_text_is_escaped(run_dir):
    nasty = '<script>alert("1")</script>&amp;\''
    moved = run_dir.rename(run_dir.with_name('<img src=x> & "co"'))
    summary = json.loads((moved / "summary.json").read_text())
    summary["config"]["model"]["note"] = nasty
    summary["versions"][nasty] = nasty
    summary["monitor"] = nasty
    del summary["checksum"], summary["files"]
    (moved / "summary.json").write_text(json.dumps(summary))
    folds = (moved / "folds.csv").read_text().replace("val/accuracy", "<b>accuracy</b>")
    (moved / "folds.csv").write_text(folds)
    (moved / "figures" / 'a"><b>.png').write_bytes((moved / "figures" / "scores.png").read_bytes())
    plain = Page(CrossValidationResult.load(moved).report())
    tags = {tag for tag, _ in plain.tags}
    assert not {"script", "b"} & tags
    assert all(a["src"].startswith("data:") for tag, a in plain.tags if tag == "img")
    assert 'a"><b>' in [a["alt"] for tag, a in plain.tags if tag == "img"]
    text = "".join(plain.text)
    assert text.count(nasty) >= 2  # said as it is
    assert nasty.replace('"', '\\"') in text  # in the configuration, which is JSON
    assert '<img src=x> & "co"' in text and "<b>accuracy</b>" in text


def test_a_page_is_written_whole_or_not_at_all(run_dir, monkeypatch):
    result = CrossValidationResult.load(run_dir)
    before = result.report().read_bytes()

    def fail(*given):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(page, "page", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        result.report()
    assert (run_dir / "report.html").read_bytes() == before
    assert not [path.name for path in run_dir.iterdir() if path.name.startswith(".")]


def test_a_page_without_figures_predictions_and_configuration(run_dir):
    shutil.rmtree(run_dir / "figures")
    (run_dir / "oof.npz").unlink()
    summary = {"metrics": {}}  # as little as a summary can hold
    (run_dir / "summary.json").write_text(json.dumps(summary))
    text = "".join(Page(CrossValidationResult.load(run_dir).report()).text)
    assert "The run drew none." in text
    assert "no pooled metrics: the model gave no out-of-fold predictions" in text
    assert "Pooled:" not in text


def test_repeats_are_told_apart(finished, tmp_path):
    rows = finished.folds + [{**row, "repeat": 1} for row in finished.folds]
    repeated = CrossValidationResult(tmp_path, rows, None, [], dict(finished.info))
    text = "".join(Page(repeated.report()).text)
    assert "3 folds, 2 repeats" in text
    assert "repeatfold" in text.replace("\n", "")
    assert "Seeds: 11 … 16" in text


def many_metrics(run_dir, **info):
    """A result of two folds whose every metric has another value, and names of its folds."""
    names = [*(f"val/metric_{i}" for i in range(9)), "val/loss"]
    rows = [
        {
            "repeat": 0, "fold": fold, "group": group, "epochs": 3, "best_epoch": 2,
            "num_train": 10, "num_val": 5, **{n: fold + i for i, n in enumerate(names)},
            "seconds": 1.0, "checkpoint": "",
        }
        for fold, group in enumerate(["hospital 007", "<b>a very long name of a hospital</b>"])
    ]  # fmt: skip
    return CrossValidationResult(
        run_dir, rows, None, [], {"monitor": "val/metric_7", "mode": "min", **info}
    )


def test_a_table_of_many_metrics_has_blocks_that_fit_a_terminal(tmp_path):
    result = many_metrics(tmp_path)
    *blocks, last = result.table().split("\n\n")
    assert max(map(len, result.table().split("note:")[0].split("\n"))) <= WIDTH
    heads = [block.split("\n")[0].split() for block in [*blocks, last]]
    assert heads[0][:5] == ["fold", "group", "epochs", "val/metric_7", "val/loss"]
    assert heads[0][-1] == "seconds"
    shown = [name for head in heads for name in head if name.startswith("val/")]
    assert sorted(shown) == sorted(result.metrics)
    for head, block in zip(heads, [*blocks, last], strict=True):
        assert head[:2] == ["fold", "group"]
        assert "hospital 007" in block
        assert "mean ± std" in block


def test_a_monitor_that_no_fold_has_leaves_the_usual_order(tmp_path):
    result = many_metrics(tmp_path, monitor="train/loss")
    assert table_metrics(result.metrics, "train/loss")[:2] == ["val/loss", "val/metric_0"]


def test_notes_and_names_of_folds_are_in_all_that_is_written(tmp_path):
    pytest.importorskip("pandas")
    note = "optimistic: the epoch was selected on the scored samples"
    result = many_metrics(tmp_path, notes=[note])
    why = "no pooled metrics: the model gave no out-of-fold predictions"
    assert [n.startswith(s) for n, s in zip(result.notes, [note, why], strict=True)] == [True] * 2
    lines = result.table().split("\n")
    assert lines[-2:] == [f"note: {n}" for n in result.notes]
    result.write()
    for fold in (0, 1):
        write_rows(tmp_path / f"fold-{fold}" / "history.csv", [{"epoch": 0, "val/loss": 1.0}])
    again = CrossValidationResult.load(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["notes"] == result.notes
    assert again.notes == result.notes
    assert [row["group"] for row in again.folds] == [row["group"] for row in result.folds]
    assert again.to_pandas()["group"].tolist() == [row["group"] for row in result.folds]
    read = Page(again.report())
    assert all(f"Note: {n}" in read.text for n in result.notes)
    assert all(row["group"] in read.text for row in result.folds)


def test_names_of_groups_and_classes_of_a_real_run(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = np.arange(60) % 3
    groups = np.array(["007", "12", "Zürich"])[rng.integers(0, 3, 60)]
    names = ["$low$", "<mid>", "high"]
    result = cross_validate(
        lambda: MLPClassifier(4, 3, hidden=[4]),
        FoldedDataModule(
            TensorDataset(torch.tensor(x), torch.tensor(y)), groups=groups, class_names=names,
            split="leave_one_group_out",
        ),
        trainer={"max_epochs": 1, "accelerator": "cpu"}, logger=None, progress_bar=False,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    assert [row["group"] for row in result.folds] == ["007", "12", "Zürich"]
    for row in result.folds:
        of_fold = result.oof.index[result.oof.fold == row["fold"]]
        assert set(groups[of_fold]) == {row["group"]}
    again = CrossValidationResult.load(tmp_path / "run")
    assert [row["group"] for row in again.folds] == ["007", "12", "Zürich"]
    head, _, *rows = result.table().split("\n")[:5]
    assert head.split()[:2] == ["fold", "group"]
    assert [row.split()[1] for row in rows] == ["007", "12", "Zürich"]
    assert again.info["class_names"] == names
    assert list(again.oof.flat(names))[5:] == [f"probability_{name}" for name in names]
    read = Page(again.report())
    assert {"007", "12", "Zürich"} < set(read.text)
    assert "Classes: 0 $low$, 1 <mid>, 2 high" in read.text
    axis = result_figures(result, result.given["datamodule"])["confusion_matrix"].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [r"\$low\$", *names[1:]]


def test_names_of_outer_folds(tmp_path):
    folds = np.array(["a", "b", "c"])[np.arange(45) % 3]
    data = ArrayDataModule(
        np.random.default_rng(0).normal(size=(45, 2)).astype(np.float32), np.arange(45) % 2,
        folds=folds, split="predefined",
    )  # fmt: skip
    result = nested_cross_validate(
        lambda lr: MLPClassifier(2, 2, hidden=[2], lr=lr), data, {"lr": [0.1]},
        trainer={"max_epochs": 1, "accelerator": "cpu"}, logger=None, progress_bar=False,
        figures=False, run_dir=tmp_path,
    )  # fmt: skip
    assert [row["group"] for row in result.rows()] == ["a", "b", "c"]
    assert result.table().split("\n")[2].split()[:2] == ["0", "a"]


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ("last", "· weights of the last epoch ·"),
        ("inner", "· best epoch by val/loss (min) on 15 % of the training samples ·"),
        ("fold", "· best epoch by val/loss (min) ·"),
        (None, "· best epoch by val/loss (min) ·"),
    ],
)
def test_the_page_says_how_epochs_were_selected(finished, tmp_path, select, said):
    info = {**finished.info, "select": select, "selection_fraction": 0.15}
    result = CrossValidationResult(tmp_path, finished.folds, finished.oof, [], info)
    assert said in "".join(Page(result.report()).text)


def test_older_results_have_no_notes(finished, tmp_path):
    info = {key: value for key, value in finished.info.items() if key != "notes"}
    older = CrossValidationResult(tmp_path, finished.folds, finished.oof, [], info)
    assert older.notes == older.summary()["notes"] == []


def test_predictions_that_are_no_probabilities_have_a_confusion_matrix_at_most():
    data, index = DigitsDataModule(), np.arange(30)
    arrays = {"index": index, "target": data.source.targets.numpy()[:30]}
    shares = np.full((30, 10), 0.1, dtype=np.float32)
    for prediction, drawn in (
        (shares, {"confusion_matrix", "reliability", "hardest"}),
        (9 * shares - 4, {"confusion_matrix"}),  # as logits are
        (9 * shares, {"confusion_matrix"}),
        (shares * np.nan, set()),  # of a failed training
        (shares[:, :5], set()),  # fewer classes than there are
        (shares[:, 0], set()),
        (data.source.targets.numpy()[:30], {"confusion_matrix"}),  # classes, as trees predict them
    ):
        table = PredictionTable({**arrays, "prediction": prediction})
        figures = prediction_figures(data, "val", table, title="a")
        assert figures.keys() == drawn
