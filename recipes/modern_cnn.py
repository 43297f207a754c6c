"""What did each idea of the modern CNN gain? Five nets in historical order, on real digits.

AlexNet, VGG-11 with batch norm, GoogLeNet, ResNet-18 and DenseNet-121 of torchvision learn the
1,797 scanned digits of 8×8 pixels from random weights, each on the same folds, for as many steps.
Stems are small: the first convolution has stride 1, and the poolings behind it are left out.

The heads of AlexNet and VGG are cut, or they alone would take most of the time. Behind their last
pooling a digit is one pixel, which the stock nets copy 36 and 49 times. The copies are left out,
which takes no function away. Hidden layers have 512 units in place of 4096, to go with ten classes
instead of a thousand. "stock" in the table is the number of parameters of the whole net for
ImageNet.

Batch norm is of 2015. torchvision's GoogLeNet has it, and so has this VGG: without it VGG-11 stayed
at 21 %. Its authors began with the weights of a shallower net.

Result: (seed 0, three folds, four epochs; the rate is not tuned)

    AlexNet      91.3 %    61.1 M parameters (here 2.8)
    VGG-11       97.3 %   132.9 M (9.8)
    GoogLeNet    98.3 %     6.6 M (5.6)
    ResNet-18    97.2 %    11.7 M (11.2)
    DenseNet-121 98.8 %     8.0 M (7.0)

With three folds no step from one net to the next is shown to be a gain: all intervals of the
differences contain 0, and the folds of AlexNet are 97, 86 and 91 %. (One thread of a busy machine,
torch 2.14, lightning 2.6.6.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dlblocks import plots
from dlblocks.cli import run_recipe
from dlblocks.crossval import CrossValidationResult, cross_validate
from dlblocks.crossval.statistics import with_holm
from dlblocks.data import DigitsDataModule
from dlblocks.models import VisionClassifier
from dlblocks.nets import Backbone
from dlblocks.runs import next_run_dir, table, write_results

Arch = Literal["alexnet", "vgg11_bn", "googlenet", "resnet18", "densenet121"]
# What a net has that the one before it has not.
IDEAS: dict[Arch, str] = {
    "alexnet": "ReLU, dropout (2012)",
    "vgg11_bn": "deeper, all filters 3×3 (2014), batch norm",
    "googlenet": "filters side by side (2014)",
    "resnet18": "shortcuts (2015)",
    "densenet121": "all earlier maps as input (2016)",
}
HIDDEN = 512  # units of the heads of AlexNet and VGG
say = rank_zero_only(print)


def main(
    archs: list[Arch] = list(IDEAS),  # noqa: B006 - only read
    num_folds: int = 3,
    max_epochs: int = 4,
    lr: float = 0.001,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "none",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """What did each idea of the modern CNN gain? Five nets in historical order, on real digits.

    Args:
        archs: The nets; each is compared with the one before it.
        num_folds: Number of folds.
        max_epochs: Epochs of each fit.
        lr: Peak of the one-cycle learning rate, the same for all.
        run_dir: Where everything goes; by default runs/modern_cnn, or runs/modern_cnn-2 and so on.
            A killed run there resumes if it is named.
        logger: Where each fold logs.
        fast_dev_run: One batch of everything, in two folds, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: How many of them, as for Lightning's Trainer.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: Seed of folds and initialisation.
    """
    folder = Path(run_dir or next_run_dir("runs/modern_cnn"))
    data = DigitsDataModule(batch_size=32, test_fraction=0.0, split_seed=seed, shuffle_seed=seed)

    def run(arch: Arch) -> CrossValidationResult:
        say(arch, flush=True)
        return cross_validate(
            lambda: make_model(arch, lr),
            data,
            num_folds=2 if fast_dev_run else num_folds,
            trainer={
                "max_epochs": max_epochs,
                "accelerator": accelerator,
                "devices": devices,
                "precision": precision,
                "fast_dev_run": fast_dev_run,
            },
            select="last",
            logger=logger,
            run_dir=folder / arch,
            seed=seed,
            figures=False,
        )

    found = {arch: run(arch) for arch in archs}
    before = dict(zip(archs[1:], archs, strict=False))
    compared = with_holm(
        {new: found[new].compare(found[old], "val/accuracy") for new, old in before.items()}
    )
    metrics: dict[str, dict[str, Any]] = {
        arch: {
            **size(arch),
            "seconds": sum(row["seconds"] for row in result.folds),
            "mean": result.mean("val/accuracy"),
            "interval": result.interval("val/accuracy"),
            **compared.get(arch, {}),
        }
        for arch, result in found.items()
    }
    say("\n" + table([{"net": arch, **row} for arch, row in metrics.items()]))
    say("difference: from the net before, with 95 % interval; p: corrected t-test on the folds")
    scores: dict[str, list[float]] = {
        arch: [row["val/accuracy"] for row in found[arch].folds] for arch in archs
    }
    figures = {
        "accuracy": plots.strip(
            scores,
            intervals={arch: row["interval"] for arch, row in metrics.items()},
            metric="accuracy",
        )
    }
    if before:
        named = {new: f"{new}: {IDEAS[new]}" for new in before}
        figures["gains"] = plots.strip(
            {
                named[new]: [a - b for a, b in zip(scores[new], scores[old], strict=True)]
                for new, old in before.items()
            },
            intervals={named[new]: row["interval"] for new, row in compared.items()},
            metric="accuracy gained over the net before",
        )
    write_results(folder, metrics, figures=figures)


def make_model(arch: Arch, lr: float = 0.001) -> VisionClassifier:
    """Return a new net for digits, with a lighter head where it is heavy."""
    model = VisionClassifier(
        arch,
        num_classes=10,
        in_channels=1,
        image_size=8,
        optimizer="adamw",
        lr=lr,
        weight_decay=0.02,
        lr_schedule="one_cycle",
    )
    if arch in ("alexnet", "vgg11_bn"):
        lighten_head(model.net.model)
    return model.to(memory_format=torch.channels_last)  # faster on the CPU


def lighten_head(net: Any) -> None:
    """Pool the last map to one pixel, and give hidden layers `HIDDEN` units."""
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    features = [module for module in net.features if isinstance(module, nn.Conv2d)][-1].out_channels
    layers = [i for i, layer in enumerate(net.classifier) if isinstance(layer, nn.Linear)]
    sizes = [features, HIDDEN, HIDDEN, net.classifier[layers[-1]].out_features]
    for i, inputs, outputs in zip(layers, sizes, sizes[1:], strict=False):
        net.classifier[i] = nn.Linear(inputs, outputs)


def size(arch: Arch) -> dict[str, int]:
    """Count parameters, and the multiply-adds of a digit, in units of a million."""
    model = make_model(arch).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 8, 8))
    with torch.device("meta"):
        stock = Backbone(arch, 1000)
    return {
        "stock": round(sum(p.numel() for p in stock.parameters()) / 1e6, 1),
        "parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "multiply-adds": round(counter.get_total_flops() / 2e6, 1),
    }


if __name__ == "__main__":
    run_recipe(main)
