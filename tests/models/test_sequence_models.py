"""Models of sequences and patches: statistics, attention, figures, and a fit of each."""

import numpy as np
import pytest
import torch

from dlblocks import plots
from dlblocks.data import ArrayDataModule
from dlblocks.models import RNNClassifier, RNNRegressor, TransformerClassifier, ViTClassifier

MODELS = {
    "lstm": lambda: RNNClassifier(4, 3, hidden=8, layers=2, bidirectional=True, lr=0.02),
    "gru": lambda: RNNClassifier(4, 3, kind="gru", hidden=8, readout="mean", lr=0.02),
    "rnn": lambda: RNNClassifier(4, 3, kind="rnn", hidden=8, lr=0.02),
    "transformer": lambda: TransformerClassifier(4, 3, width=16, num_heads=2, lr=0.005),
    "vit": lambda: ViTClassifier(
        1, 3, image_size=4, patch_size=1, width=16, depth=1, num_heads=2, lr=0.005
    ),
}


def make_images(count=96):
    """A bright row, whose number is the class."""
    rng = np.random.default_rng(0)
    targets = np.arange(count) % 3
    images = rng.integers(0, 100, (count, 1, 4, 4), dtype=np.uint8)
    images[np.arange(count), 0, targets] += 120
    return images, targets


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_rows_of_images(name, make_trainer):
    data = ArrayDataModule(*make_images(), val_fraction=0.25, batch_size=8)
    trainer = make_trainer(max_epochs=15)
    trainer.fit(MODELS[name](), datamodule=data)
    assert trainer.callback_metrics["val/accuracy"] > 0.8


def test_hyperparameters_rebuild_the_model(make_trainer, tmp_path):
    for make in MODELS.values():
        model = make()
        model.save(tmp_path / "model.ckpt")
        again = type(model).load_from_checkpoint(tmp_path / "model.ckpt")
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)
    assert RNNRegressor(3, 2, hidden=4)(torch.zeros(5, 6, 3)).shape == (5, 2)


def test_a_model_that_does_not_fit_the_data_is_refused(make_trainer):
    data = ArrayDataModule(*make_images(), val_fraction=0.25)
    with pytest.raises(ValueError, match=r"in_features=5, but a row .* set in_features=4"):
        make_trainer().fit(RNNClassifier(5, 3), datamodule=data)
    model = ViTClassifier(1, 3, image_size=8, patch_size=2, width=8, num_heads=2)
    with pytest.raises(ValueError, match=r"ViT expects images \(1, 8, 8\)"):
        make_trainer().fit(model, datamodule=data)


# Figures


def test_the_figure_of_attention_shows_the_weights():
    model = TransformerClassifier(4, 3, width=8, depth=2, num_heads=2)
    maps = [block[0] for block in model.attention_maps(torch.randn(2, 5, 4))]
    figure = plots.attention(maps, list("ab$de"), title="$")
    axes = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in axes[:4]] == [
        f"block {block}, head {head}" for block in (1, 2) for head in (1, 2)
    ]
    for axis, weights in zip(axes, torch.cat(maps), strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), weights.numpy())
    highest = max(float(block.max()) for block in maps)
    assert all(axis.images[0].get_clim() == (0, highest) for axis in axes[:4])
    plots.save(figure, "attention.png")
    with pytest.raises(ValueError, match="4 names for 5 positions"):
        plots.attention(maps, list("abcd"))
    with pytest.raises(ValueError, match=r"maps has shapes \(5, 5\), .* of one sequence"):
        plots.attention([block[0] for block in maps])


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_the_figure_of_patches_shows_their_share(pool):
    model = ViTClassifier(
        1, 3, image_size=4, patch_size=2, width=8, depth=1, num_heads=2, pool=pool
    )
    images = torch.randint(0, 255, (3, 1, 4, 4), dtype=torch.uint8)
    weights = model.attention_maps(images.float())[-1]
    figure = plots.attention_on_images(images, weights, model.net.grid, titles=["a", "b", "$"])
    drawn = [axis.images[0].get_array() for axis in figure.axes]
    for i in range(3):
        shares = np.zeros(4)
        for head in range(2):
            for query in [0] if pool == "token" else range(4):
                shares += weights[i, head, query, -4:].numpy()
        expected = shares.reshape(2, 2) / shares.max()
        np.testing.assert_allclose(drawn[3 + i], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"T = 9 or 10 for a grid of 3 × 3 patches"):
        plots.attention_on_images(images, weights, (3, 3))
