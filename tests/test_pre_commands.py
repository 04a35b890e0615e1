"""pre_commands: once, from the new release, with its environment, while the old one serves."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.tiny import TinyWorld, is_alive, is_whole, python, shell
from tests.world import eventually

# `run` writes what it was given into a file, then does what the test asked for
SCRIPT = """case $1 in
  start) exec sleep 1000 ;;
  note) shift; printf '%s\\n' "$#:$*:$GREETING" >> "$NOTES" ;;
  fail) echo "it went wrong"; exit 3 ;;
  leave) setsid sh -c 'echo $$ >> "$NOTES"; exec sleep 1000' &
    while [ ! -e "$NOTES" ]; do sleep 0.02; done
    [ -n "$2" ] && exit $2
    sleep 1000 ;;
  hang) echo begun >> "$NOTES"; sleep 1000 & sleep 1000 ;;
  wait) echo begun >> "$NOTES"
    while [ ! -e "$NOTES.go" ]; do sleep 0.02; done
    echo ended >> "$NOTES" ;;
esac"""


def ready(tiny: TinyWorld, lines: str = "") -> Path:
    """A world in which 0.1.0 runs, and the file that pre_commands write to."""
    notes = tiny.root / "notes"
    tiny.configure(lines, env={"NOTES": str(notes), "GREETING": "hello you"})
    tiny.roll_out("0.1.0", shell(SCRIPT))
    return notes


def waiting(tiny: TinyWorld) -> tuple[Path, int, subprocess.Popen[str]]:
    """A check whose pre_command waits for `{notes}.go`: notes, the old pid, and the check."""
    notes = ready(tiny)
    old = tiny.pid()
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", "wait")
    check = tiny.begin("check")
    eventually(notes.exists)
    return notes, old, check


def test_they_run_once_with_their_words_split_and_no_shell(tiny: TinyWorld) -> None:
    notes = ready(tiny)
    command = f"note 'two words' $(touch {tiny.root}/oops) ;"
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", command, "--pre-command", "note second")
    tiny.ok("check")
    lines = notes.read_text().splitlines()
    assert lines == [f"4:two words $(touch {tiny.root}/oops) ;:hello you", "1:second:hello you"]
    assert not (tiny.root / "oops").exists()
    tiny.kill(tiny.pid(), signal.SIGKILL)
    eventually(lambda: tiny.record()["crashes"] == 1 and tiny.record()["state"] == "RUNNING")
    tiny.ok("rollback")
    assert len(notes.read_text().splitlines()) == 2, "not after a crash, and not in a rollback"


def test_the_old_version_serves_while_they_run(tiny: TinyWorld) -> None:
    notes, old, check = waiting(tiny)
    assert tiny.pid() == old
    assert tiny.link("current") == "0.1.0"
    assert tiny.status()["pid"] == old, "status waits for nobody"
    second = tiny.run("check")
    assert second.code == 75
    assert f"`deployex check` (pid {check.pid}) holds the lock since" in second.err
    Path(f"{notes}.go").touch()
    assert check.wait(20) == 0
    check.communicate()
    assert tiny.link("current") == "0.1.1"


def test_one_that_fails_ends_the_deployment_and_ghosts_the_version(tiny: TinyWorld) -> None:
    ready(tiny)
    old = tiny.pid()
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", "fail")
    ran = tiny.run("check")
    assert ran.code == 1
    assert "pre_command `fail` exited with 3" in ran.err
    assert "it went wrong" in tiny.log().read_text()
    assert tiny.pid() == old
    assert (tiny.link("new"), tiny.link("current")) == (None, "0.1.0")
    eventually(lambda: "ghosted" in tiny.ok("check", "-v"))
    assert tiny.history()[-1] == ("failed", "0.1.1")


def test_one_that_runs_out_of_time_is_ended_with_its_children(tiny: TinyWorld) -> None:
    ready(tiny, 'pre_command_timeout = "300ms"')
    sleeping = set(tiny.processes("sleep"))
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", "hang")
    ran = tiny.run("check")
    assert ran.code == 1
    assert "did not end in 0.3 s" in ran.err
    eventually(lambda: set(tiny.processes("sleep")) == sleeping)


@pytest.mark.parametrize("words", ["leave", "leave 5"])
def test_what_one_left_in_a_session_of_its_own_does_not_hold_the_lock_for_ever(
    tiny: TinyWorld, words: str
) -> None:
    notes = ready(tiny, 'pre_command_timeout = "300ms"')
    old = tiny.pid()
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", words)
    assert tiny.run("check").code == 1
    left = int(notes.read_text())
    eventually(lambda: not is_alive(left))
    assert tiny.run("check").code == 0
    assert tiny.pid() == old


def test_a_check_that_is_killed_leaves_them_running_and_the_lock_with_them(tiny: TinyWorld) -> None:
    notes, old, check = waiting(tiny)
    check.kill()
    check.communicate()
    second = tiny.run("check")
    assert second.code == 75
    assert f"(pid {check.pid}, ended) left running holds the lock" in second.err
    Path(f"{notes}.go").touch()
    eventually(lambda: "ended" in notes.read_text())
    eventually(lambda: tiny.run("check").code != 75)
    assert notes.read_text().splitlines() == ["begun", "ended"], "it is not run again by itself"
    assert tiny.pid() == old
    assert tiny.link("new") is None
    assert "interrupted while its pre_commands ran" in tiny.status()["ghosts"][0]["reason"]
    tiny.ok("check", "--force")
    assert tiny.link("current") == "0.1.1"


def test_ctrl_c_during_them_leaves_the_old_version_and_says_that_they_go_on(
    tiny: TinyWorld,
) -> None:
    notes, old, check = waiting(tiny)
    os.kill(check.pid, signal.SIGINT)
    _, err = check.communicate(timeout=20)
    assert check.returncode == 1
    assert "interrupted by SIGINT" in err
    assert (tiny.pid(), tiny.link("new"), tiny.link("current")) == (old, None, "0.1.0")
    assert [g["version"] for g in tiny.status()["ghosts"]] == ["0.1.1"]
    Path(f"{notes}.go").touch()


def test_a_stop_signal_right_of_the_point_of_no_return_waits_for_the_start(tiny: TinyWorld) -> None:
    ready(tiny, 'stop_timeout = "500ms"')
    tiny.kill(tiny.pid(), signal.SIGSTOP)  # so that the stop takes until SIGKILL
    tiny.offer("0.1.1")
    check = tiny.begin("check")
    eventually(lambda: tiny.record()["state"] == "STOPPING")
    os.kill(check.pid, signal.SIGTERM)
    check.communicate(timeout=60)
    assert tiny.link("current") == "0.1.1"
    eventually(lambda: tiny.record()["state"] == "RUNNING")


def test_they_have_exactly_the_apps_environment_folder_and_umask(tiny: TinyWorld) -> None:
    ready(tiny)
    told = "open(f'{sys.argv[1]}-{what}', 'w').write(open(f'/proc/self/{what}').read())"
    script = python(
        f"for what in ('environ', 'status'): {told}\n"
        "os.symlink(os.getcwd(), f'{sys.argv[1]}-cwd')\n"
        "if sys.argv[1] == 'start': time.sleep(1000)\n"
    )
    tiny.offer("0.1.1", script, "--pre-command", "command")
    tiny.ok("check")
    eventually((tiny.work / "start-cwd").is_symlink)
    for what in ("environ", "cwd"):
        of_app, of_command = (tiny.work / f"{who}-{what}" for who in ("start", "command"))
        if what == "cwd":
            assert of_app.readlink() == of_command.readlink() == tiny.work
        else:
            assert of_app.read_text() == of_command.read_text() != ""
    umasks = [
        line
        for who in ("start", "command")
        for line in (tiny.work / f"{who}-status").read_text().splitlines()
        if line.startswith(("Umask", "SigIgn", "SigBlk"))
    ]
    assert len(umasks) == 6
    # Python itself ignores SIGPIPE and SIGXFSZ, in both
    assert umasks[:3] == umasks[3:]


def test_a_supervisor_that_is_told_to_end_ends_them_and_the_deployment(tiny: TinyWorld) -> None:
    notes = ready(tiny)
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", "hang")
    check = tiny.begin("check")
    eventually(notes.exists)
    os.kill(tiny.supervisor(), signal.SIGTERM)
    _, err = check.communicate(timeout=20)
    assert check.returncode == 1
    assert "was stopped with the supervisor" in err
    eventually(lambda: not tiny.processes())
    assert (tiny.link("new"), tiny.link("current")) == (None, "0.1.0")


def test_a_supervisor_that_is_killed_leaves_them_running_and_the_lock_with_them(
    tiny: TinyWorld,
) -> None:
    notes, old, check = waiting(tiny)
    os.kill(tiny.supervisor(), signal.SIGKILL)
    _, err = check.communicate(timeout=20)
    assert check.returncode == 1
    assert "the supervisor ended during `run`" in err
    assert "are not repeated" in err
    assert tiny.run("check").code == 75
    assert is_alive(old)
    Path(f"{notes}.go").touch()
    eventually(lambda: tiny.run("check").code == 0)
    assert tiny.pid() == old, "adopted by the supervisor that the check began"
    assert tiny.ask("status")["app"][0] == old
    assert notes.read_text().splitlines() == ["begun", "ended"]


def test_what_a_killed_one_has_begun_does_not_work_on(tiny: TinyWorld) -> None:
    ready(tiny)
    script = python(
        "if os.fork() == 0:\n"
        "    os.closerange(3, 1024)  # so it does not hold the lock\n"
        "    open(os.environ['NOTES'], 'w').close()\n"
        "    time.sleep(1000)\n"
        "while not os.path.exists(os.environ['NOTES']):\n"
        "    time.sleep(0.01)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    tiny.offer("0.1.1", script, "--pre-command", "migrate")
    assert tiny.run("check").code == 1
    is_whole(tiny, "0.1.0")


def test_what_should_run_and_does_not_is_started_before_them(tiny: TinyWorld) -> None:
    ready(tiny)
    for pid in (tiny.supervisor(), tiny.pid()):
        tiny.kill(pid, signal.SIGKILL)
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", "fail")
    assert tiny.run("check").code == 1
    is_whole(tiny, "0.1.0")


def test_a_version_that_cannot_start_any_more_does_not_keep_its_successor_away(
    tiny: TinyWorld,
) -> None:
    ready(tiny)
    for pid in (tiny.supervisor(), tiny.pid()):
        tiny.kill(pid, signal.SIGKILL)
    (tiny.service / "current/bin/tiny").unlink()
    tiny.offer("0.1.1", shell(SCRIPT), "--pre-command", "note it")
    tiny.ok("check")
    is_whole(tiny, "0.1.1")
