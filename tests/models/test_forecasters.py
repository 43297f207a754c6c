"""Forecasters in real fits: cross-validation, averages, tests, checkpoints, steps to come."""

import json
from pathlib import Path

import forked
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.callbacks import ExactResume, InputNoise, MixUp
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.data import ForecastDataModule
from dlblocks.data.folded import FoldedDataModule
from dlblocks.models import (
    Forecaster,
    LSTMForecaster,
    Model,
    TransformerForecaster,
    VotingEnsemble,
    load,
)
from dlblocks.tasks import ForecastTask

C, H, M = 8, 3, 4
LEVELS = [0.1, 0.5, 0.9]


def frame(length=70):
    months = pd.date_range("2000-01-01", periods=length, freq="MS")
    draw = np.random.default_rng(0)
    season = np.sin(np.arange(length) * np.pi / 2)
    parts = [
        pd.DataFrame({"month": months, "shop": name, "sales": size * (3 + season)
                      + 0.1 * size * draw.standard_normal(length)})
        for name, size in (("small", 1.0), ("large", 100.0))
    ]  # fmt: skip
    return pd.concat(parts)


FRAME = frame()


def data(table=FRAME, **arguments):
    settings = {
        "time": "month", "series": "shop", "context": C, "horizon": H, "season": M,
        "calendar": ["month"], "batch_size": 16,
    }  # fmt: skip
    return ForecastDataModule(table, **{**settings, **arguments})


def model(**arguments):
    settings = {"num_known": 2, "quantiles": LEVELS, "width": 8, "lr": 0.01}
    return LSTMForecaster(H, **{**settings, **arguments})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    torch.manual_seed(0)
    return cross_validate(
        model,
        data(),
        num_folds=2,
        trainer={"max_epochs": 2, "accelerator": "cpu"},
        run_dir=tmp_path_factory.mktemp("runs") / "run",
        progress_bar=False,
    )


def slow_scores(module, target, prediction, index):
    """Metrics by their formulas, one window and step at a time."""
    scaled, absolute, square, losses, inside = [], [], [], [], []
    for row, window, ahead in zip(index, target, prediction, strict=True):
        past = module.history(int(row))
        naive = np.mean([abs(past[i] - past[i - M]) for i in range(M, len(past))])
        for y, quantiles in zip(window, ahead, strict=True):
            error = y - quantiles[1]
            absolute.append(abs(error))
            square.append(error**2)
            scaled.append(abs(error) / naive)
            losses += [
                q * (y - v) if y >= v else (1 - q) * (v - y)
                for q, v in zip(LEVELS, quantiles, strict=True)
            ]
            inside.append(quantiles[0] <= y <= quantiles[2])
    found = {"mae": absolute, "mase": scaled, "pinball": losses, "coverage": inside}
    means = {name: np.mean(values) for name, values in found.items()}
    return {**means, "rmse": np.sqrt(np.mean(square))}


def test_out_of_fold_predictions_and_scores(result):
    oof = result.oof
    module = data()
    assert oof.target.shape == oof.prediction.shape == oof["q0.9"].shape == (len(oof), H)
    np.testing.assert_array_equal(oof.target, module.source.targets[oof.index])
    assert (oof["q0.1"] <= oof.prediction).all() and (oof.prediction <= oof["q0.9"]).all()
    prediction = np.stack([oof["q0.1"], oof.prediction, oof["q0.9"]], 2)
    assert result.pooled() == pytest.approx(
        slow_scores(module, oof.target, prediction, oof.index), rel=1e-4
    )
    for row in result.folds:
        mine = oof.fold == row["fold"]
        slow = slow_scores(module, oof.target[mine], prediction[mine], oof.index[mine])
        for name, value in slow.items():
            assert row[f"val/{name}"] == pytest.approx(value, rel=1e-4), name
    assert CrossValidationResult.load(result.run_dir).pooled() == result.pooled()


def test_table_figures_and_report(result):
    names = [f"{what}_{step}" for what in ("target", "prediction", "q0.1", "q0.9")
             for step in range(H)]  # fmt: skip
    assert {*names} <= {*result.to_pandas("oof")}
    figures = {path.stem for path in (result.run_dir / "figures").glob("*.png")}
    assert {"forecasts", "error_by_step", "learning_curves"} <= figures
    assert "forecasts" in result.report().read_text()


def test_fold_average_is_tested_once(result):
    average = result.ensemble()
    assert isinstance(average, VotingEnsemble)
    module = data()
    inputs, targets, index = module.arrays("test")
    each = torch.stack([member(inputs) for member in average.net.members])
    torch.testing.assert_close(average(inputs), each.mean(0))
    scores = result.test(average)
    slow = slow_scores(module, targets.numpy(), average(inputs).detach().numpy(), index)
    for name, value in slow.items():
        assert scores[f"test/{name}"] == pytest.approx(value, rel=1e-4), name
    low, high = scores.interval("test/mase")  # windows overlap: none from single windows
    assert np.isnan(low) and np.isnan(high)
    member = average.net.members[0].scaler
    fold = data().for_fold(0, 2).with_selection(0.15)  # which chooses the epoch
    for name, value in fold.scales.items():
        assert torch.equal(getattr(member, name), value)


def test_steps_to_come_are_predicted_from_a_run_folder(result, tmp_path):
    predictor = dlblocks.load(result.run_dir)
    table = predictor.predict(FRAME, progress_bar=False)
    assert table.names.tolist() == ["large", "small"] and table.prediction.shape == (2, H)
    # The inputs are those of a window whose origin is the last value.
    longer = pd.concat([FRAME, pd.DataFrame({
        "month": [*pd.date_range("2005-11-01", periods=H, freq="MS")] * 2,
        "shop": ["large"] * H + ["small"] * H, "sales": 7.0,
    })])  # fmt: skip
    module = data(longer)
    last = module.source.inputs[-2:]
    assert module.windows["origin"][-1] == FRAME["month"].max()
    forecasts = predictor.model(last).detach().numpy()
    np.testing.assert_allclose(table.prediction, forecasts[..., 1], rtol=1e-6)
    np.testing.assert_allclose(table["q0.9"], forecasts[..., 2], rtol=1e-6)
    assert predictor.model(last).diff(dim=-1).min() >= 0
    FRAME.to_csv(tmp_path / "new.csv", index=False)
    again = predictor.predict(tmp_path / "new.csv", progress_bar=False)
    np.testing.assert_array_equal(again.prediction, table.prediction)
    assert list(again.to_pandas())[:2] == ["series", "prediction_0"]
    # A series that training had not has the scales of all.
    other = FRAME[FRAME["shop"] == "small"].assign(shop="new")
    assert np.isfinite(predictor.predict(other, progress_bar=False).prediction).all()
    with pytest.raises(ValueError, match=r"'large' has 5 values, .* last 8 \(context\)"):
        predictor.predict(FRAME[FRAME["month"] > "2005-05-01"], progress_bar=False)
    with pytest.raises(ValueError, match="'large' has a gap"):
        predictor.predict(FRAME[FRAME["month"] != "2003-05-01"], progress_bar=False)


def test_covariates_of_the_steps_to_come_are_needed(make_trainer):
    table = FRAME.assign(price=np.arange(len(FRAME)) % 5.0)
    module = data(table, value="sales", covariates=["price"])
    forecaster = model(num_known=3)
    make_trainer().fit(forecaster, module)
    predictor = dlblocks.load(forecaster)
    with pytest.raises(ValueError, match="lacks covariates of 3 steps after 2005-10-01"):
        predictor.predict(table, progress_bar=False)
    ahead = pd.DataFrame({
        "month": [*pd.date_range("2005-11-01", periods=H, freq="MS")] * 2,
        "shop": ["large"] * H + ["small"] * H, "price": 1.0,
    })  # fmt: skip
    one = predictor.predict(pd.concat([table, ahead]), progress_bar=False)
    two = predictor.predict(pd.concat([table, ahead.assign(price=4.0)]), progress_bar=False)
    assert (one.prediction != two.prediction).all()


def test_predictions_do_not_depend_on_what_comes_later(result):
    average = result.ensemble()
    module = data()
    row = int(module.indices("test")[0])
    late = FRAME["month"] > pd.Timestamp(module.windows["origin"][row])
    changed = FRAME.assign(sales=FRAME["sales"].where(~late, -1e3))
    other = data(changed)
    assert torch.equal(average(module.source.inputs[[row]]), average(other.source.inputs[[row]]))
    assert not torch.equal(module.source.targets[row], other.source.targets[row])


def test_units_of_series_do_not_matter(make_trainer):
    found = []
    for size, shift in ((1.0, 0.0), (1000.0, -500.0)):
        torch.manual_seed(0)
        module = data(FRAME.assign(sales=size * FRAME["sales"] + shift))
        forecaster = model(loss="mse", quantiles=None)
        make_trainer(max_epochs=2).fit(forecaster, module)
        found.append((forecaster.eval()(module.source.inputs[:4]).detach() - shift) / size)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TransformerForecaster(H, C, num_known=2, width=8, num_heads=2, depth=1,
                                      residual_season=M),
        lambda: model(quantiles=None, loss="mse", window_norm=False),
        lambda: Forecaster(torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear((C + H) * 4, H), torch.nn.Unflatten(1, (H, 1))
        ), H, metrics=["symmetric_mean_absolute_percentage_error"]),
    ],
    ids=["transformer", "lstm", "own"],
)  # fmt: skip
def test_forecasters_learn_and_are_saved(make, make_trainer, tmp_path):
    forecaster, module = make(), data()
    trainer = make_trainer(max_epochs=3)
    forecaster.scaler.set(**module.scales)
    (before,) = trainer.validate(forecaster, module, verbose=False)
    trainer.fit(forecaster, module)
    logged = dict(trainer.callback_metrics)
    assert 0 < float(logged["val/mase"]) < before["val/mase"]
    inputs = module.source.inputs[:5]
    predictions = torch.cat([
        batch["prediction"] for batch in trainer.predict(forecaster, module)
    ])  # fmt: skip
    assert predictions.shape == (len(module.indices("test")), H)
    if isinstance(forecaster.net, torch.nn.Sequential):
        assert "val/symmetric_mean_absolute_percentage_error" in logged
        return
    forecaster.eval().save(tmp_path / "model.ckpt")
    again = load(tmp_path / "model.ckpt")
    torch.testing.assert_close(again(inputs), forecaster(inputs), rtol=0, atol=0)


def test_residual_of_nothing_is_the_seasonal_naive_method():
    forecaster = model(quantiles=None, residual_season=M).eval()
    torch.nn.init.zeros_(forecaster.net.out.weight)
    torch.nn.init.zeros_(forecaster.net.out.bias)
    module = data()
    inputs = module.source.inputs
    expected = inputs[:, C - M : C - M + H, 0]
    torch.testing.assert_close(forecaster(inputs)[..., 0], expected)


def test_a_scaler_that_is_set_stays(make_trainer):
    forecaster = model()
    make_trainer().fit(forecaster, data())
    before = forecaster.scaler.level.clone()
    other = data(FRAME.assign(sales=2 * FRAME["sales"]))
    make_trainer().fit(forecaster, other)
    assert torch.equal(forecaster.scaler.level, before)


# Engines, resume, processes, modules of others


def test_the_vectorized_engine_says_why_not(tmp_path):
    with pytest.raises(ValueError, match="the loss of ForecastTask needs the inputs"):
        cross_validate(
            model, data(), num_folds=2, engine="vectorized", run_dir=tmp_path / "run",
            trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False,
        )  # fmt: skip


class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == 6:
            raise RuntimeError("killed")


def test_a_killed_fit_is_resumed_to_the_bit(make_trainer, tmp_path):
    def fit(folder, *callbacks, ckpt_path=None):
        torch.manual_seed(0)
        forecaster = model(dropout=0.3)
        resume = ExactResume(folder, every_n_train_steps=1)
        trainer = make_trainer(
            max_epochs=3, enable_checkpointing=True, callbacks=[resume, *callbacks]
        )
        trainer.fit(forecaster, data(), ckpt_path=ckpt_path)
        return forecaster.state_dict()

    whole = fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "killed", Kill())
    again = fit(tmp_path / "killed", ckpt_path="last")
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


class Own(pl.LightningModule):
    """Somebody else's module, whose batches are dictionaries."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(C, H)

    def forward(self, batch):
        past = batch["window"][:, :C, 0]
        return past.mean(1, keepdim=True) + self.net(past - past.mean(1, keepdim=True))

    def training_step(self, batch, batch_idx):
        return F.l1_loss(self(batch), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.l1_loss(self(batch), batch["label"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


class Pairs(Own):
    """One that takes the batches of `ForecastDataModule`."""

    def forward(self, batch):
        return super().forward({"window": batch[0]})

    def training_step(self, batch, batch_idx):
        return F.l1_loss(self(batch), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.l1_loss(self(batch), batch[1]))

    def predict_step(self, batch, batch_idx):
        return {"prediction": self(batch), "target": batch[1]}


class Windows(torch.utils.data.Dataset):
    def __init__(self):
        source = data().source
        self.inputs, self.targets = source.inputs, source.targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return {"window": self.inputs[i], "label": self.targets[i]}


@pytest.mark.parametrize(
    ("make", "module"),
    [
        (Pairs, data),
        (Own, lambda: FoldedDataModule(Windows(), split="time_series", stratify=False)),
    ],
)
def test_modules_of_others(make, module, tmp_path):
    result = cross_validate(
        make, module(), num_folds=2, run_dir=tmp_path / "run", progress_bar=False, figures=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )  # fmt: skip
    oof = result.oof
    assert oof.prediction.shape == oof.target.shape == (len(oof), H)
    assert np.isfinite(result.values("val/loss")).all()
    np.testing.assert_array_equal(oof.target, data().source.targets[oof.index])


def test_the_task_with_a_net_of_ones_own(make_trainer):
    class Net(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs[:, :C, 0]).unflatten(1, (H, 1))

    trainer = make_trainer()
    trainer.fit(Model(Net(C, H), ForecastTask(H)), data())
    assert {"val/mae", "val/rmse", "val/mase"} <= {*trainer.callback_metrics}


def measure(devices):
    torch.manual_seed(0)
    forecaster = model()
    module = data(batch_size=7)
    forecaster.scaler.set(**module.scales)
    strategy = {"strategy": "ddp"} if devices > 1 else {}
    trainer = pl.Trainer(
        devices=devices, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **strategy,
    )  # fmt: skip
    (found,) = trainer.test(forecaster, module, verbose=False)
    if trainer.is_global_zero:
        Path(f"metrics-{devices}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_metrics_of_two_processes_are_those_of_one():
    measure(1)
    forked.torchrun(measure, 2)
    one, two = (json.loads(Path(f"metrics-{n}.json").read_text()) for n in (1, 2))
    assert {f"test/{name}" for name in ("loss", *ForecastTask.standard)} == {*one}
    assert two == pytest.approx(one, rel=1e-5)


# Bad input, before training


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: (LSTMForecaster(4, num_known=2), data()), "horizon=4, but .* horizon=3"),
        (lambda: (model(num_known=0), data()), r"num_known=0, but .* 2 known .*month_sin"),
        (
            lambda: (TransformerForecaster(H, 9, num_known=2, width=8, num_heads=2), data()),
            "context=9, but .*context=8",
        ),
        (lambda: (model(residual_season=12), data()), "residual_season=12 is longer than .*=8"),
        (lambda: (Forecaster(torch.nn.Linear(4, 2), H), data()), "the net puts out shape"),
    ],
)
def test_bad_input_is_refused_before_training(make, says, make_trainer):
    forecaster, module = make()
    before = [parameter.clone() for parameter in forecaster.parameters()]
    with pytest.raises(ValueError, match=says):
        make_trainer().fit(forecaster, module)
    assert all(map(torch.equal, before, forecaster.parameters()))


@pytest.mark.parametrize(
    ("quantiles", "says"),
    [([0.1, 0.9], "lacks the median"), ([0.5, 1.0], "quantiles=1.0"), ([0.5, 0.5], "twice")],
)
def test_bad_quantiles(quantiles, says):
    with pytest.raises(ValueError, match=says):
        model(quantiles=quantiles)


@pytest.mark.parametrize("callback", [MixUp(0.2), InputNoise(0.1)])
def test_callbacks_that_would_spoil_the_numbers_of_series_are_refused(callback, make_trainer):
    with pytest.raises(ValueError, match="would spoil inputs of kind 'window': one channel is"):
        make_trainer(callbacks=[callback]).fit(model(), data())


def test_half_precision_that_would_round_series_is_refused(make_trainer):
    with pytest.raises(ValueError, match="bf16-mixed"):
        make_trainer(precision="bf16-true").fit(model(), data())
    trainer = make_trainer(precision="bf16-mixed")
    trainer.fit(model(), data())
    assert np.isfinite(float(trainer.callback_metrics["val/mase"]))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_windows_of_other_loaders_need_the_last_channels(channels, make_trainer):
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, C + H, channels, generator=draw)
    targets = torch.randn(20, H, generator=draw)

    def fit(module, inputs):
        loader = DataLoader(TensorDataset(inputs, targets), batch_size=10)
        trainer = make_trainer()
        trainer.fit(module, loader, loader)
        return trainer.callback_metrics

    with pytest.raises(ValueError, match="number of the series"):
        fit(LSTMForecaster(H, num_known=max(0, channels - 3), width=4), inputs)
    others = torch.tensor([0.0, 1.0]).expand(20, C + H, 2)
    whole = torch.cat([inputs, others], 2)
    found = fit(LSTMForecaster(H, num_known=channels - 1, width=4), whole)
    assert found["train/loss"] == pytest.approx(found["train/mae"].item(), rel=1e-5)


def test_a_naive_error_below_zero_is_no_scale():
    with pytest.raises(ValueError, match="naive error of window 1 is -2"):
        task = ForecastTask(1)
        task.check_batch(torch.zeros(2, 1, 1), torch.tensor([[0.0, 1.0], [0.0, -2.0]]))


def test_arrays_have_no_known_inputs():
    whole, module = data(), model()
    whole.setup()
    module.data_spec = whole.encoder.to_plain()
    with pytest.raises(ValueError, match="knows month of each step; give a table"):
        dlblocks.load(module).predict(np.arange(40.0), progress_bar=False)
