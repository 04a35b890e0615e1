"""A hot upgrade of the example, from "unpacked, verified and chosen to go hot" to "installed".

Each end is the state's being on disk; choosing is told apart. Ours is the engine in this process;
the peer is a BEAM client that upgrades the same VM through release_handler:unpack_release, in turn
(peer.escript).
`python -m tests.bench.bench_upgrade` shows one upgrade's times, part by part.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from deployex_cli import upgrade
from deployex_cli.commands.steps import published
from deployex_cli.config import load_config
from deployex_cli.core.plan import OnDisk, begin, remaining
from deployex_cli.core.state import Phase, Release, State
from deployex_cli.engine import Engine
from deployex_cli.layout import files, upgrade_files
from deployex_cli.layout.lock import AppLock
from deployex_cli.otp import health, release_handler, runtime_config
from deployex_cli.supervise.handle import AppProcess
from tests.bench.counter import is_possible, machine
from tests.bench.limits import Limit
from tests.bench.peer import peer
from tests.bench.table import Row, aligned
from tests.world import World

ROUNDS = 7
LIMIT_MS = 60.0
TARGET = 0.25
OLD, NEW = "0.1.1", "0.1.2"


def rows(rounds: int = ROUNDS) -> list[Row | Limit]:
    """The time of ours against the peer's and its limit, and with the choice; medians."""
    if not is_possible("upgrade"):
        return []
    ours, chosen, theirs = [], [], []
    with machine(OLD, NEW) as world:
        begin_with(world)
        for _ in range(rounds):
            moments = _upgrade(world)
            ours.append(moments["installed"] - moments["unpacked"])
            chosen.append(moments["installed"] - moments["verified"])
            back(world)
            theirs.append(_upgrade_of_peer(world))
    name, other = "hot upgrade, unpacked to installed", "BEAM client, unpack_release"
    ours_ms, chosen_ms, peer_ms = map(statistics.median, (ours, chosen, theirs))
    return [
        Row(name, ours_ms, other, peer_ms, ours_ms / peer_ms, TARGET),
        Row("  and how to upgrade, chosen", chosen_ms, "", peer_ms, chosen_ms / peer_ms, None),
        Limit(name, ours_ms, "ms", LIMIT_MS, other, peer_ms),
    ]


def begin_with(world: World) -> None:
    """The old version, confirmed, and the new one published."""
    world.deploy(OLD)
    world.confirm()
    world.publish(NEW)


def back(world: World) -> None:
    """The old version again, hot, with nothing left of the new one in `current`."""
    vms = world.vms()
    world.ok("rollback", OLD)
    world.confirm()
    assert world.vms() == vms
    assert world.answers(OLD)
    assert not (world.service / f"current/releases/{NEW}").exists()


class _Timed(Engine):
    """Notes when the package was in place and when each phase was on disk, in ms."""

    def __init__(self, *given: Any) -> None:
        self.moments: dict[str, float] = {}
        super().__init__(*given)

    def obtain(self, target: Release) -> OnDisk:
        found = super().obtain(target)
        self._note("verified")
        return found

    def save(self, state: State, entry: dict[str, Any] | None = None) -> None:
        super().save(state, entry)
        if state.deployment is not None:
            self._note(state.deployment.phase.value)

    def _note(self, what: str) -> None:
        self.moments.setdefault(what, time.monotonic() * 1000)


def _upgrade(world: World) -> dict[str, float]:
    """When the package was verified in its place, and when each phase was on disk; ms."""
    vms = world.vms()
    app = load_config(str(world.config), {}).app(world.app)
    with AppLock(app.paths.lock, app.name, "bench") as lock:
        process = AppProcess(app, str(world.config))
        engine = _Timed(app, lock, process, lambda line: None, "bench")
        facts = engine.facts()
        target, pre_commands = published(app, NEW)
        due = begin(engine.state, facts, target, "deployment", pre_commands, time.time())
        engine.run(remaining(due, facts), due)
    assert engine.state.deployment is not None
    assert engine.state.deployment.phase is Phase.INSTALLED
    assert world.answers(NEW)
    assert world.vms() == vms
    return engine.moments


def _upgrade_of_peer(world: World) -> float:
    """Milliseconds of the same by the peer; what it left is gone afterwards."""
    vms = world.vms()
    current = world.service / "current"
    ((taken,),) = peer(world, "upgrade", world.app, NEW, str(world.package(NEW)))
    assert world.answers(NEW)
    peer(world, "back", NEW, OLD)
    assert world.answers(OLD)
    assert world.vms() == vms
    shutil.rmtree(current / f"lib/{world.app}-{NEW}")
    shutil.rmtree(current / f"releases/{NEW}")
    (current / f"releases/{world.app}-{NEW}.rel").unlink()
    return taken


# --- one upgrade, part by part ------------------------------------------------------------------

_PARTS: tuple[tuple[Any, str], ...] = (
    (Engine, "obtain"),
    (Engine, "save"),
    (files, "sync_filesystem"),
    (upgrade, "connect"),
    (upgrade_files, "package_facts"),
    (upgrade_files, "put_into"),
    (release_handler, "which_releases"),
    (release_handler, "appup"),
    (release_handler, "set_removed"),
    (release_handler, "set_unpacked"),
    (release_handler, "make_relup"),
    (release_handler, "check_install"),
    (runtime_config, "resolve"),
    (runtime_config, "hook"),
    (release_handler, "set_mark"),
    (release_handler, "mark"),
    (release_handler, "install"),
    (health, "ask"),
)


def trace() -> str:
    """When each part of the engine's third upgrade began and how long it took; from verified on."""
    with machine(OLD, NEW) as world:
        begin_with(world)
        for _ in range(2):
            _upgrade(world)
            back(world)
        with _noted() as noted:
            _upgrade(world)
    zero = next(begun + taken for begun, taken, _, name in noted if name == "obtain")
    lines = [("at ms", "took", "")]
    for begun, taken, depth, name in sorted(noted):
        lines.append((f"{begun - zero:.1f}", f"{taken:.1f}", "  " * depth + name))
    return aligned(lines, right=(0, 1))


@contextmanager
def _noted() -> Iterator[list[tuple[float, float, int, str]]]:
    """(began, took, depth, name) of each call of the parts, in milliseconds."""
    noted: list[tuple[float, float, int, str]] = []
    depth = [0]

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begun = time.monotonic() * 1000
            depth[0] += 1
            try:
                return function(*given, **named)
            finally:
                depth[0] -= 1
                noted.append((begun, time.monotonic() * 1000 - begun, depth[0], name))

        return call

    with ExitStack() as stack:
        for holder, name in _PARTS:
            function = wrapped(name, getattr(holder, name))
            stack.enter_context(mock.patch.object(holder, name, function))
        yield noted


if __name__ == "__main__":
    print(trace())
    sys.exit(0)
