import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dlblocks.callbacks import Augment, affine, affine_matrix


def one(value):
    return torch.tensor([float(value)])


def ours(image, angle=0, move=(0, 0), scale=1, shear=0, flip=False, **arguments):
    matrix = affine_matrix(
        one(angle), torch.tensor([move], dtype=torch.float32), one(scale), one(shear),
        torch.tensor([flip]),
    )  # fmt: skip
    return affine(image[None], matrix, **arguments)[0]


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


def test_flip_comes_first():
    image = torch.rand(1, 9, 12)
    expected = TF.affine(
        TF.hflip(image), 25, [1, 2], 1.1, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(ours(image, 25, (1, 2), 1.1, flip=True), expected, atol=2e-4, rtol=0)


def test_identity_and_quarter_turn():
    image = torch.rand(2, 8, 8)
    torch.testing.assert_close(ours(image), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(image, 90), torch.rot90(image, -1, (1, 2)), atol=1e-4, rtol=0)


def test_each_sample_has_its_own_map():
    images = torch.rand(5, 1, 10, 10)
    angle, scale = torch.linspace(-40, 40, 5), torch.linspace(0.8, 1.2, 5)
    matrix = affine_matrix(
        angle, torch.zeros(5, 2), scale, torch.zeros(5), torch.zeros(5, dtype=torch.bool)
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


def transform(images, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return Augment(**arguments).transform(images, torch.zeros(len(images)), generator)[0]


def test_flips_alone_are_exact():
    images = torch.randint(0, 256, (400, 1, 5, 7), dtype=torch.uint8)
    flipped = transform(images, horizontal_flip=0.3)
    is_flipped = (flipped == images.flip(3)).flatten(1).all(1)
    assert (is_flipped | (flipped == images).flatten(1).all(1)).all()
    assert 0.2 < is_flipped.float().mean() < 0.4
    assert torch.equal(transform(images), images)
    assert torch.equal(transform(images, horizontal_flip=1.0), images.flip(3))


def test_draws_are_uniform_in_their_ranges():
    # A ramp shows how far it was moved: by a uniform part of its width, in both directions.
    width = 101
    images = torch.arange(width).float().expand(2000, 1, 3, width)
    moved = transform(images, translation=0.2, padding="border")
    shift = (images - moved)[:, 0, 1, width // 2] / width
    assert shift.abs().max() <= 0.2
    assert stats.kstest(shift.numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 0.01


def test_the_original_is_left_alone():
    images = torch.rand(4, 1, 8, 8)
    kept = images.clone()
    transform(images, rotation=20, translation=0.1, scale=(0.8, 1.2), shear=5, horizontal_flip=0.5)
    assert torch.equal(images, kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation": -1}, "rotation=-1"),
        ({"scale": (1.2, 0.8)}, "low <= high"),
        ({"scale": (0.0, 1.0)}, "0 < low"),
        ({"shear": 90}, "shear=90"),
        ({"translation": 2}, "translation=2"),
        ({"horizontal_flip": 1.1}, "horizontal_flip=1.1"),
        ({"padding": "zero"}, "did you mean 'zeros'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augment(**arguments)


def test_tables_are_refused():
    with pytest.raises(ValueError, match="Augment expects image batches"):
        transform(torch.zeros(4, 10), rotation=5)
