"""Read documents, and cut them into blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlblocks._vocabulary import (
    IGNORED,
    SEPARATOR,
    Ids,
    cut,
    with_separators,
)


def read_documents(
    path: str | None, pattern: str, separator: str | None, encoding: str
) -> dict[str, str]:
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


def cut_sections(text: str, count: int) -> list[str]:
    """Cut a text at line ends into parts of similar length."""
    found = [""]
    for line in text.splitlines(keepends=True):
        if len(found) < count and len(found[-1]) >= len(text) / count:
            found.append("")
        found[-1] += line
    return found


def long_lines(text: str, least: int) -> Iterator[str]:
    """Yield lines with at least so many characters, without spaces around them."""
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


def pack(
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
