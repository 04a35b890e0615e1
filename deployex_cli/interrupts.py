"""SIGTERM and Ctrl-C while steps are taken: undo, or finish first.

Left of the point of no return a signal becomes an exception, and what was begun is undone. Right of
it, and while state is written, the signal waits: leaving in the middle would leave the app down.
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
        self._deferred = 0
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
    def deferred(self) -> Iterator[None]:
        """In this block a signal waits; behind it, it is raised only where `raise_pending` is."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def raise_pending(self) -> None:
        """Raises Interrupted when a signal has waited."""
        if self._pending is not None:
            name, self._pending = self._pending, None
            raise Interrupted(f"interrupted by {name}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pending = signal.Signals(number).name
        if not self._deferred:
            self.raise_pending()
