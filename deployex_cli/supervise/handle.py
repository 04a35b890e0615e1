"""The app's process, as commands see it: start, stop and pre_commands through its supervisor.

A supervisor that is missing is started detached, but never under systemd, whose unit that is.
"""

from __future__ import annotations

import os
import socket
import sys

from deployex_cli.config import AppConfig
from deployex_cli.core.manifest import split_command
from deployex_cli.core.plan import Process
from deployex_cli.errors import PreCommandFailed, SupervisorUnavailable
from deployex_cli.layout import files
from deployex_cli.supervise.control import ask, is_listening
from deployex_cli.supervise.record import process_facts, read_record

_READY_SECONDS = 10.0
_SPAWN_SECONDS = 10.0
_LEFTOVER_SECONDS = 10.0  # what a stop may take beyond the app's own stop_timeout


class AppProcess:
    """Start, stop and pre_commands of one app. All raise SupervisorError and its family."""

    def __init__(self, app: AppConfig, config_file: str | None) -> None:
        self._app = app
        self._config_file = config_file

    def facts(self) -> Process:
        """What the supervisor's record and the process table say."""
        return process_facts(read_record(self._app.paths.record))

    def pid(self) -> int | None:
        """The app's OS pid, or None when it does not run."""
        record = read_record(self._app.paths.record)
        return record.app[0] if record is not None and record.app is not None else None

    def start(self) -> None:
        """Makes the app run out of `current`."""
        self.ensure_supervisor()
        ask(self._app, "start", timeout=self._stop_seconds() + _SPAWN_SECONDS)

    def restart(self) -> None:
        """Stops the app and starts it out of `current`."""
        self.ensure_supervisor()
        ask(self._app, "restart", timeout=self._stop_seconds() + _SPAWN_SECONDS)

    def stop(self) -> None:
        """Returns when the app, and all that it left behind, is gone."""
        if not is_listening(self._app):
            if not self.facts().running:
                return
            self.ensure_supervisor()  # it adopts what a killed one left running
        ask(self._app, "stop", timeout=self._stop_seconds())

    def run_pre_commands(self, folder: str, commands: tuple[str, ...], lock: int) -> None:
        """Runs them in order from the release in `folder`; `lock` is the app's lock's descriptor.

        Raises PreCommandFailed.
        """
        self.ensure_supervisor()
        words = [split_command(command) for command in commands]
        answer = ask(
            self._app,
            "run",
            descriptor=lock,
            timeout=self._app.pre_command_timeout * len(commands),
            folder=folder,
            commands=words,
        )
        if answer["failed"] is not None:
            raise PreCommandFailed(
                f"{self._app.name}: {answer['failed']}; its output is in {self._app.paths.stdout}"
                f" and {self._app.paths.stderr}"
            )

    def ensure_supervisor(self) -> None:
        """Starts a supervisor, detached from us, when none listens; returns when it is ready."""
        if is_listening(self._app):
            return
        if os.environ.get("INVOCATION_ID"):
            unit = f"deployex-supervise@{self._app.name}.service"
            raise SupervisorUnavailable(
                f"{self._app.name}: no supervisor runs, and under systemd its unit starts it:"
                f" `systemctl start {unit}`"
            )
        self._start_detached()

    def _start_detached(self) -> None:
        from deployex_cli.supervise.command import Command
        from deployex_cli.supervise.spawn import spawn

        words = [sys.executable, "-m", "deployex_cli", "supervise", "--app", self._app.name]
        if self._config_file is not None:
            words += ["--config", os.path.abspath(self._config_file)]
        log = self._app.paths.supervise_log
        files.trusted_folder(os.path.dirname(log), shared=True)
        umask = os.umask(0o077)
        os.umask(umask)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind("")  # an abstract name of the kernel's choice, unix(7): no file to leave
            address = "@" + ready.getsockname()[1:].decode()
            command = Command(tuple(words), {**os.environ, "NOTIFY_SOCKET": address})
            pid = spawn(command, folder="/", output=(log, log), umask=umask)
            self._wait_until_ready(ready, pid, log)

    def _wait_until_ready(self, ready: socket.socket, pid: int, log: str) -> None:
        import select

        descriptor = os.pidfd_open(pid)
        try:
            readable, _, _ = select.select([ready.fileno(), descriptor], [], [], _READY_SECONDS)
        finally:
            os.close(descriptor)
        if ready.fileno() in readable:
            return
        if descriptor in readable:
            os.waitpid(pid, 0)
            if self._another_was_quicker():
                return
            raise SupervisorUnavailable(
                f"{self._app.name}: the supervisor ended at once: {_last_line(log)} ({log})"
            )
        raise SupervisorUnavailable(
            f"{self._app.name}: the supervisor was not ready in {_READY_SECONDS:g} s; see {log}"
        )

    def _another_was_quicker(self) -> bool:
        """Whether another supervisor has begun at the same time, and listens by now."""
        import time

        from deployex_cli.layout.lock import holder_lives

        deadline = time.monotonic() + _READY_SECONDS
        while holder_lives(self._app.paths.supervise_lock) and time.monotonic() < deadline:
            if is_listening(self._app):
                return True
            time.sleep(0.02)
        return False

    def _stop_seconds(self) -> float:
        return 2 * self._app.stop_timeout + _LEFTOVER_SECONDS  # by the node, and by signals


def _last_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError as error:
        return str(error.strerror)
    return next((line for line in reversed(lines) if line.strip()), "no word of why")
