"""One lock per app: between real processes, and by whoever inherited it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployex_cli.errors import ExitCode, Locked
from deployex_cli.layout.lock import AppLock, holder, holder_lives

ROOT = Path(__file__).parent.parent
TAKE = """
import os, sys
from deployex_cli.layout.lock import AppLock
lock = AppLock(sys.argv[1], "counter", "deployex check")
lock.__enter__()
print(os.getpid(), flush=True)
sys.stdin.read()
"""
# takes it, hands it to a `cat` that reads our stdin to its end, and dies at once
LEAVE = """
import os, subprocess, sys
from deployex_cli.layout.lock import AppLock
lock = AppLock(sys.argv[1], "counter", "deployex check")
lock.__enter__()
print(subprocess.Popen(["cat"], pass_fds=[lock.fileno()]).pid, flush=True)
os._exit(9)
"""


class Holder:
    """A process that holds the lock, itself or by a child of its, until its stdin is closed."""

    def __init__(self, program: str, path: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, path], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        self.pid = self.process.pid
        assert self.process.stdout is not None
        # readable once that process is gone, and all its descriptors with it
        self._gone = os.pidfd_open(int(self.process.stdout.readline()))

    def end(self) -> None:
        """Lets it end, and waits until it has."""
        if self._gone >= 0:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.close()
            select.select([self._gone], [], [])
            self.process.wait()
            self.process.stdout.close()
            os.close(self._gone)
            self._gone = -1


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counter.lock")


@pytest.fixture
def other(path: str) -> Iterator[Holder]:
    """Another process that holds the lock."""
    holder = Holder(TAKE, path)
    yield holder
    holder.end()


@pytest.fixture
def child_of_a_dead_one(path: str) -> Iterator[Holder]:
    """The lock in the hands of a process whose parent took it and is dead."""
    holder = Holder(LEAVE, path)
    yield holder
    holder.end()


def test_the_second_is_told_who_holds_it_since_when_and_that_nothing_was_done(
    path: str, other: Holder
) -> None:
    with pytest.raises(Locked) as caught, AppLock(path, "counter", "deployex stop"):
        raise AssertionError("two hold it")
    said = re.fullmatch(
        r"counter: `deployex check` \(pid (\d+)\) holds the lock since (\d\d:\d\d:\d\d);"
        r" nothing was done",
        caught.value.message,
    )
    assert said
    assert int(said[1]) == other.pid
    assert caught.value.exit_code is ExitCode.LOCKED
    assert holder_lives(path)


def test_one_that_could_not_take_it_leaves_the_holders_name_in_it(path: str, other: Holder) -> None:
    assert AppLock(path, "counter", "deployex stop").acquire() is False
    assert f"`deployex check` (pid {other.pid})" in holder(path)


def test_one_that_could_not_take_it_leaves_no_descriptor_open(path: str, other: Holder) -> None:
    before = os.listdir("/proc/self/fd")
    assert not AppLock(path, "counter", "deployex stop").acquire()
    assert os.listdir("/proc/self/fd") == before


def test_it_is_free_once_its_holder_has_ended(path: str, other: Holder) -> None:
    other.end()
    with AppLock(path, "counter", "deployex stop"):
        assert f"`deployex stop` (pid {os.getpid()})" in holder(path)


def test_it_is_free_once_its_holder_was_killed(path: str, other: Holder) -> None:
    other.process.kill()
    other.process.wait()
    lock = AppLock(path, "counter", "deployex stop")
    assert lock.acquire()
    lock.release()


def test_it_is_free_after_the_block_and_after_an_error_in_it(path: str) -> None:
    with AppLock(path, "counter", "one"):
        pass
    with pytest.raises(ZeroDivisionError), AppLock(path, "counter", "two"):
        raise ZeroDivisionError
    lock = AppLock(path, "counter", "three")
    assert lock.acquire()
    lock.release()
    lock.release()


def test_two_in_one_process_exclude_each_other_too(path: str) -> None:
    with AppLock(path, "counter", "one"):
        assert not AppLock(path, "counter", "two").acquire()


def test_a_command_that_inherited_it_holds_it_after_its_owner_died(
    path: str, child_of_a_dead_one: Holder
) -> None:
    child_of_a_dead_one.process.wait()
    with pytest.raises(Locked) as caught, AppLock(path, "counter", "deployex stop"):
        raise AssertionError("two hold it")
    pid = child_of_a_dead_one.pid
    words = f"counter: what `deployex check` (pid {pid}, ended) left running holds the lock since"
    assert caught.value.message.startswith(words)
    assert not holder_lives(path)
    child_of_a_dead_one.end()
    with AppLock(path, "counter", "deployex stop"):
        assert holder_lives(path)


def test_only_who_is_handed_it_inherits_it(path: str) -> None:
    with AppLock(path, "counter", "deployex check"):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    lock = AppLock(path, "counter", "deployex stop")
    assert lock.acquire(), "the child does not hold it"
    lock.release()
    child.communicate()


def test_the_file_is_for_us_alone_and_stays(path: str) -> None:
    with AppLock(path, "counter", "deployex check"):
        inode = Path(path).stat().st_ino
        assert Path(path).stat().st_mode & 0o777 == 0o600
    assert Path(path).stat().st_ino == inode


def test_a_shorter_name_leaves_nothing_of_a_longer_one(path: str) -> None:
    with AppLock(path, "counter", "a much longer name than the next one"):
        pass
    with AppLock(path, "counter", "x"):
        assert Path(path).read_text().split(None, 2)[2] == "x\n"


@pytest.mark.parametrize("content", [b"", b"\n", b"7", b"x y z", b"7 now check", b"\xff\xfe 1 2"])
def test_a_holder_that_cannot_be_read_is_another_run_that_lives(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    assert holder(path) == "another run holds the lock"
    assert holder_lives(path)


def test_a_link_in_the_place_of_the_lock_is_not_followed(path: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(path).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        AppLock(path, "counter", "deployex check").acquire()
    assert victim.read_text() == "precious"
