"""U-Net and torchvision's segmentation nets: shapes, odd sizes, batches of one, wrong input."""

import pytest
import torch
from torch.func import functional_call, vmap

from dlblocks.nets import UNet, VisionSegmentation


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (13, 10), (1, 1), (3, 17), (31, 33)])
@pytest.mark.parametrize("norm", ["batch", "group", None])
def test_outputs_have_the_images_size(size, norm):
    net = UNet(2, 3, width=4, depth=3, norm=norm)
    images = torch.randn(2, 2, *size)
    assert net(images).shape == (2, 3, *size)
    assert net.eval()(images[:1]).shape == (1, 3, *size)


def test_channels_and_parameters_of_the_paper():
    # 64 … 1024 channels, two 3×3 convolutions a level, 2×2 transposed ones: counted by hand.
    net = UNet(1, 2, width=64, depth=4, norm=None)
    widths = [64, 128, 256, 512, 1024]
    count, before = 0, 1
    for width in widths:
        count += 9 * before * width + width + 9 * width * width + width
        before = width
    for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True):
        count += 4 * coarse * fine + fine
        count += 9 * 2 * fine * fine + fine + 9 * fine * fine + fine
    count += 64 * 2 + 2
    assert sum(p.numel() for p in net.parameters()) == count


def test_fine_and_coarse_maps_both_reach_the_output():
    net = UNet(1, 1, width=4, depth=2, norm=None).eval()
    image = torch.randn(1, 1, 64, 64, requires_grad=True)
    net(image)[0, 0, 32, 32].backward()
    seen = image.grad[0, 0].abs() > 0
    assert seen[32, 32]
    assert seen.sum() > 300  # far beyond the 5×5 that the finest level alone sees
    assert not seen[0, 0]


def test_padding_leaves_whole_multiples_alone_and_is_cut_off():
    net = UNet(1, 2, width=4, depth=2).eval()
    image = torch.randn(1, 1, 11, 14)
    padded = torch.nn.functional.pad(image, (0, 2, 0, 1), mode="replicate")
    torch.testing.assert_close(net(image), net(padded)[..., :11, :14])


def test_gradients_reach_every_parameter():
    net = UNet(1, 2, width=4, depth=3)
    net(torch.randn(2, 1, 20, 12)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_vmap_over_two_nets():
    nets = [UNet(1, 2, width=2, depth=2).eval() for _ in range(2)]
    images = torch.randn(2, 3, 1, 9, 9)
    states = [{**dict(n.named_parameters()), **dict(n.named_buffers())} for n in nets]
    stacked = {name: torch.stack([s[name].detach() for s in states]) for name in states[0]}
    both = vmap(lambda state, x: functional_call(nets[0], state, (x,)))(stacked, images)
    for net, x, found in zip(nets, images, both, strict=True):
        torch.testing.assert_close(found, net(x))


def test_wrong_input_is_named():
    net = UNet(1, 2, width=2, depth=2)
    with pytest.raises(ValueError, match=r"in_channels=1, but one image has shape \(3, 8, 8\)"):
        net(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="single value a channel after 2 halvings"):
        net(torch.zeros(1, 1, 4, 4))
    net.eval()(torch.zeros(1, 1, 4, 4))
    UNet(1, 2, width=2, depth=2, norm="group")(torch.zeros(1, 1, 4, 4))
    for arguments, says in (
        ({"depth": 0}, "depth=0"),
        ({"width": 0}, "width=0"),
        ({"norm": "bach"}, "did you mean 'batch'"),
        ({"activation": "rellu"}, "did you mean 'relu'"),
    ):
        with pytest.raises(ValueError, match=says):
            UNet(1, 2, **arguments)


@pytest.mark.parametrize("arch", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
@pytest.mark.parametrize("channels", [1, 3])
def test_nets_of_torchvision(arch, channels):
    net = VisionSegmentation(arch, channels, 4)
    images = torch.randn(2, channels, 33, 40)
    assert net(images).shape == (2, 4, 33, 40)
    assert net.eval()(images[:1]).shape == (1, 4, 33, 40)
    net.train()
    if arch.startswith("deeplab"):
        with pytest.raises(ValueError, match="batch_size of 2 or more"):
            net(images[:1])
    else:
        net(images[:1])


def test_unknown_nets_of_torchvision():
    with pytest.raises(ValueError, match="did you mean 'fcn_resnet50'"):
        VisionSegmentation("fcn_resnet5", 3, 2)
