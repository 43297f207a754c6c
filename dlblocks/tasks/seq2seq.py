"""A sequence of tokens for another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from dlblocks import _npz
from dlblocks._errors import check_range
from dlblocks._scores import Weighted
from dlblocks.fields import Padded, Ragged, Tokens, kinds_of
from dlblocks.metrics import wide
from dlblocks.nets.seq2seq import shifted
from dlblocks.tasks._epoch_sums import EpochSums
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Sums of a sample over which the metrics are computed.
COLUMNS = ("nats", "tokens", "right", "errors", "length", "exact")
ROWS = 2**12  # sequences compared at a time


class Answers(NamedTuple):
    """Outputs of a model for a batch of validation or test.

    Attributes:
        logits: Of each token of the targets and of their ends, shape (N, T + 1, V).
        found: Sequences that were searched without the targets.
    """

    logits: Tensor
    found: Padded


def edit_distances(predictions: Padded, targets: Padded) -> Tensor:
    """Count the tokens to insert, remove or replace (Levenshtein 1966).

    Args:
        predictions: N sequences of integers.
        targets: N others.

    Returns:
        Fewest changes that make a target of a prediction, int64 of shape (N,).

    Example:
        >>> word = lambda text: Padded.of([torch.tensor([ord(c) for c in text])])
        >>> edit_distances(word("kitten"), word("sitting"))
        tensor([3])
    """
    values, lengths = predictions
    places = torch.arange(targets.values.shape[1] + 1, device=values.device)
    row = places.repeat(len(values), 1)  # distances of the empty beginning, (N, T + 1)
    for step in range(values.shape[1]):
        differs = (values[:, step, None] != targets.values).long()
        replaced_or_removed = torch.minimum(row[:, :-1] + differs, row[:, 1:] + 1)
        new = torch.cat([row[:, :1] + 1, replaced_or_removed], 1)
        # An insertion costs 1 for each place further on.
        new = (new - places).cummin(1).values + places
        row = torch.where((step < lengths)[:, None], new, row)
    return row.gather(1, targets.lengths[:, None])[:, 0]


class Seq2SeqTask(Task):
    """Make a sequence of tokens from another one.

    Targets are `dlblocks.fields.Padded` tokens, or (N, T), without the separator that begins and
    ends them. In training a net gets the target's own tokens, and predicts after each of them the
    next one, and the end.

    The loss is the mean cross-entropy over all tokens and ends, of the batch and of the epoch, in
    nats. Metrics of validation and test come from sums over the data set:

    - ``token_accuracy``: share of tokens and ends that are the likeliest, given the right ones
      before.
    - ``error_rate``: Σ edit distances / Σ tokens of the targets, of sequences that the model has
      found without the targets; see `edit_distances`. It may be above 1.
    - ``sequence_accuracy``: share of sequences without an error.

    Predictions are tokens of unequal number. A table has ``target`` and ``prediction`` as ragged
    columns.

    Args:
        vocab_size: Number of target tokens V.
        separator: Token that begins and ends a target.
        label_smoothing: ε in [0, 1) of the cross-entropy. In training only.

    Example:
        >>> task = Seq2SeqTask(4)
        >>> round(task.loss(torch.zeros(1, 3, 4), torch.tensor([[2, 3]])).item(), 4)
        1.3863
    """

    name = "seq2seq"
    shown = ("error_rate",)
    standard = ("token_accuracy", "error_rate", "sequence_accuracy")
    loss_range = (0.0, None)
    longest: Tensor

    def __init__(
        self, vocab_size: int, *, separator: int = 1, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        check_range("vocab_size", vocab_size, 2)
        check_range("separator", separator, 0, vocab_size - 1)
        check_range("label_smoothing", label_smoothing, 0, 1, high_open=True)
        self.vocab_size, self.separator = int(vocab_size), int(separator)
        self.label_smoothing = float(label_smoothing)
        # Tokens of the longest training target, 0 if not known. They go with the weights.
        self.register_buffer("longest", torch.tensor(0))

    def loss(
        self, outputs: Tensor, targets: Tensor | Padded, weights: Tensor | None = None
    ) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        if weights is None:
            total = self._nats(outputs, targets, smoothing, "sum")
        else:
            total = (self._nats(outputs, targets, smoothing) * weights[:, None]).sum()
        return total / self.counted(targets).sum()

    def _nats(
        self,
        outputs: Tensor,
        targets: Tensor | Padded,
        smoothing: float = 0.0,
        reduction: str = "none",
    ) -> Tensor:
        """Return the cross-entropy (N, T + 1) of tokens and ends, or its sum."""
        _, labels = shifted(targets, self.separator)
        found = F.cross_entropy(
            outputs.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=-1,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        return found.view(labels.shape) if reduction == "none" else found

    def counted(self, targets: Tensor | Padded) -> Tensor:
        return as_padded(targets).lengths + 1

    def make_metrics(self, stage: Stage) -> MetricCollection:
        if stage == "train":
            return MetricCollection({})
        return MetricCollection({"sequences": SequenceScores(weighted=self.weighted)})

    def for_metrics(self, outputs: Any, targets: Any, stage: Stage) -> tuple[Tensor, Tensor]:
        count = len(as_padded(targets).lengths)
        if stage == "train" or not isinstance(outputs, Answers):
            nothing = torch.zeros(count, 0)
            return nothing, nothing
        sums = self._sums(outputs, as_padded(targets))
        return sums, sums[:, :0]

    def _sums(self, outputs: Answers, targets: Padded) -> Tensor:
        """Return `COLUMNS` of each sample, shape (N, 6)."""
        _, labels = shifted(targets, self.separator)
        right = (outputs.logits.argmax(2) == labels).sum(1)
        errors = edit_distances(outputs.found, targets)
        nats = self._nats(outputs.logits, targets).sum(1, dtype=wide(labels.device))
        columns = [nats, targets.lengths + 1, right, errors, targets.lengths, errors == 0]
        return torch.stack([column.to(nats) for column in columns], 1)

    def predict(self, outputs: Any, targets: Any = None) -> Any:
        return outputs.found.sequences() if isinstance(outputs, Answers) else outputs

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        dtype = torch.int16 if self.vocab_size <= 2**15 else torch.int32
        columns = {"target": target, "prediction": prediction}
        return {
            name: [
                row.to(dtype) for row in (rows.sequences() if isinstance(rows, Padded) else rows)
            ]
            for name, rows in columns.items()
        }

    def for_ensemble(self) -> Task:
        raise ValueError(
            "sequences of several models have no average; use the model of one fold, or "
            "result.refit(…) for one model of all samples."
        )

    def fit_to(self, datamodule: Any) -> None:
        source, indices = getattr(datamodule, "source", None), getattr(datamodule, "indices", None)
        targets = getattr(source, "targets", None)
        if indices is not None and isinstance(targets, Ragged):
            self.longest.fill_(int(targets.lengths[indices("train")].max()))

    def check_data(self, datamodule: Any, model: str) -> None:
        kind, data = kinds_of(datamodule).get("targets"), type(datamodule).__name__
        if kind is None:
            return
        if not isinstance(kind, Tokens):
            raise ValueError(
                f"{model} needs tokens as targets, but the targets of {data} are of kind "
                f"{kind.name!r}; use SequencePairsDataModule, or ArrayDataModule with Ragged.of("
                "[…]) as inputs and targets, input_kind='tokens' and target_kind='tokens'."
            )
        size = getattr(datamodule, "target_vocab_size", None)
        if isinstance(size, int):
            if size > self.vocab_size:
                raise ValueError(
                    f"the model has {self.vocab_size} target tokens, but {data} has {size}; set "
                    f"target_vocab_size={size}."
                )
            return
        source = getattr(datamodule, "source", None)
        for argument in ("targets", "test_targets"):
            tokens = getattr(source, argument, None)
            if isinstance(tokens, (Tensor, Ragged)):
                self.check_tokens(argument, tokens)

    def check_tokens(self, argument: str, targets: Tensor | Ragged | Padded) -> None:
        """Raise a `ValueError` that names a target token that cannot be."""
        size, separator = self.vocab_size, self.separator
        check_tokens(argument, targets, size, "target_vocab_size")
        values = targets if isinstance(targets, Tensor) else targets.values
        found = values == separator
        if isinstance(targets, Padded):
            found &= targets.mask
        if found.any():
            raise ValueError(
                f"{argument} has token {separator}, the separator, which the model itself puts "
                "before and behind a target; leave it out, or set separator= to another token."
            )

    def check_batch(self, outputs: Any, targets: Any) -> None:
        logits = outputs.logits if isinstance(outputs, Answers) else outputs
        padded = as_padded(targets)
        shape = (len(padded.lengths), padded.values.shape[1] + 1, self.vocab_size)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the net puts out {got}, but targets of shape {tuple(padded.values.shape)} need "
                f"logits {shape}: of each token, of the end, over {self.vocab_size} tokens."
            )
        self.check_tokens("targets", padded)

    def difference(self, other: Task) -> str:
        return self._size_difference(other, Seq2SeqTask, "vocab_size", "vocabularies of {} tokens")

    # Predictions as arrays

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        errors, lengths = errors_of(table["target"], table["prediction"])
        weight = np.ones(len(table)) if table.sample_weight is None else table.sample_weight
        return {name: float(metric(weight)) for name, metric in _rates(errors, lengths).items()}

    @classmethod
    def weighted_metrics(cls, target: Any, prediction: Any) -> dict[str, Weighted]:
        return _rates(*errors_of(target, prediction))

    @classmethod
    def sample_losses(cls, table: PredictionTable) -> Array:
        """Return the errors of each sequence for each token of its target, (N,)."""
        errors, lengths = errors_of(table["target"], table["prediction"])
        found: Array = errors / np.maximum(lengths, 1)
        return found

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {}  # sequences are no columns of one number a row

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw the error rate over the length of the target."""
        errors, lengths = errors_of(table["target"], table["prediction"])
        if not len(errors):
            return {}
        return {"lengths": lambda: _of_lengths(errors, lengths, title)}


def _rates(errors: Array, lengths: Array) -> dict[str, Weighted]:
    exact = errors == 0

    def error_rate(weights: Array) -> Array:
        total = weights @ lengths
        with np.errstate(divide="ignore", invalid="ignore"):  # targets without any token
            found: Array = np.where(total > 0, (weights @ errors) / total, np.nan)
        return found

    def sequence_accuracy(weights: Array) -> Array:
        found: Array = (weights @ exact) / weights.sum(-1)
        return found

    return {"error_rate": error_rate, "sequence_accuracy": sequence_accuracy}


def errors_of(target: Any, prediction: Any) -> tuple[Array, Array]:
    """Compare ragged columns of a table.

    Returns:
        Edit distances, and lengths of the targets, each (N,).
    """
    pairs = [_as_ragged(column) for column in (prediction, target)]
    found = []
    for some in torch.arange(len(pairs[0])).split(ROWS):
        found.append(edit_distances(*(column.padded(some) for column in pairs)).numpy())
    errors = np.concatenate(found) if found else np.zeros(0, np.int64)
    return errors, pairs[1].lengths.numpy()


def _as_ragged(column: Any) -> Ragged:
    """Turn a ragged column, or an array (N, T), into rows of tensors."""
    if isinstance(column, _npz.Ragged):
        return Ragged(
            torch.from_numpy(np.asarray(column.values, np.int64)), torch.from_numpy(column.offsets)
        )
    return Ragged.of([torch.from_numpy(np.asarray(row, np.int64)) for row in column])


def _of_lengths(errors: Array, lengths: Array, title: str) -> Figure:
    from dlblocks import plots

    sizes = np.unique(lengths)
    rates = np.array(
        [errors[lengths == n].sum() / (max(n, 1) * (lengths == n).sum()) for n in sizes]
    )
    exact = np.array([(errors[lengths == n] == 0).mean() for n in sizes])
    figure = plots.lines(
        {"error rate": rates, "sequence accuracy": exact}, sizes, xlabel="tokens of the target"
    )
    figure.axes[0].set_title(title, fontsize=9)
    return figure


class SequenceScores(EpochSums):
    """Token accuracy, error rate and sequence accuracy over an epoch.

    Args:
        weighted: Whether `update` takes weights of samples.
    """

    def __init__(self, *, weighted: bool = False) -> None:
        super().__init__(len(COLUMNS) + 1, weighted=weighted)

    def update(self, sums: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add the sums of samples, `COLUMNS` of shape (N, 6)."""
        super().update(torch.cat([sums, torch.ones_like(sums[:, :1])], 1), targets, weights)

    def compute(self) -> dict[str, Tensor]:
        _, tokens, right, errors, length, exact, count = self.sums.tolist()
        found = {
            "token_accuracy": right / tokens if tokens else math.nan,
            "error_rate": errors / length if length else math.nan,
            "sequence_accuracy": exact / count if count else math.nan,
        }
        return {name: torch.tensor(value) for name, value in found.items()}


def as_padded(targets: Tensor | Padded) -> Padded:
    """Return sequences of one length, (N, T), as `Padded`."""
    if isinstance(targets, Padded):
        return targets
    lengths = torch.full((len(targets),), targets.shape[1], device=targets.device)
    return Padded(targets, lengths)


def check_tokens(argument: str, tokens: Tensor | Ragged | Padded, size: int, setting: str) -> None:
    """Raise a `ValueError` that names an unknown token.

    Args:
        argument: What the tokens are called.
        tokens: Integers (N, T), or sequences of them.
        size: Number of different tokens.
        setting: The argument that sets `size`.
    """
    values = tokens if isinstance(tokens, Tensor) else tokens.values
    wrong = (values < 0) | (values >= size)
    if not wrong.any():
        return
    row, *rest = (int(i) for i in wrong.nonzero()[0])
    if isinstance(tokens, Ragged):
        first = row
        row = int(torch.searchsorted(tokens.offsets, first, right=True)) - 1
        rest = [first - int(tokens.offsets[row])]
    raise ValueError(
        f"{argument} has token {int(values[tuple(wrong.nonzero()[0])])} in row {row}, position "
        f"{', '.join(map(str, rest))}, but {setting}={size} means the tokens 0 … {size - 1}; set "
        f"{setting}, or map the tokens."
    )
