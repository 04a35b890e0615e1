"""When processes begin, execute and end, as the kernel itself notes it: its process connector.

Each event carries the kernel's monotonic clock, in nanoseconds, so nothing of the measuring program
is in the measurement. Needs root, and the machine's first pid namespace; proc connector:
linux/cn_proc.h, linux/connector.h.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC, _NLMSG_DONE, _SO_RCVBUFFORCE = 11, 1, 1, 3, 33
_LISTEN, _IGNORE = 1, 2  # enum proc_cn_mcast_op
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_MESSAGE = struct.Struct("=IIIIHH")  # struct cn_msg
_EVENT = struct.Struct("=IIQ4I")  # struct proc_event: what, cpu, timestamp_ns, four of its union
_FORK, _EXEC, _EXIT = 0x1, 0x2, 0x80000000
_BUFFER_BYTES = 4 << 20


class Event(NamedTuple):
    """`pid` is the process that ended or executed, or the parent that forked `child`."""

    what: int
    at: int  # nanoseconds, CLOCK_MONOTONIC
    pid: int
    child: int = 0


class ProcessEvents:
    """The machine's process events since `watch` began."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def exec_after_exit(self, ended: int, parent: int, patience: float) -> float:
        """Milliseconds from the exit of `ended` to the exec of the next child of `parent`.

        Raises TimeoutError after `patience` seconds.
        """
        exited, successor = 0, 0
        for event in self._events(time.monotonic() + patience):
            if event.what == _EXIT and event.pid == ended:
                exited = event.at
            elif exited and event.what == _FORK and event.pid == parent:
                successor = event.child
            elif successor and event.what == _EXEC and event.pid == successor:
                return (event.at - exited) / 1e6
        raise TimeoutError(f"{ended} had no successor in {patience} s")

    def forget(self) -> None:
        """Throws away what has been told until now."""
        for _ in self._events(0.0):
            pass

    def _events(self, deadline: float) -> Iterator[Event]:
        while True:
            self._connection.settimeout(max(deadline - time.monotonic(), 1e-6))
            try:
                data = self._connection.recv(_BUFFER_BYTES)
            except TimeoutError:
                return
            what, _, at, *numbers = _EVENT.unpack_from(data, _HEADER.size + _MESSAGE.size)
            if what == _FORK:
                yield Event(what, at, numbers[1], numbers[3])
            elif what == _EXEC or (what == _EXIT and numbers[0] == numbers[1]):
                yield Event(what, at, numbers[1])


@contextmanager
def watch() -> Iterator[ProcessEvents]:
    """Watches until the block ends. Raises PermissionError for others than root."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_CONNECTOR) as connection:
        connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        connection.bind((0, _CN_IDX_PROC))
        _ask(connection, _LISTEN)
        try:
            yield ProcessEvents(connection)
        finally:
            _ask(connection, _IGNORE)


def _ask(connection: socket.socket, operation: int) -> None:
    body = struct.pack("=I", operation)
    message = _MESSAGE.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, len(body), 0) + body
    header = _HEADER.pack(_HEADER.size + len(message), _NLMSG_DONE, 0, 0, os.getpid())
    connection.send(header + message)
