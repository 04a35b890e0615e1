"""Frames and messages on a connection (ERTS, Distribution Protocol). Bytes only.

A frame has its length before it: 2 bytes in the handshake on TCP, 4 bytes on TLS and afterwards.
An empty frame is a tick. All others are 112, 131 Control [131 Payload] (Distribution Header, "when
the atom cache is not used").
"""

from __future__ import annotations

from typing import Any

from deployex_cli.errors import BadTerm, NodeProtocolError
from deployex_cli.otp import terms

MAX_FRAME = 8 * 2**20  # bytes
TICK = bytes(4)
_PASS_THROUGH = 112


class Frames:
    """Cuts what arrives into frames. `width` and `limit` may be changed between two of them."""

    def __init__(self, width: int, limit: int) -> None:
        self.width = width  # bytes of a frame's length
        self.limit = limit  # bytes of the longest frame
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes what has arrived."""
        self._data += data

    def next(self) -> bytes | None:
        """The next whole frame without its length; None: more must arrive.

        Raises NodeProtocolError for one that is too long, before it has arrived.
        """
        if len(self._data) < self.width:
            return None
        length = int.from_bytes(self._data[: self.width], "big")
        if length > self.limit:
            raise NodeProtocolError(f"a frame of {length} bytes: {self.limit} is the most we read")
        end = self.width + length
        if len(self._data) < end:
            return None
        frame = bytes(self._data[self.width : end])
        del self._data[:end]
        return frame


def frame(message: bytes, width: int) -> bytes:
    """The message with its length before it."""
    return len(message).to_bytes(width, "big") + message


def pack(control: tuple[Any, ...], *payload: Any) -> bytes:
    """A whole frame of a control message and its payload. Raises BadTerm."""
    body = bytes([_PASS_THROUGH]) + b"".join(map(terms.encode, (control, *payload)))
    if len(body) > MAX_FRAME:
        raise BadTerm(f"a message of {len(body)} bytes: {MAX_FRAME} is the most we send")
    return frame(body, 4)


def unpack(message: bytes) -> tuple[tuple[Any, ...], bytes]:
    """The control message of a frame, and its payload, not yet decoded; b"": there is none.

    Raises NodeProtocolError and BadTerm.
    """
    if message[0] != _PASS_THROUGH:
        raise NodeProtocolError(f"a frame of type {message[0]}, which we have not asked for")
    end = terms.end_of_term(message, 1)
    control = terms.decode(message[1:end])
    if not isinstance(control, tuple) or not control or not isinstance(control[0], int):
        raise NodeProtocolError("a control message that is none")
    return control, message[end:]
