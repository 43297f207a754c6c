"""Draw the continuation of sequences of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks._errors import check_range, whole
from dlblocks._quiet import evaluating

MAX_SEED = 2**63 - 1


@dataclass
class Sampling:
    """Rules by which a token is drawn from logits.

    Args:
        temperature: Divides the logits; 0 for the likeliest token.
        top_k: Draw among the k likeliest alone.
        top_p: Draw among the likeliest that together have at least this probability.
        allowed: Tokens that may be drawn, bool of shape (V,), or None for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    allowed: Tensor | None = None

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0)
        if self.top_k is not None:
            check_range("top_k", self.top_k, 1)
            self.top_k = check_whole("top_k", self.top_k)
        if self.top_p is not None:
            check_range("top_p", self.top_p, 0, 1, low_open=True)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the draw, float64 of shape (B, V).

        Exactly one token has all of it with ``temperature=0``, and at most `top_k` have any.
        """
        logits = logits.double()
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed.to(logits.device), -torch.inf)
        if self.temperature and self.top_k is None and self.top_p is None:
            return self._softmax(logits)
        # Of equal logits the first comes first, so that ties leave exactly k.
        order = logits.argsort(stable=True, dim=1, descending=True)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(1, order[:, :1], 1.0)
        ranked = self._softmax(logits.gather(1, order))
        if self.top_k is not None:
            ranked[:, self.top_k :] = 0
            ranked = ranked / ranked.sum(1, keepdim=True)
        if self.top_p is not None:
            before = ranked.cumsum(1) - ranked
            before[:, 0] = 0  # at least one stays
            ranked = ranked.masked_fill(before >= self.top_p, 0)
            ranked = ranked / ranked.sum(1, keepdim=True)
        return torch.zeros_like(logits).scatter_(1, order, ranked)

    def _softmax(self, logits: Tensor) -> Tensor:
        # The largest is 0, so that a tiny temperature cannot make it infinite.
        return ((logits - logits.amax(1, keepdim=True)) / self.temperature).softmax(1)

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return tokens (B,).

        Args:
            logits: Shape (B, V).
            uniform: Random numbers in [0, 1), shape (B,).
        """
        chances = self.probabilities(logits)
        total = chances.cumsum(1)
        wanted = uniform.to(total)[:, None] * total[:, -1:]
        token = torch.searchsorted(total, wanted, right=True)[:, 0]
        # Rounding may end behind the last token that has a probability.
        last = (chances > 0).long().mul(torch.arange(chances.shape[1], device=total.device))
        return token.minimum(last.amax(1))


def check_whole(argument: str, value: Any) -> int:
    """Return a whole number of at least 0 as `int`."""
    found = whole(value)
    if not isinstance(found, Integral) or isinstance(found, bool) or found < 0:
        raise ValueError(f"{argument}={value!r} must be a whole number of at least 0.")
    return int(found)


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling,
    seed: int | Sequence[int] | None = None,
    stop_tokens: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    use_cache: bool = True,
) -> list[Any]:
    """Continue prompts, as `dlblocks.models.LanguageModel.generate` describes.

    Args:
        model: A `dlblocks.models.LanguageModel`.
        prompts: Tokens, each at least one.
        max_new_tokens: Most tokens of a result.
        sampling: How tokens are drawn.
        seed: Of the draws, or one a prompt.
        stop_tokens: Tokens at which a result ends.
        stop_texts: Texts at which it ends.
        decode: Makes a text of tokens; None: results are tokens.
        use_cache: Whether the net keeps what it has computed.
    """
    generators = _generators(prompts, seed)
    rows = [_Row(list(prompt), len(prompt)) for prompt in prompts]
    net = model.net
    steps = _Steps(
        net,
        model,
        getattr(net, "context", None),
        use_cache and _one_document(net, rows, stop_tokens),
    )
    with evaluating(model):
        active = list(range(len(rows))) if max_new_tokens else []
        while active:
            logits = steps.next([rows[i] for i in active])
            uniform = torch.stack([torch.rand((), generator=generators[i]) for i in active])
            drawn = sampling.draw(logits, uniform.to(logits.device)).tolist()
            kept = []
            for place, (i, token) in enumerate(zip(active, drawn, strict=True)):
                row = rows[i]
                if token in stop_tokens:
                    continue
                row.tokens.append(token)
                if decode is not None and stop_texts:
                    text = decode(row.new)
                    ends = [text.find(stop) for stop in stop_texts if stop in text]
                    if ends:
                        row.text = text[: min(ends)]
                        continue
                if len(row.new) < max_new_tokens:
                    kept.append(place)
            active = [active[place] for place in kept]
            steps.keep(kept)
    if decode is None:
        return [row.new for row in rows]
    return [decode(row.new) if row.text is None else row.text for row in rows]


@dataclass
class _Row:
    tokens: list[int]
    prompt: int  # length
    start: int = 0  # of the window that the net sees
    text: str | None = None  # if a text has ended it

    @property
    def new(self) -> list[int]:
        return self.tokens[self.prompt :]


def _one_document(net: Any, rows: Sequence[_Row], stop_tokens: Sequence[int]) -> bool:
    """Return False if a net must hide an earlier document of a row, which caches cannot."""
    separator = getattr(net, "separator", None)
    if separator is None:
        return True
    return separator in stop_tokens and not any(separator in row.tokens[1:] for row in rows)


class _Steps:
    """Compute the logits of the next token of some rows."""

    def __init__(self, net: Any, model: Any, context: int | None, use_cache: bool) -> None:
        self.net, self.model, self.context = net, model, context
        self.use_cache = use_cache and hasattr(net, "make_cache")
        self.cache: Any = None

    def next(self, rows: Sequence[_Row]) -> Tensor:
        """Return the logits (B, V) of the next token of each row."""
        moved = [self._move_window(row) for row in rows]
        if not self.use_cache:
            return self._all(rows)[1]
        if self.cache is None:
            self.cache, logits = self._all(rows)
            return logits
        anew = torch.tensor([i for i, m in enumerate(moved) if m], dtype=torch.int64)
        rest = torch.tensor([i for i, m in enumerate(moved) if not m], dtype=torch.int64)
        found: list[tuple[Tensor, Tensor]] = []
        if len(rest):
            last = torch.tensor([rows[i].tokens[-1:] for i in rest.tolist()])
            cache = self.cache if not len(anew) else self.cache[rest]
            found.append((rest, self.net(last.to(self.model.device), cache=cache)[:, -1]))
            if len(anew):
                self.cache[rest] = cache
        if len(anew):
            fresh, logits = self._all([rows[i] for i in anew.tolist()])
            self.cache[anew] = fresh
            found.append((anew, logits))
        order = torch.cat([places for places, _ in found]).argsort()
        return torch.cat([logits for _, logits in found])[order.to(found[0][1].device)]

    def keep(self, places: Sequence[int]) -> None:
        """Drop the rows that are finished."""
        if self.cache is not None and len(places) < len(self.cache.lengths):
            self.cache = self.cache[torch.tensor(places, dtype=torch.int64)]

    def _move_window(self, row: _Row) -> bool:
        """Forget the older half of a window that is full."""
        size = len(row.tokens)
        if self.context is None or size - row.start <= self.context:
            return False
        row.start = size - max(1, self.context // 2)
        return True

    def _all(self, rows: Sequence[_Row]) -> tuple[Any, Tensor]:
        """Compute whole windows.

        Returns:
            A new cache, or None, and the logits (B, V) of the next token.
        """
        parts = [row.tokens[row.start :] for row in rows]
        lengths = torch.tensor([len(part) for part in parts])
        tokens = torch.zeros(len(parts), int(lengths.max()), dtype=torch.int64)
        for row, part in zip(tokens, parts, strict=True):
            row[: len(part)] = torch.tensor(part)
        tokens, lengths = tokens.to(self.model.device), lengths.to(self.model.device)
        cache = self.net.make_cache(len(parts)) if self.use_cache else None
        if cache is None:
            # A net of the user's may know no lengths: what is behind a row must not change it.
            logits = self.net(tokens)
        elif int(lengths.min()) == tokens.shape[1]:
            logits = self.net(tokens, cache=cache)
        else:
            logits = self.net(tokens, lengths=lengths, cache=cache)
        every = torch.arange(len(parts), device=tokens.device)
        return cache, logits[every, lengths - 1]


def _generators(
    prompts: Sequence[list[int]], seed: int | Sequence[int] | None
) -> list[torch.Generator]:
    """Make a generator for each prompt.

    Different prompts get different random numbers of one seed. They do not depend on the other
    prompts, except that equal prompts get different ones.
    """
    if isinstance(seed, (Sequence, np.ndarray, Tensor)) and np.ndim(seed):
        if len(seed) != len(prompts):
            raise ValueError(f"seed has {len(seed)} numbers for {len(prompts)} prompts.")
        seeds = [check_whole("seed", each) for each in seed]
    elif seed is None:
        seeds = np.random.SeedSequence().generate_state(len(prompts), np.uint64).tolist()
    else:
        seeds = [check_whole("seed", seed)] * len(prompts)
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for prompt, own in zip(prompts, seeds, strict=True):
        key = (own, *prompt)
        # With the length, because numbers at the end that are 0 change nothing.
        words = [own, seen[key], len(prompt), *prompt]
        number = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
        found.append(torch.Generator().manual_seed(int(number) & MAX_SEED))
        seen[key] += 1
    return found
