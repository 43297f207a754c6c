"""Vocabularies of characters, bytes or words, and windows of documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dlblocks._errors import listed

Ids = npt.NDArray[np.int64]

UNKNOWN = 0
SEPARATOR = 1  # before a document, and behind it
SPECIAL = 2  # tokens that are no text
IGNORED = -1  # label of targets that do not count


class Vocabulary:
    """Numbers of characters or bytes.

    Token 0 stands for unknown characters, and token 1 separates documents. The others are
    characters, or with `symbols` None the 256 bytes of UTF-8.

    Args:
        symbols: The characters in the order of their numbers, each once; None for bytes.
        unknown: Those of `symbols` that did not occur in training. They become token 0.

    Example:
        >>> vocabulary = Vocabulary("abc")
        >>> vocabulary.encode("cab"), vocabulary.decode([4, 2, 3])
        (array([4, 2, 3]), 'cab')
    """

    def __init__(self, symbols: str | None, unknown: str = "") -> None:
        self.symbols, self.unknown = symbols, unknown
        if symbols is None:
            self.size = SPECIAL + 256
            return
        self.size = SPECIAL + len(symbols)
        codes = _codes(symbols)
        self._order = np.argsort(codes)
        self._sorted = codes[self._order]
        self._known = ~np.isin(codes, _codes(unknown))

    def encode(self, text: str) -> Ids:
        """Return the tokens of a text, int64 of shape (T,)."""
        if self.symbols is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int64) + SPECIAL
        codes = _codes(text)
        if not len(self._sorted):
            return np.zeros(len(codes), np.int64)
        at = np.searchsorted(self._sorted, codes).clip(max=len(self._sorted) - 1)
        found = self._order[at]
        is_known = (self._sorted[at] == codes) & self._known[found]
        return np.where(is_known, found + SPECIAL, UNKNOWN)

    def decode(self, tokens: Sequence[int] | Ids) -> str:
        """Return the text of tokens.

        Separators are left out. Unknown characters, and bytes that are no UTF-8, become U+FFFD.
        """
        ids = np.asarray(tokens, np.int64)
        if self.symbols is None:
            ids = ids[ids >= SPECIAL] - SPECIAL
            return ids.astype(np.uint8).tobytes().decode(errors="replace")
        table = np.array(self.names)
        return "".join(table[ids])

    def check(self, argument: str, text: str) -> None:
        """Raise a `ValueError` that names characters of a text that are unknown."""
        wrong = np.flatnonzero(self.encode(text) == UNKNOWN)
        if len(wrong):
            names = list(dict.fromkeys(text[i] for i in wrong.tolist()))
            raise ValueError(
                f"{argument} has {listed(names)}, first at position "
                f"{wrong[0]}, which the training text does not have; remove it, or train with "
                "level='byte', which knows every character."
            )

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """True for tokens that may be part of a text, shape (V,)."""
        found = np.ones(self.size, bool)
        found[:SPECIAL] = False
        if self.symbols is not None:
            found[SPECIAL:] = self._known
        return found

    @property
    def names(self) -> list[str]:
        """One character for each token, for figures; "" for the separator."""
        symbols = map(chr, range(256)) if self.symbols is None else self.symbols
        return ["\ufffd", "", *symbols]

    @property
    def sizes(self) -> npt.NDArray[np.float64]:
        """Characters and bytes of each token, shape (V, 2).

        An unknown token counts for one of each. A character in bytes begins with its first.
        """
        found = np.zeros((self.size, 2))
        found[UNKNOWN] = 1
        if self.symbols is None:
            found[SPECIAL:, 0] = (np.arange(256) & 0xC0) != 0x80
            found[SPECIAL:, 1] = 1
        else:
            found[SPECIAL:, 0] = 1
            found[SPECIAL:, 1] = [len(each.encode()) for each in self.symbols]
        return found

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, of which `from_plain` makes the same vocabulary."""
        return {"symbols": self.symbols, "unknown": self.unknown}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Make a vocabulary of what `to_plain` returned."""
        return cls(values["symbols"], values.get("unknown", ""))


Level = Literal["character", "word"]


class SymbolVocabulary:
    """Numbers of the characters or words of texts.

    Token 0 stands for unknown symbols, and token 1 begins and ends a target. The others are the
    symbols.

    Args:
        symbols: In the order of their numbers, each once.
        level: ``"character"``, or ``"word"`` for texts that are split at spaces.
        unknown: Those of `symbols` that did not occur in training. They become token 0.

    Example:
        >>> vocabulary = SymbolVocabulary(["AH", "B"], "word")
        >>> vocabulary.encode("B AH"), vocabulary.decode([2, 3])
        (array([3, 2]), 'AH B')
    """

    def __init__(
        self, symbols: Sequence[str], level: Level = "character", unknown: Sequence[str] = ()
    ) -> None:
        self.symbols, self.level, self.unknown = list(symbols), level, list(unknown)
        self.size = SPECIAL + len(self.symbols)
        hidden = set(self.unknown)
        self._numbers = {
            symbol: number
            for number, symbol in enumerate(self.symbols, SPECIAL)
            if symbol not in hidden
        }

    def encode(self, text: str | Sequence[str]) -> Ids:
        """Return the tokens (T,) of a text or list of symbols, int64."""
        symbols = split_symbols(text, self.level)
        return np.array([self._numbers.get(each, UNKNOWN) for each in symbols], np.int64)

    def decode(self, tokens: Sequence[int] | Ids) -> str:
        """Return the text of tokens. Unknown symbols become U+FFFD."""
        names = ["\ufffd", "", *self.symbols]
        return ("" if self.level == "character" else " ").join(
            names[token] for token in np.asarray(tokens, np.int64).tolist() if token != SEPARATOR
        )

    def check(self, argument: str, text: str | Sequence[str]) -> None:
        """Raise a `ValueError` that names symbols of a text that are unknown."""
        symbols = split_symbols(text, self.level)
        wrong = [i for i, each in enumerate(symbols) if each not in self._numbers]
        if not len(symbols):
            raise ValueError(f"{argument} is an empty text; leave it out.")
        if wrong:
            names = list(dict.fromkeys(symbols[i] for i in wrong))
            raise ValueError(
                f"{argument} has {listed(names)}, first at position "
                f"{wrong[0]}, which the training data do not have; remove it."
            )

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """True for tokens of symbols that occurred in training, shape (V,)."""
        found = np.zeros(self.size, bool)
        found[list(self._numbers.values())] = True
        return found

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, of which `from_plain` makes the same vocabulary."""
        return {"symbols": self.symbols, "level": self.level, "unknown": self.unknown}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> SymbolVocabulary:
        """Make a vocabulary of what `to_plain` returned."""
        return cls(values["symbols"], values["level"], values.get("unknown", ()))


def split_symbols(text: str | Sequence[str], level: Level) -> Sequence[str]:
    """Return the symbols of a text.

    A list of symbols is returned unchanged.
    """
    if not isinstance(text, str):
        return text
    return text.split() if level == "word" else text


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def windows(length: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Cut a document of at least `size` targets into windows of `size`.

    Windows begin every `stride` targets. The last one ends with the document.

    Args:
        length: Number of targets.
        size: Targets of a window, at most `length`.
        stride: Targets from one window to the next, at most `size`.

    Yields:
        Start of a window, and how many of its first targets an earlier window has.

    Example:
        >>> list(windows(10, 4, 4)), list(windows(10, 4, 2))
        ([(0, 0), (4, 0), (6, 2)], [(0, 0), (2, 2), (4, 2), (6, 2)])
    """
    end = 0
    for start in range(0, length, stride):
        start = min(start, length - size)
        yield start, end - start if end else 0
        end = start + size
        if end == length:
            return


def cut(document: Ids, size: int, stride: int) -> Iterator[tuple[Ids, Ids, Ids]]:
    """Cut a document with its separators into windows.

    Args:
        document: Separator, tokens, separator, shape (n + 1,).
        size: Tokens of a window at most.
        stride: Tokens from one window to the next.

    Yields:
        Inputs and targets, shape (T,), and the targets of which each token of the document is one
        exactly once: those of an earlier window are `IGNORED`.
    """
    length = len(document) - 1
    if length <= size:
        yield document[:-1], document[1:], document[1:]
        return
    for start, old in windows(length, size, stride):
        targets = document[start + 1 : start + size + 1]
        once = targets.copy()
        once[:old] = IGNORED
        yield document[start : start + size], targets, once


def with_separators(tokens: Ids) -> Ids:
    """Put separators before and behind the tokens of a document."""
    return np.concatenate([[SEPARATOR], tokens, [SEPARATOR]])
