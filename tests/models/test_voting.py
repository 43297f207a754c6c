import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.ensemble import VotingClassifier as SklearnVoting
from sklearn.preprocessing import LabelEncoder
from torch import nn

from dlblocks.data import DigitsDataModule, TabularDataModule
from dlblocks.models import (
    Classifier,
    CNNClassifier,
    MLPClassifier,
    MLPRegressor,
    Model,
    VotingEnsemble,
    load,
)

INPUTS = torch.rand(40, 64)


def classifiers(count=3):
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        models.append(MLPClassifier(64, 10, hidden=[8 + seed]).eval())
    return models


class Fitted:
    """One of our models in scikit-learn's clothes."""

    def __init__(self, model):
        self.model, self.classes_ = model, np.arange(10)

    def predict_proba(self, inputs):
        with torch.no_grad():
            return self.model(torch.from_numpy(inputs)).softmax(1).numpy()

    def predict(self, inputs):
        return self.predict_proba(inputs).argmax(1)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_votes_are_scikit_learns(voting):
    models = classifiers()
    theirs = SklearnVoting([(str(i), None) for i in range(3)], voting=voting)
    theirs.estimators_ = [Fitted(model) for model in models]
    theirs.le_ = LabelEncoder().fit(np.arange(10))
    theirs.classes_ = theirs.le_.classes_
    ours = VotingEnsemble(models, voting=voting).eval()
    with torch.no_grad():
        found = ours(INPUTS).softmax(1)
    if voting == "soft":
        expected = theirs.predict_proba(INPUTS.numpy())
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found.argmax(1), theirs.predict(INPUTS.numpy()))


def test_confident_members_give_finite_logits():
    models = classifiers(2)
    for model, scale in zip(models, (1e4, -1e4), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
    for voting in ("soft", "hard"):
        assert VotingEnsemble(models, voting=voting)(INPUTS).isfinite().all()


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_uncertainty_and_spread_are_those_of_the_members(make_trainer, voting):
    models = classifiers(4)
    ours = VotingEnsemble(models, voting=voting).eval()
    with torch.no_grad():
        shares = torch.stack([model(INPUTS).softmax(1) for model in models]).double().numpy()
    found = ours.uncertainty(INPUTS)
    total = entropy(shares.mean(0), axis=1)
    expected = np.mean([entropy(share, axis=1) for share in shares], axis=0)
    np.testing.assert_allclose(found["entropy"], total, rtol=1e-5)
    np.testing.assert_allclose(found["expected_entropy"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["mutual_information"], total - expected, atol=1e-5)
    assert (found["mutual_information"] > 1e-4).all()
    batch = ours.predict_step([INPUTS, torch.zeros(40), torch.arange(40)], 0)
    assert list(batch) == ["prediction", "target", "index", "std"]
    np.testing.assert_allclose(batch["std"].detach(), shares.std(0), atol=1e-6)
    np.testing.assert_allclose(batch["prediction"].detach(), ours(INPUTS).softmax(1).detach())
    alone = VotingEnsemble(models[:1])
    assert (alone.uncertainty(INPUTS)["mutual_information"] < 1e-6).all()
    assert (alone.predict_step(INPUTS, 0)["std"] == 0).all()


def test_regression_is_the_mean_in_the_units_of_the_targets(make_trainer):
    data = TabularDataModule("diabetes")
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = MLPRegressor(10, 1, hidden=[8], standardize_targets=True, lr=0.01)
        make_trainer(max_epochs=2).fit(model, datamodule=data)
        models.append(model.eval())
    together = VotingEnsemble(models)
    trainer = make_trainer()
    predicted = torch.cat([b["prediction"] for b in trainer.predict(together, datamodule=data)])
    alone = [
        torch.cat([b["prediction"] for b in trainer.predict(model, datamodule=data)])
        for model in models
    ]
    torch.testing.assert_close(predicted, (alone[0] + alone[1]) / 2)
    spread = torch.cat([b["std"] for b in trainer.predict(together, datamodule=data)])
    assert spread.shape == predicted.shape
    torch.testing.assert_close(spread, (alone[0] - alone[1]).abs() / 2, rtol=1e-4, atol=1e-4)
    targets = data.arrays("test")[1]
    (metrics,) = trainer.test(together, datamodule=data, verbose=False)
    expected = (predicted - targets).square().mean().sqrt().item()
    assert metrics["test/rmse"] == pytest.approx(expected, rel=1e-5)


def test_members_get_the_inputs_that_they_were_trained_on(make_trainer):
    """Each fold normalises by its own statistics; the ensemble's data by others."""
    parts = [DigitsDataModule(num_folds=2, fold=fold) for fold in (0, 1)]
    raw = parts[0].arrays("test")[0]
    for part in parts:
        part.setup()
    models = [CNNClassifier(1, 10, channels=[4]).eval() for _ in parts]
    for model, part in zip(models, parts, strict=True):
        model.preprocess.set(**part.preprocess.statistics())
    together = VotingEnsemble(models).eval()
    with torch.no_grad():
        shares = [
            model.net(part.transform(raw)).softmax(1)
            for model, part in zip(models, parts, strict=True)
        ]
        expected = (shares[0] + shares[1]) / 2
        torch.testing.assert_close(together(raw).softmax(1), expected)
    for data in (DigitsDataModule(), DigitsDataModule(normalize=False)):
        batches = make_trainer().predict(together, datamodule=data)
        found = torch.cat([batch["prediction"] for batch in batches])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_saved_and_loaded_as_one_model(make_trainer, tmp_path, voting):
    data = DigitsDataModule()
    data.setup()
    models = classifiers()
    for model in models:
        model.preprocess.set(**data.preprocess.statistics())
    together = VotingEnsemble(models, voting=voting)
    trainer = make_trainer()
    (metrics,) = trainer.test(together, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = load(tmp_path / "a.ckpt")
    assert isinstance(again, VotingEnsemble)
    images = data.arrays("test")[0]
    with torch.no_grad():
        assert torch.equal(again(images), load(tmp_path / "a.ckpt")(images))
    (found,) = make_trainer().test(again, datamodule=data, verbose=False)
    assert found == metrics
    VotingEnsemble.load_from_checkpoint(tmp_path / "a.ckpt")


def test_bad_members_are_refused(make_trainer):
    with pytest.raises(ValueError, match="members is empty"):
        VotingEnsemble([])
    with pytest.raises(ValueError, match=r"\[3, 10\] classes"):
        VotingEnsemble([MLPClassifier(64, 10), MLPClassifier(64, 3)])
    with pytest.raises(ValueError, match="multiclass and regression, and no common vote"):
        VotingEnsemble([MLPClassifier(64, 10), MLPRegressor(64, 1)])
    with pytest.raises(ValueError, match=r"\[1, 2\] values"):
        VotingEnsemble([MLPRegressor(64, 1), MLPRegressor(64, 2)])
    with pytest.raises(ValueError, match="hold a Model, which has no task"):
        VotingEnsemble([Model(nn.Linear(4, 2))])
    with pytest.raises(ValueError, match="regression does not have"):
        VotingEnsemble([MLPRegressor(64, 1)], voting="hard")
    with pytest.raises(ValueError, match="voting='median'"):
        VotingEnsemble(classifiers(), voting="median")
    with pytest.raises(RuntimeError, match="trained already"):
        make_trainer().fit(VotingEnsemble(classifiers()), datamodule=DigitsDataModule())


def test_members_over_nets_of_the_users_own(make_trainer, tmp_path):
    together = VotingEnsemble([Classifier(nn.Linear(64, 10), 10) for _ in range(2)])
    assert together(INPUTS).shape == (40, 10)
    trainer = make_trainer()
    trainer.strategy.connect(together)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="net of your own"):
        load(tmp_path / "a.ckpt")


def test_a_member_of_an_earlier_version_does_not_cost_the_description_of_the_data():
    members = [MLPClassifier(64, 10, hidden=[2]) for _ in range(3)]
    for member in members:
        member.data_spec = DigitsDataModule().encoder.to_plain()
    whole = members[0].data_spec
    del members[1].data_spec["target_kind"]  # versions before 0.2 did not write it
    assert VotingEnsemble(members).data_spec == whole
    assert VotingEnsemble(members[1:]).data_spec == whole
    members[2].data_spec["class_names"] = list("abcdefghij")
    assert VotingEnsemble(members).data_spec is None
