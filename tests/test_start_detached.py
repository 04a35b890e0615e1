"""`start` and `check` where no supervisor runs: one is begun, and it owes its caller nothing."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.tiny import TinyWorld, descriptors, environment, is_alive
from tests.world import eventually


@pytest.mark.parametrize("verb", ["start", "check"])
def test_the_supervisor_outlives_the_end_and_the_session_of_who_began_it(
    tiny: TinyWorld, verb: str
) -> None:
    if verb == "check":
        tiny.offer("0.1.0")
    else:
        tiny.place()
    caller = subprocess.Popen(
        ["deployex", verb],
        env=tiny.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert caller.wait(20) == 0
    supervisor, app = tiny.supervisor(), tiny.pid()
    with pytest.raises(ProcessLookupError):
        os.killpg(caller.pid, signal.SIGHUP)
    assert os.getsid(supervisor) == supervisor
    assert tiny.ask("status")["app"][0] == app
    assert is_alive(app)


def test_a_caller_that_is_killed_with_its_whole_session_takes_nothing_with_it(
    tiny: TinyWorld,
) -> None:
    tiny.place()
    caller = subprocess.Popen(
        ["sh", "-c", "deployex start > started; exec sleep 1000"],
        env=tiny.env,
        cwd=tiny.root,
        start_new_session=True,
    )
    eventually(lambda: "runs" in (tiny.root / "started").read_text())
    for number in (signal.SIGHUP, signal.SIGKILL):
        os.killpg(caller.pid, number)
    caller.wait()
    assert tiny.ask("status")["state"] == "RUNNING"
    assert is_alive(tiny.pid())


def test_nothing_of_the_callers_descriptors_is_held(tiny: TinyWorld) -> None:
    tiny.place()
    extra, extra_end = os.pipe()
    caller = subprocess.Popen(
        ["deployex", "start"],
        env=tiny.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[extra_end],
    )
    os.close(extra_end)
    out, err = caller.communicate(timeout=20)  # would wait for ever for one who holds stdout
    assert (caller.returncode, err) == (0, b""), out
    assert os.read(extra, 1) == b"", "the end of the pipe: nobody holds the other one"
    os.close(extra)
    held = descriptors(tiny.supervisor())
    assert held[0] == "/dev/null"
    assert held[1] == held[2] == str(tiny.root / "log/tiny-supervise.log")
    assert str(tiny.root / "run/tiny.lock") not in held.values(), "not the app's lock either"


def test_it_writes_a_log_of_its_own_for_us_alone_and_appends_to_it(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.ok("start")
    log = tiny.root / "log/tiny-supervise.log"
    assert f"started tiny 0.1.0 (pid {tiny.pid()})" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    first = log.read_text()
    os.kill(tiny.supervisor(), signal.SIGTERM)
    eventually(lambda: not tiny.processes())
    tiny.ok("start")
    assert log.read_text().startswith(first)
    assert len(log.read_text()) > len(first)


def test_the_app_does_not_learn_how_its_supervisor_was_begun(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.ok("start")
    assert "NOTIFY_SOCKET" not in environment(tiny.pid())


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_under_systemd_the_unit_is_named_and_nothing_is_begun(tiny: TinyWorld, verb: str) -> None:
    tiny.place()
    ran = tiny.run(verb, env={"INVOCATION_ID": "0" * 32})
    assert ran.code == 1
    assert "systemctl start deployex-supervise@tiny.service" in ran.err
    assert ran.err.count("\n") == 1
    assert tiny.processes() == []
    assert not tiny.socket_path.exists()


def test_under_systemd_a_check_without_the_unit_stops_nothing_and_the_next_one_goes_on(
    tiny: TinyWorld,
) -> None:
    unit = {"INVOCATION_ID": "0" * 32}
    tiny.offer("0.1.0")
    tiny.supervise("STOPPED")
    tiny.ok("check", env=unit)
    app, supervisor = tiny.pid(), tiny.supervisor()
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: not is_alive(supervisor))
    tiny.offer("0.1.1")
    ran = tiny.run("check", env=unit)
    assert ran.code == 6
    assert "systemctl start deployex-supervise@tiny.service" in ran.err
    assert tiny.pid() == app
    assert is_alive(app)
    assert tiny.link("current") == "0.1.0"
    tiny.supervise(None)  # it finishes what the check began, or else the next check does
    eventually(lambda: tiny.run("check", env=unit).code == 0)
    assert tiny.link("current") == "0.1.1"
    assert not is_alive(app)


def test_a_supervisor_that_cannot_begin_says_why_to_who_asked(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.ok("start")
    os.kill(tiny.supervisor(), signal.SIGTERM)
    eventually(lambda: not tiny.processes())
    (tiny.root / "run/tiny.supervise.lock").unlink()
    (tiny.root / "run/tiny.supervise.lock").mkdir()
    ran = tiny.run("start")
    assert ran.code == 1
    assert "the supervisor ended at once" in ran.err
    assert str(tiny.root / "log/tiny-supervise.log") in ran.err
    assert tiny.processes() == []
