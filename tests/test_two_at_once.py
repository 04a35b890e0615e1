"""Two of everything at the same instant: one wins, the other says so, and the world stays whole.

Each pair is let go at once, many rounds: who comes first is chance, so what is asserted holds for
every order, and is read from the world afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections import Counter

import pytest

from tests.tiny import SLEEPS, TinyWorld, is_alive, is_whole, put, shell, tarball
from tests.world import Ran, eventually

LOCKED = 75
# `bin/tiny wait` writes that it has begun, and lasts until the file `go` is there
WAITS = shell(
    """case $1 in
start) exec sleep 1000 ;;
wait) echo begun >> notes; while [ ! -e go ]; do sleep 0.02; done; echo ended >> notes ;;
esac"""
)


def start_at_once(
    tiny: TinyWorld, *commands: list[str], env: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Starts `deployex` with each of these words; none begins before all are there."""
    reader, writer = os.pipe()
    begun = [
        subprocess.Popen(
            # the end of stdin is the shot: all read the same pipe, so all see it together
            ["sh", "-c", 'read shot; exec deployex "$@" < /dev/null', "sh", *words],
            env={**tiny.env, **(env or {})},
            stdin=reader,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tiny.root,
        )
        for words in commands
    ]
    os.close(reader)
    os.close(writer)
    return begun


def at_once(tiny: TinyWorld, *commands: list[str], env: dict[str, str] | None = None) -> list[Ran]:
    """Runs `deployex` with each of these words, let go at the same instant, to their ends."""
    ended = []
    for process in start_at_once(tiny, *commands, env=env):
        out, err = process.communicate(timeout=120)
        ended.append(Ran(process.returncode, out, err))
    for ran in ended:
        assert "Traceback" not in ran.err, ran
        if ran.code == LOCKED:
            # its name is in the file an instant after the lock is taken: mostly, not always, told
            assert re.search(r"holds the lock|another `deployex publish`", ran.err), ran
            assert "nothing was done" in ran.err
    return ended


def codes(ended: list[Ran]) -> list[int]:
    return [ran.code for ran in ended]


def history(tiny: TinyWorld) -> list[tuple[str, str]]:
    """(event, version) of each entry, from the file: faster than the command."""
    lines = (tiny.root / "var/state/tiny.history.jsonl").read_text().splitlines()
    return [(entry["event"], entry["version"]) for entry in map(json.loads, lines)]


def events(tiny: TinyWorld, version: str | None = None) -> Counter[str]:
    """How often the history tells of each event, of that version or of all."""
    return Counter(event for event, of in history(tiny) if version in (None, of))


# --- checks -------------------------------------------------------------------------------------


def test_of_several_checks_of_a_first_deployment_one_does_it(tiny: TinyWorld) -> None:
    put(tiny, "0.1.0")
    ended = at_once(tiny, *[["check"]] * 4)
    assert set(codes(ended)) <= {0, LOCKED}
    assert 0 in codes(ended)
    is_whole(tiny, "0.1.0")
    assert events(tiny)["deployed"] == 1


def test_of_two_checks_of_an_update_one_does_it(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    for number in range(1, 7):
        version = f"0.1.{number}"
        put(tiny, version)
        ended = at_once(tiny, ["check"], ["check"])
        assert sorted(codes(ended)) in ([0, 0], [0, LOCKED])
        is_whole(tiny, version)
        deployed = [ran for ran in ended if f"deployed to {version}" in ran.out]
        assert len(deployed) == 1, ended
        assert events(tiny, version)["deployed"] == 1


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["start"], {0, LOCKED}),
        (["restart"], {0, LOCKED}),
        (["unpack", "0.1.1"], {0, LOCKED}),
        # a second one finds no version before
        (["rollback"], {0, 1, LOCKED}),
    ],
)
def test_of_two_of_the_same_verb_one_is_done_and_the_other_does_no_harm(
    tiny: TinyWorld, words: list[str], allowed: set[int]
) -> None:
    tiny.roll_out("0.1.0")
    tiny.roll_out("0.2.0")
    put(tiny, "0.1.1")
    for _ in range(3):
        ended = at_once(tiny, words, words)
        assert set(codes(ended)) <= allowed
        assert 0 in codes(ended)
        if words[0] == "unpack":
            assert tiny.link("new") == "0.1.1"
            folders = [path.name for path in (tiny.service / "releases").iterdir()]
            assert [name.partition("-")[2] for name in sorted(folders)].count("0.1.1") == 1
            assert tiny.leftovers() == []
            return
        is_whole(tiny, "0.1.0" if words[0] == "rollback" else "0.2.0")
        if words[0] == "rollback":
            assert events(tiny)["rolled back"] == 1
            return
        # each that was done is told once
        done = codes(ended).count(0)
        told = [event for event, _ in history(tiny)][-done:]
        assert told == [f"{words[0]}ed"] * done


def test_a_check_and_a_rollback_happen_one_after_the_other_or_not_at_all(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    for number in range(1, 4):
        between, newest = f"1.{number}.0", f"1.{number}.1"
        put(tiny, between)
        tiny.ok("check")
        put(tiny, newest)
        before = events(tiny)
        check, rollback = at_once(tiny, ["check"], ["rollback"])
        assert {check.code, rollback.code} in ({0}, {0, LOCKED})
        after = history(tiny)
        current = after[-1][1]
        is_whole(tiny, current)
        told = events(tiny) - before
        assert told["deployed"] == (check.code == 0)
        assert told["rolled back"] == (rollback.code == 0)
        assert events(tiny, newest)["deployed"] == (check.code == 0)
        # whatever came first, the next check leaves what a person chose or takes what is published
        tiny.ok("check")
        ghosts = [ghost["version"] for ghost in tiny.state()["ghosts"]]
        is_whole(tiny, current if newest in ghosts else newest)


def test_a_stop_and_a_check_end_in_what_the_person_wanted_if_the_stop_was_done(
    tiny: TinyWorld,
) -> None:
    tiny.roll_out("0.1.0")
    for number in range(1, 5):
        version = f"0.1.{number}"
        put(tiny, version)
        stop, check = at_once(tiny, ["stop"], ["check"])
        assert {stop.code, check.code} in ({0}, {0, LOCKED})
        if stop.code == 0:
            is_whole(tiny, None)
            assert tiny.state()["wanted"] == "stopped"
            tiny.ok("check")
            is_whole(tiny, None)
            tiny.ok("start")
            tiny.ok("check")
        is_whole(tiny, version)
        assert events(tiny, version)["deployed"] == 1
    assert events(tiny)["stopped"] == events(tiny)["started"]


# --- publishing ---------------------------------------------------------------------------------


def test_a_check_during_a_publish_sees_the_old_version_or_the_new_one(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    for number in range(1, 5):
        version = f"0.1.{number}"
        package = tiny.pack(version)
        publish, *checks = at_once(tiny, ["publish", str(package)], *[["check"]] * 2)
        assert publish.code == 0
        assert set(codes(checks)) <= {0, LOCKED}
        tiny.ok("check")
        is_whole(tiny, version)
        assert events(tiny, version)["deployed"] == 1


@pytest.mark.parametrize("replace", [True, False], ids=["replacing", "without --replace"])
@pytest.mark.parametrize("same", [True, False], ids=["one version", "two versions"])
def test_two_publishes_leave_a_manifest_whose_package_is_there(
    tiny: TinyWorld, same: bool, replace: bool
) -> None:
    for number in range(3):
        versions = (f"0.{number}.1", f"0.{number}.1" if same else f"0.{number}.2")
        words = []
        for who, version in zip("ab", versions, strict=True):
            # some MB that no gzip makes smaller, so that writing takes a while
            path = tiny.root / f"{who}.tar.gz"
            tarball(path, "tiny", version, SLEEPS + f"# {who}: {os.urandom(1_500_000).hex()}\n")
            words.append(["publish", str(path), "--hash", who, *["--replace"] * replace])
        ended = at_once(tiny, *words)
        allowed = {0, LOCKED} if replace or not same else {0, LOCKED, 3}
        assert set(codes(ended)) <= allowed
        assert 0 in codes(ended)
        manifest = json.loads(tiny.manifest.read_text())
        package = tiny.dist / f"tiny-{manifest['version']}.tar.gz"
        assert hashlib.sha256(package.read_bytes()).hexdigest() == manifest["sha256"]
        # the manifest's words are of the one whose bytes they name, and who was told it is there
        winner = "ab".index(manifest["hash"])
        assert ended[winner].code == 0
        mine = (tiny.root / f"{manifest['hash']}.tar.gz").read_bytes()
        assert package.read_bytes() == mine
        assert tiny.leftovers() == []
        tiny.ok("check")
        is_whole(tiny, manifest["version"])


# --- supervisors --------------------------------------------------------------------------------


def end_all(tiny: TinyWorld, pids: list[int], number: int) -> None:
    """Ends processes of this world, and waits until they are gone."""
    for pid in pids:
        os.kill(pid, number)
    eventually(lambda: not any(is_alive(pid) for pid in pids))


def loser_and_winner(
    processes: list[subprocess.Popen[str]],
) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Waits until one of two has ended; the other stays."""
    eventually(lambda: any(process.poll() is not None for process in processes), 60)
    one, other = processes
    return (one, other) if one.poll() is not None else (other, one)


def has_written_its_record(tiny: TinyWorld, supervisor: int) -> None:
    """Waits until the record is no longer that of the supervisor before."""
    eventually(lambda: tiny.supervisor() == supervisor)


def test_of_two_supervisors_one_wins_and_the_other_names_it(tiny: TinyWorld) -> None:
    tiny.place()
    app = None
    for number in range(20):
        processes = start_at_once(tiny, ["supervise"], ["supervise"])
        loser, winner = loser_and_winner(processes)
        _, err = loser.communicate(timeout=60)
        assert loser.returncode == 1, err
        assert f"another supervisor (pid {winner.pid}) keeps it alive already" in err
        has_written_its_record(tiny, winner.pid)
        record = tiny.until("RUNNING")
        assert tiny.ask("status")["app"] == record["app"]
        is_whole(tiny, "0.1.0")
        if number % 2:
            assert record["app"][0] == app, "it was adopted, by one of the two"
            winner.terminate()
        else:
            app = record["app"][0]
            winner.kill()  # and the next two find a lock file, a socket and an app of a dead one
        winner.communicate(timeout=60)
        assert winner.returncode == (0 if number % 2 else -signal.SIGKILL)
    assert tiny.processes() == []


def test_a_check_and_a_supervisor_at_boot_start_one_app(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    for number in range(8):
        end_all(tiny, tiny.processes(), signal.SIGKILL)
        if number % 2:
            put(tiny, f"0.1.{number}")  # and a deployment is due as well
        supervise, check = start_at_once(tiny, ["supervise"], ["check"])
        _, err = check.communicate(timeout=120)
        assert check.returncode in (0, LOCKED), err
        # not the record of the one that was killed
        eventually(lambda: is_alive(tiny.supervisor()) and tiny.record()["state"] == "RUNNING")
        who = tiny.supervisor()
        if who != supervise.pid:  # the check had begun one already
            _, said = supervise.communicate(timeout=60)
            assert supervise.returncode == 1, said
            assert f"another supervisor (pid {who}) keeps it alive already" in said
        if check.returncode == LOCKED:
            tiny.ok("check")
        version = f"0.1.{number if number % 2 else max(number - 1, 0)}"
        is_whole(tiny, version)
        assert events(tiny, version)["deployed"] == 1
        if supervise.poll() is None:
            supervise.kill()
            supervise.communicate(timeout=60)


def test_several_checks_without_a_supervisor_begin_one(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    for _ in range(5):
        supervisor, app = tiny.supervisor(), tiny.pid()
        end_all(tiny, [supervisor], signal.SIGKILL)
        ended = at_once(tiny, *[["check"]] * 3)
        assert set(codes(ended)) <= {0, LOCKED}
        assert 0 in codes(ended)
        assert tiny.supervisor() != supervisor
        assert tiny.pid() == app, "what still ran was adopted"
        is_whole(tiny, "0.1.0")


# --- a migration whose check is killed ----------------------------------------------------------


def test_checks_after_a_killed_one_wait_for_its_migration_and_none_begins_it_again(
    tiny: TinyWorld,
) -> None:
    old = tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", WAITS, "--pre-command", "wait")
    check = tiny.begin("check")
    tiny.read("notes")
    check.kill()
    check.communicate()
    ended = at_once(tiny, *[["check"]] * 3)
    assert codes(ended) == [LOCKED] * 3
    for ran in ended:
        assert f"(pid {check.pid}, ended) left running holds the lock" in ran.err
    assert tiny.pid() == old
    (tiny.work / "go").touch()
    eventually(lambda: tiny.read("notes").count("ended"))
    # the lock is free once the supervisor has seen the end of it
    recovered = eventually(lambda: (r := at_once(tiny, *[["check"]] * 3)) and 0 in codes(r) and r)
    assert set(codes(recovered)) <= {0, LOCKED}
    tiny.ok("check")
    assert tiny.read("notes") == "begun\nended\n", "it ran once"
    assert events(tiny, "0.1.1") == {"failed": 1}
    assert [ghost["version"] for ghost in tiny.state()["ghosts"]] == ["0.1.1"]
    is_whole(tiny, "0.1.0")
    assert tiny.pid() == old


def test_of_several_checks_of_a_deployment_with_a_migration_one_runs_it(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", WAITS, "--pre-command", "wait")
    processes = start_at_once(tiny, *[["check"]] * 4)
    tiny.read("notes")
    # the losers do not wait for it
    eventually(lambda: sum(process.poll() is not None for process in processes) == 3, 60)
    (tiny.work / "go").touch()
    for process in processes:
        process.communicate(timeout=60)
    assert sorted(process.returncode for process in processes) == [0, LOCKED, LOCKED, LOCKED]
    assert tiny.read("notes") == "begun\nended\n"
    is_whole(tiny, "0.1.1")
    assert events(tiny, "0.1.1") == {"deployed": 1}
