"""What `deployex status` tells of the node: asked from real ones, and within a second at most."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.commands.tls import init
from deployex_cli.errors import NodeNotRegistered, NodeTimeout
from deployex_cli.otp.identity import Cookie, Target
from deployex_cli.otp.inspect import Application, NodeStatus, ask_all, inspect
from deployex_cli.otp.node import connect
from tests.beam import beam
from tests.tiny import TinyWorld, shell
from tests.world import eventually

SASL = ("-boot", "start_sasl")


@pytest.fixture
def tiny(tiny: TinyWorld) -> TinyWorld:
    """Its app is a node, or could be one."""
    del tiny.defaults["distribution"]
    tiny.configure()
    return tiny


def vm(*flags: str) -> str:
    """A release that is a bare VM with the node's name and cookie."""
    words = " ".join(f"'{flag}'" for flag in flags)
    return shell(
        'exec erl -noinput -sname "$RELEASE_NODE" -setcookie "$RELEASE_COOKIE"'
        f" -kernel inet_dist_use_interface '{{127,0,0,1}}' {words}"
    )


def started(tiny: TinyWorld, *flags: str, **environ: str) -> Any:
    """The node's part of the status, once the VM answers."""
    tiny.place(vm(*flags))
    tiny.supervise()
    return eventually(lambda: reachable(tiny, **environ))


def node_of(tiny: TinyWorld, **environ: str) -> Any:
    (one,) = tiny.run("status", "--json", env=environ).json["apps"]
    return one["node"]


def reachable(tiny: TinyWorld, **environ: str) -> Any:
    node = node_of(tiny, **environ)
    return node if node["reachable"] else None


def erl(source: str) -> str:
    """What Erlang prints."""
    return subprocess.check_output(["erl", "-noshell", "-eval", f"{source}, halt()."], text=True)


# --- a node that answers ------------------------------------------------------------------------


@pytest.mark.beam
def test_status_tells_what_the_node_says_of_itself(tiny: TinyWorld) -> None:
    node = started(tiny, *SASL, "+P", "4096", "+Q", "2048", "+t", "131072")
    assert node["name"] == f"{tiny.node}@{os.uname().nodename.partition('.')[0]}"
    assert node["otp_release"] == erl("io:format(erlang:system_info(otp_release))")
    assert node["tls"] is False
    assert (node["processes"]["limit"], node["ports"]["limit"]) == (4096, 2048)
    assert node["atoms"]["limit"] == 131072
    for what in ("processes", "atoms", "ports"):
        assert 0 < node[what]["used"] < node[what]["limit"]
    assert 1 << 20 < node["memory_bytes"] < 1 << 30
    assert 0 < node["uptime_ms"] < 120_000
    assert node["run_queue"] >= 0
    names = {app["name"]: app for app in node["applications"]}
    assert {name for name, app in names.items() if app["started"]} == {"kernel", "stdlib", "sasl"}
    version = erl(
        'application:load(sasl), {ok, V} = application:get_key(sasl, vsn), io:format("~s", [V])'
    )
    assert names["sasl"]["version"] == version
    assert node["release_handler"] == "ready"
    assert node["running_release"] == node["permanent_release"] is not None
    assert node["uptime_ms"] < node_of(tiny)["uptime_ms"]


@pytest.mark.beam
def test_people_get_the_same_in_short_rows(tiny: TinyWorld) -> None:
    node = started(tiny, *SASL, "+P", "4096")
    out = tiny.ok("status")
    rows = {line[1:20].strip(): line[20:].strip() for line in out.splitlines()}
    assert rows["node"] == f"{node['name']}, OTP {node['otp_release']}, no TLS"
    assert rows["running release"] == node["running_release"]
    used, _, rest = rows["processes"].partition(" of ")
    assert int(used) > 0
    assert rest == f"4096 ({100 * int(used) / 4096:.1f} %)"
    assert rows["VM memory"].endswith(" MiB")
    kernel = next(app for app in node["applications"] if app["name"] == "kernel")
    assert f"kernel {kernel['version']}, sasl" in rows["applications"]


@pytest.mark.beam
def test_a_node_that_speaks_tls_is_asked_over_tls_and_says_so(
    tiny: TinyWorld, tmp_path: Path
) -> None:
    init(str(tmp_path / "tls"), 825, time.time())
    options = ("-proto_dist", "inet_tls", "-ssl_dist_optfile", f"{tmp_path}/tls/inet_tls.conf")
    certificates = {"DEPLOYEX_OTP_TLS_CERT_PATH": str(tmp_path / "tls")}
    assert started(tiny, *options, **certificates)["tls"] is True
    assert "TLS" in tiny.run("status", env=certificates).out
    refused = node_of(tiny)
    assert (refused["reachable"], refused["reason"]) == (False, "tls_refused")


@pytest.mark.beam
def test_a_node_without_sasl_has_no_releases_to_tell_of(tiny: TinyWorld) -> None:
    node = started(tiny)
    assert node["release_handler"] == "none"
    assert node["running_release"] is node["permanent_release"] is None


@contextmanager
def bare_node(folder: Path, epmd_port: int, *flags: str) -> Iterator[Target]:
    name = f"st{os.getpid()}"
    with beam(folder, "-sname", name, *flags, epmd_port=epmd_port) as node:
        yield node.target


@pytest.mark.beam
def test_a_release_handler_that_is_busy_keeps_nothing_else_from_being_told(
    tmp_path: Path, epmd_port: int
) -> None:
    with bare_node(tmp_path, epmd_port, *SASL) as target, connect(target) as node:
        node.evaluate("sys:suspend(release_handler)")
        status = inspect(node, 1.0)
        assert (status.release_handler, status.running) == ("busy", None)
        assert "sasl" in [app.name for app in status.applications if app.started]
        node.evaluate("sys:resume(release_handler)")
        assert inspect(node, 1.0).release_handler == "ready"


@pytest.mark.beam
def test_an_application_that_is_loaded_and_not_started_is_told_apart(
    tmp_path: Path, epmd_port: int
) -> None:
    with bare_node(tmp_path, epmd_port) as target, connect(target) as node:
        node.evaluate("application:load(sasl)")
        found = {app.name: app for app in inspect(node, 1.0).applications}
    assert isinstance(found["sasl"], Application)
    assert not found["sasl"].started
    assert found["kernel"].started


@pytest.mark.beam
def test_a_hundred_questions_leave_no_atom_and_no_process_on_the_node(
    tmp_path: Path, epmd_port: int
) -> None:
    def ask(target: Target) -> NodeStatus:
        (answer,) = ask_all([lambda: target], 5.0)()
        assert isinstance(answer, NodeStatus)
        return answer

    with bare_node(tmp_path, epmd_port, *SASL) as target:
        for _ in range(3):
            before = ask(target)
        for _ in range(100):
            after = ask(target)
        # one for all of them: the name of a second connection, where the first is on its way out
        assert after.atoms.used <= before.atoms.used + 2
        assert after.processes.used <= before.processes.used + 5  # of connections on their way out


# --- a node that does not -----------------------------------------------------------------------


def test_what_does_not_run_or_may_not_be_asked_is_not_reachable_and_nobody_waits(
    tiny: TinyWorld,
) -> None:
    assert node_of(tiny)["reason"] == "not_running"
    tiny.configure('distribution = "none"')
    assert node_of(tiny)["reason"] == "distribution_none"
    assert "not reachable" not in tiny.ok("status")


@pytest.mark.beam
def test_why_a_running_app_is_not_reachable_is_said_in_one_line(tiny: TinyWorld) -> None:
    tiny.place()  # runs, and is no node
    tiny.supervise()
    node = node_of(tiny)
    assert node["reason"] == "node_not_registered"
    rows = [line for line in tiny.ok("status").splitlines() if "not reachable: " in line]
    assert len(rows) == 1
    tiny.configure("epmd_port = 1")
    assert node_of(tiny)["reason"] == "epmd_down"
    tiny.config.write_text(tiny.config.read_text() + "[apps.other]\n")
    rows = [line for line in tiny.ok("status").splitlines() if line.split()[:1] == ["tiny"]]
    assert "epmd down" in rows[0]


@pytest.mark.beam
def test_a_wrong_cookie_is_said_to_be_one(tiny: TinyWorld) -> None:
    script = shell(
        'exec erl -noinput -sname "$RELEASE_NODE"'
        " -kernel inet_dist_use_interface '{127,0,0,1}' -eval \"erlang:set_cookie(another)\""
    )
    tiny.place(script)
    tiny.supervise()
    eventually(lambda: node_of(tiny)["reason"] == "wrong_cookie")


@pytest.mark.beam
def test_a_vm_that_stands_still_costs_status_one_second_and_no_more(tiny: TinyWorld) -> None:
    started(tiny)
    begin = time.monotonic()
    tiny.ok("status")
    quick = time.monotonic() - begin
    tiny.kill(tiny.pid(), signal.SIGSTOP)
    try:
        begin = time.monotonic()
        node = node_of(tiny)
        took = time.monotonic() - begin
    finally:
        tiny.kill(tiny.pid(), signal.SIGCONT)
    assert (node["reason"], node["message"]) == (
        "node_timeout",
        "the node did not answer within 1 s",
    )
    assert 0.9 < took < quick + 2.0


def test_several_nodes_that_do_not_answer_share_the_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes connections and says nothing
        port = deaf.getsockname()[1]

        def target() -> Target:
            return Target("a@b", False, ("127.0.0.1",), Cookie(b"c"), port, None, None)

        def broken() -> Target:
            raise NodeNotRegistered("no such node")

        begin = time.monotonic()
        answers = ask_all([*[target] * 5, broken], 0.5)()
        assert 0.4 < time.monotonic() - begin < 1.5
    assert [type(answer) for answer in answers] == [*[NodeTimeout] * 5, NodeNotRegistered]
