"""Nets of torchvision and timm by name: the same outputs, any channels, sizes that are refused."""

import pytest
import torch
from torchvision import models

from dlblocks.nets import Backbone
from dlblocks.nets.backbone import architectures

FIVE = ["alexnet", "vgg11_bn", "googlenet", "resnet18", "densenet121"]


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_with_the_same_weights_outputs_are_those_of_the_stock_net(arch, tmp_path):
    torch.manual_seed(0)
    stock = models.get_model(arch, weights=None, num_classes=7).eval()
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    mine = Backbone(arch, 7, weights=tmp_path / "weights.pth").eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(mine(images), stock(images))


def test_timm_with_the_same_weights(tmp_path):
    timm = pytest.importorskip("timm")
    stock = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save({"state_dict": stock.state_dict()}, tmp_path / "weights.pth")
    mine = Backbone("timm:resnet10t", 5, weights=str(tmp_path / "weights.pth")).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(mine(images), stock(images))
    assert Backbone("timm:resnet10t", 5, in_channels=2)(torch.rand(2, 2, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("arch", FIVE)
def test_nets_of_the_course_learn_from_images_of_8_by_8(arch):
    net = Backbone(arch, 10, in_channels=1, image_size=8)
    assert net.stem == "small"
    outputs = net(torch.rand(4, 1, 8, 8))
    assert outputs.shape == (4, 10)
    outputs.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_weights_of_another_number_of_channels(channels, tmp_path):
    """Of grey images given three times, the outputs are those of the grey image given once."""
    stock = models.get_model("resnet18", weights=None, num_classes=4).eval()
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    mine = Backbone("resnet18", 4, in_channels=channels, weights=tmp_path / "weights.pth").eval()
    grey = torch.rand(2, 1, 48, 48)
    weight = stock.conv1.weight
    own = mine.model.conv1.weight
    for c in range(channels):
        expected = weight.sum(1) if channels == 1 else weight[:, c % 3] * 3 / channels
        torch.testing.assert_close(own[:, c], expected)
    if channels == 1:
        with torch.no_grad():
            torch.testing.assert_close(
                mine(grey), stock(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
            )


def test_a_head_of_another_size_is_new(tmp_path):
    stock = models.get_model("resnet18", weights=None, num_classes=1000)
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    net = Backbone("resnet18", 4, weights=tmp_path / "weights.pth")
    assert net.head == "model.fc" and net.model.fc.out_features == 4
    assert torch.equal(net.model.layer4[0].conv1.weight, stock.layer4[0].conv1.weight)


@pytest.mark.parametrize(
    ("arch", "side", "said"),
    [
        ("alexnet", 32, r"alexnet cannot take images of 32×32: layer 'features.*64×64.*'small'"),
        ("vgg11", 16, r"layer 'features\.20' fails .*32×32"),
        ("densenet121", 8, r"densenet121 cannot take .* is 32×32"),
        ("convnext_tiny", 8, r"the smallest square that works is 32×32: resize the images\."),
        ("inception_v3", 64, r"is 75×75"),
        ("vit_b_32", 64, r"224"),
    ],
)
def test_images_that_are_too_small_are_refused_with_layer_and_size(arch, side, said):
    with pytest.raises(ValueError, match=said):
        Backbone(arch, 10, stem="imagenet", image_size=side)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"arch='resnet81' is not a classification net.*resnet18"):
        Backbone("resnet81", 10)
    with pytest.raises(ValueError, match="arch='timm:resnet_18' is not a net of timm"):
        Backbone("timm:resnet_18", 10)
    with pytest.raises(ValueError, match="stem='small' is not known of arch='swin_t'"):
        Backbone("swin_t", 10, stem="small")
    with pytest.raises(FileNotFoundError, match="is not a file, and not 'DEFAULT'"):
        Backbone("resnet18", 10, weights=tmp_path / "none.pth")
    torch.save(models.get_model("resnet34", weights=None).state_dict(), tmp_path / "34.pth")
    with pytest.raises(ValueError, match=r"do not fit arch='resnet18': the file has 'layer1\.2"):
        Backbone("resnet18", 10, weights=tmp_path / "34.pth")
    torch.save(models.get_model("resnet18", weights=None).state_dict(), tmp_path / "18.pth")
    with pytest.raises(ValueError, match="stem='imagenet' if the stem differs"):
        Backbone("resnet18", 10, stem="small", weights=tmp_path / "18.pth")
    net = Backbone("resnet18", 10, in_channels=1)
    with pytest.raises(ValueError, match="in_channels=1, but one image has shape"):
        net.check_input((3, 32, 32))
    assert "resnet18" in architectures()


def test_no_network(monkeypatch):
    from urllib.error import URLError

    def refuse(*arguments, **more):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ValueError, match=r"cannot be downloaded .*put the file into .*checkpoints"):
        Backbone("resnet18", 10, weights="DEFAULT")
