"""The units in systemd/, under a real systemd as PID 1: each test boots a machine of its own."""

from __future__ import annotations

import fcntl
import json
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd_machine import COMMAND, Machine, why_not
from tests.tiny import tarball

pytestmark = pytest.mark.systemd

# the version in its environment, for all to see
SLEEPS = "#!/bin/sh\nexport VERSION={0}\nexec sleep 1000\n"
# does not end when it is asked to
DEAF = "#!/bin/sh\nexport VERSION={0}\ntrap '' TERM\nexec sleep 1000\n"
# notes what it is run for; no pre_command of it ends
NOTES = "#!/bin/sh\nexport VERSION={0}\necho $1 >> ran\nexec sleep 1000\n"


class Tiny(Machine):
    """A machine whose app is a small script."""

    def publish(self, version: str, script: str = SLEEPS, *words: str) -> None:
        """As a person does, or a CI job: by the command line, in the machine."""
        package = self.store / f"{self.app}-{version}.tar.gz"
        tarball(package, self.app, version, script.format(version))
        self.ok(str(COMMAND), "publish", f"/srv/releases/{package.name}", *words)

    def deploy(self, version: str, script: str = SLEEPS) -> int:
        """Publishes a version and starts the check's unit; the pid of the app."""
        self.publish(version, script)
        self.ok("systemctl", "start", self.check)
        return self.runs(version)

    def runs(self, version: str, *, but: int | None = None) -> int:
        """Waits until that version runs, in a process other than `but`; its pid in the machine."""

        def look() -> int | None:
            record = self.record()
            pid = int(record["app"][0])
            there = record["state"] == "RUNNING" and record["version"] == version and pid != but
            return pid if there and self.environ(pid)["VERSION"] == version else None

        return int(self.until(look))

    def environ(self, pid: int) -> dict[str, str]:
        """The environment of a process of the machine."""
        items = self.path(f"/proc/{pid}/environ").read_text().split("\0")
        return dict(item.split("=", 1) for item in items if item)

    def began(self, pid: int) -> str | None:
        """When a process of the machine began, which tells it from a later one of the same pid."""
        try:
            words = self.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return words[19] if words[0] not in "ZX" else None

    def supervisor(self) -> int:
        """The pid in the machine that systemd knows of."""
        return int(self.show(self.supervise, "MainPID"))

    def checks(self) -> int:
        """Grows with every check that has ended; needs the timer, else systemd forgets it."""
        return int(self.show(self.check, "InactiveEnterTimestampMonotonic"))


def switched_off(folder: Path, app: str) -> Iterator[Tiny]:
    """A machine that is not switched on yet, with our units installed and nothing deployed."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no systemd can be booted here: {reason}")
    made = Tiny(folder, app)
    yield made
    made.end()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Tiny]:
    """A machine whose app is a small script, and no node."""
    for made in switched_off(tmp_path, "tiny"):
        made.config += 'distribution = "none"\n'
        yield made


@pytest.fixture
def beam_machine(tmp_path: Path) -> Iterator[Tiny]:
    """A machine whose app is the Elixir example."""
    yield from switched_off(tmp_path, "counter")


# --- the units ----------------------------------------------------------------------------------


def test_systemd_has_nothing_to_say_against_the_units(machine: Tiny) -> None:
    machine.boot()
    units = (machine.supervise, machine.check, machine.timer)
    ran = machine.run("systemd-analyze", "verify", "--man=no", *units)
    assert (ran.code, ran.out, ran.err) == (0, "", ""), ran  # a misspelt key is told, and no error


def test_the_folder_of_sockets_and_locks_is_there_before_anything_of_ours(machine: Tiny) -> None:
    machine.boot(supervise=False)
    folder = machine.path("/run/deployex").stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, 0)


def test_with_nothing_deployed_supervise_runs_and_checks_do_not_fail(machine: Tiny) -> None:
    machine.boot(timer=True)
    assert machine.show(machine.supervise, "ActiveState") == "active"
    assert machine.record()["state"] == "STOPPED"
    machine.until(lambda: machine.checks() > 0)
    for _ in range(6):  # systemd's own limit is 5 starts in 10 s
        machine.ok("systemctl", "start", machine.check)
    assert machine.show(machine.check, "Result") == "success"
    told = machine.journal("--unit", machine.check)
    assert "deployex" not in told, "a timer would write 17,280 lines a day"
    assert "Starting" not in told, "systemd is silent about what happens every 5 s"


# --- deployments --------------------------------------------------------------------------------


def test_the_timer_deploys_and_updates(machine: Tiny) -> None:
    machine.boot(timer=True)
    machine.publish("0.1.0")
    first = machine.runs("0.1.0")
    env = machine.environ(first)
    assert env["HOME"] == "/root", "Erlang does not start without"
    assert "NOTIFY_SOCKET" not in env
    machine.publish("0.2.0")
    machine.runs("0.2.0")
    assert machine.began(first) is None
    assert machine.show(machine.supervise, "NRestarts") == "0"
    assert "timer" in machine.ok(str(COMMAND), "history")


def test_a_check_that_finds_the_lock_taken_is_no_failure(machine: Tiny) -> None:
    machine.boot()
    with machine.path("/run/deployex/tiny.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine.ok("systemctl", "start", machine.check)
    assert "holds the lock" in machine.journal("--unit", machine.check)


def test_a_check_without_a_supervisor_starts_none_and_says_whose_task_it_is(machine: Tiny) -> None:
    machine.boot()
    machine.ok("systemctl", "stop", machine.supervise)
    machine.publish("0.1.0")
    ran = machine.run("systemctl", "start", machine.check)
    assert ran.code != 0
    assert machine.show(machine.supervise, "ActiveState") == "inactive"
    told = machine.journal("--unit", machine.check)
    assert f"`systemctl start {machine.supervise}`" in told
    machine.ok("systemctl", "start", machine.supervise)
    machine.ok("systemctl", "start", machine.check)
    machine.runs("0.1.0")


# --- ends ---------------------------------------------------------------------------------------


def test_a_crash_of_the_app_is_for_supervise_and_systemd_does_nothing(machine: Tiny) -> None:
    machine.boot()
    app = machine.deploy("0.1.0")
    supervisor = machine.supervisor()
    machine.ok("kill", "-SEGV", str(app))
    machine.runs("0.1.0", but=app)
    assert machine.record()["crashes"] == 1
    assert machine.supervisor() == supervisor
    assert machine.show(machine.supervise, "NRestarts") == "0"


def test_when_supervise_is_killed_the_app_runs_on_and_the_next_one_adopts_it(machine: Tiny) -> None:
    machine.boot()
    app = machine.deploy("0.1.0")
    began, killed = machine.began(app), machine.supervisor()
    machine.ok("kill", "-KILL", str(killed))
    machine.until(lambda: machine.record()["supervisor"][0] not in (killed, 0))
    machine.until(lambda: machine.show(machine.supervise, "ActiveState") == "active")
    assert machine.supervisor() == machine.record()["supervisor"][0]
    assert machine.show(machine.supervise, "NRestarts") == "1"
    assert machine.runs("0.1.0") == app
    assert machine.began(app) == began
    assert machine.supervise in machine.path(f"/proc/{app}/cgroup").read_text()
    assert "adopts tiny" in machine.journal("--unit", machine.supervise)

    machine.ok("kill", "-KILL", str(app))  # and it is as well kept as a child
    again = machine.runs("0.1.0", but=app)
    assert machine.record()["crashes"] == 1
    machine.deploy("0.2.0")
    assert machine.began(again) is None


def test_supervise_is_tried_until_its_configuration_can_be_used_again(machine: Tiny) -> None:
    machine.boot()
    folder = machine.path("/etc/systemd/system/deployex-supervise@.service.d")
    folder.mkdir()
    (folder / "sooner.conf").write_text("[Service]\nRestartSec=1ms\n")  # not to wait for it here
    machine.ok("systemctl", "daemon-reload")
    app = machine.deploy("0.1.0")
    config = machine.path("/etc/deployex/deployex.toml")
    config.write_text("nonsense")
    machine.ok("kill", "-KILL", str(machine.supervisor()))
    # systemd's own limit is 5 starts in 10 s
    machine.until(lambda: int(machine.show(machine.supervise, "NRestarts")) > 6)
    config.write_text(machine.config)
    machine.until(lambda: machine.show(machine.supervise, "ActiveState") == "active")
    assert machine.runs("0.1.0") == app, "all the while it ran"


def test_reload_puts_the_installed_program_in_its_place_under_the_same_pid(machine: Tiny) -> None:
    machine.boot()
    app = machine.deploy("0.1.0")
    began, supervisor = machine.began(app), machine.supervisor()
    installed = machine.path(str(COMMAND))
    installed.unlink()
    installed.write_text(
        f"#!{sys.executable}\nimport sys\nfrom deployex_cli.__main__ import main\n"
        "print('installed anew', file=sys.stderr, flush=True)\nmain()\n"
    )
    installed.chmod(0o755)
    machine.ok("systemctl", "reload", machine.supervise)
    machine.until(lambda: "installed anew" in machine.journal("--unit", machine.supervise))
    machine.until(lambda: machine.show(machine.supervise, "SubState") == "running")
    assert machine.supervisor() == supervisor
    assert machine.show(machine.supervise, "NRestarts") == "0"
    assert machine.runs("0.1.0") == app
    assert machine.began(app) == began
    machine.deploy("0.2.0")


def test_a_stop_of_the_unit_ends_the_app_and_a_start_brings_it_back(machine: Tiny) -> None:
    machine.boot()
    app = machine.deploy("0.1.0")
    machine.ok("systemctl", "stop", machine.supervise)
    assert machine.began(app) is None
    assert machine.show(machine.supervise, "ActiveState") == "inactive", "and not failed"
    assert machine.show(machine.supervise, "Result") == "success"
    told = machine.journal("--unit", machine.supervise)
    assert "remains running" not in told
    assert "SIGTERM: stops tiny" in told
    machine.ok("systemctl", "start", machine.supervise)
    machine.runs("0.1.0")


def test_an_app_that_is_deaf_is_killed_by_supervise_before_systemd_loses_patience(
    machine: Tiny,
) -> None:
    machine.config += 'stop_timeout = "500ms"\n'
    machine.boot()
    app = machine.deploy("0.1.0", DEAF)
    machine.ok("systemctl", "stop", machine.supervise)
    assert machine.began(app) is None
    assert machine.show(machine.supervise, "Result") == "success"
    told = machine.journal("--unit", machine.supervise)
    assert "did not end in 0.5 s: SIGKILL" in told
    assert "timed out" not in told


# --- reboots ------------------------------------------------------------------------------------


def test_a_shutdown_lets_a_deployment_that_cannot_be_undone_come_to_its_end(machine: Tiny) -> None:
    machine.config += 'stop_timeout = "1s"\n'
    machine.boot()
    machine.deploy("0.1.0", DEAF)
    machine.publish("0.2.0")
    machine.ok("systemctl", "start", "--no-block", machine.check)
    machine.until(lambda: machine.record()["state"] == "STOPPING")
    machine.shut_down()
    assert machine.state()["deployment"]["phase"] == "started", machine.story()
    assert machine.record()["state"] == "STOPPED"
    machine.boot()
    machine.runs("0.2.0")


def test_a_power_cut_right_of_the_point_of_no_return_is_finished_without_store_and_check(
    machine: Tiny,
) -> None:
    machine.boot()
    machine.deploy("0.1.0", DEAF)
    machine.publish("0.2.0")
    machine.ok("systemctl", "start", "--no-block", machine.check)
    machine.until(lambda: machine.record()["state"] == "STOPPING")
    assert machine.state()["deployment"]["intent"] == "stop"
    machine.cut_power()

    away = machine.store.rename(machine.store.with_name("away"))
    machine.store.mkdir()
    machine.boot()
    machine.runs("0.2.0")
    assert machine.state()["deployment"]["phase"] in ("switched", "started")
    machine.cut_power()

    machine.store.rmdir()
    away.rename(machine.store)
    machine.boot(timer=True)
    app = machine.runs("0.2.0")
    machine.until(lambda: machine.state()["deployment"]["phase"] == "confirmed")
    assert machine.runs("0.2.0") == app, "the checks left it alone"


def test_a_power_cut_during_a_pre_command_leaves_the_version_before_in_place(
    machine: Tiny,
) -> None:
    machine.boot()
    machine.deploy("0.1.0")
    machine.publish("0.2.0", NOTES, "--pre-command", "eval migrate")
    machine.ok("systemctl", "start", "--no-block", machine.check)
    ran = machine.data / "service/tiny/work/ran"
    machine.until(lambda: ran.read_text() == "eval\n")
    machine.cut_power()

    machine.boot()
    app = machine.runs("0.1.0")
    machine.until(lambda: machine.state()["ghosts"][0]["version"] == "0.2.0")
    machine.ok("systemctl", "start", machine.check)
    assert ran.read_text() == "eval\n", "it is not run again by itself"
    assert machine.runs("0.1.0") == app


# --- a real release -----------------------------------------------------------------------------


@pytest.mark.beam
def test_a_beam_outlives_its_supervisor_and_ends_with_the_unit(
    beam_machine: Tiny, request: pytest.FixtureRequest
) -> None:
    machine = beam_machine
    packages: Path = request.getfixturevalue("packages")  # not built for a test that is skipped
    machine.config += 'env = { PORT = "4000", ERL_EPMD_ADDRESS = "127.0.0.1" }\n'
    machine.boot()
    shutil.copy(packages / "counter-0.1.0.tar.gz", machine.store)
    machine.ok(str(COMMAND), "publish", "/srv/releases/counter-0.1.0.tar.gz")
    machine.ok("systemctl", "start", machine.check)
    asks = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:4000/').read().decode())"
    answer = machine.until(lambda: json.loads(machine.run(sys.executable, "-c", asks).out))
    app, killed = machine.record()["app"][0], machine.supervisor()
    assert (answer["version"], answer["os_pid"]) == ("0.1.0", str(app))

    machine.ok("kill", "-KILL", str(killed))
    machine.until(lambda: machine.supervisor() not in (killed, 0))
    assert json.loads(machine.ok(sys.executable, "-c", asks))["os_pid"] == str(app)
    machine.until(lambda: machine.show(machine.supervise, "ActiveState") == "active")

    machine.ok("systemctl", "stop", machine.supervise)
    assert machine.began(app) is None
    told = machine.journal("--unit", machine.supervise).rpartition("Stopping")[2]
    left = [line for line in told.splitlines() if "remains running" in line]
    assert all("(epmd)" in line for line in left), f"and that serves the other apps: {left}"
