"""Calls on a real node: what comes back, what is left there, and how each way to fail is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.errors import (
    BadRpc,
    BadTerm,
    CallTimeout,
    ConnectionRefused,
    EpmdDown,
    LostAfter,
    LostBefore,
    NodeNotRegistered,
    NodeUnreachable,
    OtherNode,
    WrongCookie,
)
from deployex_cli.otp import node as node_module
from deployex_cli.otp.identity import Cookie
from deployex_cli.otp.node import Node, connect
from deployex_cli.otp.terms import Atom, Opaque
from tests.beam import COOKIE, Beam, beam, epmd, free_port
from tests.world import eventually

pytestmark = pytest.mark.beam


@pytest.fixture(scope="module")
def erl(tmp_path_factory: pytest.TempPathFactory, epmd_port: int) -> Iterator[Beam]:
    """A node that all tests of this module share."""
    name = f"shared_{os.getpid()}"
    with beam(tmp_path_factory.mktemp("erl"), "-sname", name, epmd_port=epmd_port) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path, epmd_port: int) -> Iterator[Beam]:
    """A node that the test may end."""
    with beam(tmp_path, "-sname", f"own_{os.getpid()}", epmd_port=epmd_port) as made:
        yield made


# --- calls ------------------------------------------------------------------------------------


def test_a_call_returns_what_the_function_returns(erl: Beam) -> None:
    with connect(erl.target) as node:
        assert node.name == erl.name
        assert node.call("erlang", "node", []) == erl.name
        assert node.call("lists", "seq", [1, 300]) == list(range(1, 301))
        assert node.call("lists", "reverse", ["abc"]) == "cba"
        assert node.call("maps", "from_list", [[(Atom("a"), b"b")]]) == {"a": b"b"}
        assert node.call("erlang", "is_atom", [Atom("ä€")]) == "true"
        assert isinstance(node.call("erlang", "self", []), Opaque)
        big = b"x" * 2_000_000
        assert node.call("erlang", "byte_size", [big]) == len(big)
        assert node.call("binary", "copy", [b"x", len(big)]) == big


def test_what_went_out_and_came_back_is_the_same_in_erlangs_eyes(erl: Beam) -> None:
    terms: list[Any] = [
        *(0, -1, 255, 256, 2**31, -(2**31) - 1, 2**64, -(2**2000), 1.5, -0.0, 1e300),
        *(Atom("a"), Atom(""), Atom("ä€"), Atom("x" * 255), b"", b"\0\xff"),
        *("abc", "\u20ac", "x" * 65_536, [], [[], [b"a"]], (), (1,) * 300, {}),
        {Atom("k"): {(1, b"x"): [Atom("true")]}},
    ]
    with connect(erl.target) as node:
        for term in terms:
            pid = node.call("erlang", "self", [])
            sent = (term, pid)
            assert node.call("erlang", "hd", [[sent]]) == node.call("lists", "last", [[sent]])
            encoded = node.call("erlang", "term_to_binary", [term])
            assert node.call("erlang", "binary_to_term", [encoded]) == node.call(
                "erlang", "hd", [[term]]
            )


def test_expressions_are_computed_on_the_node(erl: Beam) -> None:
    source = "Y = X * 2,\n%% a comment\n{Y, [C || C <- Text, C =/= $b], node()}"
    with connect(erl.target) as node:
        for written in (source, source + ".", source + " .\n"):
            answer = node.evaluate(written, {"X": 21, "Text": "abc"})
            assert answer == (42, "ac", erl.name)
        assert node.evaluate("F = fun(A) -> A + 1 end, F(1)") == 2
        assert node.evaluate("length(S)", {"S": "\u20ac"}) == 1


def test_what_fails_on_the_node_is_told_with_its_reason(erl: Beam) -> None:
    with connect(erl.target) as node:
        for module, function, args, reason in (
            ("nobody", "knows", [], "undef"),
            ("erlang", "hd", [[]], "badarg"),
            ("erlang", "exit", [Atom("gone")], "gone"),
            ("erlang", "error", [(Atom("badmatch"), b"hunter2")], ("badmatch", b"hunter2")),
        ):
            with pytest.raises(BadRpc) as caught:
                node.call(module, function, args)
            assert caught.value.reason == reason
            assert f"{erl.name}: {module}:{function}/{len(args)} failed" in caught.value.message
            assert "hunter2" not in caught.value.message
        assert node.call("erlang", "throw", [b"a value"]) == b"a value"
        for source in ("1 = X", "1 +", "no_such:function()", 'a("'):
            with pytest.raises(BadRpc, match=r": badmatch$|: undef$"):
                node.evaluate(source, {"X": 2})
        assert node.evaluate("1 + 1") == 2


def test_what_is_no_term_is_refused_before_it_is_sent(erl: Beam) -> None:
    with connect(erl.target) as node:
        with pytest.raises(BadTerm):
            node.call("erlang", "hd", [[object()]])
        assert node.call("erlang", "hd", [[1]]) == 1


# --- what is left on the node -----------------------------------------------------------------


def test_a_hundred_connections_leave_nothing_on_the_node(erl: Beam) -> None:
    """No atom, no process, no node that nodes() names."""
    source = "{erlang:system_info(atom_count), erlang:system_info(process_count), nodes()}"
    alone = "nodes(hidden) =:= [Us]"
    with connect(erl.target) as watcher:
        us = {"Us": Atom(watcher._own)}
        names = set()

        def again() -> Any:
            with connect(erl.target) as node:
                names.add(node._own)
                node.call("erlang", "node", [])
            eventually(lambda: watcher.evaluate(alone, us) == "true")
            return watcher.evaluate(source)

        first = again()
        for _ in range(100):
            last = again()
        assert last == first
        assert last[2] == []
        assert len(names) == 1


def test_no_other_node_hears_of_us(erl: Beam, tmp_path: Path, epmd_port: int) -> None:
    with (
        beam(tmp_path, "-sname", f"other_{os.getpid()}", epmd_port=epmd_port) as other,
        connect(erl.target) as node,
        connect(other.target) as seen_from,
    ):
        assert node.call("net_kernel", "connect_node", [Atom(other.name)]) == "true"
        assert node.call("erlang", "nodes", []) == [other.name]
        assert seen_from.call("erlang", "nodes", []) == [erl.name]
        node.call("erlang", "disconnect_node", [Atom(other.name)])


# --- time -------------------------------------------------------------------------------------


def test_a_call_that_takes_too_long_is_told_and_goes_on_there(erl: Beam) -> None:
    with connect(erl.target) as node:
        source = "register(sleeper, self()), receive stop -> persistent_term:put(stopped, yes) end"
        with pytest.raises(CallTimeout, match=r"within 0\.2 s, and goes on there") as caught:
            node.evaluate(source, timeout=0.2)
        assert isinstance(caught.value, LostAfter)
        assert not isinstance(caught.value, NodeUnreachable)
        assert node.evaluate("is_pid(whereis(sleeper))") == "true"
        node.evaluate("sleeper ! stop")
        found = "persistent_term:get(stopped, no)"
        eventually(lambda: node.evaluate(found) == "yes")


def test_ticks_are_answered_while_a_call_runs(tmp_path: Path, epmd_port: int) -> None:
    # gives up after 2 to 4 s of silence, and ticks every second
    ticking = ("-kernel", "net_ticktime", "3")
    name = f"ticking_{os.getpid()}"
    with (
        beam(tmp_path, "-sname", name, *ticking, epmd_port=epmd_port) as erl,
        connect(erl.target) as node,
    ):
        assert node.call("timer", "sleep", [6000], timeout=20) == "ok"


def test_we_tick_while_a_node_that_does_not_computes(
    erl: Beam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "TICK_SECONDS", 0.05)
    count = (
        "[{_, I}] = [{N, I} || {N, I} <- element(2, net_kernel:nodes_info()), N =:= Us],"
        " proplists:get_value(in, I)"
    )
    with connect(erl.target) as node:
        bindings = {"Us": Atom(node._own)}
        before = node.evaluate(count, bindings)
        node.call("timer", "sleep", [1000])
        assert node.evaluate(count, bindings) - before > 10


def test_a_connection_that_was_idle_is_made_anew(
    erl: Beam, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(erl.target) as node:
        before = node._link
        node.call("erlang", "node", [])
        assert node._link is before
        monkeypatch.setattr(node_module, "IDLE_SECONDS", 0.0)
        assert node.call("erlang", "node", []) == erl.name
        assert node._link is not before


# --- losses -----------------------------------------------------------------------------------


def test_a_connection_lost_before_a_call_says_that_nothing_was_sent(erl: Beam) -> None:
    with connect(erl.target) as node, connect(erl.target) as other:
        other.call("erlang", "disconnect_node", [Atom(node._own)])
        with pytest.raises(LostBefore, match="lost before the call was sent"):
            node.call("persistent_term", "put", [Atom("before"), 1])
        assert other.evaluate("persistent_term:get(before, none)") == "none"
        assert node.call("erlang", "node", []) == erl.name


def test_a_connection_lost_after_a_call_says_that_nobody_knows(own: Beam) -> None:
    with connect(own.target) as node:
        with pytest.raises(LostAfter, match="nobody knows whether it was done") as caught:
            node.call("erlang", "halt", [0])
        assert not isinstance(caught.value, NodeUnreachable)
        own.process.wait(10)
        with pytest.raises(NodeNotRegistered):
            node.call("erlang", "node", [])


def test_a_vm_that_was_started_anew_is_told_before_anything_is_sent_to_it(
    own: Beam, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(own.target) as node, connect(own.target) as other:
        node.call("persistent_term", "put", [Atom("kept"), 1])
        other.call("init", "restart", [])

        def started_anew() -> bool:
            try:
                with connect(own.target) as third:
                    return bool(
                        third.evaluate("persistent_term:get(kept, none)") == "none"
                        and third.evaluate("element(1, init:get_status())") == "started"
                    )
            except (NodeUnreachable, LostAfter):
                return False

        eventually(started_anew)
        monkeypatch.setattr(node_module, "IDLE_SECONDS", 0.0)
        with pytest.raises(LostBefore, match="started anew; the call was not sent"):
            node.call("persistent_term", "put", [Atom("late"), 1])
        assert node.evaluate("persistent_term:get(late, none)") == "none"


def test_a_node_that_takes_no_calls_is_told_apart(own: Beam) -> None:
    with connect(own.target) as node:
        node.evaluate("erlang:unregister(rex)")
        with pytest.raises(LostBefore, match="takes no calls"):
            node.call("erlang", "node", [])


def test_close_ends_the_connection_and_may_be_said_twice(erl: Beam) -> None:
    node = connect(erl.target)
    hidden = "lists:member(Us, nodes(hidden))"
    with connect(erl.target) as other:
        bindings = {"Us": Atom(node._own)}
        assert other.evaluate(hidden, bindings) == "true"
        node.close()
        node.close()
        eventually(lambda: other.evaluate(hidden, bindings) == "false")


# --- no connection ----------------------------------------------------------------------------


def refused(target: Any, timeout: float = 5.0) -> NodeUnreachable:
    """The error of an attempt to connect, which leaves no socket open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NodeUnreachable) as caught:
        Node(target, timeout)
    assert len(os.listdir("/proc/self/fd")) == before
    assert COOKIE not in caught.value.message
    assert target.name in caught.value.message
    return caught.value


def test_a_wrong_cookie_is_told_and_not_shown(erl: Beam) -> None:
    error = refused(erl.target._replace(cookie=Cookie(b"hunter2")))
    assert type(error) is WrongCookie
    assert "does not accept our cookie" in error.message
    assert "hunter2" not in error.message + repr(error) + repr(erl.target)
    error = refused(erl.target._replace(cookie=None))
    assert type(error) is WrongCookie
    assert "no cookie is known" in error.message


def test_epmd_that_does_not_run_is_told(erl: Beam) -> None:
    error = refused(erl.target._replace(epmd_port=free_port()))
    assert type(error) is EpmdDown
    assert "dist_port" in error.message


def test_a_node_that_epmd_does_not_know_is_told(erl: Beam) -> None:
    error = refused(erl.target._replace(name="nobody@host"))
    assert type(error) is NodeNotRegistered
    assert "knows no node nobody" in error.message


def test_a_port_where_nobody_listens_is_told(erl: Beam) -> None:
    error = refused(erl.target._replace(dist_port=free_port()))
    assert type(error) is ConnectionRefused
    assert "nothing listens at port" in error.message


def test_another_node_at_the_port_is_told_and_gets_no_proof_of_the_cookie(
    erl: Beam, epmd_port: int
) -> None:
    with connect(erl.target) as node:
        (ports,) = [
            port
            for name, port in node.evaluate("element(2, erl_epmd:names())")
            if name == erl.name.partition("@")[0]
        ]
    for name in (f"somebody@{erl.name.partition('@')[2]}", f"{erl.name}.example.org"):
        error = refused(erl.target._replace(name=name, exact=True, dist_port=ports))
        assert type(error) is OtherNode
        assert erl.name in error.message


def test_a_host_without_an_address_is_told(erl: Beam) -> None:
    error = refused(erl.target._replace(hosts=("no.such.host.invalid",), dist_port=1))
    assert type(error) is ConnectionRefused
    assert "no.such.host.invalid has no address" in error.message


@contextmanager
def beam_of_an_epmd_that_ends(folder: Path, port: int) -> Iterator[tuple[Beam, Node]]:
    with ExitStack() as stack:
        mapper = stack.enter_context(ExitStack())
        mapper.enter_context(epmd(port))
        erl = stack.enter_context(beam(folder, "-sname", "alone", epmd_port=port))
        node = stack.enter_context(connect(erl.target))
        mapper.close()
        yield erl, node


def test_an_epmd_that_has_just_ended_leaves_the_connection_alone(
    tmp_path: Path,
) -> None:
    port = free_port()
    with beam_of_an_epmd_that_ends(tmp_path, port) as erl_and_node:
        erl, node = erl_and_node
        assert node.call("erlang", "node", []) == erl.name
        with pytest.raises(EpmdDown):
            connect(erl.target)


def test_a_connection_takes_milliseconds(erl: Beam) -> None:
    """A coarse guard: the figures are in tests/bench."""
    connect(erl.target).close()
    times = []
    for _ in range(20):
        began = time.perf_counter()
        with connect(erl.target) as node:
            node.call("erlang", "node", [])
        times.append(time.perf_counter() - began)
    assert sorted(times)[10] < 0.05
