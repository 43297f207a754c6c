"""The next token of a sequence."""

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
from dlblocks._errors import check_range
from dlblocks._scores import Weighted
from dlblocks._vocabulary import SEPARATOR, UNKNOWN
from dlblocks.fields import Tokens, kinds_of
from dlblocks.metrics import wide
from dlblocks.tasks._epoch_sums import EpochSums
from dlblocks.tasks.table import Array, Predictions, PredictionTable
from dlblocks.tasks.task import Stage, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BIT = math.log(2)  # nats
SHOWN = 2000  # characters of a figure
# An unknown character could be any of Unicode; the token says only that it is unknown.
UNKNOWN_NATS = math.log(0x110000)
TINY = float(np.finfo(np.float32).tiny)
COLUMNS = ("nats", "tokens", "unknown", "characters", "bytes", "right")


class LanguageModelTask(Task):
    """Predict the next token of a sequence.

    The net puts out logits (N, T, V). Targets are tokens, integers (N, T), which are those of the
    inputs one place further. A target that is `ignore_index` does not count.

    The loss is the mean cross-entropy over all tokens that count, of the batch and of the epoch, in
    nats; 0 without any. Metrics of validation and test come from sums over the data set:

        perplexity = exp(loss)
        bits_per_token = loss / ln 2
        bits_per_character = Σ bits / Σ characters

    with ``bits_per_byte`` in the same way, where a `dlblocks.data.TextDataModule` says how many
    characters and bytes of UTF-8 each token is, and ``accuracy``, the share of tokens that are the
    likeliest. Of an unknown character (token 0), the bits include those that choose one of all
    characters of Unicode, log₂ 1114112 = 20.1.

    Predictions are the probabilities of the targets (N, T), 1 where a target does not count; of
    inputs without targets they are those of all tokens (N, T, V). A table has these, the targets,
    and of each sample the sums ``nats``, ``tokens``, ``unknown``, ``characters`` and ``bytes``.

    Args:
        vocab_size: Number of tokens V.
        ignore_index: Label of targets that do not count, negative.
        label_smoothing: ε in [0, 1) of the cross-entropy. In training only.

    Example:
        >>> task = LanguageModelTask(4)
        >>> round(task.loss(torch.zeros(1, 2, 4), torch.tensor([[3, -1]])).item(), 4)
        1.3863
    """

    name = "language_model"
    shown = ("bits_per_character",)
    standard = (
        "perplexity", "bits_per_token", "bits_per_character", "bits_per_byte", "accuracy",
    )  # fmt: skip
    loss_range = (0.0, None)
    token_sizes: Tensor

    def __init__(
        self, vocab_size: int, *, ignore_index: int = -1, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        check_range("vocab_size", vocab_size, 2)
        check_range("ignore_index", ignore_index, None, -1)
        check_range("label_smoothing", label_smoothing, 0, 1, high_open=True)
        self.vocab_size, self.ignore_index = int(vocab_size), int(ignore_index)
        self.label_smoothing = float(label_smoothing)
        # Characters and bytes of each token; 0 where nobody has said. They go with the weights.
        self.register_buffer("token_sizes", torch.zeros(vocab_size, 2))

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        if weights is None:
            total = self._nats(outputs, targets, smoothing, "sum")
        else:
            total = (self._nats(outputs, targets, smoothing) * weights[:, None]).sum()
        return total / (targets != self.ignore_index).sum().clamp(min=1)

    def _nats(
        self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0, reduction: str = "none"
    ) -> Tensor:
        """Return the cross-entropy of each token (N, T), or its sum."""
        found = F.cross_entropy(
            outputs.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=self.ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        return found.view(targets.shape) if reduction == "none" else found

    def counted(self, targets: Tensor) -> Tensor:
        return (targets != self.ignore_index).sum(1)

    def make_metrics(self, stage: Stage) -> MetricCollection:
        if stage == "train":
            return MetricCollection({})
        return MetricCollection({"tokens": TokenScores(weighted=self.weighted)})

    def for_metrics(self, outputs: Tensor, targets: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        if stage == "train":  # no metrics: the loss is enough
            return targets[:, :0], targets[:, :0]
        counts = targets != self.ignore_index
        nats = self._nats(outputs, targets)
        right = (outputs.argmax(2) == targets) & counts
        # Of (N, T, V), only six sums a sample wait for the metrics.
        return self._sums(nats, right, targets), targets[:, :0]

    def _sums(self, nats: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        """Return `COLUMNS` of each sample, shape (N, 6)."""
        counts = targets != self.ignore_index
        sizes = self.token_sizes.to(targets.device)[targets.clamp(min=0)] * counts[..., None]
        columns = [nats, counts, targets == UNKNOWN, *sizes.unbind(2), right]  # each (N, T)
        dtype = wide(targets.device)
        return torch.stack([column.sum(1, dtype=dtype) for column in columns], 1)

    def predict(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None or targets.shape != outputs.shape[:2]:
            return outputs.float().softmax(2)
        return torch.exp(-self._nats(outputs, targets))

    def outputs_of(self, predictions: Tensor) -> Tensor:
        return predictions.clamp(min=TINY).log()

    def keep(self, prediction: Any, target: Any) -> dict[str, Tensor | list[Tensor]]:
        """Keep the probability of each target, and the sums of each sample."""
        if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
            return super().keep(prediction, target)
        if prediction.ndim > target.ndim:
            chosen = prediction.gather(2, target.clamp(min=0)[..., None])[..., 0]
            prediction = torch.where(target == self.ignore_index, 1, chosen)
        nats = -prediction.clamp(min=TINY).log()
        sums = self._sums(nats, torch.zeros_like(target), target)
        dtype = torch.int16 if self.vocab_size <= 2**15 else torch.int32
        columns = dict(zip(COLUMNS[:-1], sums.T, strict=False))
        return {"target": target.to(dtype), "prediction": prediction.float(), **columns}

    def fit_to(self, datamodule: Any) -> None:
        sizes = getattr(datamodule, "token_sizes", None)
        if isinstance(sizes, Tensor):
            self.token_sizes.zero_()
            self.token_sizes[: len(sizes)] = sizes.to(self.token_sizes)

    def check_data(self, datamodule: Any, model: str) -> None:
        kind, data = kinds_of(datamodule).get("targets"), type(datamodule).__name__
        if kind is None:
            return
        if not isinstance(kind, Tokens):
            raise ValueError(
                f"{model} needs tokens (N, T) as targets, but the targets of {data} are of kind "
                f"{kind.name!r}; use TextDataModule, or set target_kind='tokens'."
            )
        size = getattr(datamodule, "vocab_size", None)
        if isinstance(size, int):
            if size > self.vocab_size:
                raise ValueError(
                    f"vocab_size={self.vocab_size}, but {data} has {size} tokens; set "
                    f"vocab_size={size}."
                )
            return
        source = getattr(datamodule, "source", None)
        for argument in ("inputs", "targets", "test_inputs", "test_targets"):
            tokens = getattr(source, argument, None)
            if isinstance(tokens, Tensor):
                self.check_tokens(argument, tokens, ignored=argument.endswith("targets"))

    def check_tokens(self, argument: str, tokens: Tensor, *, ignored: bool = False) -> None:
        """Raise a `ValueError` that names a token outside of 0 … V-1."""
        wrong = (tokens < 0) | (tokens >= self.vocab_size)
        if ignored:
            wrong &= tokens != self.ignore_index
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            also = f", and {self.ignore_index} for targets that do not count" if ignored else ""
            raise ValueError(
                f"{argument} has token {int(tokens[tuple(place)])} in row {place[0]}, position "
                f"{', '.join(map(str, place[1:]))}, but vocab_size={self.vocab_size} means the "
                f"tokens 0 … {self.vocab_size - 1}{also}; set vocab_size, or map the tokens."
            )

    def check_batch(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.ndim != 3 or outputs.shape[2] != self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size}, but the net puts out shape "
                f"{tuple(outputs.shape)}; expected (N, T, {self.vocab_size})."
            )
        if targets.is_floating_point() or targets.shape != outputs.shape[:2]:
            raise ValueError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)} for outputs of shape "
                f"{tuple(outputs.shape)}; expected tokens, int64 of shape "
                f"{tuple(outputs.shape[:2])}: those of the inputs, one place further."
            )
        self.check_tokens("targets", targets, ignored=True)

    def difference(self, other: Task) -> str:
        return self._size_difference(
            other, LanguageModelTask, "vocab_size", "vocabularies of {} tokens"
        )

    @classmethod
    def score(cls, table: PredictionTable) -> dict[str, float]:
        weight = np.ones(len(table)) if table.sample_weight is None else table.sample_weight
        if table.has(*COLUMNS[:-1]):
            sums = [weight @ table[name] for name in COLUMNS[:-1]]
        else:
            sums = [weight @ each for each in _nats_and_tokens(table.target, table.prediction)]
        return _rates(*map(float, sums))

    @classmethod
    def weighted_metrics(cls, target: Array, prediction: Array) -> dict[str, Weighted]:
        nats, tokens = _nats_and_tokens(target, prediction)

        def bits(weights: Array) -> Array:
            found: Array = (weights @ nats) / (weights @ tokens) / BIT
            return found

        return {"bits_per_token": bits, "perplexity": lambda weights: np.exp2(bits(weights))}

    @classmethod
    def columns(
        cls, target: Array, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {}  # blocks are no columns of a table; their sums are

    @classmethod
    def answers(
        cls, prediction: Array, class_names: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return {}

    @classmethod
    def figures(
        cls, table: Predictions, *, title: str, scores: Mapping[str, float] | None = None
    ) -> dict[str, Callable[[], Figure]]:
        """Draw the beginning of the text with the probability of each character."""
        if not table.class_names or not table.has("target", "prediction"):
            return {}
        rows = np.unique(table.index, return_index=True)[1]  # of several repeats the first
        shown, found = [], []
        for row in rows[:SHOWN]:
            counts = (table.target[row] >= 0) & (table.target[row] != SEPARATOR)
            shown += table.target[row][counts].tolist()
            found += table.prediction[row][counts].tolist()
        text = "".join(table.class_names[token] for token in shown[:SHOWN])
        chances = np.array(found[:SHOWN])
        if not text:
            return {}
        return {"text": lambda: plots.text_bits(text, chances, title=title)}


def _nats_and_tokens(target: Array, prediction: Array) -> tuple[Array, Array]:
    """Return the nats and the number of targets of each sample, (N,)."""
    nats = -np.log(np.maximum(prediction, TINY, dtype=np.float64)).sum(1)
    return nats, (target >= 0).sum(1)


def _rates(
    nats: float, tokens: float, unknown: float = 0, characters: float = 0, size: float = 0
) -> dict[str, float]:
    """Turn sums into metrics, where `size` is the number of bytes."""
    loss = nats / tokens if tokens else math.nan
    found = {"perplexity": float(np.exp(loss)), "bits_per_token": loss / BIT}
    bits = (nats + UNKNOWN_NATS * unknown) / BIT
    if characters:
        found["bits_per_character"] = bits / characters
    if size:
        found["bits_per_byte"] = bits / size
    return found


class TokenScores(EpochSums):
    """Perplexity, bits per token, character and byte, and accuracy over an epoch.

    Args:
        weighted: Whether `update` takes weights of samples.
    """

    def __init__(self, *, weighted: bool = False) -> None:
        super().__init__(len(COLUMNS), weighted=weighted)

    def compute(self) -> dict[str, Tensor]:
        *sums, right = self.sums.tolist()
        found = _rates(*sums)
        found["accuracy"] = right / sums[1] if sums[1] else math.nan
        return {name: torch.tensor(value) for name, value in found.items()}
