import math
import pickle

import numpy as np
import pytest
import torch
from conftest import no_address
from scipy import stats
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF
from torchvision.transforms import v2

from dlblocks.callbacks import Augment, adjust_color

EVERYTHING = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "crop_padding": 2,
    "translation": 0.1,
    "rotation": 20,
    "scale": (0.8, 1.2),
    "shear": 5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "noise": 0.05,
    "erase": 0.5,
}


def transform(images, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return Augment(**arguments).transform(images, torch.zeros(len(images)), generator)[0]


def uint8_images(size, *shape):
    return torch.randint(0, 256, (size, *shape), dtype=torch.uint8)


# Flips and crops


def test_flips_alone_are_exact():
    images = uint8_images(400, 1, 5, 7)
    flipped = transform(images, horizontal_flip=0.3)
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    assert (is_flipped | (flipped == images).flatten(1).all(1)).all()
    assert 0.2 < is_flipped.float().mean() < 0.4
    assert torch.equal(transform(images), images)
    assert torch.equal(transform(images, horizontal_flip=1.0), images.flip(3))
    assert torch.equal(transform(images, vertical_flip=1.0), images.flip(2))
    both = transform(images, horizontal_flip=0.5, vertical_flip=0.5)
    kinds = [(both == images.flip(axes)).flatten(1).all(1) for axes in ([], [2], [3], [2, 3])]
    assert all(60 < kind.sum() < 140 for kind in kinds)  # 100 ± 9: independent of each other


def test_crops_are_those_of_torchvision_and_all_equally_likely():
    image = torch.arange(1, 13, dtype=torch.uint8).view(1, 3, 4)
    crops = {
        tuple(TF.crop(TF.pad(image, [1, 1, 1, 1]), i, j, 3, 4).flatten().tolist()): 0
        for i in range(3)
        for j in range(3)
    }
    assert len(crops) == 9
    for crop in transform(image.expand(4500, 1, 3, 4), crop_padding=1):
        crops[tuple(crop.flatten().tolist())] += 1  # a KeyError if it is none of the nine
    assert stats.chisquare(list(crops.values())).pvalue > 0.01


@pytest.mark.parametrize("side", [12, 60])
def test_crop_within_an_affine_map_is_the_same_shift(side):
    """A rotation of nothing takes the other path, with the same draws."""
    images = torch.rand(8, 3, side, side)
    exact = transform(images, crop_padding=3, horizontal_flip=0.5)
    resampled = transform(images, crop_padding=3, horizontal_flip=0.5, rotation=1e-4)
    torch.testing.assert_close(resampled, exact, atol=2e-3, rtol=0)


def test_draws_are_uniform_in_their_ranges():
    # A ramp shows how far it was moved: by a uniform part of its width, in both directions.
    width = 101
    images = torch.arange(width).float().expand(2000, 1, 3, width)
    moved = transform(images, translation=0.2, padding="border")
    shift = (images - moved)[:, 0, 1, width // 2] / width
    assert shift.abs().max() <= 0.2
    assert stats.kstest(shift.numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 0.01


# Colours


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.7])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_are_torchvisions(name, factor, channels):
    if name == "saturation" and channels == 1:
        with pytest.raises(ValueError, match=r"saturation needs colour images.*\(5, 1, 8, 9\)"):
            adjust_color(torch.rand(5, 1, 8, 9), saturation=torch.ones(5))
        return
    theirs = getattr(v2.functional, f"adjust_{name}")
    factors = torch.linspace(factor, factor + 0.2, 5)  # each image its own
    images = torch.rand(5, channels, 8, 9)
    found = adjust_color(images, **{name: factors})
    expected = torch.stack([theirs(x, float(f)) for x, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    levels = uint8_images(5, channels, 8, 9)
    found = adjust_color(levels, **{name: factors})
    assert found.dtype == torch.uint8
    exact = torch.stack([theirs(x / 255, float(f)) for x, f in zip(levels, factors, strict=True)])
    torch.testing.assert_close(found.float(), exact * 255, atol=0.501, rtol=0)  # rounded once
    # torchvision cuts off the decimals of uint8, of the grey too.
    expected = torch.stack([theirs(x, float(f)) for x, f in zip(levels, factors, strict=True)])
    assert (found.int() - expected.int()).abs().max() <= 2


def test_colours_together_are_one_after_another():
    images = torch.rand(6, 3, 7, 7)
    b, c, s = torch.rand(3, 6) * 2
    found = adjust_color(images, brightness=b, contrast=c, saturation=s)
    for i in range(6):
        x = v2.functional.adjust_brightness(images[i], float(b[i]))
        x = v2.functional.adjust_contrast(x, float(c[i]))
        x = v2.functional.adjust_saturation(x, float(s[i]))
        torch.testing.assert_close(found[i], x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.4, 1.5])
def test_factors_are_uniform_about_one(share):
    images = torch.full((3000, 1, 2, 2), 0.25)
    factor = transform(images, brightness=share)[:, 0, 0, 0] / 0.25
    low = max(0, 1 - share)
    assert low <= factor.min()
    assert factor.max() <= 1 + share
    inside = factor[factor > 0].numpy()  # below 0 a factor is 0
    assert stats.kstest(inside, stats.uniform(low, 1 + share - low).cdf).pvalue > 0.01
    assert (factor == 0).float().mean() == pytest.approx(max(0, share - 1) / (2 * share), abs=0.03)


# Noise and erasing


def test_noise_is_gaussian_in_units_of_the_range():
    images = torch.full((64, 3, 16, 16), 0.5)
    found = transform(images, noise=0.05)
    assert stats.kstest((found - 0.5).flatten().numpy(), stats.norm(0, 0.05).cdf).pvalue > 0.01
    assert len({image.numpy().tobytes() for image in found}) == 64
    levels = torch.full((64, 3, 16, 16), 128, dtype=torch.uint8)
    spread = transform(levels, noise=0.05).float().std().item()
    assert spread == pytest.approx(0.05 * 255, rel=0.03)
    black = transform(torch.zeros_like(levels), noise=0.2)
    assert 0.4 < (black == 0).float().mean() < 0.6  # cut off, not wrapped around to 255
    assert black.max() < 255


def test_erasing_is_torchvisions_with_the_box_of_each_image():
    images = uint8_images(300, 3, 20, 30).clamp_(min=1)
    found = transform(images, erase=0.4)
    count = 0
    for before, after in zip(images, found, strict=True):
        gone = (after != before).any(0)
        if not gone.any():
            assert torch.equal(after, before)
            continue
        count += 1
        rows, columns = gone.any(1).nonzero()[:, 0], gone.any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        sides = len(rows), len(columns)
        assert torch.equal(after, TF.erase(before, top, left, *sides, torch.zeros(())))
    assert 90 < count < 150  # 120 ± 8


def test_area_ratio_and_place_of_what_is_erased():
    images = torch.ones(4000, 1, 60, 60)
    found = transform(images, erase=1.0, erase_area=(0.1, 0.2), erase_ratio=(0.5, 2.0))[:, 0] == 0
    height, width = found.any(2).sum(1), found.any(1).sum(1)
    area = (height * width).float() / 3600
    assert stats.kstest(area.numpy(), stats.uniform(0.1, 0.1).cdf).statistic < 0.04
    ratio = (height / width).log() / math.log(2)
    assert stats.kstest(ratio.numpy(), stats.uniform(-1, 2).cdf).statistic < 0.04
    top = found.any(2).int().argmax(1)
    place = (top / (60 - height)).numpy()
    assert stats.kstest(place, stats.uniform(0, 1).cdf).statistic < 0.04
    assert (place == 1).any()  # boxes reach the last row


# All together


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_dtype_stay_and_the_original_is_left_alone(dtype):
    images = torch.rand(6, 3, 9, 11)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
    kept = images.clone()
    for name, value in EVERYTHING.items():
        found = transform(images, **{name: value})
        assert (found.dtype, found.shape) == (dtype, images.shape), name
        assert not torch.equal(found, images), name
    found = transform(images, **EVERYTHING)
    assert (found.dtype, found.shape) == (dtype, images.shape)
    assert torch.equal(images, kept)


def test_precisions_agree():
    images = torch.rand(16, 3, 12, 12)
    # Noise leaves [0, 1] in floating point, where it is cut off in uint8.
    arguments = {**EVERYTHING, "noise": 0.0}
    exact = transform(images.double(), **arguments)
    torch.testing.assert_close(transform(images, **arguments), exact.float(), atol=1e-3, rtol=0)
    half = transform(images.bfloat16(), **arguments)
    torch.testing.assert_close(half.double(), exact, atol=0.06, rtol=0)
    levels = transform((images * 255).round().byte(), **arguments)
    torch.testing.assert_close(levels.double() / 255, exact, atol=0.02, rtol=0)


def test_one_part_moves_no_draw_of_another():
    images = torch.ones(50, 3, 10, 10)
    alone = transform(images, erase=0.5) == 0
    together = transform(images, erase=0.5, brightness=0.3, horizontal_flip=0.5) == 0
    assert torch.equal(alone, together)


def test_same_seed_same_images_other_seed_others():
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(transform(images, **EVERYTHING), transform(images, **EVERYTHING))
    assert not torch.equal(transform(images, seed=1, **EVERYTHING), transform(images, **EVERYTHING))
    again = pickle.loads(pickle.dumps(Augment(**EVERYTHING)))
    generator = torch.Generator().manual_seed(0)
    found = again.transform(images, torch.zeros(4), generator)[0]
    assert torch.equal(found, transform(images, **EVERYTHING))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation": -1}, "rotation=-1"),
        ({"scale": (1.2, 0.8)}, "low <= high"),
        ({"scale": (0.0, 1.0)}, "0 < low"),
        ({"scale": 1.1}, "scale=1.1 must be two factors"),
        ({"scale": (0.9, 1, 1.1)}, "must be two factors"),
        ({"scale": "ab"}, "scale='ab' must be two factors"),
        ({"shear": 90}, "shear=90"),
        ({"translation": 2}, "translation=2"),
        ({"horizontal_flip": 1.1}, "horizontal_flip=1.1"),
        ({"vertical_flip": -0.1}, "vertical_flip=-0.1"),
        ({"padding": "zero"}, "did you mean 'zeros'"),
        ({"crop_padding": -4}, "crop_padding=-4"),
        ({"crop_padding": 0.1}, "crop_padding=0.1 must be a whole number"),
        ({"brightness": -0.1}, "brightness=-0.1"),
        ({"contrast": np.nan}, "contrast=nan"),
        ({"saturation": math.inf}, "saturation=inf"),
        ({"noise": -1}, "noise=-1"),
        ({"erase": 2}, "erase=2"),
        ({"erase_area": (0.1, 1.1)}, "erase_area=1.1"),
        ({"erase_ratio": (0, 1)}, r"erase_ratio=\(0, 1\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)


def test_tables_are_refused():
    with pytest.raises(ValueError, match="Augment expects image batches"):
        transform(torch.zeros(4, 10), rotation=5)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.bool], ids=no_address)
def test_other_integers_than_uint8_are_refused(dtype):
    with pytest.raises(ValueError, match=f"uint8 or floating point, got {dtype}"):
        transform(torch.ones(2, 1, 4, 4, dtype=dtype), rotation=5)


def test_colours_of_normalised_images_are_refused():
    images = torch.randn(4, 3, 8, 8)
    for name in ("brightness", "contrast", "saturation"):
        with pytest.raises(ValueError, match=r"raw images.*got values from -.*normalise afterw"):
            transform(images, **{name: 0.2})
    transform(images, rotation=5, noise=0.1, erase=0.5)  # these need no range


@pytest.mark.parametrize("large", [1, 1 << 40])
def test_crops_of_a_users_own_batches_with_channels_last(
    large, monkeypatch, make_trainer, plain_module
):
    monkeypatch.setattr("dlblocks._geometry.LARGE_IMAGE", large)
    arrays = np.random.default_rng(0).integers(1, 256, (4, 16, 12, 3), dtype=np.uint8)

    def collate(rows):
        images = torch.from_numpy(np.stack([image for image, _ in rows])).permute(0, 3, 1, 2)
        return images, torch.tensor([target for _, target in rows])

    class Look(plain_module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.seen.append(batch[0])
            return batch[0][:, 0, :2, :2].float().flatten(1), batch[1]

    module = Look()
    loader = DataLoader([(image, 0) for image in arrays], 4, collate_fn=collate)
    make_trainer(callbacks=[Augment(crop_padding=2)]).fit(module, loader)
    padded = np.pad(arrays, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, whole in zip(module.seen[0].permute(0, 2, 3, 1).numpy(), padded, strict=True):
        crops = [whole[i : i + 16, j : j + 12] for i in range(5) for j in range(5)]
        assert any(np.array_equal(image, crop) for crop in crops)
