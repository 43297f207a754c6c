"""Means over seeds, tables, and the files of an experiment."""

import csv
import json
import math
import statistics

import numpy as np
import pytest
import torch

from dlblocks import plots
from dlblocks._files import check_files, read_record, write_record
from dlblocks.runs import add_to_summary, mean_std, table, write_results


def test_mean_and_standard_deviation_leave_nan_out():
    values = [0.2, 0.5, 0.9]
    found = mean_std([*values, math.nan])
    assert found["mean"] == pytest.approx(statistics.mean(values))
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert mean_std([2.0])["mean"] == 2 and math.isnan(mean_std([2.0])["std"])
    assert all(math.isnan(value) for value in mean_std([math.nan]).values())
    assert mean_std([1.0, math.inf])["mean"] == math.inf


def test_a_table_has_a_cell_for_every_kind_of_value():
    rows = [
        {"method": "none", "score": mean_std([1.0, 3.0]), "interval": (0.5, 1e-5)},
        {"method": "one seed", "score": mean_std([1.0]), "count": 3, "gap": math.nan},
    ]
    head, _, first, second, _ = table(rows).splitlines()
    assert head.split() == ["method", "score", "interval", "count", "gap"]
    assert first.split(maxsplit=1) == ["none", "2.0000 ± 1.4142  0.5000 … 1.00e-05"]
    assert second.split() == ["one", "seed", "1.0000", "3"]
    assert first.index("2.0000") == second.index("1.0000") == head.index("score")


def test_results_lie_in_the_run_folder(tmp_path, capsys):
    rows = [{"seed": 0, "loss": 0.5}, {"seed": 1, "loss": 0.25, "note": "best"}]
    figure = plots.lines({"loss": [0.5, 0.25]})
    metrics = {"MLP": {"mean": 0.375, "std": math.nan}}
    write_results(tmp_path, metrics, rows=rows, figures={"losses": figure}, config={"lr": 0.1})
    assert str(tmp_path) in capsys.readouterr().out
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["metrics"] == {"MLP": {"mean": 0.375, "std": None}}
    assert found["config"] == {"lr": 0.1} and "torch" in found["versions"]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert [row["note"] for row in csv.DictReader(file)] == ["", "best"]
    assert (tmp_path / "figures" / "losses.png").is_file()


def test_a_summary_with_additions_still_fits_its_checksums(tmp_path, capsys):
    path = tmp_path / "summary.json"
    (tmp_path / "history.csv").write_text("epoch,loss")
    write_record(path, {"metrics": {"a": {"mean": 1.0}}}, [tmp_path / "history.csv"])
    figures = {"losses": plots.lines({"loss": [0.5, 0.25]})}
    more = {"b": 2.0, "c": {"mean": 3.0, "interval": (2.0, 4.0)}}
    add_to_summary(tmp_path, more, figures=figures, baselines={"SVM": {"a": 0.5}})
    assert "figures/, history.csv, summary.json" in capsys.readouterr().out
    assert (tmp_path / "figures" / "losses.png").is_file()
    found = read_record(path, "cure")
    c = {"mean": 3.0, "interval": [2.0, 4.0]}
    assert found["metrics"] == {"a": {"mean": 1.0}, "b": {"mean": 2.0}, "c": c}
    assert found["baselines"] == {"SVM": {"a": 0.5}}
    (tmp_path / "history.csv").write_text("epoch")
    with pytest.raises(ValueError, match=r"history\.csv is damaged"):
        check_files(path, found, "cure")
    with pytest.raises(ValueError, match=r"history\.csv is damaged"):
        add_to_summary(tmp_path, {"d": 3.0})


@pytest.mark.parametrize(
    ("metrics", "more", "said"),
    [
        ({"f1": "0.5"}, {}, r"metrics\['f1'\] is '0.5', which is not a number; give a number"),
        ({"f1": True}, {}, r"metrics\['f1'\] is True, which is not"),
        ({"f1": {"std": 1.0}}, {}, r"metrics\['f1'\] is \{'std': 1.0\}.*with 'mean'"),
        ({"f1": torch.ones(2)}, {}, r"metrics\['f1'\] is tensor.*not a number"),
        ({"f1": 0.5}, {"baselines": {"SVM": print}}, r"baselines is \{'SVM'.*cannot hold; give"),
        ({"f1": 0.5}, {"phase": 1j}, r"phase is 1j, which summary\.json cannot hold"),
    ],
)
def test_a_value_that_a_summary_cannot_hold_changes_nothing(tmp_path, metrics, more, said):
    write_record(tmp_path / "summary.json", {"metrics": {"a": {"mean": 1.0}}}, [])
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(TypeError, match=said):
        add_to_summary(tmp_path, metrics, figures={"b": plots.lines({"b": [1.0, 2.0]})}, **more)
    with pytest.raises(ValueError, match="files= is an entry"):
        add_to_summary(tmp_path, files={})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_bytes() == before


def test_numbers_of_numpy_and_torch_are_numbers_of_a_summary(tmp_path, capsys):
    path = tmp_path / "summary.json"
    write_record(path, {"metrics": {}}, [])
    scores = {"a": np.float32(0.5), "b": torch.tensor(2), "c": math.nan}
    add_to_summary(tmp_path, scores, curve=np.arange(3), folder=tmp_path)
    found = read_record(path, "cure")
    assert found["metrics"] == {"a": {"mean": 0.5}, "b": {"mean": 2}, "c": {"mean": None}}
    assert found["curve"] == [0, 1, 2] and found["folder"] == str(tmp_path)
