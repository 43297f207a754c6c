"""Bagging held against scikit-learn's, with the same samples and the same training."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from bagging_runs import EPOCHS, diabetes, digits, mlp, regressor, settings
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import BaggingClassifier, BaggingRegressor
from sklearn.preprocessing import StandardScaler

from dlblocks.ensembles import Bagging, DeepEnsemble
from dlblocks.models import MLPRegressor


@pytest.fixture
def double():
    """Digits in float64, in which what is the same stays the same over many steps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def slow_loop(make, x, y, val, k):
    """The training of member k, written out; its model of the best epoch, and how it scales."""
    # Images are scaled by channel; the datamodule rounds scale and shift to float32.
    scaler = StandardScaler().fit(x.reshape(-1, 1) if x.ndim == 4 else x)
    scale = (1 / scaler.scale_).astype(np.float32)
    shift = (-scaler.mean_ / scaler.scale_).astype(np.float32)

    def scaled(values):
        return torch.from_numpy(values * scale + shift).to(torch.get_default_dtype())

    pl.seed_everything(k, verbose=False)
    model = make()
    inputs, targets = scaled(x), torch.from_numpy(y)
    if isinstance(model, MLPRegressor):
        model.task.target_mean.fill_(float(y.mean()))
        model.task.target_std.fill_(float(y.std()))
    optimizer = torch.optim.Adam(model.parameters(), lr=model.lr)
    best = None
    for epoch in range(EPOCHS):
        model.train()
        order = np.random.default_rng((k, epoch)).permutation(len(x))
        for rows in np.split(order, range(32, len(x), 32)):
            if len(rows) == 1:
                continue
            optimizer.zero_grad()
            model.loss(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = model.loss(model(scaled(val[0])), torch.from_numpy(val[1])).item()
        if best is None or loss < best[0]:
            best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[1])
    return model, scaled


def estimator(make, val, shape, kind):
    """Our training in scikit-learn's clothes; the k-th to be fitted is member k."""
    made = []

    class Net(kind, BaseEstimator):
        def fit(self, x, y):
            self.classes_ = np.arange(10)
            self.net_, self.scaled_ = slow_loop(make, x.reshape(-1, *shape), y, val, len(made))
            made.append(self)
            return self

        def predict(self, x):
            with torch.no_grad():
                found = self.net_(self.scaled_(x.reshape(-1, *shape))).numpy()
            return found.argmax(1) if kind is ClassifierMixin else found[:, 0]

    class Sure(Net):
        def predict_proba(self, x):
            with torch.no_grad():
                return self.net_(self.scaled_(x.reshape(-1, *shape))).softmax(1).numpy()

    return Sure if kind is ClassifierMixin else Net, Net


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_classes_are_those_of_scikit_learns_bagging(tmp_path, make_trainer, double, voting):
    data = digits()
    (x, y, rows), (val_x, val_y, _), (test_x, _, _) = map(data.arrays, ("train", "val", "test"))
    val = val_x.double().numpy(), val_y.numpy()
    soft, hard = estimator(mlp, val, x.shape[1:], ClassifierMixin)
    theirs = BaggingClassifier(
        (soft if voting == "soft" else hard)(), 20, oob_score=True, random_state=0
    )
    theirs.fit(x.double().numpy().reshape(len(x), -1), y.numpy())
    samples = [rows.numpy()[drawn] for drawn in theirs.estimators_samples_]
    ours = Bagging(
        mlp,
        data,
        **settings(num_members=20, voting=voting, samples=samples, run_dir=tmp_path / "a"),
        engine="vectorized",
    ).fit()
    flat = test_x.double().numpy().reshape(len(test_x), -1)
    batches = make_trainer().predict(ours.model, datamodule=data)
    predicted = torch.cat([batch["prediction"] for batch in batches]).numpy()
    np.testing.assert_allclose(predicted, theirs.predict_proba(flat), atol=1e-4)
    sure = np.ptp(np.sort(predicted, 1)[:, -2:], axis=1) > 1e-3  # ties may be broken either way
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(predicted[sure].argmax(1), theirs.predict(flat)[sure])
    assert (ours.oob.votes > 0).all()
    order = np.argsort(rows.numpy())
    np.testing.assert_allclose(ours.oob.prediction, theirs.oob_decision_function_[order], atol=1e-4)
    assert ours.oob_score["oob/accuracy"] == pytest.approx(theirs.oob_score_, abs=1e-3)


def test_values_are_those_of_scikit_learns_bagging(tmp_path, make_trainer):
    data = diabetes()
    (x, y, rows), (val_x, val_y, _), (test_x, _, _) = map(data.arrays, ("train", "val", "test"))
    val = val_x.double().numpy(), val_y.numpy()
    net, _ = estimator(regressor, val, x.shape[1:], RegressorMixin)
    theirs = BaggingRegressor(net(), 15, oob_score=True, random_state=1)
    theirs.fit(x.double().numpy(), y.numpy().ravel())
    samples = [rows.numpy()[drawn] for drawn in theirs.estimators_samples_]
    ours = Bagging(
        regressor, data, **settings(num_members=15, samples=samples, run_dir=tmp_path / "a")
    )
    ours.engine = "vectorized"
    found = ours.fit()
    batches = make_trainer().predict(found.model, datamodule=data)
    predicted = torch.cat([batch["prediction"] for batch in batches]).numpy().ravel()
    np.testing.assert_allclose(predicted, theirs.predict(test_x.double().numpy()), rtol=1e-3)
    assert (found.oob.votes > 0).all()
    order = np.argsort(rows.numpy())
    np.testing.assert_allclose(
        found.oob.prediction.ravel(), theirs.oob_prediction_[order], rtol=1e-3
    )
    assert found.oob_score["oob/r2"] == pytest.approx(theirs.oob_score_, abs=1e-3)


def test_a_deep_ensembles_members_are_fits_of_their_own(tmp_path, double):
    """Of the whole training part, from another start, in another order."""
    result = DeepEnsemble(mlp, digits(), **settings(run_dir=tmp_path / "a")).fit()
    data = digits()
    (x, y, rows), (val_x, val_y, _) = map(data.arrays, ("train", "val"))
    val = val_x.double().numpy(), val_y.numpy()
    for k, sample in enumerate(result.samples):
        np.testing.assert_array_equal(sample, rows)
        expected, _ = slow_loop(mlp, x.double().numpy(), y.numpy(), val, k)
        for mine, own in zip(
            result.model.net.members[k].parameters(), expected.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-5)
