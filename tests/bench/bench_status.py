"""`deployex status` of one app that runs, against an empty typer app that shows one rich table."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.bench_check import DEPLOYEX
from tests.bench.deployed import deployed
from tests.bench.measure import Command, medians_ms
from tests.bench.table import Row

TURNS = 20
TARGET = 1.3
_EMPTY_APP = str(Path(__file__).with_name("empty_app.py"))


def rows(turns: int = TURNS) -> list[Row]:
    """One row."""
    with deployed() as world:
        ours = Command((DEPLOYEX, "status"), world.env)
        peer = Command((sys.executable, _EMPTY_APP), world.env)
        ours_ms, peer_ms = medians_ms(ours, peer, turns)
    return [Row("status", ours_ms, "empty typer app", peer_ms, ours_ms / peer_ms, TARGET)]
