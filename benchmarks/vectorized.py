"""Measure how one fit of K models grows with K, and what `engine="auto"` chooses.

- *Growth*: K models of 64 → 128 → 128 → 10 in one fit, K = 1 … 200, each K in a process of its own.
  The peer is K times the time of one model alone: what K fits one after another would take of the
  same step. Seconds and peak memory are drawn into ``--figure``.
- *auto*: a cross-validation by ``engine="auto"``, its measuring included, against both engines. It
  must not be slower than the better one by more than a tenth. The nets are an MLP and CNNs of two
  sizes.
- *Stacked step*: loss and gradients of ten models, by a chain of layers as the engine computes it,
  by `torch.func.vmap`, by `torch.compile` of the chain (after compiling), and of one model after
  the other.

Run: python benchmarks/vectorized.py [--figure docs/vectorized.png]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _timing import Bench, Run, Stopwatch, Time, arguments, start

FOLDS, EPOCHS, STEPS, SIZES = 10, 10, 5, (1, 5, 20, 50, 100, 200)


def mlp() -> Any:
    from dlblocks.models import MLPClassifier

    return MLPClassifier(64, 10, hidden=[128, 128])


def cnn(*channels: int) -> Any:
    from dlblocks.models import CNNClassifier

    return CNNClassifier(1, 10, channels=list(channels))


def folds(make_model: Callable[[], Any], engine: Any, epochs: int, device: str) -> Run:
    from dlblocks.crossval import cross_validate
    from dlblocks.data import DigitsDataModule

    return lambda: cross_validate(
        make_model,
        DigitsDataModule(test_fraction=0.0),
        num_folds=FOLDS,
        trainer={"max_epochs": epochs, "accelerator": device},
        engine=engine,
        progress_bar=False,
        figures=False,
        run_dir=tempfile.mkdtemp(),
    )


def fit(count: int, device: str) -> tuple[Time, float]:
    """The time of one fit of `count` models, and the process's peak memory in MB."""
    from _memory import peak

    from dlblocks.data import DigitsDataModule
    from dlblocks.engine import Member, StackedFit

    data = DigitsDataModule(num_folds=FOLDS)
    watch = Stopwatch()
    for epochs in (1, EPOCHS):  # the first warms up
        members = [Member(str(k), mlp(), data.for_fold(k % FOLDS, FOLDS)) for k in range(count)]
        trainer = {"max_epochs": epochs, "accelerator": device}
        with watch:
            StackedFit(members, trainer=trainer, monitor="val/loss", mode="min").fit()
    return watch.time, peak()


def alone(count: int, device: str) -> tuple[Time, float]:
    """Return what `fit` returns, from a process of its own."""
    command = [sys.executable, __file__, "--grow", str(count), "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu, wall, memory = map(float, done.stdout.split()[-3:])
    return Time(cpu, wall), memory


def step(make_model: Callable[[], Any], way: str, shape: tuple[int, ...], device: str) -> Run:
    """A step without the optimizer's, by ``"chain"``, ``"vmap"``, ``"compiled"`` or ``"alone"``."""
    import torch

    from dlblocks.engine._models import StackedModels

    torch.manual_seed(0)
    alone = make_model().to(device)
    stack = StackedModels([make_model() for _ in range(FOLDS)], torch.device(device))
    stack.make_gradients(stack.params)
    inputs = torch.randn(FOLDS, 64, *shape, device=device)
    targets = torch.randint(10, (FOLDS, 64), device=device)
    if way == "vmap":
        stack._chain = None
    if way == "compiled":
        stack._chain.forward = torch.compile(stack._chain.forward, dynamic=False)

    def run() -> None:
        for _ in range(STEPS):
            if way == "alone":
                for k in range(FOLDS):
                    alone.loss(alone.forward_prepared(inputs[k]), targets[k]).backward()
                    alone.zero_grad()
            else:
                stack.run(inputs, targets)[0].sum().backward()
                stack.zero_gradients(list(range(FOLDS)))
        if device != "cpu":
            torch.get_device_module(device).synchronize()

    return run


def steps(bench: Bench) -> None:
    """Compare ways to compute a step of ten models."""
    nets: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "MLP": (mlp, (64,)),
        "CNN of 8 and 16 channels, 8×8": (partial(cnn, 8, 16), (1, 8, 8)),
        "CNN of 32 and 64 channels, 8×8": (partial(cnn, 32, 64), (1, 8, 8)),
        "CNN of 16, 32 and 64 channels, 32×32": (partial(cnn, 16, 32, 64), (1, 32, 32)),
    }
    for name, (make, shape) in nets.items():
        bench.compare(
            f"Stacked step, {FOLDS} × {name}",
            {
                way: partial(step, make, way, shape, bench.device)
                for way in ("chain", "vmap", "compiled", "alone")
            },
            per=STEPS,
        )


def growth(bench: Bench, figure: Path | None) -> None:
    """Measure, print and draw what one fit of K models takes."""
    if not bench.wants("growth"):
        return
    rows = []
    for count in SIZES:
        measured: list[tuple[Time, float]] = []

        def stacked(count: int = count, measured: list = measured) -> Time:
            measured.append(alone(count, bench.device))
            return measured[-1][0]

        def one_by_one(count: int = count) -> Time:
            return Time(*(count * seconds for seconds in alone(1, bench.device)[0]))

        found = bench.compare(
            f"Growth, {count} MLPs in one fit",
            {"one fit": lambda s=stacked: s, "K times one fit": lambda o=one_by_one: o},
            unit="s",
            turns=min(3, bench.turns),
        )
        if found:
            seconds = sorted(found["one fit"])[len(found["one fit"]) // 2]
            rows.append((count, seconds, max(memory for _, memory in measured)))
    if figure and len(rows) > 3:
        draw(rows, figure)


def draw(rows: list[tuple[int, float, float]], path: Path) -> None:
    from dlblocks.plots._style import new_figure, style_axis

    figure = new_figure(8, 3)
    counts = [row[0] for row in rows]
    for i, (axis, label) in enumerate(
        zip(figure.subplots(1, 2), ("seconds", "memory, MB"), strict=True), start=1
    ):
        axis.plot(counts, [row[i] for row in rows], marker="o")
        if i == 1:
            axis.plot(counts, [rows[0][1] * k for k in counts], linestyle="--", color="0.6")
            place = {"xytext": (8, -4), "textcoords": "offset points", "color": "0.4"}
            axis.annotate("K × the first", (counts[3], rows[0][1] * counts[3]), **place)
        axis.set_ylim(bottom=0, top=1.25 * max(row[i] for row in rows))
        style_axis(axis, "models in one fit, K", label)
    figure.savefig(path, dpi=150)


def tables(bench: Bench, figure: Path | None = None) -> None:
    nets: dict[str, tuple[Callable[[], Any], int]] = {
        "MLP": (mlp, 5),
        "CNN of 8 and 16 channels": (partial(cnn, 8, 16), 2),
        "CNN of 32 and 64 channels": (partial(cnn, 32, 64), 1),
    }
    for name, (make, epochs) in nets.items():
        bench.compare(
            f"engine='auto', {FOLDS} folds, {name}",
            {
                engine: partial(folds, make, engine, epochs, bench.device)
                for engine in ("auto", "sequential", "vectorized")
            },
            unit="s",
            goals={"sequential": 0.9, "vectorized": 0.9},
            turns=min(3, bench.turns),
        )
    steps(bench)
    growth(bench, figure)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--figure", type=Path, help="draw the growth into this file")
    parser.add_argument("--grow", type=int, help="measure one K, for the figure")
    given = parser.parse_args()
    if given.grow:
        import torch

        from dlblocks._quiet import quiet

        torch.set_num_threads(given.threads)
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
        with quiet():
            time, memory = fit(given.grow, given.device)
        print(*time, memory)
    else:
        start(partial(tables, figure=given.figure), parser)
