"""AdaBoost: each learner weighs up what those before got wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks._errors import check_range, checked
from dlblocks.data import DataModule
from dlblocks.ensembles._stages import Stage
from dlblocks.ensembles._stagewise import Stagewise
from dlblocks.models import AdaBoostClassifier, Classifier
from dlblocks.models.boosted import vote_logits
from dlblocks.models.model import Model
from dlblocks.tasks import MulticlassTask


class AdaBoost(Stagewise):
    """AdaBoost for C classes, SAMME (Zhu, Zou, Rosset and Hastie 2009).

    Of two classes it is the AdaBoost of Freund and Schapire (1997).

    From equal weights w_i = 1/N of the training samples, stage m = 1 … M

    1. fits a new classifier h_m by the cross-entropy of the samples, each weighted by N w_i,
    2. takes its weighted error ε_m = Σ w_i [h_m(x_i) ≠ y_i],
    3. gives it the weight α_m = η (log((1 - ε_m) / ε_m) + log(C - 1)) in the vote,
    4. multiplies w_i by exp(α_m) where it is wrong, and makes the weights sum to 1 again.

    A learner that is no better than chance, ε_m ≥ 1 - 1/C, is left out and ends the fit; the first
    one to be so is an error. One that makes no error leaves nothing to weigh: it is added, with the
    α of half an error in N samples, and ends the fit. Both are said.

    The samples are weighted in the loss rather than drawn anew by their weights: it is the same in
    the mean, adds no noise, and is what scikit-learn does. A learner, or its net, that has a method
    ``fit_samples(inputs, targets, weights)`` is fitted by it instead, with weights of mean 1.

    Args:
        make_learner: Makes a new learner at each call: a `Classifier` such as `MLPClassifier`,
            another model with a `MulticlassTask`, or a net that puts out C logits, which is trained
            by Adam. Best are weak ones: small, or trained for few epochs.
        datamodule: The data; see `GradientBoosting`.
        num_stages: Number of stages M.
        learning_rate: η > 0.
        patience: Stop when ``val/accuracy`` has not improved for so many stages, and keep the best
            ones. None: no early stopping.
        trainer: See `GradientBoosting`, as all that follow.
        seed: Seed of weights and dropout.
        logger: Where the accuracies of the stages are logged.
        run_dir: A folder that is empty or does not exist, or holds a run to go on with. None:
            ``runs/adaboost``, or with ``-2``, ``-3``, …
        resume: See `GradientBoosting`.
        progress_bar: Show a bar over the stages.

    Raises:
        TypeError: `make_learner` is no function, or `datamodule` none of ours.
        ValueError: An argument is out of range.

    Example:
        >>> import tempfile
        >>> from dlblocks.data import TabularDataModule
        >>> from dlblocks.models import MLPClassifier
        >>> boosting = AdaBoost(
        ...     lambda: MLPClassifier(4, 3, hidden=[], lr=0.01),
        ...     TabularDataModule("iris"),
        ...     num_stages=2,
        ...     trainer={"accelerator": "cpu"},
        ...     run_dir=tempfile.mkdtemp(),
        ...     progress_bar=False,
        ... )
        >>> len(boosting.fit().model.alphas)
        2
    """

    base = "runs/adaboost"
    kind = "Classifier"
    monitor = "val/accuracy"
    mode: Literal["min", "max"] = "max"

    @checked
    def __init__(
        self,
        make_learner: Callable[[], nn.Module],
        datamodule: DataModule,
        *,
        learning_rate: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(make_learner, datamodule, **kwargs)
        check_range("learning_rate", learning_rate, 0, low_open=True)
        self.learning_rate = learning_rate
        self.settings = {"learning_rate": learning_rate}

    def make_task(self, first: nn.Module, outputs: Tensor | None) -> MulticlassTask:
        if self.datamodule.num_classes is None:
            raise ValueError(
                f"AdaBoost needs classes as targets, but the targets of "
                f"{type(self.datamodule).__name__} are values; use GradientBoosting."
            )
        self.num_classes = self.datamodule.num_classes
        return MulticlassTask(self.num_classes)

    def wrap(self, net: nn.Module) -> Model:
        return Classifier(net, self.num_classes)

    def check_learner(self, task: MulticlassTask) -> None:
        if task.class_weight is not None:
            raise ValueError(
                "class_weights have no effect on a learner, whose samples AdaBoost weighs; leave "
                "them out."
            )

    def prepare(self) -> None:
        data = self.datamodule
        self.targets = {
            part: data.source.targets[data.indices(part)].long() for part in ("train", "val")
        }
        count = len(self.targets["train"])
        self.log_weights = torch.full((count,), -math.log(count), dtype=torch.float64)
        self.votes = {
            part: torch.zeros(len(y), self.num_classes, dtype=torch.float64)
            for part, y in self.targets.items()
        }
        self.alphas: list[float] = []

    @property
    def weights(self) -> Tensor:
        """Weights w_i of the training samples, float64 (N,), with sum 1."""
        return self.log_weights.softmax(0)

    def begin_stage(self, stage: int) -> Stage:
        y = self.targets["train"]
        return Stage(self.next_learner(), torch.arange(len(y)), y, self.weights * len(y))

    def batch_loss(
        self, learner: Any, outputs: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        losses = F.cross_entropy(
            outputs.float(),
            targets,
            reduction="none",
            label_smoothing=learner.task.label_smoothing,
        )
        return (losses if weights is None else losses * weights).mean()

    def add(self, stage: int, outputs: dict[str, Tensor]) -> dict[str, float] | None:
        labels = {part: values.argmax(1) for part, values in outputs.items() if len(values)}
        y = self.targets["train"]
        wrong = labels["train"] != y
        error = self.weights[wrong].sum().item()
        chance = 1 - 1 / self.num_classes
        # A learner that is the one before has just the error of chance, but for rounding.
        if error >= chance - 1e-9:
            said = f"the learner of stage {stage + 1} has the weighted error {error:.3g}"
            cure = "train longer, or use larger learners"
            if not self.learners:
                raise ValueError(
                    f"{said}, no better than chance ({chance:.3g}), and is the first; {cure}."
                )
            self.stopped = f"{said}, no better than chance ({chance:.3g}), and is left out; {cure}."
            return None
        perfect = not wrong.any()
        if perfect:
            self.stopped = (
                f"the learner of stage {stage + 1} makes no error on the training samples, so "
                "there is nothing left to weigh; for more stages use weaker learners."
            )
        # Of a single sample and two classes, half an error would be chance, and α 0.
        error = max(error, 0.5 / max(len(y), 2)) if perfect else error
        alpha = self.learning_rate * (
            math.log((1 - error) / error) + math.log(self.num_classes - 1)
        )
        self.log_weights = (self.log_weights + alpha * wrong).log_softmax(0)
        for part, found in labels.items():
            self.votes[part] += alpha * F.one_hot(found, self.num_classes)
        self.alphas.append(alpha)
        row: dict[str, float] = {}
        for part in labels:
            logits = vote_logits(self.votes[part] / sum(self.alphas))
            truth = self.targets[part]
            row[f"{part}/loss"] = F.cross_entropy(logits, truth).item()
            row[f"{part}/accuracy"] = (logits.argmax(1) == truth).double().mean().item()
        return {**row, "error": 0.0 if perfect else error, "alpha": alpha}

    def make_model(self, num_stages: int) -> Model:
        return AdaBoostClassifier(
            self.learners[:num_stages], self.alphas[:num_stages], self.num_classes
        )
