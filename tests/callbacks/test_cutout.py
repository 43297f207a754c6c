"""Cutout against a loop over pixels."""

import numpy as np
import pytest
import torch
from scipy import stats

from dlblocks.callbacks import Cutout, boxes, cutout


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("planes", [3, 2000])  # by a mask, one after another
@pytest.mark.parametrize("fill", [0.0, 1.0, 2.0])
def test_cutout_is_a_loop_over_pixels(fill, planes, dtype):
    if (dtype, fill) == (torch.bool, 2.0):
        pytest.skip("no such value")
    x = torch.randint(0, 9, (5, planes, 9, 7)).to(dtype)
    box = boxes(torch.tensor([[0, 0], [4, 3], [8, 6], [2, 6], [4, 0]]),
                torch.tensor([[3, 3]]).expand(5, 2), 9, 7)  # fmt: skip
    new = cutout(x, box, fill)
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        expected = x[i].clone()
        expected[:, top:bottom, left:right] = fill
        assert torch.equal(new[i], expected)


def test_cutout_sizes_and_dtypes():
    ones, none = torch.ones(400, 1, 12, 12), torch.zeros(400)
    erased = (Cutout(4).transform(ones, none, generator())[0] == 0).sum((1, 2, 3))
    assert erased.max() == 16
    assert erased.min() == 4  # centred on a corner
    shared = (Cutout(0.5).transform(ones, none, generator())[0] == 0).sum((1, 2, 3))
    assert shared.max() == 36
    bytes_ = torch.full((3, 1, 8, 8), 200, dtype=torch.uint8)
    assert Cutout(4).transform(bytes_, none[:3], generator())[0].dtype == torch.uint8
    centres = np.array([
        np.argwhere(image.numpy() == 0).mean(0)
        for image in Cutout(1).transform(ones, none, generator())[0][:, 0]
    ])  # fmt: skip
    assert stats.kstest((centres + 0.5).ravel() / 12, "uniform").pvalue > 1e-3
