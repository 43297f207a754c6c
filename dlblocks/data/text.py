"""A datamodule of text for language models."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks._errors import check_choice, check_range, whole
from dlblocks._vocabulary import (
    SPECIAL,
    UNKNOWN,
    Vocabulary,
)
from dlblocks.data._documents import cut_sections, long_lines, pack, read_documents, without_repeats
from dlblocks.data._text_encoder import TextEncoder
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import Encoder
from dlblocks.data.source import Source
from dlblocks.fields import Tokens
from dlblocks.tasks import Predictions, PredictionTable

FEW = 20  # groups of documents: too few for usual splits
Repeats = Literal["remove", "group", "keep"]


class TextDataModule(DataModule):
    r"""Blocks of text for a language model, from any file or folder.

    A sample has `block_size` tokens of one document: inputs (T,), and targets (T,), which are one
    token further. Batches are ``[inputs, targets]``, int64 of shape (B, T); targets of padding are
    -1. A document begins and ends with a separator (token 1). Documents shorter than a block are
    packed into blocks together.

    In training all targets of a block count. For validation and test each character counts exactly
    once: where blocks of a document overlap, targets of the earlier block are -1 in the later one.
    With ``stride=block_size // 2`` a character is predicted from at least half a block, and in
    training each is seen in several contexts.

    Folds, validation part and a test set by `test_fraction` consist of whole documents. Documents
    in one block, and with ``repeats="group"`` those that share lines, stay together.

    The numbers of characters are those of the development set. Characters that the training part of
    a fold does not have, or less often than `min_count`, are token 0, unknown, there.

    Args:
        path: A file, or a folder of files, each of which is a document. None: the language
            reference that ships with Python (``pydoc_data.topics``), which differs between versions
            of Python.
        level: ``"character"``, or ``"byte"`` for those of UTF-8, 258 tokens for any text.
        block_size: Tokens of a block T.
        stride: Tokens from one block of a document to the next, at most `block_size`, which it is
            by default.
        separator: Text that separates the documents of a file, such as ``"\n\n"``.
        pattern: Names of files in a folder, such as ``"*.txt"``. Those in folders below count too.
        sections: A single document is cut at ends of lines into so many of about equal length.
        repeats: Lines of at least `min_repeat` characters that occur again, in any document:
            ``"remove"`` them, ``"group"`` documents that share one, or ``"keep"`` them. Such lines
            in test or validation part were seen in training, and make its result too good.
        min_repeat: Fewest characters of such a line, without spaces around it.
        min_count: How often a character must occur in the training part.
        test_tail: Share of the characters that are the official test set: the last documents.
        encoding: Of the files.
        **kwargs: Batches and splits; see `DataModule`.

    Raises:
        FileNotFoundError: There is no such file or folder, or no file in it.
        ValueError: There is no text, or a file has another encoding.

    Example:
        >>> data = TextDataModule(block_size=64)
        >>> data.input_shape, data.vocabulary.decode(data.vocabulary.encode("for x in y:"))
        ((64,), 'for x in y:')
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        level: Literal["character", "byte"] = "character",
        block_size: int = 128,
        stride: int | None = None,
        separator: str | None = None,
        pattern: str = "*",
        sections: int = 20,
        repeats: Repeats = "remove",
        min_repeat: int = 20,
        min_count: int = 1,
        test_tail: float = 0.0,
        encoding: str = "utf-8",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("level", level, ["character", "byte"])
        check_choice("repeats", repeats, ["remove", "group", "keep"])
        check_range("block_size", block_size, 1)
        check_range("sections", sections, 1)
        check_range("min_repeat", min_repeat, 1)
        check_range("min_count", min_count, 1)
        check_range("test_tail", test_tail, 0, 1, high_open=True)
        if stride is not None:
            check_range("stride", stride, 1, block_size)
        if separator == "":
            raise ValueError("separator='' separates nothing; leave it out, or give a text.")
        self.path = None if path is None else str(path)
        self.level, self.block_size = level, whole(block_size)
        self.stride = self.block_size if stride is None else whole(stride)
        self.separator, self.pattern, self.sections = separator, pattern, whole(sections)
        self.repeats, self.min_repeat, self.min_count = repeats, whole(min_repeat), whole(min_count)
        self.test_tail, self.encoding = test_tail, encoding
        self._unknown: Tensor | None = None  # tokens that do not occur in this fold's training part
        self.save_hyperparameters()

    # The text

    @cached_property
    def documents(self) -> dict[str, str]:
        """The documents of the development set by name, repeated lines removed."""
        return self._all_documents[0]

    @cached_property
    def test_documents(self) -> dict[str, str]:
        """The documents of `test_tail`."""
        return self._all_documents[1]

    @cached_property
    def raw_documents(self) -> dict[str, str]:
        """All documents by name, as they are in the files."""
        found = read_documents(self.path, self.pattern, self.separator, self.encoding)
        if len(found) == 1 and self.sections > 1:
            ((name, text),) = found.items()
            found = {
                f"{name}:{i}": part for i, part in enumerate(cut_sections(text, self.sections))
            }
        if not any(text.strip() for text in found.values()):
            raise ValueError(f"{_place(self.path)} has no text; a language model needs some.")
        return found

    @cached_property
    def _all_documents(self) -> tuple[dict[str, str], dict[str, str]]:
        found = self.raw_documents
        if self.repeats == "remove":
            found = without_repeats(found, self.min_repeat)
        names = [name for name, text in found.items() if text]
        total = sum(len(text) for text in found.values())
        first, size = len(names), 0
        while first > 1 and size < self.test_tail * total:
            first -= 1
            size += len(found[names[first]])
        return {n: found[n] for n in names[:first]}, {n: found[n] for n in names[first:]}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The numbers of all characters of the development set."""
        if self.level == "byte":
            return Vocabulary(None)
        return Vocabulary("".join(sorted(set().union(*self.documents.values()))))

    @property
    def vocab_size(self) -> int:
        """Number of tokens V, with those for unknown characters and between documents."""
        return self.vocabulary.size

    @property
    def token_sizes(self) -> Tensor:
        """Characters and bytes of each token, shape (V, 2)."""
        return torch.from_numpy(self.vocabulary.sizes)

    # The arrays

    def load(self) -> Source:
        blocks = self._blocks
        inputs, _, once, owners = blocks["train"]
        groups = self._groups[[some[0] for some in owners]]
        test: dict[str, Any] = {}
        if "test" in blocks:
            test = {"test_inputs": blocks["test"][0], "test_targets": blocks["test"][2]}
        kind = Tokens()
        return Source(inputs, once, groups=groups, input_kind=kind, target_kind=kind, **test)

    @cached_property
    def _blocks(self) -> dict[str, tuple[Tensor, Tensor, Tensor, list[list[int]]]]:
        """Inputs, targets, targets that count once, and the documents of each block."""
        parts = {"train": self.documents, "test": self.test_documents}
        return {
            part: pack(
                [self.vocabulary.encode(text) for text in documents.values()],
                self.block_size,
                self.stride,
            )
            for part, documents in parts.items()
            if documents
        }

    @cached_property
    def _groups(self) -> npt.NDArray[np.int64]:
        """The group of each document of the development set."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = [(some[0], each) for some in self._blocks["train"][3] for each in some]
        if self.repeats == "group":
            first: dict[str, int] = {}
            for number, text in enumerate(self.documents.values()):
                lines = long_lines(text, self.min_repeat)
                pairs += [(first.setdefault(line, number), number) for line in lines]
        count, (a, b) = len(self.documents), np.array(pairs).T
        graph = coo_array((np.ones(len(a)), (a, b)), (count, count))
        found: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1]
        return found

    def _split(self) -> None:
        try:
            super()._split()
        except ValueError as error:
            blocks, groups = len(self._blocks["train"][0]), len(np.unique(self._groups))
            if groups > FEW:
                raise
            raise ValueError(
                f"{_place(self.path)} is short: {blocks} blocks of block_size={self.block_size} "
                f"and stride={self.stride}, of {groups} documents, or groups of them that share a "
                f"block. {error} A smaller block_size, or more sections of a single document, "
                "gives more of them."
            ) from error

    def _fit_statistics(self) -> None:
        super()._fit_statistics()
        self._unknown = None
        if self.level == "byte":
            return
        once = self._blocks["train"][2]
        rows = self._rows["train"]
        counts = torch.zeros(self.vocab_size, dtype=torch.int64)
        for some in rows.split(1024):
            targets = once[some].long()
            counts += torch.bincount(targets[targets >= 0], minlength=self.vocab_size)
        rare = counts < self.min_count
        rare[:SPECIAL] = False
        if rare.any():
            self._unknown = rare

    def _part_arrays(self, part: str) -> tuple[Tensor, Any]:
        return self._without_unknown(*super()._part_arrays(part))

    def _loaded_arrays(self, part: str, training: bool) -> tuple[Tensor, Any]:
        if not training:
            return self._part_arrays(part)
        inputs, targets, _, _ = self._blocks["train"]
        return self._without_unknown(inputs, targets)

    def _without_unknown(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self._unknown is None:
            return inputs, targets
        return inputs.masked_fill(self._unknown[inputs.long()], UNKNOWN), targets.masked_fill(
            self._unknown[targets.clamp(min=0).long()] & (targets >= 0), UNKNOWN
        )

    @property
    def fold_vocabulary(self) -> Vocabulary:
        """The vocabulary with what the training part does not have as unknown."""
        self.setup()
        symbols = self.vocabulary.symbols
        if symbols is None or self._unknown is None:
            return self.vocabulary
        unknown = self._unknown[SPECIAL:].tolist()
        return Vocabulary(symbols, "".join(s for s, u in zip(symbols, unknown, strict=True) if u))

    def _make_encoder(self, **shared: Any) -> Encoder:
        return TextEncoder(
            **shared,
            block_size=self.block_size,
            stride=self.stride,
            separator=self.separator,
            pattern=self.pattern,
            encoding=self.encoding,
            **self.fold_vocabulary.to_plain(),
        )

    def with_inputs(self, table: PredictionTable, part: str, *, repeats: int = 1) -> Predictions:
        shown = super().with_inputs(table, part, repeats=repeats)
        shown.class_names = self.vocabulary.names  # for figures of the text
        return shown

    def description(self) -> str:
        parts = {"development": self.documents, "test": self.test_documents}
        said = [
            f"{len(texts)} documents of {sum(map(len, texts.values()))} characters ({part})"
            for part, texts in parts.items()
            if texts
        ]
        return f"{_place(self.path)}: {', '.join(said)}; {self.vocab_size} tokens."


def _place(path: str | None) -> str:
    return "pydoc_data.topics" if path is None else f"path={path!r}"
