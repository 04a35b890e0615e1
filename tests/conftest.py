"""Fixtures: the example packages, built once; one epmd of our own; a world for each test."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import TinyWorld
from tests.world import World, free_port

ROOT = Path(__file__).parent.parent
EXAMPLES = ("counter", "erlang_counter", "gleam_counter")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says clearly why what this machine cannot run is skipped."""
    no_beam = pytest.mark.skip(reason="erl and elixir are not installed: ./tests/run installs them")
    no_root = pytest.mark.skip(reason="needs root")
    for item in items:
        if "beam" in item.keywords and not (shutil.which("erl") and shutil.which("mix")):
            item.add_marker(no_beam)
        if "root" in item.keywords and os.geteuid() != 0:
            item.add_marker(no_root)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every version of every example, built by the examples' own scripts."""
    folder = ROOT / ".cache/packages"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builds, the other workers wait
        for example in EXAMPLES:
            subprocess.run([ROOT / "examples" / example / "build", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def epmd_port() -> Iterator[int]:
    """The port of an epmd on loopback that ends with the tests."""
    port = free_port()
    env = {**os.environ, "ERL_EPMD_ADDRESS": "127.0.0.1"}
    if shutil.which("epmd") is None:
        yield port
        return
    process = subprocess.Popen(["epmd", "-port", str(port)], env=env)
    yield port
    process.kill()
    process.wait()


@pytest.fixture
def world(packages: Path, epmd_port: int) -> Iterator[World]:
    """A machine on which the Elixir example is to run."""
    made = World(packages, epmd_port)
    yield made
    made.end()


@pytest.fixture
def bare(epmd_port: int, tmp_path: Path) -> Iterator[World]:
    """A machine on which nothing needs a BEAM: no package is built for it."""
    made = World(tmp_path, epmd_port)
    yield made
    made.end()


@pytest.fixture
def tiny(epmd_port: int, tmp_path: Path) -> Iterator[TinyWorld]:
    """A machine whose app is a small script of the test's own."""
    made = TinyWorld(tmp_path, epmd_port)
    yield made
    made.end()
