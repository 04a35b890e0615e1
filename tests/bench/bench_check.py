"""A check with nothing to do, as a timer runs it, against what Python itself takes to do nothing.

One confirmed app runs, its release store is local; with a deployex.toml, and with
DEPLOYEX_MONITORED_APP_NAME alone. Both are whole processes of the same interpreter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.deployed import deployed, deployed_by_variables
from tests.bench.measure import Command, medians_ms
from tests.bench.table import Row
from tests.world import World

TURNS = 60
TARGET = 3.0
DEPLOYEX = str(Path(sys.executable).parent / "deployex")


def rows(turns: int = TURNS) -> list[Row]:
    """A row for each way to configure it."""
    with deployed() as world:
        found = [_row("check, nothing to do", world, turns)]
    with deployed_by_variables() as world:
        found.append(_row("check, variables alone", world, turns))
    return found


def _row(name: str, world: World, turns: int) -> Row:
    ours = Command((DEPLOYEX, "check"), world.env)
    peer = Command((sys.executable, "-I", "-c", "pass"), world.env)
    ours_ms, peer_ms = medians_ms(ours, peer, turns)
    return Row(name, ours_ms, "python -I -c pass", peer_ms, ours_ms / peer_ms, TARGET)
