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


def test_causality_by_gradients():
    model = small((2, 2, 3))
    values = model.net.values
    seen = []
    values.register_forward_hook(lambda *args: seen.append(args[-1]) or args[-1].retain_grad())
    logits = model.net(torch.randint(0, 3, (1, 11)))
    assert logits.shape == (1, 12, 3)
    for i in range(12):
        if seen[0].grad is not None:
            seen[0].grad = None
        logits[0, i].square().sum().backward(retain_graph=True)
        used = seen[0].grad[0].abs().sum(1) > 0  # of each pixel
        assert used.tolist() == [True] * i + [False] * (11 - i)


@pytest.mark.parametrize("num_classes", [None, 2])
def test_probabilities_of_all_images_add_up_to_1(num_classes):
    model = small(num_classes=num_classes)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).reshape(-1, 1, 2, 2)
    for label in (0, 1):
        labels = None if num_classes is None else torch.full((81,), label)
        with torch.no_grad():
            bits = model.scores(every, labels, Noise(0, range(81)))
        assert float((2.0 ** (-4 * bits)).sum()) == pytest.approx(1, abs=1e-4)


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
