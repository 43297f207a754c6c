"""Losses and scores against scikit-learn and loops, levels of quantiles, figures."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from dlblocks import plots
from dlblocks.metrics import metric_mode
from dlblocks.nets import LSTMForecast, SeriesScaler, TransformerForecast
from dlblocks.tasks import ForecastTask, PredictionTable
from dlblocks.tasks.forecast import ForecastScores

N, H = 7, 4
LEVELS = [0.1, 0.5, 0.75]


def sample(outputs=3):
    forecasts = torch.randn(N, H, outputs).sort(-1).values
    return forecasts, torch.randn(N, H), torch.rand(N) + 0.5


def test_pinball_loss_is_that_of_scikit_learn():
    outputs, targets, _ = sample()
    theirs = np.mean([
        mean_pinball_loss(targets.flatten(), outputs[..., i].flatten(), alpha=level)
        for i, level in enumerate(LEVELS)
    ])  # fmt: skip
    assert float(ForecastTask(H, quantiles=LEVELS).loss(outputs, targets)) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("loss", "theirs"), [("mae", mean_absolute_error), ("mse", mean_squared_error)]
)
def test_losses_are_those_of_scaled_series(loss, theirs):
    outputs, targets, naive = sample(1)
    task = ForecastTask(H, loss=loss)
    joined = task.join(targets, {"naive_error": naive})
    scaled = [(x / naive[:, None]).flatten() for x in (targets, outputs[..., 0])]
    assert float(task.loss(outputs, joined)) == pytest.approx(theirs(*scaled), rel=1e-5)
    weights = torch.rand(N)
    each = [theirs(t / n, o / n) for t, o, n in zip(targets, outputs[..., 0], naive, strict=True)]
    weighted = float(task.loss(outputs, joined, weights))
    assert weighted == pytest.approx(np.mean(np.array(each) * weights.numpy()), rel=1e-5)


def test_mase_is_that_of_hyndman_and_koehler():
    """Their formula: the mean over steps of |e_t| / (Σ |Y_i - Y_(i-m)| / (n - m))."""
    season, draw = 3, np.random.default_rng(0)
    history = draw.standard_normal((N, 20)).cumsum(1)
    outputs, targets, _ = sample(1)
    total = 0.0
    for past, ahead, forecast in zip(history, targets.numpy(), outputs.numpy(), strict=True):
        scale = 0.0
        for i in range(season, len(past)):
            scale += abs(past[i] - past[i - season])
        scale /= len(past) - season
        for y, f in zip(ahead, forecast[:, 0], strict=True):
            total += abs(y - f) / scale
    naive = torch.tensor(np.abs(history[:, season:] - history[:, :-season]).mean(1))
    scores = ForecastScores(H)
    for rows in (slice(0, 3), slice(3, N)):  # unequal batches
        scores.update(outputs[rows], torch.cat([targets, naive[:, None].float()], 1)[rows])
    assert float(scores.compute()["mase"]) == pytest.approx(total / (N * H), rel=1e-5)
    table = PredictionTable(
        {
            "index": np.arange(N),
            "target": targets.numpy(),
            "prediction": outputs[..., 0].numpy(),
            "naive_error": naive.numpy(),
        },
        task="forecast",
    )
    assert table.score()["mase"] == pytest.approx(total / (N * H), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_logged_scores_are_those_of_the_table(weighted):
    outputs, targets, naive = sample()
    task = ForecastTask(H, quantiles=LEVELS)
    weights = torch.rand(N) if weighted else None
    scores = ForecastScores(H, LEVELS)
    scores.update(outputs, task.join(targets, {"naive_error": naive}), weights)
    kept = task.keep(task.predict(outputs), targets)
    assert {*kept} == {"target", "prediction", "q0.1", "q0.75"}
    columns = {name: values.numpy() for name, values in kept.items()}
    columns |= {"index": np.arange(N), "naive_error": naive.numpy()}
    if weights is not None:
        columns["weight"] = weights.numpy()
    table = PredictionTable(columns, task="forecast")
    logged = {name: float(value) for name, value in scores.compute().items()}
    assert table.score() == pytest.approx(logged, rel=1e-5)
    assert {*logged} == {*ForecastTask.standard}


def test_without_naive_errors_there_is_no_mase():
    scores = ForecastScores(H)
    outputs, targets, _ = sample(1)
    scores.update(outputs, targets)
    assert {*scores.compute()} == {"mae", "rmse"}


def test_quantiles_never_cross_and_come_back_sorted():
    task = ForecastTask(H, quantiles=[0.9, 0.1, 0.5])
    assert task.quantiles == [0.1, 0.5, 0.9]
    outputs = torch.randn(N, H, 3)
    assert (task.decode(outputs).diff(dim=-1) >= 0).all()
    # Sorting never makes the pinball loss worse.
    targets = torch.randn(N, H)
    assert task.loss(task.decode(outputs), targets) <= task.loss(outputs, targets)


def test_the_best_constant_quantiles_are_those_of_the_sample():
    targets = torch.randn(400, 1)
    forecast = torch.zeros(1, 1, 3, requires_grad=True)
    task = ForecastTask(1, quantiles=[0.1, 0.5, 0.9])
    optimizer = torch.optim.Adam([forecast], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(forecast.expand(400, 1, 3), targets).backward()
        optimizer.step()
    expected = targets.quantile(torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(forecast.detach().flatten(), expected, atol=0.15, rtol=0)


def test_directions_are_known():
    assert metric_mode("val/mase") == metric_mode("val/pinball") == "min"


@pytest.mark.parametrize(
    ("outputs", "targets", "says"),
    [
        ((N, H, 1), (N, H), "expected .* quantiles"),
        ((N, H, 3), (N, H + 2), "expected .* one value"),
    ],
)
def test_wrong_shapes_are_refused(outputs, targets, says):
    with pytest.raises(ValueError, match=says):
        ForecastTask(H, quantiles=LEVELS).check_batch(torch.zeros(outputs), torch.zeros(targets))


def test_ensembles_need_the_same_steps_and_levels():
    task = ForecastTask(H, quantiles=LEVELS)
    assert task.difference(ForecastTask(H, quantiles=LEVELS)) == ""
    assert "horizons 4 and 5" in task.difference(ForecastTask(5, quantiles=LEVELS))
    assert "quantiles" in task.difference(ForecastTask(H))
    with pytest.raises(ValueError, match=r"shape \(7, 4\) and .* \(7, 3\)"):
        ForecastTask.check_arrays(np.zeros((7, 4)), np.zeros((7, 3)))


# Nets


@pytest.mark.parametrize("make", [
    lambda: LSTMForecast(5, H, 2, width=6, depth=2, dropout=0.1),
    lambda: TransformerForecast(5, H, 2, length=9, width=8, num_heads=2, depth=1),
], ids=["lstm", "transformer"])  # fmt: skip
def test_every_step_of_the_context_counts(make):
    net = make().eval()
    steps = torch.randn(3, 9, 5, requires_grad=True)
    found = net(steps)
    assert found.shape == (3, H, 2)
    found.sum().backward()
    assert (steps.grad.abs().sum(2) > 0).all()
    one = torch.cat([net(steps[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(one, found)


def test_scaler():
    scaler = SeriesScaler()
    numbers = torch.tensor([1.0, -1.0, 0.0])
    assert [x.tolist() for x in scaler.of_series(numbers)] == [[0, 0, 0], [1, 1, 1]]
    statistics = {
        "level": torch.tensor([1.0, 2.0, 9.0]), "spread": torch.tensor([3.0, 4.0, 8.0]),
        "mean": torch.tensor([1.0]), "std": torch.tensor([2.0]),
    }  # fmt: skip
    scaler.set(**statistics)
    level, spread = scaler.of_series(numbers)
    assert level.tolist() == [2, 9, 1] and spread.tolist() == [4, 8, 3]
    assert scaler.known(torch.full((1, 2, 1), 5.0)).flatten().tolist() == [2, 2]
    other = SeriesScaler()
    other.load_state_dict(scaler.state_dict())
    assert all(torch.equal(getattr(other, name), value) for name, value in statistics.items())


# Figures


def test_figure_of_forecasts():
    past, ahead = np.random.default_rng(0).random((4, 9)), np.zeros((4, H))
    figure = plots.forecasts(past, ahead, ahead + 1, interval=(ahead - 1, ahead + 2),
                             names=["a", "b", "c", "$d"], title="test")  # fmt: skip
    assert len(figure.axes) == 4
    lines = {line.get_label(): line for line in figure.axes[1].lines}
    np.testing.assert_array_equal(lines["past"].get_ydata(), past[1])
    np.testing.assert_array_equal(lines["past"].get_xdata()[-1:], [0])
    np.testing.assert_array_equal(lines["true"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(lines["forecast"].get_ydata(), ahead[1])
    with pytest.raises(ValueError, match="equally long"):
        plots.forecasts(past, ahead[:2])
