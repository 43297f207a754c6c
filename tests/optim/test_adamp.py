"""AdamP and SGDP against their authors' package."""

import copy
import functools
import pickle

import adamp as authors
import pytest
import torch
from torch import nn

from dlblocks.optim import SGDP, AdamP, Lion, adamp, sgdp
from dlblocks.optim import _projection as projection

PATHS = {"default": {}, "capturable": {"capturable": True}}
CASES = {
    "adamp": (AdamP, authors.AdamP, {"lr": 1e-3, "weight_decay": 0.1}),
    "adamp_nesterov": (AdamP, authors.AdamP, {"lr": 1e-3, "nesterov": True}),
    "sgdp": (SGDP, authors.SGDP, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2}),
    "sgdp_nesterov": (
        SGDP,
        authors.SGDP,
        {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True, "dampening": 0.1},
    ),
}


def mlp():
    return nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


# Norms without parameters: before another norm, a shift has the gradient 0, and Adam blows its
# rounding up by 1 / eps.
def conv():
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.ReLU(),
        nn.Conv2d(6, 6, 2, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.Flatten(),
        nn.Linear(6, 1),
    )


def scale_invariant():
    blocks = [
        nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False))
        for _ in range(3)
    ]
    # The scale of the whole weight does not count, that of its rows does: the layer view.
    return nn.Sequential(*blocks, nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 1))


def few_weights():
    """One weight for each view: its rows, the whole of it, neither. They compile quickly."""
    return nn.Sequential(
        nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, affine=False),
        nn.Linear(8, 8, bias=False), nn.LayerNorm(8, elementwise_affine=False),
        nn.Linear(8, 1),
    )  # fmt: skip


NETS = {"mlp": mlp, "conv": conv, "scale_invariant": scale_invariant}


def seeded(name, dtype=torch.float64):
    torch.manual_seed(0)
    return NETS[name]().to(dtype), torch.randn(32, 8, dtype=dtype)


def train(net, x, optimizer, steps, step=None):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - x[:, :1].sin()).square().mean().backward()
        (step or optimizer.step)()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@functools.lru_cache
def reference(net_name, case, steps):
    net, x = seeded(net_name)
    _, theirs, arguments = CASES[case]
    return train(net, x, theirs(net.parameters(), **arguments), steps)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("net_name", NETS)
def test_many_steps_are_those_of_the_authors(net_name, case, path):
    net, x = seeded(net_name)
    ours, _, arguments = CASES[case]
    steps = 150 if path == "default" else 50  # the other paths for less, as time counts
    found = train(net, x, ours(net.parameters(), **arguments, **PATHS[path]), steps)
    torch.testing.assert_close(found, reference(net_name, case, steps), rtol=1e-9, atol=1e-11)


def at_right_angles(p, grad, *, rows):
    """The gradient without its part along each row of p, or along the whole of p."""
    shape = (len(p), -1) if rows else (1, -1)
    a, b = p.reshape(shape), grad.reshape(shape)
    return (b - a * (a * b).sum(1, keepdim=True) / a.square().sum(1, keepdim=True)).view_as(grad)


def tensors(kind, shape, count, dtype=torch.float64):
    found = []
    for i in range(count):
        torch.manual_seed(i)
        p, grad = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
        this = ("channel", "layer", "none")[i % 3] if kind == "mixed" else kind
        if this != "none":
            grad = at_right_angles(p, grad, rows=this == "channel")
        found.append((p.to(dtype), grad.to(dtype)))
    return found


def after_steps(optimizer_class, pairs, steps=3, **arguments):
    params = [nn.Parameter(p.clone()) for p, _ in pairs]
    for p, (_, grad) in zip(params, pairs, strict=True):
        p.grad = grad.clone()
    optimizer = optimizer_class(params, **arguments)
    for _ in range(steps):
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "shape", [(6, 5), (4, 3, 2, 2), (300, 200), (7, 1), (1, 9), (5,), (), (0, 3)]
)
def test_each_kind_of_tensor(shape, path, case):
    ours, theirs, arguments = CASES[case]
    extra = PATHS[path]
    kinds = (
        ("channel", "layer", "none", "mixed") if len(shape) > 1 and 0 not in shape else ("none",)
    )
    for kind in kinds:
        pairs = tensors(kind, shape, 4)
        found = after_steps(ours, pairs, **arguments, **extra)
        reference = pairs if 0 in shape else None  # theirs fails on nothing
        expected = (
            [p for p, _ in reference] if reference else after_steps(theirs, pairs, **arguments)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_the_three_kinds_are_told_apart():
    p = torch.randn(6, 5, dtype=torch.float64)
    grad = torch.randn(6, 5, dtype=torch.float64)
    for rows in (True, False, None):
        g = grad + p if rows is None else at_right_angles(p, grad, rows=rows)
        found = p + grad
        kind = projection.find_projection([p], [g], delta=0.1, eps=1e-8)
        projection.project_([found], [p], kind, eps=1e-8)
        expected = p + grad if rows is None else at_right_angles(p, p + grad, rows=rows)
        assert (bool(kind.by_row), bool(kind.applies)) == (rows is True, rows is not None)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_projection_keeps_the_norm_from_growing():
    """The step is at right angles to each row: |p|² grows by the step's square alone."""
    ((p, grad),) = tensors("channel", (6, 5), 1)
    (found,) = after_steps(AdamP, [(p, grad)], steps=1, lr=0.1)
    (adam,) = after_steps(torch.optim.Adam, [(p, grad)], steps=1, lr=0.1)
    torch.testing.assert_close(((found - p) * p).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-7)
    assert float(((adam - p) * p).sum(1).abs().max()) > 0.01


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_projected_is_adamw(path):
    pairs = [*tensors("none", (6, 5), 3), *tensors("none", (4,), 2)]
    arguments = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-6, "betas": (0.8, 0.95)}
    found = after_steps(AdamP, pairs, 20, **arguments, delta=0.0, **PATHS[path])
    expected = after_steps(torch.optim.AdamW, pairs, 20, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("module", [adamp, sgdp])
def test_steps_without_the_kernel_are_the_same(module, monkeypatch):
    optimizer_class = AdamP if module is adamp else SGDP
    arguments = {"lr": 0.1, "weight_decay": 0.1}
    if module is sgdp:
        arguments |= {"momentum": 0.9, "dampening": 0.1}
    pairs = tensors("mixed", (6, 5), 6)
    expected = after_steps(optimizer_class, pairs, **arguments)
    calls = []
    monkeypatch.setattr(module, "takes_kernel", lambda columns: calls.append(columns))
    found = after_steps(optimizer_class, pairs, **arguments)
    assert calls
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("whose", ["own", "authors"])
def test_state_dict(case, whose):
    """Saved after 20 steps, loaded, and 20 steps more: as 40 in one go."""
    ours, theirs, arguments = CASES[case]
    net, x = seeded("scale_invariant")
    straight = copy.deepcopy(net)
    expected = train(straight, x, theirs(straight.parameters(), **arguments), 40)
    first = (ours if whose == "own" else theirs)(net.parameters(), **arguments)
    train(net, x, first, 20)
    second = ours(net.parameters(), lr=9.0)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    torch.testing.assert_close(train(net, x, second, 20), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, Lion])
def test_copies_go_on_alike(optimizer_class):
    net, x = seeded("mlp")
    optimizer = optimizer_class(net.parameters(), lr=1e-3)
    train(net, x, optimizer, 3)
    other, copied = copy.deepcopy((net, optimizer))
    torch.testing.assert_close(train(net, x, optimizer, 3), train(other, x, copied, 3))
    assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("path", [*PATHS, "compiled"])
@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, Lion])
def test_rate_as_tensor_maximize_and_compile(optimizer_class, path):
    torch.manual_seed(0)
    net, x = few_weights().double(), torch.randn(32, 8, dtype=torch.float64)
    other = copy.deepcopy(net)
    extra = PATHS.get(path, {})
    rate = torch.tensor(0.5, dtype=torch.float64)
    optimizer = optimizer_class(net.parameters(), lr=rate, maximize=True, **extra)
    rate.fill_(1e-3)  # as a schedule does
    step = None
    if path == "compiled":
        if optimizer_class is not AdamP:
            pytest.skip("the same traced path; AdamP stands for it")
        torch._dynamo.reset()
        step = torch.compile(optimizer.step)
    found = train_up(net, x, optimizer, step)
    expected = train_up(other, x, optimizer_class(other.parameters(), lr=1e-3), negate=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def train_up(net, x, optimizer, step=None, negate=False):
    for _ in range(6):
        optimizer.zero_grad()
        loss = (net(x) - x[:, :1].sin()).square().mean()
        (-loss if negate else loss).backward()
        (step or optimizer.step)()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", PATHS)
def test_smaller_dtypes_are_near_float64(dtype, case, path):
    """Within a few roundings of a value below 4."""
    ours, theirs, arguments = CASES[case]
    # Large gradients: the squares of small ones are 0 in float16, whoever squares them.
    pairs = [(p, 10 * grad) for p, grad in tensors("mixed", (6, 5), 6, dtype)]
    extra = PATHS[path]
    arguments = {**arguments, "delta": 0.3, "lr": 0.1}  # rounded gradients are not at right angles
    if ours is AdamP:
        arguments["betas"] = (0.9, 0.9)
    else:
        arguments["lr"] = 0.01
    found = after_steps(ours, pairs, 2, **arguments, **extra)
    wide = [(p.double(), grad.double()) for p, grad in pairs]
    expected = [p.to(dtype) for p in after_steps(theirs, wide, 2, **arguments)]
    torch.testing.assert_close(found, expected, rtol=0, atol=16 * torch.finfo(dtype).eps)
    assert all(p.dtype == dtype for p in found)


@pytest.mark.parametrize("path", [*PATHS, "nesterov"])
@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_small_gradients_of_float16(shape, path):
    """Their squares, and eps, are 0 in float16: a step is one of the rate all the same."""
    extra = PATHS.get(path, {path: True})
    p = nn.Parameter(torch.ones(shape, dtype=torch.float16))
    optimizer = AdamP([p], lr=0.01, **extra)
    p.grad = torch.zeros_like(p)
    p.grad[0] = 1e-3
    optimizer.step()
    size = 0.019 if path == "nesterov" else 0.01  # (0.9 · 0.1 + 0.1) / 0.1
    expected = torch.ones(shape)
    expected[0] -= size
    torch.testing.assert_close(p.detach().float(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, Lion])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_rate_of_one_value_and_a_parameter_without_axes(optimizer_class, capturable):
    found = []
    for lr in (0.1, torch.tensor([0.1])):
        p = nn.Parameter(torch.tensor(1.0))
        optimizer = optimizer_class([p], lr=lr, capturable=capturable)
        p.grad = torch.tensor(2.0)
        optimizer.step()
        found.append(p.detach())
    assert found[0] < 1
    torch.testing.assert_close(found[1], found[0])


def test_several_dtypes_and_layouts_at_once():
    pairs = tensors("mixed", (4, 3, 2, 2), 6)
    expected = after_steps(authors.AdamP, pairs, lr=0.1)
    last = [tuple(x.to(memory_format=torch.channels_last) for x in pair) for pair in pairs]
    torch.testing.assert_close(after_steps(AdamP, last, lr=0.1), expected, rtol=1e-12, atol=1e-13)
    # A gradient that lies otherwise than its weight, and a weight with gaps.
    odd = [(last[0][0], pairs[0][1]), *pairs[1:]]
    torch.testing.assert_close(after_steps(AdamP, odd, lr=0.1), expected, rtol=1e-12, atol=1e-13)
    gaps = torch.zeros(4, 3, 2, 4, dtype=torch.float64)
    gaps[..., ::2] = pairs[0][0]
    weight = nn.Parameter(gaps)[..., ::2].detach().requires_grad_()
    weight.grad = pairs[0][1]
    optimizer = AdamP([weight], lr=0.1)
    for _ in range(3):
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected[0], rtol=1e-12, atol=1e-13)
    assert not gaps[..., 1::2].any()
    mixed = [pairs[0], tuple(x.float() for x in pairs[1]), pairs[2]]
    found = after_steps(AdamP, mixed, lr=0.1)
    assert [p.dtype for p in found] == [torch.float64, torch.float32, torch.float64]
    torch.testing.assert_close(found[1].double(), expected[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, Lion])
def test_closure_is_called_once_with_gradients(optimizer_class):
    p = nn.Parameter(torch.ones(2, 2))
    calls = []

    def closure():
        loss = p.square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer_class([p], lr=0.1).step(closure).item() == 4
    assert calls == [4.0]
    assert not torch.equal(p, torch.ones(2, 2))


def test_a_parameter_without_gradient_stays():
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    q.grad = torch.ones(2, 2)
    optimizer = AdamP([p, q])
    optimizer.step()
    assert torch.equal(p, torch.ones(2, 2))
    assert p not in optimizer.state


@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, Lion])
def test_what_is_refused(optimizer_class):
    weight = nn.Parameter(torch.ones(2, 2))
    for arguments, message in [
        ({"lr": -0.1}, "lr=-0.1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": torch.ones(2)}, "one number"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer_class([weight], **arguments)
        with pytest.raises(ValueError, match=message):
            optimizer_class([{"params": [weight], **arguments}], lr=0.1)
    with pytest.raises(ValueError, match="empty parameter list"):
        optimizer_class([])
    with pytest.raises(TypeError, match="complex64"):
        optimizer_class([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="SparseAdam"):
        optimizer_class(table.parameters()).step()


def test_what_adamp_refuses():
    weight = nn.Parameter(torch.ones(2, 2))
    for arguments, message in [
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0"),
        ({"betas": (0.9,)}, "must be two numbers"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"wd_ratio": -1.0}, "wd_ratio"),
        ({"eps": -1.0}, "eps"),
        ({"betas": 0.9}, "betas=0.9 must be two numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            AdamP([weight], **arguments)
    with pytest.raises(ValueError, match=r"momentum=1\.0"):
        SGDP([weight], momentum=1.0)


@pytest.mark.parametrize("path", PATHS)
def test_lion_is_its_paper(path):
    """Chen et al. 2023, Algorithm 2, one number at a time."""
    pairs = tensors("none", (3, 2), 2)
    arguments = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.5}
    found = after_steps(Lion, pairs, 5, **arguments, **PATHS[path])
    for (p, grad), end in zip(pairs, found, strict=True):
        for start, g, value in zip(p.flatten(), grad.flatten(), end.flatten(), strict=True):
            theta, m = start.item(), 0.0
            for _ in range(5):
                c = 0.8 * m + 0.2 * g.item()
                theta -= 0.1 * ((c > 0) - (c < 0) + 0.5 * theta)
                m = 0.95 * m + 0.05 * g.item()
            assert value.item() == pytest.approx(theta, rel=1e-12)


@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP])
def test_strides_of_axes_of_one_value_do_not_matter(optimizer_class):
    """vmap gives gradients whose strides differ where there is one value only."""
    generator = torch.Generator().manual_seed(0)
    ends = []
    for odd in (False, True):
        params = []
        for shape, strides in (((6, 1), (1, 6)), ((1, 6), (1, 1)), ((6, 1), (1, 1))):
            generator.manual_seed(len(params))
            values, grads = torch.randn(2, 6, generator=generator)
            params.append(nn.Parameter(values.view(shape)))
            params[-1].grad = torch.as_strided(grads, shape, strides if odd else (shape[1], 1))
        if odd:
            assert params[0].grad.stride() != params[0].stride()
        optimizer = optimizer_class(params, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.step()
        ends.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("numpy_threads", [0, 99])  # torch's path, and that of NumPy
def test_products_of_rows_are_those_of_a_loop(monkeypatch, numpy_threads):
    monkeypatch.setattr(projection, "NUMPY_THREADS", numpy_threads)
    # Small neighbours of equal width, others, one of several pieces, and none of a piece alone.
    shapes = [(3, 4), (5, 2, 2), (2, 7), (90, 2000), (4, 4), (6, 4)]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    grads = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        found = projection.find_projection(params, grads, delta=0.1, eps=1e-8)
        dots = projection._dots(*projection._matrices(params, grads))
    rows = [
        (p.double(), g.double(), i)
        for i, (p_all, g_all) in enumerate(zip(params, grads, strict=True))
        for p, g in zip(p_all.detach().flatten(1), g_all.flatten(1), strict=True)
    ]
    torch.testing.assert_close(dots.double(), torch.stack([(p * g).sum() for p, g, _ in rows]),
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    assert found.owner.tolist() == [i for _, _, i in rows]
    for k, (p, _, i) in enumerate(rows):
        expected = p.norm() if found.by_row[i] else params[i].detach().double().norm()
        assert float(found.norms[k]) == pytest.approx(float(expected), rel=1e-5)


def test_a_model_that_becomes_double_between_steps():
    """The state of SGDP stays float32, which torch's fused kernel does not take."""
    net = nn.Linear(4, 2)
    optimizer = SGDP(net.parameters(), lr=0.1, momentum=0.9)
    for dtype in (torch.float32, torch.float64):
        net.to(dtype)
        optimizer.zero_grad()
        net(torch.ones(3, 4, dtype=dtype)).sum().backward()
        before = net.weight.detach().clone()
        optimizer.step()
        assert not net.weight.equal(before)
