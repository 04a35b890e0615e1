"""The Elixir example to measure with: its packages, built, a World and an epmd."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.world import World, eventually, free_port

_ROOT = Path(__file__).parents[2]


def is_possible(what: str) -> bool:
    """Whether a BEAM is there to measure with; says so when there is none."""
    if shutil.which("erl") and shutil.which("mix"):
        return True
    print(f"{what}: not measured, for erl and elixir are not installed", file=sys.stderr)
    return False


@contextmanager
def machine(*versions: str) -> Iterator[World]:
    """A world for the example, whose packages of these versions are there, and an epmd."""
    packages = _ROOT / ".cache/packages"
    packages.mkdir(parents=True, exist_ok=True)
    with (packages.parent / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [str(_ROOT / "examples/counter/build"), str(packages), *versions]
        subprocess.run(words, check=True, stdout=sys.stderr)
    port = free_port()
    env = {**os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1"}
    with subprocess.Popen(["epmd", "-port", str(port)], env=env, stderr=subprocess.DEVNULL) as epmd:
        world = World(packages, port)
        # as when it is installed: with PYTHONDONTWRITEBYTECODE each process would compile it again
        world.env = {k: value for k, value in world.env.items() if not k.startswith("PYTHON")}
        world.configure('min_healthy_time = "100ms"')
        try:
            eventually(lambda: _listens(port))
            yield world
        finally:
            world.end()
            epmd.kill()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
