import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from dlblocks.optim import make_optimizer, make_schedule


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
        ("exponential", {}, "'unit': 'step'"),
        ("polynomial", {}, "'length'"),
        ("multi_step", {"steps_per_epoch": 1}, "milestones"),
        ("multi_step", {"args": {"milestones": [3, 2]}}, "must increase"),
        ("cosine", {"total_steps": 5, "args": {"unit": "steps"}}, "did you mean 'step'"),
        ("cosine", {"total_steps": 5, "args": {"length": 0}}, "length=0"),
        ("cosine_restarts", {"args": {"period_factor": 0.5}}, "period_factor=0.5"),
        ("one_cycle", {"total_steps": 9, "args": {"pct_strat": 2}}, "did you mean 'pct_start'"),
        ("step", {"args": {"stepsize": 3}}, "did you mean 'step_size'"),
        ("constant", {"args": {"gamma": 3}}, "it takes none"),
        ("cosine", {"total_steps": 5, "warmup_steps": 5}, "make it shorter"),
        ("constant", {"warmup_steps": -1}, "warmup_steps=-1"),
        ("plateau", {"args": {"mode": "mean"}}, "mode='mean'"),
        ("plateau", {"args": {"factor": -0.5}}, "factor=-0.5"),
        ("plateau", {"args": {"factor": 1.0}}, "factor=1.0"),
        ("plateau", {"args": {"patience": -1}}, "patience=-1"),
        ("one_cycle", {"total_steps": 9, "args": {"div_factor": -2}}, "div_factor=-2"),
        ("one_cycle", {"total_steps": 9, "args": {"pct_start": 2}}, "pct_start=2"),
        ("constant", {"total_steps": 5, "warmup_steps": 5}, "make it shorter"),
        ("plateau", {"total_steps": 5, "warmup_steps": 5}, "make it shorter"),
    ],
)
def test_bad_schedules_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(name, optimizer_at(), **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("step", {"args": {"step_size": "3"}}, "step_size='3' must be a number"),
        ("multi_step", {"args": {"milestones": ["a"]}}, r"milestones\[0\]='a' must be a number"),
        ("constant", {"warmup_steps": "5"}, "warmup_steps='5' must be a number"),
    ],
)
def test_what_is_no_number_is_named(name, arguments, message):
    with pytest.raises(TypeError, match=message):
        make_schedule(name, optimizer_at(), **arguments)


def torchs(make, steps, every):
    """The rates of a scheduler of torch that is stepped after `every` steps."""
    optimizer = optimizer_at()
    theirs = make(optimizer)
    found = []
    for i in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (i + 1) % every == 0:
            theirs.step()
    return found


@pytest.mark.parametrize(("unit", "every"), [("epoch", 4), ("step", 1)])
@pytest.mark.parametrize(
    ("name", "args", "make"),
    [
        ("step", {"step_size": 3, "gamma": 0.3}, lambda o: StepLR(o, 3, 0.3)),
        ("multi_step", {"milestones": [2, 5], "gamma": 0.3}, lambda o: MultiStepLR(o, [2, 5], 0.3)),
        ("exponential", {"gamma": 0.7}, lambda o: ExponentialLR(o, 0.7)),
    ],
)
def test_decay_in_epochs_and_steps_is_torchs(name, args, make, unit, every):
    found = schedule(name, 40, steps_per_epoch=4, args={**args, "unit": unit})
    assert found == pytest.approx(torchs(make, 40, every))


@pytest.mark.parametrize(("period", "factor"), [(5, 1), (3, 2), (4, 3)])
def test_restarts_are_torchs(period, factor):
    expected = torchs(lambda o: CosineAnnealingWarmRestarts(o, period, factor, 0.05), 40, 1)
    args = {"period": period, "period_factor": factor, "final": 0.1, "unit": "step"}
    assert schedule("cosine_restarts", 40, args=args) == pytest.approx(expected)
    epochs = schedule("cosine_restarts", 40, steps_per_epoch=1, args={**args, "unit": "epoch"})
    assert epochs == pytest.approx(expected)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_polynomial_is_torchs(power):
    expected = torchs(lambda o: PolynomialLR(o, 20, power), 20, 1)
    found = schedule("polynomial", 20, total_steps=20, args={"power": power})
    assert found == pytest.approx(expected)
    line = schedule("polynomial", 21, total_steps=20, warmup_steps=10, args={"final": 0.5})
    assert [line[9], line[10], line[15], line[20]] == pytest.approx([0.5, 0.5, 0.375, 0.25])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("step", {}, "step_size=30.0, in epochs, but the training lasts 4: the rate never"),
        ("multi_step", {"milestones": [2, 9]}, r"milestones=\[2, 9\]"),
        ("cosine", {"length": 3}, "length=3, in epochs, .* lasts 4: the rate stays at its last"),
        ("polynomial", {"length": 50, "unit": "step"}, "in steps, .* lasts 40: the rate does not"),
        ("cosine_restarts", {}, "period=10.0, in epochs, .* lasts 4: the rate does not"),
    ],
)
def test_another_length_than_the_training_is_said(name, args, message):
    with pytest.warns(UserWarning, match=message):
        make_schedule(name, optimizer_at(), total_steps=40, steps_per_epoch=10, args=args)


def test_a_fitting_length_is_not_said():
    for name, args in [
        ("step", {"step_size": 3}),
        ("cosine", {"length": 4}),
        ("polynomial", {"length": 40, "unit": "step"}),
        ("cosine_restarts", {"period": 3}),
    ]:
        make_schedule(name, optimizer_at(), total_steps=40, steps_per_epoch=10, args=args)


def test_one_cycle_stays_at_its_end():
    found = schedule("one_cycle", 25, total_steps=20)
    assert found[20:] == [found[19]] * 5
    assert found[19] == pytest.approx(0.5 / 25 / 1e4)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "one_cycle"])
def test_resumed_schedules(name):
    """Saved after 8 steps and loaded into a new one: as in one go; another length is said."""
    whole = schedule(name, 20, total_steps=20)
    optimizer = optimizer_at()
    first = make_schedule(name, optimizer, total_steps=20)
    rates(first, optimizer, 8)
    state, optimizer_state = first[0]["scheduler"].state_dict(), optimizer.state_dict()

    def resumed(total_steps):
        new = optimizer_at()
        schedules = make_schedule(name, new, total_steps=total_steps)
        new.load_state_dict(optimizer_state)
        schedules[0]["scheduler"].load_state_dict(state)
        return rates(schedules, new, 12)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resumed(20) == pytest.approx(whole[8:])
    with pytest.warns(UserWarning, match="made for a training of 20 steps, and this one has 30"):
        longer = resumed(30)
    if name == "one_cycle":
        assert longer == pytest.approx(whole[8:])
    else:
        assert longer[1:] == pytest.approx(schedule(name, 20, total_steps=30)[9:])


def add_group(optimizer, lr):
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    optimizer.add_param_group({"params": [weight], "lr": lr})


@pytest.mark.parametrize(
    ("name", "make", "args"),
    [
        ("exponential", lambda o: ExponentialLR(o, 0.9), {"gamma": 0.9, "unit": "step"}),
        ("cosine", lambda o: CosineAnnealingLR(o, 20), {}),
        ("polynomial", lambda o: PolynomialLR(o, 20, power=2.0), {"power": 2.0}),
        ("step", lambda o: StepLR(o, 4, 0.5), {"step_size": 4, "gamma": 0.5, "unit": "step"}),
    ],
)
def test_a_group_that_is_added_later_is_scheduled_as_by_torch(name, make, args):
    ours, theirs = optimizer_at(), optimizer_at()
    (one,) = make_schedule(name, ours, total_steps=20, steps_per_epoch=5, args=args)
    schedulers = {"ours": (ours, one["scheduler"]), "theirs": (theirs, make(theirs))}
    found = {who: [] for who in schedulers}
    for who, (optimizer, scheduler) in schedulers.items():
        for step in range(18):
            if step == 6:
                add_group(optimizer, 0.05)
            optimizer.step()
            scheduler.step()
            found[who] += [group["lr"] for group in optimizer.param_groups]
    assert found["ours"] == pytest.approx(found["theirs"])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_cycle_takes_a_group_that_is_added_later(optimizer):
    settings = {} if optimizer == "adam" else {"args": {"momentum": 0.9}}
    ours = make_optimizer(optimizer, nn.Linear(1, 1), lr=0.5, **settings)
    scheduler = make_schedule("one_cycle", ours, total_steps=20)[0]["scheduler"]
    for step in range(20):
        if step == 6:
            add_group(ours, 0.1 * ours.param_groups[0]["lr"])
        ours.step()
        scheduler.step()
        if step >= 6:
            first, added = ours.param_groups[0], ours.param_groups[-1]
            assert added["lr"] == pytest.approx(0.1 * first["lr"])
            momentum = [g["betas"][0] if "betas" in g else g["momentum"] for g in (first, added)]
            assert momentum[0] == momentum[1]
