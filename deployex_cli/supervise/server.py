"""The control socket: clients that cannot block anybody, each with one request and one answer."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from deployex_cli.supervise.control import MAX_LINE

MAX_CLIENTS = 64  # one more, and the one that was to be dropped first is
PATIENCE_SECONDS = 10.0  # how long a client may take to say what it wants
_BACKLOG = 64
_BLOCK = 4096  # bytes that are read at a time
_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7): pid, uid, gid


class Client:
    """One connection: what it has said so far, and what it has still to be told."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.heard = b""
        self.unsent = b""
        self.descriptors: list[int] = []
        self.deadline: float | None = deadline  # None: it waits for us
        self.open = True


class ControlServer:
    """Listens on a unix socket, and hands each whole request to `handle(client, request)`."""

    def __init__(
        self,
        path: str,
        poller: select.epoll,
        handle: Callable[[Client, dict[str, Any]], None],
        clock: Callable[[], float],
        listener: int | None = None,
    ) -> None:
        self._path = path
        self._poller = poller
        self._handle = handle
        self._clock = clock
        self._clients: dict[int, Client] = {}
        if listener is not None:
            self._listener = socket.socket(fileno=listener)
        else:
            self._listener = _listen(path)
        self._listener.setblocking(False)
        self._listener.set_inheritable(False)
        poller.register(self._listener.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Stops listening; what clients have still to be told is sent as far as it goes."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._poller.unregister(self._listener.fileno())
        self._listener.close()
        if os.path.lexists(self._path):
            os.unlink(self._path)

    def hand_over(self) -> int:
        """The listening socket's descriptor, for the program that takes our place by exec."""
        self._listener.set_inheritable(True)
        return self._listener.fileno()

    def take_back(self) -> None:
        """Undoes `hand_over`, when the exec failed."""
        self._listener.set_inheritable(False)

    def owns(self, descriptor: int) -> bool:
        """Whether an event of that descriptor is ours."""
        return descriptor == self._listener.fileno() or descriptor in self._clients

    def ready(self, descriptor: int, events: int) -> None:
        """Goes on with what the descriptor is ready for."""
        if descriptor == self._listener.fileno():
            self._accept()
            return
        client = self._clients[descriptor]
        try:
            if events & select.EPOLLOUT:
                self._send(client)
            elif client.deadline is not None:
                self._hear(client)
            elif events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(client)
        except OSError:
            self._drop(client)

    def has_clients(self) -> bool:
        """Whether somebody has still to be heard or answered; the silent are dropped in time."""
        return bool(self._clients)

    def answer(self, client: Client, answer: dict[str, Any]) -> None:
        """Tells the client, and ends the conversation; nothing happens when it has gone."""
        if client.open:
            client.unsent += json.dumps(answer).encode() + b"\n"
            try:
                self._send(client)
            except OSError:
                self._drop(client)

    def next_deadline(self) -> float | None:
        """When the first silent client is to be dropped, by the clock; None: nobody is heard."""
        deadlines = [c.deadline for c in self._clients.values() if c.deadline is not None]
        return min(deadlines, default=None)

    def drop_silent(self) -> None:
        """Drops the clients that took too long."""
        now = self._clock()
        for client in list(self._clients.values()):
            if client.deadline is not None and client.deadline <= now:
                self._drop(client)

    def _accept(self) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            self._drop(min(self._clients.values(), key=lambda c: c.deadline or self._clock()))
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # or epoll would not let us rest
                for client in list(self._clients.values())[:1]:
                    self._drop(client)
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(raw)[1] not in (0, os.geteuid()):
            connection.close()
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = Client(connection, self._clock() + PATIENCE_SECONDS)
        self._poller.register(connection.fileno(), select.EPOLLIN)

    def _hear(self, client: Client) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(client.connection, _BLOCK, 1)
        except BlockingIOError:
            return
        for descriptor in descriptors:  # recv_fds of Python 3.11 knows no flags
            os.set_inheritable(descriptor, False)
        client.descriptors += descriptors
        client.heard += data
        line, whole, _ = client.heard.partition(b"\n")
        if not data or len(client.heard) > MAX_LINE or len(client.descriptors) > 1:
            self._drop(client)
        elif whole:
            client.deadline = None
            self._poller.modify(client.connection.fileno(), 0)  # only its end is of interest
            try:
                request = json.loads(line)
                if not isinstance(request, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                self.answer(
                    client, {"ok": False, "error": f"the request is not understood: {error}"}
                )
                return
            self._handle(client, request)

    def _send(self, client: Client) -> None:
        try:
            sent = client.connection.send(client.unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        client.unsent = client.unsent[sent:]
        if not client.unsent:
            self._ignore_the_rest(client)
            self._drop(client)
        else:
            client.deadline = self._clock() + PATIENCE_SECONDS
            self._poller.modify(client.connection.fileno(), select.EPOLLOUT)

    def _ignore_the_rest(self, client: Client) -> None:
        """Reads what was said beyond the request: closed with that unread, the answer is lost."""
        try:
            for _ in range(MAX_LINE // _BLOCK):
                if not client.connection.recv(_BLOCK):
                    return
        except OSError:
            return  # all is read, or it has gone

    def _drop(self, client: Client) -> None:
        if not client.open:
            return
        client.open = False
        self._poller.unregister(client.connection.fileno())
        del self._clients[client.connection.fileno()]
        client.connection.close()
        for descriptor in client.descriptors:
            os.close(descriptor)
        client.descriptors = []


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.lexists(path):
        os.unlink(path)  # of a supervisor that was killed: we hold the lock that it held
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener
