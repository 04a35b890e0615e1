"""The first restart at once, the nth after min(2(n-1) s, 300 s); zero again once it was healthy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.core.backoff import crashes_in_a_row, restart_delay


@pytest.mark.parametrize(
    ("crashes", "seconds"),
    [(1, 0), (2, 2), (3, 4), (10, 18), (150, 298), (151, 300), (152, 300), (10**9, 300)],
)
def test_the_nth_crash_in_a_row_waits_two_seconds_more_up_to_five_minutes(
    crashes: int, seconds: float
) -> None:
    assert restart_delay(crashes) == seconds


def test_no_crash_at_all_waits_for_nothing() -> None:
    assert restart_delay(0) == 0


@given(st.integers(1, 10**6))
def test_it_never_waits_less_after_one_more_crash_and_never_gives_up(crashes: int) -> None:
    assert 0 <= restart_delay(crashes) <= restart_delay(crashes + 1) <= 300


@pytest.mark.parametrize(
    ("before", "lived", "after"),
    [(0, 0.0, 1), (1, 29.9, 2), (7, 0.0, 8), (7, 30.0, 1), (7, 86400.0, 1), (0, 86400.0, 1)],
)
def test_only_crashes_of_an_app_that_was_never_healthy_add_up(
    before: int, lived: float, after: int
) -> None:
    assert crashes_in_a_row(before, lived, min_healthy_time=30.0) == after


def test_a_lifetime_of_rare_crashes_never_makes_a_restart_wait() -> None:
    count = 0
    for _ in range(1000):
        count = crashes_in_a_row(count, lived=3600.0, min_healthy_time=30.0)
        assert restart_delay(count) == 0
