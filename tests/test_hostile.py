"""Apps, clients and neighbours that mean no good, or know no better: the supervisor goes on."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from deployex_cli.supervise import procfs
from deployex_cli.supervise.server import MAX_CLIENTS
from tests.tiny import DEAF, SLEEPS, TinyWorld, answer_on, descriptors, is_alive, python, shell
from tests.world import eventually

NOBODY = 65534


def cpu_seconds(pid: int) -> float:
    """What the process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def goes_on(tiny: TinyWorld, supervisor: int) -> None:
    assert is_alive(supervisor), tiny.said
    assert eventually(lambda: tiny.ask("status")["ok"])
    assert "Traceback" not in tiny.said


# --- the app ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGRTMIN, 35, 50, signal.SIGRTMAX])
def test_an_app_that_dies_by_a_signal_without_a_name_is_a_crash_like_any_other(
    tiny: TinyWorld, number: int
) -> None:
    tiny.place()
    supervisor = tiny.supervise()
    os.kill(tiny.pid(), number)
    record = tiny.until("RUNNING", crashes=1)
    assert record["last_exit"].startswith("was ended by ")
    goes_on(tiny, supervisor.pid)


GENERATIONS = python(
    """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for generation in range(4):
    if os.fork() == 0:
        os.setsid()
    else:
        break
open(f'generation{generation}', 'w').write(f'{os.getpid()}\\n')
if generation == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
time.sleep(1000)
"""
)


def test_what_an_app_left_behind_is_killed_through_all_generations(tiny: TinyWorld) -> None:
    tiny.place(GENERATIONS)
    tiny.supervise()
    pids = [int(tiny.read(f"generation{number}")) for number in range(4)]
    tiny.stray += pids
    tiny.ask("stop")
    assert [pid for pid in pids if is_alive(pid)] == []
    assert "cannot be killed" not in tiny.said


def test_a_chain_of_processes_may_be_deeper_than_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    # each is the parent of the next: really to fork them takes half a minute
    depth = 5000
    monkeypatch.setattr(procfs, "children", lambda pid: [pid + 1] if pid < depth else [])
    monkeypatch.setattr(procfs, "start_time", lambda pid, **_: pid * 10)
    assert procfs.descendants(0) == [(pid, pid * 10) for pid in range(1, depth + 1)]


def test_a_leftover_that_calls_itself_epmd_is_none(tiny: TinyWorld) -> None:
    tiny.place(
        python(
            """
if os.fork() == 0:
    os.setsid()
    open('/proc/self/comm', 'w').write('epmd')
    open('left', 'w').write(f'{os.getpid()}\\n')
time.sleep(1000)
"""
        )
    )
    tiny.supervise()
    left = int(tiny.read("left"))
    tiny.stray.append(left)
    tiny.ask("stop")
    assert not is_alive(left)


def test_a_log_that_an_app_has_made_a_fifo_blocks_nobody(tiny: TinyWorld) -> None:
    tiny.place()
    supervisor = tiny.supervise()
    tiny.log().unlink()
    os.mkfifo(tiny.log())
    answer = tiny.ask("restart")
    assert not answer["ok"]
    assert "it is no file of ours" in answer["error"]
    goes_on(tiny, supervisor.pid)
    tiny.log().unlink()
    assert tiny.ask("start")["ok"]


@pytest.mark.root
def test_a_log_that_another_user_has_put_there_is_not_written_to(tiny: TinyWorld) -> None:
    tiny.place(shell("echo secret; exec sleep 1000"))
    tiny.log().parent.mkdir(exist_ok=True)
    tiny.log().touch(mode=0o666)
    os.chown(tiny.log(), NOBODY, NOBODY)
    tiny.supervise("BACKOFF")
    assert tiny.log().read_text() == ""
    assert "it is no file of ours" in tiny.record()["last_exit"]


def test_on_a_full_disk_an_app_is_started_again_and_the_record_tells_of_it(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise(prepare=no_new_bytes)
    before = tiny.pid()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: tiny.pid() != before and tiny.record()["state"] == "RUNNING")
    assert is_alive(tiny.pid())


def no_new_bytes() -> None:
    """A supervisor that may write no file beyond 4 KiB: as if nothing more fitted on the disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


# --- clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "run"},
        {"command": "run", "folder": 1, "commands": []},
        {"command": "run", "folder": "1-0.1.0", "commands": 5},
        {"command": "run", "folder": "1-0.1.0", "commands": [[5]]},
        {"command": "run", "folder": "1-0.1.0", "commands": [[]]},
        {"command": ["stop"]},
        {},
    ],
)
def test_a_request_that_makes_no_sense_is_answered_so(tiny: TinyWorld, request_: object) -> None:
    tiny.place()
    supervisor = tiny.supervise()
    connection = tiny.connect()
    connection.sendall(json.dumps(request_).encode() + b"\n")
    assert not answer_on(connection)["ok"]
    goes_on(tiny, supervisor.pid)


def test_a_descriptor_that_is_not_the_lock_is_refused_and_its_holders_live(tiny: TinyWorld) -> None:
    tiny.place()
    supervisor, app = tiny.supervise(), tiny.pid()
    connection = tiny.connect()
    with open(os.devnull) as nothing:
        line = json.dumps({"command": "run", "folder": "1-0.1.0", "commands": []}).encode() + b"\n"
        socket.send_fds(connection, [line], [nothing.fileno()])
        assert "not the app's lock" in answer_on(connection)["error"]
    assert is_alive(app)
    goes_on(tiny, supervisor.pid)


def test_floods_of_descriptors_and_of_connections_end_nobody(tiny: TinyWorld) -> None:
    tiny.place()
    supervisor = tiny.supervise()
    before = len(descriptors(supervisor.pid))
    with contextlib.ExitStack() as stack:
        stuffed = stack.enter_context(tiny.connect())
        with contextlib.suppress(OSError):  # it is dropped in the middle of it
            for _ in range(400):
                many = array.array("i", [0] * 4)
                stuffed.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
        for _ in range(3 * MAX_CLIENTS):
            with contextlib.suppress(BlockingIOError):  # more wait than the kernel lets wait
                stack.enter_context(tiny.connect())
        goes_on(tiny, supervisor.pid)
        assert len(descriptors(supervisor.pid)) <= before + MAX_CLIENTS + 2
    app = tiny.pid()
    os.kill(app, signal.SIGKILL)
    eventually(lambda: tiny.record()["app"] and tiny.pid() != app)
    goes_on(tiny, supervisor.pid)


def test_a_client_that_talks_on_while_it_waits_costs_nothing(tiny: TinyWorld) -> None:
    tiny.configure('stop_timeout = "2s"')
    tiny.place(DEAF)
    supervisor = tiny.supervise()
    eventually(lambda: (tiny.work / "deaf").exists())
    began = cpu_seconds(supervisor.pid)
    connection = tiny.asking("stop")
    connection.sendall(b"and another word")
    assert answer_on(connection)["ok"], "after two seconds of waiting"
    assert cpu_seconds(supervisor.pid) - began < 0.5


def test_a_client_that_has_said_its_last_word_is_answered_all_the_same(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise()
    connection = tiny.asking("stop")
    connection.shutdown(socket.SHUT_WR)
    assert answer_on(connection)["state"] == "STOPPED"


def test_nothing_that_a_client_handed_over_lives_on_through_a_sighup(tiny: TinyWorld) -> None:
    tiny.place()
    supervisor = tiny.supervise()
    with tiny.connect() as connection, (tiny.root / "theirs").open("w") as theirs:
        socket.send_fds(connection, [b'{"command":'], [theirs.fileno()])
        eventually(lambda: "theirs" in " ".join(descriptors(supervisor.pid).values()))
        os.kill(supervisor.pid, signal.SIGHUP)
        eventually(lambda: tiny.said.count("supervises tiny") == 2)
        assert "theirs" not in " ".join(descriptors(supervisor.pid).values())


def test_a_stop_that_arrives_while_a_new_program_takes_over_is_not_lost(tiny: TinyWorld) -> None:
    tiny.place()
    supervisor = tiny.supervise()
    app = tiny.pid()
    os.kill(supervisor.pid, signal.SIGHUP)
    eventually(lambda: "begins again" in tiny.said)
    time.sleep(0.01)  # into the exec: nobody tells of it
    os.kill(supervisor.pid, signal.SIGTERM)
    assert tiny.ended(supervisor) == 0
    assert not is_alive(app)


# --- neighbours ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["var/state/tiny.supervise.json", "var/state/tiny.history.jsonl"])
def test_a_fifo_in_the_place_of_a_file_makes_nobody_wait(tiny: TinyWorld, what: str) -> None:
    tiny.roll_out("0.1.0")
    tiny.ok("stop")
    os.kill(tiny.supervisor(), signal.SIGTERM)
    eventually(lambda: not tiny.processes())
    (tiny.root / what).unlink()
    os.mkfifo(tiny.root / what)
    for verb in ("status", "history"):
        assert tiny.run(verb, timeout=20).code in (0, 1)
    (tiny.root / what).unlink()


@pytest.mark.root
def test_no_shell_of_a_release_that_another_user_has_put_there(tiny: TinyWorld) -> None:
    script = tiny.place(shell("[ $1 = remote ] && touch was_here; exec sleep 1000"))
    tiny.supervise()
    os.chown(tiny.service, NOBODY, NOBODY)
    ran = tiny.run("remote")
    os.chown(tiny.service, 0, 0)
    assert ran.code == 1
    assert f"belongs to user {NOBODY}" in ran.err
    assert not (tiny.root / "was_here").exists()
    assert script.exists()


def test_a_tar_in_the_working_directory_is_not_the_one_that_unpacks(tiny: TinyWorld) -> None:
    trap = tiny.root / "tar"
    trap.write_text(shell("touch trapped"))
    trap.chmod(0o755)
    tiny.offer("0.1.0", SLEEPS)
    ran = tiny.run("check", env={"PATH": f".:{tiny.env['PATH']}"})
    assert ran.code == 0, ran
    assert not list(tiny.root.rglob("trapped"))
