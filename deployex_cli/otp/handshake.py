"""Distribution handshake, version 6, as the one who connects (ERTS, Distribution Protocol).

    we send_name -> node status -> node challenge -> we challenge_reply -> node challenge_ack

Functions of bytes, each of one message without its length. Those that read raise NodeProtocolError
for what is no such message, and take nothing for granted that the peer says.
"""

from __future__ import annotations

from struct import error as StructError
from struct import pack, unpack_from
from typing import NamedTuple

from deployex_cli.errors import ConnectionRefused, NodeProtocolError
from deployex_cli.otp import flags

MAX_MESSAGE = 2048  # bytes: two names of 255 characters, and the rest
_NAMED = b"named:"


class Named(NamedTuple):
    """What the peer calls us."""

    name: str
    creation: int


class Challenge(NamedTuple):
    """Who the peer says it is, and what we have to answer."""

    name: str
    flags: int
    challenge: int
    creation: int  # another one after each start of the VM


def send_name(host: str) -> bytes:
    """Asks for a name on `host`: with NAME_ME that is all that we say of ourselves."""
    name = host.encode()
    return b"N" + pack(">QIH", flags.OURS, 0, len(name)) + name


def read_status(message: bytes) -> Named:
    """The name that we were given. Raises ConnectionRefused when the node does not want us."""
    if message[:1] != b"s":
        raise NodeProtocolError("the handshake's status is missing")
    status = message[1:]
    if status.startswith(_NAMED):
        name, end = _name(message, 1 + len(_NAMED))
        (creation,) = _fields(">I", message, end)
        return Named(name, creation)
    if status in (b"nok", b"not_allowed", b"alive"):
        raise ConnectionRefused(f"the node refused us ({status.decode()})")
    raise NodeProtocolError("the node gave us no name: OTP 25 or later is needed")


def read_challenge(message: bytes) -> Challenge:
    """The peer's name, flags and challenge."""
    if message[:1] != b"N":
        raise NodeProtocolError("the handshake's challenge is missing")
    theirs, challenge, creation = _fields(">QII", message, 1)
    name, _ = _name(message, 17)
    return Challenge(name, theirs, challenge, creation)


def challenge_reply(cookie: bytes, theirs: int, ours: int) -> bytes:
    """Proves that we know the cookie, and asks the peer to."""
    return b"r" + ours.to_bytes(4, "big") + digest(cookie, theirs)


def proves(message: bytes, cookie: bytes, ours: int) -> bool:
    """Whether challenge_ack proves that the peer knows the cookie; takes the same time for all."""
    from _operator import _compare_digest  # hmac.compare_digest, without OpenSSL's 4 ms

    if message[:1] != b"a" or len(message) != 17:
        raise NodeProtocolError("the handshake's acknowledgement is missing")
    return _compare_digest(message[1:], digest(cookie, ours))


def digest(cookie: bytes, challenge: int) -> bytes:
    """MD5 of the cookie and the challenge in decimal: the protocol's own, and its only one."""
    try:
        import _md5 as algorithms  # hashlib would load OpenSSL, and be refused where FIPS rules
    except ImportError:
        import hashlib as algorithms
    found = algorithms.md5(cookie + str(challenge).encode(), usedforsecurity=False).digest()
    assert isinstance(found, bytes)
    return found


def _fields(layout: str, message: bytes, at: int) -> tuple[int, ...]:
    try:
        return unpack_from(layout, message, at)
    except StructError:
        raise NodeProtocolError("a message of the handshake is cut short") from None


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name with its length before it, and where it ends."""
    (length,) = _fields(">H", message, at)
    end = at + 2 + length
    name = message[at + 2 : end]
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    alive, at_sign, host = text.partition("@")
    if len(name) != length or not (alive and at_sign and host) or not text.isprintable():
        raise NodeProtocolError("a node's name is missing in the handshake")
    return text, end
