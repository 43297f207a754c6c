"""Find the likeliest sequence of an encoder-decoder net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlblocks.fields import Padded


@dataclass
class Search:
    """Rules by which a target is chosen.

    Args:
        num_beams: Unfinished targets that are kept at each step. 1: greedy, always the likeliest
            token, the first of equal ones.
        length_penalty: α, by which targets of different lengths are compared; see `beam_search`.
        max_new_tokens: Most tokens of a target, without the separator.
        separator: Token that begins and ends a target.
        allowed: Tokens that may be chosen, bool of shape (V,), or None for all. The separator is
            allowed in any case.
    """

    num_beams: int
    length_penalty: float
    max_new_tokens: int
    separator: int
    allowed: Tensor | None = None

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities among the allowed tokens, float64 (N, V)."""
        logits = logits.double()
        if self.allowed is not None:
            allowed = self.allowed.to(logits.device).clone()
            allowed[self.separator] = True
            logits = logits.masked_fill(~allowed, -torch.inf)
        return logits.log_softmax(1)

    def normalized(self, total: Tensor, length: int) -> Tensor:
        """Divide log-probabilities of targets of `length` tokens, with the separator."""
        found: Tensor = total / float(length) ** self.length_penalty
        return found


class Found:
    """A target, without separators, and its score."""

    def __init__(self, tokens: list[int], score: float) -> None:
        self.tokens, self.score = tokens, score


@torch.no_grad()
def search(
    net: Any, inputs: Tensor | Padded, rules: Search, *, use_cache: bool = True
) -> list[Found]:
    """Find a target for each source.

    Args:
        net: Encoder-decoder net, in evaluation mode.
        inputs: Sources, on the device of the net, in the form that the net takes.
        rules: How to choose.
        use_cache: Compute only the new token in each step, if the net can.
    """
    if not _count(inputs):
        return []
    make = _Cached if use_cache and hasattr(net, "start") else _Full
    decoder = make(net, inputs, rules)
    return greedy(decoder, rules) if rules.num_beams == 1 else beam_search(decoder, rules)


def _count(inputs: Tensor | Padded) -> int:
    return len(inputs.values if isinstance(inputs, Padded) else inputs)


class _Cached:
    """Compute logits of the next token by a net with ``start`` and ``step``."""

    def __init__(self, net: Any, inputs: Tensor | Padded, rules: Search) -> None:
        self.net, self.count, self.device = net, _count(inputs), inputs.device
        self.state = net.start(inputs, rules.max_new_tokens + 1)

    def next(self, written: Tensor) -> Tensor:
        """Return logits (N, V) after tokens (N, T)."""
        found: Tensor = self.net.step(written[:, -1], self.state)
        return found

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows, each any number of times."""
        self.state = self.state[rows]


class _Full:
    """Compute logits of the next token by any net ``(inputs, tokens)``, anew in each step."""

    def __init__(self, net: Any, inputs: Tensor | Padded, rules: Search) -> None:
        self.net, self.inputs, self.device = net, inputs, inputs.device
        self.count = _count(inputs)

    def next(self, written: Tensor) -> Tensor:
        found: Tensor = self.net(self.inputs, written)[:, -1]
        return found

    def keep(self, rows: Tensor) -> None:
        if isinstance(self.inputs, Padded):
            self.inputs = Padded(self.inputs.values[rows], self.inputs.lengths[rows])
        else:
            self.inputs = self.inputs[rows]


Decoder = _Cached | _Full


def greedy(decoder: Decoder, rules: Search) -> list[Found]:
    """Take the likeliest token in each step."""
    found = [Found([], -torch.inf) for _ in range(decoder.count)]
    device = decoder.device
    rows = torch.arange(decoder.count, device=device)  # of the sources that are not finished
    written = torch.full((decoder.count, 1), rules.separator, device=device)
    total = torch.zeros(decoder.count, dtype=torch.float64, device=device)
    ended = torch.zeros(decoder.count, dtype=torch.bool, device=device)
    for length in range(1, rules.max_new_tokens + 2):
        chances = rules.log_probabilities(decoder.next(written))
        token = chances.argmax(1)
        is_last = length > rules.max_new_tokens
        if not is_last:
            total = total + chances.gather(1, token[:, None])[:, 0]
        now = ~ended & ((token == rules.separator) | is_last)
        scores = rules.normalized(total, max(1, length - is_last))
        for place in now.nonzero()[:, 0].tolist():
            found[int(rows[place])] = Found(written[place, 1:].tolist(), float(scores[place]))
        ended |= now
        if ended.all():
            break
        written = torch.cat([written, token[:, None]], 1)
        if 2 * int(ended.sum()) >= len(ended):  # a copy costs more than a few finished rows
            alive = (~ended).nonzero()[:, 0]
            decoder.keep(alive)
            rows, written, total = rows[alive], written[alive], total[alive]
            ended = ended[alive]
    return found


def beam_search(decoder: Decoder, rules: Search) -> list[Found]:
    """Keep the likeliest beginnings, and return the best target found.

    The score of a target of n tokens, with the separator that ends it, is its log-probability
    divided by n^α. Every beginning that is kept may end in each step, and leaves its place to
    others. Log-probabilities only fall, so the search of a source stops when no beginning can lead
    to a higher score any more. Enough beams find the best of all targets.

    The source and its length have no part in the score.
    """
    alpha, separator, device = rules.length_penalty, rules.separator, decoder.device
    count = decoder.count
    best = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
    found = [Found([], -torch.inf) for _ in range(count)]
    rows = torch.arange(count, device=device)
    written = torch.full((count, 1, 1), separator, device=device)  # (N, K, T)
    total = torch.zeros(count, 1, dtype=torch.float64, device=device)  # (N, K)
    for length in range(1, rules.max_new_tokens + 2):
        chances = rules.log_probabilities(decoder.next(written.flatten(0, 1)))
        totals = total[..., None] + chances.view(*total.shape, -1)  # (N, K, V)
        value, place = rules.normalized(totals[..., separator], length).max(1)
        for i in (value > best[rows]).nonzero()[:, 0].tolist():
            found[int(rows[i])] = Found(written[i, place[i], 1:].tolist(), float(value[i]))
        best[rows] = torch.maximum(best[rows], value)
        if length > rules.max_new_tokens:
            break
        totals[..., separator] = -torch.inf
        beams, vocab = totals.shape[1:]
        total, chosen = totals.flatten(1).topk(min(rules.num_beams, beams * vocab), 1)
        parent, token = chosen // vocab, chosen % vocab  # (N, K)
        # A live beginning reaches most if all further tokens have probability 1.
        longest = rules.max_new_tokens + 1 if alpha > 0 else length + 1
        alive = (rules.normalized(total[:, 0], longest) > best[rows]).nonzero()[:, 0]
        if not len(alive):
            break
        rows, total, parent, token = rows[alive], total[alive], parent[alive], token[alive]
        old = parent + alive[:, None] * beams
        decoder.keep(old.flatten())
        written = torch.cat([written.flatten(0, 1)[old], token[..., None]], 2)
    return found
