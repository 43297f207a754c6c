"""Numbers that judge samples, against loops and known cases."""

import numpy as np
import pytest
import torch

from dlblocks.data import DigitsDataModule
from dlblocks.models import GAN
from dlblocks.models.sample_quality import (
    baseline_bits,
    baselines_of,
    distances,
    judge,
    judge_model,
    neighbour_ratio,
    precision_and_recall,
    two_sample_accuracy,
)

RNG = np.random.default_rng(0)


def test_distances_are_those_of_a_loop():
    a, b = RNG.normal(size=(600, 2, 3)), RNG.normal(size=(50, 2, 3))
    for k in (1, 4):
        expected = [sorted(np.linalg.norm(x - y) for y in b)[k - 1] for x in a]
        np.testing.assert_allclose(distances(a, b, k), expected)
    with pytest.raises(ValueError, match="k=51"):
        distances(a, b, 51)


def test_copies_have_a_small_ratio_also_if_they_are_not_exact():
    train, unseen, new = (RNG.normal(size=(300, 20)) for _ in range(3))
    assert neighbour_ratio(new, train, unseen) == pytest.approx(1, abs=0.03)
    assert neighbour_ratio(train, train, unseen) == pytest.approx(0, abs=1e-6)
    assert 0.1 < neighbour_ratio(train + 0.3 * new, train, unseen) < 0.6


def test_precision_and_recall_by_loops_and_in_known_cases():
    real, samples = RNG.normal(size=(60, 3)), 0.5 * RNG.normal(size=(60, 3))

    def covered(queries, points, k):
        radii = [sorted(np.linalg.norm(p - q) for q in points)[k] for p in points]
        return np.mean([
            any(np.linalg.norm(x - p) <= r for p, r in zip(points, radii, strict=True))
            for x in queries
        ])  # fmt: skip

    found = precision_and_recall(samples, real, k=2)
    assert found == (covered(samples, real, 2), covered(real, samples, 2))
    # One mode of two: precise, and half of the data are missing.
    two = np.concatenate([real, real + 100])
    one = np.concatenate([samples, samples[::-1] * 0.9])
    precision, recall = precision_and_recall(one, two)
    assert precision > 0.9
    assert recall < 0.5


def test_two_sample_accuracy():
    one, other = RNG.normal(size=(2, 400, 5))
    assert two_sample_accuracy(one, other) == pytest.approx(0.5, abs=0.06)
    assert two_sample_accuracy(one, other + 50) == 1
    assert two_sample_accuracy(one, one + 1e-6) == 0
    with pytest.raises(ValueError, match="equal numbers"):
        two_sample_accuracy(one, other[:3])


def test_baselines_of_the_digits_are_those_measured():
    """Uniform 4.09, independent pixels 2.43, class histograms 2.23 bits per dimension."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, order = x.astype(int), RNG.permutation(len(x))
    train, test = order[:1437], order[1437:]
    assert np.log2(17) == pytest.approx(4.09, abs=0.01)
    pixels = baseline_bits(x[train], x[test], 17)
    classes = baseline_bits(x[train], x[test], 17, (y[train], y[test]))
    assert pixels.mean() == pytest.approx(2.43, abs=0.06)
    assert classes.mean() == pytest.approx(2.23, abs=0.08)
    # By a loop.
    total = 0.0
    for place in range(64):
        count = (x[train, place] == x[test[0], place]).sum() + 1
        total -= np.log2(count / (1437 + 17))
    assert pixels[0] == pytest.approx(total / 64)


def test_a_model_is_judged_on_its_levels():
    data = DigitsDataModule(val_fraction=0.1)
    torch.manual_seed(0)
    model = GAN([1, 8, 8], levels=17, num_classes=10, width=4)
    samples, found = judge_model(model, data, 30)
    assert torch.equal(samples, model.sample(30, torch.arange(30) % 10))
    parts = [
        ((data.arrays(part)[0].double() * 16 / 255).round(), data.arrays(part)[1])
        for part in ("train", "test")
    ]
    assert found == judge((samples.double() * 16 / 255).round(), torch.arange(30) % 10, *parts)
    simple = baselines_of(model, data)
    assert simple["uniform"].mean() == pytest.approx(np.log2(17))
    assert simple["class histograms"].mean() < simple["independent pixels"].mean() < 2.5
    _, found = judge_model(GAN([1, 8, 8], levels=17, width=4), data, 30)
    assert [*found] == ["neighbour_ratio", "precision", "recall", "two_sample_accuracy"]


def test_judged_as_real_images_and_as_noise():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = RNG.permutation(len(x))  # writers follow each other
    x, y = x[order], y[order]
    train, test, new = slice(0, 700), slice(700, 1100), slice(1100, 1500)
    real = judge(x[new], y[new], (x[train], y[train]), (x[test], y[test]))
    assert real["judged_as_asked"] > 0.9
    assert real["trained_on_samples"] > 0.9
    assert real["neighbour_ratio"] == pytest.approx(1, abs=0.1)
    assert real["two_sample_accuracy"] < 0.6
    copies = judge(x[train], y[train], (x[train], y[train]), (x[test], y[test]))
    assert copies["neighbour_ratio"] == pytest.approx(0, abs=1e-6)
    assert copies["trained_on_samples"] == copies["trained_on_real"]
    noise = judge(16 * RNG.random((400, 64)), y[new], (x[train], y[train]), (x[test], y[test]))
    assert noise["judged_as_asked"] < 0.3
    assert real["share_error"] < 0.25 < noise["share_error"]
    assert real["trained_on_real"] == copies["trained_on_real"]
    assert noise["two_sample_accuracy"] > 0.7
