import json

import numpy as np
import pytest
import torch
from boosting_learners import SklearnClassifier
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import AdaBoostClassifier as SklearnAdaBoost
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from dlblocks.data import ArrayDataModule, DigitsDataModule, TabularDataModule
from dlblocks.ensembles import AdaBoost
from dlblocks.models import AdaBoostClassifier, Classifier, MLPClassifier, MLPRegressor, load

CPU = {"accelerator": "cpu", "max_epochs": 1}


def boost(make_learner, data, **arguments):
    settings = {"num_stages": 3, "trainer": CPU, "progress_bar": False, "logger": None}
    return AdaBoost(make_learner, data, **{**settings, **arguments})


def tree(depth=1):
    # Every stage draws its own order of the features in scikit-learn; all of them count here.
    return DecisionTreeClassifier(max_depth=depth, random_state=0)


@pytest.mark.parametrize(
    ("name", "num_classes", "learning_rate"),
    [("wine", 3, 1.0), ("breast_cancer", 2, 1.0), ("wine", 3, 0.5)],
)
def test_weights_and_predictions_are_scikit_learns(name, num_classes, learning_rate, monkeypatch):
    data = TabularDataModule(name)
    monkeypatch.setattr(  # the same trees: else each gets a seed of its own
        SklearnAdaBoost,
        "_make_estimator",
        lambda self, append=True, random_state=None: (
            self.estimators_.append(tree()) or self.estimators_[-1]
        ),
    )
    result = boost(
        lambda: SklearnClassifier(tree(), num_classes),
        data,
        num_stages=12,
        learning_rate=learning_rate,
    ).fit()
    (x, y, _), (x_val, y_val, _) = data.arrays("train"), data.arrays("val")
    raw_val, x, x_val = x_val, data.transform(x), data.transform(x_val)
    theirs = SklearnAdaBoost(n_estimators=12, learning_rate=learning_rate).fit(x.numpy(), y.numpy())
    assert len(result.model.alphas) == len(theirs.estimators_) == 12
    np.testing.assert_allclose(result.model.alphas, theirs.estimator_weights_, rtol=1e-5)
    errors = [row["error"] for row in result.history]
    np.testing.assert_allclose(errors, theirs.estimator_errors_, rtol=1e-5)
    staged = zip(
        result.model.staged_predict(raw_val),
        theirs.staged_predict_proba(x_val.numpy()),
        strict=True,
    )
    for found, expected in staged:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    scores = list(theirs.staged_score(x_val.numpy(), y_val.numpy()))
    np.testing.assert_allclose([row["val/accuracy"] for row in result.history], scores)


def test_weights_of_a_stage_are_those_of_the_paper():
    """By hand: N = 4, K = 3, one of four is wrong, so α = log 3 + log 2 and its weight is 2/3."""
    said = []

    class Given(nn.Module):
        """Predicts class 0 but where the input says otherwise."""

        def fit_samples(self, inputs, targets, weights):
            said.append(weights)

        def forward(self, inputs):
            return nn.functional.one_hot(inputs[:, 0].long(), 3).float()

    inputs = np.array([[0.0], [1.0], [2.0], [0.0]], dtype=np.float32)
    data = ArrayDataModule(
        inputs, np.array([0, 1, 2, 1]), val_fraction=0.0, normalize=False, batch_size=2
    )
    boosting = boost(lambda: Given(), data, num_stages=2)
    with pytest.warns(UserWarning, match="no better than chance"):
        # The same learner again: its weighted error is now 2/3, that of chance.
        result = boosting.fit()
    assert result.model.alphas == [pytest.approx(np.log(3) + np.log(2))]
    torch.testing.assert_close(said[0], torch.ones(4))
    wrong = torch.tensor([1.0, 1.0, 1.0, 6.0])
    torch.testing.assert_close(said[1], wrong / wrong.mean())


def test_nets_are_trained_on_the_weighted_loss():
    """One full batch of SGD, against the step written out."""
    data = DigitsDataModule(batch_size=2000)
    made = []

    def make_learner():
        made.append(MLPClassifier(64, 10, hidden=[], optimizer="sgd", lr=0.5))
        starts.append([p.detach().clone() for p in made[-1].parameters()])
        return made[-1]

    starts = []
    result = boost(make_learner, data, num_stages=2, logger=None).fit()
    x, y, _ = data.arrays("train")
    x = data.transform(x).flatten(1)
    weights = torch.ones(len(y))
    for learner, start, alpha in zip(made, starts, result.model.alphas, strict=True):
        weight, bias = (p.requires_grad_() for p in start)
        losses = nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="none")
        grad_weight, grad_bias = torch.autograd.grad((weights * losses).mean(), [weight, bias])
        torch.testing.assert_close(learner.net.layers[0].weight, weight - 0.5 * grad_weight)
        torch.testing.assert_close(learner.net.layers[0].bias, bias - 0.5 * grad_bias)
        wrong = learner(x).argmax(1) != y
        weights = weights * torch.exp(alpha * wrong)
        weights /= weights.mean()


def test_several_weak_nets_are_better_than_one_and_the_model_is_one(make_trainer, tmp_path):
    data = DigitsDataModule()
    result = boost(
        lambda: MLPClassifier(64, 10, hidden=[6], lr=0.02),
        data,
        num_stages=12,
        logger="csv",
        trainer={**CPU, "max_epochs": 3},
        run_dir=tmp_path / "run",
    ).fit()
    accuracies = [row["val/accuracy"] for row in result.history]
    assert accuracies[-1] > accuracies[0] + 0.03
    model = load(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert isinstance(model, AdaBoostClassifier)
    trainer = make_trainer()
    (metrics,) = trainer.validate(model, datamodule=data, verbose=False)
    assert metrics["val/accuracy"] == pytest.approx(accuracies[-1])
    assert metrics["val/loss"] == pytest.approx(result.history[-1]["val/loss"], rel=1e-5)
    (tested,) = trainer.test(model, datamodule=data, verbose=False)
    found = torch.cat([b["prediction"] for b in trainer.predict(model, datamodule=data)])
    right = found.argmax(1) == data.arrays("test")[1]
    assert right.float().mean().item() == pytest.approx(tested["test/accuracy"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["val/accuracy"]["mean"] == pytest.approx(accuracies[-1])
    assert summary["config"]["class"] == "AdaBoost"


def test_early_stopping_keeps_the_most_accurate_stages():
    data = TabularDataModule("breast_cancer")
    result = boost(lambda: SklearnClassifier(tree(), 2), data, num_stages=40, patience=2).fit()
    assert result.stopped.startswith("val/accuracy has not improved for 2 stages")
    accuracies = [row["val/accuracy"] for row in result.history]
    assert result.best_stage == int(np.argmax(accuracies)) + 1 == len(accuracies) - 2
    assert len(result.model.alphas) == result.best_stage


def test_a_perfect_learner_ends_the_fit():
    data = TabularDataModule("iris")
    with pytest.warns(UserWarning, match="makes no error"):
        result = boost(lambda: SklearnClassifier(tree(None), 3), data).fit()
    assert len(result.model.alphas) == 1 and result.history[0]["train/accuracy"] == 1
    assert result.history[0]["error"] == 0


def test_a_first_learner_no_better_than_chance_is_an_error():
    always = lambda: SklearnClassifier(DummyClassifier(strategy="most_frequent"), 3)  # noqa: E731
    data = ArrayDataModule(np.random.rand(60, 2), np.arange(60) % 3)
    with pytest.raises(ValueError, match=r"no better than chance.*is the first; train longer"):
        boost(always, data).fit()


@pytest.mark.parametrize(
    ("make_learner", "data", "said"),
    [
        (lambda: MLPClassifier(10, 2), TabularDataModule("diabetes"), "use GradientBoosting"),
        (lambda: MLPClassifier(4, 2), TabularDataModule("iris"), r"\[2, 3\] classes"),
        (lambda: nn.Linear(4, 2), TabularDataModule("iris"), r"num_classes=3, .* shape \(2, 2\)"),
        (lambda: MLPRegressor(4, 3), TabularDataModule("iris"), "needs a Classifier"),
        (
            lambda: MLPClassifier(4, 3, class_weights="balanced"),
            TabularDataModule("iris"),
            "class_weights have no effect",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(make_learner, data, said):
    with pytest.raises(ValueError, match=said):
        boost(make_learner, data).fit()


def test_bad_arguments():
    iris = TabularDataModule("iris")
    with pytest.raises(ValueError, match="learning_rate=0"):
        boost(lambda: MLPClassifier(4, 3), iris, learning_rate=0)
    with pytest.raises(ValueError, match="num_stages=0"):
        boost(lambda: MLPClassifier(4, 3), iris, num_stages=0)
    same = Classifier(nn.Linear(4, 3), 3, lr=0.1)
    with pytest.raises(ValueError, match="twice"):
        boost(lambda: same, iris, trainer={**CPU, "max_epochs": 20}).fit()
    with pytest.raises(ValueError, match="alphas has 0 entries and members 0"):
        AdaBoostClassifier([], [], 3)
    with pytest.raises(ValueError, match="alphas=0"):
        AdaBoostClassifier([same], [0], 3)
