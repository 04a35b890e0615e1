"""What the supervisor costs while nothing happens, and how soon a crashed app runs again.

The same program is kept alive by ours and by supervisord with its defaults, side by side. Its exit
and the exec of its successor are timed by the kernel (process_events.py), which needs root; each
had lived long enough to count as healthy: min_healthy_time here, startsecs there.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import process_events
from tests.bench.deployed import HEALTHY_SECONDS, deployed
from tests.bench.limits import Limit
from tests.bench.process_events import ProcessEvents
from tests.tiny import SLEEPS
from tests.world import World, eventually

TURNS = 10  # supervisord takes two seconds for each
CRASHES_PER_TURN = 10  # of ours, while the one of supervisord grows old enough
IDLE_SECONDS = 10.0
MEMORY_MB, WAKE_UPS, RESTART_MS = 18.0, 0.0, 5.0
_PATIENCE_SECONDS = 10.0
_STARTSECS = 1.0  # supervisord's default
_MARGIN_SECONDS = 0.05
_CONFIG = """
[supervisord]
nodaemon = true
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
childlogdir = {folder}
[program:app]
command = {program}
"""


def limits(turns: int = TURNS, idle: float = IDLE_SECONDS) -> list[Limit]:
    """Resident memory in MB (10^6 bytes), wake-ups in `idle` seconds, milliseconds to a restart."""
    with deployed() as world, _supervisord(world) as peer:
        ours = world.supervisor()
        begun = _resident_mb(ours), _resident_mb(peer)
        before = _wake_ups(ours), _wake_ups(peer)
        time.sleep(idle)
        woken = _wake_ups(ours) - before[0], _wake_ups(peer) - before[1]
        found = [
            Limit("supervise, memory", begun[0], "MB", MEMORY_MB, "supervisord", begun[1]),
            Limit(f"supervise, idle {idle:g} s", woken[0], "wake-ups", WAKE_UPS, "", woken[1]),
        ]
        if os.geteuid() != 0:
            print("supervise, restart: not measured, for it needs root", file=sys.stderr)
            return found
        with process_events.watch() as events:
            times = _restarts(events, ours, peer, turns)
        after, peer_after = _resident_mb(ours), _resident_mb(peer)
        assert world.supervisor() == ours
        crashes = world.status()["crashes"]
        medians = statistics.median(times[0]), statistics.median(times[1])
        return [
            found[0],
            Limit(f"  after {crashes} crashes", after, "MB", MEMORY_MB, "", peer_after),
            found[1],
            Limit("supervise, exit to exec", medians[0], "ms", RESTART_MS, "", medians[1]),
        ]


def _restarts(
    events: ProcessEvents, ours: int, peer: int, turns: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each restart, of ours and of supervisord's."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for _ in range(CRASHES_PER_TURN):
            times[0].append(_restart(events, ours, HEALTHY_SECONDS))
        times[1].append(_restart(events, peer, _STARTSECS))
    return times


def _restart(events: ProcessEvents, supervisor: int, healthy_seconds: float) -> float:
    app = eventually(lambda: _children(supervisor))[0]
    while _age_seconds(app) < healthy_seconds + _MARGIN_SECONDS:
        time.sleep(0.01)
    events.forget()
    os.kill(app, signal.SIGKILL)
    return events.exec_after_exit(app, supervisor, _PATIENCE_SECONDS)


@contextmanager
def _supervisord(world: World) -> Iterator[int]:
    """The pid of a supervisord that runs the same program."""
    program = world.root / "peer-app"
    program.write_text(SLEEPS)
    program.chmod(0o700)
    config = world.root / "supervisord.conf"
    config.write_text(_CONFIG.format(folder=world.root, program=program))
    words = [Path(sys.executable).parent / "supervisord", "-c", config]
    with subprocess.Popen(words, env=world.env, stdout=subprocess.DEVNULL, cwd="/") as process:
        try:
            app = eventually(lambda: _children(process.pid))[0]
            eventually(lambda: _age_seconds(app) > _STARTSECS + 2 * _MARGIN_SECONDS)
            yield process.pid
        finally:
            process.terminate()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _age_seconds(pid: int) -> float:
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _wake_ups(pid: int) -> int:
    """How often its threads went to sleep of their own accord: once for each time they woke."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                found += int(line.split()[1])
    return found
