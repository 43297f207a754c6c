"""Weights & Biases that never stops a run: online, offline, or lost on the way."""

from __future__ import annotations

import contextlib
import netrc
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dlblocks._files import is_rank_zero

PROBE_SECONDS = 3.0
# What W&B gets to begin a run, and at its end to take what is not sent yet. wandb's own defaults
# are 90 seconds and for ever. The environment variables WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT
# overrule.
INIT_SECONDS, FINISH_SECONDS = 15.0, 60.0
# Functions and attributes of `wandb` that are those of its active run.
OF_ACTIVE_RUN = (
    "run", "config", "log", "summary", "save", "use_artifact", "log_artifact", "define_metric",
    "alert", "watch", "unwatch", "mark_preempting", "log_model", "use_model", "link_model",
)  # fmt: skip
_said: set[str] = set()
_callers: dict[str, Any] = {}  # the caller's of `OF_ACTIVE_RUN`, while a run of ours is active


class LenientWandbLogger(WandbLogger):
    """Lightning's `WandbLogger`, which goes on without W&B when W&B is lost; nothing waits for it.

    A run that cannot begin online within 15 seconds is offline. A server that is lost in mid-run
    is no trouble: wandb tries again in the background and writes all to disk, and at the end waits
    for at most a minute. Where wandb's own process dies, what follows is not logged to W&B. Each is
    said once, with the folder that ``wandb sync`` can upload.

    An active run of the caller stays untouched; Lightning's logger would log into it. Until this
    run is finished, it is the active one, so that modules may call `wandb.log` and `logger.watch`.

    Args:
        is_part: Begin a run of its own under a sweep agent too, outside its sweep.
        lent: A run of the caller to log into. It is not finished.
        arguments: Arguments of `wandb.init`, and of Lightning's logger.
    """

    def __init__(self, *, is_part: bool = False, lent: Any = None, **arguments: Any) -> None:
        super().__init__(experiment=lent, **arguments)
        self._is_part, self._lent = is_part, lent

    @property
    def experiment(self) -> Any:
        """The `wandb.Run`, begun at first use; on ranks other than 0 something that does nothing.

        Its own methods are not guarded, those of the logger are.
        """
        if self._experiment is None and is_rank_zero():
            self._begin()
        return super().experiment

    def _begin(self) -> None:
        for mode in (self._wandb_init["mode"], "offline", "disabled"):
            self._wandb_init["mode"] = mode
            try:
                self._start()
            except Exception as error:
                if mode == "disabled":
                    raise
                instead = "not at all" if mode == "offline" else "offline"
                _say_once(
                    f"W&B cannot begin a run ({_reason(error)}): it is logged {instead}.",
                    about=f"begin {instead}",  # the reason may be said in other words next time
                )
            else:
                return

    def _start(self) -> None:
        import wandb

        try:
            self._experiment = self._new_run()
        except wandb.Error:
            raise
        except Exception:
            # wandb's own process may have died with an earlier run: begin with a new one.
            _drop_service()
            self._experiment = self._new_run()

    def _new_run(self) -> Any:
        """Begin a run as Lightning's logger does, but never take `wandb.run` for it."""
        import wandb

        with _apart_from_agent() if self._is_part else contextlib.nullcontext():
            run = wandb.init(**self._wandb_init)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        _activate(run)
        return run

    @contextlib.contextmanager
    def unless_lost(self) -> Iterator[None]:
        """Keeps whatever W&B raises inside from stopping a run, and says it once."""
        try:
            yield
        except (TypeError, ValueError) as error:
            _say_once(f"W&B cannot log this, which is left out: {_reason(error)}.")
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        import wandb

        kept = ""
        if self._experiment is not None:
            kept = f" What it has is in {_folder(self._experiment)}; wandb sync uploads it."
        _say_once(f"W&B is lost in mid-run ({_reason(error)}): the run goes on without it.{kept}")
        _give_back(self._experiment)
        # Whatever else is called on the run is without effect.
        self._experiment = wandb.init(mode="disabled", reinit="create_new")
        _drop_service()
        _activate(self._experiment)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self.unless_lost():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        with self.unless_lost():
            super().log_hyperparams(params)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self.unless_lost():
            super().finalize(status)

    @rank_zero_only
    def log_checkpoints(self, checkpoints: Sequence[Path]) -> None:
        """Logs files as one artifact of type ``model``, and waits while the server takes them."""
        import wandb

        with self.unless_lost():
            run = self.experiment
            artifact = wandb.Artifact(f"{run.name or run.id}-checkpoints", type="model")
            for path in checkpoints:
                artifact.add_file(str(path), name=f"{path.parent.parent.name}-{path.name}")
            logged = run.log_artifact(artifact)
            # Large files may take longer than `finish` waits.
            while not run.offline and wandb_mode() == "online":
                try:
                    logged.wait(timeout=int(FINISH_SECONDS))
                    return
                except wandb.Error as error:
                    if not isinstance(error.__cause__, TimeoutError):
                        raise

    @rank_zero_only
    def finish(self) -> None:
        """Ends the run, if it is not lent; waits for a minute at most until all is sent."""
        run = self._experiment
        if run is None or run is self._lent:
            return
        _give_back(run)
        with self.unless_lost():
            try:
                run.finish()
            except TimeoutError:
                _say_once(
                    f"W&B has not taken all of a run within {run.settings.finish_timeout:g} "
                    f"seconds: wandb sync {_folder(run)} uploads it."
                )
        if self._experiment is not None and self._experiment is not run:
            _give_back(self._experiment)
            self._experiment.finish()  # of the one in place of the lost: wandb has it as its own


def _activate(run: Any) -> None:
    """Make a run what `wandb.run` is, and `wandb.log` and its like methods of it."""
    import wandb

    if not _callers:
        _callers.update({name: getattr(wandb, name) for name in OF_ACTIVE_RUN})
    for name in OF_ACTIVE_RUN:
        setattr(wandb, name, run if name == "run" else getattr(run, name))


def _give_back(run: Any) -> None:
    """Make the caller's run the active one again, if `run` is."""
    import wandb

    if wandb.run is run:
        for name, value in _callers.items():
            setattr(wandb, name, value)
        _callers.clear()


@contextlib.contextmanager
def _apart_from_agent() -> Iterator[None]:
    """Hide the sweep agent's run and parameters, which wandb gives to every run of the process."""
    import wandb

    setup = wandb.setup()
    places: list[tuple[Any, str]] = [
        (setup.settings, name) for name in ("run_id", "sweep_id", "sweep_param_path")
    ]
    places.append((setup, "_sweep_config"))
    before = [getattr(owner, name, None) for owner, name in places]
    for owner, name in places:
        setattr(owner, name, None)
    try:
        yield
    finally:
        for (owner, name), value in zip(places, before, strict=True):
            setattr(owner, name, value)


def wandb_mode() -> Literal["online", "offline"]:
    """``"online"`` if W&B can be reached with credentials; else ``"offline"``, and says why once.

    Asked before a run begins, because wandb itself raises without credentials, and without a
    network waits 100 seconds before it does.
    """
    import wandb

    settings = wandb.Settings()
    server = urlparse(os.environ.get("WANDB_BASE_URL") or settings.base_url)
    host = server.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _in_netrc(host)):
        _say_once("W&B has no credentials here: runs are logged offline (wandb login to change).")
        return "offline"
    port = server.port or (443 if server.scheme == "https" else 80)
    proxy = os.environ.get(f"{server.scheme}_proxy") or os.environ.get(
        f"{server.scheme.upper()}_PROXY"
    )
    if proxy:
        gate = urlparse(proxy if "//" in proxy else f"//{proxy}")
        host, port = gate.hostname or host, gate.port or port
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        _say_once(f"W&B does not answer at {host} ({error}): runs are logged offline.")
        return "offline"
    return "online"


def _in_netrc(host: str) -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_settings() -> Any:
    """Settings of a run: it prints nothing, and neither begin nor end takes long."""
    import wandb

    settings: dict[str, Any] = {
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
    }
    # Those given here would beat the environment's.
    given = {k: v for k, v in settings.items() if f"WANDB_{k.upper()}" not in os.environ}
    return wandb.Settings(silent=True, console="off", **given)


def _folder(run: Any) -> Path:
    return Path(run.dir).parent


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _drop_service() -> None:
    """Forgets wandb's own process; the next run starts another."""
    import wandb

    if (_callers.get("run") if _callers else wandb.run) is not None:
        return  # an active run of the caller, which this would finish
    with contextlib.suppress(Exception):  # it is dead
        wandb.teardown()
    # A worker has the address of the process that the caller had when it started the worker.
    os.environ.pop("WANDB_SERVICE", None)


def _say_once(text: str, about: str = "") -> None:
    """Prints `text`, unless it, or something else `about` the same, was printed before."""
    if (about or text) not in _said and is_rank_zero():
        _said.add(about or text)
        print(text, file=sys.stderr, flush=True)
