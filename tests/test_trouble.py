"""When the machine is short of something, or a person makes a mistake: nothing is lost by it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from deployex_cli.config import AppConfig, load_config
from deployex_cli.layout.state_file import read_history
from deployex_cli.supervise.record import read_record
from tests.tiny import SLEEPS, TinyWorld, is_alive, shell
from tests.world import eventually

NOBODY = 65534
FAILS = shell('case "$1" in\nstart) exec sleep 1000 ;;\nmigrate) exit 3 ;;\nesac')


@pytest.mark.parametrize(
    "attempt",
    [
        lambda tiny: tiny.run("rollback", "9.9.9"),
        lambda tiny: (tiny.offer("0.1.1", FAILS, "--pre-command", "migrate"), tiny.run("check"))[1],
    ],
    ids=["a version that is not there", "a pre_command that fails"],
)
def test_an_attempt_that_comes_to_nothing_takes_nobodys_trial_away(
    tiny: TinyWorld, attempt: object
) -> None:
    tiny.configure('min_healthy_time = "1h"')
    tiny.roll_out("0.1.0")
    assert callable(attempt)
    assert attempt(tiny).code == 1
    assert "on trial" in tiny.ok("status")
    tiny.configure('min_healthy_time = "1ms"')
    assert "0.1.0 is confirmed" in tiny.ok("check")
    tiny.configure('min_healthy_time = "1h"')
    tiny.roll_out("0.2.0")
    assert tiny.link("previous") == "0.1.0"
    assert ("confirmed", "0.1.0") in tiny.history()


@pytest.mark.root
def test_on_a_full_disk_an_app_can_be_stopped_and_what_could_not_be_noted_is_said(
    tiny: TinyWorld,
) -> None:
    app = tiny.roll_out("0.1.0")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tiny.scratch], check=True)
    try:
        state = tiny.state_file
        full = tiny.scratch / "state"
        subprocess.run(["cp", "-a", state.parent, full], check=True)
        state.parent.rename(tiny.root / "was")
        state.parent.symlink_to(full)
        with (full / "filler").open("wb", 0) as filler, pytest.raises(OSError, match="space"):
            while True:
                filler.write(b"x" * 4096)
        ran = tiny.run("stop")
        assert ran.code == 1
        assert "stopped, but" in ran.err
        assert "No space left on device" in ran.err
        assert not is_alive(app)
        (full / "filler").unlink()
        tiny.ok("stop")
        assert tiny.run("check").out == ""
        assert not tiny.processes("sleep")
    finally:
        eventually(lambda: tiny.supervisor() is not None)
        os.kill(tiny.supervisor(), 15)
        eventually(lambda: not tiny.processes())
        subprocess.run(["umount", tiny.scratch], check=True)


@pytest.mark.parametrize(
    "words", [["check"], ["rollback", "0.1.0"], ["status"], ["check", "--json"]]
)
def test_what_cannot_be_printed_is_done_all_the_same(tiny: TinyWorld, words: list[str]) -> None:
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1")
    if words[0] == "rollback":
        tiny.ok("check")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            ["deployex", *words], env=tiny.env, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    expected = {"check": "0.1.1", "rollback": "0.1.0", "status": "0.1.0"}[words[0]]
    assert tiny.link("current") == expected


@pytest.mark.parametrize("words", ["check -v", "status", "history"])
def test_nobody_needs_a_stdout(tiny: TinyWorld, words: str) -> None:
    tiny.roll_out("0.1.0")
    done = subprocess.run(
        ["sh", "-c", f"exec deployex {words} >&-"], env=tiny.env, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    "read",
    [lambda app: list(read_history(app)), lambda app: read_record(app.paths.record)],
    ids=["history", "record"],
)
def test_what_another_user_may_not_read_is_not_taken_for_absent(
    tiny: TinyWorld, read: Callable[[AppConfig], object]
) -> None:
    tiny.roll_out("0.1.0")
    tiny.root.chmod(0o755)
    app = load_config(str(tiny.config), {}).app("tiny")
    pid = os.fork()
    if pid == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            read(app)
            os._exit(1)
        except PermissionError:
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_same_failure_again_and_again_is_told_once(tiny: TinyWorld) -> None:
    tiny.configure('min_healthy_time = "1h"')
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1")
    (tiny.dist / "tiny-0.1.1.tar.gz").write_bytes(b"no tarball")
    for _ in range(3):
        assert tiny.run("check").code == 1
    assert tiny.history().count(("failed", "0.1.1")) == 1
    tiny.ok("publish", str(tiny.pack("0.1.1", SLEEPS)), "--replace")
    tiny.ok("check")
    assert tiny.link("current") == "0.1.1"


def test_a_version_published_later_is_the_way_out_of_a_rollback_that_cannot_start(
    tiny: TinyWorld,
) -> None:
    tiny.offer("0.0.9", "#!/no/such/interpreter\n")
    tiny.roll_out("0.1.0")
    assert tiny.run("rollback", "0.0.9").code == 5
    assert tiny.run("check").code == 5, "0.1.0 was left by a person, and nothing else is there"
    tiny.roll_out("0.1.1")
    assert tiny.link("current") == "0.1.1"
    assert is_alive(tiny.pid())


def test_a_switch_is_done_again_of_a_release_that_does_not_say_what_it_boots(
    tiny: TinyWorld,
) -> None:
    tiny.configure('min_healthy_time = "1h"')
    first = tiny.roll_out("0.1.0")
    (tiny.service / "current/releases/start_erl.data").unlink()  # as Gleam's shipments have none
    state = json.loads(tiny.state_file.read_text())
    state["deployment"].update(phase="stopped", intent="switch")  # and the run was killed
    tiny.state_file.write_text(json.dumps(state))
    os.kill(first, signal.SIGKILL)
    tiny.ok("check")
    assert tiny.link("current") == "0.1.0"
    assert is_alive(tiny.pid())
    assert json.loads(tiny.state_file.read_text())["ghosts"] == []


def test_a_pre_command_that_could_not_be_split_is_told_as_a_matter_of_the_command_line(
    tiny: TinyWorld,
) -> None:
    ran = tiny.run("publish", str(tiny.pack("0.1.0")), "--pre-command", 'a "b')
    assert ran.code == 2
    assert "--pre-command" in ran.err
    assert not tiny.manifest.exists()


def test_stopping_what_was_never_deployed_says_so(tiny: TinyWorld) -> None:
    assert "nothing is deployed" in tiny.ok("stop")
    assert tiny.history() == []
