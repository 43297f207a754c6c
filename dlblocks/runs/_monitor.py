"""Find out which value of the monitor is best.

`dlblocks.metrics._names` tells it by the name of a metric.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torchmetrics import Metric

from dlblocks._errors import check_choice, did_you_mean
from dlblocks._quiet import isolated
from dlblocks.metrics import Mode, metric_mode, mode_of, mode_of_metric
from dlblocks.runs._trainer import new_module


def resolve_mode(
    monitor: str,
    mode: Mode | None,
    make_model: Callable[..., pl.LightningModule] | None = None,
    argument: str = "monitor",
) -> Mode:
    """Return `mode`, or for None the best direction of `monitor`.

    Args:
        monitor: Name of a metric.
        mode: ``"min"``, ``"max"`` or None.
        make_model: Called where the name does not say it: a torchmetrics object of the model may.
        argument: Its name in messages.

    Raises:
        ValueError: `mode` contradicts what is known of the metric, or nothing is known and `mode`
            is None.
    """
    if mode is not None:
        check_choice("mode", mode, ["min", "max"])
    known = metric_mode(monitor)
    if known is None and mode is None and make_model is not None:
        with isolated():
            known = mode_of_metric(new_module(make_model), monitor)
    if known is not None and mode not in (None, known):
        raise _contradiction(monitor, "", known, mode)
    found = known or mode
    if found is None:
        raise ValueError(
            f"{argument}={monitor!r} does not say whether it is best low or high; set "
            "mode='min' or mode='max'."
        )
    return found


@contextlib.contextmanager
def checking_mode(model: pl.LightningModule, monitor: str, mode: str) -> Iterator[None]:
    """Raise a `ValueError` if the metric logged as `monitor` contradicts `mode`.

    The first log of a fit is in Lightning's sanity validation, before anything is trained.
    """
    names = {monitor, *(monitor.removesuffix(end) for end in ("_epoch", "_step"))}
    log = model.log

    def check(known: str | None, what: str = "") -> None:
        # A name that says it counts for more than an object, and was checked by `resolve_mode`.
        if metric_mode(monitor) is None and known not in (None, mode):
            raise _contradiction(monitor, what, str(known), mode)

    def checked(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(value, Metric) and name in names:
            check(mode_of(value), f", logged as a {type(value).__name__},")
        log(name, value, *args, **kwargs)

    check(mode_of_metric(model, monitor))
    # On the instance: `log_dict` calls it as well.
    vars(model)["log"] = checked
    try:
        yield
    finally:
        del vars(model)["log"]


def _contradiction(monitor: str, what: str, known: str, mode: str | None) -> ValueError:
    best = {"min": "lowest", "max": "highest"}[known]
    return ValueError(
        f"monitor={monitor!r}{what} is best where it is {best}, but mode={mode!r}; set "
        f"mode={known!r} or leave mode out."
    )


@contextlib.contextmanager
def saying_what_was_logged(trainer: pl.Trainer, monitor: str) -> Iterator[None]:
    """List the logged metrics if the fit inside lacks `monitor`."""
    try:
        yield
    except MisconfigurationException as error:
        logged = sorted(trainer.callback_metrics)
        # Said by ModelCheckpoint after the first validation.
        if monitor in logged or f"monitor={monitor!r}" not in str(error):
            raise
        hint = did_you_mean(monitor, logged) or "."
        raise ValueError(
            f"monitor={monitor!r} was not logged by {type(trainer.lightning_module).__name__}"
            f"{hint} There are: "
            f"{', '.join(logged) or 'none; log it in validation_step by self.log'}."
        ) from error
