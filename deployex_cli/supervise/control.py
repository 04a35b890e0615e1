"""Talking to a supervisor: one JSON line there, one JSON line back, over its unix socket.

The socket is in a folder of ours (0700), and the supervisor asks the kernel who the peer is.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from deployex_cli.config import AppConfig
from deployex_cli.errors import (
    MachineTrouble,
    SupervisorError,
    SupervisorLost,
    SupervisorUnavailable,
)
from deployex_cli.interrupts import aborting

MAX_LINE = 64 * 1024
_SLACK_SECONDS = 30.0  # beyond the longest that the supervisor itself may take


def ask(
    app: AppConfig, command: str, *, descriptor: int | None = None, timeout: float, **arguments: Any
) -> dict[str, Any]:
    """The supervisor's answer to `command`; `descriptor` is handed over with it.

    `timeout` is what the supervisor may take for it, in seconds. Raises SupervisorUnavailable:
    nobody listens; SupervisorLost: it was asked, and did not answer (in time); MachineTrouble: it
    could not start anything whatever; SupervisorError: the answer is an error.
    """
    line = json.dumps({"command": command, **arguments}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout + _SLACK_SECONDS)
        try:
            connection.connect(app.paths.socket)
        except OSError as error:
            raise SupervisorUnavailable(
                f"{app.name}: no supervisor runs ({error.strerror}); `deployex start` starts one"
            ) from None
        try:
            with aborting(lambda: connection.shutdown(socket.SHUT_RDWR)):
                _send_line(app, connection, line, descriptor)
                answer = _read_line(connection)
        except TimeoutError:
            raise SupervisorLost(
                f"{app.name}: the supervisor did not answer `{command}` in {timeout:g} s"
            ) from None
        except OSError as error:
            raise SupervisorLost(
                f"{app.name}: the supervisor was lost during `{command}`: {error.strerror}"
            ) from None
    if answer is None:
        raise SupervisorLost(f"{app.name}: the supervisor ended during `{command}`")
    if not answer.get("ok"):
        if answer.get("ours"):
            raise MachineTrouble(f"{app.name}: {answer['error']}")
        raise SupervisorError(f"{app.name}: {answer.get('error', 'the supervisor refused')}")
    return answer


def is_listening(app: AppConfig) -> bool:
    """Whether a supervisor accepts connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(app.paths.socket)
        except OSError:
            return False
    return True


def _send_line(
    app: AppConfig, connection: socket.socket, line: bytes, descriptor: int | None
) -> None:
    try:
        if descriptor is None:
            connection.sendall(line)
        else:
            socket.send_fds(connection, [line], [descriptor])
    except OSError as error:  # so nothing was asked
        raise SupervisorUnavailable(
            f"{app.name}: the supervisor was lost before it was asked: {error.strerror}"
        ) from None


def _read_line(connection: socket.socket) -> dict[str, Any] | None:
    data = b""
    while not data.endswith(b"\n"):
        chunk = connection.recv(4096)
        if not chunk:
            return None
        data += chunk
    answer: dict[str, Any] = json.loads(data)
    return answer


def notify(message: str) -> None:
    """Tells who started us, sd_notify(3): one datagram, and nothing when nobody asked."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.sendto(message.encode(), address)
        except OSError:
            return  # whoever it was has gone; supervising goes on
