"""The BEAM client that ours is measured against (peer.escript)."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

from tests.world import World

_SCRIPT = Path(__file__).with_name("peer.escript")


def peer(world: World, *words: str) -> list[list[float]]:
    """Has the client do it on the world's node; milliseconds, of each list that it printed."""
    host = socket.gethostname().partition(".")[0]
    done = subprocess.run(
        ["escript", str(_SCRIPT), f"{world.node}@{host}", "monster", *words],
        env=world.env,
        capture_output=True,
        text=True,
        cwd=world.root,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    lists = re.findall(r"[\d,]+", done.stdout)
    return [[int(n) / 1000 for n in found.split(",") if n] for found in lists if found.strip(",")]
