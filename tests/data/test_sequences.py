"""Sequences of unequal length: padded batches, statistics of real steps, folds, predictions."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dlblocks
from dlblocks.callbacks import ExactResume, InputNoise, LabelSmoothing, MixUp
from dlblocks.crossval import cross_validate
from dlblocks.data import ArrayDataModule
from dlblocks.engine._support import NotVectorizable
from dlblocks.ensembles import GradientBoosting
from dlblocks.fields import Padded, Ragged, Tokens
from dlblocks.models import (
    MLPClassifier,
    RNNClassifier,
    RNNRegressor,
    TransformerClassifier,
    VotingEnsemble,
)
from dlblocks.nets import Preprocess

N = 24


def make_sequences(count=N, seed=0):
    """Three classes of sequences with 3 features of very different scale, 2 to 9 steps."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    scale = np.array([1.0, 100.0, 0.01])
    shift = np.array([5.0, -300.0, 0.0])
    rows = [
        (rng.normal(size=(rng.integers(2, 10), 3)) + c) * scale + shift for c in targets.tolist()
    ]
    return [row.astype(np.float32) for row in rows], targets


@pytest.fixture(scope="module")
def rows():
    return make_sequences()[0]


def make_data(rows, **kwargs):
    arguments = {"val_fraction": 0.25, "batch_size": 4}
    return ArrayDataModule(rows, np.arange(len(rows)) % 3, **(arguments | kwargs))


def make_model(**kwargs):
    return RNNClassifier(3, 3, kind="gru", hidden=4, lr=0.01, **kwargs)


# Padded and Ragged


def test_rows_are_padded_to_the_longest_of_the_batch():
    rows = [torch.randn(n, 2) for n in (3, 1, 5, 2)]
    ragged = Ragged.of(rows)
    assert ragged.shape == (4, None, 2) and ragged.lengths.tolist() == [3, 1, 5, 2]
    padded = ragged.padded(torch.tensor([3, 0, 3]))
    expected = nn.utils.rnn.pad_sequence([rows[3], rows[0], rows[3]], batch_first=True)
    assert torch.equal(padded.values, expected)
    assert padded.lengths.tolist() == [2, 3, 2]
    for one, row in zip(padded.sequences(), (3, 0, 3), strict=True):
        assert torch.equal(one, rows[row])
    assert padded.mask.sum(1).tolist() == [2, 3, 2]
    assert ragged.padded(torch.tensor([], dtype=torch.int64)).values.shape == (0, 0, 2)
    assert torch.equal(ragged.values[ragged.positions(torch.tensor([2, 1]))],
                       torch.cat([rows[2], rows[1]]))  # fmt: skip


def test_lengths_that_contradict_the_padding():
    padded = Padded.of([torch.ones(3, 2), torch.ones(1, 2)])
    padded.check()
    wrong = Padded(padded.values, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="length 0 in row 1, but step 0 is not 0"):
        wrong.check()
    with pytest.raises(ValueError, match="length 4 in row 0, but its values have 3 steps"):
        Padded(padded.values, torch.tensor([4, 1])).check()


# The datamodule


def given_as_lists(rows):
    return [row.tolist() for row in rows]


def given_as_objects(rows):
    made = np.empty(len(rows), dtype=object)
    made[:] = rows
    return made


@pytest.mark.parametrize("give", [list, Ragged.of, given_as_lists, given_as_objects])
def test_batches_are_padded_and_normalised_over_real_steps(rows, give):
    data = make_data(give(rows))
    data.setup("fit")
    train = [rows[i] for i in data.indices("train").tolist()]
    steps = np.concatenate(train).astype(np.float64)
    mean, std = steps.mean(0), steps.std(0)
    seen = []
    for batch in data.val_dataloader():
        inputs, targets = data.on_after_batch_transfer(batch, 0)
        assert isinstance(inputs, Padded) and inputs.lengths.dtype == torch.int64
        assert inputs.values.shape[1] == inputs.lengths.max()
        assert not inputs.values[~inputs.mask].any()
        seen += [*zip(inputs.sequences(), targets.tolist(), strict=True)]
    assert len(seen) == len(data.indices("val"))
    for (found, target), i in zip(seen, data.indices("val").tolist(), strict=True):
        np.testing.assert_allclose(found.numpy(), (rows[i] - mean) / std, atol=1e-4)
        assert target == i % 3
    back = data.inverse_transform(data.transform(data.arrays("val")[0]))
    torch.testing.assert_close(back.values, data.arrays("val")[0].values, rtol=1e-4, atol=1e-3)
    assert data.input_shape == (None, 3)
    with pytest.raises(AttributeError, match="unequal lengths"):
        _ = data.in_features


def test_a_data_set_gives_single_sequences(rows):
    data = make_data(rows)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    inputs, target, index = dataset[3]
    assert torch.equal(inputs, torch.from_numpy(rows[index])) and target == index % 3


def test_workers_load_the_same_batches(rows):
    batches = []
    for workers in (0, 1):
        data = make_data(rows, num_workers=workers)
        data.setup("fit")
        batches.append([*data.train_dataloader()])
    for (one, _), (other, _) in zip(*batches, strict=True):
        assert isinstance(other, Padded)
        assert torch.equal(one.values, other.values) and torch.equal(one.lengths, other.lengths)


def test_lists_of_equal_length_stay_arrays():
    data = make_data([np.ones((4, 3), np.float32) * i for i in range(N)])
    assert isinstance(data.source.inputs, torch.Tensor) and data.input_shape == (4, 3)
    data = make_data(Ragged.of([torch.ones(4, 3) * i for i in range(N)]))
    assert isinstance(data.arrays("val")[0], Padded)


def test_a_test_set_of_equal_lengths_is_padded_too(rows):
    test = np.stack([rows[0][:2]] * 3)
    data = make_data(rows, test_inputs=test, test_targets=[0, 1, 2])
    inputs, _, _ = data.arrays("test")
    assert isinstance(inputs, Padded) and inputs.lengths.tolist() == [2, 2, 2]
    assert data.shared_with_test() == 0
    data = make_data(rows, test_inputs=rows[:3], test_targets=[0, 1, 2])
    assert data.shared_with_test() == 3


def test_times_stay_precise(rows):
    """Steps in milliseconds since 1970, which float32 would round."""
    times = [np.cumsum(np.full((len(row), 1), 1000.0), 0) + 1.7e12 for row in rows]
    data = make_data(times)
    inputs = data.transform(data.arrays("train")[0])
    assert data.source.inputs.dtype == torch.float64 and inputs.values.dtype == torch.float32
    real = inputs.values[inputs.mask].double()
    assert abs(real.mean()) < 1e-3 and abs(real.std(correction=0) - 1) < 1e-3


def test_the_fingerprint_knows_values_and_lengths(rows):
    def of(rows):
        return make_data(rows).fingerprint()

    cut = [np.concatenate([rows[0], rows[1][:1]]), rows[1][1:], *rows[2:]]  # the same values
    assert of(rows) == of([*rows])
    assert of(rows) != of(cut)
    changed = [*rows[:-1], rows[-1] + 1]
    assert of(rows) != of(changed)


def test_duplicates_share_a_fold(rows):
    twice = [*rows[: N // 2], *rows[: N // 2]]
    data = make_data(twice, num_folds=3, groups="duplicates")
    for parts in data.splits(3):
        assert not {i % (N // 2) for i in parts["train"]} & {i % (N // 2) for i in parts["val"]}
    assert make_data(twice, num_folds=3).count_duplicates(3) > 0


def test_tokens_of_unequal_length():
    rows = [[1, 2, 3], [4], [5, 0], [6, 6, 6, 6]] * 3
    data = ArrayDataModule(rows, np.arange(12) % 2, input_kind="tokens", batch_size=12)
    assert data.kinds["inputs"] == Tokens()
    inputs, _, index = data.arrays("train")
    assert inputs.values.dtype == torch.int64
    assert [row.tolist() for row in inputs.sequences()] == [rows[i] for i in index.tolist()]
    assert torch.equal(data.transform(inputs).values, inputs.values)
    with pytest.raises(ValueError, match="set input_kind='tokens'"):
        ArrayDataModule(rows, np.arange(12) % 2).setup()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.__setitem__(5, x[5][:0]), "inputs has length 0 in row 5"),
        (lambda x: x[7].__setitem__((1, 2), np.nan), "nan.* in row 7, step 1, feature 2"),
        (lambda x: x.__setitem__(2, x[2][:, :2]), r"\(.*, 3\) in row 0 and \(.*, 2\) in row 2"),
        (lambda x: x.__setitem__(slice(None), [r.T for r in x]), r"transpose them with"),
        (lambda x: x.__setitem__(slice(None), [r[:, 0] for r in x]), r"use \[x\[:, None\]"),
    ],
)
def test_bad_sequences_are_errors(rows, change, message):
    rows = [row.copy() for row in rows]
    change(rows)
    with pytest.raises(ValueError, match=message):
        make_data(rows).setup("fit")


def test_images_and_transforms_of_unequal_size_are_refused(rows):
    with pytest.raises(ValueError, match="unequal lengths, which kind 'image' does not take"):
        make_data([row[:, None, None] for row in rows], input_kind="image").setup()
    with pytest.raises(ValueError, match=r"train_transform=.* leave it out"):
        make_data(rows, train_transform=lambda x: x).setup()


# Models


@pytest.mark.parametrize("callback", [MixUp(), InputNoise(std=0.1)])
def test_callbacks_that_would_change_padding_are_refused(rows, callback, make_trainer):
    name = type(callback).__name__
    with pytest.raises(ValueError, match=f"{name} cannot act on sequences of unequal length"):
        make_trainer(callbacks=[callback]).fit(make_model(), datamodule=make_data(rows))
    loader = torch.utils.data.DataLoader(
        [(torch.ones(2, 3), 0), (torch.ones(1, 3), 1)],
        batch_size=2,
        collate_fn=lambda some: [Padded.of([x for x, _ in some]), torch.tensor([0, 1])],
    )
    with pytest.raises(ValueError, match=f"{name} cannot act on sequences of unequal length"):
        make_trainer(callbacks=[callback]).fit(make_model(), loader, loader)


def test_label_smoothing_acts_on_targets_alone(rows, make_trainer):
    make_trainer(callbacks=[LabelSmoothing(0.1)]).fit(make_model(), datamodule=make_data(rows))


def test_a_net_of_one_shape_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match="MLP needs inputs of one shape, but the sequences of"):
        make_trainer().fit(MLPClassifier(3, 3), datamodule=make_data(rows))


def test_statistics_of_arrays_do_not_fit_padded_batches():
    preprocess = Preprocess(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="statistics of 3 channels of inputs"):
        preprocess(Padded(torch.ones(2, 3, 3), torch.tensor([3, 2])))


class Theirs(pl.LightningModule):
    """A module of somebody else, with batches that are dictionaries."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, inputs):
        packed = nn.utils.rnn.pack_padded_sequence(
            inputs.values, inputs.lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.head(self.layer(packed)[1][0])

    def training_step(self, batch, batch_idx):
        inputs, targets = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
        return F.cross_entropy(self(inputs), targets)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def dictionaries(rows):
    samples = [(torch.from_numpy(row), i % 3) for i, row in enumerate(rows)]
    return torch.utils.data.DataLoader(
        samples,
        batch_size=4,
        collate_fn=lambda some: {
            "x": Padded.of([x for x, _ in some]),
            "y": torch.tensor([y for _, y in some]),
        },
    )


def test_modules_of_others_get_padded_batches(rows, make_trainer):
    make_trainer().fit(Theirs(), datamodule=make_data(rows))
    make_trainer().fit(Theirs(), dictionaries(rows), dictionaries(rows))
    with pytest.raises(ValueError, match="MixUp cannot act on sequences of unequal length"):
        make_trainer(callbacks=[MixUp(input_key="x", target_key="y")]).fit(
            Theirs(), dictionaries(rows), dictionaries(rows)
        )


def test_wrong_padding_of_a_loader_is_an_error(make_trainer):
    inputs = Padded(torch.ones(2, 3, 3), torch.tensor([3, 2]))
    loader = torch.utils.data.DataLoader(
        [0, 1], batch_size=2, collate_fn=lambda _: [inputs, torch.tensor([0, 1])]
    )
    with pytest.raises(ValueError, match="length 2 in row 1, but step 2 is not 0"):
        make_trainer().fit(make_model(), loader, loader)
    inputs = Padded(torch.ones(2, 3, 3), torch.tensor([3, 3]))
    alone = torch.utils.data.DataLoader([0, 1], batch_size=2, collate_fn=lambda _: inputs)
    with pytest.raises(ValueError, match=r"expects batches \[inputs, targets\]"):
        make_trainer().fit(make_model(), alone, alone)


def test_a_regressor_predicts_values_in_their_units(rows, make_trainer):
    targets = np.array([1000.0 + len(row) for row in rows], np.float32)
    data = ArrayDataModule(rows, targets, val_fraction=0.25, batch_size=8)
    model = RNNRegressor(3, kind="gru", hidden=4, lr=0.001, standardize_targets=True)
    trainer = make_trainer()
    trainer.fit(model, datamodule=data)
    found = torch.cat([batch["prediction"] for batch in trainer.predict(model, datamodule=data)])
    index = data.indices("val")
    alone = torch.cat([model(data.source.inputs[i][None])[:, 0] for i in index.tolist()])
    assert found.shape == (6,) and (found - 1000).abs().max() < 50
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-3)


# A run


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    data = make_data(make_sequences(60)[0], test_fraction=0.2, batch_size=8)
    return cross_validate(
        make_model,
        data,
        num_folds=2,
        trainer={"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        engine="auto",
        run_dir=tmp_path_factory.mktemp("run") / "out",
        logger="none",
        figures=False,
    )


def test_cross_validation_predicts_each_sequence_once(result):
    assert sorted(result.oof["index"].tolist()) == list(range(48)) or len(result.oof["index"]) == 48
    assert result.oof["prediction"].shape == (48, 3)
    assert "inputs of unequal length have no common shape" in str(result.summary())


def test_the_vectorized_engine_refuses(rows):
    with pytest.raises(NotVectorizable, match="inputs of unequal length have no common shape"):
        cross_validate(
            make_model,
            make_data(rows),
            num_folds=2,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
            engine="vectorized",
            run_dir="out",
            logger="none",
        )


def test_loaded_models_predict_lists_of_sequences(result):
    rows = make_sequences(7, seed=1)[0]
    predictor = dlblocks.load(result.run_dir)
    found = predictor.predict(rows, progress_bar=False).to_pandas()
    assert len(found) == 7
    model = predictor.model.eval()
    with torch.no_grad():
        single = torch.cat([model(torch.from_numpy(row)[None]).softmax(-1) for row in rows])
    probabilities = found.filter(like="probability").to_numpy()
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-5
    one = predictor.predict([rows[2]], progress_bar=False).to_pandas().filter(like="probability")
    np.testing.assert_allclose(one.to_numpy()[0], probabilities[2], atol=1e-5)
    assert single.shape == (7, 3)
    same = predictor.predict(np.stack([rows[0][:2]] * 2), progress_bar=False)
    assert len(same.to_pandas()) == 2
    for bad, message in (
        ([rows[0], rows[1][:, :2]], r"shape \(.*, 2\) in row 1, .* sequences \(T, 3\)"),
        ([rows[0][:0]], "length 0 in row 0"),
        ([], "data is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(bad, progress_bar=False)
    with pytest.raises(TypeError, match="give a list of arrays"):
        predictor.predict("x.npy", progress_bar=False)


def test_a_saved_model_keeps_its_statistics(result, tmp_path):
    rows = make_sequences(5, seed=1)[0]
    predictor = dlblocks.load(result.run_dir)
    predictor.save(tmp_path / "model.pt")
    before = predictor.predict(rows, progress_bar=False).to_pandas()
    after = dlblocks.load(tmp_path / "model.pt").predict(rows, progress_bar=False).to_pandas()
    assert before.equals(after)


def test_export_of_padded_recurrent_nets_is_refused(result, tmp_path):
    with pytest.raises(ValueError, match="recurrent nets over sequences of unequal length cannot"):
        dlblocks.load(result.run_dir).export(tmp_path / "model.pt2")


@pytest.mark.parametrize("ending", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def test_export_of_a_padded_transformer(rows, ending, make_trainer, tmp_path):
    model = TransformerClassifier(3, 3, width=8, depth=1, num_heads=2)
    data = make_data(rows)
    make_trainer(limit_train_batches=1).fit(model, datamodule=data)
    predictor, path = dlblocks.load(model), tmp_path / f"model.{ending}"
    predictor.export(path)
    values, lengths = data.arrays("val")[0]
    expected = predictor.predict(rows_of(data), progress_bar=False).to_pandas()
    if ending == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        (found,) = session.run(None, {"inputs": values.numpy(), "lengths": lengths.numpy()})
    else:
        found = torch.export.load(path).module()(values, lengths)[0].detach().numpy()
    np.testing.assert_allclose(found, expected.filter(like="probability").to_numpy(), atol=1e-5)


def rows_of(data):
    return data.arrays("val")[0].sequences()


def test_ensembles_average_padded_batches(rows, make_trainer):
    data = make_data(rows)
    members = [make_model(), make_model()]
    for member in members:
        make_trainer(limit_train_batches=1).fit(member, datamodule=data)
    ensemble = VotingEnsemble(members)
    (found,) = make_trainer().predict(ensemble, datamodule=data)[:1]
    raw, _, index = data.arrays("val")
    with torch.no_grad():
        each = torch.stack([m.eval()(raw).softmax(-1) for m in members])
    order = torch.argsort(found["index"])
    here = torch.isin(index, found["index"])
    torch.testing.assert_close(found["prediction"][order], each.mean(0)[here])


def test_boosting_is_refused(rows):
    data = ArrayDataModule(rows, np.arange(N, dtype=np.float32), val_fraction=0.25)
    boosting = GradientBoosting(
        lambda: RNNRegressor(3, kind="gru", hidden=4),
        data,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        run_dir="boosted",
        logger="none",
    )
    with pytest.raises(ValueError, match="needs inputs of one shape, but the sequences of"):
        boosting.fit()


def test_a_fit_resumes_exactly(rows, make_trainer):
    def fit(epochs, path=None):
        torch.manual_seed(0)
        model = make_model(dropout=0.3)
        trainer = make_trainer(
            max_epochs=epochs,
            callbacks=[ExactResume(dirpath=f"{epochs}")],
            enable_checkpointing=True,
        )
        trainer.fit(model, datamodule=make_data(rows), ckpt_path=path)
        return model

    fit(1)
    resumed, whole = fit(3, next(Path("1").glob("*.ckpt"))), fit(3)
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_attention_of_raw_sequences(rows, make_trainer):
    model = TransformerClassifier(3, 3, width=8, depth=2, num_heads=2, dropout=0.5)
    data = make_data(rows)
    make_trainer().fit(model, datamodule=data)
    model.train()
    raw = data.arrays("val")[0]
    maps = model.attention_maps(raw)
    assert model.training and len(maps) == 2
    expected = model.net.eval().attention_maps(data.transform(raw))
    torch.testing.assert_close(maps[1], expected[1])
