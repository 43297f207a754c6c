import inspect
import math

import adamp
import pytest
import torch
from torch import nn

from dlblocks.optim import OPTIMIZERS, Lion, check_optimizer, describe, make_optimizer, param_groups

BY_HAND = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.95),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, alpha=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.001),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.001, weight_decay=0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.002),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.001),
    "adamp": lambda p: adamp.AdamP(p, lr=0.001),
    "sgdp": lambda p: adamp.SGDP(p, lr=0.1, momentum=0.9, nesterov=True),
    "lion": lambda p: Lion(p, lr=0.0001),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=1, line_search_fn="strong_wolfe"),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()


def train(module, optimizer, steps=20):
    torch.manual_seed(1)
    x = torch.randn(32, 4, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = (module(x) - x[:, :1]).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_name_is_its_textbook_optimizer(name):
    ours, theirs = net(), net()
    by_name = train(ours, make_optimizer(name, ours))
    by_hand = train(theirs, BY_HAND[name](theirs.parameters()))
    exact = name not in ("adamp", "sgdp")  # the authors' own round in another order
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(by_name, by_hand, **tolerance)


def test_the_table_of_the_docstring_is_that_of_the_code():
    rows = [line.split() for line in make_optimizer.__doc__.splitlines()]
    table = {row[0]: row for row in rows if row and row[0] in OPTIMIZERS}
    assert list(table) == list(OPTIMIZERS)
    for name, spec in OPTIMIZERS.items():
        assert spec.cls.__name__ in table[name][1]
        assert any(word == str(spec.lr) for word in table[name])
        assert spec.paper.split()[-1] in table[name]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.9)])
def test_radam_is_its_paper(betas):
    """Liu et al. 2020, Algorithm 2; rectified from ρ > 5, as in the authors' code (paper: > 4)."""
    p = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    module = nn.Module()
    module.p = p
    optimizer = make_optimizer("radam", module, lr=0.1, args={"betas": list(betas)})
    beta1, beta2 = betas
    theta, m, v = 1.0, 0.0, 0.0
    limit = 2 / (1 - beta2) - 1
    for t in range(1, 13):
        g = math.sin(3 * t) + 2
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        rho = limit - 2 * t * beta2**t / (1 - beta2**t)
        step = m / (1 - beta1**t)
        if rho > 5:
            r = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
            step *= math.sqrt(r) * math.sqrt(1 - beta2**t) / (math.sqrt(v) + 1e-8)
        theta -= 0.1 * step
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        assert p.item() == pytest.approx(theta, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw", "adamp", "lion"])
def test_decay_moves_weights_but_not_norms_and_biases(name):
    def after(decay):
        module = net()
        for p in module.parameters():
            p.data.fill_(1.0)
        args = {"wd_ratio": 1.0} if name == "adamp" else {}  # a gradient of 0 is projected
        optimizer = make_optimizer(name, module, lr=0.1, weight_decay=decay, args=args)
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
        ({"name": "adam", "args": {"momentum": 0.9}}, "does not take"),
        ({"name": "momentum", "args": {"momentum": -1.0}}, "Invalid momentum value"),
        ({"name": "adamp", "args": {"delta": -1.0}}, "delta=-1.0"),
        ({"name": "adamp", "args": {"wdratio": 1.0}}, "did you mean 'wd_ratio'"),
        ({"name": "lbfgs", "weight_decay": 0.1}, "has none"),
        ({"name": "lbfgs", "args": {"layer_decay": 0.1}}, "does not take"),
        ({"name": "torch.optim.Rprop", "weight_decay": 0.1}, "has none"),
        ({"name": "torch.optim.Adamx"}, "did you mean 'torch.optim.Adam"),
        ({"name": "torch.optim.Optimizer"}, "is not known"),
        ({"name": "torch.optim.lr_scheduler.StepLR"}, "is not known"),
        ({"name": "os.system"}, "is not known"),
        ({"name": "dlblocks.optim.describe"}, "is not known"),
        ({"name": None}, "is not known"),
        ({"name": "adam", "args": {"lr_groups": {"0": -1.0}}}, r"lr_groups\['0'\]=-1.0"),
        ({"name": "adam", "args": {"lr_groups": {"haed": 2.0}}}, "no parameter"),
        ({"name": "adam", "args": {"lr_groups": {"0.wieght": 2.0}}}, "did you mean '0.weight'"),
        ({"name": "adam", "args": {"layer_decay": 0.0}}, "layer_decay=0.0"),
    ],
)
def test_bad_optimizers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(arguments.pop("name"), net(), **arguments)


def test_betas_from_yaml():
    optimizer = make_optimizer("adam", net(), args={"betas": [0.8, 0.9]})
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_class_paths():
    assert type(make_optimizer("torch.optim.Adamax", net())) is torch.optim.Adamax
    assert make_optimizer("torch.optim.Adamax", net()).param_groups[0]["lr"] == 0.002
    assert type(make_optimizer("dlblocks.optim.Lion", net())) is Lion
    found = make_optimizer("torch.optim.Rprop", net(), lr=0.5)
    assert (type(found), found.param_groups[0]["lr"]) == (torch.optim.Rprop, 0.5)


@pytest.mark.parametrize("name", torch.optim.__all__)
def test_every_class_of_torch_has_a_rate_to_begin_with(name):
    cls = getattr(torch.optim, name)
    if not inspect.isclass(cls) or cls is torch.optim.Optimizer:
        pytest.skip("not an optimizer")
    check_optimizer(f"torch.optim.{name}")
    assert isinstance(inspect.signature(cls).parameters["lr"].default, (int, float))


def deep():
    return nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 4)), nn.Linear(4, 1)
    )


def rates_by_name(module, **arguments):
    names = {id(p): name for name, p in module.named_parameters()}
    groups = param_groups(module, 0.0, lr=1.0, **arguments)
    return {names[id(p)]: g.get("lr", 1.0) for g in groups for p in g["params"]}


def test_layer_wise_decay_of_the_rate():
    expected = {"0.weight": 0.25, "0.bias": 0.25, "1.weight": 0.25, "1.bias": 0.25}
    expected |= {"2.0.weight": 0.5, "2.0.bias": 0.5, "3.weight": 1.0, "3.bias": 1.0}
    assert rates_by_name(deep(), layer_decay=0.5) == expected
    frozen = deep()
    frozen[3].requires_grad_(False)  # the last layer that learns has the whole rate
    assert rates_by_name(frozen, layer_decay=0.5)["2.0.weight"] == 1.0


def test_rates_by_name():
    found = rates_by_name(deep(), lr_groups={"2": 10.0, "*.bias": 2.0, "3.weight": 0.0})
    expected = {"0.weight": 1.0, "0.bias": 2.0, "1.weight": 1.0, "1.bias": 2.0}
    expected |= {"2.0.weight": 10.0, "2.0.bias": 2.0, "3.weight": 0.0, "3.bias": 2.0}
    assert found == expected
    both = rates_by_name(deep(), lr_groups={"0": 10.0}, layer_decay=0.5)
    assert (both["0.weight"], both["2.0.weight"]) == (2.5, 0.5)
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    assert rates_by_name(tied, lr_groups={"1": 3.0}) == {"0.weight": 3.0}


def test_every_optimizer_takes_groups():
    for name in OPTIMIZERS.keys() - {"lbfgs"}:
        args = {"layer_decay": 0.5, "lr_groups": {"0": 10.0}, "skip_norm_bias": False}
        optimizer = make_optimizer(name, deep(), lr=0.1, weight_decay=0.2, args=args)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.25, 0.025, 0.05, 0.1])
        assert {g["weight_decay"] for g in optimizer.param_groups} == {0.2}


def test_describe():
    module = deep()
    args = {"lr_groups": {"3": 10.0}}
    optimizer = make_optimizer("adamp", module, lr=0.01, weight_decay=0.1, args=args)
    lines = describe(module, optimizer).splitlines()
    assert lines[0] == "AdamP"
    assert lines[1].split() == ["group", "lr", "weight_decay", "tensors", "values", "parameters"]
    assert lines[2].split() == ["0", "0.01", "0.1", "2", "18", "0.weight,", "2.0.weight"]
    assert lines[4].split()[:5] == ["2", "0.01", "0", "4", "13"]
    assert len(lines) == 6
    with pytest.raises(TypeError, match="pass one, describe"):
        describe(module)
