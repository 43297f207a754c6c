"""Tiled prediction is that of the whole image, where the model sees no further than the overlap."""

import pytest
import torch
from torch import nn

from dlblocks._geometry import tile_starts
from dlblocks.models import Segmenter, UNetSegmenter, predict_tiles
from dlblocks.models.tiles import _fades


def local(channels=2):
    """Sees two pixels far."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, channels, 3, padding=1),
    )  # fmt: skip


@pytest.mark.parametrize("size", [(40, 50), (16, 16), (17, 33), (9, 64), (5, 7)])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 8), (20, 12), (16, 15)])
def test_a_local_net_is_exact(size, tile, overlap):
    net = local().eval()
    images = torch.randn(2, 1, *size)
    found = predict_tiles(net, images, tile=tile, overlap=overlap, batch_size=3)
    torch.testing.assert_close(found, net(images), atol=1e-5, rtol=1e-5)


def test_too_little_overlap_shows():
    net, images = local().eval(), torch.randn(1, 1, 40, 40)
    found = predict_tiles(net, images, tile=16, overlap=0)
    error = (found - net(images)).abs().amax((0, 1))
    assert error.max() > 1e-3
    assert error[2:14, 2:14].max() < 1e-5  # only near the seams


@pytest.mark.parametrize(("side", "tile", "overlap"), [(40, 16, 4), (17, 16, 15), (10, 16, 3)])
def test_shares_sum_to_one(side, tile, overlap):
    starts = tile_starts(side, tile, tile - overlap)
    sums = torch.zeros(side, dtype=torch.float64)
    for start, fade in zip(starts, _fades(starts, side, tile), strict=True):
        sums[start : start + len(fade)] += fade
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_a_u_net_is_exact_where_tiles_are_aligned():
    # Depth 1: a pixel sees at most 8 far, a quarter of the overlap.
    model = UNetSegmenter(1, 3, width=4, depth=1, norm=None).eval()
    images = torch.randn(1, 1, 96, 128)
    found = predict_tiles(model, images, tile=64, overlap=32)
    torch.testing.assert_close(found, model(images).softmax(1), atol=1e-5, rtol=1e-4)


def test_model_gets_raw_images_gives_probabilities_and_keeps_its_mode():
    model = Segmenter(local(3), 3)
    model.preprocess.set(scale=torch.tensor(2.0), shift=torch.tensor(1.0))
    model.net[1].eval()
    images = torch.randn(1, 1, 30, 20)
    found = predict_tiles(model, images, tile=16, overlap=8)
    assert model.training
    assert not model.net[1].training
    torch.testing.assert_close(found, model.eval()(images).softmax(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 30, 20))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tile": 0, "overlap": 0}, "tile=0"),
        ({"tile": 8, "overlap": 8}, "overlap=8 must be less than tile=8"),
        ({"tile": 8, "overlap": -1}, "overlap=-1"),
    ],
)
def test_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        predict_tiles(local(), torch.zeros(1, 1, 20, 20), **arguments)
    with pytest.raises(ValueError, match="must keep height and width"):
        predict_tiles(nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 20, 20), tile=8, overlap=2)
    with pytest.raises(ValueError, match=r"expected \(N, C, H, W\)"):
        predict_tiles(local(), torch.zeros(1, 20, 20), tile=8, overlap=2)
