"""Log to Weights & Biases without ever stopping a run."""

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
# Seconds for W&B to begin a run, and to upload the rest at its end. wandb's own defaults are 90
# seconds and no limit. The environment variables WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT take
# precedence.
INIT_SECONDS, FINISH_SECONDS = 15.0, 60.0
# Functions and attributes of `wandb` that belong to its active run.
OF_ACTIVE_RUN = (
    "run", "config", "log", "summary", "save", "use_artifact", "log_artifact", "define_metric",
    "alert", "watch", "unwatch", "mark_preempting", "log_model", "use_model", "link_model",
)  # fmt: skip
_said: set[str] = set()
_callers: dict[str, Any] = {}  # the caller's `OF_ACTIVE_RUN`, while a run of ours is active


class LenientWandbLogger(WandbLogger):
    """Lightning's `WandbLogger`, which continues without W&B if W&B fails.

    - A run that cannot begin online within 15 seconds is logged offline.
    - If the server is lost in mid-run, wandb tries again in the background and writes everything
      to disk. At the end it waits for at most a minute.
    - If wandb's own process dies, the rest of the run is not logged to W&B.

    One message reports the failure, with the folder that ``wandb sync`` can upload.

    Lightning's logger would log into an active run of the caller. This one leaves such a run alone.
    Its own run is the active one until it is finished, so that modules may call `wandb.log` and
    `logger.watch`.

    Args:
        is_part: Begin a separate run under a sweep agent too, outside of its sweep.
        lent: A run of the caller to log into. It is not finished.
        arguments: Arguments of `wandb.init` and of Lightning's logger.
    """

    def __init__(self, *, is_part: bool = False, lent: Any = None, **arguments: Any) -> None:
        super().__init__(experiment=lent, **arguments)
        self._is_part, self._lent = is_part, lent

    @property
    def experiment(self) -> Any:
        """The `wandb.Run`, begun at first use.

        On ranks other than 0 it is an object that does nothing. Errors of the run's own methods
        are raised; only the logger's methods catch them.
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
                    about=f"begin {instead}",  # the wording of the reason may differ next time
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
            # wandb's own process may have died with an earlier run. Start a new one.
            _drop_service()
            self._experiment = self._new_run()

    def _new_run(self) -> Any:
        """Begin a run as Lightning's logger does, but never reuse `wandb.run`."""
        import wandb

        with _apart_from_agent() if self._is_part else contextlib.nullcontext():
            run = wandb.init(**self._wandb_init)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        _activate(run)
        return run

    @contextlib.contextmanager
    def unless_lost(self) -> Iterator[None]:
        """Catch errors of W&B, and print each once."""
        try:
            yield
        except (TypeError, ValueError) as error:
            _say_once(f"W&B cannot log a value, which is left out: {_reason(error)}.")
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        import wandb

        kept = ""
        if self._experiment is not None:
            kept = f" Its data so far are in {_folder(self._experiment)}; wandb sync uploads them."
        _say_once(f"W&B is lost in mid-run ({_reason(error)}): the run continues without it.{kept}")
        _give_back(self._experiment)
        # Later calls on the run have no effect.
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
        """Log files as an artifact of type ``model``. Wait for the upload."""
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
        """Finish the run, unless it is lent.

        Waits for the upload for at most a minute.
        """
        run = self._experiment
        if run is None or run is self._lent:
            return
        _give_back(run)
        with self.unless_lost():
            try:
                run.finish()
            except TimeoutError:
                _say_once(
                    f"W&B has not uploaded all of a run within {run.settings.finish_timeout:g} "
                    f"seconds: wandb sync {_folder(run)} uploads the rest."
                )
        if self._experiment is not None and self._experiment is not run:
            _give_back(self._experiment)
            self._experiment.finish()  # the disabled run that `_lose` began


def _activate(run: Any) -> None:
    """Make a run the active one, which `wandb.run` and `wandb.log` use."""
    import wandb

    if not _callers:
        _callers.update({name: getattr(wandb, name) for name in OF_ACTIVE_RUN})
    for name in OF_ACTIVE_RUN:
        setattr(wandb, name, run if name == "run" else getattr(run, name))


def _give_back(run: Any) -> None:
    """Make the caller's run active again, if `run` is active."""
    import wandb

    if wandb.run is run:
        for name, value in _callers.items():
            setattr(wandb, name, value)
        _callers.clear()


@contextlib.contextmanager
def _apart_from_agent() -> Iterator[None]:
    """Hide the sweep agent's run and parameters.

    wandb gives them to every run of the process.
    """
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
    """Return ``"online"`` if W&B can be reached with credentials, else ``"offline"``.

    A message says once why it is offline. Call it before a run begins: without credentials wandb
    itself fails, and without a network it fails after 100 seconds.
    """
    import wandb

    settings = wandb.Settings()
    server = urlparse(os.environ.get("WANDB_BASE_URL") or settings.base_url)
    host = server.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _in_netrc(host)):
        _say_once("W&B has no credentials here: runs are logged offline; wandb login changes that.")
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
    """Return settings of a run that prints nothing and never waits long."""
    import wandb

    settings: dict[str, Any] = {
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
    }
    # Settings given here would override the environment variables.
    given = {k: v for k, v in settings.items() if f"WANDB_{k.upper()}" not in os.environ}
    return wandb.Settings(silent=True, console="off", **given)


def _folder(run: Any) -> Path:
    return Path(run.dir).parent


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _drop_service() -> None:
    """Forget wandb's own process, so that the next run starts another."""
    import wandb

    if (_callers.get("run") if _callers else wandb.run) is not None:
        return  # a teardown would finish the caller's active run
    with contextlib.suppress(Exception):  # it is dead
        wandb.teardown()
    # A worker process inherits the address of the caller's wandb process.
    os.environ.pop("WANDB_SERVICE", None)


def _say_once(text: str, about: str = "") -> None:
    """Print `text`, unless a text `about` the same was printed before."""
    if (about or text) not in _said and is_rank_zero():
        _said.add(about or text)
        print(text, file=sys.stderr, flush=True)
