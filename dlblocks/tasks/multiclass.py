"""One class of C for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from dlblocks import plots
from dlblocks._scores import (
    Weighted,
    are_probabilities,
    kind_of,
    pooled_metrics,
    weighted_class_metrics,
)
from dlblocks.losses import IGNORED, cross_entropy
from dlblocks.metrics import classification_metrics, hard_labels
from dlblocks.tasks._class_answers import kind_of_share, likeliest, share_columns, values_of
from dlblocks.tasks._class_task import ClassTask, check_num_classes, names_or_numbers
from dlblocks.tasks._stacked import ClassificationSums
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 10  # labels in a message
NUM_HARDEST = 20
MAX_CLASSES = 1000  # a matrix of more might not fit into memory
# The share of a class that no member votes for; its logarithm stays finite.
NO_VOTE = 1e-6


class MulticlassTask(ClassTask):
    """Classify each sample into one of C classes.

    The net puts out logits of shape (N, C).

    The loss is the cross-entropy; targets are classes, int64 of shape (N,), or soft, floating point
    of shape (N, C), as mixing callbacks make them. Metrics are ``accuracy``, and for validation and
    test also ``f1`` (macro) and ``calibration_error``. Predictions are probabilities (N, C).

    Args:
        num_classes: Number of classes C.
        label_smoothing: ε in [0, 1): the share of the target spread evenly over all classes
            (Szegedy et al. 2016). In training only.
        class_weights: Weight of each class in the loss, length C, or ``"balanced"`` for
            N / (C · N_c), counted on the training part of the data. In training only.
        metrics: Further metrics of validation and test: names of torchmetrics' classes, such as
            ``"auroc"`` or ``"cohen_kappa"``, or metrics. Those of curves, such as ``"auroc"``, keep
            all predictions of an epoch; `torchmetrics.classification.MulticlassAUROC` with
            ``thresholds=200`` keeps counts alone.

    Example:
        >>> task = MulticlassTask(2)
        >>> task.loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(0.6931)
    """

    name = "multiclass"
    shown = ("accuracy",)
    standard = ("accuracy", "f1", "calibration_error")
    kind = "Multiclass"

    @property
    def sizes(self) -> dict[str, int]:
        return {"num_classes": self.num_classes}

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        if not self.training:
            return cross_entropy(outputs, targets, sample_weight=weights)
        return cross_entropy(
            outputs,
            targets,
            weight=self.class_weight,
            label_smoothing=self.label_smoothing,
            sample_weight=weights,
        )

    def make_metrics(self, stage: Stage) -> MetricCollection:
        metrics = classification_metrics(self.num_classes, weighted=self.weighted)
        if stage == "train":
            return MetricCollection({"accuracy": metrics["accuracy"]})
        chosen: Any = self.chosen_metrics()
        return MetricCollection({**dict(metrics.items()), **chosen}, compute_groups=False)

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        # In training there is the accuracy alone: a class a sample is all that needs keeping.
        kept = outputs.argmax(1) if stage == "train" else self.predict(outputs)
        return kept, hard_labels(targets)

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return outputs.float().softmax(1)

    def outputs_of(self, predictions: Tensor) -> Tensor:
        return predictions.clamp(min=torch.finfo(torch.float32).tiny).log()

    def average(self, outputs: Tensor, *, hard: bool = False) -> Tensor:
        """Average the probabilities, or count the votes.

        The result is log p, whose softmax is p.

        Example:
            >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 2.0]]])  # two members, one sample
            >>> MulticlassTask(2).average(logits, hard=True).exp()
            tensor([[0.5000, 0.5000]])
        """
        outputs = outputs.float()
        if hard:
            return hard_votes(outputs).mean(0).clamp_(min=NO_VOTE).log()
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))

    def uncertainty(self, outputs: Tensor) -> dict[str, Tensor]:
        logs = outputs.float().log_softmax(2)
        mean = logs.logsumexp(0) - math.log(len(logs))
        # Entropies -Σ p log p over the classes.
        entropy, each = (torch.special.entr(log.exp()).sum(-1) for log in (mean, logs))
        expected = each.mean(0)
        return {
            "entropy": entropy,
            "expected_entropy": expected,
            "mutual_information": (entropy - expected).clamp(min=0),
        }

    def balanced(self, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        self._check_labels(targets)
        known = None if weights is None else weights.double()
        counts = torch.bincount(targets, weights=known, minlength=self.num_classes)
        if not counts.all():
            raise ValueError(
                f"class_weights='balanced', but class {int(counts.argmin())} of 0 … "
                f"{self.num_classes - 1} has no training sample; pass the weights as a list, or "
                "map the labels to classes that count from 0."
            )
        return counts.sum() / (self.num_classes * counts.to(torch.get_default_dtype()))

    def check_data(self, datamodule: Any, model: str) -> None:
        if getattr(datamodule, "is_multilabel", False):
            raise ValueError(
                f"{type(datamodule).__name__} has several labels a sample; use {model}(…, "
                "multilabel=True)."
            )
        found = getattr(datamodule, "num_classes", self.num_classes)
        if found is None:
            raise ValueError(
                f"{model} needs classes as targets, but the targets of "
                f"{type(datamodule).__name__} are values; use a Regressor."
            )
        check_num_classes(self, found, type(datamodule).__name__)

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != 2 or outputs.shape[1] != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes}, but the net puts out shape "
                f"{tuple(outputs.shape)}; expected (N, {self.num_classes})."
            )
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"targets are floating point of shape {tuple(targets.shape)}; expected classes "
                    f"(int64, (N,)) or soft targets {tuple(outputs.shape)}."
                )
            return
        if targets.ndim != 1:
            raise ValueError(
                f"targets of integers have shape {tuple(targets.shape)}; expected classes of shape "
                "(N,): let the data set return one number a sample, such as int(label), and for "
                "one-hot rows label.argmax()."
            )
        self._check_labels(targets)

    def _check_labels(self, targets: Tensor) -> None:
        """Raise a `ValueError` unless all labels are classes of this task."""
        labels = targets.unique().tolist()  # sorted
        if labels[0] >= 0 and labels[-1] < self.num_classes:
            return
        shown = ", ".join(map(str, labels[:SHOWN])) + (", …" if len(labels) > SHOWN else "")
        cure = (
            "Classes count from 0: map the labels in the data set, or use ArrayDataModule, which "
            "maps labels of any values"
        )
        if labels[0] == 0:
            cure += f"; if these are the numbers of all classes, set num_classes={labels[-1] + 1}"
        raise ValueError(
            f"targets have the labels {shown}, but num_classes={self.num_classes} means the "
            f"classes 0 … {self.num_classes - 1}. {cure}."
        )

    def difference(self, other: Task) -> str:
        return self._size_difference(other, MulticlassTask, "num_classes", "{} classes")

    def stacked_loss(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor | None:
        if self.class_weight is not None or targets.is_floating_point() or targets.ndim != 2:
            return None
        smoothing = self.label_smoothing if self.training else 0.0
        losses = F.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        losses = losses.view(targets.shape)
        if weights is not None:
            losses = losses * weights
        return losses.sum(1) / (targets != IGNORED).sum(1)

    def stacked_metrics(self, num_models: int, device: torch.device) -> ClassificationSums | None:
        if self.chosen or self.weighted:
            return None
        return ClassificationSums(num_models, self.num_classes, device)

    @classmethod
    def check_arrays(cls, target: Array, prediction: Array) -> None:
        if kind_of(target, prediction) == "values":
            raise ValueError("there are floating-point targets; classes are integers.")

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        return pooled_metrics(table.target, table.prediction, table.sample_weight)

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        return weighted_class_metrics(target, prediction)

    @classmethod
    def remark(cls, table: PredictionTable) -> str | None:
        prediction = table.prediction
        if prediction.ndim == 1 or kind_of_share(prediction) == "probability":
            return None
        return (
            "the predictions of classes are no probabilities: they do not sum to 1. So there is no "
            "log loss and no calibration error; return softmax(1) of the outputs in predict_step."
        )

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array:
        target, prediction = table.target, table.prediction
        if prediction.ndim == 1 or not are_probabilities(prediction):
            wrong: Array = (likeliest(prediction) != target).astype(float)
            return wrong
        true = np.take_along_axis(prediction, target[:, None], axis=1)[:, 0].astype(float)
        found: Array = -np.log(true.clip(np.finfo(np.float32).tiny))
        return found

    @classmethod
    def show(cls, table: Predictions, *, title: str | None = None) -> Figure:
        guess, target = likeliest(table.prediction), table.target
        count = int(max(guess.max(), target.max())) + 1
        names = names_or_numbers(table.class_names, max(count, len(table.class_names)))
        names = [*names, "none"]  # of -1
        return plots.answers(
            table.images(),
            [f"{names[t]} → {names[g]}" for t, g in zip(target, guess, strict=True)],
            captions=table.captions(),
            right=guess == target,
            title=title and f"{title}: true → predicted",
        )

    @classmethod
    def right(cls, target: Array, prediction: Array) -> Array:
        found: Array = likeliest(prediction) == target
        return found

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        guess = likeliest(prediction)
        if prediction.ndim > 1 and (guess < 0).any():
            guess = np.where(guess < 0, np.nan, guess)
        columns = {"target": target, "prediction": guess}
        if prediction.ndim == 1:
            return columns
        return columns | share_columns(
            prediction, names_or_numbers(class_names, prediction.shape[1])
        )

    @classmethod
    def conformal_scores(cls, target: Array, prediction: Array) -> Array | None:
        if prediction.ndim == 1:
            return None
        return 1 - np.take_along_axis(prediction, target[:, None], axis=1)[:, 0]

    @classmethod
    def regions(cls, calibration: Any, each: Tensor, coverage: float) -> dict[str, Tensor]:
        return {"in_set": calibration.classes(1 - each, coverage)}

    @classmethod
    def answers(
        cls, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return the likeliest class by its name, and ``probability_<class>``.

        Scores that do not sum to 1, such as logits, are ``score_<class>``. The class is None where
        one of them is NaN. Names that are whole numbers, or True and False, are
        such values.

        Example:
            >>> MulticlassTask.answers(np.array([[0.2, 0.8]]), ["cat", "dog"])["prediction"]
            array(['dog'], dtype='<U3')
        """
        count = prediction.shape[1] if prediction.ndim > 1 else int(prediction.max(initial=0)) + 1
        names = names_or_numbers(class_names or (), max(count, len(class_names or ())))
        guess = likeliest(prediction)
        answer = {"prediction": values_of(names)[guess]}
        if prediction.ndim > 1 and (guess < 0).any():
            answer["prediction"] = answer["prediction"].astype(object)
            answer["prediction"][guess < 0] = None
        if prediction.ndim == 1:
            return answer
        return answer | share_columns(prediction, names_or_numbers(names, prediction.shape[1]))

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw a confusion matrix, reliability and the hardest images.

        Scores that are not probabilities have a confusion matrix only.
        """
        target, prediction = table.target, table.prediction
        predicted = likeliest(prediction)
        if min(target.min(), predicted.min()) < 0:
            return {}  # numbers that are not those of classes
        most = int(max(len(table.class_names), target.max() + 1, predicted.max() + 1))
        num_classes = prediction.shape[1] if prediction.ndim > 1 else most
        if num_classes > MAX_CLASSES:
            return {}
        names = names_or_numbers(table.class_names, num_classes)
        found: dict[str, Callable[[], Figure]] = {
            "confusion_matrix": lambda: plots.confusion_matrix(
                target, predicted, names, title=title
            )
        }
        if prediction.ndim == 1 or not are_probabilities(prediction):
            return found
        error = (scores or {}).get("calibration_error")
        found["reliability"] = lambda: plots.reliability(
            target, prediction, title=title, error=error
        )
        if table.inputs is not None and len(table.input_shape) == 3:
            found["hardest"] = lambda: _hardest(table, names)
        return found


def _hardest(table: Predictions, names: Sequence[str]) -> Figure:
    """Draw the images whose own class has the smallest probability."""
    assert table.inputs is not None  # for the type checker
    means = table.mean()
    index, target, prediction = means.index, means.target, means.prediction
    true = np.take_along_axis(prediction, target[:, None], axis=1)[:, 0]
    worst = np.argsort(true, kind="stable")[:NUM_HARDEST]
    title = "hardest samples" + (f", means of {table.repeats} repeats" if table.repeats > 1 else "")
    return plots.hardest(
        table.inputs(index[worst]),
        target[worst],
        prediction[worst],
        names,
        indices=index[worst],
        title=title,
    )


def hard_votes(scores: Tensor) -> Tensor:
    """Vote for the class of the highest score.

    Args:
        scores: Shape (..., C).

    Returns:
        Floating point of the same shape: 1 for the class that is voted for, else 0.

    Example:
        >>> hard_votes(torch.tensor([[0.2, 0.8], [0.5, 0.4]]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
