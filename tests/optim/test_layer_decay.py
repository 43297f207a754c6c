"""Layer-wise decay of the rate counts blocks, and tokens and positions do not shrink."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import VisionTransformer, resnet18, resnet50, swin_t

from dlblocks.models import Classifier, MLPClassifier
from dlblocks.nets import CNN, MLP
from dlblocks.optim import describe, make_optimizer, param_groups


def by_name(module, groups, key):
    names = {id(p): name for name, p in module.named_parameters()}
    return {names[id(p)]: group[key] for group in groups for p in group["params"]}


def blocks(module, **arguments):
    """The blocks of the parameters by name, checked against their rates lr · decay^(L - i)."""
    groups = param_groups(module, 0.05, lr=0.1, layer_decay=0.5, **arguments)
    found = by_name(module, groups, "block")
    last = max(found.values())
    for group in groups:
        assert group.get("lr", 0.1) == pytest.approx(
            0.1 * 0.5 ** (last - group["block"]), rel=1e-12
        )
    assert set(found) == {name for name, _ in module.named_parameters()}
    return found


def check(module, table, **arguments):
    """`table` has the block of each beginning of a name; the longest that fits counts."""
    for name, block in blocks(module, **arguments).items():
        fits = [prefix for prefix in table if f"{name}.".startswith(f"{prefix}.")]
        assert block == table[max(fits, key=len)], name


def vit():
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32
    )


VIT = {
    "class_token": 0, "conv_proj": 0, "encoder.pos_embedding": 0,
    "encoder.layers.encoder_layer_0": 1, "encoder.layers.encoder_layer_1": 2,
    "encoder.layers.encoder_layer_2": 3, "encoder.layers.encoder_layer_3": 4,
    "encoder.ln": 4, "heads.head": 5,
}  # fmt: skip
RESNET18 = {
    "conv1": 0, "bn1": 0, "layer1.0": 1, "layer1.1": 2, "layer2.0": 3, "layer2.1": 4,
    "layer3.0": 5, "layer3.1": 6, "layer4.0": 7, "layer4.1": 8, "fc": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_rates_and_decay_are_timms(name):
    module = timm.create_model(name, num_classes=10)
    no_decay = getattr(module, "no_weight_decay", set)()
    theirs = param_groups_layer_decay(module, 0.05, no_decay, layer_decay=0.75)
    ours = param_groups(module, 0.05, lr=1.0, layer_decay=0.75)
    assert by_name(module, ours, "lr") == by_name(module, theirs, "lr_scale")
    assert by_name(module, ours, "weight_decay") == by_name(module, theirs, "weight_decay")


def test_blocks_of_torchvisions_vit_and_resnet():
    check(vit(), VIT)
    check(resnet18(), RESNET18)
    assert max(blocks(resnet50()).values()) == 1 + 3 + 4 + 6 + 3


@pytest.mark.parametrize(("net", "table"), [(vit, VIT), (resnet18, RESNET18)])
def test_a_model_has_the_blocks_of_its_net(net, table):
    check(Classifier(net(), 1000), {f"net.{name}": block for name, block in table.items()})


def test_blocks_of_mlp_and_cnn():
    check(
        MLP(4, 2, hidden=[8, 8], norm="layer", dropout=0.1),
        {"layers.0": 0, "layers.1": 0, "layers.4": 1, "layers.5": 1, "layers.8": 2},
    )
    check(
        MLP(4, 2, hidden=[8], embeddings={0: 3, 1: 5}),
        {"embed": 0, "layers.0": 1, "layers.2": 2},
    )
    assert set(blocks(MLP(4, 2, hidden=[])).values()) == {0}
    check(
        CNN(3, 10, channels=[4, 8], hidden=[8]),
        {"blocks.0": 0, "blocks.1": 0, "blocks.4": 1, "blocks.5": 1, "head.2": 2, "head.4": 3},
    )


class Plain(nn.Module):
    """Without a stack; a table, tokens, a tied head, and a weight that is parametrized."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(5, 8))
        self.table = nn.Embedding(9, 8)
        self.mix = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.norm = nn.LayerNorm([5, 8])
        self.hidden = weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 9)
        self.tied = nn.Linear(8, 9)
        self.tied.weight = self.table.weight


PLAIN = {"pos_embed": 0, "table": 0, "mix": 1, "norm": 1, "hidden": 2, "head": 3, "tied": 3}


def test_each_child_is_a_block_where_there_is_no_stack():
    check(Plain(), PLAIN)
    module = nn.Module()
    module.net = Plain()
    check(module, {f"net.{name}": block for name, block in PLAIN.items()})


def test_a_stack_in_a_stack_is_taken_apart():
    stage = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    check(nn.Sequential(nn.Linear(2, 2), stage), {"0": 0, "1.0": 1, "1.1": 1, "1.2": 2})


def test_frozen_blocks_count_and_the_last_that_learns_has_the_whole_rate():
    module = vit()
    module.conv_proj.requires_grad_(False)
    module.heads.requires_grad_(False)
    rates = by_name(module, param_groups(module, 0.0, lr=1.0, layer_decay=0.5), "lr")
    assert rates["encoder.layers.encoder_layer_3.ln_1.weight"] == 1.0
    assert rates["class_token"] == 0.5**4


def test_named_blocks():
    check(
        resnet18(),
        {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4, "fc": 4},
        layer_blocks=["layer?"],
    )
    check(resnet18(), RESNET18, layer_blocks=["layer?.*", "fc"])
    optimizer = make_optimizer(
        "adamw", vit(), args={"layer_decay": 0.5, "layer_blocks": ["encoder", "heads"]}
    )
    assert {group["block"] for group in optimizer.param_groups} == {0, 1, 2}
    with pytest.raises(ValueError, match=r"layer_blocks has 'layers1'.*did you mean 'layer1"):
        blocks(resnet18(), layer_blocks=["layers1"])
    with pytest.raises(TypeError, match="must be a list of names"):
        blocks(resnet18(), layer_blocks="layer?")


def test_tokens_positions_norms_and_biases_do_not_decay():
    def decaying(module):
        decay = by_name(module, param_groups(module, 0.1), "weight_decay")
        return {name for name, value in decay.items() if value}

    expected = {"table.weight", "mix.in_proj_weight", "mix.out_proj.weight", "head.weight"}
    expected |= {f"hidden.parametrizations.weight.original{i}" for i in (0, 1)}
    assert decaying(Plain()) == expected
    first = "encoder.layers.encoder_layer_0"
    assert {name for name in decaying(vit()) if not name.startswith("encoder.layers")} == {
        "conv_proj.weight", "heads.head.weight",
    }  # fmt: skip
    assert {name.removeprefix(first) for name in decaying(vit()) if name.startswith(first)} == {
        ".self_attention.in_proj_weight", ".self_attention.out_proj.weight",
        ".mlp.0.weight", ".mlp.3.weight",
    }  # fmt: skip
    assert not any("relative_position" in name for name in decaying(swin_t()))
    every = param_groups(vit(), 0.1, skip_norm_bias=False)
    assert [group["weight_decay"] for group in every] == [0.1]


def test_describe_shows_the_blocks():
    model = MLPClassifier(64, 10, hidden=[8], lr=0.1, optimizer_args={"layer_decay": 0.5})
    rows = [line.split()[:6] for line in describe(model).splitlines()[1:]]
    assert rows == [
        ["group", "lr", "weight_decay", "block", "tensors", "values"],
        ["0", "0.05", "0", "0", "2", "520"],
        ["1", "0.1", "0", "1", "2", "90"],
    ]
    assert "block" not in describe(MLPClassifier(64, 10, hidden=[8]))
