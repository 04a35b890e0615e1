"""EPMD protocol: the port of a node by its name (ERTS, Distribution Protocol). Bytes only."""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

from deployex_cli.errors import NodeProtocolError

DEFAULT_PORT = 4369
MAX_ANSWER = 1024  # bytes: a name of 255, and what the node adds
_PORT_PLEASE2_REQ = 122
_PORT2_RESP = 119
_FIXED = 12  # bytes before the node's name


class Registered(NamedTuple):
    """A node that epmd knows."""

    port: int
    highest: int  # the newest handshake that it understands: 6 is OTP 23 and later


def port_request(name: str) -> bytes:
    """PORT_PLEASE2_REQ for a node's name without its host."""
    body = bytes([_PORT_PLEASE2_REQ]) + name.encode()
    return len(body).to_bytes(2, "big") + body


def port_answer(data: bytes, *, ended: bool) -> Registered | bool | None:
    """What PORT2_RESP says: the node, or False when there is none; None: more bytes are needed.

    Raises NodeProtocolError: this is no epmd's answer, or it has `ended` too early.
    """
    if len(data) >= 2 and data[0] == _PORT2_RESP and data[1] != 0:
        return False
    if len(data) >= _FIXED and data[0] == _PORT2_RESP:
        port, _, _, highest = unpack_from(">HBBH", data, 2)
        if port == 0:
            raise NodeProtocolError("epmd told port 0")
        return Registered(port, highest)
    if ended or len(data) >= _FIXED or data[:1] not in (b"", bytes([_PORT2_RESP])):
        raise NodeProtocolError("what answers at epmd's port is no epmd")
    return None
