"""Windows against a slow loop, nothing of the future in inputs and scales, rolling origins."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import TimeSeriesSplit

from dlblocks.data import ForecastDataModule, baseline_tables, seasonal_naive
from dlblocks.data._clock import find_clock

C, H, M = 6, 3, 4
ARGUMENTS = {"context": C, "horizon": H, "season": M, "test_fraction": 0.25, "batch_size": 5}


def values(length=60, seed=0):
    draw = np.random.default_rng(seed)
    return 10 + np.sin(np.arange(length) * np.pi / 2) + 0.3 * draw.standard_normal(length)


def table(lengths=(60, 40), start=("2000-01-01", "2001-06-01")):
    """Monthly series in long form, whose rows are shuffled, with a known input."""
    parts = [
        pd.DataFrame({
            "month": pd.date_range(start[i], periods=length, freq="MS"),
            "shop": f"shop {i}",
            "sales": (i + 1) * values(length, i),
            "price": np.random.default_rng(10 + i).uniform(1, 2, length),
        })
        for i, length in enumerate(lengths)
    ]  # fmt: skip
    return pd.concat(parts).sample(frac=1, random_state=0)


COLUMNS = {"time": "month", "series": "shop", "value": "sales"}


def slow_windows(frame):
    """Inputs, targets and names of all windows, by loops."""
    found = []
    numbers = {name: i for i, name in enumerate(sorted(frame["shop"].unique()))}
    for name, part in frame.groupby("shop"):
        part = part.sort_values("month")
        y, price = part["sales"].to_numpy(), part["price"].to_numpy()
        months = part["month"].dt.month.to_numpy() - 1
        for origin in range(C - 1, len(y) - H):
            rows = []
            naive = np.mean([abs(y[i] - y[i - M]) for i in range(M, origin + 1)])
            for step in range(origin - C + 1, origin + H + 1):
                value = y[step] if step <= origin else 0.0
                angle = 2 * np.pi * months[step] / 12
                rows.append(
                    [value, price[step], np.sin(angle), np.cos(angle), numbers[name], naive]
                )
            found.append((part["month"].iloc[origin], name, rows, y[origin + 1 : origin + 1 + H]))
    return sorted(found, key=lambda window: window[:2])


def test_windows_are_those_of_a_slow_loop():
    frame = table()
    data = ForecastDataModule(
        frame, **COLUMNS, covariates=["price"], calendar=["month"], **ARGUMENTS
    )
    slow = slow_windows(frame)
    assert data.feature_names == [
        "value", "price", "month_sin", "month_cos", "series", "naive_error"
    ]  # fmt: skip
    np.testing.assert_allclose(data.source.inputs, [rows for _, _, rows, _ in slow], rtol=1e-5,
                               atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(data.source.targets, [ahead for *_, ahead in slow], rtol=1e-6)
    assert data.windows["series"].tolist() == [name for _, name, _, _ in slow]
    assert [pd.Timestamp(t) for t in data.windows["origin"]] == [time for time, *_ in slow]
    for row in (0, 40, len(slow) - 1):
        time, name, *_ = slow[row]
        past = frame[(frame["shop"] == name) & (frame["month"] <= time)].sort_values("month")
        np.testing.assert_allclose(data.history(row), past["sales"])


def test_wide_long_file_and_arrays_are_the_same(tmp_path):
    long = table(lengths=(50, 50), start=("2000-01-01", "2000-01-01"))
    wide = long.pivot(index="month", columns="shop", values="sales")
    long.to_csv(tmp_path / "long.csv", index=False)
    wide.to_csv(tmp_path / "wide.csv")
    made = [
        ForecastDataModule(long.drop(columns="price"), **COLUMNS, **ARGUMENTS),
        ForecastDataModule(wide, **ARGUMENTS),
        ForecastDataModule(tmp_path / "long.csv", **COLUMNS, **ARGUMENTS),
        ForecastDataModule(tmp_path / "wide.csv", time="month", **ARGUMENTS),
        ForecastDataModule(wide.to_numpy(), **ARGUMENTS),
        ForecastDataModule([wide[name].to_numpy() for name in wide], **ARGUMENTS),
    ]
    for data in made[1:]:
        torch.testing.assert_close(data.source.inputs, made[0].source.inputs)
        assert torch.equal(data.indices("test"), made[0].indices("test"))
    assert [data.season for data in made] == [M] * 6
    assert ForecastDataModule(wide, context=24, horizon=3).season == 12


# Splits


def test_rolling_origins_are_those_of_scikit_learn():
    data = ForecastDataModule([values(80)], **ARGUMENTS)
    origins = data.origins.steps
    development = data.splits(4)[0]
    rest = np.flatnonzero(origins + H <= origins[development["test"][0]])
    theirs = TimeSeriesSplit(4, gap=H - 1).split(origins[rest])
    for mine, (train, val) in zip(data.splits(4), theirs, strict=True):
        assert mine["train"].tolist() == rest[train].tolist()
        assert mine["val"].tolist() == rest[val].tolist()


@pytest.mark.parametrize("stride", [1, 2])
def test_targets_of_one_part_are_never_those_of_a_later_one(stride):
    frame = table().drop(columns="price")
    data = ForecastDataModule(frame, **COLUMNS, stride=stride, **ARGUMENTS)
    origins = data.origins.steps
    folds = [*data.splits(3), *data.splits()]
    folds += [
        {part: new.indices(part).numpy() for part in new.parts}
        for new in (data.for_fold(2, 3).with_selection(0.2), data.for_fold(0, 3))
    ]
    inner = data.subset(data.splits(3)[2]["train"])
    folds += inner.splits(2)
    for rows in folds:
        order = [part for part in ("train", "selection", "val", "test") if part in rows]
        for before, after in itertools.pairwise(order):
            # The last target of the one comes before the first target of the other.
            assert origins[rows[before]].max() + H < origins[rows[after]].min() + 1
    whole = data.without_validation()
    assert origins[whole.indices("train")].max() + H <= origins[whole.indices("test")].min()
    assert len(whole.indices("val")) == 0
    assert set(inner.splits(2)[0]["val"]) <= set(data.splits(3)[2]["train"])


def test_nothing_of_the_future_is_in_inputs_and_scales():
    frame = table().drop(columns="price")
    data = ForecastDataModule(frame, **COLUMNS, **ARGUMENTS).for_fold(1, 3)
    first = int(data.origins.steps[data.indices("val")].min())  # the last step that may be known
    changed = frame.copy()
    late = changed["month"] > pd.Timestamp(data.panel.clock.name(first))
    assert late.any() and not late.all()
    changed.loc[late, "sales"] = np.random.default_rng(0).normal(1e3, 1e3, late.sum())
    other = ForecastDataModule(changed, **COLUMNS, **ARGUMENTS).for_fold(1, 3)
    for name, value in data.scales.items():
        assert torch.equal(value, other.scales[name])
    early = np.flatnonzero(data.origins.steps <= first)
    assert torch.equal(data.source.inputs[early], other.source.inputs[early])
    train = data.indices("train")
    assert torch.equal(data.source.targets[train], other.source.targets[train])
    assert not torch.equal(data.source.targets, other.source.targets)
    # The same for what a net is given in place of the values to come.
    assert not data.source.inputs[:, C:, 0].any()


def test_scales_are_those_of_the_training_past():
    frame = table()
    data = ForecastDataModule(frame, **COLUMNS, covariates=["price"], **ARGUMENTS).for_fold(2, 3)
    end = data.panel.clock.name(int(data.origins.steps[data.indices("train")].max()) + H)
    past = frame[frame["month"] <= end]
    scales = data.scales
    for i, name in enumerate(["shop 0", "shop 1"]):
        mine = past[past["shop"] == name]["sales"].to_numpy()
        assert float(scales["level"][i]) == pytest.approx(mine.mean())
        assert float(scales["spread"][i]) == pytest.approx(mine.std())
    everything = past["sales"].to_numpy()
    assert float(scales["spread"][2]) == pytest.approx(everything.std())
    assert float(scales["mean"][0]) == pytest.approx(past["price"].mean())
    together = ForecastDataModule(frame, **COLUMNS, covariates=["price"], normalize="global",
                                  **ARGUMENTS).for_fold(2, 3)  # fmt: skip
    assert torch.equal(together.scales["level"], scales["level"][[2, 2, 2]])
    constant = ForecastDataModule([np.full(60, 7.0), values()], **ARGUMENTS)
    assert constant.scales["spread"][0] == 1
    assert (constant.source.inputs[:, 0, -1] > 0).all()


# Bad input


def without(frame, *rows):
    return frame.sort_values(["shop", "month"]).reset_index(drop=True).drop(index=[*rows])


def with_value(value, row=10):
    frame = table().sort_values(["shop", "month"]).reset_index(drop=True)
    frame.loc[row, "sales"] = value
    return frame


def twice():
    frame = table()
    return pd.concat([frame, frame[frame["month"] == "2000-03-01"]])


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (lambda: without(table(), 20, 21), r"'shop 0' has a gap: 2001-11-01 follows 2001-08-01, 2"),
        (twice, "'shop 0' has time 2000-03-01 more than once .*series="),
        (lambda: with_value(np.nan), "'shop 0' has nan at time 2000-11-01 .*interpolate"),
        (lambda: with_value(np.inf), "'shop 0' has inf at time 2000-11-01"),
        (lambda: table(lengths=(60, 8)), "'shop 1' have fewer than context .* = 9 .*shortest 8"),
        (lambda: table().assign(shop=None), "no name of a series in row 1"),
        (lambda: table().assign(sales="many"), "'sales' has 'many' in row 1, .*not a number"),
        (lambda: table().assign(month="soon"), "'month' has times that cannot be read"),
        (lambda: with_value(1.0).assign(sales=lambda f: f["sales"] + 1e9), "float32 rounds"),
    ],
)
def test_bad_series_are_refused_by_name(frame, says):
    data = ForecastDataModule(frame().drop(columns="price"), **COLUMNS, **ARGUMENTS)
    with pytest.raises(ValueError, match=says):
        data.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"value": "sale"}, "did you mean 'sales'"),
        ({"calendar": ["mont"]}, "calendar='mont'.*month"),
        ({"calendar": ["month"], "regular": False}, "leave one of them out"),
        ({"context": 12, "season": 12}, "context=12 must be longer than a season of 12 .*24"),
        ({"split": "kfold"}, "split"),
        ({"horizon": 55}, "have fewer than context"),
        ({"test_fraction": 0.97}, "test_fraction=0.97 leaves no window whose 3 targets end"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    given = {**COLUMNS, **ARGUMENTS, **arguments}
    with pytest.raises(ValueError, match=says):
        ForecastDataModule(table().drop(columns="price"), **given).setup("fit")


def test_too_many_folds_and_unknown_data():
    data = ForecastDataModule([values(24)], **ARGUMENTS)
    with pytest.raises(ValueError, match=r"num_folds=9 leaves fold 0 no training window: its val"):
        data.splits(9)
    with pytest.raises(ValueError, match="did you mean 'stocks'"):
        ForecastDataModule("stock")
    with pytest.raises(ValueError, match=r"has no effect on data='stocks'"):
        ForecastDataModule("stocks", series="IBM").setup()


def test_rows_that_are_not_regular():
    days = pd.bdate_range("2024-01-01", periods=40)
    frame = pd.DataFrame({"day": days, "a": values(40)})
    with pytest.raises(ValueError, match=r"gap: 2024-01-08 follows 2024-01-05, 2 step.*regular"):
        ForecastDataModule(frame, time="day", **ARGUMENTS).setup()
    data = ForecastDataModule(frame, time="day", regular=False, **ARGUMENTS)
    assert len(data.source.inputs) == 40 - C - H + 1


@pytest.mark.parametrize(
    ("freq", "season"),
    [("h", 24), ("D", 7), ("W", 52), ("MS", 12), ("ME", 12), ("QS", 4), ("YS", None)],
)
def test_clocks(freq, season):
    times = pd.date_range("1999-12-31", periods=30, freq=freq).to_numpy().astype("datetime64[s]")
    clock = find_clock(np.delete(times, [3, 11]))  # gaps do not change it
    assert (clock.times(np.arange(30)) == times).all()
    assert clock.season == season


# Baselines and real data


def test_baselines_are_forecasts_of_the_past_alone():
    data = ForecastDataModule(table().drop(columns="price"), **COLUMNS, **ARGUMENTS)
    tables = baseline_tables(data)
    assert [*tables] == ["last value", "seasonal naive", "exponential smoothing"]
    for name, found in tables.items():
        assert np.array_equal(found.index, data.indices("test"))
        scores = found.score()
        error = np.abs(found.target - found.prediction)
        assert scores["mae"] == pytest.approx(error.mean(), rel=1e-5), name
        assert scores["mase"] == pytest.approx(
            np.mean(error / found["naive_error"][:, None]), rel=1e-5
        )
    assert tables["seasonal naive"].score()["mase"] < 1.5
    rows = data.indices("test").tolist()
    naive = [seasonal_naive(data.history(row), H, M) for row in rows]
    np.testing.assert_allclose(tables["seasonal naive"].prediction, naive, rtol=1e-6)
    past = data.source.inputs[rows, :C, 0]
    torch.testing.assert_close(
        torch.from_numpy(tables["last value"].prediction), past[:, -1:].expand(-1, H)
    )
    with pytest.raises(ValueError, match="fewer than season=4"):
        seasonal_naive(np.ones(3), 2, 4)


def test_stocks_come_with_a_dependency():
    data = ForecastDataModule()
    data.setup()
    assert len(data.panel.names) == 10 and data.season == 12
    assert (
        "10 series" in data.description() and "origins of train: 1992-12-01" in data.description()
    )
    lengths = dict(zip(data.panel.names, map(len, data.panel.values), strict=True))
    assert lengths["IBM"] == 390 and lengths["DELL"] == 70  # the latter began later


@pytest.mark.parametrize(("name", "count"), [("elnino", 732), ("co2", 526), ("sunspots", 309)])
def test_data_of_statsmodels(name, count):
    pytest.importorskip("statsmodels")
    (found,) = ForecastDataModule(name).panel.values
    assert len(found) == count


@pytest.mark.parametrize("fold", range(3))
def test_rows_of_unequal_distance_do_not_mix_past_and_future(fold):
    daily = pd.date_range("2020-01-01", periods=200)
    dates = [daily, daily[::7]]
    parts = [
        pd.DataFrame({"day": some, "shop": f"{i}", "sales": np.arange(len(some)) % 7 + 1.0 * i})
        for i, some in enumerate(dates)
    ]
    data = ForecastDataModule(
        pd.concat(parts), context=C, horizon=H, season=1, time="day", series="shop", value="sales",
        regular=False, num_folds=3, fold=fold,
    )  # fmt: skip
    data.setup()

    def dates_of(part, ahead):
        rows = data.indices(part).numpy()
        pairs = zip(data.origins.series[rows], data.origins.places[rows] + ahead, strict=True)
        return [dates[series][place] for series, place in pairs]

    assert set(data.origins.series[data.indices("val").numpy()]) == {0, 1}
    for before, after in (("train", "val"), ("val", "test")):
        assert max(dates_of(before, H)) < min(dates_of(after, 1))
    last = max(dates_of("train", H))
    known = [(some <= last).sum() for some in dates]
    assert [len(values) for values in data.training_pasts()] == known
    assert data.history(0)[-1] == data.source.inputs[0, C - 1, 0]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda t: t, {"covariates": ["sales"]}, "'sales' is named by value= and also"),
        (lambda t: t.drop(columns=["shop", "price"]), {"time": None}, "'month' holds dates"),
        (lambda t: t.rename(columns={"price": "sales"}), {}, "two columns 'sales'"),
        (lambda t: t.set_index(t["month"].astype(str)), {"time": None}, "index of data holds text"),
    ],
)
def test_tables_that_would_be_misread(change, arguments, message):
    given = {"time": "month", "series": "shop", "value": "sales", **arguments}
    if arguments == {"time": None}:
        given = {}
    with pytest.raises(ValueError, match=message):
        ForecastDataModule(change(table((60,))), **ARGUMENTS, **given).setup()


def test_a_series_of_pandas():
    dates = pd.date_range("2000-01-01", periods=60, freq="MS")
    data = ForecastDataModule(pd.Series(values(), index=dates, name="sales"), **ARGUMENTS)
    assert data.panel.names == ["sales"] and data.panel.clock.unit == "months"
