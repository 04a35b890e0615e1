"""pre_commands: run by the supervisor, with exactly the app's environment, holding the app's lock.

They are the new release's own script with the manifest's words, in order; the first that fails ends
the job. The lock is theirs until the last one ends, whatever becomes of the check that asked.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from deployex_cli.config import AppConfig
from deployex_cli.supervise import procfs
from deployex_cli.supervise.command import Command, app_environment, script
from deployex_cli.supervise.server import Client
from deployex_cli.supervise.spawn import send, spawn


def problem_of(app: AppConfig, request: dict[str, Any], lock: int | None) -> str | None:
    """What is wrong with a request for pre_commands, or None."""
    commands = request.get("commands")
    if not isinstance(request.get("folder"), str) or not isinstance(commands, list):
        return "`run` needs a folder and a list of commands"
    for words in commands:
        if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
            return "each command must be a list of words"
    if lock is not None and not os.path.samestat(os.fstat(lock), os.stat(app.paths.lock)):
        return "the descriptor that came with `run` is not the app's lock"
    return None


class Job:
    """The pre_commands of one deployment: `request` has `folder` and `commands`, lists of words."""

    def __init__(
        self,
        app: AppConfig,
        request: dict[str, Any],
        lock: int | None,
        client: Client,
        umask: int,
        spared: Callable[[], set[int]],
    ) -> None:
        """`spared` gives the processes that are not of this job."""
        self.client = client
        self.pid: int | None = None
        self._app = app
        self._lock = lock
        self._umask = umask
        self._spared = spared
        self._release = app.paths.release(os.path.basename(str(request["folder"])))
        self._commands: list[list[str]] = list(request["commands"])
        self._done = 0
        self._failure: str | None = None
        self._stopped: str | None = None

    def next(self) -> dict[str, Any] | None:
        """Starts the next command, or gives the answer that ends the job."""
        self.pid = None
        if self._failure is None and self._done < len(self._commands):
            words = (script(self._app, self._release), *self._commands[self._done])
            try:
                self.pid = spawn(
                    Command(words, app_environment(self._app, os.environ)),
                    folder=self._app.paths.work,
                    output=(self._app.paths.stdout, self._app.paths.stderr),
                    umask=self._umask,
                    keep=self._lock,
                )
                return None
            except OSError as error:
                self._failure = f"cannot be executed: {error.strerror}"
        if self._failure is not None:
            command = " ".join(self._commands[self._done])
            return {"ok": True, "failed": f"pre_command `{command}` {self._failure}"}
        return {"ok": True, "failed": None}

    def ended(self, failure: str | None) -> None:
        """The running command has ended; `failure` says how, if not well.

        What is left of one that failed does not work on: its group goes with it.
        """
        if self.pid is not None and failure is not None:
            send(signal.SIGKILL, self.pid, os.killpg)
        if self._stopped is not None:
            self._failure = self._stopped
        elif failure is not None:
            self._failure = failure
        else:
            self._done += 1

    def run_out_of_time(self) -> None:
        """Ends the running command, and with it the job."""
        self._end(f"did not end in {self._app.pre_command_timeout:g} s")

    def stop(self) -> None:
        """Ends the running command, because the supervisor ends."""
        self._end("was stopped with the supervisor")

    def close(self) -> None:
        """Gives the lock back; what a command left behind holds it no longer than the command."""
        if self._lock is not None:
            spared, lock = self._spared(), os.fstat(self._lock)
            for pid, _ in procfs.descendants(os.getpid()):
                if pid not in spared and procfs.has_open(pid, lock):
                    send(signal.SIGKILL, pid)
            os.close(self._lock)
            self._lock = None

    def _end(self, reason: str) -> None:
        self._stopped = reason
        if self.pid is not None:
            send(signal.SIGKILL, self.pid, os.killpg)
