"""The longest time between two answers while a hot upgrade goes on, asked every millisecond.

Each upgrade is a whole one: a check that finds the package in the store, unpacks it and installs
it, and the one that makes it permanent. The peer is the same poll, as long, with nothing going on.
"""

from __future__ import annotations

import statistics
import time

from tests.bench.bench_upgrade import NEW, OLD, back, begin_with
from tests.bench.counter import is_possible, machine
from tests.bench.polled import Polled
from tests.bench.table import Row
from tests.world import World

RUNS = 10


def rows(runs: int = RUNS) -> list[Row]:
    """The median of the longest gaps, and the worst of them."""
    if not is_possible("gap"):
        return []
    upgraded, alone = [], []
    with machine(OLD, NEW) as world:
        begin_with(world)
        for _ in range(runs):
            gap, seconds = _upgraded(world)
            upgraded.append(gap * 1000)
            back(world)
            with Polled(world.port) as polled:
                time.sleep(seconds)
            alone.append(polled.longest_gap() * 1000)
    name = f"longest gap in an upgrade, {runs} runs"
    return [
        _row(name, statistics.median(upgraded), "no upgrade", statistics.median(alone)),
        _row("  the worst of them", max(upgraded), "", max(alone)),
    ]


def _row(name: str, ours: float, peer: str, peers: float) -> Row:
    return Row(name, ours, peer, peers, ours / peers, None)


def _upgraded(world: World) -> tuple[float, float]:
    """The longest gap in an upgrade, and how long that took; seconds."""
    vms = world.vms()
    with Polled(world.port) as polled:
        polled.until(OLD)
        begun = time.monotonic()
        world.ok("check", "--force")  # the way back has ghosted it
        world.confirm()
        seconds = time.monotonic() - begun
        polled.until(NEW)
    assert world.vms() == vms
    return polled.longest_gap(), seconds
