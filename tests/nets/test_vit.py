"""Transformers over sequences and patches: torch's layers as reference, padding, attention."""

import pytest
import torch
from torch import nn

from dlblocks.fields import Padded
from dlblocks.nets import SequenceTransformer, ViT

LENGTHS = [3, 1, 7, 5]


def sequences():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 4, generator=generator) for n in LENGTHS]


def torch_layers(net, pre_norm=True):
    """Layers of torch with the weights of a net."""
    stack = net.transformer
    made = []
    for block in stack.blocks:
        layer = nn.TransformerEncoderLayer(
            stack.width, block.attention.num_heads, 4 * stack.width, dropout=0.0,
            activation="gelu", batch_first=True, norm_first=pre_norm,
        )  # fmt: skip
        pairs = {
            "self_attn.in_proj": block.attention.qkv,
            "self_attn.out_proj": block.attention.out,
            "linear1": block.feed_forward.expand,
            "linear2": block.feed_forward.out,
            "norm1": block.norm1,
            "norm2": block.norm2,
        }
        state = {}
        for name, module in pairs.items():
            end = "_" if name == "self_attn.in_proj" else "."
            state |= {f"{name}{end}weight": module.weight, f"{name}{end}bias": module.bias}
        layer.load_state_dict(state)
        made.append(layer)
    return nn.ModuleList(made).to(net.head.weight.dtype)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_sequences_equal_the_layers_of_torch(pre_norm):
    net = SequenceTransformer(
        4, 3, width=8, depth=2, num_heads=2, positions=None, pre_norm=pre_norm
    ).double()
    padded = Padded.of([row.double() for row in sequences()])
    x = net.embed(padded.values)
    for layer in torch_layers(net, pre_norm):
        # True masks there, but attends in `scaled_dot_product_attention`.
        x = layer(x, src_key_padding_mask=~padded.mask)
    x = net.transformer.norm(x)
    pooled = torch.stack([row[:n].mean(0) for row, n in zip(x, LENGTHS, strict=True)])
    torch.testing.assert_close(net(padded), net.head(pooled))


def test_images_equal_the_layers_of_torch():
    net = ViT(2, 3, image_size=(4, 6), patch_size=2, width=8, depth=2, num_heads=2, pool="token")
    net = net.double()
    images = torch.randn(2, 2, 4, 6).double()
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2)  # (N, C, 2, 3, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(2, 6, 8)
    x = patches @ net.embed.weight.flatten(1).T + net.embed.bias
    x = torch.cat([net.token.expand(2, 1, -1), x], 1) + net.transformer.position_table
    for layer in torch_layers(net):
        x = layer(x)
    expected = net.head(net.transformer.norm(x)[:, 0])
    torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize("pool", ["mean", "token"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", None])
def test_a_padded_batch_equals_its_sequences_one_by_one(positions, pool):
    context = 7 if positions == "learned" else None
    net = SequenceTransformer(
        4, 3, width=8, depth=2, num_heads=2, positions=positions, pool=pool, context=context
    ).double()
    rows = [row.double() for row in sequences()]
    together = net(Padded.of(rows))
    together.tanh().square().sum().backward()
    batch = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    alone = torch.cat([net(row[None]) for row in rows])
    torch.testing.assert_close(together, alone)
    alone.tanh().square().sum().backward()
    for many, p in zip(batch, net.parameters(), strict=True):
        torch.testing.assert_close(many, p.grad)


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_a_fully_padded_row_is_not_nan(pool):
    net = SequenceTransformer(4, 3, width=8, depth=2, num_heads=2, pool=pool)
    padded = Padded(torch.randn(3, 5, 4), torch.tensor([5, 0, 2]))
    values = padded.values.clone().requires_grad_()
    found = net(Padded(values, padded.lengths))
    found.sum().backward()
    assert found.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert values.grad.isfinite().all() and not values.grad[1].any()
    others = net(Padded(padded.values[[0, 2]], padded.lengths[[0, 2]]))
    torch.testing.assert_close(found[[0, 2]], others)


def test_training_and_evaluation_agree_with_padding():
    net = SequenceTransformer(4, 3, width=8, depth=2, num_heads=2)
    padded = Padded.of(sequences())
    torch.testing.assert_close(net.train()(padded), net.eval()(padded))


def test_dropout_of_the_attention_ends_with_training():
    net = SequenceTransformer(4, 3, width=8, depth=1, num_heads=2, dropout=0.5)
    padded = Padded.of(sequences())
    assert not torch.equal(net.train()(padded), net(padded))
    assert torch.equal(net.eval()(padded), net(padded))


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_attention_maps_are_distributions_without_padding(pool):
    net = SequenceTransformer(4, 3, width=8, depth=2, num_heads=2, pool=pool).eval()
    padded = Padded.of(sequences())
    maps = net.attention_maps(padded)
    extra = pool == "token"
    assert [m.shape for m in maps] == [(4, 2, 7 + extra, 7 + extra)] * 2
    for row, length in enumerate(LENGTHS):
        here = maps[0][row, :, : length + extra]
        torch.testing.assert_close(here.sum(-1), torch.ones(2, length + extra))
        assert not here[..., length + extra :].any()


def test_bad_arguments_are_errors():
    with pytest.raises(ValueError, match="num_heads=3 does not divide width=8"):
        SequenceTransformer(4, 3, width=8, num_heads=3)
    with pytest.raises(ValueError, match="patch_size=3 does not divide image_size"):
        ViT(1, 3, image_size=8, patch_size=3)
    with pytest.raises(ValueError, match=r"ViT expects images \(1, 8, 8\)"):
        ViT(1, 3, image_size=8, patch_size=2, width=8)(torch.zeros(1, 3, 8, 8))
    net = SequenceTransformer(4, 3, width=8, context=5, positions="learned")
    with pytest.raises(ValueError, match="context=5, but the inputs have 6 steps; set context=6"):
        net.check_input((6, 4))
    with pytest.raises(ValueError, match="longer than context=5"):
        net(torch.zeros(1, 6, 4))
    with pytest.raises(ValueError, match="length 9 in row 0"):
        net(Padded(torch.zeros(1, 5, 4), torch.tensor([9])))


def test_tokens_of_unequal_length():
    net = SequenceTransformer(1, 3, width=8, depth=1, num_heads=2, num_tokens=9)
    rows = [torch.tensor([8, 0, 0]), torch.tensor([0])]  # 0 is a token, and fills the padding
    torch.testing.assert_close(net(Padded.of(rows)), torch.cat([net(row[None]) for row in rows]))


@pytest.mark.parametrize("padded", [False, True])
def test_it_compiles_without_graph_breaks(padded):
    net = SequenceTransformer(4, 3, width=8, depth=1, num_heads=2).eval()
    inputs = Padded.of(sequences()) if padded else torch.randn(2, 5, 4)
    expected = net(inputs)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs), expected)


def test_a_vit_compiles_without_graph_breaks():
    net = ViT(1, 3, image_size=4, patch_size=2, width=8, depth=1, num_heads=2, pool="token").eval()
    images = torch.randn(2, 1, 4, 4)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))
