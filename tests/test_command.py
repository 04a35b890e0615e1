"""What is executed to run a release, and with which environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployex_cli.config import AppConfig
from deployex_cli.supervise.command import (
    app_environment,
    remote_command,
    start_command,
    write_cookie_file,
)
from tests.configured import app_in

RELEASE = "/srv/releases/1-1.0.0"
# HOT_UPGRADE.md, "Starting and stopping a release", name by name
GONE = (
    *("RELEASE_ROOT", "RELEASE_NAME", "RELEASE_VSN", "RELEASE_COMMAND", "RELEASE_PROG"),
    *("RELEASE_MODE", "RELEASE_SYS_CONFIG", "RELEASE_VM_ARGS", "RELEASE_REMOTE_VM_ARGS"),
    *("RELEASE_BOOT_SCRIPT", "RELEASE_BOOT_SCRIPT_CLEAN", "RELEASE_TMP"),
    *("RELDIR", "ROOTDIR", "BINDIR", "EMU", "PROGNAME", "ELIXIR_ERL_OPTIONS", "HEART_COMMAND"),
    *("ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS", "ERL_OTP27_FLAGS", "ERL_OTP9_FLAGS"),
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
    *("INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MANAGERPID"),
    *("DEPLOYEX_ERLANG_COOKIE", "DEPLOYEX_SECRET_KEY_BASE"),
)
REPLACED = ("RELEASE_NODE", "RELEASE_COOKIE", "RELEASE_DISTRIBUTION")
KEPT = (
    *("RELEASE_NOTES", "RELEASE_ROOT_URL", "MY_RELEASE_VSN", "release_vsn", "RELEASE"),
    *("ERL_CRASH_DUMP", "ERL_EPMD_PORT", "ERL_LIBS", "ERL_OTP_FLAGS", "XERL_OTP27_FLAGS"),
    *("ROOTDIR2", "PATH", "HOME", "LANG", "PORT", "SECRET_KEY_BASE"),
)


def elixir(folder: Path, lines: str = "") -> AppConfig:
    return app_in(folder, f'language = "elixir"\n{lines}')


@pytest.mark.parametrize("language", ["elixir", "erlang", "gleam"])
@pytest.mark.parametrize("name", GONE)
def test_what_a_script_or_a_supervisor_left_behind_is_gone(
    tmp_path: Path, name: str, language: str
) -> None:
    app = app_in(tmp_path, f'language = "{language}"')
    assert name not in app_environment(app, {name: "inherited", "A": "1"})


@pytest.mark.parametrize("name", GONE)
def test_it_is_gone_even_when_it_is_named_to_be_inherited(tmp_path: Path, name: str) -> None:
    app = elixir(tmp_path, f'env_inherit = ["{name}"]')
    assert name not in app_environment(app, {name: "inherited"})


@pytest.mark.parametrize("name", [*GONE, *REPLACED])
def test_the_apps_own_table_wins_over_all(tmp_path: Path, name: str) -> None:
    app = elixir(tmp_path, f'cookie = "monster"\nenv = {{ {name} = "a b \'c\' $d" }}')
    assert app_environment(app, {name: "inherited"})[name] == "a b 'c' $d"


@pytest.mark.parametrize("name", KEPT)
def test_an_apps_own_variable_stays_whatever_it_begins_with(tmp_path: Path, name: str) -> None:
    value = "x=1 'q' $y\n\t\u00fc"
    assert app_environment(elixir(tmp_path), {name: value})[name] == value


@pytest.mark.parametrize("name", REPLACED)
def test_where_we_give_the_node_its_name_an_inherited_one_does_not_count(
    tmp_path: Path, name: str
) -> None:
    assert app_environment(elixir(tmp_path), {name: "inherited"}).get(name) != "inherited"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", {"RELEASE_NODE": "counter", "RELEASE_DISTRIBUTION": "sname"}),
        ('node = "c@10.0.0.5"', {"RELEASE_NODE": "c@10.0.0.5", "RELEASE_DISTRIBUTION": "name"}),
        (
            'cookie = "monster"',
            {
                "RELEASE_NODE": "counter",
                "RELEASE_DISTRIBUTION": "sname",
                "RELEASE_COOKIE": "monster",
            },
        ),
        ('language = "erlang"', {"RELEASE_NODE": "counter", "RELX_REPLACE_OS_VARS": "true"}),
        ('language = "gleam"\ncookie = "monster"', {}),
        ('env = { B = "2", A = "" }', {"RELEASE_NODE": "counter", "A": "", "B": "2"}),
    ],
)
def test_from_an_empty_environment_comes_what_each_language_needs(
    tmp_path: Path, lines: str, expected: dict[str, str]
) -> None:
    env = app_environment(app_in(tmp_path, lines), {})
    assert env.pop("HOME") == app_in(tmp_path, lines).paths.work, "Erlang needs one"
    if "elixir" in app_in(tmp_path, lines).language:
        expected = {"RELEASE_DISTRIBUTION": "sname", **expected}
    assert env == expected


def test_only_what_is_named_is_inherited_and_what_nothing_runs_without(tmp_path: Path) -> None:
    app = elixir(tmp_path, 'env_inherit = ["AWS_REGION", "MISSING"]\nenv = { PORT = "1" }')
    inherited = {"AWS_REGION": "eu", "AWS_SECRET": "s", "PATH": "/bin", "HOME": "/root"}
    assert app_environment(app, inherited) == {
        "AWS_REGION": "eu",
        "PATH": "/bin",
        "HOME": "/root",
        "PORT": "1",
        "RELEASE_NODE": "counter",
        "RELEASE_DISTRIBUTION": "sname",
    }


def test_to_inherit_nothing_is_not_to_inherit_everything(tmp_path: Path) -> None:
    env = app_environment(elixir(tmp_path, "env_inherit = []"), {"PATH": "/bin", "OTHER": "1"})
    assert "OTHER" not in env
    assert env["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("language", "start", "remote"),
    [("elixir", "start", "remote"), ("erlang", "foreground", "remote_console")],
)
def test_a_release_is_started_and_opened_by_its_own_script(
    tmp_path: Path, language: str, start: str, remote: str
) -> None:
    app = app_in(tmp_path, f'language = "{language}"\ncookie = "monster"')
    script = f"{RELEASE}/bin/counter"
    started, opened = start_command(app, RELEASE, {}), remote_command(app, RELEASE, {})
    assert started.words == (script, start)
    assert opened.words == (script, remote)
    assert started.env == opened.env == app_environment(app, {})


def gleam(folder: Path, lines: str = "") -> AppConfig:
    return app_in(folder, f'language = "gleam"\n{lines}')


def shipment(folder: Path, *applications: str) -> str:
    release = folder / "1-1.0.0 [x]"  # brackets are no pattern here
    for name in applications:
        (release / "erlang-shipment" / name / "ebin").mkdir(parents=True)
    return str(release)


def test_a_gleam_shipment_is_run_by_erl_with_all_its_code_and_our_node_name(
    tmp_path: Path,
) -> None:
    release = shipment(tmp_path, "gleam_stdlib", "counter")
    words = start_command(gleam(tmp_path), release, {"PATH": ""}).words
    assert words == (
        "erl",
        *("-pa", f"{release}/erlang-shipment/counter/ebin"),
        *("-pa", f"{release}/erlang-shipment/gleam_stdlib/ebin"),
        "-noshell",
        *("-sname", "counter"),
        *("-eval", "counter@@main:run(counter)"),
    )


@pytest.mark.parametrize(("node", "kind"), [("counter", "-sname"), ("c@10.0.0.5", "-name")])
def test_a_gleam_node_has_a_short_name_or_a_long_one(tmp_path: Path, node: str, kind: str) -> None:
    app = gleam(tmp_path, f'node = "{node}"')
    started = start_command(app, RELEASE, {}).words
    assert started[started.index(kind) + 1] == node
    opened = remote_command(app, RELEASE, {}).words
    own = opened[opened.index(kind) + 1]
    assert own.partition("@")[1:] == node.partition("@")[1:], "both sides are of one kind"
    assert opened[-2:] == ("-remsh", node)


def test_erl_is_looked_for_on_the_apps_own_path_and_never_in_a_relative_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "second/erl").touch(0o755)
    (tmp_path / "first/erl").touch(0o644)
    monkeypatch.chdir(tmp_path / "second")
    app = gleam(tmp_path, f'env = {{ PATH = ".:{tmp_path}/first::{tmp_path}/second" }}')
    words = start_command(app, RELEASE, {"PATH": "/nowhere"}).words
    assert words[0] == f"{tmp_path}/second/erl"


def test_gleams_cookie_stands_in_a_file_for_us_alone_and_on_no_command_line(
    tmp_path: Path,
) -> None:
    app = gleam(tmp_path, 'cookie = "monster"')
    work = Path(app.paths.work)
    work.mkdir(parents=True)
    write_cookie_file(app)
    write_cookie_file(app)
    file = work / ".erlang.cookie"
    assert file.read_text() == "monster"
    assert file.stat().st_mode & 0o777 == 0o400
    for command in (start_command(app, RELEASE, {}), remote_command(app, RELEASE, {})):
        assert "monster" not in " ".join(command.words)
        assert "monster" not in command.env.values()
    assert str(file) in " ".join(start_command(app, RELEASE, {}).words)
    assert remote_command(app, RELEASE, {}).env["HOME"] == str(work)


def test_without_a_cookie_a_gleam_shell_keeps_the_home_that_holds_one(tmp_path: Path) -> None:
    assert remote_command(gleam(tmp_path), RELEASE, {"HOME": "/root"}).env["HOME"] == "/root"


@pytest.mark.parametrize(
    "lines",
    [
        'language = "gleam"',
        *(f'language = "{x}"\ncookie = "monster"' for x in ("elixir", "erlang")),
    ],
)
def test_only_gleams_cookie_needs_a_file(tmp_path: Path, lines: str) -> None:
    app = app_in(tmp_path, lines)
    Path(app.paths.work).mkdir(parents=True)
    write_cookie_file(app)
    assert list(Path(app.paths.work).iterdir()) == []
