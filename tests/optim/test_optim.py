import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from dlblocks.optim import OPTIMIZERS, make_optimizer, make_schedule, param_groups

BY_HAND = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.95),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, alpha=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.001),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.001, weight_decay=0),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.001),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()


def train(module, optimizer, steps=20):
    torch.manual_seed(1)
    x = torch.randn(32, 4, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        (module(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_is_its_textbook_optimizer(name):
    ours, theirs = net(), net()
    by_name = train(ours, make_optimizer(name, ours))
    by_hand = train(theirs, BY_HAND[name](theirs.parameters()))
    torch.testing.assert_close(by_name, by_hand, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_moves_weights_but_not_norms_and_biases(name):
    def after(decay):
        module = net()
        for p in module.parameters():
            p.data.fill_(1.0)
        optimizer = make_optimizer(name, module, lr=0.1, weight_decay=decay)
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        return module

    for p in after(0.5).parameters():
        assert float(p.detach().mean()) == pytest.approx(0.95 if p.ndim > 1 else 1.0)


def test_groups_hold_each_trainable_parameter_once():
    module = net()
    module[0].bias.requires_grad_(False)
    module.tied = module[3]
    groups = param_groups(module, 0.1)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == 5
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert len(param_groups(module, 0.1, skip_norm_bias=False)) == 1
    for p in module.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        param_groups(module, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adan"}, "did you mean 'adam'"),
        ({"name": "adam", "lr": -1.0}, "lr=-1.0"),
        ({"name": "adam", "weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"name": "adam", "args": {"beta": 1}}, "did you mean 'betas'"),
        ({"name": "adagrad", "args": {"momentum": 0.9}}, "does not take"),
        ({"name": "adam", "args": {"lr": 0.1}}, "give it as lr="),
    ],
)
def test_bad_optimizers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(arguments.pop("name"), net(), **arguments)


def test_betas_from_yaml():
    optimizer = make_optimizer("adam", net(), args={"betas": [0.8, 0.9]})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


# Schedules


def rates(descriptions, optimizer, steps):
    """The learning rate of each step, with step-wise schedulers stepped after it."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for description in descriptions:
            if description["interval"] == "step":
                description["scheduler"].step()
    return found


def optimizer_at(lr=0.5, name="sgd"):
    optimizer = make_optimizer(name, nn.Linear(1, 1), lr=lr)
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    return optimizer


def schedule(name, steps, **arguments):
    optimizer = optimizer_at(name=arguments.pop("optimizer", "sgd"))
    return rates(make_schedule(name, optimizer, **arguments), optimizer, steps)


def test_constant_and_warmup():
    assert schedule("constant", 3) == [0.5] * 3
    assert schedule("constant", 6, warmup_steps=4) == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    )


def test_step_is_torchs_step_lr():
    optimizer = optimizer_at()
    theirs = StepLR(optimizer, step_size=2, gamma=0.3)
    expected = []
    for _ in range(7):
        expected += [optimizer.param_groups[0]["lr"]] * 5
        optimizer.step()
        theirs.step()
    ours = schedule("step", 35, steps_per_epoch=5, args={"step_size": 2, "gamma": 0.3})
    assert ours == pytest.approx(expected)


def test_cosine_is_torchs():
    optimizer = optimizer_at()
    theirs = CosineAnnealingLR(optimizer, T_max=20, eta_min=0.05)
    expected = rates([{"scheduler": theirs, "interval": "step"}], optimizer, 20)
    assert schedule("cosine", 20, total_steps=20, args={"final": 0.1}) == pytest.approx(expected)


def test_cosine_after_warmup():
    found = schedule("cosine", 30, total_steps=30, warmup_steps=10)
    assert found[:10] == pytest.approx([0.5 * (i + 1) / 10 for i in range(10)])
    expected = [0.25 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    assert found[10:] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adam", "sgd", "momentum", "adagrad"])
def test_one_cycle_is_torchs(name):
    optimizer = optimizer_at(name=name)
    cycles = name in ("adam", "momentum")
    theirs = OneCycleLR(optimizer, 0.5, total_steps=20, cycle_momentum=cycles)
    expected = rates([{"scheduler": theirs, "interval": "step"}], optimizer, 19)
    assert schedule("one_cycle", 19, total_steps=20, optimizer=name) == pytest.approx(expected)


@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
def test_plateau_with_warmup(warmup_steps):
    optimizer = optimizer_at()
    descriptions = make_schedule(
        "plateau", optimizer, warmup_steps=warmup_steps, args={"patience": 0, "factor": 0.1}
    )
    found = rates(descriptions, optimizer, 6)
    expected = [0.5 * min(1, (i + 1) / max(1, warmup_steps)) for i in range(6)]
    assert found == pytest.approx(expected)
    watch = descriptions[-1]
    assert isinstance(watch["scheduler"], ReduceLROnPlateau)
    assert (watch["monitor"], watch["interval"]) == ("val/loss", "epoch")
    for loss in (1.0, 1.0):
        watch["scheduler"].step(loss)
    assert rates(descriptions, optimizer, 2) == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        ("cosine", {}, "set max_epochs or max_steps"),
        ("one_cycle", {}, "set max_epochs or max_steps"),
        ("one_cycle", {"total_steps": 9, "warmup_steps": 2}, "warms up by itself"),
        ("step", {}, "length of an epoch"),
        ("step", {"args": {"stepsize": 3}}, "did you mean 'step_size'"),
        ("constant", {"args": {"gamma": 3}}, "it takes none"),
        ("cosine", {"total_steps": 5, "warmup_steps": 5}, "make it shorter"),
        ("constant", {"warmup_steps": -1}, "warmup_steps=-1"),
        ("plateau", {"args": {"mode": "mean"}}, "mode='mean'"),
    ],
)
def test_bad_schedules_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(name, optimizer_at(), **arguments)
