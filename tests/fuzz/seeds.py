"""Inputs to begin with: what a good peer sends, each tag that we read, and those that were kept.

kept/{target}.hex has an input a line: one for each way through a reader that a long run found, and
at its end whatever was found to be wrong, once it is.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from deployex_cli.otp import framing, handshake, terms
from deployex_cli.otp.terms import Atom

_NODE = b"w\6a@host"
_TERMS: list[Any] = [
    *(0, 255, -1, 2**31, -(2**64), 2**2100, 1.5, Atom("ok"), Atom("ä€"), b"", b"binary"),
    *("abc", "\u20ac", [], [1, [b"a"]], (), (1,) * 256, {}, {Atom("k"): {(1, "x"): 2}}),
    {"key": 1, (b"a", 2): [Atom("true")], 1.0: None},
    (Atom("badrpc"), (Atom("EXIT"), (Atom("undef"), [(Atom("m"), Atom("f"), [], [])]))),
]
_ENCODED = [
    b"M\0\0\0\2\3\xff\xe0",  # a bitstring
    b"X" + _NODE + bytes(12),  # pid
    b"Y" + _NODE + bytes(8),  # port
    b"x" + _NODE + bytes(12),
    b"Z\0\3" + _NODE + bytes(16),  # reference
    b"p\0\0\0\x09" + bytes(5),  # fun
    b"q" + b"w\5lists" + b"w\3seq" + b"a\2",
    b"d\0\2ok",
    b"s\2ok",
    b"v\0\2ok",
    b"l\0\0\0\1a\1a\2",  # improper list
    b"t\0\0\0\1l\0\0\0\1k\0\2abja\2",  # a list as a key
    b"i\0\0\0\1j",
    b"n\1\1\5",
    b"o\0\0\0\2\0\1\1",
    b"P\0\0\0\4x\x9c",  # compressed: refused
    *(b"l\0\0\0\1" * depth + b"j" * (depth + 1) for depth in (10, 199, 200)),
    *(b"h\1" * depth + b"a\1" for depth in (10, 199, 200)),
]


def seeds(name: str) -> list[bytes]:
    """Those of a target."""
    made = {"terms": _terms, "messages": _messages, "handshake": _handshake, "epmd": _epmd}[name]()
    file = kept(name)
    lines = file.read_text().splitlines() if file.exists() else []
    return made + [bytes.fromhex(line) for line in lines]


def kept(name: str) -> Path:
    """The file of a target's inputs that were kept."""
    return Path(__file__).parent / f"kept/{name}.hex"


def _terms() -> list[bytes]:
    return [terms.encode(term)[1:] for term in _TERMS] + _ENCODED


def _messages() -> list[bytes]:
    ours, reference = terms.pid("a@host", 1, 2), terms.reference("a@host", 3, 2)
    stream = framing.TICK + b"".join(
        (
            framing.pack((2, Atom(""), ours), (reference, [1, {Atom("a"): b"b"}])),
            framing.pack((21, Atom("rex"), ours, reference, Atom("noproc"))),
            framing.pack((6, ours, Atom(""), Atom("rex")), b"x" * 300),
        )
    )
    hands = b"".join(framing.frame(message, 2) for message in _handshake())
    return [bytes([how]) + stream for how in (0, 14, 254)] + [b"\1" + hands, b"\xff" + hands]


def _handshake() -> list[bytes]:
    named = b"snamed:" + struct.pack(">H", 7) + b"ab@host" + bytes(4)
    challenge = b"N" + struct.pack(">QIIH", 0x607075FBC, 1, 2, 8) + b"app@host"
    proof = b"a" + handshake.digest(b"other", 7)
    return [named, challenge, proof, b"sok", b"snok", b"snot_allowed", b"salive"]


def _epmd() -> list[bytes]:
    return [b"w\0" + struct.pack(">HBBHHH", 4321, 77, 0, 6, 5, 3) + b"app\0\0", b"w\1"]
