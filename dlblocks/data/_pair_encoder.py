"""Turn source texts into tokens, as in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlblocks._vocabulary import SymbolVocabulary
from dlblocks.data._pairs import check_text, joined, read_column, rows_of
from dlblocks.data.encoders import ENCODERS, Encoder, Samples
from dlblocks.fields import Padded


@dataclass
class SequencePairsEncoder(Encoder):
    """Encoder of texts for a model that makes others of them.

    Args:
        source_vocabulary: Plain values of the vocabulary of the sources.
        target_vocabulary: Likewise of the targets.
        source: Column of the sources.
        read_args: Arguments of `pandas.read_csv`.
    """

    kind: ClassVar[str] = "sequence_pairs"

    source_vocabulary: dict[str, Any] = field(default_factory=dict)
    target_vocabulary: dict[str, Any] = field(default_factory=dict)
    source: str = "source"
    read_args: dict[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> list[Any]:
        return [None]

    @property
    def input_dtype(self) -> str:
        return "int64"

    def read(self, data: Any, rows: int, **options: Any) -> Samples:
        """Open sources.

        Args:
            data: A list of texts or of lists of symbols, or a CSV file or DataFrame with the column
                of sources. Symbols that did not occur in training are token 0.
            rows: Samples of a batch.
            **options: Of tables.
        """
        if isinstance(data, (np.ndarray, Tensor)):
            return super().read(data, rows, **options)
        if isinstance(data, Path):
            data = str(data)
        if isinstance(data, str) and not Path(data).exists():
            raise FileNotFoundError(
                f"data={data[:60]!r} is not a file; give a text itself in a list: [text]."
            )
        if isinstance(data, str) or hasattr(data, "columns"):
            texts = read_column("data", data, self.source, self.read_args)
        else:
            texts = list(data)
        vocabulary = SymbolVocabulary.from_plain(self.source_vocabulary)
        tokens = []
        for row, text in enumerate(texts):
            check_text("data", row, text)
            tokens.append(torch.from_numpy(vocabulary.encode(text)))
            if not len(tokens[-1]):
                raise ValueError(f"data has an empty text in row {row}; remove it.")
        if not tokens:
            raise ValueError("data is empty; there is nothing to predict.")
        names = [joined(text, vocabulary.level) for text in texts]

        def chunks() -> Iterator[tuple[Any, Any]]:
            for start in range(0, len(tokens), rows):
                some = slice(start, start + rows)
                yield Padded.of(tokens[some]), names[some]

        return Samples(chunks(), self.source, lambda: len(tokens), is_batched=True)

    def decoded(self, prediction: Any) -> npt.NDArray[Any]:
        vocabulary = SymbolVocabulary.from_plain(self.target_vocabulary)
        return np.array([vocabulary.decode(row) for row in rows_of(prediction)])


ENCODERS[SequencePairsEncoder.kind] = SequencePairsEncoder
