"""kill -9 of a pre_command, and of the child it has, at each call that changes something.

Alone, or with those who asked for it: the check, the supervisor or both are dead by then. A
pre_command is a child of the supervisor, so nobody can begin it under strace: a first strace, on
the supervisor, stops it as soon as it has executed, and lets go; a second is put on it there, and
kills. What it does between fork and execve is killed from its parent, which makes no such calls.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.faults import strace
from tests.faults.kills import AFTERMATHS, Missed, compare
from tests.faults.scenarios import MIGRATION, TEMPLATES, Machine, machine_before
from tests.tiny import is_alive
from tests.world import Ran, eventually

# by what its command line ends with
PROGRAMS = {"pre_command": "migrate", "pre_command's child": "index"}
CHAINS: dict[str, tuple[str, ...]] = {
    "": (),
    "check and ": ("check",),
    "supervise and ": ("supervise",),
    "check, supervise and ": ("check", "supervise"),
}


class Point(NamedTuple):
    """One call of the pre_command, or of its child."""

    program: str
    born: bool  # made by the fork, before it executes what it is
    call: strace.Call

    @property
    def fault(self) -> str:
        return f"{self.call.name}:signal=KILL:when={self.call.nth}"

    @property
    def chains(self) -> tuple[str, ...]:
        """Who can be dead by then: a pre_command is born of a supervisor that lives."""
        return ("",) if self.born and self.program == "pre_command" else tuple(CHAINS)

    def __str__(self) -> str:
        return f"{MIGRATION}: {self.program} killed at {self.call}"


def points(template: Path) -> list[Point]:
    """Every effect of both."""
    machine = machine_before(TEMPLATES[MIGRATION], template)
    try:
        with tempfile.TemporaryDirectory() as folder:
            supervisor = machine.supervisor()
            with strace.attached(supervisor, Path(folder, "log"), "-ff"):
                machine.ok("check")
            logs = {int(path.suffix[1:]): path for path in Path(folder).iterdir()}
            assert machine.link("current") == "0.1.1"
            return _points_of(logs, supervisor)
    finally:
        machine.end()


def _points_of(logs: dict[int, Path], supervisor: int) -> list[Point]:
    """From a log for each process, by its pid."""
    found, parent = [], logs[supervisor]
    for program, word in PROGRAMS.items():
        (log,) = (path for path in logs.values() if f'"{word}"]' in path.read_text())
        lines = log.read_text().splitlines()
        executed = next(n for n, line in enumerate(lines, 1) if line.startswith("execve("))
        before, after = strace.calls_in(lines[:executed]), strace.calls_in(lines[executed:])
        born = [Point(program, True, call) for call in before if strace.kind(call) is not None]
        theirs = {call.name for call in strace.calls(parent)}
        if program != "pre_command":  # of its parent what follows the execve
            theirs = {point.call.name for point in found if not point.born}
        assert theirs.isdisjoint(point.call.name for point in born), "would kill the parent, too"
        found += born
        found += [Point(program, False, call) for call in after if strace.kind(call) is not None]
        parent = log
    return found


def kill_pre_command(point: Point, template: Path, chain: str, aftermath: str) -> None:
    """Kills it there, and looks what becomes of the deployment. Raises AssertionError."""
    machine = machine_before(TEMPLATES[MIGRATION], template)
    check = None
    try:
        app = machine.pid()
        check = _strike(machine, point, CHAINS[chain])
        out, err = check.communicate(timeout=30)
        _what_the_check_said(Ran(check.returncode, out, err), CHAINS[chain])
        if chain == "":
            left = set(machine.processes()) - {machine.supervisor(), app}
            assert not left, f"it is over, but its processes run on: {left}"
        assert is_alive(app), "the old version was not to be touched"
        assert machine.link("current") == "0.1.0"
        AFTERMATHS[aftermath](machine, TEMPLATES[MIGRATION])
        _it_ended_unswitched(machine)
        if aftermath == "the next check":
            assert machine.pid() == app, "the old version was not to be touched"
    finally:
        if check is not None:
            check.kill()
            check.communicate()
        machine.end()


def _strike(machine: Machine, point: Point, dead: tuple[str, ...]) -> subprocess.Popen[str]:
    """Begins the check, and leads the pre_command to its end at the point; the check."""
    supervisor = machine.supervisor()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        if point.born and point.program == "pre_command":
            with strace.attached(supervisor, log, "-f", *_words(point)):
                check = machine.begin("check")
                eventually(lambda: _killed_at(log))
        else:
            pid, check = _held(machine, point)
            for who in dead:
                machine.kill({"check": check.pid, "supervise": supervisor}[who])
            eventually(lambda: "supervise" not in dead or not is_alive(supervisor))
            family = ("-f",) if point.born else ()
            with strace.attached(pid, log, *family, *_words(point)):
                os.kill(pid, signal.SIGCONT)
                eventually(lambda: not is_alive(pid))
        killed = _killed_at(log)
    if killed is None:
        raise Missed(f"{point}: it was not killed")
    compare(killed, point.call, str(point))
    return check


def _killed_at(log: Path) -> strace.Call | None:
    """The one call that did not return; of several processes each line begins with a pid."""
    lines = [line.lstrip("0123456789 ") for line in log.read_text().splitlines()]
    return next((call for call in strace.calls_in(lines) if call.result == "?"), None)


def _words(point: Point) -> tuple[str, ...]:
    name = point.call.name
    return ("-e", f"trace={name}", "-e", "signal=none", "-e", f"inject={point.fault}")


def _held(machine: Machine, point: Point) -> tuple[int, subprocess.Popen[str]]:
    """The pid of the process to be watched, stopped before its first instruction; the check.

    For what a child does before it executes that is its parent.
    """
    program = "pre_command" if point.born else point.program
    with tempfile.NamedTemporaryFile() as log, _stopping(machine.supervisor(), Path(log.name)):
        check = machine.begin("check")
        pid = _stopped(machine, PROGRAMS["pre_command"])
        if program != "pre_command":
            os.kill(pid, signal.SIGCONT)
            pid = _stopped(machine, PROGRAMS[program])
    eventually(lambda: _state(pid) == "T")
    return pid, check


@contextmanager
def _stopping(pid: int, log: Path) -> Iterator[None]:
    """While this holds, each process that `pid` begets is stopped when it has executed."""
    words = ("-f", "-e", "trace=execve", "-e", "inject=execve:signal=STOP")
    with strace.attached(pid, log, *words):
        yield


def _stopped(machine: Machine, word: str) -> int:
    """Waits for the process whose command line ends so, and that is stopped."""

    def look() -> int | None:
        for pid in machine.processes():
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if line.endswith(f"\0{word}\0".encode()) and _state(pid) in "Tt":
                return pid
        return None

    return int(eventually(look))


def _state(pid: int) -> str:
    """One letter, proc(5): T is stopped, t is stopped under a tracer."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _what_the_check_said(ran: Ran, dead: tuple[str, ...]) -> None:
    if "check" in dead:
        assert ran.code == -signal.SIGKILL, ran
        return
    assert ran.code == 1, ran
    assert "Traceback" not in ran.err, ran
    if "supervise" in dead:
        assert "the supervisor ended during `run`" in ran.err, ran
        return
    ends = ("was ended by SIGKILL", "exited with 1")  # the second says that its child was killed
    assert any(f"pre_command `migrate` {end}" in ran.err for end in ends), ran


def _it_ended_unswitched(machine: Machine) -> None:
    (ghost,) = machine.state()["ghosts"]
    assert ghost["version"] == "0.1.1"
    assert "pre_command" in ghost["reason"], ghost
    assert machine.link("new") is None
    told = [event for event, version in machine.history() if version == "0.1.1"]
    assert told == ["failed"], machine.history()
