"""Checkpoints that load: by class or by path alone, and never by running what they name."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from dlblocks._files import SUMMARY, DamagedFileError, atomic_write, is_whole
from dlblocks._plain import NOT_PLAIN, plain, plain_hyperparameters

Module = TypeVar("Module", bound=pl.LightningModule)
CLASS_PATH = "_class_path"
HPARAMS = "hyper_parameters"
LEFT_OUT = "_left_out"
DATA_SPEC = "data_spec"
_VOTING = "dlblocks.models.voting."
# Classes that older checkpoints name, by today's names.
RENAMED = dict.fromkeys(
    [f"{_VOTING}VotingClassifier", f"{_VOTING}VotingRegressor"], f"{_VOTING}VotingEnsemble"
)


def describe(model: Any, checkpoint: dict[str, Any]) -> None:
    """Leaves in `checkpoint` the model's class path and plain hyperparameters, and no more."""
    checkpoint[HPARAMS] = description(model)
    if model.data_spec is not None:
        checkpoint[DATA_SPEC] = model.data_spec
    checkpoint.pop("hparams_name", None)
    plain_hyperparameters(checkpoint)


def write_checkpoint(path: Path, model: Any, *, epoch: int, global_step: int) -> None:
    """Writes a checkpoint of a model's weights, as a Trainer would that has no more to keep.

    Args:
        path: The file, written whole or not at all.
        model: The model.
        epoch: Its epoch, from 0.
        global_step: Optimizer steps until then.
    """
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "global_step": global_step,
        "pytorch-lightning_version": pl.__version__,
        "state_dict": {
            name: value.detach().cpu() if isinstance(value, torch.Tensor) else value
            for name, value in model.state_dict().items()
        },
        "callbacks": {},
    }
    model.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        torch.save(checkpoint, part)


def description(model: Any) -> dict[str, Any]:
    """The model's class path and plain hyperparameters, from which `rebuild` makes it again."""
    names = [name for name in model.hyperparameter_names() if name in model.hparams]
    hparams = {name: plain(model.hparams[name], lists=True) for name in names}
    left_out = [name for name in names if hparams[name] is NOT_PLAIN]
    found = {name: hparams[name] for name in names if name not in left_out}
    return {
        **found,
        **({LEFT_OUT: left_out} if left_out else {}),
        CLASS_PATH: class_path(type(model)),
    }


def rebuild(
    description: Mapping[str, Any],
    root: type[Module],
    *,
    classes: Iterable[type[Module]] = (),
    overrides: Mapping[str, Any] | None = None,
    only: type[Module] | None = None,
    source: Any = "the description",
) -> Module:
    """A new model, with new weights, of the class and hyperparameters of a `description`.

    Args:
        description: What `description` returned. The members of an ensemble are described in it,
            and made anew likewise.
        root: `dlblocks.models.Model`, whose subclasses in this package it may name.
        classes: Further classes that it may name; see `load`.
        overrides: Constructor arguments in place of those described.
        only: Refuse any class but this and its subclasses.
        source: Where the description comes from, for messages.

    Raises:
        ValueError: The class is not known, or an argument is missing or not its own.
    """
    saved = dict(description)
    wanted = saved.pop(CLASS_PATH, None)
    if not isinstance(wanted, str):
        raise ValueError(
            f"{source} names no class of dlblocks; load it with the class that made it, or give "
            "the state_dict in it to your own model."
        )
    classes = [*classes, *([only] if only else [])]
    cls: Any = _resolve(wanted, root, classes, source)
    if only is not None and not issubclass(cls, only):
        raise ValueError(f"{source} holds a {wanted}, not a {only.__name__}.")
    names = cls.hyperparameter_names()
    arguments = {name: value for name, value in saved.items() if name in names}
    for name, value in (overrides or {}).items():
        if name not in names:
            raise ValueError(f"{name} is not an argument of {cls.__name__}: {', '.join(names)}.")
        arguments[name] = value
    missing = [name for name in saved.get(LEFT_OUT, ()) if name not in arguments]
    if missing:
        raise ValueError(
            f"{source} holds a {cls.__name__} whose {', '.join(missing)} could not be saved as "
            f"plain values; give overrides={{{missing[0]!r}: …}}, or for an ensemble all members, "
            "with any weights: overrides={'members': [model, …]}."
        )
    given = [name for name in ("net", "task") if name in names and name not in arguments]
    if given:
        raise ValueError(
            f"{source} holds a {cls.__name__} over a {given[0]} that was made elsewhere; pass it "
            f"as {given[0]}=, or for an ensemble all members, with any weights: "
            "overrides={'members': [model, …]}."
        )
    if "members" in names:
        arguments["members"] = [
            rebuild(member, root, classes=classes, source=f"member {i} of {source}")
            if isinstance(member, Mapping)
            else member
            for i, member in enumerate(arguments["members"])
        ]
    model: Module = cls(**arguments)
    return model


def class_path(cls: type) -> str:
    """Where a class is found: ``"dlblocks.models.classification.MLPClassifier"``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_same(model: Any, checkpoint: dict[str, Any]) -> None:
    """Raises a `ValueError` if `checkpoint` was saved by another class or other dimensions.

    Weights of compiled nets get the names that they have in the model, and the model gets its
    `data_spec`.
    """
    model.data_spec = checkpoint.get(DATA_SPEC, model.data_spec)
    saved = checkpoint.get(HPARAMS) or {}
    path = saved.get(CLASS_PATH)
    path = RENAMED.get(str(path), path)
    if path is not None and path != class_path(type(model)):
        raise ValueError(
            f"the checkpoint holds a {path}, not a {class_path(type(model))}; "
            "make that model, or use dlblocks.models.load(path)."
        )
    here, there = model.state_dict(), checkpoint.get("state_dict", {})
    own = {_uncompiled(name): name for name in here}
    for name in set(there) - set(here):  # whether a net in it is compiled makes no difference
        there[own.get(_uncompiled(name), name)] = there.pop(name)
    # Statistics of inputs are empty in a new model.
    sized = {k for k in here.keys() & there.keys() if here[k].numel()}
    shapes = {k: (tuple(there[k].shape), tuple(here[k].shape)) for k in sized}
    if here.keys() == there.keys() and all(old == new for old, new in shapes.values()):
        return
    different = [
        f"{name}={saved[name]!r} (here {model.hparams[name]!r})"
        for name in model.hyperparameter_names()
        if name in saved and name in model.hparams and not _equal(saved[name], model.hparams[name])
    ]
    if different:
        raise ValueError(
            f"the checkpoint was made with {', '.join(different)}; make the model with the same "
            "arguments, or use dlblocks.models.load(path)."
        )


def _uncompiled(name: str) -> str:
    # Tensors of a task were the model's own before.
    return re.sub(r"(^|(?<=\.))(_orig_mod|task)\.", "", name)


def restore(model: Module, path: str | PathLike[str]) -> Module:
    """Puts the weights saved at `path` into a model of the same kind; in evaluation mode.

    Args:
        model: Any LightningModule.
        path: A checkpoint of the Trainer.

    Raises:
        ValueError: The file is truncated, is no checkpoint, or of another class or dimensions.
    """
    if is_overridden("configure_model", model):  # may make layers
        model.configure_model()
    try:
        fill(model, read_checkpoint(path, "cpu"), strict=model.strict_loading)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit a new {type(model).__name__}, whose layers must all "
            "be made in __init__ or configure_model: "
            f"{' '.join(str(error).split())}"
        ) from error
    return model.eval()


def fill(model: pl.LightningModule, checkpoint: dict[str, Any], strict: bool) -> None:
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=strict)


def read_checkpoint(path: str | PathLike[str], map_location: Any) -> dict[str, Any]:
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch only warns of is refused below
            # torch does not compare the checksums that it has written.
            if zipfile.is_zipfile(path) and not is_whole(path):
                raise ValueError("its content does not fit its checksums")
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else "is a folder"
        raise type(error)(f"{path} {what}.{_cure(path)}") from error
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise ValueError(
                f"{path} holds more than weights and plain values, and reading it could run code; "
                f"refused. Save it anew with plain hyperparameters.{_cure(path)}"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # torch and zipfile have many
        raise _damaged(path, error) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} has no state_dict; it is no checkpoint of a Trainer.")
    return checkpoint


def of_foreign(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return what a datamodule of ours has left in a checkpoint of somebody else's module.

    Returns:
        The `data_spec`, or None, and the statistics of inputs as plain values.
    """
    for state in checkpoint.values():
        if isinstance(state, Mapping) and isinstance(state.get(DATA_SPEC), Mapping):
            return dict(state[DATA_SPEC]), dict(state.get("preprocess") or {})
    return None, {}


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path} is truncated or is no checkpoint ({error}).{_cure(path)}")


def _cure(path: Path) -> str:
    """What to do about a damaged file, if it is one of a run."""
    cure = ""
    for folder in (path.parent.parent, path.parent):
        for name in ("fold.json", "member.json", SUMMARY):
            if (folder / name).is_file():
                cure = (
                    f" Delete {folder / name} and make the same call again, which writes it anew."
                )
    return cure


def _resolve(
    wanted: str, root: type[Module], classes: list[type[Module]], path: Any
) -> type[Module]:
    given = {cls for each in classes for cls in _with_subclasses(each)}
    ours = {cls for cls in _with_subclasses(root) if is_ours(cls)}
    known = {class_path(cls): cls for cls in ours | given}
    wanted = RENAMED.get(wanted, wanted)
    if wanted in known:
        return known[wanted]
    raise ValueError(
        f"{path} names the class {wanted!r}, which is neither of dlblocks nor given; nothing that "
        "a checkpoint names is imported. Pass your class: "
        "dlblocks.models.load(path, classes=[YourModel])."
    )


def is_ours(cls: type) -> bool:
    """Return True for classes of this package."""
    return cls.__module__.partition(".")[0] == "dlblocks"


def _with_subclasses(cls: type[Module]) -> Iterable[type[Module]]:
    yield cls
    for subclass in cls.__subclasses__():
        if class_path(subclass) != class_path(cls):  # else a stand-in that torch.export has made
            yield from _with_subclasses(subclass)


def _equal(one: Any, other: Any) -> bool:
    return bool(plain(one, lists=True) == plain(other, lists=True))
