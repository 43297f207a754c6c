import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dlblocks.nets import Attention, FeedForward, Transformer, TransformerBlock
from dlblocks.nets.attention import rotary_angles, rotary_turns, rotate, sinusoids


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    arguments = {"width": 16, "depth": 2, "num_heads": 4, "context": 12, **kwargs}
    net = Transformer(**arguments).eval()
    for p in net.parameters():  # large enough that a mistake is seen
        nn.init.normal_(p, std=0.3)
    return net


VARIANTS = [
    {},
    {"positions": "rotary", "num_kv_heads": 2, "norm": "rms", "activation": "swiglu"},
    {"positions": "sinusoidal", "pre_norm": False, "activation": "relu", "bias": False},
    {"positions": None, "num_kv_heads": 1},
]


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_block_equals_torch_with_the_same_weights(pre_norm, activation):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, 0.0, activation, batch_first=True, norm_first=pre_norm
    )
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    ours = TransformerBlock(16, 4, pre_norm=pre_norm, activation=activation)
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj": "attention.out",
        "linear1": "feed_forward.expand",
        "linear2": "feed_forward.out",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    ours.load_state_dict(state)
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    theirs_causal = theirs(x, causal, is_causal=True)
    torch.testing.assert_close(ours(x, is_causal=True), theirs_causal)
    # torch masks keys where True, this block attends where True
    padded = torch.arange(7) >= torch.tensor([7, 4, 1])[:, None]
    found = ours(x, ~padded[:, None, None])
    expected = theirs(x, src_key_padding_mask=padded)
    torch.testing.assert_close(found[~padded], expected[~padded])


def test_swiglu_equals_its_formula():
    torch.manual_seed(0)
    net = FeedForward(6, hidden=5, activation="swiglu")
    x = torch.randn(4, 6)
    gate, value = net.expand.weight[:5], net.expand.weight[5:]
    bias = net.expand.bias
    expected = (F.silu(x @ gate.T + bias[:5]) * (x @ value.T + bias[5:])) @ net.out.weight.T
    torch.testing.assert_close(net(x), expected + net.out.bias)


def test_swiglu_has_as_many_weights_as_gelu():
    counts = [
        sum(p.numel() for p in FeedForward(96, activation=name, bias=False).parameters())
        for name in ("gelu", "swiglu")
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_causal_gradients_come_from_the_past_alone(kwargs):
    net = make(causal=True, **kwargs)
    x = torch.randn(1, 6, 16, requires_grad=True)
    for t in range(6):
        (grad,) = torch.autograd.grad(net(x)[0, t].square().sum(), x)
        reached = grad[0].abs().sum(1) > 0
        assert reached.tolist() == [s <= t for s in range(6)]


def test_encoder_gradients_come_from_everywhere():
    net, x = make(), torch.randn(1, 6, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x)[0, 0].square().sum(), x)
    assert (grad[0].abs().sum(1) > 0).all()


def test_rotary_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8).unbind()

    def score(m, n):
        at = [rotary_turns(rotary_angles(torch.tensor([p]), 8), torch.float32) for p in (m, n)]
        return (rotate(query, at[0]) * rotate(key, at[1])).sum()

    for distance in (-5, 0, 3):
        scores = torch.stack([score(m, m + distance) for m in (5, 17, 400)])
        torch.testing.assert_close(scores, scores[:1].expand(3), atol=1e-4, rtol=0)
    assert not torch.isclose(score(5, 5), score(5, 6))
    assert torch.isclose(score(3, 3), (query * key).sum())


def test_rotation_is_that_of_complex_numbers():
    torch.manual_seed(0)
    vectors, angles = torch.randn(1, 2, 3, 8), rotary_angles(torch.arange(3), 8)
    turned = torch.complex(vectors[..., :4], vectors[..., 4:]) * torch.exp(1j * angles)
    found = rotate(vectors, rotary_turns(angles, torch.float32))
    torch.testing.assert_close(found, torch.cat([turned.real, turned.imag], -1))


def test_sinusoids_equal_the_loop_of_the_paper():
    expected = [
        [(math.sin if i % 2 == 0 else math.cos)(pos / 10000 ** ((i - i % 2) / 6)) for i in range(6)]
        for pos in range(5)
    ]
    torch.testing.assert_close(sinusoids(torch.arange(5), 6), torch.tensor(expected))


def test_grouped_queries_equal_repeated_heads():
    torch.manual_seed(0)
    grouped, full = Attention(16, 4, num_kv_heads=2), Attention(16, 4)
    state = grouped.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        query, key, value = state[name].unflatten(0, (8, 4)).split([4, 2, 2])
        parts = [query, key.repeat_interleave(2, 0), value.repeat_interleave(2, 0)]
        state[name] = torch.cat(parts).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(grouped(x, is_causal=True), full(x, is_causal=True))


@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("parts", [[1] * 9, [4, 1, 3, 1], [9]])
def test_cached_equals_full_at_every_position(kwargs, parts):
    net = make(causal=True, **kwargs)
    x = torch.randn(3, 9, 16)
    with torch.no_grad():
        full = net(x)
        for _ in range(2):  # a second call has a cache of its own
            cache = net.make_cache(3)
            found = [net(part, cache=cache) for part in x.split(parts, 1)]
            torch.testing.assert_close(torch.cat(found, 1), full, atol=1e-5, rtol=1e-5)
    assert cache.lengths.tolist() == [9] * 3


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_cached_rows_of_unequal_length_equal_single_rows(kwargs):
    net = make(causal=True, **kwargs)
    lengths, new = torch.tensor([5, 1, 3]), 4
    x = torch.randn(3, 9, 16)
    with torch.no_grad():
        cache = net.make_cache(3)
        net(x[:, :5], lengths=lengths, cache=cache)
        assert cache.lengths.tolist() == [5, 1, 3]
        found = []
        for step in range(new):
            rows = torch.stack([row[n + step] for row, n in zip(x, lengths, strict=True)])
            found.append(net(rows[:, None], cache=cache))
        for i, n in enumerate(lengths.tolist()):
            full = net(x[i : i + 1, : n + new])[0, n:]
            torch.testing.assert_close(torch.cat(found, 1)[i], full, atol=1e-5, rtol=1e-5)


def test_rows_of_a_cache_can_be_taken_and_put_back():
    net = make(causal=True)
    x = torch.randn(3, 4, 16)
    with torch.no_grad():
        cache = net.make_cache(3)
        net(x[:, :3], cache=cache)
        new = net.make_cache(1)
        net(x[2:, :2], cache=new)
        cache[torch.tensor([0])] = new
        assert cache.lengths.tolist() == [2, 3, 3]
        some = cache[torch.tensor([0, 2])]
        found = net(torch.stack([x[2, 2], x[2, 3]])[:, None], cache=some)
        torch.testing.assert_close(found[0, 0], net(x[2:])[0, 2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1, 0], net(x[2:])[0, 3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kwargs", VARIANTS)
def test_padded_rows_equal_single_ones(kwargs, causal):
    net = make(causal=causal, **kwargs)
    lengths = torch.tensor([6, 2, 0, 4])
    x = torch.randn(4, 6, 16)
    x[1, 2:] = math.nan  # padding changes nothing, whatever it holds
    weight = torch.randn(6, 16)
    x.requires_grad_()
    found = net(x, lengths=lengths)
    (found * weight).sum().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters()}
    outside = torch.arange(6) >= lengths[:, None]
    assert (found[outside] == 0).all()
    assert (x.grad[outside] == 0).all()
    net.zero_grad()
    for i, n in enumerate(lengths.tolist()):
        if not n:
            continue
        row = x.detach()[i : i + 1, :n].requires_grad_()
        alone = net(row)
        torch.testing.assert_close(found[i : i + 1, :n], alone, atol=1e-5, rtol=1e-5)
        (alone * weight[:n]).sum().backward()
        torch.testing.assert_close(x.grad[i : i + 1, :n], row.grad, atol=1e-4, rtol=1e-4)
    for name, p in net.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, atol=1e-3, rtol=1e-4, msg=name)


def test_documents_do_not_see_each_other():
    net = make(causal=True, positions=None)
    x = torch.randn(1, 6, 16)
    documents = torch.tensor([[0, 0, 1, 1, 1, 2]])
    found = net(x, mask=documents[:, :, None] == documents[:, None])
    for part in ([0, 1], [2, 3, 4], [5]):
        torch.testing.assert_close(found[:, part], net(x[:, part]), atol=1e-5, rtol=1e-5)


def test_training_and_evaluation_agree_without_dropout():
    net, x, lengths = make(), torch.randn(2, 5, 16), torch.tensor([5, 3])
    torch.testing.assert_close(net.train()(x, lengths=lengths), net.eval()(x, lengths=lengths))


def test_dropout_ends_with_eval():
    net, x = make(dropout=0.5), torch.randn(2, 5, 16)
    same = make()
    same.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), same(x))
    net.train()
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_maps_reproduce_the_output(causal):
    net = make(depth=1, causal=causal, num_kv_heads=2)
    x, lengths = torch.randn(2, 5, 16), torch.tensor([5, 3])
    (weights,) = net.attention_maps(x, lengths=lengths)
    assert weights.shape == (2, 4, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert (weights[1, :, :3, 3:] == 0).all()
    if causal:
        assert (weights.triu(1) == 0).all()
    block = net.blocks[0]
    inside = (torch.arange(5) < lengths[:, None])[..., None]
    hidden = block.norm1(torch.where(inside, x, 0) + net.position_table[:5])
    value = block.attention.qkv(hidden).unflatten(-1, (8, 4))[:, :, 6:].transpose(1, 2)
    mixed = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
    x1 = torch.where(inside, x, 0) + net.position_table[:5] + block.attention.out(mixed)
    x2 = x1 + block.feed_forward(block.norm2(x1))
    torch.testing.assert_close(
        torch.where(inside, net.norm(x2), 0), net(x, lengths=lengths), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kwargs", VARIANTS[:3])
def test_stacked_models_equal_single_ones(kwargs):
    nets = [make(seed, causal=True, **kwargs) for seed in range(3)]
    params, buffers = stack_module_state(nets)
    x, lengths = torch.randn(2, 6, 16), torch.tensor([6, 3])

    def call(p, b):
        return functional_call(nets[0], (p, b), (x,), {"lengths": lengths})

    with sdpa_kernel(SDPBackend.MATH):  # torch has no batching rule of the CPU's fast kernel
        found = torch.func.vmap(call)(params, buffers)
    for net, mine in zip(nets, found, strict=True):
        torch.testing.assert_close(mine, net(x, lengths=lengths), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kwargs", VARIANTS[:2])
def test_export(kwargs):
    net, x = make(causal=True, **kwargs), torch.randn(2, 6, 16)
    lengths = torch.tensor([6, 4])
    exported = torch.export.export(net, (x,), {"lengths": lengths})
    torch.testing.assert_close(
        exported.module()(x, lengths=lengths), net(x, lengths=lengths), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kwargs", VARIANTS[:3])
def test_compiles_without_graph_breaks(kwargs):
    net, x = make(causal=True, **kwargs), torch.randn(2, 6, 16)
    lengths = torch.tensor([6, 4])
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    torch.testing.assert_close(compiled(x, lengths=lengths), net(x, lengths=lengths))


def test_residual_layers_start_small():
    torch.manual_seed(0)
    net = Transformer(64, 8, 4, context=4)
    for block in net.blocks:
        for part in (block.attention, block.feed_forward):
            assert part.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert net.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide width=16.*num_heads=2, or width=18"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4.*num_kv_heads=2"),
        ({"context": None}, "set context= to the most tokens"),
        ({"width": 15, "num_heads": 3, "positions": "sinusoidal"}, "even width, got width=15"),
        ({"width": 12, "positions": "rotary"}, r"12 / 4 = 3"),
        ({"dropout": 1.0}, r"dropout=1.0 is outside \[0, 1\)"),
        ({"norm": "batch"}, "norm='batch' is not known"),
        ({"activation": "tanh"}, "activation='tanh' is not known"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**{"width": 16, "depth": 1, "num_heads": 4, "context": 8, **kwargs})


def test_wrong_inputs():
    net = make(causal=True)
    with pytest.raises(ValueError, match="sequence of 13 tokens is longer than context=12"):
        net(torch.zeros(1, 13, 16))
    with pytest.raises(ValueError, match=r"\(B, T, 16\), got shape \(2, 16\)"):
        net(torch.zeros(2, 16))
    cache = net.make_cache(1, room=3)
    with pytest.raises(ValueError, match="room for 3 tokens, and its longest row would have 4"):
        net(torch.zeros(1, 4, 16), cache=cache)
    with pytest.raises(ValueError, match="mask= and cache="):
        net(torch.zeros(1, 1, 16), cache=cache, mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="a cache needs causal=True"):
        make().make_cache(1)
    with pytest.raises(ValueError, match="longer than context=12"):
        net.make_cache(1, room=13)
