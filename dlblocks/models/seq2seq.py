"""Models that make a sequence of tokens from another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlblocks._errors import check_range
from dlblocks._quiet import evaluating
from dlblocks._ragged import entries_of
from dlblocks._vocabulary import SymbolVocabulary
from dlblocks.fields import Padded
from dlblocks.models._beam_search import Search, search
from dlblocks.models._inputs import with_prepared_inputs
from dlblocks.models._sources import batches_of, check_entry, check_sequences, read_source
from dlblocks.models._token_mean import TokenMeanModel
from dlblocks.models._token_sampling import check_whole
from dlblocks.models.model import beside_inputs
from dlblocks.nets import Seq2SeqRNN, Seq2SeqTransformer
from dlblocks.nets.seq2seq import shifted
from dlblocks.tasks.seq2seq import Answers, Seq2SeqTask, as_padded, check_tokens

LONGEST = 256  # tokens of a result where nobody knows the targets of the training


class Seq2Seq(TokenMeanModel):
    """A model over an encoder-decoder net, for translation and the like.

    Batches are ``[sources, targets]``: `dlblocks.fields.Padded` tokens, or integers (N, S) and
    (N, T). Targets are without the separator, which the model puts before and behind them.

    Logged: ``loss``, and for validation and test ``token_accuracy``, ``error_rate`` and
    ``sequence_accuracy``; see `dlblocks.tasks.Seq2SeqTask`. The last two are of sequences that the
    model has found without the targets, as `generate` does with the model's `num_beams`. The loss
    is a mean over tokens: with accumulated gradients, and over ranks, a batch counts by its number
    of tokens.

    ``model(sources, targets)`` returns logits (N, T + 1, V) of each token of the targets and of
    their ends; ``model(sources)`` returns the tokens that it finds, a list of tensors.

    Args:
        net: Maps sources and tokens (N, T) to logits (N, T, V) of the token that follows each. If
            it also has ``start(sources, room)`` and ``step(tokens, state)``, as
            `dlblocks.nets.Seq2SeqTransformer`, a search computes only what is new. A net that takes
            sources as integers (N, S) alone, not as `Padded`, says so by ``takes_padded = False``.
        target_vocab_size: Number of target tokens V.
        separator: Token that begins and ends a target.
        label_smoothing: ε in [0, 1) of the cross-entropy. In training only.
        num_beams: Beams of the search in validation, test and predictions. 1: greedy.
        length_penalty: α of that search; see `generate`.
        max_new_tokens: Most tokens of a result. None: twice those of the longest training target.
        **kwargs: Optimization; see `dlblocks.models.Model`.
    """

    def __init__(
        self,
        net: nn.Module,
        target_vocab_size: int,
        *,
        separator: int = 1,
        label_smoothing: float = 0.0,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        max_new_tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_range("num_beams", num_beams, 1)
        if max_new_tokens is not None:
            check_range("max_new_tokens", max_new_tokens, 1)
        task = Seq2SeqTask(target_vocab_size, separator=separator, label_smoothing=label_smoothing)
        super().__init__(net, task, **kwargs)
        self.target_vocab_size, self.separator = target_vocab_size, separator
        self.label_smoothing = label_smoothing
        self.num_beams, self.length_penalty = num_beams, length_penalty
        self.max_new_tokens = max_new_tokens
        self._got_padded = True  # whether the sources of the first batch are Padded

    @property
    def _task(self) -> Seq2SeqTask:
        assert isinstance(self.task, Seq2SeqTask)  # for the type checker
        return self.task

    def forward(self, inputs: Tensor | Padded, targets: Tensor | Padded | None = None) -> Any:
        if targets is None:
            if torch.compiler.is_exporting():
                raise ValueError(
                    "a search for sequences cannot be exported, because its steps depend on what "
                    "it finds; use generate of the model, or dlblocks.load(path).predict"
                )
            rules = self._rules(self.num_beams, self.length_penalty, None)
            found = search(self.net, inputs, rules)
            return [
                torch.tensor(each.tokens, dtype=torch.int64, device=self.device) for each in found
            ]
        return self._logits(inputs, targets)

    def _logits(self, inputs: Tensor | Padded, targets: Tensor | Padded) -> Tensor:
        tokens, _ = shifted(targets, self.separator)
        try:
            logits: Tensor = self.net(inputs, tokens)
        except IndexError:
            self._check_tokens(inputs, targets)
            raise
        return logits

    def outputs_and_loss(
        self, inputs: Any, targets: Any, weights: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        if self._first_batch:
            self._check_entries(inputs, targets)
        outputs: Any = self._logits(inputs, targets)
        if self._first_batch:
            self.check_batch(outputs, targets)
        loss = self.loss(outputs, targets, weights)
        if not self.training:
            found = self(inputs)
            outputs = Answers(outputs, Padded.of(found))
        return outputs, loss

    @with_prepared_inputs
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return the tokens of each sample, its target and its index."""
        inputs, *rest = entries_of(batch)
        found = beside_inputs(rest)
        if isinstance(found.get("target"), (Tensor, Padded)):
            found["target"] = as_padded(found["target"]).sequences()
        return {"prediction": self(inputs), **found}

    # Checks

    def check_data(self, datamodule: Any) -> None:
        super().check_data(datamodule)
        known = getattr(self.net, "source_vocab_size", None)
        size = getattr(datamodule, "source_vocab_size", None)
        if known is not None and size is not None and size > known:
            raise ValueError(
                f"source_vocab_size={known}, but {type(datamodule).__name__} has {size} source "
                f"tokens; set source_vocab_size={size}."
            )
        check_sequences(self.net, datamodule)

    def _check_entries(self, inputs: Any, targets: Any) -> None:
        self._got_padded = isinstance(inputs, Padded)
        for name, entry in (("inputs", inputs), ("targets", targets)):
            check_entry(name, entry, type(self).__name__)
        self._check_tokens(inputs, targets)

    def _check_tokens(self, inputs: Tensor | Padded, targets: Tensor | Padded) -> None:
        known = getattr(self.net, "source_vocab_size", None)
        if known is not None:
            check_tokens("inputs", inputs, known, "source_vocab_size")
        self._task.check_tokens("targets", targets)

    # Search

    @property
    def source_vocabulary(self) -> SymbolVocabulary:
        """The vocabulary of the sources."""
        return self._vocabulary("source_vocabulary")

    @property
    def target_vocabulary(self) -> SymbolVocabulary:
        """The vocabulary of the targets."""
        return self._vocabulary("target_vocabulary")

    def _vocabulary(self, name: str) -> SymbolVocabulary:
        if self.data_spec is None or name not in self.data_spec:
            raise ValueError(
                f"{type(self).__name__} has no vocabulary, because it was not fitted on a "
                "SequencePairsDataModule; give tokens instead of a text."
            )
        return SymbolVocabulary.from_plain(self.data_spec[name])

    def _rules(self, num_beams: int, length_penalty: float, max_new_tokens: int | None) -> Search:
        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if most is None:
            most = 2 * int(self._task.longest) or LONGEST
        context = getattr(self.net, "context", None)
        if context is not None:
            most = min(most, context - 1)
        allowed = None
        if self.data_spec is not None and "target_vocabulary" in self.data_spec:
            known = torch.from_numpy(self.target_vocabulary.known)
            allowed = torch.zeros(self.target_vocab_size, dtype=torch.bool)
            allowed[: len(known)] = known
        return Search(num_beams, length_penalty, most, self.separator, allowed)

    def generate(
        self,
        sources: Any,
        max_new_tokens: int | None = None,
        *,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        use_cache: bool = True,
        return_scores: bool = False,
    ) -> Any:
        """Find the target of texts, or of sequences of tokens.

        The score of a target of n tokens, with the one that ends it, is
        ``log p(target | source) / n^length_penalty``. Beam search keeps the `num_beams` likeliest
        beginnings, and stops when none of them can lead to a higher score; with enough beams it
        finds the best of all targets of at most `max_new_tokens` tokens.

        Nothing is drawn. The result for a source does not depend on the others. The mode of the
        model stays as it is. Symbols of the target that did not occur in training are never chosen.

        Args:
            sources: A text, a list of texts or lists of symbols, or a list of sequences of tokens.
            max_new_tokens: Most tokens of a result; None for the model's.
            num_beams: Beginnings that are kept. 1: greedy, always the likeliest token. None for the
                model's.
            length_penalty: α. 0: the likeliest target, which favours short ones. 1: the highest
                mean log-probability of a token. None for the model's.
            use_cache: Keep keys and values of tokens, or the state of an RNN. False computes all
                anew for each token: the same, slowly.
            return_scores: Return also the score of each target.

        Returns:
            A text for a text, a list for a list; of words, those with spaces between. With
            `return_scores` a pair of this and a score, or a list of scores.

        Raises:
            ValueError: A source has an unknown symbol or token, is empty, or is too long.
        """
        single = isinstance(sources, str)
        if isinstance(sources, Padded):
            sources = sources.sequences()
        given = [sources] if single else list(sources)
        is_text = bool(given) and (
            isinstance(given[0], str)
            or (
                isinstance(given[0], Sequence)
                and len(given[0]) > 0
                and isinstance(given[0][0], str)
            )
        )
        vocabulary = self.source_vocabulary if is_text else None
        names = ["source"] if single else [f"sources[{number}]" for number in range(len(given))]
        rows = [read_source(self.net, vocabulary, *pair) for pair in zip(names, given, strict=True)]
        beams = check_whole("num_beams", self.num_beams if num_beams is None else num_beams)
        check_range("num_beams", beams, 1)
        if max_new_tokens is not None:
            max_new_tokens = check_whole("max_new_tokens", max_new_tokens)
        alpha = self.length_penalty if length_penalty is None else length_penalty
        if not math.isfinite(alpha):
            raise ValueError(f"length_penalty={alpha!r} must be a finite number.")
        rules = self._rules(beams, alpha, max_new_tokens)
        found: list[Any] = [None] * len(rows)
        with evaluating(self):
            is_padded = getattr(self.net, "takes_padded", self._got_padded)
            for places, inputs in batches_of(rows, is_padded, self.device):
                said = search(self.net, inputs, rules, use_cache=use_cache)
                for place, each in zip(places, said, strict=True):
                    found[place] = each
        results: list[Any] = [each.tokens for each in found]
        if is_text:
            results = [self.target_vocabulary.decode(tokens) for tokens in results]
        scores = [each.score for each in found]
        if single:
            return (results[0], scores[0]) if return_scores else results[0]
        return (results, scores) if return_scores else results


class TransformerSeq2Seq(Seq2Seq):
    """A Transformer encoder and decoder (Vaswani et al. 2017).

    Args:
        source_vocab_size: Number of source tokens; ``datamodule.source_vocab_size``, or more.
        target_vocab_size: Number of target tokens; ``datamodule.target_vocab_size``, or more.
        width: Size of an embedded token.
        depth: Blocks of the encoder, and of the decoder.
        num_heads: Heads of the attention.
        context: Most tokens of a source, and of a target with the one that begins it. None for any
            number, which learned positions cannot.
        positions: ``"rotary"``, ``"sinusoidal"`` or ``"learned"``; see `dlblocks.nets.Transformer`.
        num_kv_heads: Heads of keys and values, fewer for grouped queries.
        hidden: Size between the layers of the feed-forward net.
        pre_norm: Whether norms come before attention and feed-forward net.
        norm: ``"layer"`` or ``"rms"``.
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        tied: Whether the table of target tokens and the last layer share their weights.
        dropout: Probability in [0, 1) of dropout.
        **kwargs: Loss, search and optimization; see `Seq2Seq`.

    Example:
        >>> model = TransformerSeq2Seq(20, 30, width=16, depth=1, num_heads=2)
        >>> [len(row) <= 5 for row in model.generate([[2, 3], [4]], 5, num_beams=3)]
        [True, True]
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        width: int = 128,
        depth: int = 3,
        num_heads: int = 4,
        context: int | None = None,
        positions: Literal["rotary", "sinusoidal", "learned"] = "rotary",
        num_kv_heads: int | None = None,
        hidden: int | None = None,
        pre_norm: bool = True,
        norm: Literal["layer", "rms"] = "layer",
        activation: Literal["gelu", "relu", "swiglu"] = "gelu",
        tied: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = Seq2SeqTransformer(
            source_vocab_size,
            target_vocab_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            context=context,
            positions=positions,
            tied=tied,
            dropout=dropout,
            num_kv_heads=num_kv_heads,
            hidden=hidden,
            pre_norm=pre_norm,
            norm=norm,
            activation=activation,
        )
        super().__init__(net, target_vocab_size, **kwargs)

    @torch.no_grad()
    def attention_maps(self, source: str, target: str) -> list[Tensor]:
        """Return the weights of each target token's attention to the source.

        `dlblocks.plots.attention` draws them.

        Args:
            source: A text.
            target: A text, such as that of `generate`.

        Returns:
            For each block (heads, T + 1, S), for the tokens of the target and its end.
        """
        net, place = self.net, self.device
        assert isinstance(net, Seq2SeqTransformer)  # for the type checker
        inputs = read_source(net, self.source_vocabulary, "source", source)[None].to(place)
        answer = torch.from_numpy(self.target_vocabulary.encode(target))[None].to(place)
        with evaluating(self):
            maps = net.attention_maps(inputs, shifted(answer, self.separator)[0])
            return [each[0] for each in maps]


class RNNSeq2Seq(Seq2Seq):
    """An LSTM encoder and decoder with attention (Luong et al. 2015).

    Args:
        source_vocab_size: Number of source tokens; ``datamodule.source_vocab_size``, or more.
        target_vocab_size: Number of target tokens; ``datamodule.target_vocab_size``, or more.
        width: Size of an embedded token.
        hidden: Hidden values of each direction of the encoder, and of the decoder.
        num_layers: Layers of the encoder.
        tied: Whether the table of target tokens and the last layer share their weights.
        dropout: Probability in [0, 1) of dropout.
        **kwargs: Loss, search and optimization; see `Seq2Seq`.
    """

    def __init__(
        self,
        source_vocab_size: int,
        target_vocab_size: int,
        *,
        width: int = 128,
        hidden: int = 128,
        num_layers: int = 1,
        tied: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = Seq2SeqRNN(
            source_vocab_size,
            target_vocab_size,
            width=width,
            hidden=hidden,
            num_layers=num_layers,
            tied=tied,
            dropout=dropout,
        )
        super().__init__(net, target_vocab_size, **kwargs)
