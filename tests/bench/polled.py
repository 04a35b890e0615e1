"""Who answers on a port, and when: asked every millisecond."""

from __future__ import annotations

import json
import socket
import threading
import time
from itertools import pairwise

from tests.world import eventually

_POLL_SECONDS = 0.001


class Polled:
    """What answers on a port, asked in a thread of its own within `with`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = False
        self._answers: list[tuple[float, str]] = []  # when, by the monotonic clock, and who
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Polled:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def until(self, version: str) -> None:
        """Waits for an answer of that version."""
        eventually(lambda: any(who == version for _, who in list(self._answers)))

    def first(self, version: str) -> float:
        return next(when for when, who in self._answers if who == version)

    def gap(self, old: str, new: str) -> float:
        """Seconds from the last answer of `old` to the first of `new`."""
        return self.first(new) - max(when for when, who in self._answers if who == old)

    def longest_gap(self) -> float:
        """Seconds, the most between an answer and the next."""
        return max(later - when for (when, _), (later, _) in pairwise(self._answers))

    def _poll(self) -> None:
        while not self._ended:
            version = self._ask()
            if version is not None:
                self._answers.append((time.monotonic(), version))
            time.sleep(_POLL_SECONDS)

    def _ask(self) -> str | None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                data = b""
                while chunk := connection.recv(4096):
                    data += chunk
            return str(json.loads(data.partition(b"\r\n\r\n")[2])["version"])
        except (OSError, ValueError, LookupError):
            return None  # nobody listens, or it ended in the middle
