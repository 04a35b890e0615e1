"""One lock per app: who may change an app's links, state and process.

flock(2) on a file in the runtime folder, which holds who took it and when. The file is never
removed, for a second run may be waiting to open it. A pre_command inherits the lock until it ends,
even when the check that began it is killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from types import TracebackType

from deployex_cli.errors import Locked

_NAMED_SECONDS = 1.0  # how long a lock that was just taken may be without its holder's name


class AppLock:
    """Held from `with` until the block ends. Raises Locked, saying who holds it and since when."""

    def __init__(self, path: str, app: str, what: str) -> None:
        self.path = path
        self._app = app
        self._what = what
        self._descriptor: int | None = None

    def __enter__(self) -> AppLock:
        if not self.acquire():
            raise Locked(f"{self._app}: {holder(self.path)}; nothing was done")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> bool:
        """Takes the lock without waiting; False when another holds it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {int(time.time())} {self._what}\n".encode(), 0)
        except OSError:
            return True  # a full disk: held all the same, though nobody can read by whom
        return True

    def take_over(self, descriptor: int) -> None:
        """Goes on holding what the program before us in this process held."""
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives it back; a pre_command that inherited it holds on."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def fileno(self) -> int:
        """The descriptor, for one who is to inherit the lock."""
        assert self._descriptor is not None
        return self._descriptor


def holder(path: str) -> str:
    """Who holds the lock and since when, as a clause."""
    found = _read(path)
    if found is None:
        return "another run holds the lock"
    pid, since, what = found
    at = time.strftime("%H:%M:%S", time.localtime(since))
    if not _lives(pid):
        return f"what `{what}` (pid {pid}, ended) left running holds the lock since {at}"
    return f"`{what}` (pid {pid}) holds the lock since {at}"


def holder_lives(path: str) -> bool:
    """Whether the one who took the lock still lives; else only a pre_command of its does."""
    found = _read(path)
    return found is None or _lives(found[0])


def holder_pid(path: str) -> int | None:
    """The living process that took the lock; its name is there an instant after the lock is."""
    deadline = time.monotonic() + _NAMED_SECONDS
    while True:
        found = _read(path)
        if found is not None and _lives(found[0]):
            return found[0]
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def _read(path: str) -> tuple[int, int, str] | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pid, since, what = file.read(200).split(None, 2)
        return int(pid), int(since), what.strip()
    except (OSError, ValueError):
        return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
