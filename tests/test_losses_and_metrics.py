import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from dlblocks.losses import cross_entropy
from dlblocks.metrics import classification_metrics, hard_labels, regression_metrics

N, C = 200, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(C, (N,), generator=GENERATOR)
WEIGHT = torch.rand(C, generator=GENERATOR, dtype=torch.float64) + 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_soft_cross_entropy_is_the_hard_one(weight, smoothing):
    hard = F.cross_entropy(LOGITS, TARGETS, weight=weight, label_smoothing=smoothing)
    one_hot = F.one_hot(TARGETS, C).double()
    for targets in (TARGETS, one_hot):
        ours = cross_entropy(LOGITS, targets, weight=weight, label_smoothing=smoothing)
        torch.testing.assert_close(ours, hard, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_mixed_targets_against_a_loop(weight):
    soft = torch.rand(N, C, generator=GENERATOR, dtype=torch.float64)
    soft /= soft.sum(1, keepdim=True)
    w = torch.ones(C, dtype=torch.float64) if weight is None else weight
    above = below = 0.0
    for i in range(N):
        log_p = LOGITS[i] - LOGITS[i].exp().sum().log()
        for c in range(C):
            smooth = 0.9 * soft[i, c] + 0.1 / C
            above -= float(w[c] * smooth * log_p[c])
            below += float(w[c] * soft[i, c])
    ours = cross_entropy(LOGITS, soft, weight=weight, label_smoothing=0.1)
    assert float(ours) == pytest.approx(above / below, rel=1e-10)


def test_classification_metrics_are_scikit_learns():
    metrics = classification_metrics(C)
    probabilities = LOGITS.float().softmax(1)
    for rows in torch.arange(N).split(64):
        metrics.update(probabilities[rows], TARGETS[rows])
    found = metrics.compute()
    predicted = LOGITS.argmax(1)
    assert float(found["accuracy"]) == pytest.approx(
        sklearn_metrics.accuracy_score(TARGETS, predicted)
    )
    assert float(found["f1"]) == pytest.approx(
        sklearn_metrics.f1_score(TARGETS, predicted, average="macro")
    )
    confidence, right = probabilities.max(1).values.numpy(), (predicted == TARGETS).numpy()
    expected = 0.0
    edges = np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            expected += inside.mean() * gap
    assert float(found["calibration_error"]) == pytest.approx(expected, rel=1e-4)


def test_f1_leaves_absent_classes_out():
    metrics = classification_metrics(4)
    targets, predicted = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    metrics.update(F.one_hot(predicted, 4).float(), targets)
    expected = sklearn_metrics.f1_score(targets, predicted, average="macro")
    assert float(metrics.compute()["f1"]) == pytest.approx(expected)


def test_soft_targets_count_by_their_dominant_class():
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    assert hard_labels(soft).tolist() == [0, 2]
    assert hard_labels(TARGETS) is TARGETS


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_metrics_are_scikit_learns(outputs):
    y = torch.randn(50, outputs, generator=GENERATOR) * 3 + 10
    guess = y + torch.randn(50, outputs, generator=GENERATOR)
    metrics = regression_metrics()
    for rows in torch.arange(50).split(16):
        metrics.update(guess[rows], y[rows])
    found = {name: float(value) for name, value in metrics.compute().items()}
    mse = sklearn_metrics.mean_squared_error(y, guess)
    assert found["rmse"] == pytest.approx(mse**0.5, rel=1e-5)
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(y, guess), rel=1e-5)
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(y, guess), rel=1e-4)


def test_r2_of_one_sample_is_not_a_number():
    metrics = regression_metrics()
    metrics.update(torch.ones(1, 1), torch.zeros(1, 1))
    found = metrics.compute()
    assert found["r2"].isnan()
    assert float(found["mae"]) == 1
