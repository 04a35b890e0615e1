"""The command line as people and scripts meet it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess

import pytest

from tests.tiny import TinyWorld, shell
from tests.world import World, eventually


@pytest.mark.parametrize(
    "words",
    [
        ["check"],
        ["unpack", "0.1.0"],
        ["move"],
        ["start"],
        ["restart"],
        ["stop"],
        ["status"],
        ["history"],
        ["rollback"],
        ["config"],
        ["publish", "/nowhere.tar.gz"],
    ],
)
def test_every_verb_prints_versioned_json_when_it_fails_and_when_not(
    tiny: TinyWorld, words: list[str]
) -> None:
    for deployed in (False, True):
        if deployed:
            tiny.roll_out("0.1.0")
        ran = tiny.run(*words, "--json")
        document = json.loads(ran.out)
        assert ran.err == ""
        assert document["schema_version"] == 1
        assert document["command"] == words[0]
        assert document["exit_code"] == ran.code
        assert (ran.code == 0) == (document["failures"] == [])


def test_with_json_what_is_wrong_before_the_verb_begins_is_json_too(tiny: TinyWorld) -> None:
    tiny.config.write_text("[broken")
    for verb in ("check", "status", "start", "config", "history"):
        ran = tiny.run(verb, "--json")
        assert (ran.code, ran.err) == (2, "")
        assert ran.json["command"] == verb
        assert ran.json["failures"][0]["code"] == "config"


def test_help_and_version_are_there(tiny: TinyWorld) -> None:
    out = tiny.ok("--help")
    verbs = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()]
    assert len(verbs) >= 14
    for verb in verbs:
        assert f"Usage: deployex {verb} " in tiny.ok(verb, "--help")
    assert tiny.ok("check", "-h") == tiny.ok("check", "--help")
    assert tiny.ok("--version").startswith("deployex ")


def test_debug_shows_where_an_error_came_from(tiny: TinyWorld) -> None:
    assert "Traceback" in tiny.run("move", "--debug").err
    assert "Traceback" not in tiny.run("move").err


def test_status_shows_what_runs_and_what_is_due(tiny: TinyWorld) -> None:
    pid = tiny.roll_out("0.1.0")
    tiny.offer("0.1.1")
    out = tiny.ok("status")
    for word in ("0.1.0", "hash0.1.0", str(pid), "RUNNING", "on trial", "deploy 0.1.1 over 0.1.0"):
        assert word in out
    status = tiny.status()
    assert status["memory_bytes"] > 0
    assert status["published"] == {"version": "0.1.1", "hash": "hash0.1.1"}


def test_status_of_several_apps_is_one_row_each_and_one_that_fails_hides_no_other(
    tiny: TinyWorld,
) -> None:
    tiny.roll_out("0.1.0")
    tiny.config.write_text(tiny.config.read_text() + "[apps.other]\n")
    out = tiny.ok("status")
    rows = [line for line in out.splitlines() if line.split()[:1] in (["tiny"], ["other"])]
    assert len(rows) == 2
    assert "RUNNING" in rows[0]
    assert "none" in rows[1]
    assert [one["app"] for one in tiny.run("status", "--json").json["apps"]] == ["tiny", "other"]
    state = tiny.root / "var/state/other.json"
    state.write_text('{"schema_version": 99}')
    ran = tiny.run("status", "--json")
    assert ran.code == 1
    assert [one["app"] for one in ran.json["apps"]] == ["tiny"]
    assert "other" in ran.json["failures"][0]["message"]


def test_status_changes_nothing(tiny: TinyWorld) -> None:
    tiny.offer("0.1.0")
    before = sorted(str(path) for path in tiny.root.rglob("*"))
    assert tiny.status()["due"] == "deploy 0.1.0"
    assert sorted(str(path) for path in tiny.root.rglob("*")) == before


def test_history_tells_what_happened_newest_last(tiny: TinyWorld) -> None:
    tiny.configure('min_healthy_time = "1h"')
    assert "nothing happened yet" in tiny.ok("history")
    tiny.roll_out("0.1.0")
    tiny.roll_out("0.1.1")
    tiny.ok("stop")
    events = [("deployed", "0.1.0"), ("deployed", "0.1.1"), ("stopped", "0.1.1")]
    assert tiny.history() == events
    last = tiny.run("history", "-n", "2", "--json").json["entries"]
    assert [(entry["event"], entry["version"]) for entry in last] == events[1:]
    assert last[0]["origin"] == "0.1.0"
    assert last[0]["hash"] == "hash0.1.1"
    assert last[0]["at"].endswith("Z")
    assert tiny.run("history", "-n", "0", "--json").json["entries"] == []
    assert "hash0.1.1" in tiny.ok("history")


def test_config_shows_each_value_with_its_source_and_no_secret(tiny: TinyWorld) -> None:
    tiny.configure(env={"DATABASE_PASSWORD": "hidden", "GREETING": "shown"})
    out = tiny.ok("config") + tiny.ok("config", "--json")
    for secret in ("monster", "hidden"):
        assert secret not in out
    assert "shown" in out
    keys = {key["key"]: key for key in tiny.run("config", "--json").json["keys"]}
    assert keys["apps.tiny.min_healthy_time"]["source"] == str(tiny.config)
    assert keys["apps.tiny.stop_timeout"]["source"] == "default"


def test_logs_tell_the_streams_and_the_apps_apart(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0", shell("echo out; echo err >&2; exec sleep 1000"))
    eventually(lambda: tiny.log("stderr").read_text())
    assert tiny.ok("logs") == "tiny stdout | out\ntiny stderr | err\n"
    assert tiny.ok("logs", "--stream", "stderr") == "err\n"
    lines = [json.loads(line) for line in tiny.ok("logs", "--json").splitlines()]
    assert lines[1] == {"app": "tiny", "stream": "stderr", "line": "err"}
    tiny.config.write_text(tiny.config.read_text() + "[apps.other]\n")
    (tiny.root / "log/other-stdout.log").write_text("from the other\n")
    assert tiny.ok("logs", "--stream", "stdout") == (
        "tiny stdout | out\nother stdout | from the other\n"
    )


def test_logs_are_followed_through_an_app_that_writes_and_is_restarted(tiny: TinyWorld) -> None:
    # open for both: a pipe that no reader holds for an instant would lose what is in it
    writes = "exec 3<> in; echo begun $$; while read line <&3; do echo $line; done"
    tiny.place(shell(f"[ -p in ] || mkfifo in; {writes}"))
    tiny.ok("start")
    follower = tiny.begin("logs", "--follow", "--stream", "stdout")
    assert follower.stdout is not None
    assert follower.stdout.readline() == f"begun {tiny.pid()}\n"
    for word in ("one", "two"):
        (tiny.work / "in").write_text(f"{word}\n")
        assert follower.stdout.readline() == f"{word}\n"
    tiny.ok("restart")
    assert follower.stdout.readline() == f"begun {tiny.pid()}\n"
    follower.send_signal(signal.SIGINT)
    assert follower.communicate()[1] == "", "Ctrl-C is no error to complain of"
    assert follower.returncode == 130


def test_logs_show_the_last_lines_and_follow_across_rotation_and_truncation(
    tiny: TinyWorld,
) -> None:
    tiny.roll_out("0.1.0", shell("exec sleep 1000"))
    log = tiny.log()
    log.write_text("".join(f"line {number}\n" for number in range(30)))
    assert tiny.ok("logs", "-n", "2", "--stream", "stdout") == "line 28\nline 29\n"
    follower = tiny.begin("logs", "-f", "-n", "1", "--stream", "stdout")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "line 29\n"
    with log.open("a") as file:
        file.write("appended\n")
    assert follower.stdout.readline() == "appended\n"
    log.rename(f"{log}.1")
    log.write_text("rotated\n")
    assert follower.stdout.readline() == "rotated\n"
    log.write_text("cut\n")
    assert follower.stdout.readline() == "cut\n"
    follower.terminate()
    follower.communicate()
    assert tiny.run("logs", "--stream", "nonsense").code == 2


def test_a_reader_that_goes_away_is_no_error(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    tiny.log().write_text("x\n" * 100_000)
    done = subprocess.run(
        ["sh", "-c", "deployex logs -n 100000 --stream stdout | head -1"],
        env=tiny.env,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_start_leaves_a_supervisor_that_holds_nothing_of_its_caller(tiny: TinyWorld) -> None:
    tiny.offer("0.1.0")
    reader, writer = os.pipe()
    subprocess.run(["deployex", "check"], env=tiny.env, pass_fds=[writer], check=True)
    os.close(writer)
    assert select.select([reader], [], [], 5)[0], "the pipe has ended although the app runs"
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert os.getsid(tiny.supervisor()) == tiny.supervisor()
    assert tiny.status()["supervisor"]["state"] == "RUNNING"


def test_under_systemd_nothing_is_started_and_the_unit_is_named(tiny: TinyWorld) -> None:
    tiny.offer("0.1.0")
    ran = tiny.run("check", env={"INVOCATION_ID": "0" * 32})
    assert ran.code == 6
    assert "systemctl start deployex-supervise@tiny.service" in ran.err
    assert tiny.processes() == []
    tiny.ok("check")
    assert tiny.status()["supervisor"]["state"] == "RUNNING"


@pytest.mark.beam
def test_remote_opens_the_releases_own_shell(world: World) -> None:
    refused = world.run("remote")
    assert refused.code == 1
    assert "there is no node to open a shell on" in refused.err
    world.deploy("0.1.0")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("deployex", ["deployex", "remote"], {**world.env, "TERM": "xterm"})
    seen = b""

    def shows(what: bytes) -> bool:
        nonlocal seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)
        return what in seen

    eventually(lambda: shows(b"iex("))
    os.write(
        terminal, b"Counter.Server |> Process.whereis() |> is_pid() |> inspect() |> IO.puts()\r"
    )
    eventually(lambda: shows(b"true"))
    os.close(terminal)
    os.waitpid(pid, 0)


def test_sighup_puts_a_new_program_in_the_supervisors_place_and_leaves_the_app(
    tiny: TinyWorld,
) -> None:
    pid = tiny.roll_out("0.1.0")
    supervisor = tiny.supervisor()
    tiny.kill(supervisor, 1)
    log = tiny.log("supervise")
    eventually(lambda: log.read_text().count("supervises tiny") == 2)
    assert (tiny.supervisor(), tiny.pid()) == (supervisor, pid)
    tiny.kill(pid, 9)
    eventually(lambda: tiny.record()["crashes"] == 1 and tiny.record()["state"] == "RUNNING")
    assert tiny.record()["last_exit"] == "was ended by SIGKILL", "it was still its child"
    tiny.ok("stop")
    assert tiny.processes("sleep") == []
