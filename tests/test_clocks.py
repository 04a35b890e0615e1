"""Clocks that are set by hours, and reboots in between: no decision hangs on the time of day.

Commands and supervisors are real processes that are told another time (freezegun) from their first
line on; what a reboot leaves is put on disk as it would be found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.commands.check import _engine
from deployex_cli.config import load_config
from deployex_cli.core.lifecycle import Event, advance
from deployex_cli.core.manifest import Manifest
from deployex_cli.core.plan import Disk, Facts, OnDisk, Policy, Process, plan
from deployex_cli.core.recovery import recover
from deployex_cli.core.state import (
    Deployment,
    Phase,
    Release,
    State,
    StepName,
    decode_state,
    encode_state,
)
from deployex_cli.layout.lock import AppLock
from deployex_cli.storage import open_store
from tests.tiny import EXITS, TinyWorld, amid_the_stop, is_alive, is_whole, put, shell
from tests.world import Ran, eventually

# `deployex`, from its first line on at the time of day that the file $TEST_CLOCK says
PROGRAM = """
import datetime, os, sys
from freezegun import freeze_time
now = datetime.datetime.now(datetime.timezone.utc)
hours = float(open(os.environ["TEST_CLOCK"]).read())
freeze_time(now + datetime.timedelta(hours=hours), tick=True).start()
sys.argv[0] = "deployex"
from deployex_cli.__main__ import main
main()
"""
YEARS = 24 * 365.25
# so that it is one minute after the beginning of time, as on a machine without a battery
EPOCH = -(datetime.now(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(hours=1) + 1 / 60
jumps = pytest.mark.parametrize(
    "hours", [5, -5, 30 * YEARS, EPOCH], ids=["5 h on", "5 h back", "30 years on", "to 1970"]
)
both_ways = pytest.mark.parametrize("hours", [10, -10], ids=["10 h on", "10 h back"])
WAITS = shell(
    """case $1 in
start) exec sleep 1000 ;;
wait) echo begun >> notes; while [ ! -e go ]; do sleep 0.02; done; echo ended >> notes ;;
esac"""
)


def set_clock(tiny: TinyWorld, hours: float) -> dict[str, str]:
    """Sets the clock of what begins with this environment from now on."""
    file = tiny.root / "clock"
    file.write_text(str(hours))
    return {"TEST_CLOCK": str(file)}


def words_at(*words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, *words]


def begin_at(tiny: TinyWorld, hours: float, *words: str) -> subprocess.Popen[str]:
    """Starts `deployex` at another time of day, so many hours from the true one."""
    return subprocess.Popen(
        words_at(*words),
        env={**tiny.env, **set_clock(tiny, hours)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tiny.root,
    )


def run_at(tiny: TinyWorld, hours: float, *words: str) -> Ran:
    """Runs `deployex` at another time of day, to its end."""
    process = begin_at(tiny, hours, *words)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return Ran(process.returncode, out, err)


def entries(tiny: TinyWorld) -> list[dict[str, Any]]:
    lines = (tiny.root / "var/state/tiny.history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- commands -----------------------------------------------------------------------------------


@jumps
def test_an_update_after_the_clock_was_set_is_like_any_other(tiny: TinyWorld, hours: float) -> None:
    tiny.configure('min_healthy_time = "1h"')  # no check confirms anything here
    tiny.roll_out("0.1.0")
    put(tiny, "0.1.1")
    ran = run_at(tiny, hours, "check")
    assert (ran.code, ran.err) == (0, "")
    is_whole(tiny, "0.1.1")
    ran = run_at(tiny, 0, "rollback")
    assert ran.code == 0, "and back to the true time"
    is_whole(tiny, "0.1.0")
    found = entries(tiny)
    assert [entry["event"] for entry in found] == ["deployed", "deployed", "rolled back"]
    assert all(0 <= entry["seconds"] < 60 for entry in found)
    assert abs(found[1]["at"] - found[0]["at"] - hours * 3600) < 120, "it tells the clock's time"
    assert [event for event, _ in tiny.history()] == [entry["event"] for entry in found]


@both_ways
def test_a_version_is_confirmed_by_how_long_it_lived_and_not_by_the_clock(
    tiny: TinyWorld, hours: float
) -> None:
    tiny.configure('min_healthy_time = "1h"')
    tiny.roll_out("0.1.0")
    ran = run_at(tiny, hours, "check", "-v")
    assert "on trial" in ran.out
    assert tiny.phase() == "started"
    tiny.configure('min_healthy_time = "100ms"')
    eventually(lambda: tiny.status()["uptime_seconds"] > 0.1)
    assert "is confirmed" in run_at(tiny, hours, "check").out
    assert tiny.phase() == "confirmed"


@both_ways
def test_the_uptime_does_not_follow_the_clock(tiny: TinyWorld, hours: float) -> None:
    tiny.roll_out("0.1.0")
    (status,) = run_at(tiny, hours, "status", "--json").json["apps"]
    assert 0 <= status["uptime_seconds"] < 120
    assert run_at(tiny, hours, "status").code == 0
    assert run_at(tiny, hours, "history").code == 0


@both_ways
def test_who_holds_a_lock_and_since_when_is_told_at_any_time(tiny: TinyWorld, hours: float) -> None:
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", WAITS, "--pre-command", "wait")
    check = begin_at(tiny, hours, "check")
    tiny.read("notes")
    for other in (0.0, hours):
        second = run_at(tiny, other, "check")
        assert second.code == 75
        said = rf"`deployex check` \(pid {check.pid}\) holds the lock since \d\d:\d\d:\d\d;"
        assert re.search(said, second.err), second
    (tiny.work / "go").touch()
    assert check.wait(60) == 0
    check.communicate()
    is_whole(tiny, "0.1.1")


@jumps
def test_what_was_interrupted_before_the_clock_was_set_is_finished_after_it(
    tiny: TinyWorld, hours: float
) -> None:
    tiny.configure('stop_timeout = "1s"\nmin_healthy_time = "1h"')
    check = amid_the_stop(tiny)
    check.kill()
    check.communicate()
    # the lock died with the check, and the supervisor goes on with the stop
    ran = run_at(tiny, hours, "check")
    assert (ran.code, ran.err) == (0, "")
    is_whole(tiny, "0.1.1")
    last = entries(tiny)[-1]
    assert (last["event"], last["version"]) == ("deployed", "0.1.1")
    assert last["seconds"] >= 0, "though it ended before it began"


def test_a_clock_that_jumps_at_every_look_changes_neither_steps_nor_outcome(
    tiny: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine itself, on the real world, told a time hours before or after the last one."""
    tiny.roll_out("0.1.0")
    put(tiny, "0.1.1")
    for key, value in tiny.env.items():
        monkeypatch.setenv(key, value)
    config = load_config(str(tiny.config), os.environ)
    app = config.app("tiny")
    store = open_store(app)
    began = time.time()
    looks = iter(range(1_000))

    def clock() -> float:
        look = next(looks)
        return began + (look if look % 2 else -look) * 3600

    with AppLock(app.paths.lock, "tiny", "a test") as lock:
        engine = _engine(config, app, lock, store, lambda line: None)
        engine._clock = clock
        raw = store.read_manifest()
        manifest = Manifest(**{**json.loads(raw or b""), "pre_commands": ()})
        due = plan(engine.state, manifest, engine.facts(), Policy(), clock())
        engine.run(due.steps, due.deployment)
    is_whole(tiny, "0.1.1")
    last = entries(tiny)[-1]
    assert (last["event"], last["seconds"] >= 0) == ("deployed", True)
    assert tiny.phase() == "started"
    tiny.confirm()


# --- decisions ----------------------------------------------------------------------------------

OLD = OnDisk("1-1.0.0", "1.0.0", "a" * 64, "", 1_000.0)
NEW = OnDisk("2-1.1.0", "1.1.0", "b" * 64, "", None)
DISK = Disk((OLD, NEW), None, NEW.folder, OLD.folder)
NOW = 1_800_000_000.0
TIMES = [NOW + hours * 3600 for hours in (0, 5, -5, 30 * YEARS, -50 * YEARS)]


def deployment(phase: Phase, intent: StepName | None = None) -> Deployment:
    target = Release(NEW.version, NEW.digest, "", NEW.folder)
    origin = Release(OLD.version, OLD.digest, "", OLD.folder)
    return Deployment(
        *(1, "deployment", "full_deployment", target, origin, (), phase, intent, NOW, NOW, "", ""),
    )


@pytest.mark.parametrize("uptime", [0.0, 29.9, 30.0, 1e6])
@pytest.mark.parametrize("version", ["1.1.0", "1.2.0"])
def test_what_is_due_is_the_same_at_any_time_of_day(uptime: float, version: str) -> None:
    state = State(deployment=deployment(Phase.STARTED))
    facts = Facts(DISK, Process(True, "RUNNING", True, NEW.folder, uptime))
    manifest = Manifest(version, "", (), NEW.digest if version == NEW.version else None)
    plans = [plan(state, manifest, facts, Policy(30.0), now) for now in TIMES]
    assert {(found.steps, found.reason) for found in plans} == {(plans[0].steps, plans[0].reason)}
    confirms = [step.name for step in plans[0].steps].count(StepName.CONFIRM)
    assert confirms == (uptime >= 30)


@pytest.mark.parametrize(
    "phase", [Phase.IDLE, Phase.UNPACKED, Phase.PREPARED, Phase.STOPPED, Phase.SWITCHED]
)
def test_recovery_is_the_same_whenever_it_was_interrupted(phase: Phase) -> None:
    facts = Facts(DISK, Process())
    found = {
        recover(State(deployment=deployment(phase)._replace(began_at=at, phase_at=at)), facts)
        for at in TIMES
    }
    assert len(found) == 1


def test_a_phase_that_ends_before_it_began_is_a_phase_like_any_other() -> None:
    state = State(deployment=deployment(Phase.SWITCHED, StepName.START))
    for now in TIMES:
        moved = advance(state, Event.STARTED, now)
        assert decode_state(encode_state(moved)) == moved


# --- supervisors --------------------------------------------------------------------------------


def supervise_at(tiny: TinyWorld, hours: float, state: str) -> subprocess.Popen[bytes]:
    """A supervisor that lives at another time of day; SIGHUP sets its clock anew."""
    with open(tiny.root / "supervise.said", "ab") as said:
        process = subprocess.Popen(
            words_at("supervise"),
            env={**tiny.env, **set_clock(tiny, hours)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=tiny.root,
        )
    tiny._begun.append(process)
    eventually(lambda: tiny.supervisor() == process.pid and tiny.ask("status"))
    tiny.until(state)
    return process


def jump(tiny: TinyWorld, process: subprocess.Popen[bytes], hours: float) -> None:
    """Sets the clock under a supervisor, which keeps its record and its app over it."""
    set_clock(tiny, hours)
    before = tiny.said.count("begins again")
    process.send_signal(signal.SIGHUP)
    eventually(lambda: tiny.said.count("begins again") > before)
    eventually(lambda: tiny.said.count("supervises tiny") > before + 1)


@both_ways
def test_a_restart_that_waits_comes_no_later_when_the_clock_is_set(
    tiny: TinyWorld, hours: float
) -> None:
    tiny.place(EXITS)
    process = supervise_at(tiny, 0, "BACKOFF")
    tiny.until("BACKOFF", crashes=2)  # the next start is due in 2 s, by a clock of then
    begun = time.monotonic()
    jump(tiny, process, hours)
    record = tiny.until("BACKOFF", crashes=3)
    assert time.monotonic() - begun < 15
    assert record["crashes_in_a_row"] == 3
    assert record["restart_at"] - record["last_exit_at"] == pytest.approx(4, abs=0.5)


@both_ways
def test_whether_an_app_was_healthy_is_not_told_by_the_clock(tiny: TinyWorld, hours: float) -> None:
    tiny.configure('min_healthy_time = "1h"')
    tiny.place()
    process = supervise_at(tiny, 0, "RUNNING")
    for crashes in (1, 2):
        app = tiny.pid()
        jump(tiny, process, hours * crashes)
        assert tiny.ask("status")["app"][0] == app, "and it is not adopted anew, nor started"
        os.kill(app, signal.SIGKILL)
        record = tiny.until("RUNNING" if crashes == 1 else "BACKOFF", crashes=crashes)
        assert record["crashes_in_a_row"] == crashes, "it lived for seconds, whatever the clock"
    tiny.ask("stop")


@both_ways
def test_an_app_is_adopted_by_a_supervisor_of_another_time(tiny: TinyWorld, hours: float) -> None:
    tiny.place()
    first = tiny.supervise()
    app = tiny.pid()
    first.kill()
    first.wait()
    supervise_at(tiny, hours, "RUNNING")
    assert tiny.ask("status")["app"][0] == app
    assert tiny.record()["starts"] == 1
    assert tiny.ask("stop")["state"] == "STOPPED"
    assert not is_alive(app)


# --- another boot, another process --------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else, which nobody may signal."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    was_left_alone = process.poll() is None
    process.kill()
    process.wait()
    assert was_left_alone, "it was signalled"


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def power_cut(tiny: TinyWorld) -> None:
    """All processes are gone at once; what is on disk stays."""
    for pid in tiny.processes():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: tiny.processes() == [])


def rewrite_record(tiny: TinyWorld, **changes: Any) -> None:
    path = tiny.root / "var/state/tiny.supervise.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reboot(tiny: TinyWorld) -> None:
    """A power cut, and a boot with another id; the runtime folder is on tmpfs and empty."""
    power_cut(tiny)
    rewrite_record(tiny, boot_id="00000000-0000-0000-0000-000000000000")
    shutil.rmtree(tiny.root / "run")


@jumps
def test_a_reboot_into_another_time_starts_what_was_current(tiny: TinyWorld, hours: float) -> None:
    tiny.roll_out("0.1.0")
    reboot(tiny)
    supervise_at(tiny, hours, "RUNNING")
    assert run_at(tiny, hours, "check").code == 0
    is_whole(tiny, "0.1.0")
    assert tiny.record()["crashes"] == 0, "a power cut is no crash of the app"
    assert entries(tiny)[0]["event"] == "deployed"


@both_ways
def test_a_reboot_in_the_middle_of_the_switch_is_finished_in_another_time(
    tiny: TinyWorld, hours: float
) -> None:
    tiny.configure('min_healthy_time = "1h"')
    check = amid_the_stop(tiny)
    reboot(tiny)
    check.communicate()
    supervise_at(tiny, hours, "RUNNING")
    assert run_at(tiny, hours, "check").code == 0
    is_whole(tiny, "0.1.1")
    assert [e["event"] for e in entries(tiny) if e["version"] == "0.1.1"] == ["deployed"]


def test_a_restart_that_waited_for_hours_to_come_does_not_wait_after_a_reboot(
    tiny: TinyWorld,
) -> None:
    tiny.place(EXITS)
    process = tiny.supervise("BACKOFF")
    tiny.until("BACKOFF", crashes=2)
    process.kill()
    process.wait()
    rewrite_record(tiny, boot_id="another", restart_at=time.time() + 36_000)
    tiny.place(version="0.1.1")
    tiny.supervise("RUNNING")
    assert tiny.record()["version"] == "0.1.1"


CHANCES: dict[str, Callable[[int], dict[str, Any]]] = {
    # the pids of then live again, as somebody else
    "another boot": lambda pid: {"boot_id": "another", "app": [pid, start_time(pid)]},
    "another start": lambda pid: {"app": [pid, start_time(pid) + 1]},
    "another start of the supervisor too": lambda pid: {
        "app": [pid, start_time(pid) - 1],
        "supervisor": [pid, start_time(pid) - 1],
    },
    "another boot, and all its pids": lambda pid: {
        "boot_id": "another",
        "app": [pid, start_time(pid)],
        "supervisor": [pid, start_time(pid)],
    },
}


@pytest.mark.parametrize("chance", CHANCES)
@pytest.mark.parametrize("state", ["RUNNING", "BACKOFF"])
def test_who_has_a_pid_of_ours_by_chance_is_not_taken_for_ours(
    tiny: TinyWorld, stranger: subprocess.Popen[bytes], chance: str, state: str
) -> None:
    tiny.roll_out("0.1.0")
    power_cut(tiny)
    rewrite_record(tiny, state=state, **CHANCES[chance](stranger.pid))
    status = tiny.status()
    assert (status["pid"], status["supervisor"]["running"]) == (None, False)
    tiny.ok("check")
    is_whole(tiny, "0.1.0")
    assert tiny.pid() != stranger.pid
    tiny.ok("stop")
    assert tiny.record()["app"] is None


def test_a_stop_without_a_supervisor_signals_nobody_who_has_the_pid_by_chance(
    tiny: TinyWorld, stranger: subprocess.Popen[bytes]
) -> None:
    tiny.roll_out("0.1.0")
    power_cut(tiny)
    rewrite_record(tiny, boot_id="another", app=[stranger.pid, start_time(stranger.pid)])
    tiny.ok("stop")
    assert tiny.processes() == [], "none was begun for it"


@pytest.mark.parametrize("kind", ["of nobody", "no socket"])
def test_a_socket_file_of_a_boot_before_is_no_obstacle(tiny: TinyWorld, kind: str) -> None:
    tiny.roll_out("0.1.0")
    power_cut(tiny)
    tiny.socket_path.unlink()
    if kind == "of nobody":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tiny.socket_path))  # it stays when its socket is closed
    else:
        tiny.socket_path.write_text("")
    tiny.ok("check")
    is_whole(tiny, "0.1.0")
    assert tiny.ask("status")["ok"]


def test_a_lock_file_that_names_a_process_of_somebody_else_is_no_obstacle(
    tiny: TinyWorld, stranger: subprocess.Popen[bytes]
) -> None:
    tiny.roll_out("0.1.0")
    power_cut(tiny)
    for name in ("tiny.lock", "tiny.supervise.lock"):
        path = tiny.root / "run" / name
        assert path.exists()
        path.write_text(f"{stranger.pid} {int(time.time()) + 36_000} deployex check\n")
    put(tiny, "0.1.1")
    tiny.ok("check")
    is_whole(tiny, "0.1.1")


def test_a_clock_that_was_set_does_not_make_two_entries_of_one(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    for hours in (5, -5):
        assert run_at(tiny, hours, "stop").code == 0
        assert run_at(tiny, hours, "start").code == 0
    events = [entry["event"] for entry in entries(tiny)]
    assert events == ["deployed", *["stopped", "started"] * 2], "in the order in which it happened"
    assert [event for event, _ in tiny.history()] == events
