"""Times, durations and sizes, as people read them."""

from __future__ import annotations

import pytest

from deployex_cli.words import iso, mebibytes, seconds


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (None, "-"),
        (0, "0s"),
        (0.9, "0s"),
        (7, "7s"),
        (59.99, "59s"),
        (60, "1m"),
        (125, "2m 5s"),
        (3600, "1h"),
        (3605, "1h"),
        (3660, "1h 1m"),
        (7325, "2h 2m"),
        (86399, "23h 59m"),
        (86400, "1d"),
        (86400 + 61, "1d"),
        (86400 + 3 * 3600 + 59, "1d 3h"),
        (400 * 86400, "400d"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(duration: float | None, words: str) -> None:
    assert seconds(duration) == words


@pytest.mark.parametrize(
    ("at", "words"),
    [(None, None), (0.0, "1970-01-01T00:00:00Z"), (1700000000.9, "2023-11-14T22:13:20Z")],
)
def test_a_time_is_iso_8601_in_utc(at: float | None, words: str | None) -> None:
    assert iso(at) == words


def test_a_time_is_the_same_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert iso(0.0) == "1970-01-01T00:00:00Z"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "-"),
        (0, "0.0 MiB"),
        (2**20, "1.0 MiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (2**40, "1048576.0 MiB"),
    ],
)
def test_a_size_is_in_mebibytes(size: float | None, words: str) -> None:
    assert mebibytes(size) == words
