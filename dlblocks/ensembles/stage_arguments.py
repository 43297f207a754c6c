"""Arguments that the kinds of boosting share, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlblocks.errors import check_range, did_you_mean
from dlblocks.fitting import plain_trainer

# Arguments of the Trainer that mean for a stage what they mean for a fit.
TRAINER = (
    "max_epochs", "gradient_clip_val", "gradient_clip_algorithm", "accelerator", "devices",
    "precision", "deterministic", "benchmark", "detect_anomaly",
)  # fmt: skip
DEFAULT_EPOCHS = 10


def check_trainer(trainer: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the Trainer arguments of stages, or a `ValueError` that names the wrong one."""
    arguments = plain_trainer(trainer)
    arguments.pop("enable_progress_bar", None)
    for name, value in arguments.items():
        if name not in TRAINER:
            hint = did_you_mean(name, TRAINER) or "."
            raise ValueError(
                f"trainer={{{name!r}: {value!r}}} has no meaning for the stages of boosting{hint} "
                f"There are: {', '.join(TRAINER)}."
            )
    epochs = arguments.setdefault("max_epochs", DEFAULT_EPOCHS)
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(
            f"trainer={{'max_epochs': {epochs!r}}} must be at least 1: the passes of each learner "
            "over its samples."
        )
    if arguments.setdefault("devices", 1) not in (1, "1", [0], "auto"):
        raise ValueError(
            f"trainer={{'devices': {arguments['devices']!r}}}, but boosting fits one learner after "
            "another on one device; use devices=1."
        )
    arguments["devices"] = 1 if arguments["devices"] == "auto" else arguments["devices"]
    if str(arguments.get("precision", "")) in ("16", "16-mixed", "16-true"):
        raise ValueError(
            f"trainer={{'precision': {arguments['precision']!r}}} needs its gradients scaled, "
            "which boosting does not do; use 'bf16-mixed' or '32-true'."
        )
    check_range("gradient_clip_val", arguments.get("gradient_clip_val") or 0.0, 0)
    return arguments
