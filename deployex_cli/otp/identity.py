"""Who the running node is, and how to reach it: learnt from the VM that runs.

An app's env.sh may override whatever name and cookie we gave it. So the VM's own command line and
environment, proc(5), are the fact; the configuration counts where they say nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from deployex_cli.config import MASK, AppConfig
from deployex_cli.errors import WrongCookie
from deployex_cli.otp.epmd import DEFAULT_PORT

_MAX_COOKIE_FILE = 1024  # bytes: a cookie has at most 255 characters
_LOOPBACK = ("127.0.0.1", "::1")
CREDENTIAL = "deployex-{app}-cookie"  # in $CREDENTIALS_DIRECTORY, systemd.exec(5)


class Cookie:
    """A secret that does not show itself."""

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cookie) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


class TlsFiles(NamedTuple):
    """Paths of PEM files; None: nobody has said where it is."""

    ca: str | None
    cert: str | None
    key: str | None


class Target(NamedTuple):
    """A node to connect to."""

    name: str  # app@host
    exact: bool  # whether the host is known; else only the part before @ is compared
    hosts: tuple[str, ...]  # names and addresses to try, in this order
    cookie: Cookie | None
    epmd_port: int
    dist_port: int | None  # None: epmd knows it
    tls: TlsFiles | None  # None: plain TCP


def target_of(app: AppConfig, pid: int, environ: Mapping[str, str]) -> Target:
    """The node that the VM `pid` is; `environ` is our own environment.

    Raises WrongCookie when a file that should hold the cookie cannot be used.
    """
    flags = _flags(_read(f"/proc/{pid}/cmdline").removesuffix(b"\0").split(b"\0"))
    theirs = _variables(_read(f"/proc/{pid}/environ"))
    name, exact = _name(app, flags)
    host = app.connect_host or name.partition("@")[2]
    # The node lives on this machine: names are looked up only when loopback has not led to it.
    hosts = (host,) if app.connect_host else (*_LOOPBACK, host)
    return Target(
        name=name,
        exact=exact,
        hosts=hosts,
        cookie=_cookie_on(flags)
        or configured_cookie(app, environ)
        or _cookie_at_home(flags, theirs),
        epmd_port=_first(
            app.epmd_port,
            _port(_value(flags, b"epmd_port")),
            _port(theirs.get(b"ERL_EPMD_PORT")),
            _port(environ.get("ERL_EPMD_PORT", "").encode()),
        )
        or DEFAULT_PORT,
        dist_port=_first(app.dist_port, _dist_port(flags, theirs)),
        tls=_tls(app, flags, environ),
    )


def configured_cookie(app: AppConfig, environ: Mapping[str, str]) -> Cookie | None:
    """The cookie by configuration: `cookie` (or its variable), `cookie_file`, systemd's credential.

    Raises WrongCookie when a file is there and cannot be used.
    """
    if app.cookie is not None:
        return Cookie(app.cookie.encode())
    if app.cookie_file is not None:
        return _cookie_in(app.cookie_file, private=True)
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder:
        path = f"{folder}/{CREDENTIAL.format(app=app.name)}"
        if os.path.exists(path):
            return _cookie_in(path, private=False)  # systemd sees to it
    return None


# --- what the VM says ---------------------------------------------------------------------------


def _read(path: str) -> bytes:
    """The file's bytes; none when the process has gone or is another user's."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _flags(words: list[bytes]) -> dict[bytes, list[list[bytes]]]:
    """init's view of a command line: flag -> the values of each of its occurrences, init(3)."""
    found: dict[bytes, list[list[bytes]]] = {}
    values: list[bytes] = []
    if b"--" not in words:
        return found  # no VM (yet): the release's script
    for word in words[words.index(b"--") + 1 :]:
        if word == b"-extra":
            break
        if word == b"--":
            values = []  # plain arguments follow
        elif word.startswith(b"-"):
            values = []
            found.setdefault(word[1:], []).append(values)
        else:
            values.append(word)
    return found


def _variables(block: bytes) -> dict[bytes, bytes]:
    pairs = (entry.partition(b"=") for entry in block.split(b"\0"))
    return {key: value for key, _, value in pairs if key}


def _value(flags: dict[bytes, list[list[bytes]]], flag: bytes) -> bytes | None:
    """The first value of the flag's first occurrence."""
    values = flags.get(flag, [[]])[0]
    return values[0] if values else None


def _name(app: AppConfig, flags: dict[bytes, list[list[bytes]]]) -> tuple[str, bool]:
    """The node's full name, and whether its host is known."""
    short = _value(flags, b"sname")
    told = (short or _value(flags, b"name") or b"").decode("utf-8", "replace")
    name = app.node if told in ("", "undefined") or not told.isprintable() else told
    if "@" in name:
        return name, True
    return f"{name}@{os.uname().nodename.partition('.')[0]}", False


def _cookie_on(flags: dict[bytes, list[list[bytes]]]) -> Cookie | None:
    """-setcookie, by auth's rule: exactly one with one value; with two it is for another node."""
    own = [values for values in flags.get(b"setcookie", []) if len(values) < 2]
    return Cookie(own[0][0]) if len(own) == 1 and own[0] else None


def _dist_port(flags: dict[bytes, list[list[bytes]]], theirs: Mapping[bytes, bytes]) -> int | None:
    """The port of a node that has no epmd."""
    port = _port(_value(flags, b"erl_epmd_port"))
    if port is None and _value(flags, b"start_epmd") == b"false":
        port = _port(theirs.get(b"ERL_DIST_PORT"))
    return port


def _port(value: bytes | None) -> int | None:
    if value is None or not value.isdigit() or len(value) > 5:
        return None
    return int(value) if 0 < int(value) < 65536 else None


def _first(*ports: int | None) -> int | None:
    return next((port for port in ports if port is not None), None)


# --- cookies ------------------------------------------------------------------------------------


def _cookie_at_home(
    flags: dict[bytes, list[list[bytes]]], theirs: Mapping[bytes, bytes]
) -> Cookie | None:
    """What the VM itself reads where nobody gives it a cookie, auth(3)."""
    home = os.fsdecode(_value(flags, b"home") or theirs.get(b"HOME", b""))
    if not home:
        return None
    settings = os.fsdecode(theirs.get(b"XDG_CONFIG_HOME", b"")) or f"{home}/.config"
    for path in (f"{home}/.erlang.cookie", f"{settings}/erlang/.erlang.cookie"):
        if os.path.exists(path):
            return _cookie_in(
                path, private=False
            )  # the VM would not start with one that others read
    return None


def _cookie_in(path: str, *, private: bool) -> Cookie:
    """The cookie that a file holds; a `private` one must be ours, and nobody else's to read."""
    import stat

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WrongCookie(f"the cookie file {path} cannot be read: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise WrongCookie(f"the cookie file {path} is no file")
        if private and (found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid())):
            raise WrongCookie(
                f"the cookie file {path} must belong to root or to us, and nobody else may read it:"
                " chmod 600"
            )
        value = os.read(descriptor, _MAX_COOKIE_FILE + 1).strip(b" \r\n")
    except OSError as error:
        raise WrongCookie(f"the cookie file {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if not 0 < len(value) <= 255 or not all(32 <= byte < 127 for byte in value):
        raise WrongCookie(f"the cookie file {path} holds no cookie: 1 to 255 printable characters")
    return Cookie(value)


# --- TLS ----------------------------------------------------------------------------------------


def _tls(
    app: AppConfig, flags: dict[bytes, list[list[bytes]]], environ: Mapping[str, str]
) -> TlsFiles | None:
    """The files for a node that speaks TLS, -proto_dist inet_tls or inet6_tls."""
    folder = environ.get("DEPLOYEX_OTP_TLS_CERT_PATH")
    files = TlsFiles(
        app.tls_ca or (f"{folder}/ca.crt" if folder else None),
        app.tls_cert or (f"{folder}/deployex.crt" if folder else None),
        app.tls_key or (f"{folder}/deployex.key" if folder else None),
    )
    if flags:
        return files if (_value(flags, b"proto_dist") or b"").endswith(b"_tls") else None
    return files if None not in files else None  # nobody can say: as it is configured
