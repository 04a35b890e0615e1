"""One small machine for a test: folders, a release store, a configuration, and what runs there.

Nothing is mocked: the command line is run as a process, releases are real, and at the end every
process that was started there (found by a variable in its environment) is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

MARK = "DEPLOYEX_TEST_WORLD"
OURS = (".deployex.json", ".deployex.otp.json")  # in a release's folder: the marker, the copies


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def eventually(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `what`; errors of a connection count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = what()
        except (OSError, urllib.error.URLError, ValueError, LookupError, TypeError):
            found = None  # not there yet, or not whole
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come to be in {seconds} s: {what}")
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class World:
    """A machine with one app, unless `configure` says otherwise."""

    def __init__(self, packages: Path, epmd_port: int, app: str = "counter") -> None:
        # short: a socket's path has at most 107 bytes
        self.root = Path(tempfile.mkdtemp(prefix="dx-"))
        self.app = app
        self.packages = packages
        self.port = free_port()
        self.node = f"{app}_{self.root.name[3:].lower()}"
        self.config = self.root / "deployex.toml"
        self.scratch = self.root / "scratch"
        self.scratch.mkdir()
        # what `configure` writes into the app's table, where it is not told otherwise
        self.defaults = {
            "min_healthy_time": '"1s"',
            "node": f'"{self.node}"',
            "cookie": '"monster"',
        }
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DEPLOYEX_", "RELEASE_", "ERL_")) and key != "INVOCATION_ID"
        }
        self.env |= {
            MARK: self.root.name,
            "DEPLOYEX_CONFIG": str(self.config),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.configure()

    # --- the configuration ------------------------------------------------------------------

    def configure(self, app_lines: str = "", *, env: dict[str, str] | None = None) -> None:
        """Writes deployex.toml; `app_lines` are TOML lines of the app's table."""
        given = [line.partition("=")[0].strip() for line in app_lines.splitlines()]
        table = [f"{key} = {value}" for key, value in self.defaults.items() if key not in given]
        variables = {"PORT": str(self.port), **(env or {})}
        inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in variables.items())
        self.config.write_text(
            f"""
environment = "local"
[paths]
root = "{self.root}/var"
run = "{self.root}/run"
logs = "{self.root}/log"
[storage]
path = "{self.root}/store"
[apps.{self.app}]
{chr(10).join(table)}
{app_lines}
env = {{ {inline} }}
"""
        )

    # --- places -----------------------------------------------------------------------------

    @property
    def service(self) -> Path:
        return self.root / "var/service" / self.app

    @property
    def state_file(self) -> Path:
        return self.root / f"var/state/{self.app}.json"

    @property
    def manifest(self) -> Path:
        return self.root / f"store/versions/{self.app}/local/current.json"

    @property
    def dist(self) -> Path:
        return self.root / f"store/dist/{self.app}"

    def log(self, stream: str = "stdout") -> Path:
        return self.root / f"log/{self.app}-{stream}.log"

    def package(self, version: str) -> Path:
        return self.packages / f"{self.app}-{version}.tar.gz"

    def link(self, name: str) -> str | None:
        """The version that `new`, `current` or `previous` names, or None."""
        path = self.service / name
        return path.readlink().name.partition("-")[2] if path.is_symlink() else None

    def state(self) -> Any:
        return json.loads(self.state_file.read_text())

    @property
    def record_file(self) -> Path:
        return self.root / f"var/state/{self.app}.supervise.json"

    def record(self) -> Any:
        return json.loads(self.record_file.read_text())

    def leftovers(self) -> list[str]:
        """What begins with a dot in any folder of ours, our markers aside."""
        found = [*self.root.glob("var/**/.*"), *self.root.glob("store/**/.*")]
        inside = [path for path in found if path.name not in OURS]
        return sorted(str(path.relative_to(self.root)) for path in inside)

    # --- doing ------------------------------------------------------------------------------

    def run(self, *words: str, env: dict[str, str] | None = None, timeout: float = 60) -> Ran:
        """Runs `deployex` with these words, to its end."""
        done = subprocess.run(
            ["deployex", *words],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            cwd=self.root,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, env: dict[str, str] | None = None) -> str:
        """Runs `deployex`, which must succeed; its output."""
        ran = self.run(*words, env=env)
        assert ran.code == 0, f"deployex {' '.join(words)}: {ran}"
        return ran.out

    def begin(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Starts `deployex` with these words, and does not wait for it."""
        return subprocess.Popen(
            ["deployex", *words],
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self.root,
        )

    def publish(self, version: str, *words: str) -> None:
        self.ok("publish", str(self.package(version)), "--hash", f"hash{version}", *words)

    def deploy(self, version: str) -> None:
        """Publishes a version and checks; returns when it answers."""
        self.publish(version)
        self.ok("check")
        self.answers(version)

    def confirm(self) -> None:
        """Checks until the version on trial is confirmed."""
        eventually(lambda: self.run("check").code == 0 and self.phase() == "confirmed")

    def phase(self) -> str:
        return str(self.state()["deployment"]["phase"])

    def status(self) -> Any:
        """The status of the one app, as JSON."""
        return self.run("status", "--json").json["apps"][0]

    def history(self) -> list[tuple[str, str]]:
        """(event, version) of each entry."""
        entries = self.run("history", "--json").json["entries"]
        return [(entry["event"], entry["version"]) for entry in entries]

    # --- the app ----------------------------------------------------------------------------

    def get(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def answers(self, version: str, seconds: float = 20.0) -> Any:
        """Waits until that version answers; its answer."""

        def look() -> Any:
            answer = json.loads(self.get())
            return answer if answer["version"] == version else None

        return eventually(look, seconds)

    def is_silent(self) -> bool:
        """Whether nothing listens on the app's port."""
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) != 0

    # --- processes --------------------------------------------------------------------------

    def processes(self, *names: str) -> list[int]:
        """The processes that were started in this world, of these short names or all."""
        mark = f"{MARK}={self.root.name}".encode()
        found = []
        for entry in os.listdir("/proc"):
            try:
                if not entry.isdigit() or mark not in Path(f"/proc/{entry}/environ").read_bytes():
                    continue
                name = Path(f"/proc/{entry}/comm").read_text().strip()
            except OSError:
                continue
            if int(entry) != os.getpid() and (not names or name in names):
                found.append(int(entry))
        return found

    def vms(self) -> list[int]:
        """The pids of the BEAMs of this world."""
        return self.processes("beam.smp")

    def supervisor(self) -> int:
        return int(self.record()["supervisor"][0])

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    def end(self) -> None:
        """Ends all that runs here and removes the folders; nothing may be left."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                if number is signal.SIGKILL or pid == self._supervisor_or_none():
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        continue
            if number is signal.SIGTERM and self._supervisor_or_none() is not None:
                try:
                    eventually(lambda: self._supervisor_or_none() is None, 8.0)
                except AssertionError:
                    continue
        eventually(lambda: not self.processes(), 10.0)
        for parent, folders, _ in os.walk(self.root):
            for folder in folders:
                path = Path(parent) / folder
                if not path.is_symlink():
                    path.chmod(0o700)
        shutil.rmtree(self.root)

    def _supervisor_or_none(self) -> int | None:
        try:
            pid = self.supervisor()
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return pid if pid in self.processes() else None
