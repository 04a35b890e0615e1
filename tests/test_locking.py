"""One run per app at a time: the second says who holds the lock, and since when."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.tiny import TinyWorld, shell
from tests.world import eventually

# `bin/tiny wait` lasts until the file `go` is there
WAITS = shell(
    """
case "$1" in
start) exec sleep 1000 ;;
wait) echo >> waiting; while [ ! -e go ]; do sleep 0.02; done ;;
esac"""
)


@contextmanager
def a_check_that_lasts(tiny: TinyWorld) -> Iterator[subprocess.Popen[str]]:
    """A check of 0.1.1 over 0.1.0 that is in a pre_command until the block ends."""
    tiny.roll_out("0.1.0")
    tiny.offer("0.1.1", WAITS, "--pre-command", "wait")
    process = tiny.begin("check")
    tiny.read("waiting")
    yield process
    (tiny.work / "go").touch()
    process.communicate(timeout=20)


def test_a_second_check_says_who_holds_the_lock_and_since_when(tiny: TinyWorld) -> None:
    with a_check_that_lasts(tiny) as first:
        ran = tiny.run("check")
        assert ran.code == 75
        assert re.fullmatch(
            rf"error: tiny: `deployex check` \(pid {first.pid}\) holds the lock since"
            r" \d\d:\d\d:\d\d; nothing was done\n",
            ran.err,
        ), ran.err
    assert first.returncode == 0
    assert tiny.link("current") == "0.1.1"
    assert tiny.run("check").code == 0


@pytest.mark.parametrize(
    "words", [["stop"], ["start"], ["restart"], ["move"], ["unpack", "0.1.1"], ["rollback"]]
)
def test_every_verb_that_changes_something_asks_for_it(tiny: TinyWorld, words: list[str]) -> None:
    with a_check_that_lasts(tiny) as first:
        before = tiny.state()
        ran = tiny.run(*words, "--json")
        assert ran.code == 75
        assert ran.json["failures"][0]["code"] == "locked"
        assert f"pid {first.pid}" in ran.json["failures"][0]["message"]
        assert tiny.state() == before


def test_what_only_reads_does_not_ask_for_it(tiny: TinyWorld) -> None:
    with a_check_that_lasts(tiny):
        status = tiny.status()
        assert status["version"] == "0.1.0"
        assert status["deployment"]["version"] == "0.1.1"
        assert status["deployment"]["phase"] == "unpacked"
        for verb in ("history", "logs", "config"):
            assert tiny.run(verb).code == 0
        assert tiny.run("check", "--dry-run").code == 0


def test_one_apps_lock_does_not_keep_another_from_its_turn(tiny: TinyWorld) -> None:
    with a_check_that_lasts(tiny):
        text = tiny.config.read_text().replace("[apps.tiny]", "[apps.other]\n[apps.tiny]")
        tiny.config.write_text(text)
        ran = tiny.run("check", "--json")
        assert ran.code == 75
        outcomes = {one["app"]: one["outcome"] for one in ran.json["apps"]}
        assert outcomes == {"other": "nothing_to_do", "tiny": "failed"}


def test_a_lock_file_that_a_dead_run_left_is_no_obstacle(tiny: TinyWorld) -> None:
    tiny.roll_out("0.1.0")
    process = tiny.begin("check")
    process.kill()
    process.communicate()
    assert (tiny.root / "run/tiny.lock").exists()
    eventually(lambda: tiny.run("check").code == 0)
