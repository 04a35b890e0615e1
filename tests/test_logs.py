"""The app's output: the last lines to the number, and every line that comes, once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployex_cli.commands import logs as module
from deployex_cli.commands.logs import Follower, Line, logs
from deployex_cli.config import AppConfig
from tests.configured import app_in


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counter-stdout.log"


def follower(path: Path) -> Follower:
    return Follower("counter", "stdout", str(path))


def texts(lines: object) -> list[str]:
    return [line.text for line in lines]  # type: ignore[attr-defined]


def add(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


# --- the last lines -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "count", "lines", "rest"),
    [
        (b"", 5, [], []),
        (b"a\nb\nc\n", 0, [], []),
        (b"a\nb\nc\n", 1, ["c"], []),
        (b"a\nb\nc\n", 3, ["a", "b", "c"], []),
        (b"a\nb\nc\n", 99, ["a", "b", "c"], []),
        (b"a\nb\nc", 1, ["b"], ["c"]),
        (b"a\nb\nc", 99, ["a", "b"], ["c"]),
        (b"c", 5, [], ["c"]),
        (b"\n", 5, [""], []),
        (b"\n\n", 5, ["", ""], []),
        (b"\n\n", 1, [""], []),
        (b"\na", 5, [""], ["a"]),
        (b"a\r\nb\n", 5, ["a\r", "b"], []),
        (b"a\x0bb\x0cc\x1cd\xe2\x80\xa8e\n", 5, ["a\x0bb\x0cc\x1cd\u2028e"], []),
    ],
)
def test_the_last_lines_are_counted_by_their_ends_and_the_unfinished_one_is_apart(
    path: Path, data: bytes, count: int, lines: list[str], rest: list[str]
) -> None:
    path.write_bytes(data)
    one = follower(path)
    assert one.last(count) == [Line("counter", "stdout", text) for text in lines]
    assert texts(one.rest()) == rest
    assert texts(one.rest()) == []


def test_without_a_file_there_are_no_lines(path: Path) -> None:
    one = follower(path)
    assert one.last(5) == []
    assert one.rest() == []
    assert list(one.more()) == []


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 20_000])
@pytest.mark.parametrize("end", [b"", b"unfinished"])
def test_the_count_is_exact_across_blocks(path: Path, count: int, end: bytes) -> None:
    lines = [f"line {number} " + "x" * (number % 97) for number in range(10_000)]
    path.write_bytes("".join(line + "\n" for line in lines).encode() + end)
    one = follower(path)
    assert texts(one.last(count)) == lines[-count:]
    add(path, b" end\nmore\n")
    assert texts(one.more()) == [f"{end.decode()} end", "more"], "it goes on behind them"


def test_a_line_that_is_longer_than_blocks_is_whole(path: Path) -> None:
    long = "y" * (3 * module._BLOCK + 5)
    path.write_text(f"first\n{long}\nlast\n")
    assert texts(follower(path).last(2)) == [long, "last"]


pieces = st.lists(st.text("ab\n", max_size=6).map(str.encode), max_size=6)


@given(before=st.text("ab\n", max_size=12).map(str.encode), count=st.integers(0, 5), later=pieces)
def test_every_line_is_told_once_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, count: int, later: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.log"
    path.write_bytes(before)
    one = follower(path)
    whole = before.split(b"\n")[:-1]
    told = texts(one.last(count))
    assert told == [line.decode() for line in whole[len(whole) - min(count, len(whole)) :]]
    followed = []
    for piece in later:
        add(path, piece)
        followed += texts(one.more())
    everything = (before + b"".join(later)).split(b"\n")
    assert followed == [line.decode() for line in everything[len(whole) : -1]]
    assert texts(one.rest()) == ([everything[-1].decode()] if everything[-1] else [])


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"\xff\xfe", "\ufffd\ufffd"), (b"caf\xe9!", "caf\ufffd!"), (b"\x00\x1b[0m", "\x00\x1b[0m")],
)
def test_bytes_that_are_no_text_are_marked_and_stop_nothing(
    path: Path, raw: bytes, text: str
) -> None:
    path.write_bytes(raw + b"\nnext\n")
    assert texts(follower(path).last(5)) == [text, "next"]


# --- what comes after them ------------------------------------------------------------------


def test_a_line_is_told_when_its_end_comes_and_not_before(path: Path) -> None:
    path.write_bytes(b"a\nun")
    one = follower(path)
    one.last(5)
    assert texts(one.more()) == []
    add(path, b"finis")
    assert texts(one.more()) == []
    add(path, b"hed\nnext\nx")
    assert texts(one.more()) == ["unfinished", "next"]
    assert texts(one.more()) == []


def test_a_character_that_comes_in_two_halves_is_whole(path: Path) -> None:
    one = follower(path)
    for piece in (b"\xc3", b"\xbc", b"\n"):
        add(path, piece)
        told = texts(one.more())
    assert told == ["\xfc"]


def test_a_file_that_comes_later_is_read_from_its_beginning(path: Path) -> None:
    one = follower(path)
    assert one.last(5) == []
    path.write_bytes(b"first\n")
    assert texts(one.more()) == ["first"]


def test_after_a_rotation_the_rest_of_the_old_file_comes_first(path: Path) -> None:
    path.write_bytes(b"a\n")
    one = follower(path)
    one.last(5)
    add(path, b"b\nlast words")
    path.rename(path.with_suffix(".1"))
    path.write_bytes(b"c\nd")
    assert texts(one.more()) == ["b", "last words", "c"]
    add(path, b"\n")
    assert texts(one.more()) == ["d"]


def test_two_rotations_between_two_looks_lose_only_the_file_that_nobody_saw(path: Path) -> None:
    path.write_bytes(b"a\n")
    one = follower(path)
    one.last(5)
    path.rename(path.with_suffix(".2"))
    path.write_bytes(b"unseen\n")
    path.rename(path.with_suffix(".1"))
    path.write_bytes(b"c\n")
    assert texts(one.more()) == ["c"]


def test_no_rotation_leaves_an_old_file_open(path: Path) -> None:
    path.write_bytes(b"a\n")
    one = follower(path)
    one.last(5)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        path.rename(path.with_suffix(".1"))
        path.write_bytes(b"b\n")
        assert texts(one.more()) == ["b"]
    assert os.listdir("/proc/self/fd") == before


def test_between_the_two_steps_of_a_rotation_the_old_file_is_still_read(path: Path) -> None:
    path.write_bytes(b"a\n")
    one = follower(path)
    one.last(5)
    old = path.with_suffix(".1")
    path.rename(old)
    add(old, b"b\n")
    assert texts(one.more()) == ["b"]
    add(old, b"c\n")
    path.write_bytes(b"d\n")
    assert texts(one.more()) == ["c", "d"]


@pytest.mark.parametrize("new", [b"", b"new\n"])
def test_after_a_truncation_all_that_the_file_holds_is_new(path: Path, new: bytes) -> None:
    path.write_bytes(b"a\nb\nc\nunfinished")
    one = follower(path)
    one.last(5)
    path.write_bytes(new)
    assert texts(one.more()) == ([new.decode().strip()] if new else [])
    add(path, b"more\n")
    assert texts(one.more()) == ["more"]


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> AppConfig:
    app = app_in(tmp_path)
    Path(app.paths.stdout).parent.mkdir()
    Path(app.paths.stdout).write_bytes(b"out 1\nout 2\nout 3")
    Path(app.paths.stderr).write_bytes(b"err 1\n")
    return app


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, []), (1, ["out 3"]), (2, ["out 2", "out 3"]), (9, ["out 1", "out 2", "out 3"])],
)
def test_it_prints_as_many_lines_as_were_asked_for_the_unfinished_one_included(
    app: AppConfig, capsys: pytest.CaptureFixture[str], count: int, shown: list[str]
) -> None:
    logs((app,), "stdout", count, follow=False, as_json=False)
    assert capsys.readouterr().out.splitlines() == shown


def test_of_both_streams_each_line_says_which(
    app: AppConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    logs((app,), "both", 1, follow=False, as_json=False)
    assert capsys.readouterr().out == "counter stdout | out 3\ncounter stderr | err 1\n"


def test_as_json_each_line_is_an_object(app: AppConfig, capsys: pytest.CaptureFixture[str]) -> None:
    logs((app,), "stderr", 9, follow=False, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "app": "counter",
        "stream": "stderr",
        "line": "err 1",
    }


def test_it_follows_until_it_is_interrupted(
    app: AppConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = 0

    def wait(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt
        add(Path(app.paths.stdout), b" goes on\n" if looks == 1 else b"out 4\n")

    with pytest.raises(KeyboardInterrupt):
        logs((app,), "stdout", 1, follow=True, as_json=False, wait=wait)
    assert capsys.readouterr().out.splitlines() == ["out 2", "out 3 goes on", "out 4"]
