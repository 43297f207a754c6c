"""Gradient boosting: each learner is fitted to the residuals so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dlblocks._errors import check_range, checked
from dlblocks.data import DataModule
from dlblocks.ensembles._boosting_losses import HuberLoss, LogLoss, make_loss
from dlblocks.ensembles._stages import Stage
from dlblocks.ensembles._stagewise import Stagewise
from dlblocks.models import GradientBoostingClassifier, GradientBoostingRegressor, Regressor
from dlblocks.models.model import Model
from dlblocks.tasks import RegressionTask


class GradientBoosting(Stagewise):
    """Gradient boosting (Friedman 2001) of small nets, for values and for classes.

    From the constant F_0 of least loss, stage m = 1 … M

    1. computes the pseudo-residuals r_i = -∂L(y_i, F) / ∂F at F = F_{m-1}(x_i),
    2. fits a new learner h_m to them by its own loss, which is the squared error unless it says
       otherwise; they are divided by their root mean square first, so that the learning rate
       suits every stage,
    3. finds ρ_m of least loss of F_{m-1} + ρ h_m, by a line search: one for each output value; for
       classes one for all,
    4. sets F_m = F_{m-1} + ν ρ_m h_m, with the shrinkage ν.

    With ``subsample < 1`` steps 1 to 3 see a new random part of the training samples at each stage,
    drawn without replacement (Friedman 2002). F_m is kept for every sample, so that M stages cost
    M times the cost of one: no learner is run again once it is fitted.

    Learners are regressors of as many values as the targets: C for C classes, or of one for two
    classes, whose log-odds it then is. All learners are fitted in one Lightning fit, with the
    optimizer, learning rate and schedule that each was made with. A learner, or its net, that has
    a method ``fit_samples(inputs, targets, weights)`` is fitted by it instead, at once on all the
    samples of its stage (`weights` is None here): a linear model in closed form, or a tree.

    Args:
        make_learner: Makes a new learner at each call: a `Regressor` such as `MLPRegressor`,
            another model with a `RegressionTask`, or a net, which is trained by Adam.
        datamodule: The data; inputs are normalised as it does. Its validation part, if it has one,
            is scored at each stage.
        num_stages: Number of stages M.
        shrinkage: ν in (0, 1].
        loss: ``"mse"``, ``"mae"`` or ``"huber"`` for values, ``"log_loss"`` for classes; None for
            the first or the last, as the targets are.
        line_search: Search ρ_m; else the learner's values are taken as they are.
        subsample: Share of the training samples that a stage sees, in (0, 1].
        huber_quantile: The share of residuals that the Huber loss takes for no outliers.
        patience: Stop when ``val/loss`` has not improved for so many stages, and keep the best
            ones. None: no early stopping, all stages are kept.
        trainer: Arguments of the Lightning Trainer, as for each learner: ``max_epochs`` (10),
            ``gradient_clip_val``, ``accelerator``, ``precision``, …
        seed: Seed of weights, dropout and subsampling.
        logger: Where the losses of the stages are logged.
        run_dir: A folder that is empty or does not exist, or holds a run to go on with; gets
            ``plan.json``, ``summary.json``, ``history.csv`` and ``checkpoints/best.ckpt``. None:
            ``runs/boosting``, or with ``-2``, ``-3``, … the first that is empty or holds an
            unfinished run of the same configuration.
        resume: Go on with a run in `run_dir` that was killed, after its last finished stage, or
            read back one that has ended; what comes out is the same, bit for bit. The weights of
            each learner are kept for it. Learners that fit themselves are fitted again.
            False refuses a folder that holds something, and keeps nothing to go on from.
        progress_bar: Show a bar over the stages.

    Raises:
        TypeError: `make_learner` is no function, or `datamodule` none of ours.
        ValueError: An argument is out of range.

    Example:
        >>> import tempfile
        >>> from dlblocks.data import TabularDataModule
        >>> from dlblocks.models import MLPRegressor
        >>> boosting = GradientBoosting(
        ...     lambda: MLPRegressor(10, 1, hidden=[8], lr=0.01),
        ...     TabularDataModule("diabetes"),
        ...     num_stages=3,
        ...     trainer={"max_epochs": 1, "accelerator": "cpu"},
        ...     run_dir=tempfile.mkdtemp(),
        ...     progress_bar=False,
        ... )
        >>> result = boosting.fit()
        >>> len(result.history), type(result.model).__name__  # stage 0 is the constant
        (4, 'GradientBoostingRegressor')
    """

    base = "runs/boosting"
    kind = "Regressor"
    monitor = "val/loss"
    mode: Literal["min", "max"] = "min"
    task: RegressionTask

    @checked
    def __init__(
        self,
        make_learner: Callable[[], nn.Module],
        datamodule: DataModule,
        *,
        shrinkage: float = 0.1,
        loss: Literal["mse", "mae", "huber", "log_loss"] | None = None,
        line_search: bool = True,
        subsample: float = 1.0,
        huber_quantile: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(make_learner, datamodule, **kwargs)
        check_range("shrinkage", shrinkage, 0, 1, low_open=True)
        check_range("subsample", subsample, 0, 1, low_open=True)
        check_range("huber_quantile", huber_quantile, 0, 1, low_open=True, high_open=True)
        self.loss_name, self.shrinkage, self.line_search = loss, shrinkage, line_search
        self.subsample, self.huber_quantile = subsample, huber_quantile
        self.settings = {
            "loss": loss,
            "shrinkage": shrinkage,
            "line_search": line_search,
            "subsample": subsample,
            "huber_quantile": huber_quantile,
        }

    def make_task(self, first: nn.Module, outputs: Tensor | None) -> RegressionTask:
        count = self.datamodule.out_features
        if self.datamodule.is_classification and count == 2:  # one output will do
            declared = getattr(getattr(first, "task", None), "out_features", None)
            if declared == 1 or (outputs is not None and outputs.shape[1:] == (1,)):
                count = 1
        return RegressionTask(count)

    def wrap(self, net: nn.Module) -> Model:
        return Regressor(net, self.task.out_features)

    def prepare(self) -> None:
        data = self.datamodule
        is_classes = data.is_classification
        name = self.loss_name or ("log_loss" if is_classes else "mse")
        if (name == "log_loss") != is_classes:
            suited = "'log_loss'" if is_classes else "'mse', 'mae' or 'huber'"
            raise ValueError(
                f"loss={name!r} does not suit the targets of {type(data).__name__}, which are "
                f"{'classes' if is_classes else 'values'}; use {suited}."
            )
        self.loss = make_loss(
            name,
            num_classes=data.num_classes,
            width=self.task.out_features,
            quantile=self.huber_quantile,
        )
        self.targets = {
            part: self.loss.encode(data.source.targets[data.indices(part)])
            for part in ("train", "val")
        }
        y = self.targets["train"]
        self.initial = self.loss.initial(y)
        self.predictions = {
            part: self.initial.expand(len(y), -1).clone() for part, y in self.targets.items()
        }
        self.loss.begin(y, self.predictions["train"])
        self.steps: list[list[float]] = []

    def begin_stage(self, stage: int) -> Stage | None:
        if not stage:
            self.record({"stage": 0, **self._losses()})
        y, f = self.targets["train"], self.predictions["train"]
        self._bag = torch.arange(len(y))
        if self.subsample < 1:
            size = max(1, round(self.subsample * len(y)))
            order = np.random.default_rng((self.seed, stage)).permutation(len(y))
            self._bag = torch.from_numpy(order[:size]).sort().values
        self.loss.begin(y[self._bag], f[self._bag])
        residuals = self.loss.residuals(y, f)
        square = residuals[self._bag].square()
        # The softmax ties the outputs together; values have units of their own.
        mean = square.mean() if isinstance(self.loss, LogLoss) else square.mean(0)
        self._scale = mean.sqrt().expand(y.shape[1])
        if not self._scale.any():
            self.stopped = f"no residuals are left after stage {stage}."
            return None
        scaled = torch.where(self._scale > 0, residuals / self._scale, 0.0)
        return Stage(self.next_learner(), self._bag, scaled.float())

    def batch_loss(
        self, learner: Any, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        found: Tensor = learner.loss(outputs.float(), targets)
        return found

    def add(self, stage: int, outputs: dict[str, Tensor]) -> dict[str, float]:
        y, f, h = self.targets["train"], self.predictions["train"], outputs["train"]
        if h.shape != y.shape:
            raise ValueError(
                f"a learner put out shape {tuple(h.shape)} for {len(y)} samples; expected "
                f"{tuple(y.shape)}."
            )
        bag = self._bag
        rho = self.loss.line_search(y[bag], f[bag], h[bag]) if self.line_search else self._scale
        step = self.shrinkage * rho
        for part, values in outputs.items():
            if len(values):
                self.predictions[part] += step * values
        self.steps.append(step.tolist())
        # In units of the residuals: 1 is the step of a learner that has met them exactly.
        relative = torch.where(self._scale > 0, rho / self._scale, 0.0)
        return {**self._losses(), "step": relative.mean().item()}

    def _losses(self) -> dict[str, float]:
        return {
            f"{part}/loss": self.loss.value(y, self.predictions[part])
            for part, y in self.targets.items()
            if len(y)
        }

    def make_model(self, num_stages: int) -> Model:
        members, steps = self.learners[:num_stages], self.steps[:num_stages]
        initial = self.initial.tolist()
        if isinstance(self.loss, LogLoss):
            return GradientBoostingClassifier(members, steps, initial, self.loss.num_classes)
        delta = self.loss.reported_delta if isinstance(self.loss, HuberLoss) else None
        return GradientBoostingRegressor(
            members,
            steps,
            initial,
            loss=self.loss.name,  # type: ignore[arg-type]
            delta=delta or 1.0,
        )
