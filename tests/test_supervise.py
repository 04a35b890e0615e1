"""`deployex supervise`: one app's OS process is kept alive, whatever it and its clients do."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deployex_cli.supervise.server import PATIENCE_SECONDS, Client, ControlServer
from tests.tiny import (
    DEAF,
    EXITS,
    SLEEPS,
    TinyWorld,
    answer_on,
    descriptors,
    environment,
    is_alive,
    proc_status,
    python,
    shell,
)
from tests.world import eventually

# leaves a process in a session of its own behind, as a BEAM's port programs are
LEAVES = python(
    """
pid = os.fork()
if pid == 0:
    os.setsid()
    {0}
    open('left', 'w').write(f'{{os.getpid()}}\\n')
    time.sleep(1000)
time.sleep(1000)
"""
)
# counts its runs in the file `runs`
COUNTS = "n=$(cat runs 2>/dev/null || echo 0); n=$((n + 1)); echo $n > runs\n"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- what there is ------------------------------------------------------------------------------


def test_with_no_release_it_waits_and_answers_on_a_socket_for_us_alone(tiny: TinyWorld) -> None:
    tiny.supervise("STOPPED")
    assert mode(tiny.socket_path) == 0o600
    assert mode(tiny.socket_path.parent) == 0o700
    assert tiny.ask("status")["state"] == "STOPPED"
    answer = tiny.ask("start")
    assert answer == {"ok": False, "error": "no release is deployed"}
    assert tiny.ask("stop")["ok"]


def test_what_is_current_is_started_and_status_tells_of_it(tiny: TinyWorld) -> None:
    tiny.place(version="1.2.3")
    tiny.supervise()
    answer = tiny.ask("status")
    assert answer["version"] == "1.2.3"
    assert is_alive(answer["app"][0])
    assert tiny.ask("start")["app"] == answer["app"], "what runs already is left alone"


def test_a_command_that_it_does_not_know_is_answered_with_an_error(tiny: TinyWorld) -> None:
    tiny.supervise("STOPPED")
    assert "no such command: 'dance'" in tiny.ask("dance")["error"]


# --- crashes ------------------------------------------------------------------------------------


def test_an_exit_is_seen_at_once_and_the_first_restart_is_at_once(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise()
    first = tiny.pid()
    killed_at = time.time()
    os.kill(first, signal.SIGKILL)
    record = tiny.until("RUNNING", crashes=1)
    assert record["app"][0] != first
    assert record["last_exit"] == "was ended by SIGKILL"
    assert record["last_exit_at"] - killed_at < 0.5
    assert record["started_at"] - record["last_exit_at"] < 0.5
    assert record["crashes_in_a_row"] == 1


def test_the_second_crash_in_a_row_waits_two_seconds_and_the_third_four(tiny: TinyWorld) -> None:
    tiny.place(EXITS)
    tiny.supervise("BACKOFF")
    record = tiny.until("BACKOFF", crashes=2)
    assert record["crashes_in_a_row"] == 2
    assert record["starts"] == 2
    assert record["last_exit"] == "exited with 3"
    assert record["restart_at"] - record["last_exit_at"] == pytest.approx(2, abs=0.1)
    third = tiny.until("BACKOFF", crashes=3)
    assert third["started_at"] - record["last_exit_at"] == pytest.approx(2, abs=0.3)
    assert third["restart_at"] - third["last_exit_at"] == pytest.approx(4, abs=0.1)


def test_an_exit_with_0_that_nobody_asked_for_is_a_crash(tiny: TinyWorld) -> None:
    tiny.place(shell(COUNTS + "[ $n = 1 ] && exit 0; exec sleep 1000"))
    tiny.supervise()
    record = tiny.until("RUNNING", crashes=1)
    assert record["last_exit"] == "exited with 0"


def test_the_count_goes_back_once_an_app_has_lived_long_enough(tiny: TinyWorld) -> None:
    tiny.configure('min_healthy_time = "300ms"')
    tiny.place(shell(COUNTS + "[ $n = 1 ] && exit 1; [ $n = 2 ] && sleep 0.5; exec sleep 1000"))
    tiny.supervise()
    tiny.until("RUNNING", crashes=1)
    tiny.read("runs")
    eventually(lambda: tiny.read("runs") == "2\n")
    healthy = tiny.pid()
    eventually(lambda: tiny.status()["uptime_seconds"] > 0.3)
    os.kill(healthy, signal.SIGKILL)
    record = tiny.until("RUNNING", crashes=2)
    assert record["crashes_in_a_row"] == 1, "so the restart was at once again"
    assert record["started_at"] - record["last_exit_at"] < 1


def test_an_app_that_ends_before_anybody_can_look_at_it_has_not_lived_since_boot(
    tiny: TinyWorld,
) -> None:
    true = tiny.place("")
    true.unlink()
    true.symlink_to("/bin/true")  # faster than any script: mostly a zombie when it is looked at
    tiny.supervise("BACKOFF")
    for _ in range(10):
        record = tiny.ask("start")
        assert record["crashes_in_a_row"] == 0
        crashes = record["crashes"]
        tiny.until("BACKOFF", crashes=crashes + 2)
        assert tiny.record()["crashes_in_a_row"] == 2, "so the next one waits"


@pytest.mark.parametrize(
    ("script", "bits", "why"),
    [
        (SLEEPS, 0o644, "Permission denied"),
        ("#!/no/such/interpreter\n", 0o755, "the interpreter that its first line names is not"),
        ("no script at all\n", 0o755, "Exec format error"),
    ],
)
def test_a_start_of_what_cannot_be_executed_is_an_error_and_no_crash(
    tiny: TinyWorld, script: str, bits: int, why: str
) -> None:
    tiny.supervise("STOPPED")
    path = tiny.place(script, mode=bits)
    answer = tiny.ask("start")
    assert not answer["ok"]
    assert why in answer["error"]
    assert str(path) in answer["error"]
    record = tiny.until("STOPPED")
    assert record["crashes"] == 0
    assert record["app"] is None
    path.write_text(SLEEPS)
    path.chmod(0o755)
    assert tiny.ask("start")["state"] == "RUNNING"


def test_a_restart_of_what_cannot_be_executed_any_more_is_a_crash(tiny: TinyWorld) -> None:
    path = tiny.place()
    tiny.supervise()
    path.chmod(0o644)
    os.kill(tiny.pid(), signal.SIGKILL)
    record = tiny.until("BACKOFF", crashes=2)
    assert record["app"] is None
    assert "cannot be executed: Permission denied" in record["last_exit"]
    path.chmod(0o755)
    assert tiny.ask("start")["state"] == "RUNNING"


def test_a_disk_that_is_full_does_not_end_the_supervision(tiny: TinyWorld) -> None:
    tiny.place()
    process = tiny.supervise()
    # what grows a file fails from here on, as on a full disk, for it and for what it starts
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))
    first = tiny.pid()
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: tiny.ask("status")["state"] == "BACKOFF")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
    assert tiny.ask("start")["state"] == "RUNNING"
    assert is_alive(tiny.pid())
    assert tiny.pid() != first


def test_a_log_that_cannot_be_opened_is_an_error_that_names_it(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.log().mkdir(parents=True)
    tiny.supervise("BACKOFF")
    assert tiny.ask("start")["error"] == f"{tiny.log()} cannot be opened: Is a directory"


# --- stop ---------------------------------------------------------------------------------------


def test_a_stop_is_answered_when_the_app_is_gone_and_it_stays_stopped(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise()
    pid = tiny.pid()
    answer = tiny.ask("stop")
    assert not is_alive(pid)
    assert answer["state"] == "STOPPED"
    assert answer["crashes"] == 0
    assert answer["last_exit"] == "was ended by SIGTERM"
    assert tiny.ask("stop")["state"] == "STOPPED"


def test_a_sigterm_that_was_lost_is_sent_again(tiny: TinyWorld) -> None:
    lost = "signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, end))"
    tiny.place(
        python(
            f"def end(*_): sys.exit(7)\n{lost}\nopen('ready', 'w').write('1\\n')\n"
            "while True: time.sleep(1000)"
        )
    )
    tiny.supervise()
    tiny.read("ready")
    answer = tiny.ask("stop")
    assert answer["last_exit"] == "exited with 7", "the second SIGTERM, long before the time-out"


def test_an_app_that_ignores_sigterm_is_killed_after_its_stop_timeout(tiny: TinyWorld) -> None:
    tiny.configure('stop_timeout = "300ms"')
    tiny.place(DEAF)
    tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    begun = time.monotonic()
    answer = tiny.ask("stop")
    assert answer["last_exit"] == "was ended by SIGKILL"
    assert time.monotonic() - begun >= 0.3
    assert "did not end in 0.3 s: SIGKILL" in tiny.said


@pytest.mark.parametrize("ignores", ["pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_what_left_the_apps_session_is_gone_before_the_stop_is_answered(
    tiny: TinyWorld, ignores: str
) -> None:
    tiny.place(LEAVES.format(ignores))
    tiny.supervise()
    left = int(tiny.read("left"))
    tiny.ask("stop")
    assert not is_alive(left)


def test_what_a_crashed_app_left_is_gone_before_its_successor_starts(tiny: TinyWorld) -> None:
    tiny.place(LEAVES.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    tiny.supervise()
    left = int(tiny.read("left"))
    os.kill(tiny.pid(), signal.SIGKILL)
    tiny.until("RUNNING", crashes=1)
    assert not is_alive(left)
    new = eventually(lambda: int(tiny.read("left")) != left and int(tiny.read("left")))
    assert is_alive(new)


def test_epmd_outlives_every_app(tiny: TinyWorld) -> None:
    epmd = tiny.root / "epmd"
    epmd.write_bytes(Path("/bin/sleep").read_bytes())
    epmd.chmod(0o755)
    tiny.place(shell(f"setsid {epmd} 1000 & echo $! > epmd_pid; exec sleep 1000"))
    tiny.supervise()
    tiny.read("epmd_pid")
    pid = eventually(lambda: tiny.processes("epmd"))[0]
    tiny.stray.append(pid)
    tiny.ask("stop")
    assert is_alive(pid)


def test_status_answers_while_a_stop_waits(tiny: TinyWorld) -> None:
    tiny.place(DEAF)
    tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    stop = tiny.asking("stop")
    eventually(lambda: tiny.ask("status")["state"] == "STOPPING")
    os.kill(tiny.pid(), signal.SIGKILL)
    assert answer_on(stop)["state"] == "STOPPED"


# --- clients ------------------------------------------------------------------------------------


def test_clients_that_are_silent_slow_or_talk_garbage_block_nobody(tiny: TinyWorld) -> None:
    tiny.supervise("STOPPED")
    silent, slow = tiny.connect(), tiny.connect()
    slow.sendall(b'{"command": "sta')
    assert tiny.ask("status")["ok"]
    for garbage in (b"\xff\xfe\n", b"{}}\n", b"[1]\n", b"[" * 50_000 + b"\n", b"\n"):
        connection = tiny.connect()
        connection.sendall(garbage)
        assert "is not understood" in answer_on(connection)["error"]
    assert tiny.ask("status")["ok"]
    slow.sendall(b'tus"}\n')
    assert answer_on(slow)["ok"]
    silent.close()


def test_a_client_that_says_too_much_is_dropped(tiny: TinyWorld) -> None:
    tiny.supervise("STOPPED")
    with tiny.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * 1_000_000)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert tiny.ask("status")["ok"]


def test_a_client_that_goes_away_in_the_middle_of_a_stop_changes_nothing(tiny: TinyWorld) -> None:
    tiny.place(DEAF)
    tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    pid = tiny.pid()
    tiny.asking("stop").close()
    tiny.until("STOPPING")
    os.kill(pid, signal.SIGKILL)
    tiny.until("STOPPED")
    assert tiny.ask("status")["state"] == "STOPPED"


@pytest.mark.root
def test_a_peer_of_another_user_is_refused(tiny: TinyWorld) -> None:
    tiny.supervise("STOPPED")
    for path in (tiny.root, tiny.socket_path.parent, tiny.socket_path):
        path.chmod(0o777)
    talk = (
        "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]);"
        'c.settimeout(20)\ntry:\n c.sendall(b\'{"command": "status"}\\n\'); print(c.recv(100))\n'
        "except ConnectionError: print(b'')"
    )
    words = [talk, str(tiny.socket_path)]
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3"]
    refused = subprocess.run([*nobody, "-c", *words], capture_output=True, text=True)
    assert refused.stdout == "b''\n", refused
    served = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True)
    assert '"ok": true' in served.stdout


class Served:
    """A ControlServer in the test itself, with a clock that the test sets."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.path = str(path)
        self.handled: list[dict[str, Any]] = []
        self.poller = select.epoll()
        self.server = ControlServer(self.path, self.poller, self._handle, lambda: self.now)

    def _handle(self, client: Client, request: dict[str, Any]) -> None:
        self.handled.append(request)
        if "silence" not in request:
            self.server.answer(client, {"ok": True, "much": "x" * request.get("much", 0)})

    def serve(self) -> None:
        """Does all that can be done now."""
        while events := self.poller.poll(0):
            for descriptor, mask in events:
                if self.server.owns(descriptor):
                    self.server.ready(descriptor, mask)
        self.server.drop_silent()

    def connect(self, said: bytes = b"") -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        connection.setblocking(False)
        connection.sendall(said)
        self.serve()
        return connection


def is_dropped(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def test_a_client_that_does_not_say_what_it_wants_is_dropped_in_time(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    silent = served.connect()
    served.now = PATIENCE_SECONDS / 2
    slow = served.connect(b'{"command"')
    assert served.server.next_deadline() == PATIENCE_SECONDS
    served.now = PATIENCE_SECONDS - 0.001
    served.serve()
    assert not is_dropped(silent)
    served.now = PATIENCE_SECONDS
    served.serve()
    assert is_dropped(silent)
    assert not is_dropped(slow)
    served.now = 1.5 * PATIENCE_SECONDS
    served.serve()
    assert is_dropped(slow)
    assert served.server.next_deadline() is None, "so nothing wakes the supervisor"
    assert served.handled == []
    served.server.close()


def test_a_client_that_waits_for_an_answer_is_never_dropped(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    waiting = served.connect(b'{"silence": true}\n')
    assert served.server.next_deadline() is None
    served.now = 1000 * PATIENCE_SECONDS
    served.serve()
    assert not is_dropped(waiting)
    served.server.close()


def test_a_client_that_does_not_read_its_answer_is_dropped_in_time(tmp_path: Path) -> None:
    served = Served(tmp_path / "s")
    lazy = served.connect(b'{"much": 5000000}\n')
    assert served.server.next_deadline() == PATIENCE_SECONDS
    other = served.connect(b"{}\n")
    assert other.recv(100).startswith(b'{"ok": true')
    served.now = PATIENCE_SECONDS
    served.serve()
    assert served.server.next_deadline() is None
    assert is_dropped(lazy)
    served.server.close()


def test_descriptors_that_a_client_hands_over_are_not_kept_when_it_is_dropped(
    tmp_path: Path,
) -> None:
    served = Served(tmp_path / "s")
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(served.path)
        socket.send_fds(connection, [b"{"], [writer])
        os.close(writer)
        served.serve()
        served.now = PATIENCE_SECONDS
        served.serve()
    assert os.read(reader, 1) == b"", "nobody holds the other end any more"
    os.close(reader)
    served.server.close()


# --- several requests at once -------------------------------------------------------------------


def test_two_starts_at_once_start_one_app(tiny: TinyWorld) -> None:
    tiny.supervise("STOPPED")
    tiny.place()
    answers = [answer_on(asked) for asked in (tiny.asking("start"), tiny.asking("start"))]
    assert [answer["state"] for answer in answers] == ["RUNNING", "RUNNING"]
    assert answers[0]["app"] == answers[1]["app"]
    assert answers[1]["starts"] == 1
    eventually(lambda: tiny.processes("sleep") == [answers[0]["app"][0]])


def test_a_start_during_a_stop_starts_once_all_is_gone(tiny: TinyWorld) -> None:
    tiny.place(DEAF)
    tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    first = tiny.pid()
    stop = tiny.asking("stop")
    tiny.until("STOPPING")
    starts = [tiny.asking("start"), tiny.asking("start")]
    tiny.ask("status")  # so they have been heard
    os.kill(first, signal.SIGKILL)
    assert answer_on(stop)["state"] == "STOPPED"
    pids = {answer_on(start)["app"][0] for start in starts}
    assert pids == {tiny.pid()}
    assert first not in pids


def test_a_stop_during_a_start_wins_and_the_start_is_told(tiny: TinyWorld) -> None:
    tiny.place(DEAF)
    tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    restart = tiny.asking("restart")
    tiny.until("STOPPING")
    stop = tiny.asking("stop")
    assert "a stop was asked for meanwhile" in answer_on(restart)["error"]
    os.kill(tiny.pid(), signal.SIGKILL)
    assert answer_on(stop)["state"] == "STOPPED"
    assert tiny.ask("status")["starts"] == 1


def test_a_stop_ends_the_waiting_for_a_restart(tiny: TinyWorld) -> None:
    tiny.place(EXITS)
    tiny.supervise("BACKOFF")
    tiny.until("BACKOFF", crashes=2)
    answer = tiny.ask("stop")
    assert answer["state"] == "STOPPED"
    assert answer["restart_at"] is None
    starts = answer["starts"]
    eventually(lambda: time.time() > answer["last_exit_at"] + 2.1)
    assert tiny.ask("status")["starts"] == starts


def test_a_start_ends_the_waiting_for_a_restart_and_begins_the_count_anew(tiny: TinyWorld) -> None:
    tiny.place(shell(COUNTS + "[ $n -le 2 ] && exit 1; exec sleep 1000"))
    tiny.supervise("BACKOFF")
    tiny.until("BACKOFF", crashes=2)
    answer = tiny.ask("start")
    assert answer["state"] == "RUNNING"
    assert answer["crashes_in_a_row"] == 0
    assert answer["crashes"] == 2


def test_a_restart_is_another_process_and_no_crash(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise()
    first = tiny.pid()
    answer = tiny.ask("restart")
    assert answer["app"][0] != first
    assert not is_alive(first)
    assert (answer["state"], answer["crashes"], answer["starts"]) == ("RUNNING", 0, 2)


def test_a_start_of_another_release_replaces_the_one_that_runs(tiny: TinyWorld) -> None:
    tiny.place(version="0.1.0")
    tiny.supervise()
    first = tiny.pid()
    tiny.place(version="0.1.1")
    answer = tiny.ask("start")
    assert answer["version"] == "0.1.1"
    assert not is_alive(first)


# --- the supervisor's own end -------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_stops_the_app_and_takes_its_socket_away(
    tiny: TinyWorld, number: signal.Signals
) -> None:
    tiny.place(LEAVES.format("pass"))
    process = tiny.supervise()
    app, left = tiny.pid(), int(tiny.read("left"))
    process.send_signal(number)
    assert tiny.ended(process) == 0
    assert not is_alive(app)
    assert not is_alive(left)
    assert not tiny.socket_path.exists()
    assert tiny.record()["state"] == "STOPPED"
    assert tiny.record()["crashes"] == 0


def test_told_to_end_while_a_restart_waits_it_ends_at_once(tiny: TinyWorld) -> None:
    tiny.place(EXITS)
    process = tiny.supervise("BACKOFF")
    tiny.until("BACKOFF", crashes=2)
    begun = time.monotonic()
    process.terminate()
    assert tiny.ended(process) == 0
    assert time.monotonic() - begun < 1.5
    assert not tiny.socket_path.exists()


def test_while_it_ends_it_starts_nothing_more(tiny: TinyWorld) -> None:
    tiny.place(DEAF)
    process = tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    process.terminate()
    tiny.until("STOPPING")
    assert "is ending" in tiny.ask("start")["error"]
    os.kill(tiny.pid(), signal.SIGKILL)
    assert tiny.ended(process) == 0
    assert tiny.processes() == []


def test_a_second_supervisor_refuses_and_names_the_first(tiny: TinyWorld) -> None:
    tiny.place()
    process = tiny.supervise()
    app = tiny.pid()
    ran = tiny.run("supervise")
    assert ran.code == 1
    assert f"another supervisor (pid {process.pid})" in ran.err
    assert ran.err.count("\n") == 1
    assert tiny.ask("status")["app"][0] == app
    assert tiny.supervisor() == process.pid


# --- adoption -----------------------------------------------------------------------------------


def killed(tiny: TinyWorld, process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_an_app_outlives_a_killed_supervisor_and_the_next_one_adopts_it(tiny: TinyWorld) -> None:
    tiny.place()
    killed(tiny, tiny.supervise())
    app = tiny.pid()
    assert is_alive(app)
    tiny.supervise()
    assert tiny.ask("status")["app"][0] == app
    assert tiny.ask("status")["starts"] == 1
    assert f"adopts tiny (pid {app}" in tiny.said
    assert tiny.ask("stop")["state"] == "STOPPED"
    assert not is_alive(app)


def test_the_death_of_an_adopted_app_is_seen_and_counts_as_a_crash(tiny: TinyWorld) -> None:
    tiny.place()
    killed(tiny, tiny.supervise())
    tiny.supervise()
    app = tiny.pid()
    os.kill(app, signal.SIGKILL)
    record = tiny.until("RUNNING", crashes=1)
    assert record["app"][0] != app
    assert "exit status is unknown" in record["last_exit"]
    os.kill(record["app"][0], signal.SIGKILL)
    assert tiny.until("BACKOFF", crashes=2)["last_exit"] == "was ended by SIGKILL"


def test_an_adopted_app_that_ignores_sigterm_is_killed_too(tiny: TinyWorld) -> None:
    tiny.configure('stop_timeout = "200ms"')
    tiny.place(DEAF)
    process = tiny.supervise()
    eventually((tiny.work / "deaf").exists)
    killed(tiny, process)
    tiny.supervise()
    app = tiny.pid()
    assert tiny.ask("stop")["state"] == "STOPPED"
    assert not is_alive(app)


@pytest.mark.parametrize("what", ["another start time", "another boot"])
def test_a_process_that_only_has_the_apps_pid_is_not_adopted(tiny: TinyWorld, what: str) -> None:
    tiny.place()
    killed(tiny, tiny.supervise())
    path = tiny.root / "var/state/tiny.supervise.json"
    record = tiny.record()
    os.kill(record["app"][0], signal.SIGKILL)
    stranger = subprocess.Popen(["sleep", "1000"])
    started = int(Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19])
    if what == "another boot":
        record["app"], record["boot_id"] = [stranger.pid, started], "another"
    else:
        record["app"] = [stranger.pid, started - 1]
    path.write_text(json.dumps(record))
    try:
        assert tiny.run("stop").code == 0
        assert stranger.poll() is None, "stop without a supervisor"
        tiny.supervise(None)
        eventually(lambda: tiny.ask("status")["state"] in ("RUNNING", "STOPPED"))
        assert "adopts" not in tiny.said
        tiny.ask("stop")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_app_that_died_while_nobody_supervised_it_is_started_again(tiny: TinyWorld) -> None:
    tiny.place()
    killed(tiny, tiny.supervise())
    app = tiny.pid()
    os.kill(app, signal.SIGKILL)
    eventually(lambda: not is_alive(app))
    tiny.supervise()
    assert tiny.pid() != app
    assert is_alive(tiny.pid())
    assert tiny.record()["starts"] == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 99}', '{"app": 1}'])
def test_a_record_that_cannot_be_read_is_no_record(tiny: TinyWorld, content: str) -> None:
    tiny.place()
    folder = tiny.root / "var/state"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "tiny.supervise.json").write_text(content)
    tiny.supervise()
    assert is_alive(tiny.pid())


def test_a_socket_file_that_a_killed_supervisor_left_is_no_obstacle(tiny: TinyWorld) -> None:
    killed(tiny, tiny.supervise("STOPPED"))
    assert tiny.socket_path.exists()
    tiny.supervise("STOPPED")
    assert tiny.ask("status")["ok"]


# --- an interrupted deployment ------------------------------------------------------------------


def interrupted_at_the_stop(tiny: TinyWorld) -> int:
    """0.1.0 runs, and all who were about to replace it by 0.1.1 were killed; the pid of 0.1.0."""
    app = tiny.roll_out("0.1.0")
    supervisor = tiny.supervisor()
    tiny.offer("0.1.1")
    os.kill(supervisor, signal.SIGSTOP)  # so that nobody does what the check asks for
    check = tiny.begin("check")
    eventually(lambda: tiny.state()["deployment"]["intent"] == "stop")
    for pid in (check.pid, supervisor):
        os.kill(pid, signal.SIGKILL)
    check.communicate()
    eventually(lambda: not is_alive(supervisor))
    return app


def test_after_a_power_cut_in_the_stop_it_goes_on_with_the_new_version_at_once(
    tiny: TinyWorld,
) -> None:
    os.kill(interrupted_at_the_stop(tiny), signal.SIGKILL)
    (tiny.root / "store").rename(tiny.root / "away")  # no network is needed
    tiny.supervise(None)
    eventually(lambda: tiny.record()["version"] == "0.1.1" and tiny.phase() == "started")
    assert tiny.link("current") == "0.1.1"
    assert "it goes on" in tiny.said
    (tiny.root / "away").rename(tiny.root / "store")
    tiny.ok("check")
    assert tiny.history()[-1] == ("deployed", "0.1.1")


def test_killed_in_the_stop_while_the_app_lives_on_it_adopts_stops_and_replaces_it(
    tiny: TinyWorld,
) -> None:
    app = interrupted_at_the_stop(tiny)
    tiny.supervise(None)
    eventually(lambda: tiny.record()["version"] == "0.1.1" and tiny.phase() == "started")
    assert f"adopts tiny (pid {app}" in tiny.said
    assert not is_alive(app)
    assert tiny.processes("sleep") == [tiny.pid()]


def test_a_version_that_cannot_be_started_is_gone_back_from_with_no_check(tiny: TinyWorld) -> None:
    app = tiny.roll_out("0.1.0")
    supervisor = tiny.supervisor()
    tiny.offer("0.1.1", "#!/no/such/interpreter\n")
    os.kill(supervisor, signal.SIGSTOP)
    check = tiny.begin("check")
    eventually(lambda: tiny.state()["deployment"]["intent"] == "stop")
    for pid in (check.pid, supervisor, app):
        os.kill(pid, signal.SIGKILL)
    check.communicate()
    eventually(lambda: not is_alive(supervisor))
    tiny.supervise(None)
    eventually(lambda: tiny.state()["deployment"]["kind"] == "rollback")
    tiny.until("RUNNING")
    assert tiny.link("current") == "0.1.0"
    assert [ghost["version"] for ghost in tiny.state()["ghosts"]] == ["0.1.1"]


# --- what the app is given ----------------------------------------------------------------------


def test_logs_are_for_us_alone_and_are_appended_to(tiny: TinyWorld) -> None:
    tiny.place(shell("echo out; echo err >&2; exec sleep 1000"))
    tiny.supervise()
    eventually(lambda: tiny.log("stderr").read_text() == "err\n")
    assert tiny.log().read_text() == "out\n"
    tiny.ask("restart")
    eventually(lambda: tiny.log("stderr").read_text() == "err\nerr\n")
    assert tiny.log().read_text() == "out\nout\n"
    assert [mode(tiny.log("stdout")), mode(tiny.log("stderr"))] == [0o600, 0o600]


def test_a_log_that_was_rotated_away_is_made_again_at_the_next_start(tiny: TinyWorld) -> None:
    tiny.place(shell("echo out; exec sleep 1000"))
    tiny.supervise()
    eventually(lambda: tiny.log().read_text() == "out\n")
    tiny.log().rename(tiny.log().with_suffix(".1"))
    tiny.ask("restart")
    eventually(lambda: tiny.log().read_text() == "out\n")
    assert mode(tiny.log()) == 0o600


def test_the_app_has_a_session_a_folder_and_a_umask_of_its_own(tiny: TinyWorld) -> None:
    tiny.place(shell("umask > umask; exec sleep 1000"))
    process = tiny.supervise(umask=0o027)
    pid = tiny.pid()
    assert (os.getsid(pid), os.getpgid(pid)) == (pid, pid)
    assert os.getsid(process.pid) != pid
    assert Path(f"/proc/{pid}/cwd").readlink() == tiny.work
    assert mode(tiny.work) == 0o700
    assert tiny.read("umask") == "0027\n", "who began the supervisor chose it, and not we"


def test_the_app_has_no_descriptor_but_the_three(tiny: TinyWorld) -> None:
    tiny.place()
    reader, writer = os.pipe()
    try:
        tiny.supervise(pass_fds=[writer])
        eventually(lambda: tiny.processes("sleep"))
        assert descriptors(tiny.pid()) == {
            0: "/dev/null",
            1: str(tiny.log("stdout")),
            2: str(tiny.log("stderr")),
        }
    finally:
        os.close(reader)
        os.close(writer)


def test_no_signal_is_ignored_or_blocked_in_the_app(tiny: TinyWorld) -> None:
    def ignore() -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGALRM])

    tiny.place()
    tiny.supervise(prepare=ignore)
    pid = eventually(lambda: tiny.processes("sleep"))[0]
    assert int(proc_status(pid, "SigIgn"), 16) == 0
    assert int(proc_status(pid, "SigBlk"), 16) == 0


def test_the_environment_is_scrubbed_by_exact_name_and_the_table_wins(tiny: TinyWorld) -> None:
    tiny.configure(env={"SPACES": "a  b 'c' $d\n", "RELEASE_NOTES": "mine", "HOME": "/mine"})
    tiny.env |= {
        "RELEASE_VSN": "9",
        "RELEASE_MINE": "kept",
        "ERL_OTP25_FLAGS": "-x",
        "DEPLOYEX_SECRET_KEY_BASE": "secret",
        "NOTIFY_SOCKET": "/nowhere",
        "OTHER": "kept",
    }
    tiny.place()
    tiny.supervise()
    env = environment(tiny.pid())
    assert env["SPACES"] == "a  b 'c' $d\n"
    assert (env["RELEASE_NOTES"], env["HOME"]) == ("mine", "/mine")
    assert (env["RELEASE_MINE"], env["OTHER"]) == ("kept", "kept")
    assert (env["RELEASE_NODE"], env["RELEASE_COOKIE"]) == (tiny.node, "monster")
    for gone in ("RELEASE_VSN", "ERL_OTP25_FLAGS", "DEPLOYEX_SECRET_KEY_BASE", "NOTIFY_SOCKET"):
        assert gone not in env


def test_with_env_inherit_only_what_it_names_is_inherited(tiny: TinyWorld) -> None:
    tiny.configure('env_inherit = ["WANTED"]')
    tiny.env |= {"WANTED": "1", "UNWANTED": "1"}
    tiny.place()
    tiny.supervise()
    env = environment(tiny.pid())
    assert env["WANTED"] == "1"
    assert "UNWANTED" not in env
    assert env["PATH"] == tiny.env["PATH"]


def test_a_start_takes_the_configuration_as_it_is_by_then(tiny: TinyWorld) -> None:
    tiny.place()
    tiny.supervise()
    tiny.configure(env={"GREETING": "new"})
    tiny.ask("restart")
    eventually(lambda: environment(tiny.pid())["GREETING"] == "new")
    tiny.config.write_text("[broken")
    tiny.ask("restart")
    assert environment(tiny.pid())["GREETING"] == "new", "the last good one goes on"
    assert "goes on with the configuration it has" in tiny.said


# --- quiet --------------------------------------------------------------------------------------


def test_nothing_wakes_it_while_the_app_runs_and_nobody_asks(tiny: TinyWorld) -> None:
    tiny.place()
    process = tiny.supervise()

    def switches() -> str:
        return proc_status(process.pid, "voluntary_ctxt_switches")

    def settled() -> bool:
        before = switches()
        time.sleep(0.1)
        return switches() == before

    eventually(settled)
    before = switches()
    time.sleep(1)
    assert switches() == before
