"""Boosted models, which are weighted sums or votes of learners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_range
from dlblocks.models._trained_members import MadeOfTrained, described, rebuilt
from dlblocks.models.classification import Classifier
from dlblocks.models.model import Model
from dlblocks.models.regression import Regressor
from dlblocks.tasks import MulticlassTask, RegressionTask, Task


class _Boosted(MadeOfTrained):
    to_train = "boost again to train more"


class GradientBoostingRegressor(_Boosted, Regressor):
    """A gradient-boosted regressor, F(x) = F_0 + Σ_m a_m h_m(x).

    `dlblocks.ensembles.GradientBoosting` fits it to values. It is evaluated like any regressor, and
    saved and loaded as one model. To train it further, boost again.

    Args:
        members: The learners h_m, or their descriptions in a checkpoint. They are regressors with
            as many values as `initial`.
        steps: The factors a_m of each learner's values, M rows of D numbers.
        initial: The initial prediction F_0, D numbers.
        loss: ``"mse"``, ``"mae"`` or ``"huber"``, logged as ``loss``.
        delta: Error at which the Huber loss turns from a parabola into a line.

    Raises:
        ValueError: The numbers of steps and members, or their widths and that of `initial`, differ.
    """

    def __init__(
        self,
        members: Sequence[Any],
        steps: Sequence[Sequence[float]],
        initial: Sequence[float],
        *,
        loss: Literal["mse", "mae", "huber"] = "mse",
        delta: float = 1.0,
    ) -> None:
        models = rebuilt(members, Model)
        super().__init__(_Sum(models, steps, initial), len(initial), loss=loss)
        self.delta = float(delta)
        plain = {"members": described(models), "steps": _lists(steps), "initial": list(initial)}
        self.save_hyperparameters({**plain, "loss": loss, "delta": self.delta}, logger=False)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.loss_name != "huber":
            return super().loss(outputs, targets, weights)
        targets = targets.reshape(len(targets), -1).to(outputs.dtype)
        losses = F.huber_loss(outputs.flatten(1), targets, delta=self.delta, reduction="none")
        return losses.mean() if weights is None else (losses.mean(1) * weights).mean()

    @torch.no_grad()
    def staged_predict(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield the predictions (N, D) after 1, 2, …, M stages."""
        yield from self.net.staged(self.preprocess(inputs))  # type: ignore[operator]


class GradientBoostingClassifier(_Boosted, Classifier):
    """A gradient-boosted classifier with logits F_0 + Σ_m a_m h_m(x).

    `dlblocks.ensembles.GradientBoosting` fits it to classes. For two classes the learners may
    return a single value, the log-odds of class 1.

    Args:
        members: The learners h_m, or their descriptions in a checkpoint. They are regressors of C
            values, or of one value for two classes.
        steps: The factors a_m of each learner's values.
        initial: The initial prediction F_0.
        num_classes: Number of classes C.

    Raises:
        ValueError: The numbers of steps and members, or their widths and that of `initial`, differ.
    """

    def __init__(
        self,
        members: Sequence[Any],
        steps: Sequence[Sequence[float]],
        initial: Sequence[float],
        num_classes: int,
    ) -> None:
        models = rebuilt(members, Model)
        width = len(initial)
        if width != num_classes and not (width == 1 and num_classes == 2):
            raise ValueError(
                f"initial has {width} values for {num_classes} classes; expected {num_classes}"
                f"{', or 1' if num_classes == 2 else ''}."
            )
        super().__init__(_Sum(models, steps, initial), num_classes)
        plain = {"members": described(models), "steps": _lists(steps), "initial": list(initial)}
        self.save_hyperparameters({**plain, "num_classes": num_classes}, logger=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return _logits(self.net(inputs))

    @torch.no_grad()
    def staged_predict(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield the probabilities (N, C) after 1, 2, …, M stages."""
        for raw in self.net.staged(self.preprocess(inputs)):  # type: ignore[operator]
            yield self.prediction(_logits(raw))


class AdaBoostClassifier(_Boosted, Classifier):
    """A vote of the learners of AdaBoost, weighted by α_m.

    `dlblocks.ensembles.AdaBoost` fits it. The vote g_m(x)_k is 1 for the class that learner m finds
    likeliest, and -1 / (C - 1) for all others. The logits are Σ_m α_m g_m(x) / ((C - 1) Σ_m α_m),
    as in scikit-learn's class of this name (Zhu et al. 2009, equation 15). The class with the
    largest vote has the largest probability. Even a unanimous vote has probabilities far from 1.

    Args:
        members: The learners, classifiers of C classes, or their descriptions in a checkpoint.
        alphas: Their weights α_m > 0.
        num_classes: Number of classes C.

    Raises:
        ValueError: There are no members, the numbers of alphas and members differ, or an alpha is
            not positive.
    """

    def __init__(self, members: Sequence[Any], alphas: Sequence[float], num_classes: int) -> None:
        models = rebuilt(members, Model)
        if not models or len(alphas) != len(models):
            raise ValueError(
                f"alphas has {len(alphas)} entries and members {len(models)}; give one alpha for "
                "each member, and at least one member."
            )
        for alpha in alphas:
            check_range("alphas", alpha, 0, low_open=True)
        _check_tasks(models, MulticlassTask(num_classes))
        super().__init__(_Members(models), num_classes)
        self.alphas = [float(alpha) for alpha in alphas]
        plain = {"members": described(models), "alphas": self.alphas, "num_classes": num_classes}
        self.save_hyperparameters(plain, logger=False)

    def forward(self, inputs: Tensor) -> Tensor:
        *_, last = self._staged(inputs)
        return last

    @torch.no_grad()
    def staged_predict(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield the probabilities (N, C) after 1, 2, …, M stages."""
        for logits in self._staged(self.preprocess(inputs)):
            yield self.prediction(logits)

    def _staged(self, inputs: Tensor) -> Iterator[Tensor]:
        votes: Tensor | float = 0.0
        total = 0.0
        for alpha, member in zip(self.alphas, self.net.members, strict=True):  # type: ignore[arg-type]
            labels = member(inputs).argmax(1)
            votes = votes + alpha * F.one_hot(labels, self.num_classes).float()
            total += alpha
            yield vote_logits(votes / total)


def vote_logits(shares: Tensor) -> Tensor:
    """Return the logits of `AdaBoostClassifier` for shares of the vote.

    Args:
        shares: Shape (N, C), rows sum to 1.
    """
    others = shares.shape[1] - 1
    return (shares - (1 - shares) / others) / others


class _Members(nn.Module):
    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)


class _Sum(_Members):
    """F_0 + Σ_m a_m h_m(x), shape (N, W)."""

    def __init__(
        self,
        models: Sequence[Model],
        steps: Sequence[Sequence[float]],
        initial: Sequence[float],
    ) -> None:
        super().__init__(models)
        _check_tasks(models, RegressionTask(len(initial)))
        if len(steps) != len(models) or any(len(step) != len(initial) for step in steps):
            raise ValueError(
                f"steps has {len(steps)} rows of {sorted({len(step) for step in steps})} numbers; "
                f"expected {len(models)}, one for each member, of {len(initial)}."
            )
        # Both are hyperparameters, so they are not saved with the weights a second time.
        of = {"steps": torch.tensor(_lists(steps)).reshape(len(models), len(initial))}
        for name, values in {**of, "initial": torch.tensor([float(x) for x in initial])}.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        *_, total = [self._start(inputs), *self.staged(inputs)]
        return total

    def staged(self, inputs: Tensor) -> Iterator[Tensor]:
        total = self._start(inputs)
        for step, member in zip(self.get_buffer("steps"), self.members, strict=True):
            total = total + step * member(inputs)
            yield total

    def _start(self, inputs: Tensor) -> Tensor:
        initial = self.get_buffer("initial")
        # Not `len`, which would fix the size of batches in an exported model.
        return initial.expand(inputs.shape[0], len(initial))


def _logits(raw: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(raw), raw], 1) if raw.shape[1] == 1 else raw


def _check_tasks(models: Sequence[Model], task: Task) -> None:
    for model in models:
        different = "no task" if model.task is None else task.difference(model.task)
        if different:
            raise ValueError(
                f"members hold a {type(model).__name__}, which does not fit the {task.name} of the "
                f"ensemble: they have {different}."
            )


def _lists(steps: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(value) for value in step] for step in steps]
