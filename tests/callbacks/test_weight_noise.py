"""Noise on the weights against a loop that is written out."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.callbacks import SAM, WeightNoise, add_weight_noise

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 3


def loader():
    return DataLoader(TensorDataset(X, Y), 4)


class Net(pl.LightningModule):
    """Keeps the weights with which each step computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))
        self.used = []

    def weights(self):
        return [p.detach().clone() for p in self.parameters()]

    def training_step(self, batch, batch_idx):
        self.used.append(self.weights())
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.validated = self.weights()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


class Watch(pl.Callback):
    """Keeps the clean weights before each batch and after it."""

    def __init__(self):
        self.before, self.after = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before.append(module.weights())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.after.append(module.weights())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_gradient_at_noisy_weights_steps_the_clean_ones(precision, make_trainer):
    module, watch = Net(), Watch()
    make_trainer(callbacks=[WeightNoise(0.3), watch], precision=precision).fit(
        module, loader(), loader()
    )
    names = [name for name, _ in module.named_parameters()]
    twin = Net()
    parameters = list(twin.parameters())
    noises = []
    for i, (clean, noisy, after) in enumerate(
        zip(watch.before, module.used, watch.after, strict=True)
    ):
        for name, a, b in zip(names, clean, noisy, strict=True):
            is_weight = name in ("net.0.weight", "net.3.weight")
            assert torch.equal(a, b) != is_weight  # norms and biases have none
        noises.append(torch.cat([(b - a).flatten() for a, b in zip(clean, noisy, strict=True)]))
        with torch.no_grad():
            for p, b in zip(parameters, noisy, strict=True):
                p.copy_(b)
        x, y = X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(twin.net(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        for a, g, c in zip(clean, gradients, after, strict=True):
            # Bit for bit: what the optimizer started from is the clean weight.
            assert torch.equal(a.add(g, alpha=-0.2), c)
    assert all(torch.equal(a, b) for a, b in zip(module.validated, watch.after[-1], strict=True))
    assert len({float(noise.sum()) for noise in noises}) == 6


def test_noise_has_its_standard_deviation():
    weight = torch.full((400, 500), 2.0)
    add_weight_noise([weight], 0.1, generator=torch.Generator().manual_seed(0))
    assert float((weight - 2).std()) == pytest.approx(0.1, rel=0.02)
    assert float((weight - 2).mean()) == pytest.approx(0.0, abs=1e-3)
    weight = torch.tensor([[0.0, 1.0, -10.0]]).repeat(100000, 1)
    add_weight_noise([weight], 0.1, relative=True, generator=torch.Generator().manual_seed(0))
    assert weight.std(0).tolist() == pytest.approx([0.0, 0.1, 1.0], rel=0.02)


def fit(callbacks, make_trainer, module=None, **arguments):
    module = module or Net()
    make_trainer(callbacks=callbacks, **arguments).fit(module, loader(), loader())
    return module


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_accumulated_batches_share_the_noise(make_trainer):
    used = fit([WeightNoise(0.3)], make_trainer, accumulate_grad_batches=3).used
    assert same(used[0], used[1])
    assert same(used[1], used[2])
    assert not same(used[2], used[3])


def test_draws_differ_by_seed_and_place_and_repeat(make_trainer):
    first = fit([WeightNoise(0.3)], make_trainer).used
    assert all(same(a, b) for a, b in zip(first, fit([WeightNoise(0.3)], make_trainer).used,
                                          strict=True))  # fmt: skip
    assert not same(first[0], fit([WeightNoise(0.3, seed=1)], make_trainer).used[0])
    clean = [p.detach() for p in Net().parameters()]
    twice = fit([WeightNoise(0.3), WeightNoise(0.3)], make_trainer).used
    share = (twice[0][0] - clean[0]) / (first[0][0] - clean[0])
    assert share.std() > 0.1  # the second noise is not the first once more


def test_lbfgs_sees_one_function_a_batch(make_trainer):
    class ByLBFGS(Net):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    watch = Watch()
    module = fit([WeightNoise(0.3), watch], make_trainer, ByLBFGS(), limit_train_batches=1)
    assert len(module.used) == 3
    first = [b - a for a, b in zip(watch.before[0], module.used[0], strict=True)]
    plain = fit([WeightNoise(0.0), Watch()], make_trainer, ByLBFGS(), limit_train_batches=1)
    assert not same(plain.used[1], module.used[1])
    # The last candidate is not known, but the noise on it is: it keeps its signs and size.
    assert float(first[0].std()) == pytest.approx(0.3, rel=0.4)
    assert all(p.isfinite().all() for p in watch.after[0])


def test_sam_runs_under_the_same_noise(make_trainer):
    used = fit([SAM(1e-7), WeightNoise(0.3)], make_trainer, accumulate_grad_batches=2).used
    for first in (0, 4, 8):
        for a, b in ((0, 1), (0, 2), (0, 3)):
            pairs = zip(used[first + a], used[first + b], strict=True)
            assert all(torch.allclose(x, y, atol=1e-5) for x, y in pairs)
    assert not torch.allclose(used[0][0], used[4][0], atol=1e-2)


def test_patterns_and_frozen_parameters(make_trainer):
    module = Net()
    module.net[3].weight.requires_grad_(False)
    watch = Watch()
    callback = WeightNoise(0.3, include=["net.0.*", "net.3.*"], exclude=["net.3.bias"])
    fit([callback, watch], make_trainer, module)
    changed = [
        name
        for (name, _), a, b in zip(
            module.named_parameters(), watch.before[0], module.used[0], strict=True
        )
        if not torch.equal(a, b)
    ]
    assert changed == ["net.0.weight", "net.0.bias"]


def test_checkpoints_in_mid_epoch_hold_clean_weights(make_trainer, tmp_path):
    watch = Watch()
    checkpoint = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1,
        save_on_train_epoch_end=False,
    )  # fmt: skip
    fit([WeightNoise(0.3), watch, checkpoint], make_trainer, enable_checkpointing=True)
    for step in (1, 4):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert same(list(saved.values()), watch.after[step - 1])


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("where", ["forward", "backward", "skip"])
def test_weights_come_back_whatever_happens(where, make_trainer):
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if where == "forward":
                raise RuntimeError("on purpose")
            return None if where == "skip" else loss

        def on_before_backward(self, loss):
            raise RuntimeError("on purpose")

    module = Fails()
    clean = module.weights()
    if where == "skip":
        fit([WeightNoise(0.3)], make_trainer, module)
    else:
        with pytest.raises(RuntimeError, match="on purpose"):
            fit([WeightNoise(0.3)], make_trainer, module)
    assert not same(module.used[0], clean)
    assert same(module.weights(), clean)
    assert "training_step" not in vars(module)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_window_whose_last_batch_is_left_out(make_trainer):
    """The optimizer steps nevertheless, and from the clean weights."""

    class Skips(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

        def on_before_optimizer_step(self, optimizer):
            self.stepped = self.weights()

    module, watch = Skips(), Watch()
    arguments = {"accumulate_grad_batches": 2, "limit_train_batches": 2}
    fit([WeightNoise(0.3), watch], make_trainer, module, **arguments)
    assert same(module.stepped, watch.before[0])
    assert not same(watch.after[1], watch.before[0])


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (Net, {"std": -0.1}, "std=-0.1 is outside"),
        (Net, {"std": float("nan")}, "std=nan"),
        (Net, {"std": 0.1, "include": ["net.0.wieght"]}, "did you mean 'net.0.weight'"),
        (Net, {"std": 0.1, "exclude": ["conv.*"]}, "'conv.*', which matches no parameter"),
        (Net, {"std": 0.1, "exclude": ["net.*"]}, "leave no parameter of Net"),
        (Manual, {"std": 0.1}, "automatic_optimization=False"),
    ],
)
def test_bad_input(module, arguments, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        fit([WeightNoise(**arguments)], make_trainer, module())


def test_a_pattern_alone_is_no_list(make_trainer):
    with pytest.raises(TypeError, match=r"must be a list, such as \['net.\*'\]"):
        fit([WeightNoise(0.1, include="net.*")], make_trainer)
