"""A thread that does one thing to a stream's pieces, so that it overlaps with the rest."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Stage(Generic[Item]):
    """Applies a function to each item, in order, with at most `depth` of them waiting.

    The first exception ends the work, not the thread: later items are thrown away, so that `put`
    never waits for a stage that has failed. Nothing of it outlives `close`. Raises OSError when the
    machine has no thread left.
    """

    def __init__(self, name: str, apply: Callable[[Item], object], depth: int) -> None:
        self._apply = apply
        self._queue: queue.Queue[Item | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            raise OSError(errno.EAGAIN, "no thread can be started") from None

    @property
    def failed(self) -> bool:
        """Whether an item could not be worked on."""
        return self._error is not None

    def put(self, item: Item) -> None:
        """Give it the next item; wait while `depth` of them are waiting."""
        self._queue.put(item)

    def close(self) -> BaseException | None:
        """Wait until all items are done; return the exception that ended the work, if any did."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        return self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._apply(item)
                except BaseException as error:  # close hands it over
                    self._error = error
