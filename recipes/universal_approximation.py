"""One hidden layer of growing width: what exists, and what training finds.

Three functions on [-1, 1]: a smooth one, exp(-4x²) · cos(20x); one with kinks, a triangle wave of
four periods; and one that is not continuous, the sign of x. For each width the largest error over
the interval is measured in three ways: of a ReLU layer that is constructed (it draws straight lines
between equally distant points of the function), of random features (the layer as it is initialised,
the output weights solved by least squares) and of the same layer trained by Adam, the best of
several seeds. All that is needed exists (Cybenko 1989; Hornik 1991); training does not find it. For
the function that jumps nothing exists: no continuous function comes nearer than half the jump.

Result: largest error at width 256, for the smooth function 0.0031 constructed, 0.044 of random
features, 0.55 trained; for the kinks 0 (exact from width 8 on), 0.076, 0.009; for the jump never
below 1, half of it. Best of five seeds (0 to 4), 3,250 steps each; 215 s of processor time (one
thread of two CPU cores in other use, torch 2.14, lightning 2.6.6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from dlblocks import plots, tracking
from dlblocks._errors import check_range
from dlblocks._files import write_json, write_rows
from dlblocks._quiet import quiet
from dlblocks.cli import run_recipe
from dlblocks.data import ArrayDataModule, CurveDataModule
from dlblocks.engine import Member, StackedFit
from dlblocks.models import MLPRegressor
from dlblocks.nets import MLP
from dlblocks.plots._style import new_figure, style_axis
from dlblocks.runs.folder import check_new_run_dir, next_run_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = Callable[[np.ndarray], np.ndarray]
FUNCTIONS: dict[str, Function] = {
    "smooth": lambda x: CurveDataModule.function(2 * x),
    "kinks": lambda x: 4 * np.abs(2 * x - np.floor(2 * x + 0.5)) - 1,
    "jump": np.sign,
}
WAYS = {
    "constructed": ("constructed: exists", plots.GREEN, "s-"),
    "features": ("random features, least squares", plots.ORANGE, "^-"),
    "trained": ("trained by Adam", plots.BLUE, "o-"),
}
# Where the error is measured: closely, and closest to the jump, where it is largest.
GRID = np.sort(np.append(np.linspace(-1, 1, 20_001), [-1e-9, 1e-9]))


def main(
    widths: list[int] = [4, 8, 16, 32, 64, 128, 256],  # noqa: B006 - only read
    num_seeds: int = 5,
    num_samples: int = 1024,
    max_epochs: int = 250,
    lr: float = 0.01,
    run_dir: str | None = None,
    logger: Literal["csv", "wandb", "tensorboard", "none"] = "csv",
    fast_dev_run: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """One hidden layer of growing width: what exists, and what training finds.

    Args:
        widths: Units of the hidden layer.
        num_seeds: Initialisations of each width, trained at once; the best counts.
        num_samples: Points of a function, without noise; four of five train.
        max_epochs: Epochs of training.
        lr: Learning rate at the start; it falls to 0 along a cosine.
        run_dir: Where everything goes; by default runs/universal_approximation, or
            runs/universal_approximation-2 and so on.
        logger: Where the largest errors are logged, one run a function, a step a width.
        fast_dev_run: One epoch, one seed and two widths, to see that it runs.
        accelerator: What to train on, as for Lightning's Trainer.
        devices: One device fits all.
        precision: Numeric precision, as for Lightning's Trainer.
        seed: The first seed.
    """
    for width in widths:
        check_range("widths", width, 1)
    if not widths or sorted(set(widths)) != widths:
        raise ValueError(f"widths={widths} must be at least one, and rise.")
    check_range("num_seeds", num_seeds, 1)
    if fast_dev_run:
        widths, num_seeds, max_epochs = widths[:2], 1, 1
    folder = check_new_run_dir(run_dir or next_run_dir("runs/universal_approximation"))
    trainer = {
        "max_epochs": max_epochs,
        "accelerator": accelerator,
        "devices": 1 if devices == "auto" else devices,
        "precision": precision,
    }
    errors: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    for name, function in FUNCTIONS.items():
        errors[name] = {way: [] for way in WAYS}
        print(f"{name:<8}width   constructed   random features   trained (all seeds)", flush=True)
        for width in widths:
            members = make_members(function, width, range(seed, seed + num_seeds), num_samples, lr)
            by_way = {
                "constructed": [evaluate(construct(function, width))],
                "features": [evaluate(least_squares(member)) for member in members],
            }
            with quiet():
                StackedFit(
                    members, trainer=trainer, monitor="train/loss", mode="min", folder=folder
                ).fit()
            by_way["trained"] = [evaluate(member.model.net) for member in members]
            truth = function(GRID)
            found = {
                way: sorted((float(np.abs(y - truth).max()), k) for k, y in enumerate(ys))
                for way, ys in by_way.items()
            }
            for way, ys in by_way.items():
                errors[name][way].append(found[way][0][0])
                if width == shown(widths):
                    curves.setdefault(name, {})[way] = ys[found[way][0][1]]
            trained = ", ".join(f"{error:.3g}" for error, _ in found["trained"])
            print(
                f"{width:>13}{found['constructed'][0][0]:>14.2g}{found['features'][0][0]:>18.2g}"
                f"   {trained}",
                flush=True,
            )
        log(errors[name], widths, logger, folder / name)
    write_rows(
        folder / "errors.csv",
        [
            {"function": name, "width": width, **{way: errors[name][way][i] for way in WAYS}}
            for name in FUNCTIONS
            for i, width in enumerate(widths)
        ],
    )
    write_json(
        folder / "summary.json",
        {
            "metrics": {
                f"{name}/{way}/{width}": {"mean": errors[name][way][i]}
                for name in FUNCTIONS
                for way in WAYS
                for i, width in enumerate(widths)
            },
            "config": {"num_samples": num_samples, "num_seeds": num_seeds, "lr": lr, **trainer},
            "versions": tracking.versions(),
        },
    )
    plots.save(draw(errors, curves, widths), folder / "figures" / "universal_approximation.png")
    print(f"Everything is in {folder}: summary.json, errors.csv, figures/.")


def make_members(
    function: Function, width: int, seeds: Sequence[int], num_samples: int, lr: float
) -> list[Member]:
    """Networks of one width, each with its own weights and order of the same samples."""
    x = np.linspace(-1, 1, num_samples)
    inputs, targets = (torch.from_numpy(v).float().unsqueeze(1) for v in (x, function(x)))
    members = []
    for s in seeds:
        seed_everything(s, verbose=False)
        # torch's own initialisation: with biases of 0 all units would have their kink at 0.
        model = MLPRegressor(
            1, hidden=[width], init=None, optimizer="adam", lr=lr, lr_schedule="cosine"
        )
        data = ArrayDataModule(
            inputs, targets, normalize=False, batch_size=64, shuffle_seed=s, split_seed=0
        )
        members.append(Member(f"width {width}, seed {s}", model, data))
    return members


def construct(function: Function, width: int) -> MLP:
    """The network whose output is straight between width + 1 equally distant points of a function.

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


def least_squares(member: Member) -> MLP:
    """The network of a member as it begins, but for the output weights, which are the best."""
    net = MLP(1, 1, hidden=[linear_layers(member.model.net)[0].out_features]).double()
    net.load_state_dict(member.model.net.state_dict())
    member.datamodule.setup("fit")
    inputs, targets, _ = member.datamodule.arrays("train")
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
    """Hidden and output layer."""
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


def evaluate(net: nn.Module) -> np.ndarray:
    """What a network puts out at the points where the error is measured, in float64."""
    weight = next(net.parameters())
    x = torch.from_numpy(GRID).unsqueeze(1).to(weight)
    with torch.inference_mode():
        y: Tensor = net(x)
    return y.squeeze(1).cpu().double().numpy()


def shown(widths: Sequence[int]) -> int:
    """The width whose functions are drawn."""
    return 32 if 32 in widths else widths[-1]


def log(
    errors: Mapping[str, Sequence[float]], widths: Sequence[int], kind: str, folder: Path
) -> None:
    """Logs the largest errors for one function; the step is the width."""
    logger = tracking.make_logger(
        kind, folder, run_name=folder.name, group=folder.parent.name, job_type="function"
    )
    if logger is None:
        return
    for i, width in enumerate(widths):
        row = {f"max_error/{way}": values[i] for way, values in errors.items()}
        logger.log_metrics({**row, "width": width}, step=width)
    logger.save()
    tracking.finish_logger(logger)


def draw(
    errors: Mapping[str, Mapping[str, Sequence[float]]],
    curves: Mapping[str, Mapping[str, np.ndarray]],
    widths: Sequence[int],
) -> Figure:
    """The largest error over the width, and below it the functions at one width."""
    figure = new_figure(10, 6)
    axes = figure.subplots(2, len(errors), height_ratios=[1.3, 1], squeeze=False)
    for upper, lower, name in zip(*axes, errors, strict=True):
        for way, (label, colour, style) in WAYS.items():
            # A constructed network without error would have no place on this axis.
            upper.plot(
                widths,
                np.maximum(errors[name][way], 1e-4),
                style,
                color=colour,
                label=label,
                markersize=5,
            )
            lower.plot(GRID, curves[name][way], color=colour, linewidth=1.3)
        upper.set_xscale("log", base=2)
        upper.set_yscale("log")
        upper.set_ylim(7e-5, 4)
        upper.xaxis.set_major_formatter("{x:g}")
        if name == "jump":
            upper.axhline(1.0, color=plots.GREY, linestyle=":")
            upper.text(widths[-1], 0.75, "half the jump", ha="right", va="top", fontsize=9.5)
        style_axis(upper, "width", "largest error" if name == next(iter(errors)) else "")
        upper.set_title(name, fontsize=12)
        lower.plot(GRID, FUNCTIONS[name](GRID), color=plots.GREY, linewidth=2.4, zorder=1)
        lower.set_ylim(-1.7, 1.7)
        style_axis(lower, "x", f"width {shown(widths)}" if name == next(iter(errors)) else "")
    axes[0, 0].legend(frameon=False, fontsize=9.5, loc="lower left")
    axes[0, 1].text(widths[-1], 1.2e-4, "0: exact", ha="right", fontsize=9.5, color=plots.GREEN)
    return figure


if __name__ == "__main__":
    run_recipe(main)
