"""Tables: CSV files as people have them, and DataFrames."""

import bz2
import gzip
import json
import warnings
from datetime import datetime
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer

from dlblocks.callbacks import MixUp
from dlblocks.cli import main
from dlblocks.crossval import cross_validate
from dlblocks.data import TabularDataModule, _read_csv
from dlblocks.data._cells import _factorize_objects
from dlblocks.ensembles import Bagging
from dlblocks.models import MLPClassifier, MLPRegressor, load
from dlblocks.nets.preprocess import complete

CSV = """size,colour,age,label,patient
1.5,red,3,yes,a
2.5,,,no,a
3.5,blue,5,yes,b
4.5,red,1,no,c
5.5,green,NA,yes,d
6.5,blue,8,no,e
7.5,red,2,yes,f
8.5,red,9,no,g
"""
CPU = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False,
       "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
FOLDS = {"accelerator": "cpu"}


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def table(write):
    return write(CSV)


def loaded(*args, **kwargs):
    data = TabularDataModule(*args, **{"test_fraction": 0, **kwargs})
    data.setup()
    return data


def rows_of(*columns, header):
    """A CSV text of some columns."""
    lines = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize(
    "cells",
    [
        ["b", "a", None, "b", "a"],  # equal texts are one object
        ["".join(["b", str(i % 2)]) for i in range(6)],  # equal texts, different objects
        [float("nan"), np.nan, "x", float("nan"), None],
        [None, None],
        [],
    ],
)
def test_cells_are_numbered_as_by_pandas(cells):
    cells = np.array([cells, cells], dtype=object).T[:, 1]  # a column of a data frame
    codes, found = _factorize_objects(cells)
    expected, names = pd.factorize(cells)
    np.testing.assert_array_equal(codes, expected)
    assert list(found) == list(names)


def completed(data):
    """All inputs with what only training rows may say, not normalised."""
    known = data.preprocess
    return complete(data.raw_inputs("train"), known.fill, known.coded, known.tables)


N = 60
LABEL = ["no", "yes"] * (N // 2)
X = np.random.default_rng(0).normal(size=N).round(3)


# Features


def test_categories_and_imputation_from_the_training_rows(table):
    data = loaded(table, "label", missing="impute", drop=["patient"])
    assert data.feature_names == ["size", "colour=blue", "colour=green", "colour=red", "age"]
    assert data.class_names == ["no", "yes"]
    train_inputs, _, rows = data.arrays("train")
    raw_age = data.source.inputs[:, 4:5].numpy()
    expected = SimpleImputer(strategy="median").fit(raw_age[rows]).transform(raw_age)
    inputs = completed(data)
    np.testing.assert_allclose(inputs[:, 4:5], expected)
    colours = data.source.inputs[rows][:, 1:4]
    most = colours[~colours[:, 0].isnan()].sum(0).argmax()
    assert inputs[1, 1:4].tolist() == torch.eye(3)[most].tolist()
    assert data.source.inputs[1, 1:4].isnan().all()  # the source itself is left as it is
    assert len(train_inputs) + len(data.arrays("val")[0]) == 8


def test_imputation_sees_no_validation_row(write):
    rows = [f"{i * 0.5 if i % 7 else ''},{i % 2}" for i in range(1, 41)]
    path = write("x,y\n" + "\n".join(rows))
    data = loaded(path, "y", missing="impute")
    before = completed(data)[data.arrays("train")[2]]
    for row in data.arrays("val")[2].tolist():
        rows[row] = f"{1e6},{rows[row].split(',')[1]}"
    write("x,y\n" + "\n".join(rows))
    spoiled = loaded(path, "y", missing="impute")
    assert torch.equal(completed(spoiled)[spoiled.arrays("train")[2]], before)


def test_groups_and_tasks(table):
    data = loaded(table, "label", group="patient", missing="impute")
    assert "patient=a" not in data.feature_names
    assert loaded(table, "size", missing="impute", drop=["patient"]).num_classes is None
    forced = TabularDataModule(table, "size", task="classification", missing="impute")
    assert forced.num_classes == 8
    assert forced.class_names[:2] == ["1.5", "2.5"]


@pytest.mark.parametrize("index_name", ["", None])
def test_row_numbers_are_left_out(write, index_name):
    # As DataFrame.to_csv and R's write.csv write them: with an empty name, or with none at all.
    kinds = np.repeat(["a", "b", "c"], N // 3)
    header = "x,kind" if index_name is None else f"{index_name},x,kind"
    path = write(rows_of(range(1, N + 1), X, kinds, header=header))
    data = loaded(path, "kind")
    assert data.feature_names == ["x"]
    assert data.summary().loc["Unnamed: 0", "kind"] == "row numbers"
    assert data.notes() == [
        "column 'Unnamed: 0' holds the numbers or names of the rows and is left out"
    ]
    np.testing.assert_allclose(data.source.inputs[:, 0], X, rtol=1e-6)
    kept = loaded(path, "kind", numeric=["Unnamed: 0"])
    assert kept.feature_names == ["Unnamed: 0", "x"]


def test_names_of_rows_are_left_out_too(write):
    path = write(rows_of([f"car {i}" for i in range(N)], X, LABEL, header=",x,y"))
    assert loaded(path, "y").feature_names == ["x"]


def test_dates_become_days_month_weekday_and_hour(write):
    days = pd.date_range("2023-11-05 06:00", periods=N, freq="31h")
    path = write(rows_of(days, X, LABEL, header="when,x,y"))
    with pytest.raises(ValueError, match=r"column 'when' has dates, such as '2023-11-05 06:00:00'; "
                       r"dates=\['when'\]"):  # fmt: skip
        loaded(path, "y")
    data = loaded(path, "y", dates=["when"])
    assert data.feature_names == ["when.days", "when.month", "when.weekday", "when.hour", "x"]
    made = data.source.inputs.double().numpy()
    since = (days - pd.Timestamp("1970-01-01")).total_seconds() / 86400
    np.testing.assert_allclose(made[:, 0], since, rtol=1e-6)
    np.testing.assert_array_equal(made[:, 1], days.month)
    np.testing.assert_array_equal(made[:, 2], days.day_of_week)
    np.testing.assert_allclose(made[:, 3], days.hour, atol=1e-4)
    frame = pd.DataFrame({"when": days, "x": X, "y": LABEL})
    assert torch.equal(loaded(frame, "y", dates=["when"]).source.inputs, data.source.inputs)
    with pytest.raises(ValueError, match="column 'when' has dates"):
        loaded(frame, "y")


def test_dates_of_other_formats(write):
    days = pd.date_range("2024-01-01", periods=N, freq="D")
    german = write(rows_of(days.strftime("%d.%m.%Y"), LABEL, header="when,y"))
    asked = loaded(german, "y", dates={"when": "%d.%m.%Y"})
    np.testing.assert_array_equal(asked.source.inputs[:, 1], days.month)
    # The 13th of a month says that days come first.
    assert torch.equal(loaded(german, "y", dates=["when"]).source.inputs, asked.source.inputs)
    few = write(rows_of(["03/04/2024", "05/04/2024"] * 30, LABEL, header="when,y"), "few.csv")
    with pytest.raises(ValueError, match=r"'03/04/2024', of which day or month may come first; "
                       r"give the format"):  # fmt: skip
        loaded(few, "y", dates=["when"])
    both = write(rows_of(["13/04/2024", "04/13/2024"] * 30, LABEL, header="when,y"), "both.csv")
    with pytest.raises(ValueError, match="of which day or month may come first"):
        loaded(both, "y", dates=["when"])
    bad = write(rows_of(["2024-01-01", "soon"] * 30, LABEL, header="when,y"), "bad.csv")
    with pytest.raises(ValueError, match="column 'when' is of dates, but row 2 is 'soon'"):
        loaded(bad, "y", dates=["when"])


@pytest.mark.skipif(int(pd.__version__.split(".")[0]) < 3, reason="pandas 2 refuses these years")
def test_dates_with_time_zones_and_of_any_year(write):
    cells = ["2024-07-01 01:30+02:00", "2024-01-01T10:00Z", "0001-01-01", "9999-12-31"] * 15
    data = loaded(write(rows_of(cells, LABEL, header="when,y")), "y", dates=["when"])
    expected = [datetime(2024, 6, 30, 23, 30), datetime(2024, 1, 1, 10), datetime(1, 1, 1),
                datetime(9999, 12, 31)]  # fmt: skip
    for row, date in zip(data.source.inputs[:4].double(), expected, strict=True):
        days, month, weekday, hour = row.tolist()
        assert days == pytest.approx((date - datetime(1970, 1, 1)).total_seconds() / 86400)
        assert [month, weekday] == [date.month, date.weekday()]
        assert hour == pytest.approx(date.hour + date.minute / 60, abs=1e-4)


def test_times_without_a_date_do_not_take_the_current_day(write):
    path = write(rows_of(["10:30", "23:00"] * 30, LABEL, header="at,y"))
    with pytest.raises(ValueError, match=r"times without a date, such as '10:30'; .*'%H:%M'"):
        loaded(path, "y", dates=["at"])
    data = loaded(path, "y", dates={"at": "%H:%M"})
    assert data.source.inputs[:2, 3].tolist() == pytest.approx([10.5, 23], abs=1e-3)


def test_missing_dates_are_imputed(write):
    days = [*pd.date_range("2024-01-01", periods=N - 1, freq="D").strftime("%Y-%m-%d"), ""]
    data = loaded(write(rows_of(days, LABEL, header="when,y")), "y", dates=["when"],
                  missing="impute")  # fmt: skip
    inputs, rows = completed(data), data.indices("train")
    known = rows[rows != N - 1]
    for column in range(3):
        expected = np.median(data.source.inputs[known, column])
        assert inputs[N - 1, column] == pytest.approx(expected)


def test_time_series_out_of_order_are_told(write):
    days = pd.date_range("2024-01-01", periods=N, freq="D")[::-1].strftime("%Y-%m-%d")
    path = write(rows_of(days, LABEL, header="when,y"))
    data = loaded(path, "y", dates=["when"], split="time_series", num_folds=3)
    assert "rows are not in the order of column 'when'" in data.notes()[0]


CITIES = [f"city {i * i % 97}" for i in range(N * 4)]  # 49 different ones, and one more
MANY = {"city": [*CITIES[:-12], *[f"village {i}" for i in range(12)]],
        "x": np.arange(N * 4) % 7, "y": LABEL * 4}  # fmt: skip


def test_many_categories_are_asked_about():
    frame = pd.DataFrame(MANY)
    count = frame["city"].nunique()
    with pytest.raises(ValueError, match=rf"column 'city' has {count} categories.*"
                       r"drop=\['city'\].*counts=\['city'\].*embed=\['city'\]"):  # fmt: skip
        loaded(frame, "y")
    assert loaded(frame, "y", categorical=["city"]).in_features == count + 1
    assert loaded(frame, "y", drop=["city"]).feature_names == ["x"]


def test_counts_are_shares_of_the_training_rows():
    frame = pd.DataFrame(MANY)
    data = loaded(frame, "y", counts=["city"])
    rows = data.indices("train").numpy()
    shares = frame["city"].iloc[rows].value_counts(normalize=True)
    expected = frame["city"].map(shares).fillna(0)
    np.testing.assert_allclose(completed(data)[:, 0], expected, rtol=1e-6)
    other = data.for_fold(1, 3)  # each fold counts for itself
    assert not torch.equal(completed(other), completed(data))


def test_embeddings_know_the_categories_of_the_training_rows_alone():
    frame = pd.DataFrame(MANY)
    data = loaded(frame, "y", embed=["city"])
    names = sorted(frame["city"].unique())
    assert data.embeddings == {0: len(names)}
    seen = set(frame["city"].iloc[data.indices("train").numpy()])
    expected = [names.index(city) + 1 if city in seen else 0 for city in frame["city"]]
    assert completed(data)[:, 0].tolist() == expected
    assert 0 in expected
    # Numbers of categories are not standardised; the other columns are.
    made = data.transform(data.raw_inputs("train"))
    assert made[:, 0].tolist() == expected
    assert made[data.indices("train"), 1].mean().abs() < 1e-6


@pytest.mark.parametrize(
    "asked", [{"counts": ["city"]}, {"embed": ["city"]}, {"missing": "impute", "drop": ["city"]}]
)
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_members_of_an_ensemble_fill_in_what_their_own_rows_say(tmp_path, asked, engine):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "city": [f"c{i}" for i in rng.integers(0, 20, N)], "x": X,
        "gap": [None, *X[1:-8], *[None] * 8], "y": LABEL,
    })  # fmt: skip
    asked = asked if "missing" in asked else {**asked, "drop": ["gap"]}
    data = TabularDataModule(frame, "y", **asked)

    def model():
        return MLPClassifier(data.in_features, 2, hidden=[], embeddings=data.embeddings)

    result = cross_validate(model, data, num_folds=2, trainer={"max_epochs": 2, **FOLDS},
                            run_dir=tmp_path, progress_bar=False, figures=False,
                            engine=engine)  # fmt: skip
    raw = data.source.inputs
    each, parts = [], [data.for_fold(k, 2).with_selection(0.15) for k in (0, 1)]
    assert not torch.equal(completed(parts[0]), completed(parts[1]))
    for part, row in zip(parts, result.folds, strict=True):
        each.append(load(tmp_path / row["checkpoint"]).net(part.transform(raw)).softmax(1))
    found = result.ensemble()(raw).softmax(1)
    torch.testing.assert_close(found, sum(each) / 2)
    places = zip(result.oof.fold, result.oof.index, strict=True)
    out_of_fold = torch.stack([each[fold][row] for fold, row in places])
    torch.testing.assert_close(torch.from_numpy(result.oof.prediction), out_of_fold)


def test_members_of_a_bag_count_their_own_rows(tmp_path):
    data = TabularDataModule(pd.DataFrame(MANY), "y", counts=["city"], test_fraction=0.2)
    result = Bagging(lambda: MLPClassifier(data.in_features, 2, hidden=[]), data, num_members=2,
                     trainer={"max_epochs": 1, **FOLDS}, run_dir=tmp_path,
                     progress_bar=False, figures=False).fit()  # fmt: skip
    first, second = (member.preprocess.tables for member in result.model.net.members)
    assert first.shape == second.shape and not torch.equal(first, second)
    counts = pd.Series(MANY["city"]).iloc[result.samples[0]].value_counts(normalize=True)
    names = data.table_columns[0].categories
    shares = (counts.get(name, 0.0) for name in names)
    expected = [0.0, *shares, 0.0]  # missing cells, and categories that the table has not
    np.testing.assert_allclose(first[0], expected, rtol=1e-6)


def test_a_model_learns_from_embedded_categories(tmp_path):
    rng = np.random.default_rng(0)
    city = rng.integers(0, 60, 600)
    frame = pd.DataFrame({
        "city": [f"c{i}" for i in city], "x": rng.normal(size=600),
        "y": [LABEL[i % 2] for i in city],
    })  # fmt: skip
    data = TabularDataModule(frame, "y", embed=["city"], batch_size=32)

    def model():
        return MLPClassifier(2, 2, embeddings=data.embeddings, lr=0.02)

    result = cross_validate(model, data, num_folds=3, trainer={"max_epochs": 20, **FOLDS},
                            run_dir=tmp_path, progress_bar=False, figures=False)  # fmt: skip
    assert result.mean("val/accuracy") > 0.95
    saved = load(tmp_path / "fold-0" / "checkpoints" / "best.ckpt")
    assert saved.net.embeddings == {0: 60}
    unknown = torch.tensor([[0.0, 0.5]])
    assert saved(unknown).isfinite().all()


def test_unknown_categories_stay_unknown_in_folds_fitted_as_one(tmp_path):
    frame = pd.DataFrame(MANY)
    frame.loc[::3, "city"] = None
    data = TabularDataModule(frame, "y", embed=["city"], missing="impute")

    def losses(engine):
        result = cross_validate(
            lambda: MLPClassifier(2, 2, embeddings=data.embeddings, lr=0.05), data, num_folds=3,
            engine=engine, trainer={"max_epochs": 2, **FOLDS}, run_dir=tmp_path / engine,
            progress_bar=False, figures=False,
        )  # fmt: skip
        for fold in range(3):
            model = load(tmp_path / engine / f"fold-{fold}" / "checkpoints" / "best.ckpt")
            assert not model.net.embed(torch.zeros(1, 2)).any()
        return result.mean("val/loss")

    np.testing.assert_allclose(losses("vectorized"), losses("sequential"), rtol=1e-5)


def test_embeddings_are_refused_where_they_would_be_wrong():
    data = TabularDataModule(pd.DataFrame(MANY), "y", embed=["city"])
    with pytest.raises(ValueError, match=r"embeddings=\{\}, but .* set embeddings=data.embeddings"):
        pl.Trainer(max_epochs=1, **CPU).fit(MLPClassifier(2, 2), datamodule=data)
    model = MLPClassifier(2, 2, embeddings=data.embeddings)
    with pytest.raises(ValueError, match=r"MixUp would spoil the inputs.*counts="):
        pl.Trainer(max_epochs=1, callbacks=[MixUp()], **CPU).fit(model, datamodule=data)
    with pytest.raises(ValueError, match="precision='bf16-true' rounds"):
        pl.Trainer(max_epochs=1, precision="bf16-true", **CPU).fit(model, datamodule=data)
    with pytest.raises(ValueError, match=r"embeddings: position=2 is outside \[0, 1\]"):
        MLPRegressor(2, 1, embeddings={2: 5})


def test_numbers_keep_their_precision(write):
    hours = [f"{2460000.5 + i / 24:.5f}" for i in range(240)]
    data = loaded(write(rows_of(hours, LABEL * 4, header="julian_day,y")), "y")
    assert data.source.inputs.dtype == torch.float64
    assert len(data.source.inputs.unique()) == 240
    small = loaded(write(rows_of(X, LABEL, header="x,y")), "y")
    assert small.source.inputs.dtype == torch.float32


# What counts as missing


AIRBAGS = ["None", "driver", "both", "driver"] * 15


LONG = [2**53 + 2 * i + 1 for i in range(N)]  # float64 holds none of them


@pytest.mark.parametrize(
    ("cells", "arguments"),
    [
        (LONG, {}),
        ([-cell for cell in LONG], {}),
        ([2**64 - 1, *LONG[1:]], {}),
        ([2**70, *LONG[1:]], {}),
        ([-1, 2**64 - 1, *LONG[2:]], {}),  # pandas reads texts
        (["", *LONG[1:]], {"missing": "impute"}),  # pandas reads floats
        (["", *LONG[1:]], {"missing": "impute", "read_args": {"thousands": "."}}),
        ([f"{cell:_}".replace("_", ".") for cell in LONG], {"read_args": {"thousands": "."}}),
        (
            ["", *(f"{cell:_}".replace("_", ".") for cell in LONG[1:])],
            {"missing": "impute", "read_args": {"thousands": "."}},
        ),
    ],
)
def test_whole_numbers_that_float64_rounds_are_asked_about(write, cells, arguments):
    path = write(rows_of(cells, X, LABEL, header="account,x,y"))
    with pytest.raises(ValueError, match=r"column 'account' has whole numbers above 2\*\*53"):
        loaded(path, "y", **arguments)
    assert loaded(path, "y", drop=["account"], **arguments).feature_names == ["x"]
    kept = loaded(path, "y", categorical=["account"], **arguments)
    plain = {str(cell).replace(".", "") for cell in cells if cell != ""}
    assert {name.removeprefix("account=").replace(".", "") for name in kept.feature_names} == {
        *plain,
        "x",
    }
    rounded = loaded(path, "y", numeric=["account"], **arguments)
    assert any("float64 rounds" in note for note in rounded.notes())


def test_whole_numbers_that_float64_holds_are_kept(write):
    even = [2**60 + 4096 * i for i in range(N)]
    path = write(rows_of(even, [f"{1e30 + i * 1e27}" for i in range(N - 1)] + [""], LABEL,
                         header="a,mass,y"))  # fmt: skip
    data = loaded(path, "y", missing="impute")
    assert data.source.inputs[:, 0].long().tolist() == even
    assert data.table_columns[1].kind == "number"


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64"])
def test_long_whole_numbers_of_a_data_frame(dtype):
    frame = pd.DataFrame({"account": pd.array(LONG, dtype=dtype), "x": X, "y": LABEL})
    with pytest.raises(ValueError, match=f"such as {LONG[0]}, which float64 rounds"):
        loaded(frame, "y")


def test_all_questions_are_asked_at_once(write):
    path = write(
        rows_of(
            [f"C{i}" for i in range(N)],
            [f"2024-01-{1 + i % 28:02d}" for i in range(N)],
            ["", *X[1:]],
            [f"town{i % 53}" if i else "" for i in range(N)],
            [f"{i} kg" if i == 9 else i for i in range(N)],
            LABEL,
            header="customer,signup,x,city,weight,y",
        )
    )
    with pytest.raises(ValueError, match="6 questions about columns:") as found:
        loaded(path, "y")
    questions = str(found.value).splitlines()[1:]
    for question, column, cure in zip(
        questions,
        ["customer", "signup", "x", "city", "city", "weight"],
        ["drop=", "dates=", "missing='impute'", "missing='impute'", "counts=", "na_values="],
        strict=True,
    ):
        assert f"column {column!r}" in question
        assert cure in question
    answers = {"drop": ["customer"], "dates": ["signup"], "counts": ["city"]}
    with pytest.raises(ValueError, match=r"t\.csv: column 'weight' has numbers, but for 1 cell"):
        loaded(path, "y", missing="impute", **answers)
    data = loaded(path, "y", missing="impute", na_values=["9 kg"], **answers)
    assert data.in_features == 6


def test_of_many_questions_the_first_are_shown():
    frame = pd.DataFrame({f"day{i}": ["2024-01-31"] * N for i in range(30)} | {"y": LABEL})
    with pytest.raises(ValueError, match="30 questions about columns:") as found:
        loaded(frame, "y")
    said = str(found.value).splitlines()
    assert len(said) == 22
    assert said[-1].strip() == "and 10 more"


def test_the_command_line_shows_all_questions(write, capsys):
    path = write(rows_of([f"C{i}" for i in range(N)], ["2024-01-31"] * N, LABEL, header="id,day,y"))
    with pytest.raises(SystemExit):
        main(["cross-validate", "--model=MLPClassifier", "--model.in_features=1",
              "--model.num_classes=2", "--data=TabularDataModule", f"--data.data={path}",
              "--data.target=y"])  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    assert "2 questions about columns:" in said[0]
    assert "drop=['id']" in said[1]
    assert "dates=['day']" in said[2]


def test_only_some_dates_have_a_format(write):
    path = write(rows_of([f"0{1 + i % 9}.02.2024" for i in range(N)],
                         [f"2024-03-0{1 + i % 9}" for i in range(N)], LABEL,
                         header="signup,login,y"))  # fmt: skip
    data = loaded(path, "y", dates={"signup": "%d.%m.%Y", "login": None})
    days = data.source.inputs[:, [0, 3]]
    first = [(datetime(2024, month, 1) - datetime(1970, 1, 1)).days for month in (2, 3)]
    assert days[0].tolist() == first


def test_none_is_a_value_where_the_user_says_so(write):
    path = write(rows_of(AIRBAGS, X, LABEL, header="airbags,x,y"))
    with pytest.raises(ValueError, match=r"row 1 has no value in column 'airbags' \(15 of 60"):
        loaded(path, "y")
    imputed = loaded(path, "y", missing="impute")
    assert "written 'None' (15)" in imputed.notes()[0]
    assert "set keep_default_na=False" in imputed.notes()[0]
    said = loaded(path, "y", keep_default_na=False, na_values=[""])
    assert said.feature_names[:3] == ["airbags=None", "airbags=both", "airbags=driver"]
    assert said.source.inputs[::4, 0].all()
    relief = write(rows_of(["None", "some", "marked"] * 20, X, header="relief,x"), "relief.csv")
    with pytest.raises(ValueError, match=r"written 'None' \(20\)\); .*keep_default_na=False"):
        loaded(relief, "relief")
    named = loaded(relief, "relief", keep_default_na=False, na_values=[""])
    assert named.class_names == ["None", "marked", "some"]


def test_other_texts_for_missing_cells(write):
    path = write(rows_of([*X[:-2], "?", -999], LABEL, header="x,y"))
    with pytest.raises(ValueError, match=r"1 cell\(s\): '\?' in row 59; .*na_values=\['\?'\]"):
        loaded(path, "y")
    data = loaded(path, "y", na_values=["?", "-999"], missing="impute")
    assert data.summary().loc["x", "missing"] == 2
    by_column = loaded(path, "y", na_values={"x": ["?", "-999"]}, missing="impute")
    assert torch.equal(by_column.source.inputs.nan_to_num(7), data.source.inputs.nan_to_num(7))


# Columns that cannot be known


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([*map(str, X[1:]), "6.2 kg"], r"numbers, but for 1 cell\(s\): '6.2 kg' in row 60"),
        ([f'"{1 + i},{i:03d}.5"' for i in range(N)], "thousands': ','"),
        ([f'"{i},5"' for i in range(N)], "set decimal=','"),
        ([f'"{i % 9},5"' if i % 2 else f"{i % 9}.5" for i in range(N)], r"but for 30 cell\(s\)"),
        ([f"{i % 9} %" for i in range(N)], "has numbers with a sign, such as 0 %"),
        ([f"${i % 9}.50" for i in range(N)], r"with a sign, .*; remove the sign; or categorical"),
        (
            [f"2024{1 + i // 28:02d}{1 + i % 28:02d}" for i in range(N)],
            r"dates, such as '20240101'; dates=\['x'\] .*numeric=\['x'\] keeps it",
        ),
        ([f"2024-01-{1 + i % 28:02d}" if i % 9 else "?" for i in range(N)], r"dates=\['x'\]"),
        ([f"ab{i}" for i in range(N)], r"different in every row .*drop=\['x'\]"),
        ([f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}" for i in range(N)], r"dates=\['x'\]"),
        ([f"{1 + i % 28}/{1 + i // 28}/24" for i in range(N)], r"dates=\['x'\]"),
        ([f"{1 + i % 28} January 2024" for i in range(N)], r"dates=\['x'\]"),
        ([f"Jan {1 + i % 28} 2024" for i in range(N)], r"dates=\['x'\]"),
        ([""] * N, "has no value at all"),
    ],
)
def test_columns_that_cannot_be_known(write, cells, message):
    path = write(rows_of(cells, LABEL, header="x,y"))
    with pytest.raises(ValueError, match=message):
        loaded(path, "y")


@pytest.mark.parametrize("name", ["id", "PassengerId", "customerID", "user_id", "rownames"])
def test_numbers_named_as_identifiers(write, name):
    path = write(rows_of(np.arange(N) * 3, X, LABEL, header=f"{name},x,y"))
    with pytest.raises(ValueError, match=rf"{name}. is different in every row \(0, 3, 6, …\)"):
        loaded(path, "y")
    assert loaded(path, "y", numeric=[name]).in_features == 2
    # What has no such name, or equal values, passes.
    assert loaded(write(rows_of(np.arange(N) * 3, LABEL, header="paid,y")), "y").in_features == 1
    assert loaded(write(rows_of(np.arange(N) // 2, LABEL, header="id,y")), "y").in_features == 1


def test_columns_that_tell_little_are_told(write):
    path = write(rows_of(range(N), [5] * N, LABEL, header="t,same,y"))
    assert loaded(path, "y").notes() == [
        "column 't' numbers the rows; if it tells nothing, set drop=['t']",
        "column 'same' is the same in every row; if it tells nothing, set drop=['same']",
    ]
    wide = pd.DataFrame({**{f"c{i}": [1] * N for i in range(300)}, "x": X, "y": LABEL})
    assert loaded(wide, "y").notes() == [
        "300 columns: each is the same in every row: c0, c1, c2, …"
    ]


def test_thousands_and_decimal_commas(write):
    """pandas reads 01.02.2024 as 1022024, with thousands=".", and 1.500 as 1.5 without."""
    dates = pd.date_range("2024-01-28", periods=N, freq="D")
    days = dates.strftime("%d.%m.%Y")
    amounts = [f"{i % 7}.{500 + i}" for i in range(N)]
    shares = [*[f"{i},5" for i in range(N - 1)], "k.A."]
    path = write("am;amount;share;y\n" + "".join(
        ";".join(row) + "\n" for row in zip(days, amounts, shares, LABEL, strict=True)
    ))  # fmt: skip
    german = {"sep": ";", "decimal": ","}
    dots = {**german, "read_args": {"thousands": "."}}
    with pytest.raises(
        ValueError, match=r"'0\.500' in row 1, which is not a number with decimal=','"
    ):
        loaded(path, "y", **german)
    with pytest.raises(ValueError, match=r"'am' has dates, such as '01.02.2024'"):
        loaded(path, "y", drop=["share"], **dots)
    with pytest.raises(ValueError, match=r"'share' has numbers, but for 1 cell\(s\): 'k.A.'"):
        loaded(path, "y", dates=["am"], **dots)
    data = loaded(path, "y", dates=["am"], na_values=["k.A."], missing="impute", **dots)
    inputs = data.source.inputs
    np.testing.assert_array_equal(inputs[:, 1], dates.month)
    np.testing.assert_array_equal(inputs[:, 3], [1000 * (i % 7) + 500 + i for i in range(N)])
    np.testing.assert_array_equal(inputs[:-1, 4], np.arange(N - 1) + 0.5)
    assert inputs[-1, 4].isnan()
    assert loaded(path, "amount", drop=["am", "share"], **dots).source.targets[1] == 1501


@pytest.mark.parametrize(
    ("sep", "before"),
    [(", ", ""), (";  ", ""), ("\t ", ""), (",", " "), (",", "\r\n ")],
)
@pytest.mark.parametrize("scanned", [3, 1 << 20])
def test_spaces_before_cells_are_no_part_of_them(write, sep, before, scanned, monkeypatch):
    monkeypatch.setattr(_read_csv, "SCANNED", scanned)  # bytes at a time
    rows = [[f"{i}.5", '"red, or green"' if i % 3 else '"blue"', "NA" if i == 7 else i, LABEL[i]]
            for i in range(N)]  # fmt: skip
    lines = [before + sep.join(map(str, row)) for row in [["x", "kind", "count", "y"], *rows]]
    data = loaded(write("\n".join(lines)), "y", sep=sep[0], missing="impute")
    assert data.feature_names == ["x", "kind=blue", "kind=red, or green", "count"]
    assert data.source.inputs[7, 3].isnan()
    np.testing.assert_array_equal(data.source.inputs[:, 0], np.arange(N) + 0.5)


@pytest.mark.parametrize(
    ("content", "sep"),
    [("a,b c\n1,x y\n", ","), ("a\tb\n1\t\t2\n", "\t"), ("a;b\n1;x, y\tz\n", ";"), ("", ",")],
)
def test_spaces_elsewhere_do_not_slow_a_file_down(write, content, sep):
    path = Path(write(content))
    assert not _read_csv._may_have_leading_spaces(path, {"sep": sep})
    assert _read_csv._may_have_leading_spaces(path, {"sep": sep, "encoding": "utf-16"})
    assert _read_csv._may_have_leading_spaces(path, {"sep": r"\s+"})


@pytest.mark.parametrize("read_args", [{}, {"header": None, "skiprows": 1}])
def test_categories_that_look_like_numbers_keep_their_zeros(write, read_args):
    name, y = ("0", "1") if read_args else ("zip", "y")
    spaced = write(rows_of(["01", "1", "007"] * 20, LABEL, header="zip ,y"))
    data = loaded(spaced, y, categorical=[name], read_args=read_args)
    assert data.feature_names == [f"{name}=01", f"{name}=1", f"{name}=007"]
    path = write(rows_of(["01", "1", "007"] * 20, LABEL, header="zip,y"))
    assert loaded(path, "y", categorical=["zip"]).feature_names == ["zip=01", "zip=1", "zip=007"]
    assert loaded(path, "y").feature_names == ["zip"]


@pytest.mark.parametrize("first", ["x1", "?"])
def test_texts_stay_texts_after_a_head_of_others(write, first):
    """pandas reads the column as text by itself if it begins so, but not after missing cells."""
    path = write(rows_of([first] * 150 + ["01", "1"] * 40, ["a", "b"] * 115, header="code,y"))
    data = loaded(path, "y", categorical=["code"], na_values={"code": ["?"]}, missing="impute")
    known = ["01", "1", *([] if first == "?" else [first])]
    assert data.feature_names == [f"code={name}" for name in known]


def test_truth_values_are_numbers(write):
    path = write(rows_of([True, False] * 30, ["", *[True] * 59], LABEL, header="a,b,y"))
    data = loaded(path, "y", missing="impute")
    assert data.feature_names == ["a", "b"]
    assert data.source.inputs[:2, 0].tolist() == [1, 0]
    assert data.source.inputs[:2, 1].nan_to_num(7).tolist() == [7, 1]


def test_a_file_is_as_large_in_memory_as_its_numbers(write):
    # One column of names used to become a column each: 8,000 × 8,000.
    path = write(rows_of([f"passenger {i:06d}" for i in range(8000)], LABEL * 133 + LABEL[:20],
                         header="name,y"))  # fmt: skip
    with pytest.raises(ValueError, match="column 'name' is different in every row"):
        loaded(path, "y")


# Labels


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([-1, 1], ["-1", "1"]),
        ([3, 7], ["3", "7"]),
        ([10, 9], ["9", "10"]),
        (["1", "1.0", "0"], ["0", "1"]),
        (["1", "1.0", "none of them"], ["1", "none of them"]),
        ([True, False], ["False", "True"]),
        (["b", "a "], ["a", "b"]),
    ],
)
def test_labels_of_any_values(write, cells, names):
    labels = (cells * N)[:N]
    data = loaded(write(rows_of(X, labels, header="x,y")), "y")
    assert data.class_names == names
    assert data.source.targets.unique().tolist() == list(range(len(names)))
    wanted = [names.index(str(int(float(cell))) if isinstance(cell, str) and cell[0].isdigit()
                          else str(cell).strip()) for cell in labels]  # fmt: skip
    assert data.source.targets.tolist() == wanted


# Files


COMMA = rows_of(X, ["Nîmes", "Paris"] * 30, LABEL, header="x,ville,y")


@pytest.mark.parametrize(
    ("content", "name", "arguments"),
    [
        (COMMA.replace(",", ";").encode(), "t.csv", {"sep": ";"}),
        (COMMA.replace(",", ";").replace(".", ",").encode(), "t.csv", {"sep": ";", "decimal": ","}),
        (COMMA.replace(",", "\t").encode(), "t.tsv", {}),
        (COMMA.replace(",", "\t").encode(), "t.txt", {"sep": "\t"}),
        (COMMA.replace(",", "   ").encode(), "t.txt", {"sep": r"\s+"}),
        (COMMA.encode("latin-1"), "t.csv", {"encoding": "latin-1"}),
        (COMMA.encode("utf-16"), "t.csv", {"encoding": "utf-16"}),
        (COMMA.encode("utf-8-sig"), "t.csv", {}),
        (gzip.compress(COMMA.encode()), "t.csv.gz", {}),
        (bz2.compress(COMMA.encode()), "t.csv.bz2", {}),
        (gzip.compress(COMMA.encode()), "t.csv", {"read_args": {"compression": "gzip"}}),
        (("# a line\n" + COMMA).encode(), "t.csv", {"read_args": {"skiprows": 1}}),
        (COMMA.replace("\n", "\r\n").encode(), "t.csv", {}),
        (COMMA.replace(",", ", ").encode(), "t.csv", {}),
        (COMMA.replace("\n", ",\n").replace("y,\n", "y\n", 1).encode(), "t.csv", {}),
    ],
)
def test_dialects(write, content, name, arguments):
    data = loaded(write(content, name), "y", **arguments)
    assert data.feature_names == ["x", "ville=Nîmes", "ville=Paris"]
    np.testing.assert_allclose(data.source.inputs[:, 0], X, rtol=1e-6)
    assert data.source.inputs[:, 1].tolist() == [1, 0] * 30
    assert data.class_names == ["no", "yes"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COMMA.replace(",", ";").encode(), "if it is separated by ';', set sep=';'"),
        (b"a;c;b\n1,5;2;x\n2,5;3;y\n", "if it is separated by ';', set sep=';'"),
        (b"a;c;b\n1,5;2,5;3,5\n2,5;3,5;4,5\n", "if it is separated by ';', set sep=';'"),
        (COMMA.replace(",", "\t").encode(), r"set sep='\\t'"),
        (COMMA.replace(",", " ").encode(), r"separated by spaces, set sep='\\s\+'"),
        (COMMA.encode("latin-1"), "is not encoding='utf-8'.*encoding='cp1252'"),
        (COMMA.encode("utf-16"), "begins like encoding='utf-16'"),
        (gzip.compress(COMMA.encode()), "is compressed; set read_args={'compression': 'gzip'}"),
        (b"", "is empty"),
        (b"a,b\n", "no rows"),
        (b"b\n1\n2\n", "no column beside target"),
        (b"a,a,b\n1,2,0\n3,4,1\n", "two columns named 'a'"),
        (b"a,b\n1,0\n3,1,4\n", r"cannot be read \(.*Expected 2 fields in line 3, saw 3"),
        (b"a,b\n1,0,5,6\n3,1,5,6\n", "rows have 4 cells and the header 2"),
        (
            b"a,b\ninf,0\n1,1\n1,0\n2,1\n",
            r"'a' is infinite \(inf\) in row 1; .*na_values=\['inf'\]",
        ),
        (b"a,b\nu,1,0\nu,2,1\nv,3,0\n", "rows have 3 cells and the header 2; complete"),
        (b"a,b\n1,2\n3\n", "row 2 has no value in column 'b'"),
        (b"5.1,3.5,0\n4.9,3.0,1\n4.7,3.2,0\n", "seems to have no header"),
    ],
)
def test_files_that_are_read_wrongly_are_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        loaded(write(content), "b")


def test_a_file_without_a_header(write):
    path = write("5.1,3.5,a\n4.9,3.0,b\n" * 10)
    data = loaded(path, "2", read_args={"header": None})
    assert data.feature_names == ["0", "1"]
    assert len(data.source.inputs) == 20


def test_a_folder_of_files(write, tmp_path):
    for name, start in [("b.csv", 30), ("a.csv", 0)]:
        part = slice(start, start + 30)
        write(rows_of(X[part], LABEL[part], header="x,y"), name)
    write("no table", ".hidden.csv")
    write("no table", "notes.md")
    data = loaded(tmp_path, "y")
    np.testing.assert_allclose(data.source.inputs[:, 0], X, rtol=1e-6)
    write("x,z\n1,2\n", "c.csv")
    with pytest.raises(ValueError, match=r"c\.csv and .*a\.csv have different columns.*'y', 'z'"):
        loaded(tmp_path, "y")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no CSV file"):
        loaded(tmp_path / "empty", "y")


def test_a_data_frame_with_types_of_its_own(tmp_path):
    frame = pd.DataFrame({
        "whole": pd.array([1, None, *range(58)], dtype="Int64"),
        "kind": pd.Categorical(["low", "high"] * 30, categories=["low", "high", "never"]),
        "flag": pd.array([True, None] * 30, dtype="boolean"),
        7: X,
        "label": LABEL,
    }, index=range(100, 160))  # fmt: skip
    data = loaded(frame, "label", missing="impute")
    assert data.feature_names == ["whole", "kind=low", "kind=high", "flag", "7"]
    assert data.source.inputs[1].isnan().tolist() == [True, False, False, True, False]
    assert data.source.inputs[:2, 1:3].tolist() == [[1, 0], [0, 1]]
    trainer = pl.Trainer(max_epochs=1, **CPU)
    trainer.fit(MLPClassifier(5, 2), datamodule=data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    load(tmp_path / "model.ckpt")  # the frame itself is no hyperparameter
    assert list(frame.columns)[3] == 7  # the user's table is left as it is


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "labell"}, ValueError, "did you mean 'label'"),
        ({"target": "label"}, ValueError, "row 2 has no value in column 'colour'.*'impute'"),
        ({"target": "age"}, ValueError, "row 2 has no value in column 'age' .2 of 8 rows"),
        ({"target": "label", "group": "who"}, ValueError, "group='who' is not a column"),
        ({"target": "label", "drop": ["who"]}, ValueError, "drop='who' is not a column"),
        ({"target": "label", "drop": "age"}, TypeError, r"drop='age' must be a list"),
        ({"target": "label", "drop": ["age"], "numeric": ["age"]}, ValueError,
         "column 'age' is in numeric and in drop; choose"),
        ({"target": "label", "drop": ["label"]}, ValueError, "is in drop and in target"),
        ({"target": "label", "numeric": ["patient"], "missing": "impute"}, ValueError,
         r"column 'patient' has numbers, but for 8 cell\(s\): 'a' in row 1"),
        ({"target": "colour", "task": "regression"}, ValueError, "no value in column 'colour'"),
        ({"target": "label", "task": "regression"}, ValueError, "row 1 of column 'label' is 'yes'"),
        ({"target": "label", "read_args": {"seperator": ";"}}, ValueError,
         r"'seperator', which is not an argument of pandas.read_csv; did you mean"),
        ({"target": "label", "read_args": {"sep": ";"}}, ValueError, "give it as sep="),
        ({}, ValueError, "target=None"),
    ],
)  # fmt: skip
def test_bad_arguments(table, arguments, error, message):
    with pytest.raises(error, match=message):
        loaded(table, **arguments)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[1, 2]] * N, r"column 'x' has cells that are neither .*\[1, 2\]; .*drop=\['x'\]"),
        ([f"{i},5" for i in range(N)], "another format, .*; convert it to numbers"),
        (["?", *map(str, X[1:])], r"data.replace\(\['\?'\], None\) if they are missing"),
        (np.array([np.inf, *X[1:]]), r"is infinite \(inf\) in row 1; remove these rows\.$"),
        (["a", None] * (N // 2), r"missing='impute' to fill it in, or drop=\['x'\] to leave"),
    ],
)
def test_messages_of_data_frames_name_what_mends_a_data_frame(cells, message):
    frame = pd.DataFrame({"x": list(cells), "z": X, "y": LABEL})
    with pytest.raises(ValueError, match=message):
        loaded(frame, "y")
    assert loaded(frame, "y", drop=["x"]).feature_names == ["z"]


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, "uint8", "Float32"])
def test_numbers_of_any_type(dtype):
    frame = pd.DataFrame({"x": pd.Series(range(N), dtype=dtype), "y": LABEL})
    assert loaded(frame, "y").source.inputs[:, 0].tolist() == list(range(N))


def test_targets_that_are_no_classes():
    frame = pd.DataFrame({"x": X, "y": pd.date_range("2024", periods=N)})
    with pytest.raises(ValueError, match="target='y' has 60 different values in 60 rows"):
        loaded(frame, "y")


def test_a_target_with_decimal_commas_names_the_argument(write):
    path = write("a;b\n" + "".join(f"{i};{i},5\n" for i in range(60)))
    with pytest.raises(ValueError, match=r"60 different values.*; set decimal=',', or set task="):
        loaded(path, "b", sep=";")
    np.testing.assert_allclose(
        loaded(path, "b", sep=";", decimal=",").source.targets, np.arange(60) + 0.5
    )


def test_bad_sources(tmp_path):
    with pytest.raises(ValueError, match=r"data='wines' is neither .* did you mean 'wine'"):
        TabularDataModule("wines")
    with pytest.raises(ValueError, match=r"target='x' has no effect on data='wine'"):
        TabularDataModule("wine", "x")
    with pytest.raises(ValueError, match=r"sep=';' has no effect on a DataFrame"):
        TabularDataModule(pd.DataFrame({"a": [1]}), "a", sep=";")
    with pytest.raises(TypeError, match=r"data is a ndarray; .*ArrayDataModule"):
        TabularDataModule(np.zeros((3, 3)), "a")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv' is neither a file nor a folder"):
        loaded(str(tmp_path / "nowhere.csv"), "x")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"data=pandas.read_parquet\("):
        loaded(tmp_path / "t.parquet", "x")


# What a user sees


def test_the_summary_is_shown_before_training_and_in_the_report(table, tmp_path, capsys):
    data = TabularDataModule(table, "label", missing="impute", drop=["patient"], test_fraction=0)
    summary = data.summary()
    assert list(summary.index) == ["size", "colour", "age", "patient", "label"]
    assert summary.loc["age"].tolist() == ["number", 2, "1 feature, median where missing"]
    assert summary.loc["label", "becomes"] == "2 classes: no, yes"
    result = cross_validate(
        lambda: MLPClassifier(5, 2), data, num_folds=2, select="last",
        trainer={"max_epochs": 1, **FOLDS}, run_dir=tmp_path / "cv", figures=False,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("the most frequent where missing") == 1
    page = Path(result.report()).read_text()
    assert "the most frequent where missing" in page
    assert "the most frequent" in json.loads((tmp_path / "cv" / "summary.json").read_text())["data"]


# Real tables that come with packages


def test_a_finished_run_knows_its_table_in_another_place(write, tmp_path):
    text = rows_of(X, LABEL, header="x,y")
    first = write(text, "first.csv")

    def run(path):
        return cross_validate(
            lambda: MLPClassifier(1, 2, hidden=[]),
            TabularDataModule(path, "y"),
            num_folds=2,
            trainer={**FOLDS, "max_epochs": 1},
            run_dir=tmp_path / "run",
            progress_bar=False,
            figures=False,
        )

    scores = run(first).folds
    (tmp_path / "moved").mkdir()
    moved = Path(first).rename(tmp_path / "moved" / "second.csv")
    assert run(moved).folds == scores  # seconds, too: nothing is trained again
    other = write(text.replace(str(X[0]), "9"), "first.csv")
    with pytest.raises(FileExistsError, match="data or splits: fingerprint") as error:
        run(other)
    assert "data.data" not in str(error.value)  # it lies where the first lay
    with pytest.raises(FileExistsError, match=r"data\.target"):
        cross_validate(
            lambda: MLPClassifier(1, 2, hidden=[]),
            TabularDataModule(moved, "x"),
            num_folds=2,
            run_dir=tmp_path / "run",
            trainer={**FOLDS, "max_epochs": 1},
        )


def installed(package, path):
    return Path(pytest.importorskip(package).__file__).parent / path


def test_penguins(write):
    path = installed("palmerpenguins", "data/penguins.csv")
    data = loaded(path, "species", missing="impute", drop=["year"])
    assert data.class_names == ["Adelie", "Chinstrap", "Gentoo"]
    assert data.in_features == 3 + 4 + 2
    assert data.summary().loc["sex", "missing"] == 11
    raw = installed("palmerpenguins", "data/penguins-raw.csv")
    with pytest.raises(ValueError, match=r"column 'Date Egg' has dates, such as '2007-11-09'"):
        loaded(raw, "Species", missing="impute", drop=["Individual ID"])


def test_mode_choice_has_semicolons():
    path = installed("statsmodels", "datasets/modechoice/modechoice.csv")
    with pytest.raises(ValueError, match="set sep=';'"):
        loaded(path, "choice")
    data = loaded(path, "choice", sep=";", group="individual")
    assert data.num_classes == 2
    assert len(data.source.inputs) == 840


def test_extramarital_affairs_by_name_and_by_values():
    path = installed("statsmodels", "datasets/fair/fair.csv")
    table = pd.read_csv(path)
    data = loaded(path, "affairs")
    assert data.num_classes is None
    np.testing.assert_allclose(data.source.targets, table["affairs"], rtol=1e-6)
    np.testing.assert_allclose(data.source.inputs, table.drop(columns="affairs"), rtol=1e-6)


def test_threads_leave_the_filters_of_warnings_as_they_were():
    rng = np.random.default_rng(0)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 500, 12_000), "D")
    names = [f"date{i}" for i in range(6)]
    frame = pd.DataFrame(dict.fromkeys(names, days.strftime("%Y-%m-%d")))
    frame["y"] = rng.choice(["a", "b"], len(frame))
    before = list(warnings.filters)
    for _ in range(5):
        assert len(TabularDataModule(frame, "y", dates=names).source.targets) == len(frame)
    assert warnings.filters == before
