"""What is executed to run a release, and with which environment: no shell between us and the app.

The pure half (which words, which variables) of starting an app; supervisor.py does it.
"""

import glob
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from deployex_cli.config import AppConfig
from deployex_cli.layout import files

# What a release's script or a supervisor of ours leaves behind, by exact name: an app's own
# variable that merely begins with RELEASE stays. The scripts honour an inherited RELEASE_VSN over
# start_erl.data, and a RELEASE_ROOT over their own place.
SCRUBBED = frozenset(
    f"RELEASE_{name}"
    for name in (
        *("ROOT", "NAME", "VSN", "COMMAND", "PROG", "MODE", "SYS_CONFIG", "VM_ARGS"),
        *("REMOTE_VM_ARGS", "BOOT_SCRIPT", "BOOT_SCRIPT_CLEAN", "TMP"),
        *("NODE", "COOKIE", "DISTRIBUTION"),
    )
) | {
    *("RELDIR", "ROOTDIR", "BINDIR", "EMU", "PROGNAME", "ELIXIR_ERL_OPTIONS", "HEART_COMMAND"),
    *("ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS"),
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
    *("INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MANAGERPID"),
    *("DEPLOYEX_ERLANG_COOKIE", "DEPLOYEX_SECRET_KEY_BASE"),
}
_OTP_FLAGS = re.compile(r"ERL_OTP\d+_FLAGS")
# `erl` itself reads a cookie from here when this folder is its HOME
COOKIE_FILE = ".erlang.cookie"
# always handed on where `env_inherit` names less: nothing runs without them
_ALWAYS = ("PATH", "HOME", "LANG", "USER", "LOGNAME", "TZ")


class Command(NamedTuple):
    """One program to execute."""

    words: tuple[str, ...]
    env: dict[str, str]


def app_environment(app: AppConfig, inherited: Mapping[str, str]) -> dict[str, str]:
    """The app's environment: what is inherited, less what is scrubbed, our defaults, its `env`."""
    env = {
        key: value
        for key, value in inherited.items()
        if key not in SCRUBBED and not _OTP_FLAGS.fullmatch(key)
    }
    if app.env_inherit is not None:
        allowed = {*_ALWAYS, *app.env_inherit}
        env = {key: value for key, value in env.items() if key in allowed}
    if app.language != "gleam":
        env["RELEASE_NODE"] = app.node
        if app.cookie is not None:
            env["RELEASE_COOKIE"] = app.cookie
    if app.language == "elixir":
        env["RELEASE_DISTRIBUTION"] = "name" if "@" in app.node else "sname"
    if app.language == "erlang":
        env["RELX_REPLACE_OS_VARS"] = "true"
    env.setdefault("HOME", app.paths.work)  # Erlang does not start without one
    env.update(app.env)
    return env


def start_command(app: AppConfig, release: str, inherited: Mapping[str, str]) -> Command:
    """What starts the release in the folder `release`, as the very process that is spawned."""
    env = app_environment(app, inherited)
    if app.language == "gleam":
        return Command(_gleam(app, release, env), env)
    verb = "start" if app.language == "elixir" else "foreground"
    return Command((script(app, release), verb), env)


def remote_command(app: AppConfig, release: str, inherited: Mapping[str, str]) -> Command:
    """What opens the release's own remote shell."""
    env = app_environment(app, inherited)
    if app.language == "gleam":
        kind = "-name" if "@" in app.node else "-sname"
        host = app.node.partition("@")[2]
        own = f"remote_{os.getpid()}" + (f"@{host}" if host else "")
        if app.cookie is not None:
            env["HOME"] = app.paths.work
        return Command((_find("erl", env), kind, own, "-hidden", "-remsh", app.node), env)
    verb = "remote" if app.language == "elixir" else "remote_console"
    return Command((script(app, release), verb), env)


def script(app: AppConfig, release: str) -> str:
    """The release's own script."""
    return f"{release}/bin/{app.name}"


def write_cookie_file(app: AppConfig) -> None:
    """Puts the cookie where the VM reads it, so that it never stands on a command line.

    (What an -args_file holds, erlexec puts on the command line of the VM: `ps` would show it.)
    """
    if app.language == "gleam" and app.cookie is not None:
        path = f"{app.paths.work}/{COOKIE_FILE}"
        files.write_file(path, app.cookie.encode(), mode=0o400, durable=False)


def _gleam(app: AppConfig, release: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """What `gleam export erlang-shipment` wants run, as a node with our name and cookie."""
    paths = sorted(glob.glob(f"{glob.escape(release)}/erlang-shipment/*/ebin"))
    name = "-name" if "@" in app.node else "-sname"
    words = [_find("erl", env), *(w for path in paths for w in ("-pa", path)), "-noshell"]
    words += [name, app.node]
    if app.cookie is not None:
        file = f"{app.paths.work}/{COOKIE_FILE}".replace("\\", "\\\\").replace('"', '\\"')
        read = f'{{ok, Cookie}} = file:read_file("{file}")'
        words += ["-eval", f"{read}, erlang:set_cookie(binary_to_atom(Cookie))."]
    return (*words, "-eval", f"{app.name}@@main:run({app.name})")


def _find(program: str, env: Mapping[str, str]) -> str:
    for folder in env.get("PATH", os.defpath).split(":"):
        path = f"{folder}/{program}"
        if folder.startswith("/") and os.access(path, os.X_OK):
            return path
    return program
