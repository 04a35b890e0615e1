"""Measures what the project promises, in about three minutes: `python -m tests.bench`.

Ratios are of medians of ours and of a peer, measured in turn in the same run; limits are absolute.
Exit code 1: a target was missed. Not a test: a busy machine misses what a quiet one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from tests.bench import (
    bench_check,
    bench_downtime,
    bench_gap,
    bench_node,
    bench_status,
    bench_supervise,
    bench_unpack,
    bench_upgrade,
    limits,
    table,
)
from tests.bench.limits import Limit
from tests.bench.table import Row

_BENCHES: dict[str, Callable[[], Sequence[Row | Limit]]] = {
    "check": bench_check.rows,
    "status": bench_status.rows,
    "unpack": bench_unpack.rows,
    "downtime": bench_downtime.rows,
    "upgrade": bench_upgrade.rows,
    "gap": bench_gap.rows,
    "node": bench_node.rows,
    "supervise": bench_supervise.limits,
}


def main() -> int:
    """Measures what is asked for, and prints it; the exit code."""
    parser = argparse.ArgumentParser("python -m tests.bench", description="Measures the promises.")
    parser.add_argument("--only", choices=_BENCHES, action="append", help="this, and no other")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    asked = parser.parse_args()
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > processors / 2:
        print(f"the machine is busy: load {load:.1f}, {processors} processors", file=sys.stderr)
    found = [each for name in asked.only or _BENCHES for each in _BENCHES[name]()]
    rows = [each for each in found if isinstance(each, Row)]
    figures = [each for each in found if isinstance(each, Limit)]
    if asked.json:
        print(json.dumps(_document(rows, figures), indent=2))
    else:
        shown = (table.render(rows) if rows else "", limits.render(figures) if figures else "")
        print("\n\n".join(filter(None, shown)))
    return int(any(each.missed for each in found))


def _document(rows: list[Row], figures: list[Limit]) -> dict[str, object]:
    return {
        "ratios": [{**row._asdict(), "missed": row.missed} for row in rows],
        "limits": [{**limit._asdict(), "missed": limit.missed} for limit in figures],
    }


if __name__ == "__main__":
    sys.exit(main())
