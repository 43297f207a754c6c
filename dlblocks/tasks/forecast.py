"""Several future steps of a series, as values or quantiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from dlblocks import plots
from dlblocks._errors import check_choice, check_range
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = ("mae", "mse")
NUM_SHOWN = 6  # windows in a figure
TOLERANCE = 1e-6  # between quantile levels


class ForecastTask(Task):
    """Forecast the next H steps of a series.

    The net puts out (N, H, 1), or (N, H, Q) for Q quantiles. Targets are (N, H), in the units of
    the series.

    Errors are divided by the naive error of their window, the mean of ``|y_i - y_(i-m)|`` over the
    steps up to the origin, where m is the season. So series of all sizes count the same in the
    loss. A batch without naive errors, which is not of a `dlblocks.data.ForecastDataModule`, has
    errors in the units of the series, and no ``mase``.

    Loss: the mean absolute or squared error, or of quantiles the pinball loss (Koenker and Bassett
    1978), the mean of ``max(q e, (q - 1) e)`` over levels q and steps, with e = target - forecast.

    Metrics: ``mae`` and ``rmse`` in the units of the series; ``mase``, the mean absolute error over
    the naive error (Hyndman and Koehler 2006), below 1 if forecasts are better than the seasonal
    naive method was within the sample. Of quantiles also ``pinball`` in the units of the series,
    and ``coverage``, the share of targets between the outermost two. The value of a step is its
    median.

    Predictions are (N, H), or (N, H, Q), sorted: quantiles never cross (Chernozhukov et al. 2010).
    Tables have the columns ``prediction`` and ``target`` (N, H), ``naive_error``, and for each
    other level than 0.5 one such as ``q0.1`` (N, H). In CSV files ``prediction_0`` is the first
    step.

    Args:
        horizon: Number of steps H.
        quantiles: Levels in (0, 1), with 0.5; None for a single value.
        loss: ``"mae"`` or ``"mse"``, without `quantiles`.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, or metrics.
            They get medians and targets (N, H).

    Example:
        >>> task = ForecastTask(2)
        >>> task.loss(torch.zeros(1, 2, 1), torch.tensor([[1.0, 3.0]]))
        tensor(2.)
    """

    name = "forecast"
    shown = ("mase",)
    loss_range = (0.0, None)
    standard = ("mae", "rmse", "mase", "pinball", "coverage")

    def __init__(
        self,
        horizon: int,
        *,
        quantiles: Sequence[float] | None = None,
        loss: Literal["mae", "mse"] = "mae",
        metrics: Sequence[str | Metric] | None = None,
    ) -> None:
        super().__init__(metrics=metrics)
        check_range("horizon", horizon, 1)
        check_choice("loss", loss, list(LOSSES))
        self.horizon, self.loss_name = horizon, loss
        self.quantiles = None if quantiles is None else check_quantiles(quantiles)
        self.out_features = horizon  # for metrics that are chosen

    @property
    def num_outputs(self) -> int:
        """Numbers of a step Q."""
        return 1 if self.quantiles is None else len(self.quantiles)

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs if self.quantiles is None else outputs.sort(-1).values

    # Batches

    def from_inputs(self, inputs: Any) -> dict[str, Tensor]:
        if not isinstance(inputs, Tensor) or inputs.ndim != 3:
            return {}
        return {"naive_error": inputs[:, 0, -1]}

    def join(self, targets: Tensor, found: dict[str, Tensor]) -> Tensor:
        if targets.shape[1:] != (self.horizon,):
            return targets  # `check_batch` says what is wrong
        return torch.cat([targets, found["naive_error"][:, None].to(targets)], 1)

    def _split(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return targets (N, H), and the naive error (N, 1) or 1."""
        scale = targets[:, self.horizon :] if targets.shape[1] > self.horizon else None
        targets = targets[:, : self.horizon]
        return targets, torch.ones_like(targets[:, :1]) if scale is None else scale

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        targets, scale = self._split(targets.to(outputs.dtype))
        error = (targets / scale)[..., None] - outputs / scale[..., None]  # (N, H, Q)
        if self.quantiles is not None:
            losses = pinball(error, outputs.new_tensor(self.quantiles))
        else:
            losses = error.abs() if self.loss_name == "mae" else error.square()
        each = losses.flatten(1).mean(1)
        return each.mean() if weights is None else (each * weights).mean()

    def make_metrics(self, stage: Stage) -> MetricCollection:
        scores: dict[str, Any] = {"forecast": ForecastScores(self.horizon, self.quantiles)}
        if stage != "train":
            scores |= {
                name: _OfMedians(metric, self.horizon, self.median)
                for name, metric in self.chosen_metrics().items()
            }
        return MetricCollection(scores, compute_groups=False)

    @property
    def median(self) -> int:
        """Place of the median among the outputs of a step."""
        return 0 if self.quantiles is None else self.quantiles.index(0.5)

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        return outputs.float(), targets.float()

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        outputs = outputs.float()
        return outputs[..., 0] if self.quantiles is None else outputs

    def outputs_of(self, predictions: Tensor) -> Tensor:
        return predictions[..., None] if self.quantiles is None else predictions

    def parts(self, prediction: Any) -> dict[str, Any]:
        if self.quantiles is None or prediction.ndim != 3:
            return {"prediction": prediction}
        found = {"prediction": prediction[..., self.median]}
        levels = enumerate(self.quantiles)
        return found | {f"q{level:g}": prediction[..., i] for i, level in levels if level != 0.5}

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        return {"target": target, **self.parts(prediction)}

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        return outputs.mean(0)

    # Checks

    def check_data(self, datamodule: Any, model: str) -> None:
        found = getattr(datamodule, "horizon", None)
        if found is not None and found != self.horizon:
            raise ValueError(
                f"horizon={self.horizon}, but {type(datamodule).__name__} has windows of "
                f"horizon={found}; set horizon={found}."
            )
        if isinstance(getattr(datamodule, "num_classes", None), int):
            raise ValueError(
                f"{model} forecasts values, but the targets of {type(datamodule).__name__} are "
                "classes; use a Classifier."
            )

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        expected = len(targets), self.horizon, self.num_outputs
        if tuple(outputs.shape) != expected:
            raise ValueError(
                f"the net puts out shape {tuple(outputs.shape)}; expected (N, horizon, quantiles), "
                f"here {expected}."
            )
        if targets.ndim != 2 or targets.shape[1] - self.horizon not in (0, 1):
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}; expected (N, {self.horizon}), one "
                "value a step."
            )
        naive = targets[:, self.horizon :]
        if (naive <= 0).any():
            raise ValueError(
                f"the naive error of window {int((naive <= 0).nonzero()[0, 0])} is "
                f"{float(naive.min()):g}, but it divides the errors, so that it must be above 0. "
                "It is the last channel of inputs (N, L, C); append 1 where it is not known."
            )

    def difference(self, other: Task) -> str:
        if not isinstance(other, ForecastTask):
            return super().difference(other)
        if self.horizon != other.horizon:
            return f"horizons {self.horizon} and {other.horizon}"
        mine, theirs = self.quantiles, other.quantiles
        return "" if mine == theirs else f"quantiles {mine} and {theirs}"

    # Predictions as arrays

    @classmethod
    def check_arrays(cls, target: Array, prediction: Array) -> None:
        if target.shape != prediction.shape or target.ndim != 2:
            raise ValueError(
                f"there are targets of shape {target.shape} and predictions of shape "
                f"{prediction.shape}; expected both (N, horizon)."
            )

    @classmethod
    def levels(cls, table: PredictionTable) -> dict[float, Array]:
        """Return the quantiles (N, H) of a table by their levels, sorted."""
        found = {}
        for name in table.columns:
            number = name.removeprefix("q")
            if name != number and number.replace(".", "").isdigit() and table.has(name):
                found[float(number)] = table[name]
        if found:
            found[0.5] = table.prediction
        return dict(sorted(found.items()))

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        target = np.asarray(table.target, dtype=float)
        weight = table.sample_weight

        def mean(values: Array) -> float:
            each = values.reshape(len(values), -1).mean(1)
            return float(np.average(each, weights=weight))

        error = target - table.prediction
        found = {"mae": mean(np.abs(error)), "rmse": float(np.sqrt(mean(error**2)))}
        if table.has("naive_error"):
            found["mase"] = mean(np.abs(error) / table["naive_error"][:, None])
        levels = cls.levels(table)
        if levels:
            losses = [
                np.maximum(level * (target - values), (level - 1) * (target - values))
                for level, values in levels.items()
            ]
            found["pinball"] = mean(np.stack(losses, -1))
            low, *_, high = levels.values()
            found["coverage"] = mean(((low <= target) & (target <= high)).astype(float))
        return found

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw some forecasts with intervals, and the error by step."""
        horizon = table.target.shape[1]
        error = np.abs(table.target - table.prediction)
        if table.has("naive_error"):
            error = error / table["naive_error"][:, None]
        name = "MASE" if table.has("naive_error") else "mean absolute error"
        found: dict[str, Callable[[], Figure]] = {
            "error_by_step": lambda: plots.lines(
                {name: error.mean(0)}, xlabel="steps ahead", ylabel=name
            )
        }
        inputs = table.inputs
        if inputs is None or len(table.input_shape) != 2 or table.input_shape[0] <= horizon:
            return found
        levels = list(cls.levels(table).values())

        def draw() -> Figure:
            rows = np.unique(np.linspace(0, len(table) - 1, NUM_SHOWN).astype(int))
            past = inputs(table.index[rows])[:, :-horizon, 0]
            return plots.forecasts(
                past,
                table.prediction[rows],
                table.target[rows],
                interval=(levels[0][rows], levels[-1][rows]) if levels else None,
                names=[f"window {i}" for i in table.index[rows]],
                title=title,
            )

        return found | {"forecasts": draw}


def pinball(error: Tensor, levels: Tensor) -> Tensor:
    """Return the pinball loss of each error.

    Args:
        error: Target minus forecast, shape (..., Q).
        levels: Shape (Q,).

    Example:
        >>> pinball(torch.tensor([[2.0], [-2.0]]), torch.tensor([0.9])).flatten()
        tensor([1.8000, 0.2000])
    """
    return torch.maximum(levels * error, (levels - 1) * error)


def check_quantiles(quantiles: Sequence[float]) -> list[float]:
    """Return levels, sorted.

    Raises:
        ValueError: A level is outside (0, 1), comes twice, or the median is missing.
    """
    found = sorted(float(level) for level in quantiles)
    for level in found:
        check_range("quantiles", level, 0, 1, low_open=True, high_open=True)
    if np.min(np.diff(found), initial=1) < TOLERANCE:
        raise ValueError(f"quantiles={list(quantiles)} has a level twice.")
    if 0.5 not in found:
        raise ValueError(f"quantiles={list(quantiles)} lacks the median, 0.5; add it.")
    return found


class ForecastScores(Metric):
    """Errors of all forecasts of an epoch, as in `ForecastTask`.

    Args:
        horizon: Number of steps H.
        quantiles: Levels, sorted, or None.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    sums: Tensor

    def __init__(self, horizon: int, quantiles: Sequence[float] | None = None) -> None:
        super().__init__()
        self.horizon = horizon
        self.quantiles = None if quantiles is None else list(quantiles)
        # Weights; absolute, squared, scaled errors; pinball loss; targets inside; naive errors.
        self.add_state("sums", torch.zeros(7), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            outputs: Forecasts, shape (N, H, Q).
            targets: Shape (N, H), or (N, H + 1) with the naive error last.
            weights: Of each window, shape (N,), or None.
        """
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64
        outputs, targets = outputs.to(wide), targets.to(wide)
        naive = targets[:, self.horizon :]
        targets = targets[:, : self.horizon]
        levels = self.quantiles
        error = targets - outputs[..., 0 if levels is None else levels.index(0.5)]
        columns = [torch.ones_like(error), error.abs(), error.square()]
        columns.append(error.abs() / naive if naive.numel() else torch.zeros_like(error))
        if levels is None:
            columns += [torch.zeros_like(error)] * 2
        else:
            losses = pinball(targets[..., None] - outputs, outputs.new_tensor(levels))
            inside = (outputs[..., 0] <= targets) & (targets <= outputs[..., -1])
            columns += [losses.mean(-1), inside.to(wide)]
        columns.append(torch.full_like(error, float(naive.numel() > 0)))
        each = torch.stack([column.mean(1) for column in columns])  # (7, N)
        sums = each.sum(1) if weights is None else each @ weights.to(wide)
        self.sums = self.sums.to(wide) + sums

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name."""
        count, absolute, square, scaled, loss, inside, known = self.sums.unbind()
        found = {"mae": absolute / count, "rmse": (square / count).sqrt()}
        if known > 0:
            found["mase"] = scaled / known
        if self.quantiles is not None:
            found |= {"pinball": loss / count, "coverage": inside / count}
        return {name: value.float() for name, value in found.items()}


class _OfMedians(Metric):
    """A metric of torchmetrics over medians (N, H) and targets (N, H)."""

    full_state_update = False

    def __init__(self, metric: Metric, horizon: int, median: int) -> None:
        super().__init__()
        self.metric, self.horizon, self.median = metric, horizon, median

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Direction of the metric."""
        return self.metric.higher_is_better

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.metric.update(
            outputs[..., self.median].flatten(), targets[:, : self.horizon].flatten()
        )

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        super().reset()
        self.metric.reset()
