import pytest
import torch
from conftest import no_address
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as TF

from dlblocks.callbacks import affine, affine_matrix, shift_flip


def one(value):
    return torch.tensor([float(value)])


def ours(image, angle=0, move=(0, 0), scale=1, shear=0, flip=(False, False), **arguments):
    matrix = affine_matrix(
        one(angle), torch.tensor([move], dtype=torch.float32), one(scale), one(shear),
        torch.tensor([flip]),
    )  # fmt: skip
    return affine(image[None], matrix, **arguments)[0]


# Affine maps


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (31, 17)])
@pytest.mark.parametrize(
    ("angle", "move", "scale", "shear"),
    [
        (30, (0, 0), 1, 0),
        (-75, (0, 0), 1, 0),
        (0, (3, -2), 1, 0),
        (0, (0, 0), 1.4, 0),
        (0, (0, 0), 1, 20),
        (17, (2, 1), 0.8, -12),
    ],
)
def test_affine_is_torchvisions(size, angle, move, scale, shear):
    image = torch.rand(3, *size)
    expected = TF.affine(
        image, angle, list(move), scale, [shear, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(ours(image, angle, move, scale, shear), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_affine_is_opencvs(padding):
    """A second opinion, which maps by another formula: corners of pixels, not centres."""
    cv2 = pytest.importorskip("cv2")
    image = torch.rand(40, 60)
    height, width = image.shape
    # OpenCV turns against the clock for positive angles, about a pixel's centre.
    forward = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -25, 1.2)
    forward[:, 2] += (4, -3)
    mode = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}[padding]
    expected = cv2.warpAffine(
        image.numpy(), forward, (width, height), flags=cv2.INTER_LINEAR, borderMode=mode
    )
    found = ours(image[None], 25, (4, -3), 1.2, padding=padding)[0]
    # Older versions of OpenCV round positions to 1/32 of a pixel.
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=0.04, rtol=0)


@pytest.mark.parametrize("flip", [(True, False), (False, True), (True, True)])
def test_flip_comes_first(flip):
    image = torch.rand(1, 9, 12)
    flipped = TF.hflip(image) if flip[0] else image
    flipped = TF.vflip(flipped) if flip[1] else flipped
    expected = TF.affine(
        flipped, 25, [1, 2], 1.1, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(ours(image, 25, (1, 2), 1.1, flip=flip), expected, atol=2e-4, rtol=0)


def test_identity_and_quarter_turn():
    image = torch.rand(2, 8, 8)
    torch.testing.assert_close(ours(image), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(image, 90), torch.rot90(image, -1, (1, 2)), atol=1e-4, rtol=0)


def test_each_sample_has_its_own_map():
    images = torch.rand(5, 1, 10, 10)
    angle, scale = torch.linspace(-40, 40, 5), torch.linspace(0.8, 1.2, 5)
    matrix = affine_matrix(
        angle, torch.zeros(5, 2), scale, torch.zeros(5), torch.zeros(5, 2, dtype=torch.bool)
    )
    together = affine(images, matrix)
    for i in range(5):
        torch.testing.assert_close(together[i], ours(images[i], angle[i], scale=scale[i]))


def test_dtypes_and_padding():
    image = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    turned = ours(image, 20)
    assert turned.dtype == torch.uint8
    exact = ours(image.float(), 20)
    assert (turned.float() - exact).abs().max() <= 0.5
    assert ours(image.bfloat16(), 20).dtype == torch.bfloat16
    assert ours(image.double(), 20).dtype == torch.float64
    moved = ours(image, move=(8, 0))
    assert (moved == 0).all()
    assert (ours(image, move=(8, 0), padding="border") == image[..., :1]).all()


@pytest.mark.parametrize("at_once", [1, 50, 300])  # a row, some rows, two images
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_parts_are_those_of_the_whole(dtype, at_once, monkeypatch):
    monkeypatch.setattr("dlblocks._geometry.AT_ONCE", at_once)
    images = torch.randint(256, (5, 3, 9, 16))
    zeros, nearest = torch.zeros(5), dtype == torch.int64
    matrix = affine_matrix(
        50 * torch.rand(5), torch.randn(5, 2), 0.7 + torch.rand(5), zeros, torch.rand(5, 2) < 0.5
    )
    size = torch.tensor([16.0, 9.0])
    linear = matrix[:, :, :2] * size / size[:, None]
    grid = torch.nn.functional.affine_grid(
        torch.cat([linear, matrix[:, :, 2:] * 2 / size[:, None]], dim=2), [5, 3, 9, 16],
        align_corners=False,
    )  # fmt: skip
    expected = torch.nn.functional.grid_sample(
        images.float(), grid, mode="nearest" if nearest else "bilinear", align_corners=False
    )
    large = 2**24 * nearest
    found = affine((images + large).to(dtype), matrix, nearest=nearest, fill=large)
    if nearest:
        assert (found - large == expected).float().mean() > 0.98
    else:
        allowed = 0.51 if dtype == torch.uint8 else 1e-2
        torch.testing.assert_close(found.float(), expected, atol=allowed, rtol=0)


# Whole pixels


def slow_shift_flip(images, shift, flip, padding):
    """One sample, one step at a time, by torchvision."""
    margin = 7
    result = []
    for image, (x, y), (across, down) in zip(images, shift.tolist(), flip.tolist(), strict=True):
        image = TF.hflip(image) if across else image
        image = TF.vflip(image) if down else image
        mode = {"zeros": "constant", "border": "edge", "reflection": "symmetric"}[padding]
        padded = v2.functional.pad(image, [margin] * 4, padding_mode=mode)
        height, width = image.shape[1:]
        result.append(TF.crop(padded, margin - y, margin - x, height, width))
    return torch.stack(result)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("shape", [(12, 3, 9, 7), (12, 1, 8, 8), (12, 3, 30, 20)], ids=no_address)
@pytest.mark.parametrize("large", [1, 1 << 40])  # one by one, and all together
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=no_address)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=no_address)
def test_shift_flip_is_torchvisions_flip_pad_and_crop(
    padding, shape, dtype, layout, large, monkeypatch
):
    monkeypatch.setattr("dlblocks._geometry.LARGE_IMAGE", large)
    monkeypatch.setattr("dlblocks._geometry.COPIED_AT_ONCE", 1000)  # five small images
    images = torch.randint(0, 256, shape).to(dtype).to(memory_format=layout)
    shift = torch.randint(-7, 8, (12, 2))
    flip = torch.rand(12, 2) < 0.5
    found = shift_flip(images, shift, flip, padding=padding)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, slow_shift_flip(images, shift, flip, padding))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_shift_flip_is_the_affine_map_of_whole_pixels(padding):
    images = torch.rand(16, 3, 11, 14)
    shift, flip = torch.randint(-5, 6, (16, 2)), torch.rand(16, 2) < 0.5
    zeros = torch.zeros(16)
    matrix = affine_matrix(zeros, shift.float(), torch.ones(16), zeros, flip)
    torch.testing.assert_close(
        shift_flip(images, shift, flip, padding=padding),
        affine(images, matrix, padding=padding),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("large", [1, 1 << 40])
def test_shift_beyond_the_image_and_other_layouts(large, monkeypatch):
    monkeypatch.setattr("dlblocks._geometry.LARGE_IMAGE", large)
    images = torch.rand(2, 3, 6, 5).permute(0, 1, 3, 2)  # not contiguous
    none = torch.zeros(2, 2, dtype=torch.bool)
    assert (shift_flip(images, torch.tensor([[6, 0], [0, -9]]), none) == 0).all()
    assert torch.equal(shift_flip(images, torch.zeros(2, 2, dtype=torch.int64), none), images)
    assert shift_flip(images[:0], torch.zeros(0, 2, dtype=torch.int64), none[:0]).shape[0] == 0
    assert affine(images[:0], torch.zeros(0, 2, 3)).shape == (0, 3, 5, 6)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_the_nearest_pixel_is_the_same_for_every_dtype(padding, dtype):
    generator = torch.Generator().manual_seed(0)
    size, count = (23, 31), 64
    maps = torch.randint(256, (count, 1, *size), generator=generator)
    flip = torch.rand(count, 2, generator=generator) < 0.5
    angle, slant, scale, *move = torch.rand(5, count, generator=generator)
    matrix = affine_matrix(
        360 * angle, 40 * torch.stack(move, 1) - 20, 0.5 + scale, 30 * slant, flip
    )  # fmt: skip
    # Large integers are gathered, all others sampled.
    fill = 0 if dtype.is_floating_point else 255
    large = 2**24  # float32 does not hold the numbers from here on
    expected = affine(maps + large, matrix, padding=padding, nearest=True, fill=fill + large)
    expected = expected - large
    found = affine(maps.to(dtype), matrix, padding=padding, nearest=True, fill=fill)
    assert found.dtype == dtype and (expected == fill).any()
    assert torch.equal(found.long(), expected)
