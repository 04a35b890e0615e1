"""start_erl.data and RELEASES: what we write, read back by OTP itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deployex_cli.errors import NotFound, StateError
from deployex_cli.layout.otp_files import (
    HELD,
    KEPT,
    RELEASES,
    START_ERL,
    Held,
    Holdings,
    StartErl,
    boots,
    keep_copies,
    make_boot,
    mend,
    parse_start_erl,
    read_holdings,
    releases_term,
    renew_copies,
    write_holdings,
    write_releases,
)

BOOTS = StartErl("15.2", "1.2.3-rc.1+build")
# every reserved word of Erlang, and what else an atom or a string may trip over
RESERVED = (
    *("after", "and", "andalso", "band", "begin", "bnot", "bor", "bsl", "bsr", "bxor", "case"),
    *("catch", "cond", "div", "else", "end", "fun", "if", "let", "maybe", "not", "of", "or"),
    *("orelse", "receive", "rem", "try", "when", "xor"),
)
ODD = ("Upper", "1st", "_x", "a.b", "a b", "it's", "back\\slash", 'quo"te', "ümlaut", "日本", "a@b")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"15.2 1.2.3", StartErl("15.2", "1.2.3")),
        (b"15.2 1.2.3\n", StartErl("15.2", "1.2.3")),
        (b"  15.2\t1.2.3-rc.1 \r\n", StartErl("15.2", "1.2.3-rc.1")),
        (b"", None),
        (b"15.2", None),
        (b"15.2 1.2.3 more", None),
    ],
)
def test_start_erl_names_the_runtime_and_the_version(raw: bytes, found: StartErl | None) -> None:
    assert parse_start_erl(raw) == found


@pytest.mark.parametrize(
    ("folder", "entry"),
    [
        ("kernel-9.2", '{\'kernel\',"9.2","lib/kernel-9.2"}'),
        ("app-1.0.0-rc.1", '{\'app\',"1.0.0-rc.1","lib/app-1.0.0-rc.1"}'),
        ("app-", '{\'app\',"","lib/app-"}'),
        ("it's-1", "{'it\\'s',\"1\",\"lib/it's-1\"}"),
    ],
)
def test_a_library_splits_at_its_first_dash(folder: str, entry: str) -> None:
    assert entry in term(folder)


def test_what_has_no_version_in_its_name_is_no_library() -> None:
    assert "readme" not in term("readme", "kernel-9.2")


def term(*libraries: str) -> str:
    held = Held(BOOTS.version, BOOTS.erts, libraries)
    return releases_term("counter", [held], BOOTS.version)


def release(folder: Path, *libraries: str) -> str:
    for library in libraries:
        (folder / "lib" / library).mkdir(parents=True)
    (folder / "releases").mkdir(exist_ok=True)
    (folder / START_ERL).write_text(f"{BOOTS.erts} {BOOTS.version}")
    return str(folder)


def test_a_release_that_brings_its_own_keeps_it(tmp_path: Path) -> None:
    folder = release(tmp_path, "kernel-9.2")
    (tmp_path / RELEASES).write_text("[mine].\n")
    assert not write_releases(folder, "counter")
    assert (tmp_path / RELEASES).read_text() == "[mine].\n"


@pytest.mark.parametrize("missing", ["lib", START_ERL])
def test_without_libraries_or_a_version_there_is_nothing_to_say(
    tmp_path: Path, missing: str
) -> None:
    folder = release(tmp_path, "kernel-9.2")
    (tmp_path / missing).rename(tmp_path / "away")
    assert not write_releases(folder, "counter")
    assert not (tmp_path / RELEASES).exists()


def test_what_is_written_may_be_read_by_the_app_under_any_user(tmp_path: Path) -> None:
    assert write_releases(release(tmp_path, "kernel-9.2"), "counter")
    assert (tmp_path / RELEASES).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "releases").iterdir() if path.name[0] == "."] == []


@pytest.mark.beam
def test_otp_reads_every_library_of_every_name_and_version(tmp_path: Path) -> None:
    names = [*RESERVED, *ODD, "kernel"]
    versions = ["1.0.0", "1.0.0-rc.1", "2", 'x"y\\z']
    libraries = [f"{name}-{version}" for name in names for version in versions]
    assert write_releases(release(tmp_path, *libraries), "counter")
    # the term, told again in lines that no quoting can hide anything in: UTF-8 in hexadecimal
    program = """
        {ok, [[{release, Name, Version, Erts, Libraries, permanent}]]} = file:consult("FILE"),
        Hex = fun(T) -> binary:encode_hex(unicode:characters_to_binary(T)) end,
        [io:format("~s.~s.~s~n", [Hex(atom_to_list(L)), Hex(V), Hex(D)]) || {L, V, D} <- Libraries],
        io:format("~s ~s ~s~n", [Name, Version, Erts]),
        halt().
    """
    done = subprocess.run(
        ["erl", "-noshell", "-eval", program.replace("FILE", str(tmp_path / RELEASES))],
        capture_output=True,
        text=True,
        timeout=30,
    )
    *lines, head = done.stdout.splitlines() or [""]
    assert head == f"counter {BOOTS.version} {BOOTS.erts}", done
    read = {tuple(bytes.fromhex(part).decode() for part in line.split(".")) for line in lines}
    assert read == {(n, v, f"lib/{n}-{v}") for n in names for v in versions}


# --- put right before a start ---------------------------------------------------------------


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """A release that was just unpacked, with its copies."""
    for library in ("kernel-9.2", "stdlib-5.2"):
        (tmp_path / "lib" / library).mkdir(parents=True)
    (tmp_path / "releases/1.2.3").mkdir(parents=True)
    (tmp_path / START_ERL).write_text("15.2 1.2.3\n")
    assert write_releases(str(tmp_path), "counter")
    keep_copies(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", [START_ERL, RELEASES])
def test_whatever_a_power_cut_makes_of_either_file_is_put_right(placed: Path, name: str) -> None:
    whole = (placed / name).read_bytes()
    harmless = [whole.rstrip()]  # nothing is missing but the end of the line
    torn = [whole[:length] for length in range(len(whole)) if whole[:length] not in harmless]
    torn += [b"\0" * len(whole), whole[:5] + b"\0" * (len(whole) - 5)]
    for raw in torn:
        (placed / name).write_bytes(raw)
        assert mend(str(placed)) == [name], raw
        assert (placed / name).read_bytes() == whole
    (placed / name).unlink()
    assert mend(str(placed)) == [name]
    assert (placed / name).read_bytes() == whole


def test_what_is_whole_stays_as_it_is_though_a_hot_upgrade_has_changed_it(placed: Path) -> None:
    assert mend(str(placed)) == []
    (placed / "releases/1.3.0").mkdir()
    (placed / START_ERL).write_text("15.2 1.3.0\n")
    (placed / RELEASES).write_text(releases_term("x", [Held("1.3.0", "15.2", ("a-1",))], "1.3.0"))
    before = (placed / RELEASES).read_bytes()
    assert mend(str(placed)) == []
    assert (placed / RELEASES).read_bytes() == before
    assert (placed / START_ERL).read_text() == "15.2 1.3.0\n"


def test_a_release_that_has_neither_file_is_left_alone(tmp_path: Path) -> None:
    keep_copies(str(tmp_path))
    assert mend(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


# --- several releases in one folder ---------------------------------------------------------


@pytest.fixture
def upgraded(placed: Path) -> Path:
    """A release that another was put into and made permanent, as the VM leaves it."""
    (placed / "releases/1.3.0").mkdir()
    first = Held("1.2.3", "15.2", ("kernel-9.2", "stdlib-5.2"))
    write_holdings(str(placed), Holdings("counter", (first, first._replace(version="1.3.0"))))
    (placed / START_ERL).write_text("15.2 1.3.0\n")
    (placed / RELEASES).write_text(by_otp("1.3.0"))
    return placed


def by_otp(permanent: str) -> str:
    """RELEASES as OTP writes it: a line about the encoding first."""
    other = {"1.2.3": "1.3.0", "1.3.0": "1.2.3"}[permanent]
    entries = (
        f'{{release,"counter","{version}","15.2",[{{kernel,"9.2","/r/lib/kernel-9.2"}}],{status}}}'
        for version, status in ((permanent, "permanent"), (other, "old"))
    )
    return f"%% coding: utf-8\n[{','.join(entries)}].\n"


def permanent(folder: Path) -> list[str]:
    """The versions that our RELEASES calls permanent."""
    parts = (folder / RELEASES).read_text().split("{release,")
    return [part.split('"')[3] for part in parts if "],permanent}" in part]


def test_what_otp_wrote_is_whole(placed: Path) -> None:
    (placed / RELEASES).write_text(by_otp("1.2.3"))
    assert mend(str(placed)) == []
    assert (placed / RELEASES).read_text() == by_otp("1.2.3")


def test_what_was_put_in_is_read_back(upgraded: Path) -> None:
    held = read_holdings(str(upgraded))
    assert held is not None
    assert [release.version for release in held.releases] == ["1.2.3", "1.3.0"]
    assert held.libraries() == {"kernel-9.2", "stdlib-5.2"}
    assert [release.version for release in held.without("1.3.0").releases] == ["1.2.3"]


@pytest.mark.parametrize("boots_now", ["1.2.3", "1.3.0"])
def test_a_make_permanent_that_ended_half_way_leaves_files_that_fit_after_all(
    upgraded: Path, boots_now: str
) -> None:
    (upgraded / START_ERL).write_text(f"15.2 {boots_now}\n")
    for written in ("1.2.3", "1.3.0"):
        (upgraded / RELEASES).write_text(by_otp(written))
        assert mend(str(upgraded)) == []
        assert permanent(upgraded) == [boots_now]


def test_torn_files_become_what_last_was_made_to_boot(upgraded: Path) -> None:
    for version in ("1.2.3", "1.3.0"):
        for raw in (b"", b"15.2", b"\0\0"):
            (upgraded / START_ERL).write_bytes(raw)
            (upgraded / RELEASES).write_bytes(raw)
            assert mend(str(upgraded)) == [START_ERL, RELEASES]
            assert boots(str(upgraded)) == version
            assert permanent(upgraded) == [version]
        (upgraded / START_ERL).write_text("15.2 1.3.0\n")
        (upgraded / RELEASES).write_text(by_otp("1.3.0"))
        renew_copies(str(upgraded))


def test_what_is_torn_is_not_kept(upgraded: Path) -> None:
    before = (upgraded / KEPT).read_bytes()
    (upgraded / RELEASES).write_text(by_otp("1.3.0")[:-9])
    renew_copies(str(upgraded))
    assert (upgraded / KEPT).read_bytes() == before


def test_a_release_that_is_not_there_as_a_whole_is_not_told_of(upgraded: Path) -> None:
    make_boot(str(upgraded), "1.2.3")
    (upgraded / "releases/1.3.0").rmdir()
    assert mend(str(upgraded)) == []
    assert "1.3.0" not in (upgraded / RELEASES).read_text()
    for missing in ("1.3.0", "9.9.9"):
        with pytest.raises(NotFound):
            make_boot(str(upgraded), missing)
    assert boots(str(upgraded)) == "1.2.3"


def test_a_release_that_was_never_upgraded_hot_boots_itself_already(placed: Path) -> None:
    before = {path: path.read_bytes() for path in placed.rglob("*") if path.is_file()}
    make_boot(str(placed), "1.2.3")
    with pytest.raises(NotFound):
        make_boot(str(placed), "1.3.0")
    assert {path: path.read_bytes() for path in placed.rglob("*") if path.is_file()} == before


def test_a_list_that_cannot_be_used_is_said_and_does_not_keep_the_app_from_its_start(
    upgraded: Path,
) -> None:
    for content in ("", "[]", '{"schema_version": 9}', '{"schema_version": 1, "name": "x"}'):
        (upgraded / HELD).write_text(content)
        with pytest.raises(StateError, match="in full"):
            read_holdings(str(upgraded))
        (upgraded / START_ERL).write_text("")
        assert mend(str(upgraded)) == [START_ERL]
        assert boots(str(upgraded)) == "1.2.3"
