"""Find and read the model of a run folder or file."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from dlblocks._quiet import isolated
from dlblocks.crossval import load_result
from dlblocks.ensembles.results import ENSEMBLE
from dlblocks.loading.predictor import Predictor
from dlblocks.models import Model
from dlblocks.models import load as load_model
from dlblocks.models._checkpoints import (
    CLASS_PATH,
    HPARAMS,
    of_foreign,
    read_checkpoint,
    restore,
)
from dlblocks.nets import Preprocess
from dlblocks.runs.fit import CHECKPOINTS

# Files of a run folder with the model of the run, in the order in which they are looked for.
REFIT = ("refit/model.ckpt", "refit/point-*/refit/model.ckpt")
SINGLE = (ENSEMBLE, *(f"checkpoints/{name}.ckpt" for name in CHECKPOINTS.values()), "model.ckpt")

Module = pl.LightningModule | Callable[..., pl.LightningModule]


def load(
    source: str | PathLike[str] | pl.LightningModule,
    *,
    module: Module | None = None,
    preprocess: Callable[[Any], Any] | None = None,
    classes: Iterable[type[Model]] = (),
) -> Predictor:
    """Open a trained model for predictions.

    Files are read with ``weights_only=True``: nothing in them is run.

    Args:
        source: A run folder, a checkpoint, or a file that `Predictor.save` has written. Of the
            folder of a cross-validation, the refit model if there is one, else the average of the
            fold models; of bagging and boosting, the ensemble; of a fit, its best epoch. Or a model
            that is in memory already, such as ``result.ensemble()``.
        module: Your own LightningModule, if the model is one, or its members are: its class, a
            function that makes one, or one with any weights. A class is made with the
            hyperparameters that the checkpoint has. Likewise the `Classifier` or `Regressor` over a
            net of your own.
        preprocess: Makes a batch of what is given to `Predictor.predict`, for a module whose data
            were not read by a datamodule of this package.
        classes: Your own subclasses of our models, if the model, or a member, is one.

    Raises:
        FileNotFoundError: There is no such file or folder, or no model in the folder.
        ValueError: The file is damaged, holds more than plain values, or a model of a class that
            is not known.

    Example:
        >>> import torch
        >>> from dlblocks.models import MLPClassifier
        >>> table = load(MLPClassifier(4, 3)).predict(torch.zeros(2, 4), progress_bar=False)
        >>> list(table.to_pandas())
        ['index', 'prediction', 'probability_0', 'probability_1', 'probability_2']
    """
    if isinstance(source, pl.LightningModule):
        return Predictor(source, preprocess=preprocess)
    path, own = Path(source), list(classes)
    if isinstance(module, type) and issubclass(module, Model):
        own.append(module)
    opened = _open_folder if path.is_dir() else _open_file
    with isolated():  # making a model draws its weights
        model, data_spec, statistics = opened(path, module, own)
    return Predictor(
        model.eval(),
        data_spec=data_spec,
        statistics=statistics,
        preprocess=preprocess,
        source=str(source),
    )


def _open_folder(
    path: Path, module: Module | None, classes: list[type[Model]]
) -> tuple[pl.LightningModule, dict[str, Any] | None, Preprocess | None]:
    refits = [found for pattern in REFIT for found in sorted(path.glob(pattern))]
    if refits:
        return _open_file(refits[0], module, classes)
    if (path / "folds.csv").is_file():
        result = load_result(path)
        make = None
        if module is not None and module not in classes:
            saved = read_checkpoint(path / result.folds[0]["checkpoint"], "cpu").get(HPARAMS)
            make = _maker(module, saved or {})
        model = result.ensemble(classes, make_model=make)
        return model, model.data_spec, None
    for name in SINGLE:
        if (path / name).is_file():
            return _open_file(path / name, module, classes)
    raise FileNotFoundError(
        f"{path} has no model: there is neither {REFIT[0]}, nor folds.csv of a cross-validation "
        f"that has ended, nor {', '.join(SINGLE)}."
    )


def _open_file(
    path: Path, module: Module | None, classes: list[type[Model]]
) -> tuple[pl.LightningModule, dict[str, Any] | None, Preprocess | None]:
    checkpoint = read_checkpoint(path, "cpu")
    saved = checkpoint.get(HPARAMS) or {}
    if isinstance(saved.get(CLASS_PATH), str):
        overrides, members = None, saved.get("members")
        if module is not None and module not in classes:
            if not isinstance(members, list):
                model: Any = restore(_maker(module, saved)(), path)
                return model, model.data_spec, None
            overrides = {"members": [_maker(module, {})() for _ in members]}
        elif isinstance(members, list) and all(isinstance(one, str) for one in members):
            raise ValueError(
                f"{path} is an average of {members[0]}, a class that is not of dlblocks; give it: "
                "load(path, module=YourModule)."
            )
        model = load_model(path, classes=classes, overrides=overrides)
        return model, model.data_spec, None
    if module is None:
        raise ValueError(
            f"{path} is of a LightningModule that is not of dlblocks, and says nothing of its "
            "class; give it: load(path, module=YourModule)."
        )
    data_spec, statistics = of_foreign(checkpoint)
    model = restore(_maker(module, saved)(), path)
    return model, data_spec, Preprocess.from_plain(statistics)


def _maker(module: Module, saved: Mapping[str, Any]) -> Callable[[], pl.LightningModule]:
    """Return a function that makes the module, with any weights."""
    if isinstance(module, pl.LightningModule):
        given = module
        return lambda: copy.deepcopy(given)
    if not isinstance(module, type):
        return module
    taken = inspect.signature(module).parameters
    known = {name: value for name, value in saved.items() if name in taken}

    def make() -> pl.LightningModule:
        try:
            made: pl.LightningModule = module(**known)
        except TypeError as error:
            raise ValueError(
                f"{module.__name__} cannot be made of the hyperparameters in its checkpoint "
                f"({error}); give a function: module=lambda: {module.__name__}(…)."
            ) from error
        return made

    return make
