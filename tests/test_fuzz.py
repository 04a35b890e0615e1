"""The fuzzer's readers on its seeds, also what was once found, and on readers that are broken."""

from __future__ import annotations

import pytest

from deployex_cli.errors import BadTerm
from deployex_cli.otp import epmd, framing, terms
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, Found


@pytest.mark.parametrize("name", TARGETS)
def test_readers_bear_the_seeds_and_each_byte_of_them_changed(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name].run(seed)
        for at in range(min(len(seed), 16)):
            TARGETS[name].run(seed[:at])
            for byte in (0, 0xFF):
                TARGETS[name].run(seed[:at] + bytes([byte]) + seed[at + 1 :])


# --- what the fuzzer is for, it would see ---------------------------------------------------------


def test_an_exception_that_is_not_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms, "_scan", lambda data, at: (data[99], 0))
    with pytest.raises(IndexError):
        TARGETS["terms"].run(b"j")


def test_memory_that_ran_out_behind_an_error_of_ours_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def greedy(data: bytes) -> object:
        raise MemoryError

    monkeypatch.setattr("erlang.binary_to_term", greedy)
    with pytest.raises(Found, match="MemoryError behind"):
        TARGETS["terms"].run(b"j")


def test_a_term_that_changes_on_its_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    read = terms.decode

    def forgetful(data: bytes) -> object:
        term = read(data)
        return term[1:] if isinstance(term, tuple) else term

    monkeypatch.setattr(terms, "decode", forgetful)
    with pytest.raises(Found, match="another one"):
        TARGETS["terms"].run(terms.encode((1, 2, 3))[1:])


def test_frames_that_depend_on_how_they_arrive_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: framing.Frames) -> bytes | None:
        frame = bytes(self._data) or None
        self._data.clear()
        return frame

    monkeypatch.setattr(framing.Frames, "next", hasty)
    with pytest.raises(Found, match="how they arrive"):
        TARGETS["messages"].run(b"\0\0\0\0\1j")


def test_an_answer_of_epmd_that_is_taken_too_early_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    early = lambda data, ended: epmd.Registered(1 + len(data), 6)  # noqa: E731
    monkeypatch.setattr(epmd, "port_answer", early)
    with pytest.raises(Found, match="changes"):
        TARGETS["epmd"].run(b"w\0ab")


def test_our_own_error_is_no_find() -> None:
    with pytest.raises(BadTerm):
        terms.decode(b"\x83\0")
    TARGETS["terms"].run(b"\0")
