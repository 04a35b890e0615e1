"""Peers that are no node, or turn against us: only our own errors, in time, with bounded memory."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployex_cli.errors import (
    CallTimeout,
    ConnectionRefused,
    LostAfter,
    LostBefore,
    NodeError,
    NodeProtocolError,
    NodeTimeout,
    NodeUnreachable,
    OtherNode,
    WrongCookie,
)
from deployex_cli.otp import framing, handshake, terms
from deployex_cli.otp.identity import Cookie, Target
from deployex_cli.otp.node import Node
from deployex_cli.otp.terms import Atom

COOKIE = b"monster"
OURS = "OURS@host"
Script = Callable[["Peer"], None]


class Peer:
    """The other end of a connection, which can play a node as far as a test wants."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def read(self, width: int) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(width), "big"))

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def name_us(self, name: str = "app@host") -> None:
        """As far as the challenge."""
        assert self.read(2).startswith(b"N")
        ours = OURS.encode()
        named = b"snamed:" + struct.pack(">H", len(ours)) + ours + bytes(4)
        encoded = name.encode()
        challenge = b"N" + struct.pack(">QIIH", 0, 1, 2, len(encoded)) + encoded
        self.send(framing.frame(named, 2) + framing.frame(challenge, 2))

    def connect(self) -> None:
        """The whole handshake."""
        self.name_us()
        reply = self.read(2)
        theirs = int.from_bytes(reply[1:5], "big")
        self.send(framing.frame(b"a" + handshake.digest(COOKIE, theirs), 2))

    def called(self) -> terms.Opaque:
        """Reads a call; its reference."""
        self.read(4)
        message = self.read(4)
        _, payload = framing.unpack(message)
        return terms.decode(payload)[1][1]

    def answer(self, data: bytes) -> None:
        self.send(framing.frame(data, 4))


@contextmanager
def peer(*scripts: Script) -> Iterator[Target]:
    """Something that listens, and plays one script with each connection, then closes it.

    At the end no descriptor is left open, ours least of all.
    """
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            for script in scripts:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(10)
                    try:
                        script(Peer(connection))
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield Target("app@host", True, ("127.0.0.1",), Cookie(COOKIE), 1, port, None)
        finally:
            listener.close()
            thread.join(15)
            assert not thread.is_alive()
            assert len(os.listdir("/proc/self/fd")) == before


def wait(peer: Peer) -> None:
    """Until we have gone."""
    while peer.connection.recv(65536):
        pass


def refused(target: Target, timeout: float = 5.0) -> NodeError:
    with pytest.raises(NodeUnreachable) as caught:
        Node(target, timeout)
    return caught.value


# --- in the handshake ---------------------------------------------------------------------------


def test_a_peer_that_says_nothing_costs_no_more_than_the_time_out() -> None:
    with peer(wait) as target:
        began = time.monotonic()
        assert type(refused(target, 0.3)) is NodeTimeout
        assert time.monotonic() - began < 2


def test_a_peer_that_drips_bytes_does_not_prolong_the_time_out() -> None:
    def drip(peer: Peer) -> None:
        peer.send(b"\x07\xff")
        while True:
            peer.send(b"x")
            time.sleep(0.01)

    with peer(drip) as target:
        began = time.monotonic()
        assert type(refused(target, 0.5)) is NodeTimeout
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NodeProtocolError),
        (b"\xff" * 100, NodeProtocolError),
        (framing.frame(b"", 2), NodeProtocolError),
        (framing.frame(b"sok", 2), NodeProtocolError),
        (framing.frame(b"snot_allowed", 2), ConnectionRefused),
        (framing.frame(b"snamed:\xff\xffx", 2), NodeProtocolError),
        (b"", ConnectionRefused),
        (b"\0", ConnectionRefused),
    ],
)
def test_what_is_no_node_is_told(said: bytes, kind: type[NodeError]) -> None:
    def script(peer: Peer) -> None:
        peer.read(2)
        peer.send(said)
        peer.connection.shutdown(socket.SHUT_WR)
        wait(peer)

    with peer(script) as target:
        assert type(refused(target)) is kind


def test_another_nodes_name_ends_it_before_our_proof() -> None:
    got = []

    def script(peer: Peer) -> None:
        peer.name_us("other@host")
        got.append(peer.connection.recv(100))

    with peer(script) as target:
        assert type(refused(target)) is OtherNode
    assert got == [b""]


def test_an_impostor_that_does_not_know_the_cookie_gets_no_call() -> None:
    got = []

    def script(peer: Peer) -> None:
        peer.name_us()
        peer.read(2)
        peer.send(framing.frame(b"a" + bytes(16), 2))
        got.append(peer.connection.recv(100))

    with peer(script) as target:
        assert type(refused(target)) is WrongCookie
    assert got == [b""]


def test_an_epmd_that_is_none_or_too_old_is_told() -> None:
    old = b"w\0" + struct.pack(">HBBHHH", 1, 77, 0, 5, 5, 3) + b"app\0\0"
    for said, words in (
        (old, "older than OTP 23"),
        (b"SSH-2.0\r\n", "is no epmd"),
        (b"w", "no epmd"),
    ):

        def script(peer: Peer, said: bytes = said) -> None:
            peer.read(2)
            peer.send(said)

        with peer(script) as target:
            assert target.dist_port is not None
            error = refused(target._replace(dist_port=None, epmd_port=target.dist_port))
            assert type(error) is NodeProtocolError
            assert words in error.message


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 3))
def test_no_bytes_in_the_handshake_raise_anything_but_our_errors(said: bytes, step: int) -> None:
    def script(peer: Peer) -> None:
        if step > 0:
            peer.read(2)
        if step == 2:
            said_before = b"snamed:" + struct.pack(">H", len(OURS)) + OURS.encode() + bytes(4)
            peer.send(framing.frame(said_before, 2))
        if step == 3:
            peer.send(framing.frame(said, 2))
        else:
            peer.send(said)
        peer.connection.shutdown(socket.SHUT_WR)
        wait(peer)

    with peer(script) as target:
        refused(target)


# --- in a call ------------------------------------------------------------------------------------


def answer_to(reference: terms.Opaque, value: object = 1) -> bytes:
    control = (2, Atom(""), terms.pid(OURS, 1, 0))
    return framing.pack(control, (reference, value))[4:]


def test_a_call_to_a_peer_that_plays_a_node_comes_back() -> None:
    def script(peer: Peer) -> None:
        peer.connect()
        reference = peer.called()
        other = terms.reference("x@y", 1, 1)
        for message in (
            b"",  # a tick
            answer_to(other, 2),  # another call's
            framing.pack((2, Atom(""), terms.pid(OURS, 9, 0)), (reference, 3))[4:],
            framing.pack((4,))[4:],
            framing.pack((21, Atom("rex"), terms.pid(OURS, 1, 0), other, Atom("noproc")))[4:],
            answer_to(reference),
        ):
            peer.answer(message)
        wait(peer)

    with peer(script) as target, Node(target) as node:
        assert node.call("erlang", "node", []) == 1


NONSENSE = {
    "no frame of ours": b"D\x83",
    "a fragment": b"\x83E" + bytes(30),
    "no term": b"p\x83\xff",
    "no control message": b"p\x83a\1",
    "a control message without a number": b"p\x83h\1j",
    "an answer without a payload": framing.pack((2, Atom(""), terms.pid(OURS, 1, 0)))[4:],
    "an answer that is no term": framing.pack((2, Atom(""), terms.pid(OURS, 1, 0)))[4:] + b"\x83y",
    "depth": b"p\x83" + b"l\0\0\0\1" * 100_000,
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_cannot_be_read_leaves_the_outcome_open(name: str) -> None:
    def script(peer: Peer) -> None:
        peer.connect()
        peer.called()
        peer.answer(NONSENSE[name])
        wait(peer)

    with peer(script) as target, Node(target) as node:
        with pytest.raises(LostAfter, match="cannot be read"):
            node.call("erlang", "node", [])
        assert node._link is None


def test_a_frame_of_four_gigabytes_is_refused_at_once() -> None:
    def script(peer: Peer) -> None:
        peer.connect()
        peer.called()
        peer.send(b"\xff\xff\xff\xff")
        for _ in range(64):
            peer.send(bytes(2**20))

    with peer(script) as target, Node(target) as node:
        tracemalloc.start()
        try:
            with pytest.raises(LostAfter, match="4294967295 bytes"):
                node.call("erlang", "node", [])
            assert tracemalloc.get_traced_memory()[1] < 4 * 2**20  # the peer's own megabyte, too
        finally:
            tracemalloc.stop()


def test_a_flood_of_ticks_and_strange_answers_does_not_prolong_a_call() -> None:
    strange = framing.frame(answer_to(terms.reference("x@y", 1, 1)), 4)

    def script(peer: Peer) -> None:
        peer.connect()
        while True:
            peer.send((bytes(4) + strange) * 100)

    with peer(script) as target, Node(target) as node:
        began = time.monotonic()
        with pytest.raises(LostAfter) as caught:
            node.call("erlang", "node", [], timeout=0.5)
        assert time.monotonic() - began < 5
        assert type(caught.value) is CallTimeout


def test_a_peer_that_does_not_read_is_told_as_not_sent() -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.connect()
        ended.wait(10)

    with peer(script) as target, Node(target) as node:
        try:
            with pytest.raises(LostBefore):
                node.call("erlang", "hd", [[bytes(8_000_000)]], timeout=1.0)
        finally:
            ended.set()


def test_a_peer_that_resets_the_connection_in_a_call_leaves_the_outcome_open() -> None:
    def script(peer: Peer) -> None:
        peer.connect()
        peer.called()
        linger = struct.pack("ii", 1, 0)
        peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with peer(script) as target, Node(target) as node, pytest.raises(LostAfter):
        node.call("erlang", "node", [])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([b"", b"p\x83", b"p\x83h\3a\2w\0X"]))
def test_no_bytes_in_a_call_raise_anything_but_our_errors(said: bytes, before: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.connect()
        peer.called()
        peer.answer(before + said)
        peer.connection.shutdown(socket.SHUT_WR)
        wait(peer)

    with peer(script) as target, Node(target) as node, pytest.raises(LostAfter):
        node.call("erlang", "node", [])
