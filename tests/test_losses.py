import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dlblocks.losses import MixedTargets, binary_cross_entropy, cross_entropy, mixed_loss

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


def one_hot_rows(targets, ignore_index=-100):
    """One-hot along axis 1, rows of zeros where ignored, by a loop."""
    rows = torch.zeros(len(targets), C, *targets.shape[1:], dtype=torch.float64)
    for place in itertools.product(*map(range, targets.shape)):
        if targets[place] != ignore_index:
            rows[(place[0], int(targets[place]), *place[1:])] = 1
    return rows


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("shape", [(30,), (6, 5), (4, 3, 2)])
def test_ignored_targets_hard_soft_and_dense(shape, ignore_index, weight, smoothing):
    n, *places = shape
    logits = torch.randn(n, C, *places, dtype=torch.float64, generator=GENERATOR)
    targets = torch.randint(C, shape, generator=GENERATOR)
    targets.view(-1)[::4] = ignore_index
    settings = {"weight": weight, "label_smoothing": smoothing}
    hard = F.cross_entropy(logits, targets, ignore_index=ignore_index, **settings)
    ours = cross_entropy(logits, targets, ignore_index=ignore_index, **settings)
    soft = cross_entropy(logits, one_hot_rows(targets, ignore_index), **settings)
    torch.testing.assert_close(ours, hard, rtol=0, atol=0)
    torch.testing.assert_close(soft, hard, rtol=1e-12, atol=0)


def test_gradients_of_hard_and_soft_targets_agree_and_ignored_samples_have_none():
    targets = TARGETS.clone()
    targets[:50] = -100
    grads = []
    for form in (targets, one_hot_rows(targets)):
        logits = LOGITS.clone().requires_grad_()
        cross_entropy(logits, form, weight=WEIGHT, label_smoothing=0.1).backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-15)
    assert not grads[1][:50].any()


def test_a_sample_mixed_with_an_ignored_one_counts_by_its_share():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    soft = torch.tensor([[0.25, 0.0], [0.0, 1.0]])  # 0.25 of class 0 and 0.75 of an ignored sample
    first, second = np.log(1 + np.exp(-2.0)), np.log(2.0)
    assert float(cross_entropy(logits, soft)) == pytest.approx((0.25 * first + second) / 1.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_half_precision_targets_are_counted_right(dtype):
    logits = torch.zeros(70_000, 2, dtype=dtype)
    soft = torch.tensor([[0.0, 1.0]], dtype=dtype).expand(70_000, 2)
    loss = cross_entropy(logits, soft)
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(np.log(2), rel=0.01)


@pytest.mark.parametrize("pos_weight", [None, WEIGHT])
@pytest.mark.parametrize("ignore_index", [None, -1])
def test_binary_cross_entropy_is_a_loop(ignore_index, pos_weight):
    targets = torch.randint(2, (20, C), generator=GENERATOR)
    if ignore_index is not None:
        targets[::3, 1] = ignore_index
    total = count = 0.0
    for i, c in itertools.product(range(20), range(C)):
        y = int(targets[i, c])
        if y == ignore_index:
            continue
        smooth = 0.9 * y + 0.05
        q = 1 / (1 + np.exp(-float(LOGITS[i, c])))
        p = 1.0 if pos_weight is None else float(pos_weight[c])
        total -= p * smooth * np.log(q) + (1 - smooth) * np.log(1 - q)
        count += 1
    settings = {"label_smoothing": 0.1, "ignore_index": ignore_index, "pos_weight": pos_weight}
    for form in (targets, targets.double()):
        found = binary_cross_entropy(LOGITS[:20], form, **settings)
        assert float(found) == pytest.approx(total / count, rel=1e-10)


def test_bad_targets_of_binary_cross_entropy():
    with pytest.raises(ValueError, match=r"shape \(200, 5\), got \(200,\); for class indices"):
        binary_cross_entropy(LOGITS, TARGETS)
    with pytest.raises(ValueError, match="label_smoothing=1"):
        binary_cross_entropy(LOGITS, LOGITS, label_smoothing=1.0)


def test_mixed_loss_is_the_soft_loss():
    """For cross-entropy, which is linear in the target, both ways must give one value."""
    lam, partner = torch.rand(N, dtype=torch.float64), torch.randperm(N)
    soft = lam[:, None] * one_hot_rows(TARGETS) + (1 - lam[:, None]) * one_hot_rows(
        TARGETS[partner]
    )
    pair = MixedTargets(TARGETS, TARGETS[partner], lam)

    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    found = mixed_loss(loss_fn, LOGITS, pair)
    torch.testing.assert_close(found, cross_entropy(LOGITS, soft), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        mixed_loss(loss_fn, LOGITS, TARGETS), F.cross_entropy(LOGITS, TARGETS)
    )
    with pytest.raises(ValueError, match="reduction='none'"):
        mixed_loss(F.cross_entropy, LOGITS, pair)
