"""How long the next check takes to put right what a kill interrupted, against the step itself.

    recovery = from the kill until a check has ended that was not told to wait (75),
               less a check with nothing to do, less the steps that come after the interrupted one

So the interrupted step, taken again or undone, is in it; and so is what any check pays that finds
something to do, the import of what takes steps: measured too, as the rest of a check beside its
steps. The releases weigh as much as a small real one, the app takes its time to stop. Of each time
the shortest of some runs counts: what else a machine does can only make it longer.
"""

from __future__ import annotations

import io
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults import strace
from tests.faults.scenarios import AT_ONCE, Machine, Scenario, build_template, machine_before
from tests.tiny import python

RUNS = 5  # of each uninterrupted check
POINTS = 5  # to be killed at in each step, spread, its first and last among them
REPEATS = 3  # of each kill
FILES, BYTES = 200, 50_000  # in each release

SLOW = python(
    """
if sys.argv[1] == "migrate":
    time.sleep(0.5)
    sys.exit()
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os._exit(0)))
while True:
    signal.pause()
"""
)
# `deployex` that tells of its steps: in an strace by calls that change nothing, and in a file
WATCHED = """
import builtins, os, sys, time

def watch(step_of, function):
    def watched(self, *rest):
        name = step_of(*rest)
        os.access(f"/step/{name}/begins", os.F_OK)
        began = time.perf_counter()
        try:
            return function(self, *rest)
        finally:
            took = time.perf_counter() - began
            os.access(f"/step/{name}/ends", os.F_OK)
            if "TIMES" in os.environ:
                with open(os.environ["TIMES"], "a") as file:
                    print(name, took, file=file)
    return watched

def importing(*words, **more):
    found = real(*words, **more)
    engine = sys.modules.get("deployex_cli.engine")
    if hasattr(engine, "Engine"):
        builtins.__import__ = real
        engine.Engine._take = watch(lambda step: step.name.value, engine.Engine._take)
    return found

real, builtins.__import__ = builtins.__import__, importing
from deployex_cli.__main__ import main
main()
"""


def _offer(machine: Machine, version: str, *words: str) -> None:
    files = {
        f"bin/{machine.app}": SLOW.encode(),
        "releases/start_erl.data": f"1 {version}".encode(),
    }
    for number in range(FILES):
        files[f"lib/{number % 20}/ebin/{number}.beam"] = os.urandom(BYTES)
    with tarfile.open(machine.package(version), "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    machine.publish(version, *words)


def _update(machine: Machine) -> None:
    machine.configure(AT_ONCE)
    _offer(machine, "0.1.0")
    machine.ok("check")
    machine.confirm()
    _offer(machine, "0.1.1", "--pre-command", "migrate")


def _prune(machine: Machine) -> None:
    for version in ("0.1.0", "0.1.1"):
        machine.configure(AT_ONCE)
        _offer(machine, version)
        machine.ok("check")
        machine.confirm()
    machine.configure('min_healthy_time = "1h"')
    _offer(machine, "0.1.2")
    machine.ok("check")


SCENARIOS = {
    "update": Scenario(_update, ("check",), "0.1.0", "0.1.1"),
    "prune": Scenario(_prune, ("check",), "0.1.2", "0.1.2", config=AT_ONCE),
}


class Check(NamedTuple):
    """One that has ended: seconds, all in all and of each step, in order."""

    code: int
    seconds: float
    steps: dict[str, float]


class Row(NamedTuple):
    """One step: seconds."""

    step: str
    points: int
    uninterrupted: float
    recoveries: tuple[float, ...]  # of each point


def measure() -> str:
    """The table; raises AssertionError when something does not recover."""
    rows, rests = [], []
    for scenario in SCENARIOS.values():
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            template = Path(folder, "template")
            build_template(scenario, template)
            whole = [_uninterrupted(scenario, template) for _ in range(RUNS)]
            nothing = min(idle for _, idle in whole)
            rests.append(min(c.seconds - sum(c.steps.values()) for c, _ in whole) - nothing)
            order = list(whole[0][0].steps)
            for step, calls in points(scenario, template).items():
                later = order[order.index(step) + 1 :]
                times = [
                    min(_recovery(scenario, template, call, later, nothing) for _ in range(REPEATS))
                    for call in calls
                ]
                took = min(check.steps[step] for check, _ in whole)
                rows.append(Row(step, len(calls), took, tuple(times)))
                print(_line(rows[-1]), flush=True)
    return _table(rows, min(rests))


def _table(rows: list[Row], rest: float) -> str:
    head = (
        f"{'step':10} {'points':>6} {'step ms':>9} {'recovery ms':>12} {'longest':>9} {'ratio':>6}"
    )
    lines = [f"{_line(row)} {max(row.recoveries) / row.uninterrupted:6.2f}" for row in rows]
    foot = (
        "ratio: the longest recovery to the step;"
        f" any check that finds a step to take needs {rest * 1e3:.0f} ms more beside its steps"
    )
    return "\n".join([head, *lines, foot])


def _line(row: Row) -> str:
    middle, longest = statistics.median(row.recoveries), max(row.recoveries)
    milliseconds = f"{row.uninterrupted * 1e3:9.0f} {middle * 1e3:12.0f} {longest * 1e3:9.0f}"
    return f"{row.step:10} {row.points:6} {milliseconds}"


def _uninterrupted(scenario: Scenario, template: Path) -> tuple[Check, float]:
    """The scenario's check, and the seconds of one after it, which has nothing to do."""
    machine = machine_before(scenario, template)
    try:
        found = _check(machine)
        assert found.code == 0, found
        machine.until("RUNNING")
        if scenario.before != scenario.after:
            machine.configure('min_healthy_time = "1h"')  # or it would confirm
        idle = _check(machine)
        assert (idle.code, idle.steps) == (0, {}), idle
        return found, idle.seconds
    finally:
        machine.end()


def _check(machine: Machine) -> Check:
    times = machine.root / "times"
    times.write_text("")
    began = time.perf_counter()
    done = subprocess.run(
        _words(),
        env={**machine.env, "TIMES": str(times)},
        cwd=machine.root,
        capture_output=True,
        timeout=60,
        check=False,
    )
    seconds = time.perf_counter() - began
    steps = {}
    for line in times.read_text().splitlines():
        name, took = line.split()
        steps[name] = float(took)
    return Check(done.returncode, seconds, steps)


def _words() -> list[str]:
    return [sys.executable, "-c", WATCHED, "check"]


def points(scenario: Scenario, template: Path) -> dict[str, list[strace.Call]]:
    """Some effects within each step."""
    machine = machine_before(scenario, template)
    try:
        with tempfile.NamedTemporaryFile() as log:
            _under_strace(machine, Path(log.name), None)
            effects = set(strace.effects(Path(log.name)))
            found: dict[str, list[strace.Call]] = {}
            step = None
            for call in strace.calls(Path(log.name)):
                mark = re.search(r'"/step/(\w+)/(begins|ends)"', call.arguments)
                if mark is not None:
                    step = mark[1] if mark[2] == "begins" else None
                elif step is not None and call in effects:
                    found.setdefault(step, []).append(call)
    finally:
        machine.end()
    return {step: _spread(calls) for step, calls in found.items()}


def _spread(calls: list[strace.Call]) -> list[strace.Call]:
    number = min(POINTS, len(calls))
    last = max(number - 1, 1)
    return [calls[round(i * (len(calls) - 1) / last)] for i in range(number)]


def _under_strace(machine: Machine, log: Path, fault: str | None) -> int:
    done = subprocess.run(
        [*strace.watching(log, fault), *_words()],
        env=machine.env,
        cwd=machine.root,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode


def _recovery(
    scenario: Scenario, template: Path, call: strace.Call, later: list[str], nothing: float
) -> float:
    """Seconds, after a kill there."""
    machine = machine_before(scenario, template)
    try:
        if scenario.before != scenario.after:
            machine.configure('min_healthy_time = "1h"')
        with tempfile.NamedTemporaryFile() as log:
            fault = f"{call.name}:signal=KILL:when={call.when}"
            code = _under_strace(machine, Path(log.name), fault)
        assert code == -9, f"{call}: it was not killed, but ended with {code}"
        began = time.perf_counter()
        check = _check(machine)
        while check.code == 75:
            check = _check(machine)
        seconds = time.perf_counter() - began
        assert check.code == 0, f"{call}: {check}"
        machine.until("RUNNING")
        return seconds - nothing - sum(check.steps.get(step, 0.0) for step in later)
    finally:
        machine.end()
