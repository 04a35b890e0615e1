"""What is held against an absolute limit, and not against a peer: a figure, and a table of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tests.bench.table import aligned


class Limit(NamedTuple):
    """A median of ours in `unit`, the most that it may be, and a peer's in the same run."""

    name: str
    ours: float
    unit: str
    target: float
    peer: str
    peer_value: float

    @property
    def missed(self) -> bool:
        return self.ours > self.target


def render(limits: Iterable[Limit]) -> str:
    """The figures as a table, a line each, with `missed` where a target is."""
    lines = [("", "ours", "", "target", "peer", "peer's", "")]
    for limit in limits:
        shown = (f"{limit.ours:.1f}", limit.unit, f"<= {limit.target:g}")
        peer = (limit.peer, f"{limit.peer_value:.1f}")
        lines.append((limit.name, *shown, *peer, "missed" if limit.missed else ""))
    return aligned(lines, right=(1, 3, 5))
