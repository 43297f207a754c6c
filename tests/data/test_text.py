"""Text as blocks of tokens: documents, folds, repeated lines, vocabularies."""

from pydoc_data.topics import topics

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import dlblocks
from dlblocks._vocabulary import SEPARATOR, UNKNOWN, Vocabulary
from dlblocks.crossval import cross_validate
from dlblocks.data import TextDataModule
from dlblocks.data._documents import without_repeats
from dlblocks.models import GPTLanguageModel, RNNLanguageModel
from dlblocks.tasks import LanguageModelTask

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def folder_of_texts(path, count=12, seed=0):
    rng = np.random.default_rng(seed)
    path.mkdir(exist_ok=True)
    for i in range(count):
        words = rng.choice(WORDS, rng.integers(2, 40))
        (path / f"{i:02}.txt").write_text(" ".join(words) + f"\n{i}\n")
    return str(path)


@pytest.fixture
def texts(tmp_path):
    return folder_of_texts(tmp_path / "texts")


def tiny(data, **kwargs):
    return GPTLanguageModel(
        data.vocab_size, width=16, depth=1, num_heads=2, context=data.block_size, **kwargs
    )


@pytest.mark.parametrize("text", ["", "abc", "ünï ¢ € 𝄞", "zzz\n"])
@pytest.mark.parametrize("level", ["character", "byte"])
def test_vocabulary_returns_the_text(text, level):
    vocabulary = Vocabulary("".join(sorted(set(text))) if level == "character" else None)
    tokens = vocabulary.encode(text)
    assert vocabulary.decode(tokens) == text
    assert len(tokens) == len(text if level == "character" else text.encode())
    sizes = vocabulary.sizes[tokens]
    assert sizes.sum(0).tolist() == [len(text), len(text.encode())]


def test_unknown_characters_are_named():
    vocabulary = Vocabulary("abc", unknown="c")
    assert vocabulary.encode("abcd").tolist() == [2, 3, UNKNOWN, UNKNOWN]
    with pytest.raises(ValueError, match=r"prompt has 'd', 'c', first at position 1.*level='byte'"):
        vocabulary.check("prompt", "adcd")
    assert vocabulary.decode([2, 0, 1, 3]) == "a\ufffdb"


def test_a_text_that_is_too_short_names_the_size_of_its_blocks(tmp_path):
    (tmp_path / "tiny.txt").write_text("hello\nworld\n" * 9)
    with pytest.raises(ValueError, match=r"tiny.txt' is short: 1 blocks of block_size=128 and str"):
        TextDataModule(tmp_path / "tiny.txt").setup()


@pytest.mark.parametrize("stride", [8, 4, 3])
@pytest.mark.parametrize("level", ["character", "byte"])
def test_each_token_of_each_document_counts_once(texts, stride, level):
    data = TextDataModule(texts, block_size=8, stride=stride, level=level, repeats="keep")
    inputs, targets, once, owners = data._blocks["train"]
    counted = [data.vocabulary.decode(row[row >= 0]) for row in once.numpy()]
    by_document = {}
    for some, text in zip(owners, counted, strict=True):
        by_document.setdefault(tuple(some), []).append(text)
    documents = list(data.documents.values())
    for some, parts in by_document.items():
        assert "".join(parts) == "".join(documents[i] for i in some)
    separators = int((once == SEPARATOR).sum())
    assert separators == len(documents)  # the end of each is predicted once
    # targets are the inputs one place further, wherever both are of the block
    both = (targets[:, :-1] >= 0) & (inputs[:, 1:] >= 0)
    assert (inputs[:, 1:][both] == targets[:, :-1][both]).all()
    assert torch.equal(once[once >= 0], targets[once >= 0])
    assert (inputs[:, 0] == SEPARATOR).sum() >= len({tuple(o) for o in owners}) > 0


def test_short_documents_share_a_block_and_a_part(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n\n".join(f"{word}{i}" for i in range(40) for word in WORDS[:1]))
    data = TextDataModule(str(path), separator="\n\n", block_size=16, num_folds=3)
    blocks = data.source.inputs
    assert len(blocks) < 40
    assert ((blocks == SEPARATOR).sum(1) >= 2).all()
    texts = set(data.documents.values())
    for part in ("train", "val"):
        for row in data.arrays(part)[1].tolist():
            text = data.vocabulary.decode([t for t in row if t >= 0])
            assert text.startswith("alpha")
    assert len(texts) == 40


def test_no_document_is_in_two_parts(texts):
    data = TextDataModule(texts, block_size=8, num_folds=4, test_fraction=0.2)
    for fold in range(4):
        one = data.for_fold(fold, 4)
        parts = {
            part: {
                each for row in one.indices(part).tolist() for each in data._blocks["train"][3][row]
            }
            for part in ("train", "val", "test")
        }
        assert not parts["train"] & parts["val"]
        assert not (parts["train"] | parts["val"]) & parts["test"]


def test_repeated_lines_are_removed_or_kept_together(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    shared = "this line occurs in two of the documents\n"
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"only document {i} has this long line\n")
    for i in (1, 4):
        with open(folder / f"{i}.txt", "a") as file:
            file.write(shared)
    removed = TextDataModule(str(folder), block_size=16)
    assert sum(shared in text for text in removed.documents.values()) == 1
    assert shared in removed.documents["1.txt"]
    kept = TextDataModule(str(folder), block_size=16, repeats="group")
    assert sum(shared in text for text in kept.documents.values()) == 2
    groups = kept._groups
    assert groups[1] == groups[4]
    assert len(set(groups.tolist())) == 5
    assert without_repeats({"a": "x\nx\n"}, 20) == {"a": "x\nx\n"}  # short lines stay


def test_default_text_is_that_of_python():
    data = TextDataModule(block_size=256, test_tail=0.1)
    raw = sum(map(len, topics.values()))
    assert sum(map(len, data.raw_documents.values())) == raw
    sizes = [sum(map(len, part.values())) for part in (data.documents, data.test_documents)]
    assert 0.1 <= sizes[1] / sum(sizes) < 0.2
    assert sum(sizes) < 0.9 * raw  # it repeats itself
    long = [
        line.strip()
        for text in [*data.documents.values(), *data.test_documents.values()]
        for line in text.splitlines()
        if len(line.strip()) >= 20
    ]
    assert len(long) == len(set(long))
    assert data.source.test_inputs is not None


def test_vocabulary_is_that_of_the_training_part(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"text {'abcdef'[i].upper() * 3} of this document")
    data = TextDataModule(str(folder), block_size=8, num_folds=6)
    seen = set()
    for fold in range(6):
        one = data.for_fold(fold, 6)
        inputs, targets = next(iter(one_loader(one, "val")))
        unknown = one.fold_vocabulary.unknown
        assert len(unknown) == 1 and unknown in "ABCDEF"
        assert (inputs == UNKNOWN).any() and (targets == UNKNOWN).any()
        train = torch.cat([b[0] for b in one_loader(one, "train")])
        assert not (train == UNKNOWN).any()
        seen.add(unknown)
    assert seen == set("ABCDEF")
    # the numbers of characters are the same in all folds
    assert len({data.for_fold(f, 6).vocabulary.symbols for f in range(6)}) == 1


def one_loader(data, part):
    data.setup("fit")
    return data.train_dataloader() if part == "train" else data.val_dataloader()


def test_rare_characters_are_unknown(texts):
    data = TextDataModule(texts, block_size=8, min_count=3)
    assert data.fold_vocabulary.unknown
    counts = torch.bincount(torch.cat([b[0] for b in one_loader(data, "train")]).flatten())
    assert counts[UNKNOWN] > 0


def test_training_has_all_targets_and_validation_each_once(texts):
    data = TextDataModule(texts, block_size=8, stride=4, batch_size=500, repeats="keep")
    ((_, train),), ((_, val),) = one_loader(data, "train"), one_loader(data, "val")
    lengths = {name: len(text) + 1 for name, text in data.documents.items()}
    assert (val >= 0).sum() + data._blocks["train"][2][data.indices("train")].ge(0).sum() == sum(
        lengths.values()
    )
    assert (train >= 0).sum() > 1.5 * data._blocks["train"][2][data.indices("train")].ge(0).sum()


def test_cross_validation_pools_every_character(texts, tmp_path):
    data = TextDataModule(texts, block_size=16, batch_size=8, repeats="keep")
    result = cross_validate(
        lambda: tiny(data, lr=1e-2), data, num_folds=2, trainer={"max_epochs": 1},
        monitor="val/bits_per_character", mode="min", run_dir=tmp_path / "run", logger="none",
        progress_bar=False,
    )  # fmt: skip
    table = result.oof
    size = sum(map(len, data.documents.values()))
    assert table.characters.sum() == size
    assert table.prediction.shape == table.target.shape == (len(table), 16)
    pooled = result.pooled()
    nats = -np.log(table.prediction.astype(float))[table.target >= 0].sum()
    assert pooled["bits_per_token"] == pytest.approx(nats / np.log(2) / (table.target >= 0).sum())
    unknown = table.unknown.sum() * np.log2(0x110000)
    expected = (nats / np.log(2) + unknown) / size
    assert pooled["bits_per_character"] == pytest.approx(expected, rel=1e-5)
    assert pooled["bits_per_character"] < np.log2(0x110000)
    figures = LanguageModelTask.figures(data.with_inputs(table, "val"), title="out of fold")
    drawn = "".join(each.get_text() for each in figures["text"]().axes[0].texts)
    first = next(iter(data.documents.values()))[:40].replace("\n", "↵")
    assert drawn.startswith(first)
    assert (tmp_path / "run" / "figures" / "text.png").is_file()


def test_load_predicts_new_text(texts, tmp_path):
    data = TextDataModule(texts, block_size=16, stride=8)
    model = tiny(data)
    fit(model, data, tmp_path)
    model.save(tmp_path / "model.ckpt")
    found = dlblocks.load(tmp_path / "model.ckpt")
    new = "alpha beta xyz alpha beta gamma delta"
    table = found.predict([new, "eta"], progress_bar=False)
    assert table["prediction"].shape[1] == 16
    (tmp_path / "new.txt").write_text(new)
    same = found.predict(tmp_path / "new.txt", progress_bar=False)["prediction"]
    np.testing.assert_allclose(same, table["prediction"][: len(same)], rtol=1e-4)
    each = found.model.probabilities(new, stride=8)
    assert each.shape == (len(new) + 1,)
    once = -np.log(same).sum()  # 1 where a target does not count
    assert -np.log(each).sum() == pytest.approx(once, rel=1e-4)
    with pytest.raises(FileNotFoundError, match=r"give a text itself in a list: \[text\]"):
        found.predict("alpha beta", progress_bar=False)
    with pytest.raises(ValueError, match="data has no text"):
        found.predict(["", ""], progress_bar=False)


def fit(model, data, path, **kwargs):
    trainer = pl.Trainer(
        **{"max_epochs": 1, "logger": False, "accelerator": "cpu", "enable_progress_bar": False,
           "enable_checkpointing": False, "enable_model_summary": False,
           "default_root_dir": path, **kwargs}
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return trainer


class Plain(pl.LightningModule):
    """A module of a user, with batches as dictionaries."""

    def __init__(self, size):
        super().__init__()
        self.table = torch.nn.Linear(size, size)
        self.size = size
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["x"].dtype)
        logits = self.table(torch.nn.functional.one_hot(batch["x"], self.size).float())
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["y"].flatten(), ignore_index=-1
        )

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_of_a_user(texts, tmp_path):
    class Data(TextDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {"x": batch[0], "y": batch[1]}

    data = Data(texts, block_size=8, stride=4)
    model = Plain(data.vocab_size)
    trainer = fit(model, data, tmp_path)
    assert set(model.seen) == {torch.int64}
    assert 0 < trainer.callback_metrics["val/loss"] < 10


def test_rnn_fits_the_same_data(texts, tmp_path):
    data = TextDataModule(texts, block_size=8)
    model = RNNLanguageModel(data.vocab_size, width=8, hidden=12)
    trainer = fit(model, data, tmp_path)
    assert trainer.callback_metrics["val/bits_per_character"] < 3 * np.log2(data.vocab_size)


def test_bytes_and_characters_are_counted(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("ünï €\n" * 40)
    texts = [TextDataModule(str(path), level=lv, block_size=8, repeats="keep", val_fraction=0.5,
                            sections=4) for lv in ("character", "byte")]  # fmt: skip
    counts = []
    for data in texts:
        model = tiny(data)
        trainer = fit(model, data, tmp_path)
        metrics = trainer.callback_metrics
        counts.append(metrics["val/bits_per_character"] / metrics["val/bits_per_byte"])
    bytes_per_character = len("ünï €\n".encode()) / 6
    assert [float(c) for c in counts] == pytest.approx([bytes_per_character] * 2)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"path": "nowhere"}, FileNotFoundError, "path='nowhere' is neither a file nor a folder"),
        ({"path": "texts", "pattern": "*.md"}, FileNotFoundError, r"has no file '\*.md'"),
        ({"stride": 9, "block_size": 8}, ValueError, r"stride=9 is outside \[1, 8\]"),
        ({"level": "word"}, ValueError, "level='word'"),
        ({"separator": ""}, ValueError, "separator='' separates nothing"),
        ({"repeats": "drop"}, ValueError, "repeats='drop'"),
        ({"path": "empty.txt"}, ValueError, "path='empty.txt' has no text"),
        ({"path": "latin.txt"}, ValueError, "latin.txt is not utf-8 at byte 1.*encoding='latin-1'"),
    ],
)
def test_wrong_arguments(kwargs, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of_texts(tmp_path / "texts", count=2)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("hé".encode("latin-1"))
    with pytest.raises(error, match=message):
        _ = TextDataModule(**kwargs).source


def test_a_small_vocabulary_is_refused(texts, tmp_path):
    data = TextDataModule(texts, block_size=8)
    with pytest.raises(ValueError, match=f"has {data.vocab_size} tokens; set vocab_size="):
        fit(GPTLanguageModel(5, width=8, depth=1, num_heads=1, context=8), data, tmp_path)
    with pytest.raises(ValueError, match="sequences have 8 tokens, more than context=4"):
        model = GPTLanguageModel(data.vocab_size, width=8, depth=1, num_heads=1, context=4)
        fit(model, data, tmp_path)


def test_folds_with_other_vocabularies_predict_together(texts, tmp_path):
    (tmp_path / "texts" / "99.txt").write_bytes(("é" * 20).encode("latin-1"))
    settings = {"block_size": 16, "batch_size": 8, "encoding": "latin-1", "repeats": "keep"}
    data = TextDataModule(texts, **settings)
    cross_validate(
        lambda: tiny(data), data, num_folds=2, select="last", logger="none", figures=False,
        trainer={"max_epochs": 1, "limit_train_batches": 1}, progress_bar=False,
        run_dir=tmp_path / "run",
    )  # fmt: skip
    found = dlblocks.load(tmp_path / "run")
    assert "é" in found.encoder.unknown  # to one of two members
    table = found.predict(["alpha é"], progress_bar=False)
    single = [dlblocks.load(tmp_path / "run" / f"fold-{i}").model for i in range(2)]
    tokens = torch.tensor([[SEPARATOR, *data.vocabulary.encode("alpha "), UNKNOWN, SEPARATOR]])
    with torch.no_grad():
        each = torch.stack([model.eval()(tokens[:, :-1]).softmax(2) for model in single])
    chances = each.mean(0).gather(2, tokens[:, 1:, None])[0, :, 0]
    np.testing.assert_allclose(table.prediction[0, :8], chances, rtol=1e-4)

    # Generated text is that of the mean probabilities, without characters that a fold lacks.
    expected, tokens = "", [SEPARATOR, *data.vocabulary.encode("al")]
    allowed = torch.from_numpy(data.vocabulary.known)
    allowed[[SEPARATOR, data.vocabulary.encode("é")[0]]] = torch.tensor([True, False])
    for _ in range(4):
        with torch.no_grad():
            mean = sum(model(torch.tensor([tokens]))[0, -1].softmax(0) for model in single)
        tokens.append(int(mean.where(allowed, 0).argmax()))
        expected += data.vocabulary.decode(tokens[-1:])
        if tokens[-1] == SEPARATOR:
            break
    for use_cache in (True, False):
        said = found.generate(["al", "alpha"], 4, temperature=0, use_cache=use_cache)
        assert said[0] == expected

    # Files are read as in training.
    (tmp_path / "new.txt").write_bytes("alpha é".encode("latin-1"))
    same = found.predict(tmp_path / "new.txt", progress_bar=False)
    np.testing.assert_allclose(same.prediction, table.prediction, rtol=1e-5)
    with pytest.raises(TypeError, match="give texts"):
        found.predict({"text": ["alpha"]}, progress_bar=False)
