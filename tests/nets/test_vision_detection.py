"""Detectors against bare torchvision with the same weights; the loss in evaluation mode."""

import copy

import pytest
import torch
from torch import nn

from dlblocks.nets import VisionDetection
from dlblocks.nets.vision_detection import ARCHS, DRAWS


def batch(seed=0, n=3, side=48, classes=3):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 1, side, side, generator=draw)
    targets = []
    for i in range(n):
        corner = torch.rand(i, 2, generator=draw) * (side - 20)
        boxes = torch.cat([corner, corner + 8 + 10 * torch.rand(i, 2, generator=draw)], 1)
        labels = torch.arange(i) % classes
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def net(arch, **arguments):
    torch.manual_seed(0)
    made = VisionDetection(
        arch, 3, **{"in_channels": 1, "channels": 32, "num_convs": 1, **arguments}
    )
    return made


def bare(made):
    """torchvision's own forward of the same detector, which keeps size and values of images."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    detector = copy.deepcopy(made.detector)
    detector.transform = GeneralizedRCNNTransform(48, 48, [0.0], [1.0], size_divisible=1)
    detector.transform.torch_choice = lambda sizes: sizes[0]  # which would draw a number
    return detector


@pytest.mark.parametrize("arch", ARCHS)
def test_losses_and_detections_are_those_of_bare_torchvision(arch):
    made, (images, targets) = net(arch, score_threshold=0.01), batch()
    detector = bare(made)
    shift = int(arch == "fasterrcnn")
    given = [{"boxes": t["boxes"], "labels": t["labels"] + shift} for t in targets]
    torch.manual_seed(5)
    theirs = detector.train()(list(images), given)
    torch.manual_seed(5)
    ours, none = made.train().step(images, targets, detect=False)
    assert not none
    assert {*ours} == {*theirs}
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)
    sum(ours.values()).backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    made.load_state_dict(made.state_dict())
    detector.load_state_dict(made.detector.state_dict())
    with torch.no_grad():
        expected, found = detector.eval()(list(images)), made.eval()(images)
    assert sum(len(one["labels"]) for one in expected) > 0
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one["boxes"], two["boxes"])
        torch.testing.assert_close(one["scores"], two["scores"])
        assert torch.equal(one["labels"] - shift, two["labels"])


@pytest.mark.parametrize("arch", ARCHS)
def test_the_loss_in_evaluation_is_that_of_training_and_changes_nothing(arch):
    made, (images, targets) = net(arch), batch()
    for _ in range(3):  # statistics of batch norms that are not those of the start
        made.train().step(images, targets, detect=False)
    made.eval()
    state = copy.deepcopy(made.state_dict())
    modes = [module.training for module in made.modules()]
    random = torch.get_rng_state()
    losses, found = made.step(images, targets)
    again, _ = made.step(images, targets)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    assert [module.training for module in made.modules()] == modes
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert len(found) == len(images)
    # The path of training, with batch norms in evaluation mode.
    detector = bare(made).train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    shift = int(arch == "fasterrcnn")
    given = [{"boxes": t["boxes"], "labels": t["labels"] + shift} for t in targets]
    torch.manual_seed(DRAWS)
    theirs = detector(list(images), given)
    total, expected = (sum(x.values()).detach() for x in (losses, theirs))
    assert float(total) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_class_0_is_a_class_and_not_the_background(arch):
    """A loss that took label 0 for the background would not depend on where the boxes are."""
    made, (images, _) = net(arch), batch(n=2)
    made.eval()
    box = torch.tensor([[8.0, 8, 24, 24]])
    found = []
    for label in (0, 2):
        target = {"boxes": box, "labels": torch.tensor([label])}
        losses, _ = made.step(images, [target] * 2, detect=False)
        made.zero_grad()
        sum(losses.values()).backward()
        if arch == "fasterrcnn":
            grad = made.detector.roi_heads.box_predictor.cls_score.bias.grad
            found.append(int(grad[1:].argmin()))  # the class whose score should rise
        else:
            head = made.detector.head.classification_head.cls_logits
            per_class = head.bias.grad.view(-1, 3).sum(0)
            found.append(int(per_class.argmin()))
    assert found == [0, 2]


def test_images_without_objects_have_a_loss_with_gradients():
    for arch in ARCHS:
        made, (images, _) = net(arch), batch(n=2)
        none = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
        losses, _ = made.train().step(images, none, detect=False)
        total = sum(losses.values())
        total.backward()
        assert total.isfinite()
        assert total > 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_images_are_neither_resized_nor_normalised_nor_broadcast():
    """torchvision makes 800 px of 48, subtracts ImageNet's means and repeats a grey channel."""
    seen = []
    made = net("fcos").eval()
    made.detector.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images, _ = batch()
    made(images)
    assert torch.equal(seen[0], images)
    with pytest.raises(ValueError, match=r"in_channels=1, but one image has shape \(3, 48, 48\)"):
        made(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("size", [(40, 40), (33, 57), (20, 20)])
def test_any_size(size):
    for arch in ARCHS:
        found = net(arch).eval()(torch.zeros(1, 1, *size))
        limit = torch.tensor([size[1], size[0]] * 2)
        assert (found[0]["boxes"] <= limit).all()


def test_backbones():
    made = VisionDetection("retinanet", 2, backbone="resnet18", channels=32)
    assert made.strides == (4, 8, 16, 32)
    assert len(made.eval()(torch.zeros(1, 3, 64, 64))) == 1
    deep = VisionDetection("fcos", 2, backbone="resnet50", channels=32, num_convs=1)
    assert deep.detector.backbone.body.widths == (256, 512, 1024, 2048)
    assert len(deep.eval()(torch.zeros(1, 3, 64, 64))) == 1


def test_pretrained_weights_reach_the_backbone(tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(1)
    saved = resnet18()
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    made = VisionDetection(
        "fcos", 2, backbone="resnet18", weights=tmp_path / "net.pt", channels=32, num_convs=1
    )
    own = made.detector.backbone.body.net.state_dict()
    assert all(torch.equal(own[name], saved.state_dict()[name]) for name in own)


def test_nets_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    saved = timm.create_model("resnet10t")
    torch.save(saved.state_dict(), tmp_path / "net.pt")
    made = VisionDetection(
        "fcos", 2, backbone="timm:resnet10t", weights=tmp_path / "net.pt", channels=32, num_convs=1
    )
    assert made.strides == (4, 8, 16, 32)
    own, given = made.detector.backbone.body.net.state_dict(), saved.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own)
    assert len(made.eval()(torch.zeros(1, 3, 64, 64))) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"arch": "yolo"}, "arch='yolo'"),
        ({"channels": 48}, "channels=48 must be a multiple of 32"),
        ({"backbone": "resnet17"}, r"backbone='resnet17' is not a ResNet .* did you mean"),
        ({"weights": "DEFAULT"}, "there are none of backbone='small'"),
        ({"score_threshold": 2}, "score_threshold=2"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        VisionDetection(**{"arch": "fcos", "num_classes": 2, **arguments})
