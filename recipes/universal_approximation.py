"""What exists for one hidden layer of growing width, and what training finds.

Three functions on [-1, 1]: a smooth one, exp(-4x²) · cos(20x); one with kinks, a triangle wave of
four periods; and one that is not continuous, the sign of x. For each width the largest error over
the interval is measured in three ways. A ReLU layer is constructed, which draws straight lines
between equally distant points of the function. Random features keep the layer as it is initialised,
and least squares solve the output weights. Adam trains the same layer. Of several seeds the best
counts. All that is needed exists (Cybenko 1989; Hornik 1991), but training does not find it. For
the function that jumps nothing exists: no continuous function comes nearer than half the jump.

Result: largest error at width 256, for the smooth function 0.0031 constructed, 0.044 of random
features, 0.55 trained; for the kinks 0 (exact from width 8 on), 0.076, 0.009; for the jump never
below 1, half of it. Best of five seeds (0 to 4), 3,250 steps each; 215 s of processor time (one
thread of two CPU cores, torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import nn

from dlblocks import plots
from dlblocks.cli import run_recipe
from dlblocks.data import ArrayDataModule, CurveDataModule, DataModule
from dlblocks.engine import fit_variants
from dlblocks.models import MLPRegressor, Model
from dlblocks.nets import MLP
from dlblocks.runs import check_new_run_dir, next_run_dir, table, write_results

Function = Callable[[np.ndarray], np.ndarray]
FUNCTIONS: dict[str, Function] = {
    "smooth": lambda x: CurveDataModule.function(2 * x),
    "kinks": lambda x: 4 * np.abs(2 * x - np.floor(2 * x + 0.5)) - 1,
    "jump": np.sign,
}
# The error is measured at many points, some very close to the jump, where it is largest.
GRID = np.sort(np.append(np.linspace(-1, 1, 20_001), [-1e-9, 1e-9]))


def main(
    widths: list[int] = [4, 8, 16, 32, 64, 128, 256],  # noqa: B006 - only read
    num_seeds: int = 5,
    num_samples: int = 1024,
    max_epochs: int = 250,
    lr: float = 0.01,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "none",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """What exists for one hidden layer of growing width, and what training finds.

    Args:
        widths: Units of the hidden layer.
        num_seeds: Initialisations of each width, trained at once; the best counts.
        num_samples: Points of a function, without noise; four of five train.
        max_epochs: Epochs of training.
        lr: Learning rate at the start; it falls to 0 along a cosine.
        run_dir: Where everything goes; by default runs/universal_approximation, or
            runs/universal_approximation-2 and so on.
        logger: Where each fit logs.
        fast_dev_run: One epoch, one seed and two widths, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: One device fits all.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: The first seed.
    """
    if fast_dev_run:
        widths, num_seeds, max_epochs = widths[:2], 1, 1
    folder = check_new_run_dir(run_dir or next_run_dir("runs/universal_approximation"))
    trainer = {
        "max_epochs": max_epochs,
        "accelerator": accelerator,
        "devices": 1 if devices == "auto" else devices,
        "precision": precision,
    }
    seeds = range(seed, seed + num_seeds)
    rows: list[dict[str, Any]] = []
    figures = {}
    for name, function in FUNCTIONS.items():
        for width in widths:
            new = partial(new_fit, function, width, num_samples, lr)
            variant = f"{name} {width}"
            members = fit_variants(
                {variant: new}, seeds, folder, trainer=trainer, monitor="train/loss", logger=logger
            )[variant]
            nets: dict[str, list[nn.Module]] = {
                "constructed": [construct(function, width)],
                "features": [least_squares(new, s) for s in seeds],
                "trained": [member.model.net for member in members],
            }
            truth = function(GRID)
            best = {
                way: min(float(np.abs(evaluate(net) - truth).max()) for net in each)
                for way, each in nets.items()
            }
            rows.append({"function": name, "width": width, **best})
        mine = [row for row in rows if row["function"] == name]
        # An exact network would have no place on a logarithmic axis.
        curves = {way: [max(row[way], 1e-4) for row in mine] for way in best}
        figures[name] = plots.lines(
            curves, widths, xlabel="width", ylabel=f"largest error, {name}", log="xy"
        )
    print(table(rows))
    metrics = {
        f"{row['function']}/{way}/{row['width']}": {"mean": row[way]}
        for row in rows
        for way in best
    }
    write_results(folder, metrics, rows=rows, figures=figures)


def new_fit(
    function: Function, width: int, num_samples: int, lr: float, seed: int
) -> tuple[Model, DataModule]:
    """Return a new network and the samples in an order of their own."""
    x = np.linspace(-1, 1, num_samples)
    inputs, targets = (torch.from_numpy(v).float().unsqueeze(1) for v in (x, function(x)))
    # torch's own initialisation: with biases of 0 all units would have their kink at 0.
    model = MLPRegressor(
        1, hidden=[width], init=None, optimizer="adam", lr=lr, lr_schedule="cosine"
    )
    options: dict[str, Any] = {"batch_size": 64, "shuffle_seed": seed, "split_seed": 0}
    return model, ArrayDataModule(inputs, targets, normalize=False, **options)


def construct(function: Function, width: int) -> MLP:
    """Return the network that connects equally distant points by straight lines.

    Unit i begins at point i, where the slope changes: f(x₀) + Σᵢ (sᵢ - sᵢ₋₁) · relu(x - xᵢ), with
    the slopes sᵢ of the segments and s₋₁ = 0.
    """
    x = np.linspace(-1, 1, width + 1)
    y = function(x)
    changes = np.diff(np.diff(y) / np.diff(x), prepend=0.0)
    net = MLP(1, 1, hidden=[width]).double()
    hidden, output = linear_layers(net)
    with torch.no_grad():
        hidden.weight.fill_(1.0)
        hidden.bias.copy_(torch.from_numpy(-x[:-1]))
        output.weight.copy_(torch.from_numpy(changes).unsqueeze(0))
        output.bias.fill_(float(y[0]))
    return net


def least_squares(new: Callable[[int], tuple[Model, DataModule]], seed: int) -> MLP:
    """Return an untrained network with the best output weights."""
    seed_everything(seed, verbose=False)
    model, data = new(seed)
    hidden = linear_layers(model.net)[0]
    net = MLP(1, 1, hidden=[hidden.out_features]).double()
    net.load_state_dict(model.net.state_dict())
    inputs, targets, _ = data.arrays("train")
    hidden, output = linear_layers(net)
    with torch.no_grad():
        features = hidden(inputs.double()).relu()
        features = torch.cat([features, torch.ones(len(features), 1).double()], dim=1)
        # By singular values: many units have their kink outside the interval and are collinear.
        solved = torch.linalg.lstsq(features, targets.double(), driver="gelsd").solution
        output.weight.copy_(solved[:-1].T)
        output.bias.copy_(solved[-1])
    return net


def linear_layers(net: nn.Module) -> list[nn.Linear]:
    """Return hidden and output layer."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


@torch.inference_mode()
def evaluate(net: nn.Module) -> np.ndarray:
    """Return the outputs of a network on the grid, in float64."""
    x = torch.from_numpy(GRID).unsqueeze(1).to(next(net.parameters()))
    return net(x).squeeze(1).cpu().double().numpy()


if __name__ == "__main__":
    run_recipe(main)
