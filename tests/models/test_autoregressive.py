"""Causality, exact likelihood and sampling of autoregressive models."""

import itertools

import pytest
import torch

from dlblocks.models import PixelAutoregressive
from dlblocks.models._noise import Noise


def small(shape=(1, 2, 2), **arguments):
    torch.manual_seed(0)
    model = PixelAutoregressive(
        shape, **{"levels": 3, "width": 8, "depth": 2, "heads": 2, **arguments}
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def test_a_pixel_depends_on_those_before_it_alone():
    model = small((2, 3, 3), levels=9)
    levels = torch.randint(0, 8, (1, 17))
    before = model.net(levels)
    assert before.shape == (1, 18, 9)
    for i in range(17):
        changed = levels.clone()
        changed[0, i] += 1
        differs = (model.net(changed) != before).any(2)[0]
        assert differs.tolist() == [False] * (i + 1) + [True] * (17 - i)


def test_pixels_above_are_given():
    """With attention to the last token alone, a pixel knows the one before and three above."""
    model = small((2, 3, 4), levels=9, depth=1)
    for block in model.net.blocks:
        torch.nn.init.zeros_(block.join.weight)
    levels = torch.randint(0, 8, (1, 23))
    before = model.net(levels)
    for i in range(23):
        changed = levels.clone()
        changed[0, i] += 1
        found = (model.net(changed) != before).any(2)[0].nonzero().flatten().tolist()
        row, column = i // 4 % 3, i % 4
        below = [i + 4 + aside for aside in (-1, 0, 1) if 0 <= column + aside < 4]
        assert found == sorted({i + 1, *(below if row < 2 else [])})


@pytest.mark.parametrize("num_classes", [None, 2])
def test_probabilities_of_all_images_add_up_to_1(num_classes):
    model = small(num_classes=num_classes)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)
    for label in (0, 1):
        labels = None if num_classes is None else torch.full((81,), label)
        with torch.no_grad():
            bits = model.scores(every, labels, Noise(0, range(81)))
        assert float((2.0 ** (-4 * bits)).sum()) == pytest.approx(1, abs=1e-4)


def test_a_net_of_zeros_has_the_shares_of_the_levels():
    model = small((1, 1, 2))
    torch.nn.init.zeros_(model.net.head.weight)
    torch.nn.init.zeros_(model.net.head.bias)
    levels = torch.tensor([[0, 1], [0, 2], [2, 2], [0, 0]]).view(4, 1, 1, 2)
    model.learn_levels(levels)
    shares = torch.tensor([[3, 0, 1], [1, 1, 2]]).add(1 / 3) / 5
    with torch.no_grad():
        bits = model.scores(levels, None, Noise(0, range(4)))
    expected = -shares[torch.arange(2), levels[:, 0, 0]].log2().mean(1)
    torch.testing.assert_close(bits, expected)


def test_samples_have_their_probabilities():
    model = small((1, 1, 2))
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        shares = 2.0 ** (-2 * model.scores(every, None, Noise(0, range(9))))
    levels = model.to_levels(model.preprocess(model.sample(20_000, batch_size=5000)))
    counts = torch.bincount(levels.flatten(1) @ torch.tensor([3, 1]), minlength=9) / 20_000
    assert float((counts - shares).abs().max()) < 0.012
    cold = model.sample(50, temperature=1e-4)
    assert torch.equal(cold, cold[:1].expand_as(cold))


def test_dropout_ends_with_training():
    model = small(dropout=0.5)
    levels = torch.randint(0, 3, (4, 3))
    assert torch.equal(model.net(levels), model.net(levels))
    model.train()
    assert not torch.equal(model.net(levels), model.net(levels))


def test_arguments():
    with pytest.raises(ValueError, match="heads=3 does not divide width=8"):
        small(heads=3)
    with pytest.raises(ValueError, match="temperature=0"):
        small().sample(2, temperature=0.0)
    with pytest.raises(ValueError, match="guidance=2"):
        small(num_classes=3).sample(2, guidance=2.0)
