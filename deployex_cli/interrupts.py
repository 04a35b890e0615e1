"""SIGTERM and Ctrl-C while steps are taken: undo, or finish first.

A signal waits. Only inside `raising`, left of the point of no return, it becomes an exception, and
what was begun is undone. Right of it, and while state is written, leaving would leave the app down.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from deployex_cli.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Handles the two signals inside `with`; outside it they do what they did before."""

    def __init__(self) -> None:
        self._raising = False
        self._pending: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """In this block a signal, and one that has waited for it, raises Interrupted."""
        self._raising = True
        try:
            self._raise_pending()
            yield
        finally:
            self._raising = False

    def _raise_pending(self) -> None:
        if self._pending is not None:
            name, self._pending = self._pending, None
            raise Interrupted(f"interrupted by {name}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pending = signal.Signals(number).name
        if self._raising:
            self._raise_pending()
