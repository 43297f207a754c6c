import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from dlblocks.callbacks import CutMix, Cutout, MixUp, boxes, cutmix, cutout, mixup
from dlblocks.callbacks.mixing import draw_mix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def soft(n=6, c=3):
    y = torch.rand(n, c, generator=generator(5))
    return y / y.sum(1, keepdim=True)


# MixUp


def test_mixup_is_the_papers_loop():
    x, y = torch.randn(6, 2, 5, 5), soft()
    lam, index = torch.rand(6), torch.randperm(6)
    kept = x.clone(), y.clone()
    mixed_x, mixed_y = mixup(x, y, lam, index)
    for i in range(6):
        j = int(index[i])
        torch.testing.assert_close(mixed_x[i], lam[i] * x[i] + (1 - lam[i]) * x[j])
        torch.testing.assert_close(mixed_y[i], lam[i] * y[i] + (1 - lam[i]) * y[j])
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_mixup_is_torchvisions_for_its_lambda_and_partner(monkeypatch):
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    theirs = v2.MixUp(alpha=1.0, num_classes=3)
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor([0.3]))
    expected_x, expected_y = theirs(x, y)
    one_hot = torch.eye(3)[y]
    ours = mixup(x, one_hot, torch.full((6,), 0.3), torch.arange(6).roll(1))
    torch.testing.assert_close(ours[0], expected_x)
    torch.testing.assert_close(ours[1], expected_y)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lambda_is_beta_distributed(alpha):
    lam, _ = draw_mix(4000, alpha, generator(), per_sample=True)
    assert stats.kstest(lam.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert lam.unique().numel() > 2000


def test_tiny_alpha_is_finite():
    lam, _ = draw_mix(1000, 1e-4, generator(), per_sample=True)
    assert lam.isfinite().all()
    assert ((lam >= 0) & (lam <= 1)).all()


def test_one_lambda_a_batch_on_request():
    assert draw_mix(50, 1.0, generator(), per_sample=False)[0].unique().numel() == 1


def test_sorted_batches_get_real_partners():
    x, y = torch.randn(64, 4), torch.arange(64) // 32
    mixed = MixUp(1.0, num_classes=2).transform(x, y, generator())[1]
    assert ((mixed > 0).all(1)).float().mean() > 0.3


@pytest.mark.parametrize("size", [1, 2, 7])
def test_any_batch_size(size):
    x, y = torch.randn(size, 3, 5, 5), torch.zeros(size, dtype=torch.int64)
    for method in (MixUp(1.0, num_classes=2), CutMix(1.0, num_classes=2)):
        new_x, new_y = method.transform(x, y, generator())
        assert new_x.shape == x.shape
        torch.testing.assert_close(new_y, torch.tensor([[1.0, 0.0]]).repeat(size, 1))


TARGETS = {
    "classes": torch.arange(6) % 3,
    "soft": soft(),
    "several labels": (soft() > 0.3).long(),
    "values": torch.randn(6),
    "rows of values": torch.randn(6, 4),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("method", [MixUp, CutMix])
def test_kinds_of_targets(kind, method):
    y = TARGETS[kind]
    _, mixed = method(1.0, num_classes=3).transform(torch.randn(6, 3, 8, 8), y, generator())
    assert mixed.shape == ((6, 3) if kind == "classes" else y.shape)
    assert mixed.is_floating_point()
    low, high = (0.0, 1.0) if kind == "classes" else (float(y.min()), float(y.max()))
    assert mixed.min() >= low - 1e-6
    assert mixed.max() <= high + 1e-6
    if kind in ("classes", "soft"):
        torch.testing.assert_close(mixed.sum(1), torch.ones(6))


def test_inputs_of_any_shape_and_bf16():
    for shape in ((6, 4), (6, 3, 5), (6, 2, 3, 4, 5)):
        x = torch.randn(shape).bfloat16()
        new_x, new_y = MixUp(1.0, num_classes=3).transform(x, TARGETS["classes"], generator())
        assert new_x.shape == shape
        assert new_x.dtype == new_y.dtype == torch.bfloat16


def test_alpha_zero_switches_off():
    x, y = torch.randn(6, 3, 8, 8), TARGETS["classes"]
    for method in (MixUp(0, num_classes=3), CutMix(0.0, num_classes=3)):
        new_x, new_y = method.transform(x, y, generator())
        assert new_x is x
        assert new_y is y


# CutMix


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (32, 16)])
def test_cutmix_is_a_loop_over_pixels(height, width):
    x, y = torch.randn(6, 2, height, width), soft()
    box = boxes(
        torch.stack([torch.randint(height, (6,)), torch.randint(width, (6,))], 1),
        torch.stack([torch.randint(height + 1, (6,)), torch.randint(width + 1, (6,))], 1),
        height,
        width,
    )
    index = torch.randperm(6)
    new_x, new_y = cutmix(x, y, box, index)
    for i in range(6):
        top, left, bottom, right = box[i].tolist()
        expected, area = x[i].clone(), 0
        for r in range(height):
            for c in range(width):
                if top <= r < bottom and left <= c < right:
                    expected[:, r, c] = x[index[i], :, r, c]
                    area += 1
        assert torch.equal(new_x[i], expected)
        share = area / (height * width)
        torch.testing.assert_close(new_y[i], (1 - share) * y[i] + share * y[index[i]])


@pytest.mark.parametrize("side", [1, 2, 5, 6])
def test_boxes_keep_every_pixel(side):
    box = boxes(torch.tensor([[8, 8]]), torch.tensor([[side, side]]), 17, 17)[0]
    assert (box[2] - box[0], box[3] - box[1]) == (side, side)


def test_boxes_are_clipped():
    box = boxes(torch.tensor([[0, 9], [9, 0]]), torch.tensor([[4, 4], [5, 3]]), 10, 10)
    assert box.tolist() == [[0, 7, 2, 10], [7, 0, 10, 2]]


def test_cutmix_labels_are_the_true_share_of_pixels():
    # Images whose every pixel is their own number: what was pasted can be counted.
    n = 300
    x = torch.arange(n).float()[:, None, None, None].expand(n, 1, 9, 12)
    new_x, new_y = CutMix(1.0, num_classes=n).transform(x, torch.arange(n), generator())
    kept = (new_x == x).float().mean((1, 2, 3))
    torch.testing.assert_close(new_y[torch.arange(n), torch.arange(n)], kept)
    assert 0.5 < kept.mean() < 0.8  # 1/2 without clipping, more with


def test_cut_side_is_the_root_of_one_minus_lambda():
    # Yun et al.: the box before clipping has the area (1 - λ) H W.
    lam = torch.tensor([0.75])
    sides = ((1 - lam).sqrt()[:, None] * torch.tensor([32, 32])).round()
    assert sides.tolist() == [[16, 16]]
    shares = []
    for seed in range(60):
        x = torch.zeros(64, 1, 32, 32)
        x[32:] = 1
        y = torch.arange(64) // 32
        shares.append(CutMix(1.0, num_classes=2).transform(x, y, generator(seed))[1].max(1)[0])
    assert torch.cat(shares).min() >= 0.5


def test_mixup_then_cutmix_has_right_labels(make_trainer, plain_module):
    """Labels linear in the pixels: after both, each label is the mean of its image's pixels."""
    n, c = 32, 4
    y = torch.arange(n) % c
    x = torch.eye(c)[y][:, :, None, None].expand(n, c, 6, 6).contiguous()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(c * 36, c))
    module = plain_module(net, num_classes=c)
    make_trainer(callbacks=[MixUp(1.0), CutMix(1.0)]).fit(
        module, DataLoader(TensorDataset(x, y), 8)
    )
    for images, labels in module.seen:
        torch.testing.assert_close(images.mean((2, 3)), labels)
        assert ((labels > 0).sum(1) > 2).any()  # both have acted


# Cutout


def test_cutout_is_a_loop_over_pixels():
    x = torch.randn(5, 3, 9, 7)
    box = boxes(torch.tensor([[0, 0], [4, 3], [8, 6], [2, 6], [4, 0]]),
                torch.tensor([[3, 3]]).expand(5, 2), 9, 7)  # fmt: skip
    new = cutout(x, box, fill=2.0)
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        expected = x[i].clone()
        expected[:, top:bottom, left:right] = 2.0
        assert torch.equal(new[i], expected)


def test_cutout_sizes_and_dtypes():
    ones = torch.ones(400, 1, 12, 12)
    erased = (Cutout(4).transform(ones, ones, generator())[0] == 0).sum((1, 2, 3))
    assert erased.max() == 16
    assert erased.min() == 4  # centred on a corner
    shared = (Cutout(0.5).transform(ones, ones, generator())[0] == 0).sum((1, 2, 3))
    assert shared.max() == 36
    bytes_ = torch.full((3, 1, 8, 8), 200, dtype=torch.uint8)
    assert Cutout(4).transform(bytes_, bytes_, generator())[0].dtype == torch.uint8
    centres = np.array([
        np.argwhere(image.numpy() == 0).mean(0)
        for image in Cutout(1).transform(ones, ones, generator())[0][:, 0]
    ])  # fmt: skip
    assert stats.kstest((centres + 0.5).ravel() / 12, "uniform").pvalue > 1e-3


# Errors


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: MixUp(-0.1), "alpha=-0.1"),
        (lambda: CutMix(-1.0), "alpha=-1.0"),
        (lambda: MixUp(float("nan")), "alpha=nan"),
        (lambda: Cutout(1.5), "size=1.5"),
        (lambda: Cutout(-1), "size=-1"),
        (
            lambda: CutMix(num_classes=3).transform(torch.zeros(6, 10), TARGETS["classes"],
                                                    generator()),
            r"CutMix expects image batches \(N, C, H, W\), got shape \(6, 10\); use MixUp",
        ),
        (
            lambda: MixUp(num_classes=3).transform(torch.zeros(6, 4, dtype=torch.int64),
                                                   TARGETS["classes"], generator()),
            "floating-point inputs",
        ),
        (
            lambda: MixUp(num_classes=2).transform(torch.zeros(6, 4), TARGETS["classes"],
                                                   generator()),
            r"label 2, outside 0 … 1",
        ),
        (
            lambda: MixUp().transform(torch.zeros(6, 4), TARGETS["classes"], generator()),
            "set num_classes=",
        ),
    ],
)  # fmt: skip
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act()
