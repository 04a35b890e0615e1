"""A check with nothing to do, as a timer runs it, against what Python itself takes to do nothing.

One confirmed app runs, its release store is local: with a deployex.toml that says that there is no
node; with DEPLOYEX_MONITORED_APP_NAME alone, which cannot say so, so that it is looked for in vain;
and with a node that answers. Both are whole processes of the same interpreter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.counter import is_possible, machine
from tests.bench.deployed import deployed, deployed_by_variables
from tests.bench.measure import Command, medians_ms
from tests.bench.table import Row
from tests.world import World

TURNS = 60
TARGET = 3.0
TARGET_WITH_NODE = 4.5
VERSION = "0.1.1"
DEPLOYEX = str(Path(sys.executable).parent / "deployex")


def rows(turns: int = TURNS) -> list[Row]:
    """A row for each way to configure it."""
    with deployed() as world:
        found = [_row("check, nothing to do", world, turns, TARGET)]
    with deployed_by_variables() as world:
        found.append(_row("check, variables alone", world, turns, TARGET_WITH_NODE))
    if is_possible("check with a node"):
        with machine(VERSION) as world:
            world.deploy(VERSION)
            world.confirm()
            found.append(_row("check, a node to ask", world, turns, TARGET_WITH_NODE))
    return found


def _row(name: str, world: World, turns: int, target: float) -> Row:
    ours = Command((DEPLOYEX, "check"), world.env)
    peer = Command((sys.executable, "-I", "-c", "pass"), world.env)
    ours_ms, peer_ms = medians_ms(ours, peer, turns)
    return Row(name, ours_ms, "python -I -c pass", peer_ms, ours_ms / peer_ms, target)
