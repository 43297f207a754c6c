import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from dlblocks.callbacks import CutMix, Cutout, MixUp, boxes, cutmix, cutout, mixup
from dlblocks.callbacks._mixing import draw_mix
from dlblocks.losses import MixedTargets, cross_entropy


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


def test_partners_are_a_cycle_and_uniform():
    counts = torch.zeros(6, 6)
    for seed in range(3000):
        index = draw_mix(6, 1.0, generator(seed), per_sample=True)[1]
        visited, place = [], 0
        for _ in range(6):
            visited.append(place)
            place = int(index[place])
        assert sorted(visited) == list(range(6))
        assert place == 0
        counts[torch.arange(6), index] += 1
    assert not counts.diagonal().any()
    others = counts[~torch.eye(6, dtype=torch.bool)].numpy()
    assert stats.chisquare(others).pvalue > 0.01


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


def slow_mixup(x, y, lam, index):
    """The paper's sentence, value by value."""
    new_x, new_y = x.clone(), y.clone()
    for i in range(len(x)):
        for new, old in ((new_x, x), (new_y, y)):
            flat, own, other = new[i].view(-1), old[i].reshape(-1), old[int(index[i])].reshape(-1)
            for k in range(len(flat)):
                flat[k] = lam[i] * own[k] + (1 - lam[i]) * other[k]
    return new_x, new_y


def slow_cutmix(x, box, index):
    """Pixel by pixel; also gives the share of pixels kept."""
    new, kept = x.clone(), torch.ones(len(x))
    height, width = x.shape[-2:]
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        for r in range(height):
            for c in range(width):
                if top <= r < bottom and left <= c < right:
                    new[i, ..., r, c] = x[int(index[i]), ..., r, c]
                    kept[i] -= 1 / (height * width)
    return new, kept


def test_the_callbacks_are_the_slow_loops_of_what_they_draw():
    x, classes, y = torch.rand(6, 2, 5, 7), TARGETS["classes"], torch.eye(3)[TARGETS["classes"]]
    method = MixUp(0.7, num_classes=3)
    plan = method.draw(x, generator(3))
    expected = slow_mixup(x, y, plan.lam, plan.partner)
    found = method.transform(x, classes, generator(3))
    torch.testing.assert_close(found, expected)

    cut = CutMix(0.7, num_classes=3)
    plan = cut.draw(x, generator(3))
    expected_x, kept = slow_cutmix(x, plan.box, plan.partner)
    new_x, new_y = cut.transform(x, classes, generator(3))
    assert torch.equal(new_x, expected_x)
    torch.testing.assert_close(plan.lam, kept)
    torch.testing.assert_close(new_y, slow_mixup(y, y, kept, plan.partner)[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded"])
@pytest.mark.parametrize("side", [6, 40, 130])
def test_dtypes_and_memory_formats_stay(side, layout, dtype):
    x = torch.randn(6, 4, side, side).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.randn(6, 4, side, 2 * side).to(dtype)[..., ::2]
    elif layout == "expanded":
        x = x[:, :1].expand(6, 4, side, side)
    kept = x.clone()
    for method in (
        MixUp(1.0, num_classes=3),
        CutMix(num_classes=3),
        Cutout(0.5),
        Cutout(3, fill=2),
    ):
        new_x, new_y = method.transform(x, TARGETS["classes"], generator(1))
        exact = x.double().contiguous()
        reference, _ = method.transform(exact, TARGETS["classes"], generator(1))
        # λ is rounded to the dtype too, alike for inputs and targets; pasting is exact.
        error = (new_x.double() - reference).abs().max()
        assert error <= (8 * torch.finfo(dtype).eps if isinstance(method, MixUp) else 0)
        assert torch.equal(x, kept)
        if not isinstance(method, Cutout):
            assert new_y.dtype == dtype
        if layout == "channels_last":
            assert new_x.is_contiguous(memory_format=torch.channels_last)


def test_integer_images():
    x = torch.randint(256, (6, 3, 9, 9), dtype=torch.uint8, generator=generator())
    plan = MixUp(1.0).draw(x, generator(2))
    new_x, new_y = MixUp(1.0, num_classes=3).transform(x, TARGETS["classes"], generator(2))
    exact, _ = slow_mixup(x.double(), soft(), plan.lam.double(), plan.partner)
    assert new_x.dtype == torch.uint8
    assert (new_x.double() - exact).abs().max() <= 0.5 + 1e-4
    assert new_y.dtype == torch.float32
    for dtype in (torch.uint8, torch.int16, torch.int64, torch.bool):
        new_x, _ = CutMix(num_classes=3).transform(x.to(dtype), TARGETS["classes"], generator(2))
        assert new_x.dtype == dtype
    with pytest.raises(ValueError, match=r"got torch.int64 of shape \(6, 20\).*token numbers"):
        MixUp(num_classes=3).transform(torch.zeros(6, 20).long(), TARGETS["classes"], generator())


@pytest.mark.parametrize("side", [8, 64])
def test_missing_values_stay_where_they_are(side):
    """NaN, infinity and -0 outside the box are not touched, inside they are the partner's."""
    x = torch.randn(6, 3, side, side)
    x[0], x[1], x[2, :, ::2], x[3, :, :, ::3] = torch.nan, torch.inf, -0.0, -torch.inf
    plan = CutMix().draw(x, generator())
    new_x, _ = CutMix().transform(x, soft(), generator())
    expected, _ = slow_cutmix(x, plan.box, plan.partner)
    assert torch.equal(new_x.view(torch.int32), expected.view(torch.int32))
    erased, _ = Cutout(0.5).transform(x, soft(), generator())
    assert erased[0].isnan().any()
    assert (erased[0] == 0).any()


def test_lazy_views_are_read_by_value():
    x = torch.randn(6, 1, 64, 64, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    for method in (CutMix(), Cutout(0.5)):
        found, _ = method.transform(x, soft(), generator())
        assert torch.equal(found, method.transform(x.resolve_neg(), soft(), generator())[0])


def test_gradients_flow_through_the_pure_functions():
    """Manifold mixup (Verma et al. 2019) mixes hidden activations."""
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    y, lam, index = (
        soft(3).double(),
        torch.tensor([0.2, 0.9, 0.5]).double(),
        torch.tensor([1, 2, 0]),
    )
    box = torch.tensor([[0, 0, 2, 3], [1, 1, 1, 4], [2, 0, 4, 4]])
    assert torch.autograd.gradcheck(lambda x: mixup(x, y, lam, index)[0], x)
    assert torch.autograd.gradcheck(lambda x: cutmix(x, y, box, index)[0], x)
    assert torch.autograd.gradcheck(lambda x: cutout(x, box), x)
    plain = x.detach()
    assert torch.equal(cutmix(x, y, box, index)[0], cutmix(plain, y, box, index)[0])
    assert torch.equal(cutout(x, box), cutout(plain, box))


def test_nothing_waits_for_a_device():
    """Tensors on "meta" have no values: reading one, which would stop an accelerator, raises."""
    x, y = torch.rand(6, 3, 40, 40, device="meta"), torch.rand(6, 3, device="meta")
    index, box = torch.arange(6, device="meta"), torch.zeros(6, 4, device="meta").long()
    assert mixup(x, y, torch.rand(6, device="meta"), index)[1].shape == (6, 3)
    assert cutmix(x, y, box, index)[0].shape == x.shape
    assert cutout(x, box, fill=1.0).shape == x.shape
    labels = torch.zeros(6, device="meta").long()
    for method in (
        MixUp(num_classes=3),
        CutMix(num_classes=3),
        MixUp(targets="pair", num_classes=3),
    ):
        method._looked = True  # the first batch's labels are looked at, once
        new_x, new_y = method.transform(x, labels, generator())
        assert new_x.device.type == "meta"
        assert len(new_y) == (3 if isinstance(new_y, MixedTargets) else 6)
    assert Cutout().transform(x, labels, generator())[0].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_waits_for_the_gpu():
    x, labels = torch.rand(6, 3, 40, 40, device="cuda"), torch.arange(6, device="cuda") % 3
    methods = [MixUp(num_classes=3), CutMix(num_classes=3), Cutout()]
    cpu = [m.transform(x.cpu(), labels.cpu(), generator(1)) for m in methods]
    for method in methods:
        method.transform(x, labels, generator())
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [m.transform(x, labels, generator(1)) for m in methods]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for on_gpu, on_cpu in zip(found, cpu, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, check_device=False)


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


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_areas_are_distributed_as_the_papers(alpha):
    """Against the pseudo-code of Yun et al. in NumPy, which draws λ, centre and box its own way."""
    height, width, n = 30, 20, 3000
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(n):
        lam = rng.beta(alpha, alpha)
        h, w = round(height * np.sqrt(1 - lam)), round(width * np.sqrt(1 - lam))
        r, c = rng.integers(height), rng.integers(width)
        top, left = r - h // 2, c - w // 2
        rows = sum(0 <= i < height for i in range(top, top + h))
        columns = sum(0 <= i < width for i in range(left, left + w))
        expected.append(1 - rows * columns / (height * width))
    plan = CutMix(alpha).draw(torch.empty(n, 1, height, width), generator())
    assert stats.ks_2samp(plan.lam.numpy(), expected).pvalue > 0.01
    # Without clipping, the share would be λ itself: the test can tell them apart.
    assert stats.ks_2samp(plan.lam.numpy(), rng.beta(alpha, alpha, n)).pvalue < 1e-6


def test_one_box_a_batch_on_request():
    plan = CutMix(per_sample=False).draw(torch.empty(9, 1, 8, 8), generator())
    assert len(plan.box.unique(dim=0)) == len(plan.lam.unique()) == 1
    assert len(plan.partner.unique()) == 9


# Targets


def test_masks_of_classes():
    x = torch.rand(6, 3, 9, 7)
    masks = torch.randint(4, (6, 9, 7), generator=generator())
    masks[:, 0] = 255
    plan = CutMix().draw(x, generator())
    new_x, pasted = CutMix().transform(x, masks, generator())
    assert torch.equal(pasted, slow_cutmix(masks, plan.box, plan.partner)[0])
    assert torch.equal(new_x, slow_cutmix(x, plan.box, plan.partner)[0])
    rows = masks[:, None].float()
    assert torch.equal(CutMix().transform(x, rows, generator())[1], pasted[:, None].float())

    method = MixUp(1.0, num_classes=4, ignore_index=255)
    plan = method.draw(x, generator())
    _, mixed = method.transform(x, masks, generator())
    one_hot = torch.stack([(masks == c).float() for c in range(4)], 1)
    torch.testing.assert_close(mixed, slow_mixup(x, one_hot, plan.lam, plan.partner)[1])
    with pytest.raises(ValueError, match=r"label 255, outside 0 … 3.*ignore_index"):
        MixUp(1.0, num_classes=4).transform(x, masks, generator())


def test_ignored_classes_stay_ignored():
    y = torch.tensor([0, -100, 2, -100])
    logits = torch.randn(4, 3)
    mixed = MixUp(1.0, num_classes=3).unmixed(logits)
    rows = MixUp(1.0, num_classes=3)._mix_target(y, logits, mixed, True)
    assert rows.sum(1).tolist() == [1, 0, 1, 0]
    expected = torch.nn.functional.cross_entropy(logits, y)
    torch.testing.assert_close(cross_entropy(logits, rows), expected)


@pytest.mark.parametrize("kind", TARGETS)
def test_pairs_are_the_soft_targets_in_two_parts(kind):
    x, y = torch.randn(6, 3, 8, 8), TARGETS[kind]
    for make in (MixUp, CutMix):
        _, whole = make(1.0, num_classes=3).transform(x, y, generator())
        _, pair = make(1.0, num_classes=3, targets="pair").transform(x, y, generator())
        assert pair.first is y
        assert pair.second.dtype == y.dtype
        first, second = (
            torch.eye(3)[part] if kind == "classes" else part.float() for part in pair[:2]
        )
        lam = pair.lam.reshape(-1, *(1,) * (first.ndim - 1))
        torch.testing.assert_close(lam * first + (1 - lam) * second, whole)


def test_several_labels_keep_their_shape():
    """timm makes (20, 5) of (4, 5)."""
    y = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    for form in (y, y.bool(), y.float()):
        mixed = MixUp(1.0, num_classes=5).transform(torch.rand(4, 3), form, generator())[1]
        plan = MixUp(1.0).draw(torch.rand(4, 3), generator())
        torch.testing.assert_close(mixed, slow_mixup(y, y.float(), plan.lam, plan.partner)[1])


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
        (lambda: MixUp(float("inf")), "alpha=inf"),
        (lambda: CutMix(num_classes=1), "num_classes=1 is outside"),
        (lambda: MixUp(targets="hard"), "targets='hard'"),
        (
            lambda: MixUp(num_classes=3).transform(torch.zeros(6, 4), torch.ones(6, 5).long(),
                                                   generator()),
            r"integer targets of shape \(6, 5\).*\(N, 3\)",
        ),
        (
            lambda: MixUp().transform(torch.zeros(6, 4), torch.full((6, 5), 2), generator()),
            "several labels as 0 and 1",
        ),
        (
            lambda: MixUp(num_classes=3).transform(torch.zeros(6, 4), torch.zeros(5), generator()),
            r"6 inputs but targets of shape \(5,\)",
        ),
        (
            lambda: MixUp(num_classes=3).transform(torch.zeros(6, 4), torch.tensor(1.0),
                                                   generator()),
            r"targets of shape \(\)",
        ),
        (
            lambda: CutMix(num_classes=3).transform(torch.zeros(6, 3, 8, 8), torch.zeros(6, 4, 4),
                                                    generator()),
            "targets of the images' height and width",
        ),
        (
            lambda: Cutout(fill=0.5).transform(torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2),
                                               generator()),
            "fill=0.5 does not fit images of torch.uint8",
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
