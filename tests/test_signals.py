"""SIGTERM, SIGINT and SIGHUP at each phase of a check and in each state of a supervisor.

A check undoes what it began (exit 1, nothing that serves was touched) or finishes it (exit 0); what
a signal hits is made exact with strace, which sends it at the nth call of a kind. A supervisor ends
with its app, or begins again without touching it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tiny import (
    DEAF,
    EXITS,
    SLEEPS,
    TinyWorld,
    amid_the_stop,
    answer_on,
    is_alive,
    is_whole,
    proc_status,
    put,
    shell,
    tarball,
)
from tests.world import Ran, eventually

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which sends a signal at a call, is not there"
)
both = pytest.mark.parametrize("number", [TERM, INT], ids=["SIGTERM", "SIGINT"])
# what a check may end with: finished, undone, or ended by the signal before it began anything (and
# after it had done everything). Python ends by SIGINT itself, or with a shell's code for that
FINISHED, UNDONE = 0, 1
PLAINLY = {TERM: {-TERM}, INT: {-INT, 130}}
# `bin/tiny wait` writes that it has begun and ended, and waits for the file `go` between
MIGRATES = shell(
    """case $1 in
start) exec sleep 1000 ;;
note) echo "$2" >> notes ;;
wait) echo begun >> notes; while [ ! -e go ]; do sleep 0.02; done; echo ended >> notes ;;
esac"""
)


def ended(process: subprocess.Popen[str]) -> Ran:
    """Waits for the end of what `begin` began."""
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


def is_untouched(tiny: TinyWorld, version: str, pid: int) -> None:
    """That version serves, in that very process, and nothing of another is left."""
    assert (tiny.pid(), tiny.link("current"), tiny.link("new")) == (pid, version, None)
    assert is_alive(pid)
    assert tiny.leftovers() == []


def told(tiny: TinyWorld, version: str) -> list[str]:
    """The events of a version in the history, in order."""
    lines = (tiny.root / "var/state/tiny.history.jsonl").read_text().splitlines()
    return [e["event"] for e in map(json.loads, lines) if e["version"] == version]


# --- a check, phase by phase --------------------------------------------------------------------


class SlowTar(NamedTuple):
    """A tar in front of the real one, which waits until it may begin."""

    env: dict[str, str]
    began: Path
    go: Path


def slow_tar(tiny: TinyWorld) -> SlowTar:
    folder = tiny.root / "bin"
    folder.mkdir(exist_ok=True)
    began, go = folder / "began", folder / "go"
    real = shutil.which("tar", path=tiny.env["PATH"])
    script = f'echo > {began}; while [ ! -e {go} ]; do sleep 0.02; done; exec {real} "$@"'
    (folder / "tar").write_text(shell(script))
    (folder / "tar").chmod(0o755)
    return SlowTar({"PATH": f"{folder}:{tiny.env['PATH']}"}, began, go)


@both
def test_during_unpack_it_is_undone_and_says_so(tiny: TinyWorld, number: signal.Signals) -> None:
    old = tiny.roll_out("0.1.0")
    put(tiny, "0.1.1")
    tar = slow_tar(tiny)
    check = tiny.begin("check", env=tar.env)
    eventually(tar.began.exists)
    check.send_signal(number)
    ran = ended(check)
    assert ran.code == UNDONE
    assert f"interrupted by {number.name}" in ran.err
    is_untouched(tiny, "0.1.0", old)
    is_whole(tiny, "0.1.0")  # no tar either
    assert told(tiny, "0.1.1") == ["failed"]
    assert tiny.status()["ghosts"] == []
    tiny.ok("check")
    is_whole(tiny, "0.1.1")


@both
def test_during_the_unpack_of_a_first_deployment_nothing_is_left(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    put(tiny, "0.1.0")
    tar = slow_tar(tiny)
    check = tiny.begin("check", env=tar.env)
    eventually(tar.began.exists)
    check.send_signal(number)
    assert ended(check).code == UNDONE
    eventually(lambda: tiny.processes() == [])
    assert list((tiny.service / "releases").iterdir()) == []
    assert [tiny.link(name) for name in ("new", "current", "previous")] == [None] * 3
    tiny.ok("check")
    is_whole(tiny, "0.1.0")


def test_ctrl_c_in_a_terminal_reaches_all_that_the_check_began_and_is_undone_too(
    tiny: TinyWorld,
) -> None:
    put(tiny, "0.1.0", MIGRATES)
    tar = slow_tar(tiny)
    # a terminal sends it to the whole process group
    check = subprocess.Popen(
        ["deployex", "check"],
        env={**tiny.env, **tar.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tiny.root,
        process_group=0,
    )
    eventually(tar.began.exists)
    os.killpg(check.pid, INT)
    assert ended(check).code == UNDONE
    tar.go.touch()
    tiny.ok("check")
    is_whole(tiny, "0.1.0")


@both
def test_a_second_signal_while_it_is_undone_changes_nothing(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    old = tiny.roll_out("0.1.0")
    tar = slow_tar(tiny)
    for version in ("0.1.1", "0.1.2", "0.1.3"):
        put(tiny, version)
        check = tiny.begin("check", env=tar.env)
        eventually(tar.began.exists)
        tar.began.unlink()
        for again in (number, TERM, INT, number):
            check.send_signal(again)
        ran = ended(check)
        # the last of them may come when all is undone already
        assert ran.code == UNDONE or ran.code in PLAINLY[TERM] | PLAINLY[INT], ran
        assert (tiny.pid(), tiny.link("current")) == (old, "0.1.0")
    tiny.ok("check")
    is_whole(tiny, "0.1.3")
    assert told(tiny, "0.1.3")[-1] == "deployed"
    assert told(tiny, "0.1.1") == ["failed"]


@both
def test_twice_during_a_migration_it_leaves_the_old_version_and_the_migration(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    old = tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", MIGRATES, "--pre-command", "wait")
    check = tiny.begin("check")
    tiny.read("notes")
    check.send_signal(number)
    check.send_signal(number)
    ran = ended(check)
    assert ran.code == UNDONE or ran.code in PLAINLY[number], ran
    is_untouched(tiny, "0.1.0", old)
    (tiny.work / "go").touch()
    eventually(lambda: tiny.run("check").code == 0)
    assert tiny.read("notes") == "begun\nended\n"
    is_whole(tiny, "0.1.0")
    assert told(tiny, "0.1.1") == ["failed"]
    assert [ghost["version"] for ghost in tiny.status()["ghosts"]] == ["0.1.1"]


@both
def test_during_the_stop_of_a_deaf_app_the_deployment_is_finished(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    tiny.configure('stop_timeout = "500ms"')
    check = amid_the_stop(tiny)
    check.send_signal(number)
    check.send_signal(TERM if number is INT else INT)
    ran = ended(check)
    assert (ran.code, ran.out.splitlines()[-1]) == (FINISHED, "tiny: deployed to 0.1.1")
    is_whole(tiny, "0.1.1")
    assert told(tiny, "0.1.1") == ["deployed"]


@both
def test_during_the_start_it_is_finished(tiny: TinyWorld, number: signal.Signals) -> None:
    tiny.configure('stop_timeout = "1s"')
    check = amid_the_stop(tiny)
    # the supervisor reads the configuration at the start, and waits there for who writes it
    text = tiny.config.read_text()
    tiny.config.unlink()
    os.mkfifo(tiny.config)
    eventually(lambda: tiny.state()["deployment"]["intent"] == "start")
    check.send_signal(number)
    check.send_signal(number)
    # opened once somebody reads: while it is waited for, the check is too
    with tiny.config.open("w") as writer:
        assert check.poll() is None
        tiny.config.unlink()
        tiny.config.write_text(text)
        writer.write(text)
    assert ended(check).code == FINISHED
    is_whole(tiny, "0.1.1")
    assert told(tiny, "0.1.1") == ["deployed"]


@both
def test_a_check_of_several_apps_that_is_told_to_end_begins_no_other_app(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    """The first is in its unpack, and the signal means the whole run."""
    text = tiny.config.read_text().replace("[apps.tiny]", "[apps.aaa]\n[apps.tiny]")
    tiny.config.write_text(text)
    put(tiny, "0.1.0")
    dist, versions = tiny.root / "store/dist/aaa", tiny.root / "store/versions/aaa/local"
    for folder in (dist, versions):
        folder.mkdir(parents=True, mode=0o700)
        folder.parent.chmod(0o700)
    tarball(dist / "aaa-0.1.0.tar.gz", "aaa", "0.1.0", SLEEPS)
    (versions / "current.json").write_text('{"version": "0.1.0", "hash": ""}')
    tar = slow_tar(tiny)
    check = tiny.begin("check", env=tar.env)
    eventually(tar.began.exists)
    check.send_signal(number)
    tar.go.touch()  # were the other begun, it would not have to wait
    ran = ended(check)
    assert ran.code == UNDONE
    assert f"interrupted by {number.name}" in ran.err
    assert tiny.link("current") is None, "the other was not begun"
    assert tiny.processes() == []


@both
def test_a_watch_that_is_told_to_end_during_a_deployment_ends(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    tiny.roll_out("0.1.0")
    put(tiny, "0.1.1")
    tar = slow_tar(tiny)
    watch = tiny.begin("check", "--watch", "0.1", env=tar.env)
    eventually(tar.began.exists)
    watch.send_signal(number)
    tar.go.touch()  # should it try again, then nothing keeps it
    try:
        watch.communicate(timeout=20)
    finally:
        watch.kill()
        watch.communicate()
    assert watch.returncode in {UNDONE} | PLAINLY[number]


# --- a check, call by call ----------------------------------------------------------------------


class Struck(NamedTuple):
    """A run to which strace sent a signal; `hit`: there was an nth call at which it did."""

    ran: Ran
    hit: bool


def strike(tiny: TinyWorld, call: str, nth: int, number: signal.Signals, *words: str) -> Struck:
    """Runs `deployex` with these words; its main thread gets a signal at its nth call of a kind."""
    log = tiny.root / "trace"
    inject = f"inject={call}:signal={number.name}:when={nth}"
    traced = ["strace", "-o", str(log), "-e", f"trace={call}", "-e", inject, "deployex", *words]
    done = subprocess.run(
        traced,
        env=tiny.env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=tiny.root,
        timeout=60,
    )
    hit = f"--- {number.name} " in log.read_text()
    return Struck(Ran(done.returncode, done.stdout, done.stderr), hit)


def every_other(nth: int) -> signal.Signals:
    return TERM if nth % 2 else INT


def is_one_or_the_other(
    tiny: TinyWorld, struck: Struck, number: signal.Signals, before: tuple[str, int], new: str
) -> None:
    """What was begun is finished or undone, its code says which, and history tells it once."""
    code, version, pid = struck.ran.code, *before
    where = struck.ran
    if code == FINISHED:
        assert told(tiny, new) == ["deployed"], where
        is_whole(tiny, new)
    elif code == UNDONE:
        assert f"interrupted by {number.name}" in struck.ran.err, where
        assert told(tiny, new) == ["failed"], where
        is_untouched(tiny, version, pid)
    else:
        assert code in PLAINLY[number], where
        if told(tiny, new):  # it came after the last step
            assert told(tiny, new) == ["deployed"], where
            is_whole(tiny, new)
        else:  # or before the first
            assert (tiny.pid(), tiny.link("current")) == (pid, version), where
    assert "Traceback" not in struck.ran.err or code in PLAINLY[number], where


@needs_strace
@pytest.mark.parametrize(
    ("call", "step"),
    [
        ("/^rename", 2),
        ("/^f(data)?sync$", 3),
        ("/^unlink", 1),
        ("/^symlink", 1),
        ("/^mkdir", 1),
        ("/^(clone|clone3|fork|vfork)$", 1),
        ("/^(connect|sendto|sendmsg|recvfrom)$", 1),
        ("/^(flock|syncfs|wait4|waitid|memfd_create)$", 1),
        ("/^futex$", 4),
    ],
)
def test_at_any_call_of_an_update_it_is_undone_or_finished(
    tiny: TinyWorld, call: str, step: int
) -> None:
    tiny.roll_out("0.0.0")
    version, pid = "0.0.0", tiny.pid()
    nth = 1
    while True:
        number, new = every_other(nth // step), f"0.0.{nth}"
        put(tiny, new)
        struck = strike(tiny, call, nth, number, "check")
        is_one_or_the_other(tiny, struck, number, (version, pid), new)
        tiny.ok("check")
        is_whole(tiny, new)
        assert told(tiny, new).count("deployed") == 1
        assert tiny.phase() in ("started", "confirmed")
        version, pid = new, tiny.pid()
        if not struck.hit:
            break
        nth += step
    assert nth > 1, "no such call was ever made"


@needs_strace
@pytest.mark.parametrize("call", ["/^rename", "/^(connect|sendto|sendmsg|recvfrom)$"])
def test_a_version_is_ghosted_only_if_its_migration_began(tiny: TinyWorld, call: str) -> None:
    tiny.roll_out("0.0.0", MIGRATES)
    for nth in range(1, 100, 2 if "rename" in call else 1):
        version = f"0.0.{nth}"
        put(tiny, version, MIGRATES)
        manifest = json.loads(tiny.manifest.read_text())
        tiny.manifest.write_text(json.dumps({**manifest, "pre_commands": [f"note {version}"]}))
        struck = strike(tiny, call, nth, TERM, "check")
        # the migration has the lock until it ends, and may outlive the check
        eventually(lambda: tiny.run("check").code == 0)
        notes = tiny.work / "notes"
        ran = notes.read_text().split().count(version) if notes.exists() else 0
        ghosts = [ghost["version"] for ghost in tiny.state()["ghosts"]]
        if version in ghosts:
            assert "are not repeated" in struck.ran.err or "not run again" in struck.ran.err
            assert ran == 1, f"ghosted, and its migration never ran: {struck}"
        else:
            assert ran == 1
            is_whole(tiny, version)
        if not struck.hit:
            assert version not in ghosts
            break
    assert nth > 3


@needs_strace
def test_at_any_rename_of_a_first_deployment_it_is_undone_or_finished(tiny: TinyWorld) -> None:
    for nth in range(1, 100, 3):
        number = every_other(nth)
        put(tiny, "0.1.0")
        struck = strike(tiny, "/^rename", nth, number, "check")
        assert struck.ran.code in {FINISHED, UNDONE} | PLAINLY[number], struck
        if struck.ran.code == UNDONE:
            assert tiny.link("current") is None
            assert tiny.leftovers() == []
            assert told(tiny, "0.1.0") == ["failed"]
        tiny.ok("check")
        is_whole(tiny, "0.1.0")
        assert told(tiny, "0.1.0").count("deployed") == 1
        supervisor = tiny.supervisor()
        os.kill(supervisor, TERM)
        eventually(lambda: tiny.processes() == [])
        shutil.rmtree(tiny.root / "var")
        if not struck.hit:
            return
    raise AssertionError("the renames of a first deployment have no end")


@needs_strace
@pytest.mark.parametrize("call", ["/^rename", "/^(clone|clone3|vfork)$", "/^futex$"])
def test_a_rollback_into_the_store_is_undone_or_finished_and_always_ends(
    tiny: TinyWorld, call: str
) -> None:
    """It comes through the command line's long way, which waits for each thread at its end."""
    tiny.roll_out("0.0.0")
    for nth in range(1, 100, 6):
        number = every_other(nth // 6)
        there, here = f"1.{nth}.0", f"1.{nth}.1"
        put(tiny, there)  # in the store alone
        put(tiny, here)
        tiny.ok("check")
        pid = tiny.pid()
        struck = strike(tiny, call, nth, number, "rollback", there)
        if struck.ran.code == FINISHED:
            is_whole(tiny, there)
            assert told(tiny, there) == ["rolled back"]
        else:
            assert struck.ran.code in {UNDONE} | PLAINLY[number], struck
            if not told(tiny, there) or told(tiny, there) == ["failed"]:
                assert (tiny.pid(), tiny.link("current")) == (pid, here)
        tiny.ok("check")
        assert tiny.leftovers() == []
        if not struck.hit:
            break


# --- a supervisor -------------------------------------------------------------------------------

STATES = ["STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING"]


def supervise_in(tiny: TinyWorld, state: str) -> int:
    """A supervisor that is in that state, and stays there for a while; its pid."""
    if state == "STOPPED":
        return tiny.supervise("STOPPED").pid
    if state == "BACKOFF":
        tiny.place(EXITS)
        process = tiny.supervise("BACKOFF")
        tiny.until("BACKOFF", crashes=2)
        return process.pid
    if state == "STOPPING":
        tiny.configure('stop_timeout = "1s"')
        tiny.place(DEAF)
        process = tiny.supervise()
        eventually((tiny.work / "deaf").exists)
        return process.pid
    tiny.place()
    if state == "RUNNING":
        return tiny.supervise().pid
    return supervise_slowly(tiny)


def supervise_slowly(tiny: TinyWorld) -> int:
    """A supervisor whose app is between its fork and its exec; the supervisor's pid."""
    if shutil.which("strace") is None:
        pytest.skip("strace, which holds the app before its exec, is not there")
    with open(tiny.root / "supervise.said", "ab") as said:
        process = subprocess.Popen(
            # each process's first execve waits: the supervisor's own, and then the app's
            [
                *("strace", "-f", "-o", str(tiny.root / "trace"), "-e", "trace=execve"),
                *("-e", "inject=execve:delay_enter=800000:when=1", "deployex", "supervise"),
            ],
            env=tiny.env,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd=tiny.root,
        )
    tiny._begun.append(process)
    tiny.until("STARTING")
    return tiny.supervisor()


@both
@pytest.mark.parametrize("state", STATES)
def test_told_to_end_twice_in_any_state_it_ends_once_and_nothing_is_left(
    tiny: TinyWorld, state: str, number: signal.Signals
) -> None:
    pid = supervise_in(tiny, state)
    stop = tiny.asking("stop") if state == "STOPPING" else None
    if stop is not None:
        tiny.until("STOPPING")
    os.kill(pid, number)
    os.kill(pid, TERM if number is INT else INT)
    if stop is not None:
        assert answer_on(stop)["state"] == "STOPPED", "who asked for the stop is told"
    process = tiny._begun[-1]
    assert tiny.ended(process) == 0
    eventually(lambda: tiny.processes() == [])
    assert not tiny.socket_path.exists()
    assert (tiny.record()["state"], tiny.record()["app"]) == ("STOPPED", None)
    assert tiny.record()["crashes"] == (2 if state == "BACKOFF" else 0)
    assert tiny.said.count("ended\n") == 1


@pytest.mark.parametrize("state", STATES)
def test_told_to_begin_again_in_any_state_it_does_so_and_the_app_does_not_notice(
    tiny: TinyWorld, state: str
) -> None:
    pid = supervise_in(tiny, state)
    stop = tiny.asking("stop") if state == "STOPPING" else None
    if stop is not None:
        tiny.until("STOPPING")
    before = tiny.record()
    os.kill(pid, HUP)
    if stop is not None:
        assert answer_on(stop)["state"] == "STOPPED", "first what was asked for, then again"
    eventually(lambda: "SIGHUP: begins again" in tiny.said)
    eventually(lambda: tiny.said.count("supervises tiny") == 2)
    os.kill(pid, HUP)  # and what the one before knew only from a record is known to the next
    eventually(lambda: tiny.said.count("supervises tiny") == 3)
    status = eventually(lambda: tiny.ask("status"))
    assert (tiny.supervisor(), is_alive(pid)) == (pid, True)
    if state == "BACKOFF":
        assert status["crashes_in_a_row"] >= 2
        third = tiny.until("BACKOFF", crashes=3)
        assert third["crashes_in_a_row"] == 3, "the count goes on"
        assert third["started_at"] >= before["restart_at"] - 0.1, "and so did the waiting"
    elif state in ("STARTING", "RUNNING"):
        record = tiny.until("RUNNING")
        assert (record["app"], record["starts"]) == (before["app"], 1)
    else:
        assert tiny.until("STOPPED")["app"] is None


def test_a_migration_is_not_interrupted_by_a_supervisor_that_begins_again(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", MIGRATES, "--pre-command", "wait")
    supervisor = tiny.supervisor()
    check = tiny.begin("check")
    tiny.read("notes")
    os.kill(supervisor, HUP)
    tiny.ask("status")
    (tiny.work / "go").touch()
    assert ended(check).code == FINISHED
    is_whole(tiny, "0.1.1")
    assert tiny.supervisor() == supervisor
    assert tiny.read("notes") == "begun\nended\n"
    log = tiny.root / "log/tiny-supervise.log"
    eventually(lambda: "begins again" in log.read_text())


def test_a_storm_of_sighups_leaves_the_supervisor_and_the_app_where_they_are(
    tiny: TinyWorld,
) -> None:
    tiny.place()
    process = tiny.supervise()
    app = tiny.pid()
    deadline = time.monotonic() + 20
    while tiny.said.count("begins again") < 5 and process.poll() is None:
        os.kill(process.pid, HUP)
        time.sleep(0.001)  # the rate of the storm
        assert time.monotonic() < deadline
    assert process.poll() is None, "it lives"
    status = eventually(lambda: tiny.ask("status"))
    assert (status["app"][0], status["starts"], status["crashes"]) == (app, 1, 0)
    assert is_alive(app)
    process.terminate()
    assert tiny.ended(process) == 0
    assert not is_alive(app)


def test_commands_during_a_storm_of_sighups_are_done_as_always(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    supervisor = tiny.supervisor()
    over = threading.Event()

    def storm() -> None:
        while not over.wait(0.02):
            try:
                os.kill(supervisor, HUP)
            except ProcessLookupError:
                return

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for number in range(1, 5):
            put(tiny, f"0.1.{number}")
            tiny.ok("check")
            tiny.ok("restart")
    finally:
        over.set()
        thread.join()
    assert tiny.supervisor() == supervisor
    is_whole(tiny, "0.1.4")
    assert [told(tiny, f"0.1.{number}").count("deployed") for number in range(5)] == [1] * 5


def has_handler(pid: int, number: signal.Signals) -> bool:
    """Whether the process handles the signal itself; after an exec it does not, for a while."""
    return bool(int(proc_status(pid, "SigCgt"), 16) >> (number - 1) & 1)


def begins_again(pid: int) -> None:
    """Sends SIGHUP, and returns in the instant in which the new program knows nothing yet."""
    os.kill(pid, HUP)
    deadline = time.monotonic() + 20
    while has_handler(pid, TERM):  # as fast as it can: it lasts some 50 ms
        assert time.monotonic() < deadline


@pytest.mark.parametrize("number", [TERM, INT, HUP], ids=["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_while_the_new_program_takes_the_old_ones_place_is_not_lost(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    tiny.place()
    process = tiny.supervise()
    app = tiny.pid()
    begins_again(process.pid)
    process.send_signal(number)
    if number is HUP:
        eventually(lambda: tiny.said.count("begins again") == 2)
        eventually(lambda: tiny.ask("status"))
        assert tiny.pid() == app
        begins_again(process.pid)
        process.send_signal(TERM)
    assert tiny.ended(process) == 0
    assert not is_alive(app)
    assert tiny.record()["state"] == "STOPPED"
    assert not tiny.socket_path.exists()


def test_an_app_that_dies_while_the_new_program_takes_the_old_ones_place_is_started_again(
    tiny: TinyWorld,
) -> None:
    tiny.configure('min_healthy_time = "1ms"')  # so that each restart is at once
    tiny.place()
    process = tiny.supervise()
    for crashes in range(1, 6):
        app = tiny.pid()
        begins_again(process.pid)
        os.kill(app, signal.SIGKILL)
        record = tiny.until("RUNNING", crashes=crashes)
        assert record["app"][0] != app
        assert record["last_exit"] == "was ended by SIGKILL"
        assert tiny.ask("status")["starts"] == crashes + 1
    assert sorted(tiny.processes()) == sorted([process.pid, tiny.pid()])


def test_a_client_that_has_not_said_what_it_wants_yet_is_heard_after_all(tiny: TinyWorld) -> None:
    tiny.place()
    process = tiny.supervise()
    connection = tiny.connect()
    tiny.ask("status")  # so the one before it was accepted
    os.kill(process.pid, HUP)
    tiny.ask("status")  # and the signal has been seen
    connection.sendall(b'{"command": "status"}\n')
    assert answer_on(connection)["state"] == "RUNNING"
    eventually(lambda: "begins again" in tiny.said)


@pytest.mark.parametrize("number", [TERM, INT, HUP], ids=["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("when", ["at once", "the lock is taken", "it listens"])
def test_a_signal_while_it_begins_leaves_all_or_nothing(
    tiny: TinyWorld, when: str, number: signal.Signals
) -> None:
    tiny.place()
    lock = tiny.root / "run/tiny.supervise.lock"
    signs: dict[str, Callable[[], bool]] = {
        "at once": lambda: True,
        "the lock is taken": lambda: lock.read_text() != "",
        "it listens": tiny.socket_path.exists,
    }
    process = tiny.supervise(None)
    eventually(signs[when])
    process.send_signal(number)
    if number is HUP:
        # it ends by it as any program does, or is far enough to begin again
        eventually(lambda: process.poll() is not None or tiny.ask("status")["state"] == "RUNNING")
        if process.poll() is None:
            process.terminate()
    assert tiny.ended(process) in {0, -HUP} | PLAINLY[TERM] | PLAINLY[INT]
    eventually(lambda: tiny.processes() == [])
    tiny.supervise()
    assert is_alive(tiny.pid())
    eventually(lambda: sorted(tiny.processes()) == sorted([tiny.supervisor(), tiny.pid()]))
