"""kill -9 of check, publish, rollback and supervise at each call that changes something."""

from __future__ import annotations

import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults import strace
from tests.faults.aftermath import by_the_next_check, by_the_supervisor_alone, in_the_end
from tests.faults.scenarios import SCENARIOS, Machine, Scenario, machine_before
from tests.world import eventually

AFTERMATHS: dict[str, Callable[[Machine, Scenario], None]] = {
    "the next check": by_the_next_check,
    "supervise alone": by_the_supervisor_alone,
}


class Missed(AssertionError):
    """The program took another way than it did when its calls were counted: to be tried again."""


class Point(NamedTuple):
    """One call of one program in one scenario."""

    scenario: str
    program: str  # whose call: "check", "supervise", ...
    call: strace.Call

    @property
    def fault(self) -> str:
        return f"{self.call.name}:signal=KILL:when={self.call.when}"

    def __str__(self) -> str:
        return f"{self.scenario}: {self.program} killed at {self.call}"


def points_of_command(name: str, template: Path) -> list[Point]:
    """Every effect of the scenario's own command."""
    scenario = SCENARIOS[name]
    machine = machine_before(scenario, template)
    try:
        with tempfile.NamedTemporaryFile() as log:
            ran = machine.under_strace(Path(log.name), None, *scenario.words)
            assert ran.code in scenario.codes, ran
            in_the_end(machine, scenario)
            found = strace.effects(Path(log.name))
    finally:
        machine.end()
    return [Point(name, scenario.words[0], call) for call in found]


def kill_command(point: Point, template: Path, aftermath: str) -> None:
    """Kills the scenario's command there, and looks what becomes of it. Raises AssertionError."""
    scenario = SCENARIOS[point.scenario]
    machine = machine_before(scenario, template)
    try:
        with tempfile.NamedTemporaryFile() as log:
            ran = machine.under_strace(Path(log.name), point.fault, *scenario.words)
            _struck(ran.code, Path(log.name), point)
        AFTERMATHS[aftermath](machine, scenario)
    finally:
        machine.end()


# --- the supervisor ---------------------------------------------------------------------------


def _deploys(machine: Machine) -> None:
    machine.run("check")


def _rolls_back(machine: Machine) -> None:
    machine.run("rollback")


def _crashes(machine: Machine) -> None:
    pid = machine.pid()
    machine.kill(pid)
    _wait(machine, lambda: _restarted(machine, pid))


def _restarted(machine: Machine, before: int) -> bool:
    record = machine.record()
    return record["state"] == "RUNNING" and record["app"][0] != before


def _begins_again(machine: Machine) -> None:
    # by then it listens to signals; one whose disk takes no word never says so
    _wait(machine, lambda: "supervises" in machine.said_by_traced)
    _tell(machine, signal.SIGHUP)
    _wait(machine, lambda: machine.said_by_traced.count("supervises") > 1)


def _wait(machine: Machine, what: Callable[[], bool]) -> None:
    """Until that is so, the supervisor has ended, or it must be taken that it never will be."""
    try:
        eventually(lambda: _over(machine) or what(), 8.0)
    except AssertionError:
        return  # it met with trouble: what became of it is looked at afterwards


def _over(machine: Machine) -> bool:
    return machine.traced is None or machine.traced.poll() is not None


# what happens to a supervisor between its start and its end: the scenario that it happens on
LIVES: dict[str, tuple[str, Callable[[Machine], None]]] = {
    "first deployment": ("first deployment", _deploys),
    "update": ("update", _deploys),
    "failing update": ("failing update", _deploys),
    "killed pre_command": ("killed pre_command", _deploys),
    "rollback": ("rollback", _rolls_back),
    "crash of the app": ("prune", _crashes),
    "SIGHUP": ("prune", _begins_again),
}


def live(name: str, template: Path, log: Path, fault: str | None) -> Machine:
    """One life of a supervisor under strace, from its start to its SIGTERM; where it leads to."""
    scenario_name, happens = LIVES[name]
    scenario = SCENARIOS[scenario_name]
    machine = machine_before(scenario, template, supervised=False)
    try:
        machine.begin_under_strace(log, fault, "supervise")
        settled = "RUNNING" if scenario.before else "STOPPED"
        _wait(machine, lambda: machine.record()["state"] == settled)
        if not _over(machine):
            happens(machine)
        _tell(machine, signal.SIGTERM)
        assert machine.traced is not None
        machine.traced.communicate(timeout=30)
    except BaseException:
        machine.end()
        raise
    return machine


def _tell(machine: Machine, number: int) -> None:
    """Sends a signal to what strace watches, its one child, if that still lives."""
    assert machine.traced is not None
    strace_pid = machine.traced.pid
    try:
        children = Path(f"/proc/{strace_pid}/task/{strace_pid}/children").read_text().split()
    except OSError:
        return
    if children and machine.traced.poll() is None:
        machine.kill(int(children[0]), number)


def points_of_supervisor(name: str, template: Path) -> list[Point]:
    """Every effect of a supervisor's life."""
    with tempfile.NamedTemporaryFile() as log:
        machine = live(name, template, Path(log.name), None)
        try:
            by_the_next_check(machine, SCENARIOS[LIVES[name][0]])
            found = strace.effects(Path(log.name))
        finally:
            machine.end()
    return [Point(name, "supervise", call) for call in found]


def kill_supervisor(point: Point, template: Path, aftermath: str) -> None:
    """Kills the supervisor there, and looks what becomes of it. Raises AssertionError."""
    with tempfile.NamedTemporaryFile() as log:
        machine = live(point.scenario, template, Path(log.name), point.fault)
        try:
            assert machine.traced is not None
            _struck(machine.traced.returncode, Path(log.name), point)
            AFTERMATHS[aftermath](machine, SCENARIOS[LIVES[point.scenario][0]])
        finally:
            machine.end()


def _struck(code: int, log: Path, point: Point) -> None:
    """Raises Missed unless the kill came, and at that very call."""
    if code != -signal.SIGKILL:
        raise Missed(f"{point}: it was not killed, but ended with {code}")
    last = [call for call in strace.calls(log) if call.name == point.call.name][-1]
    compare(last, point.call, str(point))


def compare(seen: strace.Call, meant: strace.Call, where: str) -> None:
    """Raises Missed unless they are the same call in two runs."""
    one, other = _shape(seen), _shape(meant)
    length = min(len(one), len(other))  # of a call that was not finished less is shown
    if one[:length] != other[:length]:
        raise Missed(f"{where}: killed at another call, {seen}")


def _shape(call: strace.Call) -> str:
    """The call without what differs from run to run: folders, numbers, addresses."""
    arguments = call.arguments.partition('"...')[0].partition("<unfinished")[0]
    arguments = re.sub(r"/dx-[a-z0-9_]+", "/dx", arguments)
    arguments = re.sub(r"(0x)?[0-9a-f]*[0-9][0-9a-f]*", "#", arguments)
    return f"{call.name} {arguments[:60].rstrip(' ,')}"
