"""Language models over any net, a GPT and an LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dlblocks._quiet import evaluating
from dlblocks._vocabulary import IGNORED, SEPARATOR, Vocabulary, cut, with_separators
from dlblocks.models._token_mean import TokenMeanModel
from dlblocks.models._token_sampling import Sampling, check_whole, generate
from dlblocks.nets import GPT, LSTMDecoder
from dlblocks.tasks import LanguageModelTask

ROWS = 32  # windows at a time


class LanguageModel(TokenMeanModel):
    """A language model over a net with logits (N, T, V).

    Targets are the tokens of the inputs, one place further. Logged: ``loss``, and for validation
    and test ``perplexity``, ``bits_per_token``, ``bits_per_character``, ``bits_per_byte`` and
    ``accuracy``; see `dlblocks.tasks.LanguageModelTask`. The loss is a mean over tokens: with
    accumulated gradients, and over ranks, a batch counts by its number of tokens.

    `forward` returns logits; `Trainer.predict` gives the probabilities of the targets (N, T).

    Args:
        net: Maps tokens (N, T) to logits (N, T, V).
        vocab_size: Number of tokens V.
        ignore_index: Label of targets that do not count, negative.
        label_smoothing: ε in [0, 1) of the cross-entropy. In training only.
        **kwargs: Optimization; see `dlblocks.models.Model`.

    Example:
        >>> net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
        >>> LanguageModel(net, vocab_size=5)(torch.zeros(2, 3).long()).shape
        torch.Size([2, 3, 5])
    """

    def __init__(
        self,
        net: nn.Module,
        vocab_size: int,
        *,
        ignore_index: int = -1,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        task = LanguageModelTask(
            vocab_size, ignore_index=ignore_index, label_smoothing=label_smoothing
        )
        super().__init__(net, task, **kwargs)
        self.vocab_size = vocab_size
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, inputs: Tensor) -> Tensor:
        try:
            return super().forward(inputs)
        except IndexError:
            assert isinstance(self.task, LanguageModelTask)  # for the type checker
            self.task.check_tokens("inputs", inputs)
            raise

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the training text.

        Raises:
            ValueError: The model was not trained on a `dlblocks.data.TextDataModule`.
        """
        if self.data_spec is None or "symbols" not in self.data_spec:
            raise ValueError(
                f"{type(self).__name__} has no vocabulary, because it was not fitted on a "
                "TextDataModule; give tokens instead of a text."
            )
        return Vocabulary.from_plain(self.data_spec)

    def generate(
        self,
        prompts: Any,
        max_new_tokens: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        stop: str | int | Sequence[str | int] = (),
        use_cache: bool = True,
    ) -> Any:
        """Continue texts, or sequences of tokens.

        The result for a prompt does not depend on the others of the batch. Equal prompts get
        different results, the first of them that of the prompt alone. A text is the beginning of a
        document, and a result ends where the model ends the document. The global random state and
        the mode of the model stay as they are.

        A net with a `context` sees at most so many tokens. When they are reached, it forgets the
        older half and keeps the rest.

        Args:
            prompts: A text, a list of texts, or a list of sequences of tokens.
            max_new_tokens: Most tokens of a result.
            temperature: Divides the logits. 0: always the likeliest token, the first of equal ones.
            top_k: Draw among the k likeliest tokens alone.
            top_p: Draw among the likeliest tokens that together have at least this probability,
                at least one (Holtzman et al. 2020).
            seed: Of the draws, or one for each prompt. None: other results in each call.
            stop: Texts or tokens at which a result ends, without them.
            use_cache: Keep keys and values of tokens, or the state of an RNN. False computes all
                anew for each token: the same, slowly. A net with a document mask does so too where
                a result may have several documents, which a cache cannot hide.

        Returns:
            What follows each prompt: a text for a text, a list for a list.

        Raises:
            ValueError: A prompt has an unknown character or token, or is empty.
        """
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens)
        single = isinstance(prompts, str)
        given = [prompts] if single else list(prompts)
        is_text = bool(given) and isinstance(given[0], str)
        for number, prompt in enumerate(given):
            if isinstance(prompt, str) != is_text:
                raise ValueError(
                    f"prompts[0] is a {type(given[0]).__name__}, but prompts[{number}] is a "
                    f"{type(prompt).__name__}; give texts alone, or sequences of tokens alone."
                )
        vocabulary = self.vocabulary if is_text else None
        stops = [stop] if isinstance(stop, (str, int)) else list(stop)
        if "" in stops:
            raise ValueError("stop='' is in every text; leave it out.")
        if vocabulary is None and any(isinstance(each, str) for each in stops):
            raise ValueError(f"stop={stop!r} is a text, but prompts are tokens; give tokens.")
        tokens = []
        for number, prompt in enumerate(given):
            if vocabulary is not None:
                vocabulary.check("prompt" if single else f"prompts[{number}]", prompt)
                tokens.append([SEPARATOR, *vocabulary.encode(prompt).tolist()])
                continue
            row = torch.as_tensor(prompt)
            if (
                len(row.shape) == 1
                and len(row)
                and (row.is_floating_point() or row.dtype == torch.bool)
            ):
                raise ValueError(
                    f"prompts[{number}] has values of {row.dtype}; tokens are whole numbers."
                )
            if row.ndim != 1 or not len(row):
                raise ValueError(
                    f"prompts[{number}] has shape {tuple(row.shape)}; give one token or more, (T,)."
                )
            assert isinstance(self.task, LanguageModelTask)  # for the type checker
            self.task.check_tokens(f"prompts[{number}]", row[None])
            tokens.append(row.tolist())
        allowed = np.ones(self.vocab_size, bool)
        if vocabulary is not None:
            allowed[:] = False
            allowed[: vocabulary.size] = vocabulary.known
            allowed[SEPARATOR] = True
        found = generate(
            self,
            tokens,
            max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p, torch.from_numpy(allowed)),
            seed=seed,
            stop_tokens=[each for each in stops if not isinstance(each, str)]
            + ([SEPARATOR] if vocabulary is not None else []),
            stop_texts=[each for each in stops if isinstance(each, str)],
            decode=None if vocabulary is None else vocabulary.decode,
            use_cache=use_cache,
        )
        return found[0] if single else found

    @torch.no_grad()
    def probabilities(self, text: str, *, stride: int | None = None) -> npt.NDArray[np.float32]:
        """Return the probability of each token of a text, given those before.

        Args:
            text: A document. Characters that did not occur in training count as one token, unknown.
            stride: Tokens from one window to the next; None for half of the training's blocks.

        Returns:
            Shape (n + 1,), for n characters or bytes and the end of the document.
        """
        document = with_separators(self.vocabulary.encode(text))
        assert self.data_spec is not None  # for the type checker: `vocabulary` needs it
        size = int(self.data_spec["block_size"])
        parts = list(cut(document, size, stride or max(1, size // 2)))
        found = []
        with evaluating(self):
            for start in range(0, len(parts), ROWS):
                inputs, _, once = (
                    torch.from_numpy(np.stack(column)).to(self.device)
                    for column in zip(*parts[start : start + ROWS], strict=True)
                )
                chances = self.prediction(self(inputs)).gather(2, once.clamp(min=0)[..., None])
                found.append(chances[..., 0][once != IGNORED].cpu())
        return torch.cat(found).numpy()


class GPTLanguageModel(LanguageModel):
    """A GPT as language model.

    Args:
        vocab_size: Number of tokens V; ``datamodule.vocab_size``, or more.
        width: Size of an embedded token.
        depth: Number of blocks.
        num_heads: Heads of the attention.
        context: Most tokens of a sequence, at least `block_size` of the data.
        positions: ``"learned"``, ``"sinusoidal"`` or ``"rotary"``; see `dlblocks.nets.Transformer`.
        num_kv_heads: Heads of keys and values, fewer for grouped queries.
        hidden: Size between the layers of the feed-forward net.
        pre_norm: Whether norms come before attention and feed-forward net.
        norm: ``"layer"`` or ``"rms"``.
        activation: ``"gelu"``, ``"relu"`` or ``"swiglu"``.
        document_mask: Let tokens see only those of their own document, where several are in a
            block.
        tied: Whether the table of tokens and the last layer share their weights.
        dropout: Probability in [0, 1) of dropout.
        **kwargs: Loss and optimization; see `LanguageModel`.

    Example:
        >>> model = GPTLanguageModel(50, width=16, depth=1, num_heads=2, context=8)
        >>> [len(row) for row in model.generate([[1, 2], [3]], max_new_tokens=12, seed=0)]
        [12, 12]
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        context: int = 256,
        positions: Literal["learned", "sinusoidal", "rotary"] = "rotary",
        num_kv_heads: int | None = None,
        hidden: int | None = None,
        pre_norm: bool = True,
        norm: Literal["layer", "rms"] = "layer",
        activation: Literal["gelu", "relu", "swiglu"] = "gelu",
        document_mask: bool = False,
        tied: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = GPT(
            vocab_size,
            width=width,
            depth=depth,
            num_heads=num_heads,
            context=context,
            separator=SEPARATOR if document_mask else None,
            tied=tied,
            dropout=dropout,
            positions=positions,
            num_kv_heads=num_kv_heads,
            hidden=hidden,
            pre_norm=pre_norm,
            norm=norm,
            activation=activation,
        )
        super().__init__(net, vocab_size, **kwargs)


class RNNLanguageModel(LanguageModel):
    """An LSTM as language model.

    Args:
        vocab_size: Number of tokens V; ``datamodule.vocab_size``, or more.
        width: Size of an embedded token.
        hidden: Hidden values of each layer.
        num_layers: Layers, each above the other.
        tied: Whether the table of tokens and the last layer share their weights.
        dropout: Probability in [0, 1) of dropout.
        **kwargs: Loss and optimization; see `LanguageModel`.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        width: int = 128,
        hidden: int = 256,
        num_layers: int = 1,
        tied: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        net = LSTMDecoder(
            vocab_size,
            width=width,
            hidden=hidden,
            num_layers=num_layers,
            tied=tied,
            dropout=dropout,
        )
        super().__init__(net, vocab_size, **kwargs)


class _Caches:
    """The caches of several nets for the same rows."""

    def __init__(self, caches: list[Any]) -> None:
        self.caches = caches

    @property
    def lengths(self) -> Tensor:
        found: Tensor = self.caches[0].lengths
        return found

    def __getitem__(self, rows: Tensor) -> _Caches:
        return _Caches([cache[rows] for cache in self.caches])

    def __setitem__(self, rows: Tensor, other: _Caches) -> None:
        for mine, given in zip(self.caches, other.caches, strict=True):
            mine[rows] = given


class _AverageNet(nn.Module):
    """Logits of the mean probability that several nets give the next token."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        known = [getattr(net, "context", None) for net in nets]
        self.context = min((size for size in known if size is not None), default=None)
        self.separator = getattr(nets[0], "separator", None)
        if all(hasattr(net, "make_cache") for net in nets):
            self.make_cache = self._make_cache

    def forward(self, tokens: Tensor, *, cache: _Caches | None = None, **kwargs: Any) -> Tensor:
        each = [
            net(tokens, **kwargs, **({} if cache is None else {"cache": cache.caches[i]}))
            for i, net in enumerate(self.nets)
        ]
        return torch.stack(each).log_softmax(-1).logsumexp(0)

    def _make_cache(self, batch_size: int) -> _Caches:
        nets: Any = self.nets
        return _Caches([net.make_cache(batch_size) for net in nets])


def average_language_model(
    members: Sequence[LanguageModel], data_spec: dict[str, Any] | None
) -> LanguageModel:
    """Make one language model, whose probabilities are the mean of those of several.

    Args:
        members: Over one vocabulary. Their nets are shared, not copied.
        data_spec: What the model says of the data; see `Model`.
    """
    model = LanguageModel(_AverageNet([m.net for m in members]), members[0].vocab_size)
    model.data_spec = data_spec
    return model.to(members[0].device)
