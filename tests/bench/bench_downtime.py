"""How long nobody answers in a full deployment, asked every millisecond.

From the last answer of the old version to the first of the new, against what no deployment can go
below, the new version's own start: from exec to its first answer, with nothing around it. The same
with SIGTERM and a pause of 500 ms, as Deployex does, in the same run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployex_cli.config import load_config
from deployex_cli.supervise.command import start_command
from tests.bench.table import Row
from tests.world import World, eventually, free_port

ROUNDS = 7
TARGET = 1.25
PEER_TARGET = 0.5
PAUSE_SECONDS = 0.5
VERSIONS = (
    "0.1.0",
    "0.3.0",
)  # with no instructions for an upgrade: each replaces the other in full
_POLL_SECONDS = 0.001
_ROOT = Path(__file__).parents[2]


def rows(rounds: int = ROUNDS) -> list[Row]:
    """A row against the start alone, and one against SIGTERM and the pause; medians."""
    if shutil.which("erl") is None or shutil.which("mix") is None:
        print("downtime: not measured, for erl and elixir are not installed", file=sys.stderr)
        return []
    with _machine() as world:
        ours, alone, signalled = zip(*_rounds(world, rounds), strict=True)
    ours_ms, alone_ms, signalled_ms = (
        statistics.median(each) * 1000 for each in (ours, alone, signalled)
    )
    name, peer = "full deployment, no answer", f"SIGTERM, {PAUSE_SECONDS * 1000:g} ms, start"
    return [
        Row(name, ours_ms, "exec to first answer", alone_ms, ours_ms / alone_ms, TARGET),
        Row("", ours_ms, peer, signalled_ms, ours_ms / signalled_ms, PEER_TARGET),
    ]


def _rounds(world: World, rounds: int) -> Iterator[tuple[float, float, float]]:
    """Seconds of each: a deployment, a start alone, SIGTERM with the pause and the start."""
    old, new = VERSIONS
    world.deploy(old)
    world.confirm()
    for _ in range(rounds):
        world.publish(new)
        with _Polled(world.port) as polled:
            polled.until(old)
            world.ok("check")
            polled.until(new)
        ours = polled.gap(old, new)
        world.confirm()
        world.ok("stop")
        with _Polled(world.port) as polled:
            begun, process = time.monotonic(), _start(world, new)
            polled.until(new)
        alone = polled.first(new) - begun
        with _Polled(world.port) as polled:
            polled.until(new)
            process.terminate()
            process.wait()
            time.sleep(PAUSE_SECONDS)
            process = _start(world, old)
            polled.until(old)
        signalled = polled.gap(new, old)
        process.terminate()
        process.wait()
        yield ours, alone, signalled
        world.ok("start")
        world.answers(new)
        old, new = new, old


def _start(world: World, version: str) -> subprocess.Popen[bytes]:
    """Starts a release that is on disk, as the supervisor would, and by itself."""
    app = load_config(str(world.config), {}).app(world.app)
    (release,) = world.service.glob(f"releases/*-{version}")
    command = start_command(app, str(release), world.env)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command.words,
        env=command.env,
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        cwd=app.paths.work,
        # of processors that others want, too, the kernel gives each session its share, sched(7)
        start_new_session=True,
    )


class _Polled:
    """What answers on a port, asked every millisecond in a thread of its own within `with`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = False
        self._answers: list[tuple[float, str]] = []  # when, by the monotonic clock, and who
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> _Polled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def until(self, version: str) -> None:
        """Waits for an answer of that version."""
        eventually(lambda: any(who == version for _, who in list(self._answers)))

    def first(self, version: str) -> float:
        return next(when for when, who in self._answers if who == version)

    def gap(self, old: str, new: str) -> float:
        """Seconds from the last answer of `old` to the first of `new`."""
        return self.first(new) - max(when for when, who in self._answers if who == old)

    def _poll(self) -> None:
        while not self._ended:
            version = self._ask()
            if version is not None:
                self._answers.append((time.monotonic(), version))
            time.sleep(_POLL_SECONDS)

    def _ask(self) -> str | None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                data = b""
                while chunk := connection.recv(4096):
                    data += chunk
            return str(json.loads(data.partition(b"\r\n\r\n")[2])["version"])
        except (OSError, ValueError, LookupError):
            return None  # nobody listens, or it ended in the middle


@contextmanager
def _machine() -> Iterator[World]:
    """A world for the Elixir example, whose packages are there, and an epmd."""
    packages = _ROOT / ".cache/packages"
    packages.mkdir(parents=True, exist_ok=True)
    with (packages.parent / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [str(_ROOT / "examples/counter/build"), str(packages), *VERSIONS]
        subprocess.run(words, check=True, stdout=sys.stderr)
    port = free_port()
    env = {**os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1"}
    with subprocess.Popen(["epmd", "-port", str(port)], env=env, stderr=subprocess.DEVNULL) as epmd:
        world = World(packages, port)
        # as when it is installed: with PYTHONDONTWRITEBYTECODE each process would compile it again
        world.env = {k: value for k, value in world.env.items() if not k.startswith("PYTHON")}
        world.configure('min_healthy_time = "100ms"')
        try:
            eventually(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None)
            yield world
        finally:
            world.end()
            epmd.kill()
