"""SIGTERM and Ctrl-C while steps are taken: undo, or finish first.

A signal waits, and is never an exception that comes from nowhere. Only inside `undoing`, left of
the point of no return, it is obeyed: it ends what is waited for (`aborting`), and whoever waited
raises (`check`); what was begun is undone. Right of it leaving would leave the app down.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from deployex_cli.errors import DeployexError, Interrupted, PreCommandFailed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

came: str | None = None  # the last signal that came while steps were taken
_obeying = False
_aborts: list[Callable[[], None]] = []


class Interrupts:
    """Handles the two signals inside `with`; outside it they do what they did before."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, _handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@contextmanager
def undoing() -> Iterator[None]:
    """In this block a signal, and one that has waited for it, ends in Interrupted."""
    global _obeying
    _obeying = True
    try:
        check()
        yield
    except (DeployexError, OSError) as error:
        if came is None or isinstance(error, (Interrupted, PreCommandFailed)):
            raise
        raise Interrupted(f"interrupted by {came}") from error
    finally:
        _obeying = False


@contextmanager
def aborting(how: Callable[[], None]) -> Iterator[None]:
    """In this block a signal that is obeyed calls `how`, which ends what is waited for."""
    _aborts.append(how)
    try:
        check()
        yield
    finally:
        _aborts.remove(how)


def check() -> None:
    """Raises Interrupted when a signal has come that is to be obeyed."""
    if _obeying and came is not None:
        raise Interrupted(f"interrupted by {came}")


def _handle(number: int, frame: FrameType | None) -> None:
    global came
    came = signal.Signals(number).name
    if _obeying:
        for abort in _aborts:
            abort()
