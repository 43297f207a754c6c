"""A datamodule of text for language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks._errors import check_choice, check_range, whole
from dlblocks._text import (
    IGNORED,
    SEPARATOR,
    SPECIAL,
    UNKNOWN,
    Ids,
    Vocabulary,
    cut,
    with_separators,
)
from dlblocks.data.datamodule import DataModule
from dlblocks.data.encoders import ENCODERS, Encoder, Samples
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
        found = _read(self.path, self.pattern, self.separator, self.encoding)
        if len(found) == 1 and self.sections > 1:
            ((name, text),) = found.items()
            found = {f"{name}:{i}": part for i, part in enumerate(_sections(text, self.sections))}
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
            part: _pack(
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
                lines = _lines(text, self.min_repeat)
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


def _read(path: str | None, pattern: str, separator: str | None, encoding: str) -> dict[str, str]:
    """Return documents by name, in the order of the names."""
    if path is None:
        from pydoc_data.topics import topics

        found = {name: topics[name] for name in sorted(topics)}
    elif Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob(pattern) if file.is_file())
        if not files:
            raise FileNotFoundError(f"path={path!r} has no file {pattern!r}.")
        found = {file.relative_to(path).as_posix(): _text(file, encoding) for file in files}
    elif Path(path).is_file():
        found = {Path(path).name: _text(Path(path), encoding)}
    else:
        raise FileNotFoundError(f"path={path!r} is neither a file nor a folder.")
    if separator is None:
        return found
    parts = {name: text.split(separator) for name, text in found.items()}
    return {f"{name}:{i}": part for name, some in parts.items() for i, part in enumerate(some)}


def _text(file: Path, encoding: str) -> str:
    try:
        return file.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not {encoding} at byte {error.start}; set encoding=, such as "
            "encoding='latin-1', or pattern= to leave the file out."
        ) from error


def _sections(text: str, count: int) -> list[str]:
    """Cut a text at line ends into parts of similar length."""
    found = [""]
    for line in text.splitlines(keepends=True):
        if len(found) < count and len(found[-1]) >= len(text) / count:
            found.append("")
        found[-1] += line
    return found


def _lines(text: str, least: int) -> Iterator[str]:
    for line in text.splitlines():
        if len(line.strip()) >= least:
            yield line.strip()


def without_repeats(documents: Mapping[str, str], least: int) -> dict[str, str]:
    r"""Remove lines that occurred before, in any document.

    Args:
        documents: Texts by name.
        least: Fewest characters of such a line, without spaces around it.

    Example:
        >>> without_repeats({"a": "one line\nx\n", "b": "x\n one line\ntwo"}, 5)
        {'a': 'one line\nx\n', 'b': 'x\ntwo'}
    """
    seen: set[str] = set()
    found = {}
    for name, text in documents.items():
        kept = []
        for line in text.splitlines(keepends=True):
            key = line.strip()
            if len(key) >= least:
                if key in seen:
                    continue
                seen.add(key)
            kept.append(line)
        found[name] = "".join(kept)
    return found


def _pack(
    documents: Sequence[Ids], size: int, stride: int
) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Cut long documents into blocks, and join short ones.

    Returns:
        Inputs, targets and targets that count once, each (N, size), and the
        documents of each block.
    """
    columns: tuple[list[Ids], ...] = [], [], []
    owners: list[list[int]] = []
    room = 0
    for number, tokens in enumerate(documents):
        document = with_separators(tokens)
        if len(document) - 1 <= room:  # behind another short one
            for column, part in zip(columns, next(cut(document, size, stride)), strict=True):
                column[-1] = np.concatenate([column[-1], part])
            room -= len(document) - 1
            owners[-1].append(number)
            continue
        for window in cut(document, size, stride):
            for column, part in zip(columns, window, strict=True):
                column.append(part)
            owners.append([number])
        room = size - len(columns[0][-1])
    filled = []
    for column, empty in zip(columns, (SEPARATOR, IGNORED, IGNORED), strict=True):
        array = np.full((len(column), size), empty, np.int32)
        for row, part in zip(array, column, strict=True):
            row[: len(part)] = part
        filled.append(torch.from_numpy(array))
    return filled[0], filled[1], filled[2], owners


@dataclass
class TextEncoder(Encoder):
    """Encoder of files, folders and lists of texts.

    Args:
        symbols: The characters in the order of their numbers; None for bytes.
        unknown: Those that did not occur in training.
        block_size: Tokens of a block T.
        stride: Tokens from one block of a document to the next.
        separator: Text that separates the documents of a file, or None.
        pattern: Names of files in a folder.
        encoding: Of the files.
    """

    kind: ClassVar[str] = "text"

    symbols: str | None = None
    unknown: str = ""
    block_size: int = 128
    stride: int = 128
    separator: str | None = None
    pattern: str = "*"
    encoding: str = "utf-8"

    @property
    def input_shape(self) -> list[int]:
        return [self.block_size]

    @property
    def input_dtype(self) -> str:
        return "int64"

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        """Open texts, whose samples are blocks.

        Args:
            data: A file, a folder, or a list of texts, each a document. Characters that did
                not occur in training are token 0.
            rows: Samples of a batch.
            **options: Of tables.
        """
        if isinstance(data, (np.ndarray, Tensor)):
            return super().read(data, rows, **options)
        if isinstance(data, (str, Path)):
            place = str(data)
            if not Path(place).exists():
                raise FileNotFoundError(
                    f"data={place[:60]!r} is neither a file nor a folder; give a text itself in a "
                    "list: [text]."
                )
            found = _read(place, self.pattern, self.separator, self.encoding)
            texts = list(found.values())
        elif hasattr(data, "columns") or isinstance(data, Mapping):
            raise TypeError(
                f"data is a {type(data).__name__}; give texts, such as list(data['text'])."
            )
        else:
            texts = list(data)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"data[{number}] is a {type(text).__name__}; give texts.")
        vocabulary = Vocabulary(self.symbols, self.unknown)
        tokens = [vocabulary.encode(text) for text in texts if text]
        if not tokens:
            raise ValueError("data has no text; there is nothing to predict.")
        inputs, _, once, _ = _pack(tokens, self.block_size, self.stride)

        def chunks() -> Iterator[tuple[Any, Any]]:
            for some in torch.arange(len(inputs)).split(rows):
                yield [inputs[some].long(), once[some].long()], None

        return Samples(chunks(), "block", lambda: len(inputs), is_batched=True)


ENCODERS[TextEncoder.kind] = TextEncoder
