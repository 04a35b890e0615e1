"""epmd, handshake and frames as bytes: whole, byte by byte, with more behind, cut and wrong."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.errors import BadTerm, ConnectionRefused, DeployexError, NodeProtocolError
from deployex_cli.otp import epmd, flags, framing, handshake
from deployex_cli.otp.terms import Atom, encode

ANSWER = b"w\0" + struct.pack(">HBBHHH", 4321, 77, 0, 6, 5, 3) + b"app\0\0"
NAMED = b"snamed:\0\7Q1@host" + struct.pack(">I", 9)
CHALLENGE = b"N" + struct.pack(">QIIH", flags.OURS, 1234, 5, 8) + b"app@host"


# --- epmd -------------------------------------------------------------------------------------


def test_epmd_is_asked_by_the_name_without_its_host() -> None:
    assert epmd.port_request("app") == b"\0\4zapp"


def test_epmds_answer_is_understood_byte_by_byte_and_with_more_behind() -> None:
    for end in range(12):
        assert epmd.port_answer(ANSWER[:end], ended=False) is None
        with pytest.raises(NodeProtocolError):
            epmd.port_answer(ANSWER[:end], ended=True)
    for end in range(12, len(ANSWER) + 1):
        assert epmd.port_answer(ANSWER[:end], ended=False) == epmd.Registered(4321, 6)
    assert epmd.port_answer(ANSWER + b"more", ended=False) == epmd.Registered(4321, 6)
    assert epmd.port_answer(b"w\1", ended=False) is False


@given(st.binary(max_size=40), st.booleans())
def test_no_answer_of_epmd_raises_anything_but_our_error(data: bytes, ended: bool) -> None:
    try:
        epmd.port_answer(data, ended=ended)
    except NodeProtocolError:
        pass


# --- the handshake ----------------------------------------------------------------------------


def test_our_flags_are_those_that_were_seen_to_work() -> None:
    assert flags.OURS == 0x6_0707_5FBC


def test_we_ask_for_a_name_and_tell_our_host_alone() -> None:
    expected = b"N" + struct.pack(">QIH", 0x6_0707_5FBC, 0, 4) + b"host"
    assert handshake.send_name("host") == expected


def test_the_peers_messages_are_read() -> None:
    assert handshake.read_status(NAMED) == ("Q1@host", 9)
    assert handshake.read_challenge(CHALLENGE) == ("app@host", flags.OURS, 1234, 5)


def test_the_proofs_are_of_cookie_and_challenge() -> None:
    reply = handshake.challenge_reply(b"monster", 1234, 99)
    assert reply == b"r" + struct.pack(">I", 99) + hashlib.md5(b"monster1234").digest()
    proof = b"a" + hashlib.md5(b"monster99").digest()
    assert handshake.proves(proof, b"monster", 99)
    assert not handshake.proves(proof, b"monster", 98)
    assert not handshake.proves(proof, b"other", 99)
    for wrong in (b"", b"a", proof[:-1], proof + b"x", b"b" + proof[1:]):
        with pytest.raises(NodeProtocolError):
            handshake.proves(wrong, b"monster", 99)


@pytest.mark.parametrize("status", [b"nok", b"not_allowed", b"alive"])
def test_a_node_that_does_not_want_us_has_its_own_error(status: bytes) -> None:
    with pytest.raises(ConnectionRefused, match=status.decode()):
        handshake.read_status(b"s" + status)


@pytest.mark.parametrize("status", [b"ok", b"ok_simultaneous", b"", b"named:", b"what"])
def test_a_node_that_gives_no_name_is_too_old_or_none(status: bytes) -> None:
    with pytest.raises(NodeProtocolError):
        handshake.read_status(b"s" + status)


@pytest.mark.parametrize("name", ["app", "@host", "app@", "", "a\nb@host", "a\x1b[2J@host"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    encoded = name.encode()
    message = b"N" + struct.pack(">QIIH", 0, 0, 0, len(encoded)) + encoded
    with pytest.raises(NodeProtocolError):
        handshake.read_challenge(message)


@pytest.mark.parametrize(
    ("message", "read"),
    [(NAMED, handshake.read_status), (CHALLENGE, handshake.read_challenge)],
    ids=["status", "challenge"],
)
def test_every_message_that_is_cut_short_is_refused(message: bytes, read: object) -> None:
    assert callable(read)
    for end in range(len(message)):
        with pytest.raises(NodeProtocolError):
            read(message[:end])


@given(st.binary(max_size=60))
def test_no_message_of_the_handshake_raises_anything_but_our_errors(data: bytes) -> None:
    for kind in (b"", b"s", b"snamed:", b"N"):
        for read in (handshake.read_status, handshake.read_challenge):
            try:
                read(kind + data)
            except (NodeProtocolError, ConnectionRefused):
                pass


# --- frames -----------------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=40), max_size=6),
    st.sampled_from([2, 4]),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_frames_are_the_same_however_they_arrive(
    messages: list[bytes], width: int, sizes: list[int]
) -> None:
    stream = b"".join(framing.frame(message, width) for message in messages)
    frames = framing.Frames(width, 100)
    found = []
    at = 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        frames.feed(stream[at : at + size])
        at += size
        while (frame := frames.next()) is not None:
            found.append(frame)
    assert found == messages
    assert frames.next() is None


def test_the_width_changes_between_two_frames_that_arrive_together() -> None:
    frames = framing.Frames(2, 100)
    frames.feed(b"\0\1a\0\0\0\1b")
    assert frames.next() == b"a"
    frames.width = 4
    assert frames.next() == b"b"


def test_a_frame_that_is_too_long_is_refused_by_its_length_alone() -> None:
    frames = framing.Frames(4, 100)
    frames.feed(b"\xff\xff\xff\xff")
    with pytest.raises(NodeProtocolError, match="4294967295 bytes"):
        frames.next()


def test_a_message_is_control_and_payload() -> None:
    packed = framing.pack((2, Atom(""), 1), (Atom("a"), b"b"))
    assert packed[:4] == (len(packed) - 4).to_bytes(4, "big")
    control, payload = framing.unpack(packed[4:])
    assert control == (2, "", 1)
    assert payload == encode((Atom("a"), b"b"))
    assert framing.unpack(framing.pack((4,))[4:]) == ((4,), b"")


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(BadTerm, match="is the most we send"):
        framing.pack((2,), bytes(framing.MAX_FRAME))


@given(st.binary(min_size=1, max_size=60))
def test_no_frame_raises_anything_but_our_errors(data: bytes) -> None:
    for frame in (data, b"p" + data, b"p\x83" + data, b"p\x83h" + data):
        try:
            framing.unpack(frame)
        except DeployexError as error:
            assert isinstance(error, NodeProtocolError | BadTerm)
