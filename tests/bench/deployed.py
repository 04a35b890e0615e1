"""An app to measure with: a release whose program is `sleep`, deployed and confirmed in a World."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny import SLEEPS, tarball
from tests.world import World, eventually, free_port

VERSION = "1.0.0"
HEALTHY_SECONDS = 0.1
# the app is no node
_HEALTHY = f'min_healthy_time = "{HEALTHY_SECONDS * 1000:g}ms"\ndistribution = "none"'
_EVERYWHERE = Path("/tmp/deployex")


@contextmanager
def deployed() -> Iterator[World]:
    """A world with folders of its own, and an app without a node that runs there, confirmed."""
    with _world() as world:
        world.configure(_HEALTHY)
        _deploy(world)
        yield world


@contextmanager
def deployed_by_variables() -> Iterator[World]:
    """The same in the default folders, with environment variables alone, less DEPLOYEX_CONFIG.

    The app has a name of its own, and what is there of others stays.
    """
    there_before = _EVERYWHERE.exists()
    with _world() as world:
        # only until it is confirmed: the default of min_healthy_time would be waited for
        world.config.write_text(f'environment = "local"\n[apps.{world.app}]\n{_HEALTHY}\n')
        try:
            _deploy(world)
            del world.env["DEPLOYEX_CONFIG"]
            world.env["DEPLOYEX_MONITORED_APP_NAME"] = world.app
            yield world
        finally:
            world.end_processes()
            _remove_traces(world.app, there_before)


class _World(World):
    def end_processes(self) -> None:
        """The app and its supervisor, wherever its record is."""
        self.run("stop")
        for pid in self.processes():
            self.kill(pid)
        eventually(lambda: not self.processes())


@contextmanager
def _world() -> Iterator[_World]:
    app = f"bench{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="dx-") as folder:
        tarball(Path(folder) / f"{app}-{VERSION}.tar.gz", app, VERSION, SLEEPS)
        world = _World(Path(folder), free_port(), app)
        # as when it is installed: with PYTHONDONTWRITEBYTECODE each process would compile it again
        world.env = {k: value for k, value in world.env.items() if not k.startswith("PYTHON")}
        try:
            yield world
        finally:
            world.end()


def _deploy(world: World) -> None:
    world.publish(VERSION)

    def is_confirmed() -> bool:
        world.ok("check")
        return bool(world.status()["deployment"]["phase"] == "confirmed")

    eventually(is_confirmed)
    outcome = world.run("check", "--json").json["apps"][0]["outcome"]
    assert outcome == "nothing_to_do", outcome


def _remove_traces(app: str, there_before: bool) -> None:
    found = [Path("/tmp") / app, _EVERYWHERE / "varlib/service" / app]
    found += [*_EVERYWHERE.glob(f"varlib/state/{app}.*"), *_EVERYWHERE.glob(f"run/{app}.*")]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not there_before:
        for name in ("varlib/service", "varlib/state", "varlib", "run", ""):
            try:
                (_EVERYWHERE / name).rmdir()
            except OSError:
                pass  # somebody else has begun to use it
