"""A call on the running node, and a connection to it: ours, and a BEAM client's (peer.escript).

Plain distribution on loopback. Connecting is all of it: epmd, the connection, the handshake.
"""

from __future__ import annotations

import statistics
import time

from deployex_cli.config import load_config
from deployex_cli.otp.identity import target_of
from deployex_cli.otp.node import connect
from tests.bench.counter import is_possible, machine
from tests.bench.peer import peer
from tests.bench.table import Row

TURNS = 200
VERSION = "0.1.1"


def rows(turns: int = TURNS) -> list[Row]:
    """A row for a call, and one for connecting; medians."""
    if not is_possible("node"):
        return []
    with machine(VERSION) as world:
        world.deploy(VERSION)
        (vm,) = world.vms()
        target = target_of(load_config(str(world.config), {}).app(world.app), vm, world.env)
        calls, connects = [], []
        for _ in range(turns):
            begun = time.perf_counter()
            node = connect(target)
            connects.append((time.perf_counter() - begun) * 1000)
            with node:
                node.call("erlang", "node", [])  # what is asked for the first time is not counted
                begun = time.perf_counter()
                node.call("erlang", "node", [])
                calls.append((time.perf_counter() - begun) * 1000)
        their_calls, their_connects = peer(world, "rpc", str(turns))
    return [
        _row("one rpc, connected", calls, their_calls),
        _row("connect and handshake", connects, their_connects),
    ]


def _row(name: str, ours: list[float], theirs: list[float]) -> Row:
    ours_ms, peer_ms = statistics.median(ours), statistics.median(theirs)
    return Row(name, ours_ms, "BEAM client", peer_ms, ours_ms / peer_ms, None)
