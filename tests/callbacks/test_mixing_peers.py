"""A second opinion by timm and torchvision, and what goes wrong in peers."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from dlblocks.callbacks import CutMix, MixUp, OneOf, boxes, cutmix, mixup
from dlblocks.callbacks._mixing import draw_mix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.rand(6, 3, 11, 8, generator=generator(1))
Y = torch.tensor([0, 0, 1, 1, 2, 2])
ONE_HOT = torch.eye(3)[Y]


@pytest.fixture
def timm_mixup():
    return pytest.importorskip("timm.data.mixup")


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_timms_way_with_each_samples_own_draws(kind, timm_mixup, monkeypatch):
    """The same λ, box and partner (the reversed batch) for each sample."""
    rng = np.random.default_rng(0)
    theirs = timm_mixup.Mixup(mode="elem", num_classes=3, label_smoothing=0.0)
    lam = rng.beta(1, 1, 6).astype(np.float32)
    given = []

    def rand_bbox(shape, lam, margin=0.0, count=None):
        top, left = int(rng.integers(11)), int(rng.integers(8))
        given.append((top, left, min(11, top + 4), min(8, left + 5)))
        return top, given[-1][2], left, given[-1][3]

    monkeypatch.setattr(timm_mixup, "rand_bbox", rand_bbox)
    monkeypatch.setattr(
        theirs, "_params_per_elem", lambda n: (lam.copy(), np.full(n, kind == "cutmix"))
    )
    expected = theirs(X.clone(), Y)
    partner = torch.arange(5, -1, -1)
    if kind == "mixup":
        found = mixup(X, ONE_HOT, torch.from_numpy(lam), partner)
    else:
        found = cutmix(X, ONE_HOT, torch.tensor(given), partner)
    torch.testing.assert_close(found, expected)


def test_timms_boxes(timm_mixup, monkeypatch):
    """timm rounds sides down and cuts its box at the border; so do ours of the same sides."""
    centers = []

    def randint(low, high, size=None):
        centers.append(low + (5 * len(centers) + 3) % (high - low))
        return centers[-1]

    monkeypatch.setattr(timm_mixup.np.random, "randint", randint)
    for lam in (0.1, 0.3, 0.55, 0.9):
        top, bottom, left, right = timm_mixup.rand_bbox((3, 11, 8), lam)
        sides = torch.tensor([[int(11 * np.sqrt(1 - lam)), int(8 * np.sqrt(1 - lam))]])
        ours = boxes(torch.tensor([centers[-2:]]), sides, 11, 8)[0].tolist()
        even = [side % 2 == 0 for side in sides[0].tolist()]
        for i, own in enumerate((ours[0::2], ours[1::2])):
            peer = ([top, bottom], [left, right])[i]
            # An odd side of theirs is (s + 1) // 2 + s // 2 = s, of ours as well.
            assert own == [int(v) for v in peer], (lam, even)


def test_torchvisions_mixup(monkeypatch):
    theirs = v2.MixUp(alpha=1.0, num_classes=3)
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor([0.3]))
    ours = mixup(X, ONE_HOT, torch.full((6,), 0.3), torch.arange(6).roll(1))
    torch.testing.assert_close(ours, theirs(X, Y))


def test_torchvisions_cutmix(monkeypatch):
    theirs = v2.CutMix(alpha=1.0, num_classes=3)
    for seed in range(5):
        torch.manual_seed(seed)
        params = theirs.make_params([X])
        monkeypatch.setattr(theirs, "make_params", lambda inputs, params=params: params)
        x1, y1, x2, y2 = params["box"]
        box = torch.tensor([[y1, x1, y2, x2]]).expand(6, 4)
        torch.testing.assert_close(cutmix(X, ONE_HOT, box, torch.arange(6).roll(1)), theirs(X, Y))
        monkeypatch.undo()
        theirs = v2.CutMix(alpha=1.0, num_classes=3)


# What goes wrong in peers; each line of "Mixing" in their list that is not a test elsewhere


def test_no_smoothing_at_p_zero():
    """timm smooths labels by 0.1 even then."""
    for method in (MixUp(p=0.0, num_classes=3), CutMix(p=0.0, num_classes=3)):
        batch = [X, Y]
        assert method.apply(batch, epoch=0, step=5, rank=0) is batch


def test_odd_batches_and_inputs_not_written_to():
    """timm needs an even batch and writes into it."""
    x, y = X[:5].clone(), Y[:5].clone()
    for method in (MixUp(1.0, num_classes=3), CutMix(num_classes=3)):
        new_x, _ = method.apply([x, y], epoch=0, step=0, rank=0)
        assert not torch.equal(new_x, x)
        assert torch.equal(x, X[:5])
        assert torch.equal(y, Y[:5])


def test_sorted_batches_are_mixed_across_classes():
    """torchvision's partner is the neighbour: in a sorted batch of the same class."""
    y = torch.arange(64) // 16
    other = [(y[draw_mix(64, 1.0, generator(s), True)[1]] != y).float().mean() for s in range(50)]
    neighbour = (y.roll(1) != y).float().mean()
    assert torch.stack(other).mean() == pytest.approx(48 / 63, abs=0.03)
    assert neighbour < 0.1


def test_the_share_that_is_cut_is_the_share_asked_for():
    """composer's length=0.25 cuts up to 30 of 32 pixels; kornia's λ is by default inverted."""
    images = torch.arange(500.0)[:, None, None, None].expand(500, 1, 32, 32)
    plan = CutMix(1.0).draw(images, generator())
    new, _ = cutmix(images, torch.zeros(500, 1), plan.box, plan.partner)
    torch.testing.assert_close((new == images).float().mean((1, 2, 3)), plan.lam)


def test_values_and_tables():
    """torchvision raises for tables, float (B,) targets and masks."""
    x, y = torch.rand(6, 4), torch.rand(6)
    new_x, new_y = MixUp(1.0).transform(x, y, generator())
    plan = MixUp(1.0).draw(x, generator())
    for i, j in enumerate(plan.partner.tolist()):
        torch.testing.assert_close(new_y[i], plan.lam[i] * y[i] + (1 - plan.lam[i]) * y[j])
    assert new_x.shape == x.shape


def test_alpha_zero_is_off_in_one_of_too():
    """composer's alpha=0 does not switch CutMix off; torchvision's raises."""
    batch = [X, Y]
    one = OneOf([CutMix(0.0, num_classes=3), MixUp(0.0, num_classes=3)])
    for step in range(4):
        new_x, new_y = one.apply(batch, epoch=0, step=step, rank=0)
        assert new_x is X
        assert new_y is Y
