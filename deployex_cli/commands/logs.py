"""`deployex logs`: the last lines of an app's output, and what comes after them.

Following goes on across a rotation (another file has the name), a truncation (the file is shorter
than what was read) and a file that is missing for a while.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from deployex_cli.config import AppConfig

POLL_SECONDS = 0.2
_BLOCK = 64 * 1024
STREAMS = ("stdout", "stderr", "both")


class Line(NamedTuple):
    """One line of one app's one stream."""

    app: str
    stream: str
    text: str


class Follower:
    """One log file, read from its last lines on."""

    def __init__(self, app: str, stream: str, path: str) -> None:
        self.app = app
        self.stream = stream
        self.path = path
        self._file: BinaryIO | None = None
        self._partial = b""

    def last(self, count: int) -> list[Line]:
        """The last `count` lines that are there; reading goes on behind them."""
        file = self._open()
        if file is None:
            return []
        end = file.seek(0, os.SEEK_END)
        start, blocks, found = end, [], 0
        while start > 0 and found <= count:
            size = min(_BLOCK, start)
            start -= size
            file.seek(start)
            blocks.append(file.read(size))
            found += blocks[-1].count(b"\n")
        file.seek(end)
        *lines, self._partial = b"".join(reversed(blocks)).split(b"\n")
        return self._lines(lines[-count:] if count else [])

    def more(self) -> Iterator[Line]:
        """The whole lines that have come since; nothing when there are none."""
        file = self._file or self._open()
        if file is None:
            return
        while True:
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)  # it was truncated: all that it holds is new
                self._partial = b""
            while chunk := file.read(_BLOCK):
                *lines, self._partial = (self._partial + chunk).split(b"\n")
                yield from self._lines(lines)
            if not self._replaced(file):
                return
            if self._partial:  # the old file's last line will get no end any more
                yield from self._lines([self._partial])
            next_file = self._open()
            if next_file is None:
                return
            file = next_file

    def rest(self) -> list[Line]:
        """A last line without its end, for one who does not follow."""
        lines = self._lines([self._partial]) if self._partial else []
        self._partial = b""
        return lines

    def _open(self) -> BinaryIO | None:
        if self._file is not None:
            self._file.close()
        self._partial = b""
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115  it stays open while we follow
        except FileNotFoundError:
            self._file = None
        return self._file

    def _replaced(self, file: BinaryIO) -> bool:
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False  # between a rotation's two steps; the old file may still grow
        mine = os.fstat(file.fileno())
        return (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino)

    def _lines(self, raw: list[bytes]) -> list[Line]:
        return [Line(self.app, self.stream, line.decode("utf-8", "replace")) for line in raw]


def logs(
    apps: tuple[AppConfig, ...],
    stream: str,
    count: int,
    *,
    follow: bool,
    as_json: bool,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Prints the last `count` lines of each file, and with `follow` what comes, until Ctrl-C."""
    followers = [
        Follower(app.name, name, getattr(app.paths, name))
        for app in apps
        for name in ("stdout", "stderr")
        if stream in (name, "both")
    ]
    tagged = len(followers) > 1
    for follower in followers:
        lines = follower.last(count)
        if not follow:  # a last line that has no end yet is one of the `count`
            lines = [*lines, *follower.rest()][-count:] if count else []
        _print(lines, tagged, as_json)
    while follow:
        for follower in followers:
            _print(follower.more(), tagged, as_json)
        sys.stdout.flush()
        wait(POLL_SECONDS)


def _print(lines: Iterator[Line] | list[Line], tagged: bool, as_json: bool) -> None:
    for line in lines:
        if as_json:
            print(json.dumps({"app": line.app, "stream": line.stream, "line": line.text}))
        else:
            print(f"{line.app} {line.stream} | {line.text}" if tagged else line.text)
