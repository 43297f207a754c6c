"""Turn new texts into blocks of tokens, as in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dlblocks._vocabulary import (
    Vocabulary,
)
from dlblocks.data._documents import pack, read_documents
from dlblocks.data.encoders import ENCODERS, Encoder, Samples


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
            found = read_documents(place, self.pattern, self.separator, self.encoding)
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
        inputs, _, once, _ = pack(tokens, self.block_size, self.stride)

        def chunks() -> Iterator[tuple[Any, Any]]:
            for some in torch.arange(len(inputs)).split(rows):
                yield [inputs[some].long(), once[some].long()], None

        return Samples(chunks(), "block", lambda: len(inputs), is_batched=True)


ENCODERS[TextEncoder.kind] = TextEncoder
