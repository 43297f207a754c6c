import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import InputNoise, gaussian_noise, salt_and_pepper


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(400, 25), (20, 5, 100), (10, 1, 50, 20)])
def test_gaussian_noise_is_normal(shape):
    x = torch.randn(shape)
    kept = x.clone()
    noise = (gaussian_noise(x, 0.3, generator()) - x).flatten()
    assert stats.kstest(noise.numpy(), stats.norm(0, 0.3).cdf).pvalue > 0.01
    assert torch.equal(x, kept)
    assert gaussian_noise(x.bfloat16(), 0.3, generator()).dtype == torch.bfloat16


@pytest.mark.parametrize("per_channel", [False, True])
def test_salt_and_pepper_is_a_loop_over_pixels(per_channel):
    x = torch.randn(3, 2, 4, 5)
    new = salt_and_pepper(x, 0.4, per_channel=per_channel, generator=generator(1))
    draw = torch.rand(3, 2 if per_channel else 1, 4, 5, generator=generator(1))
    for i in range(3):
        for c in range(2):
            low, high = x[:, c].min(), x[:, c].max()
            for r in range(4):
                for q in range(5):
                    u = float(draw[i, c if per_channel else 0, r, q])
                    expected = low if u < 0.2 else high if u < 0.4 else x[i, c, r, q]
                    assert new[i, c, r, q] == expected


def test_shares_of_salt_and_pepper():
    x = torch.full((50, 3, 40, 40), 0.5)
    new = salt_and_pepper(x, 0.2, low=-1.0, high=2.0, generator=generator())
    for value in (-1.0, 2.0):
        share = float((new == value).all(1).float().mean())  # all channels of a pixel alike
        assert share == pytest.approx(0.1, abs=0.005)
    apart = salt_and_pepper(x, 0.2, low=-1.0, high=2.0, per_channel=True, generator=generator())
    changed = (apart != 0.5).float()
    assert float(changed.mean()) == pytest.approx(0.2, abs=0.005)
    assert float(changed.prod(1).mean()) == pytest.approx(0.2**3, abs=0.003)


def test_only_in_training_and_the_targets_stay(make_trainer, plain_module):
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    validated = []

    class Validated(plain_module):
        def validation_step(self, batch, batch_idx):
            validated.append(batch[0])

    module, data = Validated(), DataLoader(TensorDataset(x, y), 4)
    make_trainer(callbacks=[InputNoise(0.1)]).fit(module, data, data)
    seen = torch.cat([batch[0] for batch in module.seen])
    assert 0.05 < float((seen - x).std()) < 0.15
    assert torch.equal(torch.cat([batch[1] for batch in module.seen]), y)
    assert torch.equal(torch.cat(validated)[8:], x)


def test_batches_without_targets(make_trainer, plain_module):
    class Autoencoder(plain_module):
        def training_step(self, batch, batch_idx):
            self.seen.append((batch[0], batch[0]))
            return self.net(batch[0]).square().mean()

    module, x = Autoencoder(), torch.randn(12, 4)
    make_trainer(callbacks=[InputNoise(0.1)]).fit(module, DataLoader(TensorDataset(x), 4))
    assert not torch.equal(torch.cat([batch[0] for batch in module.seen]), x)


@pytest.mark.parametrize("key", [None, "x"])
def test_several_inputs(key):
    inputs = [torch.zeros(100, 2), torch.zeros(100, 2)]
    batch = inputs if key is None else {"x": inputs, "y": 1}
    new = InputNoise(0.1, input_key=key).apply(batch, epoch=0, step=0, rank=0)
    first, second = new if key is None else new["x"]
    assert 0.05 < float(first.std()) < 0.15
    assert not torch.equal(first, second)
    assert not inputs[0].any()


def test_zero_switches_off():
    x = torch.randn(4, 1, 3, 3)
    assert InputNoise(0.0).transform(x, x, generator())[0] is x
    assert InputNoise(kind="salt_and_pepper", amount=0.0).transform(x, x, generator())[0] is x


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: InputNoise(-0.1), "std=-0.1 is outside"),
        (lambda: InputNoise(), r"kind='gaussian'\) needs std="),
        (lambda: InputNoise(kind="salt_and_pepper"), "needs amount="),
        (lambda: InputNoise(kind="salt_and_pepper", amount=1.5), r"amount=1.5 is outside \[0, 1\]"),
        (lambda: InputNoise(0.1, kind="gausian"), "did you mean 'gaussian'"),
        (lambda: InputNoise(kind="salt_and_pepper", amount=0.1, low=1, high=0), "not below"),
        (lambda: InputNoise(0.1).transform(torch.zeros(4, 2).long(), None, generator()), "int64"),
        (
            lambda: InputNoise(kind="salt_and_pepper", amount=0.1).transform(
                torch.zeros(4, 2), None, generator()
            ),
            r"expects image batches \(N, C, H, W\), got shape \(4, 2\); use kind='gaussian'",
        ),
    ],
)
def test_bad_input(act, message):
    with pytest.raises(ValueError, match=message):
        act()
