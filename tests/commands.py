"""Commands that tests run: none outlives its test, and none can hang it."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress


def run(*command, code=0, cwd=None, timeout=300, env=None):
    """Runs a command and gives back what it printed; an error unless it ends with `code`.

    `subprocess.run(capture_output=True)` reads pipes until the last process that holds them ends,
    even after its timeout: a grandchild left behind stops the whole suite. Here the output goes
    to files, and every process of the command is killed at the end.

    Args:
        command: The command and its arguments; `python` is this interpreter.
        code: The exit code that it must end with; minus the signal for a killed one.
        cwd: Its working folder.
        timeout: Seconds.
        env: Variables to add to those of this process.
    """
    command = [sys.executable if part == "python" else str(part) for part in command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=out, stderr=err, start_new_session=True,
            env={**os.environ, **{name: str(value) for name, value in (env or {}).items()}},
        )  # fmt: skip
        try:
            process.wait(timeout)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        said = subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
    assert ended, f"not ended after {timeout} s: {said.stdout[-2000:]}{said.stderr[-4000:]}"
    assert said.returncode == code, (said.returncode, said.stdout[-2000:], said.stderr[-4000:])
    return said
