"""Scores of predictions: right for their kind, or none with the reason."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.classification import MulticlassCalibrationError

from dlblocks._scores import calibration_error, kind_of, pooled_metrics
from dlblocks.metrics import classification_metrics

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, 60)
SHARES = RNG.dirichlet(np.ones(3), 60).astype(np.float32)


@pytest.mark.parametrize(
    ("target", "prediction", "reason"),
    [
        (CLASSES % 2, RNG.random((60, 1)), "one number a sample for integer targets"),
        (CLASSES % 2, RNG.random(60), "predict scores (M, C) or integer classes (M,)"),
        (CLASSES % 2 == 1, RNG.random(60), "one number a sample for integer targets"),
        (RNG.integers(0, 2, (60, 3)), SHARES, "several labels a sample"),
        (RNG.integers(0, 2, (60, 1)), RNG.random((60, 1)), "several labels a sample"),
        (CLASSES + 1, SHARES, "target 3 is outside the classes 0 … 2"),
        (CLASSES - 1, SHARES, "target -1 is outside the classes 0 … 2"),
        (CLASSES, RNG.random((60, 2)), "target 2 is outside the classes 0 … 1"),
        (CLASSES, RNG.random((60, 3, 4)), "expected classes (M,) and scores (M, C)"),
        (CLASSES * 1.0, SHARES, "expected values of one shape"),
        (CLASSES, SHARES[:50], "expected one prediction a target"),
        (CLASSES.astype(str), CLASSES.astype(str), "expected values of one shape"),
    ],
)
def test_predictions_that_have_no_right_score_say_why(target, prediction, reason):
    with pytest.raises(ValueError) as error:
        pooled_metrics(target, prediction)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_predicted_classes():
    predicted = (CLASSES + (RNG.random(60) < 0.3)) % 3
    for kind in (int, np.uint8, np.int32):
        found = pooled_metrics(CLASSES, predicted.astype(kind))
        assert found == {
            "accuracy": pytest.approx(np.mean(predicted == CLASSES)),
            "f1": pytest.approx(metrics.f1_score(CLASSES, predicted, average="macro")),
        }
    truth, guess = CLASSES == 0, predicted == 0
    assert pooled_metrics(truth, guess)["accuracy"] == np.mean(truth == guess)


def test_probabilities_scores_and_values_are_told_apart():
    assert kind_of(CLASSES, SHARES) == "scores"
    assert kind_of(CLASSES, CLASSES) == "labels"
    assert kind_of(CLASSES * 1.0, CLASSES) == "values"
    assert kind_of(SHARES, SHARES) == "values"
    names = {"accuracy", "f1", "log_loss", "calibration_error"}
    assert pooled_metrics(CLASSES, SHARES).keys() == names
    assert pooled_metrics(CLASSES, np.log(SHARES)).keys() == {"accuracy", "f1"}
    two = pooled_metrics(CLASSES % 2, SHARES[:, :2] / SHARES[:, :2].sum(1, keepdims=True))
    assert two.keys() == {*names, "auc"}


def test_values_that_are_not_finite_have_no_score():
    for target, prediction in ((1.0 * CLASSES, SHARES[:, 0].copy()), (SHARES[:, 0], 1.0 * CLASSES)):
        prediction[3] = math.inf
        assert all(map(math.isnan, pooled_metrics(target, prediction).values()))
        assert all(map(math.isnan, pooled_metrics(prediction, target).values()))


def of_torchmetrics(target, probabilities):
    metric = MulticlassCalibrationError(probabilities.shape[1], n_bins=15)
    metric.update(torch.as_tensor(probabilities), torch.as_tensor(target))
    return float(metric.compute())


def check_calibration(target, probabilities):
    """One value from torchmetrics, the metric that models log, and the pooled metrics."""
    expected = pytest.approx(of_torchmetrics(target, probabilities), abs=1e-6)
    assert calibration_error(target, probabilities) == expected
    logged = classification_metrics(probabilities.shape[1])["calibration_error"]
    logged.update(torch.as_tensor(probabilities), torch.as_tensor(target))
    assert float(logged.compute()) == expected
    assert pooled_metrics(target, probabilities)["calibration_error"] == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sureness", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_calibration_error_is_torchmetrics(classes, sureness, dtype):
    rng = np.random.default_rng(1)
    logits = torch.tensor(sureness * rng.normal(size=(500, classes)).astype(dtype))
    target = rng.integers(0, classes, 500)
    target[:300] = logits[:300].argmax(1)
    check_calibration(target, logits.softmax(1).numpy())


def test_calibration_error_at_the_edges_of_bins():
    edges = torch.linspace(0, 1, 16).numpy()[8:]  # those that a largest of two can be
    for toward in (edges, np.float32(1), np.float32(0)):  # the edge, the next number to each side
        sure = np.nextafter(edges, toward)
        probabilities = np.stack([sure, 1 - sure], 1)
        for seed in range(20):
            target = np.random.default_rng(seed).integers(0, 2, len(sure))
            check_calibration(target, probabilities)
    check_calibration(np.array([0, 1, 1, 0]), np.eye(2, dtype=np.float32)[[0, 1, 0, 0]])


def test_targets_of_0_and_1_are_not_values():
    binary, guess = np.array([0.0, 1.0, 1.0]), np.array([0.1, 2.0, -1.0])
    for target, prediction in ((binary, guess), (np.eye(3), np.ones((3, 3)))):
        with pytest.raises(ValueError, match="only 0 and 1"):
            pooled_metrics(target, prediction)
    assert pooled_metrics(np.array([0.0, 1.0, 2.0]), guess)["mae"] == pytest.approx(4.1 / 3)
