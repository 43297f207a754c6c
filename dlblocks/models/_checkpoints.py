"""Save and load checkpoints without running code that they name."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import lightning
import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from dlblocks._files import SUMMARY, DamagedFileError, atomic_write, is_whole
from dlblocks._plain import NOT_PLAIN, plain, plain_hyperparameters
from dlblocks.models._earlier import RENAMED, add_statistics, set_statistics
from dlblocks.nets import Preprocess
from dlblocks.nets.preprocess import preprocess_of

Module = TypeVar("Module", bound=pl.LightningModule)
CLASS_PATH = "_class_path"
HPARAMS = "hyper_parameters"
LEFT_OUT = "_left_out"
DATA_SPEC = "data_spec"
VERSION = "dlblocks_version"  # checkpoints of 0.1 have none


def describe(model: Any, checkpoint: dict[str, Any]) -> None:
    """Put the model's class path and plain hyperparameters into `checkpoint`.

    Anything that is not plain is removed from it.
    """
    checkpoint[HPARAMS] = description(model)
    checkpoint[VERSION] = version("dlblocks")
    if model.data_spec is not None:
        checkpoint[DATA_SPEC] = model.data_spec
    checkpoint.pop("hparams_name", None)
    plain_hyperparameters(checkpoint)


def write_checkpoint(path: Path, model: Any, *, epoch: int, global_step: int) -> None:
    """Write a checkpoint with a model's weights and no training state.

    Args:
        path: The file. It is written completely or not at all.
        model: The model.
        epoch: Its epoch, from 0.
        global_step: Optimizer steps until then.
    """
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "global_step": global_step,
        "pytorch-lightning_version": lightning.__version__,
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
    """Return a model's class path and plain hyperparameters, for `rebuild`."""
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
    """Create the model of a `description`, with new weights.

    Args:
        description: What `description` returned. It contains the descriptions of an ensemble's
            members, which are created in the same way.
        root: `dlblocks.models.Model`. The description may name its subclasses in this package.
        classes: Further classes that the description may name; see `load`.
        overrides: Constructor arguments that replace described ones.
        only: Refuse any class but this and its subclasses.
        source: Origin of the description, for messages.

    Raises:
        ValueError: The class is unknown, or an argument is missing or unknown to the class.
    """
    saved = dict(description)
    wanted = saved.pop(CLASS_PATH, None)
    if not isinstance(wanted, str):
        raise ValueError(
            f"{source} names no class of dlblocks; load it with the class that saved it, or load "
            "its state_dict into your own model."
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
            f"{source} holds a {cls.__name__} over a {given[0]} of your own; pass it "
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
    """Return module and name, ``"dlblocks.models.classification.MLPClassifier"``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_same(model: Any, checkpoint: dict[str, Any]) -> None:
    """Check that `checkpoint` is from the model's class and dimensions.

    Weights of compiled nets are renamed to match the model. The model gets the `data_spec` of the
    checkpoint.

    Raises:
        ValueError: The class or an argument differs; the message has both values.
    """
    model.data_spec = checkpoint.get(DATA_SPEC, model.data_spec)
    saved = checkpoint.get(HPARAMS) or {}
    path = saved.get(CLASS_PATH)
    path = RENAMED.get(str(path), path)
    if path is not None and path != class_path(type(model)):
        raise ValueError(
            f"the checkpoint holds a {path}, not a {class_path(type(model))}; "
            "create that model, or use dlblocks.models.load(path)."
        )
    if is_earlier(model, checkpoint):
        add_statistics(model, checkpoint, saved, "the checkpoint")
    here, there = model.state_dict(), checkpoint.get("state_dict", {})
    own = {_uncompiled(name): name for name in here}
    for name in set(there) - set(here):  # compiled nets may be loaded into others, and vice versa
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
            f"the checkpoint was saved with {', '.join(different)}; create the model with the same "
            "arguments, or use dlblocks.models.load(path)."
        )


def is_earlier(model: Any, checkpoint: Mapping[str, Any]) -> bool:
    """Return True if version 0.1 wrote this checkpoint of our model."""
    saved = checkpoint.get(HPARAMS) or {}
    return CLASS_PATH in saved and VERSION not in checkpoint and preprocess_of(model) is not None


def _uncompiled(name: str) -> str:
    # In older checkpoints, tensors of the task belong to the model.
    return re.sub(r"(^|(?<=\.))(_orig_mod|task)\.", "", name)


def restore(
    model: Module, path: str | PathLike[str], *, preprocess: Preprocess | None = None
) -> Module:
    """Load the weights of a checkpoint into a model, in evaluation mode.

    Args:
        model: Any LightningModule.
        path: A checkpoint of the Trainer.
        preprocess: As for `load`.

    Raises:
        ValueError: The file is truncated, not a checkpoint, or of another class or dimensions.
    """
    if is_overridden("configure_model", model):  # it may create layers
        model.configure_model()
    try:
        checkpoint = read_checkpoint(path, "cpu")
        fill(model, checkpoint, model.strict_loading, preprocess, path)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {path} do not fit a new {type(model).__name__}; create all layers "
            "in __init__ or configure_model: "
            f"{' '.join(str(error).split())}"
        ) from error
    return model.eval()


def fill(
    model: pl.LightningModule,
    checkpoint: dict[str, Any],
    strict: bool,
    preprocess: Preprocess | None,
    source: Any,
) -> None:
    """Load the weights of a checkpoint that was read."""
    if is_earlier(model, checkpoint):
        if preprocess is not None:
            set_statistics(model, preprocess)
        add_statistics(model, checkpoint, checkpoint[HPARAMS], source)
    elif preprocess is not None and VERSION in checkpoint:
        raise ValueError(
            f"preprocess= is for checkpoints of version 0.1, and {source} is none: it has what its "
            "model was trained with; leave preprocess out."
        )
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=strict)


def read_checkpoint(path: str | PathLike[str], map_location: Any) -> dict[str, Any]:
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that are refused below
            # torch writes checksums but does not compare them.
            if zipfile.is_zipfile(path) and not is_whole(path):
                raise ValueError("its content does not match its checksums")
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else "is a folder"
        raise type(error)(f"{path} {what}.{_cure(path)}") from error
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise ValueError(
                f"{path} holds more than weights and plain values. It is refused, because reading "
                f"it could run code. Save it again with plain hyperparameters.{_cure(path)}"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # torch and zipfile raise many kinds
        raise _damaged(path, error) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} has no state_dict, so it is not a checkpoint of a Trainer.")
    return checkpoint


def of_foreign(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Read a datamodule's entries in a checkpoint of another package's module.

    Returns:
        The `data_spec`, or None, and the statistics of inputs as plain values.
    """
    for state in checkpoint.values():
        if isinstance(state, Mapping) and isinstance(state.get(DATA_SPEC), Mapping):
            return dict(state[DATA_SPEC]), dict(state.get("preprocess") or {})
    return None, {}


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{path} is truncated or not a checkpoint ({error}).{_cure(path)}")


def _cure(path: Path) -> str:
    """Return advice if a damaged file is that of a run."""
    cure = ""
    for folder in (path.parent.parent, path.parent):
        for name in ("fold.json", "member.json", SUMMARY):
            if (folder / name).is_file():
                cure = (
                    f" Delete {folder / name} and make the same call again, which writes it again."
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
        f"{path} names the class {wanted!r}, which is not a class of dlblocks; classes that a "
        "checkpoint names are never imported. Pass yours: "
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
