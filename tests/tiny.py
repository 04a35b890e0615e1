"""Releases that are one small script, for tests in which any executable will do.

They start in milliseconds where a BEAM takes half a second, and can misbehave in ways that no BEAM
does. `TinyWorld` can put one straight on disk, as unpack and move would, and run its supervisor as
the test's own child.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.world import World, eventually


def shell(body: str) -> str:
    """A shell script."""
    return f"#!/bin/sh\n{body}\n"


def python(body: str) -> str:
    """A Python script that imports next to nothing."""
    return f"#!{sys.executable} -IS\nimport os, signal, sys, time\n{body}\n"


SLEEPS = shell("exec sleep 1000")  # and ends by SIGTERM, as `sleep` does
DEAF = python("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('deaf', 'w')\ntime.sleep(1000)")
EXITS = shell("exit 3")


def tarball(path: Path, app: str, version: str, script: str, *, mode: int = 0o755) -> Path:
    """Packs a release of `app` whose bin/{app} is the script; the path of the tarball."""
    members = {f"bin/{app}": (script, mode), "releases/start_erl.data": (f"1 {version}", 0o644)}
    with tarfile.open(path, "w:gz") as archive:
        for name, (text, bits) in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), bits
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def hostile(path: Path, app: str, *members: tarfile.TarInfo) -> Path:
    """A tarball with a good release in it, and `members` behind that."""
    tarball(path, app, "0.1.0", SLEEPS)
    plain = io.BytesIO(gzip.decompress(path.read_bytes()))
    with tarfile.open(fileobj=plain, mode="a") as archive:
        for member in members:
            archive.addfile(member)
    path.write_bytes(gzip.compress(plain.getvalue()))
    return path


# --- processes --------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def proc_status(pid: int, key: str) -> str:
    """One line of /proc/pid/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return line.partition(":")[2].strip()
    raise KeyError(key)


def descriptors(pid: int) -> dict[int, str]:
    """What the process's descriptors are."""
    folder = f"/proc/{pid}/fd"
    return {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def environment(pid: int) -> dict[str, str]:
    """The environment that the process was given; within an exec it reads as empty."""
    items = str(eventually(lambda: Path(f"/proc/{pid}/environ").read_text())).split("\0")
    return dict(item.split("=", 1) for item in items if item)


# --- the world --------------------------------------------------------------------------------


class TinyWorld(World):
    """A world whose app is called `tiny`, and is whatever script a test wants."""

    def __init__(self, packages: Path, epmd_port: int) -> None:
        super().__init__(packages, epmd_port, "tiny")
        self.defaults["distribution"] = '"none"'  # a script is no node
        self.configure()
        self._begun: list[subprocess.Popen[bytes]] = []
        self.stray: list[int] = []  # to be killed at the end, should it live

    # --- releases ---------------------------------------------------------------------------

    def pack(self, version: str = "0.1.0", script: str = SLEEPS, *, mode: int = 0o755) -> Path:
        """Makes the tarball that `publish` takes."""
        return tarball(self.package(version), self.app, version, script, mode=mode)

    def offer(self, version: str, script: str = SLEEPS, *words: str) -> None:
        """Packs and publishes a version."""
        self.pack(version, script)
        self.publish(version, *words)

    def roll_out(self, version: str, script: str = SLEEPS) -> int:
        """Publishes a version and checks; the pid of what runs then."""
        self.offer(version, script)
        self.ok("check")
        return self.pid()

    def place(self, script: str = SLEEPS, version: str = "0.1.0", *, mode: int = 0o755) -> Path:
        """Puts a release on disk and makes it current, with no command run; its script."""
        releases = self.service / "releases"
        releases.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = releases / f"{len(list(releases.iterdir())) + 1}-{version}"
        (folder / "bin").mkdir(parents=True)
        path = folder / "bin" / self.app
        path.write_text(script)
        path.chmod(mode)
        marker = {"schema_version": 1, "version": version, "sha256": None, "hash": ""}
        (folder / ".deployex.json").write_text(json.dumps({**marker, "confirmed_at": None}))
        current = self.service / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(f"releases/{folder.name}")
        return path

    @property
    def work(self) -> Path:
        """The app's working directory."""
        return self.service / "work"

    # --- the supervisor ---------------------------------------------------------------------

    @property
    def socket_path(self) -> Path:
        return self.root / f"run/{self.app}.sock"

    @property
    def said(self) -> str:
        """What supervisors that the test began have said."""
        return (self.root / "supervise.said").read_text()

    def supervise(
        self,
        state: str | None = "RUNNING",
        *,
        prepare: Callable[[], Any] | None = None,
        **more: Any,
    ) -> subprocess.Popen[bytes]:
        """Begins `deployex supervise` as a child of the test; returns when it is in that state.

        `prepare` is run in the child before it executes. None: does not wait at all.
        """
        with open(self.root / "supervise.said", "ab") as said:
            process = subprocess.Popen(
                ["deployex", "supervise"],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=self.root,
                preexec_fn=prepare,
                **more,
            )
        self._begun.append(process)
        if state is not None:
            eventually(lambda: self.supervisor() == process.pid and self.ask("status"))
            self.until(state)
        return process

    def connect(self) -> socket.socket:
        """A connection to the supervisor."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.socket_path))
        return connection

    def asking(self, command: str, **arguments: Any) -> socket.socket:
        """A connection on which the supervisor has been asked."""
        connection = self.connect()
        connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        return connection

    def ask(self, command: str, **arguments: Any) -> Any:
        """The supervisor's answer."""
        return answer_on(self.asking(command, **arguments))

    def until(self, state: str, *, crashes: int | None = None) -> Any:
        """Waits for a state, and a number of crashes, in the record; the record."""

        def look() -> Any:
            record = self.record()
            wanted = record["state"] == state and crashes in (None, record["crashes"])
            return record if wanted else None

        try:
            return eventually(look)
        except AssertionError:
            raise AssertionError(f"never {state} with {crashes} crashes: {self.record()}") from None

    def pid(self) -> int:
        """The pid of the app that the record tells of."""
        return int(self.record()["app"][0])

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Waits for the end of a supervisor; its exit code."""
        return process.wait(20)

    def read(self, name: str) -> str:
        """Waits for a whole line in a file in the app's working directory; what is in it."""

        def look() -> str | None:
            text = (self.work / name).read_text()
            return text if text.endswith("\n") else None

        return str(eventually(look))

    def end(self) -> None:
        for pid in self.stray:
            if is_alive(pid):
                os.kill(pid, 9)
        try:
            super().end()
        finally:
            for process in self._begun:
                process.kill()
                process.wait()


def is_whole(tiny: TinyWorld, version: str | None) -> None:
    """One app runs that version (None: no app runs), one supervisor sees to it, nothing is left."""
    supervisor = eventually(lambda: is_alive(tiny.supervisor()) and tiny.supervisor())
    if version is None:
        assert tiny.until("STOPPED")["app"] is None
        expected = {supervisor}
    else:
        record = tiny.until("RUNNING")
        assert (record["version"], tiny.link("current")) == (version, version)
        expected = {supervisor, record["app"][0]}
    # one that was refused may still be on its way out
    eventually(lambda: set(tiny.processes()) == expected)
    assert tiny.link("new") is None
    assert tiny.leftovers() == []


def put(tiny: TinyWorld, version: str, script: str = SLEEPS) -> None:
    """Publishes by hand, as other tools may: far faster than the command, which is not at trial."""
    tiny.dist.mkdir(parents=True, exist_ok=True, mode=0o700)
    tiny.manifest.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    package = tarball(tiny.dist / f"tiny-{version}.tar.gz", "tiny", version, script)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    tiny.manifest.write_text(json.dumps({"version": version, "hash": "", "sha256": digest}))


def amid_the_stop(tiny: TinyWorld) -> subprocess.Popen[str]:
    """A check of 0.1.1 over a deaf 0.1.0, which the supervisor has just told to end."""
    tiny.roll_out("0.1.0", DEAF)
    eventually((tiny.work / "deaf").exists)
    put(tiny, "0.1.1")
    check = tiny.begin("check")
    tiny.until("STOPPING")
    return check


def answer_on(connection: socket.socket) -> Any:
    """The line that comes on the connection, and then its end."""
    data = b""
    with connection:
        while chunk := connection.recv(4096):
            data += chunk
    return json.loads(data)
