"""How long a crashed app waits before it is started again. PURE."""

from __future__ import annotations

STEP_SECONDS = 2.0
LONGEST_SECONDS = 300.0


def restart_delay(consecutive_crashes: int) -> float:
    """Seconds between the nth crash in a row (from 1) and the next start.

    The first restart is at once, the nth after min(2(n-1) s, 300 s). It never gives up. The count
    goes back to zero once the app was healthy, so a lifetime of rare crashes costs nothing.
    """
    return min(STEP_SECONDS * max(consecutive_crashes - 1, 0), LONGEST_SECONDS)


def crashes_in_a_row(before: int, lived: float, min_healthy_time: float) -> int:
    """The count after one more crash of an app that had lived `lived` seconds."""
    return 1 if lived >= min_healthy_time else before + 1
