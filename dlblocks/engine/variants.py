"""Fit variants of a model, each with several seeds, as one fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import seed_everything

from dlblocks import tracking
from dlblocks._errors import checked
from dlblocks._quiet import isolated
from dlblocks.data import DataModule
from dlblocks.engine.fit_many import StackedFit
from dlblocks.engine.member import Member
from dlblocks.engine.run_fits import StackedBar
from dlblocks.models import Model
from dlblocks.runs._progress import FitProgress


@checked
def fit_variants(
    variants: Mapping[str, Callable[[int], tuple[Model, DataModule]]],
    seeds: Sequence[int],
    run_dir: str | PathLike[str],
    *,
    trainer: Mapping[str, Any],
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    logger: Literal["csv", "wandb", "tensorboard", "none"] | None = None,
    progress_bar: bool = True,
) -> dict[str, list[Member]]:
    """Fit variants of a model, each with several seeds, as one fit.

    The variants may differ in learning rate, schedule, initialisation or data, but not in their
    architecture; see `StackedFit`. Each model ends with the weights of its best epoch. A fit whose
    loss is not finite stops alone: its `error` says why, and the others continue. The global random
    state stays as it was.

    Args:
        variants: Name → function of a seed that returns a new model and new data. torch, NumPy and
            Python are seeded before each call.
        seeds: The seeds of every variant.
        run_dir: The run folder; ``<variant>/seed-<seed>`` in it has the log of a fit.
        trainer: Arguments of the Trainer. ``fast_dev_run`` means one epoch of so many batches.
        monitor: The logged metric that chooses the best epoch.
        mode: Whether ``"min"`` or ``"max"`` of it is best.
        logger: Where each fit logs.
        progress_bar: Show one bar over all fits.

    Returns:
        Variant → its fits, one a seed.

    Raises:
        ValueError: There are no variants or no seeds.

    Example:
        >>> import tempfile
        >>> from dlblocks.data import DigitsDataModule
        >>> from dlblocks.models import MLPClassifier
        >>> def with_rate(lr):
        ...     return lambda seed: (MLPClassifier(64, 10, lr=lr), DigitsDataModule())
        >>> found = fit_variants(
        ...     {"low": with_rate(0.001), "high": with_rate(0.01)}, [0, 1], tempfile.mkdtemp(),
        ...     trainer={"max_epochs": 1, "accelerator": "cpu"}, progress_bar=False,
        ... )
        >>> {name: len(members) for name, members in found.items()}
        {'low': 2, 'high': 2}
    """
    if not (variants and seeds):
        raise ValueError(f"variants={list(variants)}, seeds={list(seeds)}: give at least one each.")
    found: dict[str, list[Member]] = {}
    folder = Path(run_dir)
    with isolated():
        for name, make in variants.items():
            found[name] = []
            for seed in seeds:
                seed_everything(seed, workers=True, verbose=False)
                found[name].append(Member(f"{name}, seed {seed}", *make(seed), seed=seed))
        members = [member for each in found.values() for member in each]
        stacked = StackedFit(
            members,
            trainer=_without_dev_run(trainer),
            monitor=monitor,
            mode=mode,
            folder=folder,
            on_error="continue",
        )
        progress = FitProgress(len(members), "fit", show=progress_bar)
        stacked.show(StackedBar(progress, len(members)))
        try:
            for name, each in found.items():
                for member in each:
                    member.log_to(_loggers(logger, folder, name, member.seed))
            stacked.fit()
        finally:
            progress.close()
            for member in members:
                for used in member.loggers:
                    tracking.finish_logger(used)
    return found


def _without_dev_run(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Replace ``fast_dev_run`` by the limits for which it stands."""
    arguments = dict(trainer)
    batches = int(arguments.pop("fast_dev_run", False))
    if batches:
        limits = {"limit_train_batches": batches, "limit_val_batches": batches}
        arguments |= {"max_epochs": 1, "check_val_every_n_epoch": 1, **limits}
    return arguments


def _loggers(logger: str | None, folder: Path, name: str, seed: int) -> list[Any]:
    run = f"{re.sub(r'[^-+.=0-9A-Za-z_]+', '-', name)}/seed-{seed}"
    made = tracking.make_logger(
        logger, folder / run, run_name=run, group=folder.name, job_type="variant", is_part=True
    )
    return [] if made is None else [made]
