"""Real BEAM nodes for tests: `erl` with any flags, an epmd of their own, certificates for TLS.

All listen on loopback, and all end by their pid.
"""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trustme

from deployex_cli.config import AppConfig
from deployex_cli.otp.identity import Target, target_of
from tests.configured import app_in
from tests.world import eventually, free_port

COOKIE = "monster"
_READY = 'io:format("~s~n", [node()]).'


class Beam(NamedTuple):
    """A node that runs."""

    process: subprocess.Popen[str]
    name: str  # as the node says it
    app: AppConfig  # one whose configuration tells nothing of the node
    home: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def target(self) -> Target:
        return target_of(self.app, self.pid, {})

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@contextmanager
def epmd(port: int, addresses: str = "127.0.0.1") -> Iterator[int]:
    """An epmd at that port; its pid."""
    env = {**os.environ, "ERL_EPMD_ADDRESS": addresses}
    process = subprocess.Popen(["epmd", "-port", str(port)], env=env)
    try:
        eventually(
            lambda: (
                subprocess.run(
                    ["epmd", "-port", str(port), "-names"], capture_output=True, env=env
                ).returncode
                == 0
            )
        )
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def beam(
    folder: Path,
    *flags: str,
    epmd_port: int,
    cookie: str | None = COOKIE,
    lines: str = "",
    env: dict[str, str] | None = None,
) -> Iterator[Beam]:
    """`erl` with these flags, ready to be called; `lines` are TOML lines of its app's table."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    loopback = [] if "inet_dist_use_interface" in flags else LOOPBACK
    words = ["erl", *flags, *loopback, "-noinput", "-eval", _READY]
    words += [] if cookie is None else ["-setcookie", cookie]
    process = subprocess.Popen(
        words,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("ERL_")},
            "HOME": str(home),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            **(env or {}),
        },
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )
    assert process.stdout
    name = ""
    while "@" not in name:  # warnings come before it
        name = process.stdout.readline()
        assert name, "erl has ended"
    made = Beam(process, name.strip(), app_in(folder, lines), home)
    try:
        yield made
    finally:
        made.end()


LOOPBACK = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"]


class Certificates:
    """What two sides need that trust each other: ca.crt, deployex.crt, deployex.key and theirs."""

    def __init__(self, folder: Path, *, days: int = 1) -> None:
        self.folder = folder
        folder.mkdir()
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.crt"))
        for name in ("deployex", "node"):
            self.issue(name, days=days)

    def issue(self, name: str, *, days: int = 1, authority: trustme.CA | None = None) -> None:
        """{name}.crt and {name}.key, which hold for so many days from now."""
        after = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        issued = (authority or self.authority).issue_cert("localhost", not_after=after)
        (self.folder / f"{name}.crt").write_bytes(
            b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        )
        key = self.folder / f"{name}.key"
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)

    def flags(self, protocol: str = "inet_tls") -> list[str]:
        """What makes `erl` speak TLS with them, and shut out who has no certificate."""
        common = (
            f'{{cacertfile, "{self.folder}/ca.crt"}}, {{certfile, "{self.folder}/node.crt"}},'
            f' {{keyfile, "{self.folder}/node.key"}}, {{verify, verify_peer}}'
        )
        file = self.folder / "inet_tls.conf"
        file.write_text(
            f"[{{server, [{common}, {{fail_if_no_peer_cert, true}}]}}, {{client, [{common}]}}]."
        )
        return ["-proto_dist", protocol, "-ssl_dist_optfile", str(file)]


__all__ = ["COOKIE", "Beam", "Certificates", "beam", "epmd", "free_port"]
