"""One way to show a measurement: a row of it, and rows as a plain-text table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """What was measured of ours and of a peer in the same run: medians, in milliseconds."""

    name: str
    ours_ms: float
    peer: str
    peer_ms: float
    ratio: float  # ours / peer's: the smaller the better
    target: float | None  # the ratio that is promised; None: none is

    @property
    def missed(self) -> bool:
        return self.target is not None and self.ratio > self.target


def render(rows: Iterable[Row]) -> str:
    """Return the rows as a table, a line each, with `missed` where a target is."""
    lines = [("", "ours ms", "peer", "peer ms", "ratio", "target", "")]
    for row in rows:
        lines.append(
            (
                row.name,
                _ms(row.ours_ms),
                row.peer,
                _ms(row.peer_ms),
                f"{row.ratio:.2f}",
                "" if row.target is None else f"<= {row.target:.2f}",
                "missed" if row.missed else "",
            )
        )
    return aligned(lines, right=(1, 3, 4, 5))


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def aligned(lines: Sequence[Sequence[str]], right: Collection[int]) -> str:
    """Return the cells in columns; those of `right` end where their column ends."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
