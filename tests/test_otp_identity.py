"""Who a running node is: learnt from real VMs of all kinds; and where the cookie comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployex_cli.errors import WrongCookie
from deployex_cli.otp.identity import Cookie, configured_cookie, target_of
from deployex_cli.otp.node import connect
from tests.beam import COOKIE, beam, epmd, free_port
from tests.configured import app_in
from tests.world import World

HERE = os.uname().nodename.partition(".")[0]
_NOBODY = 2**22 + 1  # no process has this pid
IPV6 = ("-kernel", "inet_dist_use_interface", "{0,0,0,0,0,0,0,1}")


@pytest.fixture(scope="module")
def mapper() -> Iterator[int]:
    """The port of an epmd that listens on both loopback addresses."""
    port = free_port()
    with epmd(port, "127.0.0.1,::1"):
        yield port


def tag() -> str:
    return f"id_{os.getpid()}"


# --- real nodes ---------------------------------------------------------------------------------


@pytest.mark.beam
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("-sname", tag()), f"{tag()}@{HERE}"),
        (("-sname", f"{tag()}@localhost"), f"{tag()}@localhost"),
        (("-name", f"{tag()}@127.0.0.1"), f"{tag()}@127.0.0.1"),
        (("-name", f"{tag()}@localhost"), f"{tag()}@localhost"),
        (("-proto_dist", "inet6_tcp", "-name", f"{tag()}@::1", *IPV6), f"{tag()}@::1"),
        (("-proto_dist", "inet6_tcp", "-sname", f"{tag()}@localhost", *IPV6), f"{tag()}@localhost"),
        (("-sname", tag(), "-sname", "second", "-hidden"), f"{tag()}@{HERE}"),
    ],
    ids=["short", "short with host", "address", "long", "IPv6", "short IPv6", "twice"],
)
def test_a_nodes_name_is_learnt_and_leads_to_it(
    tmp_path: Path, mapper: int, flags: tuple[str, ...], name: str
) -> None:
    with beam(tmp_path, *flags, epmd_port=mapper, lines='node = "something_else"') as erl:
        target = erl.target
        assert (target.name, target.epmd_port, target.tls) == (name, mapper, None)
        assert target.exact == ("@" in "".join(flags))
        with connect(target) as node:
            assert node.name == erl.name == name
            assert node.call("erlang", "node", []) == name


@pytest.mark.beam
def test_a_node_without_epmd_is_found_by_its_own_port_or_the_configured_one(
    tmp_path: Path, mapper: int
) -> None:
    one, two = free_port(), free_port()
    nobody = {"ERL_EPMD_PORT": str(free_port())}
    flags = ("-start_epmd", "false", "-erl_epmd_port", str(one), "-sname", "without_1")
    with beam(tmp_path, *flags, epmd_port=mapper, env=nobody) as erl:
        assert erl.target.dist_port == one
        with connect(erl.target) as node:
            assert node.name == erl.name
        app = erl.app._replace(dist_port=two)
        assert target_of(app, erl.pid, {}).dist_port == two  # what is configured counts
        configured = app_in(tmp_path, f'dist_port = {one}\nnode = "without_1"\ncookie = "{COOKIE}"')
        with connect(target_of(configured, _NOBODY, {})) as node:
            assert node.name == erl.name


@pytest.mark.beam
def test_another_address_is_the_configured_one(tmp_path: Path, mapper: int) -> None:
    away = ("-kernel", "inet_dist_use_interface", "{127,0,0,2}")
    lines = 'connect_host = "127.0.0.2"'
    port = free_port()
    with (
        epmd(port, "127.0.0.2"),
        beam(tmp_path, "-sname", tag(), *away, epmd_port=port, lines=lines) as erl,
    ):
        assert erl.target.hosts == ("127.0.0.2",)
        with connect(erl.target) as node:
            assert node.name == erl.name


@pytest.mark.beam
def test_the_cookie_on_the_vms_own_command_line_counts_over_all_else(
    tmp_path: Path, mapper: int
) -> None:
    lines = 'cookie = "of_the_configuration"'
    with beam(tmp_path, "-sname", tag(), epmd_port=mapper, lines=lines) as erl:
        assert erl.target.cookie == Cookie(COOKIE.encode())
        connect(erl.target).close()


@pytest.mark.beam
@pytest.mark.parametrize("twice", [False, True])
def test_a_vm_that_is_told_none_or_two_reads_the_file_in_its_home_and_so_do_we(
    tmp_path: Path, mapper: int, twice: bool
) -> None:
    file = tmp_path / "home/.erlang.cookie"
    file.parent.mkdir()
    file.write_text("of_the_home\n")
    file.chmod(0o400)
    flags = ("-setcookie", "a", "-setcookie", "b") if twice else ()
    with beam(tmp_path, "-sname", tag(), *flags, epmd_port=mapper, cookie=None) as erl:
        assert erl.target.cookie == Cookie(b"of_the_home")
        connect(erl.target).close()


@pytest.mark.beam
@pytest.mark.parametrize("example", ["counter", "erlang_counter", "gleam_counter"])
def test_a_releases_own_script_may_override_our_name_and_cookie(
    packages: Path, epmd_port: int, example: str
) -> None:
    world = World(packages, epmd_port, app=example)
    try:
        language = {"counter": "elixir"}.get(example, example.partition("_")[0])
        world.configure(f'language = "{language}"')
        world.publish("0.1.0", "--version", "0.1.0")
        world.ok("check")
        world.answers("0.1.0")
        (pid,) = world.vms()
        app = app_in(world.scratch, "", example)  # its configuration knows no name and no cookie
        assert (app.node, app.cookie) == (example, None)
        environ = {}
        if example == "gleam_counter":  # reads its cookie from a file: `ps` does not show it
            (world.scratch / "deployex-gleam_counter-cookie").write_text("monster")
            environ["CREDENTIALS_DIRECTORY"] = str(world.scratch)
        target = target_of(app, pid, environ)
        assert target.name == f"{world.node}@{HERE}"
        with connect(target) as node:
            assert node.name == target.name
        assert "monster" not in repr(target)
    finally:
        world.end()


def test_a_process_that_is_no_vm_or_is_gone_leaves_the_configuration(tmp_path: Path) -> None:
    app = app_in(tmp_path, 'node = "app@10.0.0.5"\ncookie = "monster"\nepmd_port = 4370')
    for pid in (os.getpid(), _NOBODY):
        target = target_of(app, pid, {})
        assert (target.name, target.exact) == ("app@10.0.0.5", True)
        assert target.hosts == ("127.0.0.1", "::1", "10.0.0.5")
        assert (target.cookie, target.epmd_port) == (Cookie(b"monster"), 4370)
        assert (target.dist_port, target.tls) == (None, None)


@pytest.mark.parametrize(
    "words",
    [
        *(
            "-sname",
            "-name",
            "-sname undefined",
            "-sname a\x1b[2J",
            "-sname -name",
            "-extra -sname x",
        ),
        *(
            "-setcookie",
            "-setcookie node of_another",
            "-setcookie a b c",
            "-setcookie a -setcookie",
        ),
        *("-epmd_port x", "-epmd_port 99999", "-epmd_port", "-erl_epmd_port -1", "-start_epmd"),
        *("-proto_dist", "-proto_dist tls", "- -- -", "-- -sname", "plain -- -root"),
    ],
)
def test_a_strange_command_line_leaves_the_configuration(tmp_path: Path, words: str) -> None:
    app = app_in(tmp_path, 'node = "app@localhost"\ncookie = "monster"')
    waiting = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", waiting, "--", "-root", "/", *words.split(" ")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        target = target_of(app, process.pid, {})
        process.stdin.close()
    assert (target.name, target.cookie) == ("app@localhost", Cookie(b"monster"))
    assert (target.epmd_port, target.dist_port, target.tls) == (4369, None, None)


def test_epmds_port_is_4369_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    app = app_in(tmp_path)
    assert target_of(app, _NOBODY, {}).epmd_port == 4369
    assert target_of(app, _NOBODY, {"ERL_EPMD_PORT": "4400"}).epmd_port == 4400
    for wrong in ("", "x", "0", "65536", "99999999", "-1"):
        assert target_of(app, _NOBODY, {"ERL_EPMD_PORT": wrong}).epmd_port == 4369


# --- cookies ------------------------------------------------------------------------------------


def cookie_file(folder: Path, text: bytes = b"of_the_file\n", mode: int = 0o600) -> Path:
    file = folder / "cookie"
    file.write_bytes(text)
    file.chmod(mode)
    return file


def test_a_configured_cookie_counts_over_a_file_and_a_file_over_a_credential(
    tmp_path: Path,
) -> None:
    file = cookie_file(tmp_path)
    (tmp_path / "deployex-counter-cookie").write_text("of_systemd")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    line = f'cookie_file = "{file}"'
    both = app_in(tmp_path, f'cookie = "of_the_key"\n{line}')
    assert configured_cookie(both, environ) == Cookie(b"of_the_key")
    assert configured_cookie(app_in(tmp_path, line), environ) == Cookie(b"of_the_file")
    assert configured_cookie(app_in(tmp_path), environ) == Cookie(b"of_systemd")
    assert configured_cookie(app_in(tmp_path, name="other"), environ) is None
    assert configured_cookie(app_in(tmp_path), {}) is None


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (b"hunter2", 0o640, "nobody else may read it"),
        (b"hunter2", 0o604, "nobody else may read it"),
        (b"hunter2\nhunter2", 0o600, "holds no cookie"),
        (b"hunter2" * 40, 0o600, "holds no cookie"),
        (b"hunter2" * 4000, 0o600, "holds no cookie"),
        (b"hunter2\xff", 0o600, "holds no cookie"),
        (b"\n", 0o600, "holds no cookie"),
    ],
)
def test_a_cookie_file_that_cannot_be_used_is_told_and_not_shown(
    tmp_path: Path, text: bytes, mode: int, said: str
) -> None:
    file = cookie_file(tmp_path, text, mode)
    with pytest.raises(WrongCookie) as caught:
        configured_cookie(app_in(tmp_path, f'cookie_file = "{file}"'), {})
    assert said in caught.value.message
    assert str(file) in caught.value.message
    assert "hunter2" not in caught.value.message


def test_a_cookie_file_that_is_missing_or_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, said in (
        ("missing", "cannot be read: No such file"),
        ("fifo", "is no file"),
        (".", "is no file"),
    ):
        with pytest.raises(WrongCookie, match=said):
            configured_cookie(app_in(tmp_path, f'cookie_file = "{tmp_path}/{name}"'), {})


@pytest.mark.root
def test_a_cookie_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    file = cookie_file(tmp_path)
    os.chown(file, 12345, 12345)
    with pytest.raises(WrongCookie, match="must belong to root or to us"):
        configured_cookie(app_in(tmp_path, f'cookie_file = "{file}"'), {})


def test_a_cookie_does_not_show_itself() -> None:
    cookie = Cookie(b"hunter2")
    assert "hunter2" not in f"{cookie} {cookie!r} {[cookie]}"
