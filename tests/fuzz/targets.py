"""What is fuzzed: for each reader of a peer's bytes, a function that fails on what must not be.

A reader may answer, or raise our own error. Any other exception leaves it, and is found. So is one
that our error hides but that tells of memory, of depth or of a mistake of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from deployex_cli.errors import BadTerm, DeployexError
from deployex_cli.otp import epmd, framing, handshake, terms

_HIDDEN = (MemoryError, RecursionError, AssertionError, AttributeError, NameError)


class Found(AssertionError):
    """A reader did what it must never do."""


def ours(error: DeployexError) -> None:
    """Fails if our error stands for a trouble that should not have come up at all."""
    if isinstance(error.__context__, _HIDDEN):
        raise Found(f"{type(error.__context__).__name__} behind {error!r}")


def read_term(data: bytes) -> None:
    """One term; what was read can be sent, is read again, and is then the same bytes."""
    whole = b"\x83" + data
    try:
        term = terms.decode(whole)
        assert terms.end_of_term(whole, 0) == len(whole)
    except BadTerm as error:
        ours(error)
        return
    try:
        sent = terms.encode(term)
    except BadTerm as error:  # an atom of more than 255 characters
        ours(error)
        return
    if terms.encode(terms.decode(sent)) != sent:
        raise Found("a term that is another one after it was sent and read")
    try:
        assert isinstance(terms.text(term), str)
    except BadTerm as error:
        ours(error)


def read_messages(data: bytes) -> None:
    """A connection's frames, whole and in parts; each is unpacked, its payload decoded.

    The first byte tells the width of a length and the size of the parts, 32 of them at most.
    """
    if not data:
        return
    width, part = (2 if data[0] & 1 else 4), max(1 + (data[0] >> 1), len(data) // 32)
    stream = data[1:]
    whole, parts = framing.Frames(width, 4096), framing.Frames(width, 4096)
    whole.feed(stream)
    at_once = _frames(whole)
    piecemeal: list[bytes | str] = []
    for at in range(0, len(stream), part):
        parts.feed(stream[at : at + part])
        piecemeal += _frames(parts)
        if piecemeal and isinstance(piecemeal[-1], str):
            break
    if at_once != piecemeal:
        raise Found("frames that depend on how they arrive")
    for message in at_once:
        if isinstance(message, str) or not message:  # the error, a tick
            continue
        try:
            control, payload = framing.unpack(message)
            assert control
            if payload:
                terms.decode(payload)
        except DeployexError as error:
            ours(error)


def _frames(frames: framing.Frames) -> list[bytes | str]:
    """All that are whole; an error's words at the end."""
    found: list[bytes | str] = []
    try:
        while (message := frames.next()) is not None:
            found.append(message)
    except DeployexError as error:
        ours(error)
        found.append(str(error))
    return found


def shake_hands(data: bytes) -> None:
    """Each message of the handshake; names are such that they can be shown and looked up."""
    readers: list[Callable[[], Any]] = [
        lambda: handshake.read_status(data),
        lambda: handshake.read_challenge(data),
        lambda: handshake.proves(data, b"cookie", 7),
    ]
    for reader in readers:
        try:
            answer = reader()
        except DeployexError as error:
            ours(error)
            continue
        if answer is True:
            raise Found("a proof of a cookie that nobody told")
        if answer is not False:
            alive, _, host = answer.name.partition("@")
            assert alive and host and answer.name.isprintable()
            assert 0 <= answer.creation < 2**32


def ask_epmd(data: bytes) -> None:
    """epmd's answer, as it grows; what it says once does not change when more comes."""
    said: epmd.Registered | bool | None = None
    for end in range(min(len(data), 16) + 1):
        try:
            answer = epmd.port_answer(data[:end], ended=False)
        except DeployexError as error:
            ours(error)
            if said is not None:
                raise Found("epmd's answer is none when more of it has come") from error
            return
        if said is not None and answer != said:
            raise Found("epmd's answer changes when more of it has come")
        said = answer
    if said is None:
        try:
            epmd.port_answer(data, ended=True)
        except DeployexError as error:
            ours(error)
        else:
            raise Found("an answer of epmd that was cut short is taken")
    elif said is not False:
        assert isinstance(said, epmd.Registered)
        assert 0 < said.port < 65_536


class Target(NamedTuple):
    """A function to fuzz."""

    run: Callable[[bytes], None]
    share: int  # of all inputs, in percent
    longest: int  # bytes of an input


TARGETS = {
    "terms": Target(read_term, 50, 4096),
    "messages": Target(read_messages, 15, 1024),
    "handshake": Target(shake_hands, 20, 600),
    "epmd": Target(ask_epmd, 15, 64),
}
