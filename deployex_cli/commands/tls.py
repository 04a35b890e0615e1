"""`deployex tls init DIR`: certificates for Erlang's distribution over TLS, and how to use them.

A CA of its own signs the one certificate that both sides show: the app's VM and deployex. The files
come into the folder all together or not at all; nothing that is there is overwritten.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deployex_cli.errors import ConfigError, Locked, Refused, UnsafeFolder
from deployex_cli.layout import files
from deployex_cli.otp.certificates import Period, issue, new_authority
from deployex_cli.result import Result
from deployex_cli.words import iso

CA, CA_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "deployex.crt", "deployex.key"
OPTIONS = "inet_tls.conf"
FILES = (CA, CA_KEY, CERTIFICATE, KEY, OPTIONS)
_DAY = 86400
_EARLIER = 300  # seconds: another host's clock may be behind
# the path stands in Erlang text and on a command line that a shell splits into words
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+@-]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_:.-]{1,253}", re.ASCII)
_STAGING, _DONE = ".tls.tmp", ".tls-done.tmp"


def init(folder: str, days: int, now: float, more_hosts: Sequence[str] = ()) -> Result:
    """Makes the files in `folder`, which is made too (0700). `now`: seconds since the epoch.

    `more_hosts`: what stands behind the @ of nodes, besides this machine's own names.

    Raises ConfigError for a path or host that cannot be written down, Refused when one of the files
    is there, UnsafeFolder when somebody else may write to the folder, Locked.
    """
    folder = os.path.abspath(folder)
    if not _PLAIN_PATH.fullmatch(folder):
        raise ConfigError(
            f"{folder!r}: the path will stand in Erlang's options and on a command line, so it may"
            " hold only letters, digits and / _ . + @ -"
        )
    for host in more_hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{host!r} is no name or address of a host")
    hosts = tuple(dict.fromkeys((*own_names(), *more_hosts)))
    files.trusted_folder(folder)
    found = os.stat(folder)
    if found.st_uid != os.geteuid():  # root's: trusted, but what we make there would be ours
        raise UnsafeFolder(
            f"{folder} belongs to user {found.st_uid}; run this as that user, as with `sudo -u`"
        )
    with _alone(folder):
        _undo_killed_run(folder)
        there = [name for name in FILES if os.path.lexists(f"{folder}/{name}")]
        if there:
            raise Refused(
                f"{folder} holds {', '.join(there)} already, and nothing is overwritten;"
                " choose another folder"
            )
        period = Period(now - _EARLIER, now + days * _DAY)
        authority = new_authority(period)
        ca, pair = authority.pair, issue(authority, hosts, period)
        contents = {
            CA: (ca.certificate, 0o644),
            CA_KEY: (ca.key, 0o600),
            CERTIFICATE: (pair.certificate, 0o644),
            KEY: (pair.key, 0o600),
            OPTIONS: (options_text(folder).encode(), 0o644),
        }
        _put_together(folder, contents)
    return _told(folder, hosts, period.end)


def own_names() -> tuple[str, ...]:
    """What may stand behind the @ of a node on this machine, without asking a resolver."""
    name = os.uname().nodename
    return name, name.partition(".")[0], "localhost", "127.0.0.1"


# --- texts --------------------------------------------------------------------------------------


def options_text(folder: str) -> str:
    """inet_tls.conf: what `-ssl_dist_optfile` reads (Using TLS for Erlang Distribution).

    fail_if_no_peer_cert: without it OTP 25 lets in who shows no certificate. Whoever has the
    certificate is meant, on whatever host: where OTP lets us, the name is not compared.
    """
    shared = f"""{{certfile, "{folder}/{CERTIFICATE}"}},
   {{keyfile, "{folder}/{KEY}"}},
   {{cacertfile, "{folder}/{CA}"}},
   {{versions, ['tlsv1.3', 'tlsv1.2']}},
   {{verify, verify_peer}}"""
    return f"""%% Made by `deployex tls init`.
[{{server, [
   {shared},
   {{fail_if_no_peer_cert, true}}]}},
 {{client, [
   {shared},
   {{server_name_indication, disable}}]}}].
"""


def _told(folder: str, hosts: tuple[str, ...], until: float) -> Result:
    """What was made, and what to do with it."""
    words = f"-proto_dist inet_tls -ssl_dist_optfile {folder}/{OPTIONS}"
    env_sh = f'export ELIXIR_ERL_OPTIONS="{words}"'
    keys = {
        "tls_ca": f"{folder}/{CA}",
        "tls_cert": f"{folder}/{CERTIFICATE}",
        "tls_key": f"{folder}/{KEY}",
    }
    user = _user()
    data = {
        "folder": folder,
        "files": [f"{folder}/{name}" for name in FILES],
        "valid_until": iso(until),
        "hosts": list(hosts),
        "user": user,
        "env_sh": env_sh,
        "erl_flags": words,
        "config": keys,
        "environment": {"DEPLOYEX_OTP_TLS_CERT_PATH": folder},
    }
    lines = (
        f"made in {folder}, valid until {iso(until)}:",
        f"  {CA}, {CA_KEY}: the CA; no program needs its key any more, so keep that elsewhere",
        f"  {CERTIFICATE}, {KEY}: what the app's VM and deployex show each other",
        f"  {OPTIONS}: the VM's options",
        f"The keys are for user {user} alone, so the app's VM must run as {user} too.",
        f"Made out for nodes whose names end in @ and one of {', '.join(hosts)}.",
        "",
        "Elixir, into the app's rel/env.sh.eex (and :ssl into extra_applications in mix.exs):",
        f"  {env_sh}",
        "Erlang, into vm.args (and ssl into the release):",
        "  -proto_dist inet_tls",
        f"  -ssl_dist_optfile {folder}/{OPTIONS}",
        "Or, for a release that holds ssl already, the app's table in deployex.toml (one of these",
        "ways, not two: a VM that is given the option twice does not start):",
        f'  env = {{ ERL_FLAGS = "{words}" }}',
        "",
        "For deployex, into the same table:",
        *(f'  {key} = "{path}"' for key, path in keys.items()),
        f"or into its environment: DEPLOYEX_OTP_TLS_CERT_PATH={folder}",
    )
    return Result("tls init", data, lines)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


# --- the folder ---------------------------------------------------------------------------------


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """No other run works in the folder meanwhile. Raises Locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Locked(f"another `deployex tls init` works in {folder}") from None
    finally:
        os.close(descriptor)


def _put_together(folder: str, contents: dict[str, tuple[bytes, int]]) -> None:
    """Gives all files their names, each whole: a second name in the folder, of a staged file.

    Renaming the staging folder is the moment from which on they stay (see _undo_killed_run). A file
    that came to be meanwhile is not overwritten: FileExistsError.
    """
    staging = f"{folder}/{_STAGING}"
    os.mkdir(staging, 0o700)
    try:
        for name, (content, mode) in contents.items():
            files.write_file(f"{staging}/{name}", content, mode=mode)
        for name in contents:
            os.link(f"{staging}/{name}", f"{folder}/{name}", follow_symlinks=False)
        files.sync_folder(folder)
        os.rename(staging, f"{folder}/{_DONE}")
    except BaseException:
        _undo_killed_run(folder)
        raise
    files.remove_tree(f"{folder}/{_DONE}")
    files.sync_folder(folder)


def _undo_killed_run(folder: str) -> None:
    """Takes away what a run left that did not come to its end, and nothing else."""
    staging, done = f"{folder}/{_STAGING}", f"{folder}/{_DONE}"
    if os.path.lexists(done):
        files.remove_tree(done)
    if not os.path.lexists(staging):
        return
    for name in FILES:
        if _same(f"{staging}/{name}", f"{folder}/{name}"):
            files.remove(f"{folder}/{name}")
    files.sync_folder(folder)
    files.remove_tree(staging)


def _same(one: str, other: str) -> bool:
    """Whether both are names of one file."""
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False
