"""What must be so after a fault, however bad: a known version runs, and nothing is left over."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter

from tests.faults.scenarios import Machine, Scenario
from tests.tiny import is_alive
from tests.world import Ran, eventually

EXIT_CODES = {0, 1, 2, 3, 4, 5, 6, 7, 75}  # what README promises


def by_the_next_check(machine: Machine, scenario: Scenario) -> None:
    """The timer calls again: one check is enough, and the one after it has nothing to do."""
    ran = next_check(machine)
    assert ran.code in scenario.codes, f"the next check: {ran}"
    runs_a_known_version(machine)
    in_the_end(machine, scenario)


def by_the_supervisor_alone(machine: Machine, scenario: Scenario) -> None:
    """The power goes; the machine boots with no network, then the network comes back."""
    machine.kill_all()
    store, away = machine.root / "store", machine.root / "away"
    store.rename(away)
    supervisor = machine.supervise(None)
    eventually(lambda: machine.supervisor() == supervisor.pid and machine.ask("status"))
    if scenario.before is not None:
        machine.until("RUNNING")
        runs_a_known_version(machine)
    away.rename(store)
    by_the_next_check(machine, scenario)


def next_check(machine: Machine) -> Ran:
    """A check that waits for what a killed one left running (tar, a pre_command)."""

    def look() -> Ran | None:
        ran = machine.run("check")
        return ran if ran.code != 75 else None

    ran = eventually(look)
    assert isinstance(ran, Ran)
    assert "Traceback" not in ran.err, ran.err
    return ran


def in_the_end(machine: Machine, scenario: Scenario) -> None:
    """The world some time later."""
    if scenario.words[0] == "publish":  # whoever was interrupted does it again
        machine.ok(*scenario.words)
        machine.ok("check")
        runs_a_known_version(machine)
    ran = machine.run("check")
    assert ran.code == 0, f"the check after it: {ran}"
    runs_a_known_version(machine)
    _the_right_version_runs(machine, scenario)
    _nothing_is_left_over(machine)
    _history_tells_the_truth(machine)


def runs_a_known_version(machine: Machine) -> None:
    """One app, by one supervisor, out of `current`, whose marker tells what it is."""
    eventually(lambda: _only_these_two_run(machine))
    record = machine.until("RUNNING")
    assert is_alive(record["app"][0]), record
    current = (machine.service / "current").readlink().name
    assert record["folder"] == current, f"{record['folder']} runs, {current} is current"
    marker = json.loads((machine.service / "current/.deployex.json").read_text())
    assert marker["version"] == record["version"]


def _only_these_two_run(machine: Machine) -> bool:
    """The supervisor and its app; no tar, no pre_command, no recovery that is still at work."""
    record = machine.record()
    family = {record["app"][0], record["supervisor"][0]}
    return record["state"] == "RUNNING" and set(machine.processes()) - _tracers(machine) == family


def _tracers(machine: Machine) -> set[int]:
    return {machine.traced.pid} if machine.traced is not None else set()


def _the_right_version_runs(machine: Machine, scenario: Scenario) -> None:
    ghosts = {ghost["version"]: ghost["reason"] for ghost in machine.state()["ghosts"]}
    current = machine.link("current")
    if scenario.words[0] == "rollback" and not ghosts:
        assert current == scenario.before, "a rollback that never began has changed something"
    elif scenario.after in ghosts:
        assert current == scenario.before, f"{current} runs, ghosts are {ghosts}"
        reason = ghosts[scenario.after]
        blameless = "pre_command" not in reason and not reason.startswith("tiny: switch of")
        assert not blameless, f"a good version is a ghost: {ghosts}"
    else:
        assert current == scenario.after, f"{current} runs, ghosts are {ghosts}"
    migrations = machine.work / "migrations"
    if migrations.exists():
        # nothing is in it of one that was killed as it wrote
        assert migrations.read_text() in ("", "migrated\n"), "a pre_command was run more than once"


def _nothing_is_left_over(machine: Machine) -> None:
    assert machine.leftovers() == []
    assert list(machine.scratch.iterdir()) == []
    with (machine.root / f"run/{machine.app}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    markers = [
        json.loads((folder / ".deployex.json").read_text())
        for folder in (machine.service / "releases").iterdir()
    ]
    contents = Counter((marker["version"], marker["sha256"]) for marker in markers)
    assert max(contents.values()) == 1, f"a release is there twice: {contents}"
    known = {"current", "previous", "releases", "work"}
    assert set(os.listdir(machine.service)) <= known, os.listdir(machine.service)


def _history_tells_the_truth(machine: Machine) -> None:
    state = machine.state()
    assert state["unlogged"] == []
    entries = machine.run("history", "--json").json["entries"]
    told = Counter((entry["event"], entry.get("deployment")) for entry in entries)
    assert max(told.values()) == 1, f"told twice: {told}"
    arrivals = [e["version"] for e in entries if e["event"] in ("deployed", "rolled back")]
    assert arrivals[-1] == machine.link("current"), f"{arrivals} and {machine.link('current')}"
    failed = {e["version"] for e in entries if e["event"] == "failed"}
    left = {e["origin"] for e in entries if e["event"] == "rolled back"}
    ghosts = {ghost["version"] for ghost in state["ghosts"]}
    assert ghosts <= failed | left, f"ghosts {ghosts}, but history: {entries}"
