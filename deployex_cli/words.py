"""Times, durations and sizes in words, for people and for JSON."""

from __future__ import annotations

import time


def iso(at: float | None) -> str | None:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) if at is not None else None


def seconds(duration: float | None) -> str:
    """A duration in its two largest units: `1d 3h`, `2m 5s`, `7s`."""
    if duration is None:
        return "-"
    left = int(duration)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2])


def mebibytes(size: float | None) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:.1f} MiB" if size is not None else "-"
