"""Check and batch the sources of a sequence-to-sequence model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks._vocabulary import SymbolVocabulary
from dlblocks.fields import Padded, Ragged
from dlblocks.tasks.seq2seq import check_tokens

ROWS = 256  # sources at a time


def check_sequences(net: nn.Module, datamodule: Any) -> None:
    """Check that the sequences of a datamodule fit a net."""
    source, context = getattr(datamodule, "source", None), getattr(net, "context", None)
    known = getattr(net, "source_vocab_size", None)
    is_counted = getattr(datamodule, "source_vocab_size", None) is not None
    for argument, more in (("inputs", 0), ("targets", 1)):  # the separator begins a target
        for part in ("", "test_"):
            rows = getattr(source, part + argument, None)
            if not isinstance(rows, Ragged):
                continue
            if not is_counted and known is not None and argument == "inputs":
                check_tokens(part + argument, rows, known, "source_vocab_size")
            longest = int(rows.lengths.max()) + more
            if context is not None and longest > context:
                row = int(rows.lengths.argmax())
                raise ValueError(
                    f"{part}{argument} has {longest - more} tokens in row {row}, "
                    f"{'and one before them, ' * more}more than context={context} of "
                    f"{type(net).__name__}; set context={longest}, or cut the sequence."
                )


def check_entry(name: str, entry: Any, who: str) -> None:
    """Raise a `ValueError` unless an entry of a batch holds tokens."""
    values = entry.values if isinstance(entry, Padded) else entry
    is_tensor = isinstance(values, Tensor)
    if (
        not is_tensor
        or values.ndim != 2
        or values.is_floating_point()
        or values.dtype == torch.bool
    ):
        got = type(entry).__name__
        if is_tensor:
            got += f" of shape {tuple(values.shape)} and {values.dtype}"
        raise ValueError(
            f"{who} expects tokens as {name}, Padded or integers (N, T), got {got}; use "
            "Padded.of([…]) in your collate_fn."
        )
    if isinstance(entry, Padded):
        entry.check(name)


def read_source(
    net: nn.Module, vocabulary: SymbolVocabulary | None, argument: str, source: Any
) -> Tensor:
    """Return the tokens of a source, int64 of shape (S,).

    Args:
        net: Its tokens and context are known, if it has them as attributes.
        vocabulary: Encodes texts; None for tokens.
        argument: Name of the source in messages.
        source: A text, symbols, or tokens.

    Raises:
        ValueError: It has unknown symbols or tokens, is empty, or is too long.
    """
    context = getattr(net, "context", None)
    if vocabulary is not None:
        if not isinstance(source, str) and not all(isinstance(each, str) for each in source):
            raise ValueError(f"{argument} has tokens, and others are texts; give one of both.")
        vocabulary.check(argument, source)
        row = torch.from_numpy(vocabulary.encode(source))
    else:
        if isinstance(source, str):
            raise ValueError(f"{argument} is a text, and others are tokens; give one of both.")
        row = torch.as_tensor(source)
        if row.ndim != 1 or not len(row):
            raise ValueError(
                f"{argument} has shape {tuple(row.shape)}; give a list of sequences, "
                "each of one token or more, (S,)."
            )
        if row.is_floating_point() or row.dtype == torch.bool:
            raise ValueError(f"{argument} has values of {row.dtype}; tokens are whole numbers.")
        known = getattr(net, "source_vocab_size", None)
        if known is not None:
            check_tokens(argument, row[None], known, "source_vocab_size")
    if context is not None and len(row) > context:
        raise ValueError(
            f"{argument} has {len(row)} tokens, more than context={context} of the model; cut "
            "it, or train a model with a larger context."
        )
    return row.long()


def batches_of(
    rows: list[Tensor], is_padded: bool, device: torch.device
) -> Iterator[tuple[list[int], Tensor | Padded]]:
    """Yield places and sources as the net takes them.

    Sources are `Padded`, or of one length.
    """
    groups = [list(range(len(rows)))]
    if not is_padded:
        of_length = defaultdict(list)
        for place, row in enumerate(rows):
            of_length[len(row)].append(place)
        groups = list(of_length.values())
    for group in groups:
        for start in range(0, len(group), ROWS):
            places = group[start : start + ROWS]
            values, lengths = Padded.of([rows[place] for place in places])
            values = values.to(device)
            yield places, Padded(values, lengths.to(device)) if is_padded else values
