"""How long nobody answers in a full deployment, asked every millisecond.

From the last answer of the old version to the first of the new, against what no deployment can go
below, the new version's own start: from exec to its first answer, with nothing around it. The same
with SIGTERM and a pause of 500 ms, as Deployex does, in the same run.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator

from deployex_cli.config import load_config
from deployex_cli.supervise.command import start_command
from tests.bench.counter import is_possible, machine
from tests.bench.polled import Polled
from tests.bench.table import Row
from tests.world import World

ROUNDS = 5
TARGET = 1.25
PEER_TARGET = 0.5
PAUSE_SECONDS = 0.5
VERSIONS = (
    "0.1.0",
    "0.3.0",
)  # with no instructions for an upgrade: each replaces the other in full


def rows(rounds: int = ROUNDS) -> list[Row]:
    """A row against the start alone, and one against SIGTERM and the pause; medians."""
    if not is_possible("downtime"):
        return []
    with machine(*VERSIONS) as world:
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
        with Polled(world.port) as polled:
            polled.until(old)
            world.ok("check")
            polled.until(new)
        ours = polled.gap(old, new)
        world.confirm()
        world.ok("stop")
        with Polled(world.port) as polled:
            begun, process = time.monotonic(), _start(world, new)
            polled.until(new)
        alone = polled.first(new) - begun
        with Polled(world.port) as polled:
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
